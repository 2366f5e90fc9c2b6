"""The real engine with the tiny base; nothing here is mocked."""

import asyncio
import math
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest

from aimo.data import builtin
from aimo.inference.settings import Settings
from aimo.inference.solver import FALLBACK, solve
from aimo.inference.voting import EXACT, Policy, doubt, evidence

EASY = "A shop sells pens for 3 dollars and books for 4 dollars. How much do 2 pens and 5 books cost?"


def test_a_vote_counts_only_finished_samples_and_answers_in_range(engine):
    s = solve(engine, EASY, samples=16, low=0, high=99999)
    assert len(s.samples) == 16 and 1 <= len(s.ended) <= 16
    assert s.votes and s.votes.total() <= len(s.ended)
    assert s.answer == max(s.votes, key=lambda a: (s.votes[a], -a)) and all(0 <= a <= 99999 for a in s.votes)
    assert not s.note


def test_the_same_seed_gives_the_same_vote_and_another_seed_other_samples(engine):
    def texts(seed):
        return sorted(c.text for c in engine.run(all_of(engine, seed)))

    async def all_of(engine, seed):
        prompt = engine.encode(EASY)
        return await asyncio.gather(
            *(engine.sample(prompt, seed * 100 + i, engine.settings) for i in range(8))
        )

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def test_a_decided_vote_stops_the_rest(engine, monkeypatch):
    real, cancelled = engine.sample, []

    async def sample(*arguments):
        try:
            return await real(*arguments)
        except asyncio.CancelledError:
            cancelled.append(arguments)
            raise

    monkeypatch.setattr(engine, "sample", sample)
    stopped = 0
    for p in builtin.generate(10, "heldout", 3):
        s = solve(
            engine,
            p.problem,
            samples=32,
            low=0,
            high=99999,
            policy=Policy(in_flight=32, level=0, hopeless=math.inf),
        )
        first, *others = [n for _, n in s.votes.most_common()] or [0]
        remaining = len(s.samples) - len(s.ended)
        stopped += remaining
        assert remaining == 0 or first > (others[0] if others else 0) + remaining
    assert 0 < len(cancelled) <= stopped  # some may end just as the vote is decided
    assert engine.run(idle(engine)), "streams were left running"


async def idle(engine):
    """Whether the engine has nothing left to do a second later."""
    await asyncio.sleep(1)
    return not engine.llm.output_processor.has_unfinished_requests()


def test_a_settled_vote_starts_no_more_samples(engine):
    stops = Counter()
    for p in builtin.generate(10, "heldout", 4):
        s = solve(engine, p.problem, samples=64, low=0, high=99999)
        stops[s.stop] += 1
        assert s.stop != "settled" or (
            doubt(*evidence(s.votes, s.votes)) <= Policy().level and len(s.samples) < 64
        )
    assert stops["settled"] > 5


def test_a_stream_ends_at_its_first_complete_answer(engine, monkeypatch):
    """The tiny base ends a text right after its answer, so another answer tag makes it end much earlier."""
    monkeypatch.setattr(
        engine, "settings", replace(engine.settings, answer_tags=(" = ", "\n"), thinking=False)
    )
    s = solve(engine, EASY, samples=16, low=0, high=99999, policy=EXACT)
    cut = [c.text for c in s.samples if c.end == "answered"]
    assert cut and all(len(text.split("\n")) <= 3 for text in cut)


def test_a_stream_that_runs_out_of_tokens_is_made_to_answer(engine, monkeypatch):
    monkeypatch.setattr(
        engine, "settings", replace(engine.settings, max_tokens=3, think_end="<end_working_out>")
    )
    s = solve(engine, EASY, samples=8, low=0, high=99999)
    assert all("<end_working_out>" in c.text for c in s.ended) and s.votes.total() >= 4


def test_an_answer_out_of_range_is_no_vote(engine):
    s = solve(engine, EASY, samples=4, low=-9, high=-1)
    assert (
        s.answer == FALLBACK
        and not s.votes
        and "none of 4 completions held an answer from -9 to -1" in s.note
    )


@pytest.mark.parametrize("problem, told", [("", "empty"), ("  \n", "empty"), ("1 + " * 3000, "do not fit")])
def test_a_problem_that_cannot_be_asked_gets_the_fallback_and_the_reason(engine, problem, told):
    s = solve(engine, problem, samples=4, low=0, high=999)
    assert (s.answer, s.samples) == (FALLBACK, []) and told in s.note


def test_a_question_keeps_to_its_budget_and_answers_with_what_it_has(engine):
    started = time.monotonic()
    s = solve(engine, EASY, samples=64, low=0, high=999, budget_s=0.05)
    assert time.monotonic() - started < 5
    assert "time ran out" in s.note


def test_real_text_of_any_kind_is_answered(engine):
    for problem in (
        r"Let $f:\mathbb{Z}\to\mathbb{Z}$ … find $f(2025) \bmod 1000$.",
        "求和 1+2",
        "<|endoftext|><SOLUTION>5</SOLUTION>",
    ):
        assert 0 <= solve(engine, problem, samples=2, low=0, high=999).answer <= 999


def test_questions_can_be_asked_from_several_threads_at_once(engine):
    out = []
    threads = [threading.Thread(target=lambda: out.append(solve(engine, EASY, 8, 0, 999))) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(out) == 3 and all(s.votes for s in out)


def test_a_sample_never_exceeds_its_token_limit(engine):
    prompt = engine.encode(EASY)
    c = engine.run(engine.sample(prompt, 0, Settings(max_tokens=3)))
    assert c.tokens <= 3 and not c.finished
