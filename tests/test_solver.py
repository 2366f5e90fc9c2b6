"""The solver with the real engine and the tiny base, its own cost, and the time of a whole notebook."""

import asyncio
import runpy
from dataclasses import replace

import pytest
from conftest import ROOT
from scripted import Scripted

from aimo.data import sources
from aimo.inference import sample
from aimo.inference.answers import Integer
from aimo.inference.chat_format import FencedBlocks
from aimo.inference.sample import AskedProblem, End, RunningSample
from aimo.inference.settings import Tags
from aimo.inference.solver import next_budget, solve_problem
from aimo.inference.voting import EXACT, Stop

CALL = '<tool_call>{"name": "python", "arguments": {"code": "CODE"}}</tool_call>'
EASY = "A shop sells pens for 3 dollars and books for 4 dollars. How much do 2 pens and 5 books cost?"


def test_the_same_seed_gives_the_same_vote_and_another_seed_other_samples(engine):
    def texts(seed):
        s = solve_problem(engine, EASY, 8, Integer(0, 99999), seed, policy=EXACT)
        return {sample.index: sample.text for sample in s.ended}

    first, again, other = texts(1), texts(1), texts(2)
    both = first.keys() & again.keys()  # those that end before the vote is decided depend on timing
    equal = [first[i] == again[i] for i in both]
    assert sum(equal) > len(equal) / 2, "rarely, another batch changes the last bits of a sample's logits"
    assert set(first.values()) != set(other.values())


def test_a_decided_vote_stops_the_rest(engine):
    async def is_idle():
        await asyncio.sleep(1)
        return not engine.llm.output_processor.has_unfinished_requests()

    stopped = 0
    for p in sources.generate(10, "heldout", 3):
        s = solve_problem(engine, p.problem, 32, Integer(0, 99999), policy=replace(EXACT, in_flight=32))
        first, *others = [n for _, n in s.votes.most_common()] or [0]
        remaining = len(s.samples) - len(s.ended)
        stopped += remaining
        assert remaining == 0 or first > (others[0] if others else 0) + remaining
    assert stopped and engine.run(is_idle()), "streams were left running"


class Endless(Scripted):
    """Only a forced answer ends by itself; the first sample writes nothing."""

    async def sample(self, prompt, seed, settings, until=None):
        if settings.max_tokens < 100:
            return await super().sample(prompt, seed, settings, until)
        if next(self.requests):
            until("Wait, I have to think about it.", [5] * 8)
        await asyncio.sleep(1000)


def test_a_question_out_of_time_answers_with_what_it_has():
    s = solve_problem(Endless(lambda *_: "26}"), EASY, 5, Integer(0, 999), budget_s=1.0)
    assert s.stop is Stop.DEADLINE and s.note == "time ran out" and 0.8 < s.seconds < 2
    assert [c.end for c in s.samples] == [End.TIME] * 4 and s.votes == {26: 4}


def test_a_sample_is_recorded_as_it_grows_and_when_another_server_begins_its_turn_again():
    problem = AskedProblem(Scripted(None, tags=Tags()), EASY, 0, Integer(0, 999))
    sample = RunningSample(problem, 0, 0.0, with_tools=False)
    assert not sample.update("2 * 3 = 6 and ", [5] * 9)
    assert not sample.update("2 * 4", [5] * 3) and not sample.update("2 * 4 = 8 and ", [5] * 9)
    assert sample.cut(End.STOPPED, 1.0).text == "2 * 4 = 8 and "
    assert sample.update("2 * 4 = 8 and 26<end_working_out><SOLUTION>26</SOLUTION>", [5] * 30)
    assert sample.end is End.ANSWERED and sample.cut(End.STOPPED, 1.0).tokens == 30


@pytest.mark.parametrize("form", ["```python\nCODE\n```", "~~~py\nCODE\n~~~", CALL])
def test_a_call_ends_a_stream_where_it_ends_however_the_stream_is_cut(form):
    before, call = "```latex\nx\n```\n" + "Wait. " * 40, form.replace("CODE", "print(6 * 7)")
    text = f"{before}{call}\n" + "so on " * 60
    for step in 1, 3, 7, 64, 300:
        talk = FencedBlocks.__new__(FencedBlocks)
        looks = ((end, talk.find_program(text[:end], False)) for end in range(step, len(text), step))
        seen_at, found = next((end, found) for end, found in looks if found)
        assert found == ("print(6 * 7)", len(before + call)) and seen_at <= found[1] + step + 1
        assert talk.find_program(text[:seen_at], False) == found, "it is looked at once more"


@pytest.mark.parametrize("programs", [False, True])
def test_a_token_of_a_long_sample_costs_no_more_than_one_of_a_short_one(programs, monkeypatch):
    """Where every token copies or searches all that was written, the long one costs many times as much."""
    benchmark = runpy.run_path(str(ROOT / "benchmarks" / "solver.py"))
    monkeypatch.setattr(sample, "Programs", benchmark["NoPrograms"])
    short, long = (
        min(benchmark["measure"](tokens, True, programs) for _ in range(3)) for tokens in (8_000, 64_000)
    )
    assert long < 2 * short


# ---- The time of a whole notebook


def test_what_easy_questions_save_goes_to_hard_ones_and_more_than_expected_are_planned_for():
    def budget(left, questions, of, limit=1000):
        return next_budget(limit, limit - left, of - questions, of, known=True)

    assert budget(1000, 10, 10) == 250, "two and a half equal shares"
    assert budget(1000, 2, 10) == 940, "all but the minimum of the last"
    assert budget(100, 10, 10) == 10, "after a stall all get equal shares"
    assert budget(-3, 5, 10) == 1 and budget(100, -2, 3) == 100
    assert next_budget(1000, 900, 49, 50, known=False) == 88 == next_budget(1000, 900, 120, 50, known=False)


@pytest.mark.parametrize("asked", [50, 120])
def test_questions_that_take_all_that_they_get_end_before_the_limit_however_many_there_are(asked):
    elapsed, budgets = 180.0, []
    for i in range(asked):
        budgets.append(next_budget(17_400, elapsed, i, 50, known=False))
        elapsed += budgets[-1]
    assert elapsed < 17_400 and min(budgets) >= 1
    assert min(budgets[:49]) > 200 and budgets[49] > 100, "half of the last one's is kept for one more"
