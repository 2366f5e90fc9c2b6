"""Votes, weights and stop rules, on random votes and on recorded completions."""

import math
import random
import re
from collections import Counter
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
from conftest import ROOT

from aimo.evaluation import replay, traces
from aimo.inference import answers, solver, voting
from aimo.inference.answers import Integer
from aimo.inference.chat_format import Chat
from aimo.inference.sample import End, Sample
from aimo.inference.settings import PUBLIC, Settings, Tags
from aimo.inference.voting import AnswerWatch, Policy, State, Stop, next_step

AFTER = " and so on" * 100
THINKING = (
    "<think>First \\boxed{1}, but no.\n\nAlternatively 2. Hmm, so it is x.</think>\n\n"
    "We get \\boxed{\\text{odd}}, so the answer is \\boxed{2^{5}}. Bye"
)
REASON = Tags("<reason>", "</reason>", "<result>", "</result>")


def read(text, tags=Tags()):  # noqa: B008 (frozen)
    return answers.to_integer(answers.extract(text, tags))


@pytest.fixture(scope="session")
def amc(shared):
    return traces.read_traces([shared / "traces" / "amc23_15_models.jsonl"])[0].questions


# ---- The vote


def test_the_vote_of_one_sample_is_pass_at_1_and_the_vote_of_all_is_the_leader():
    votes, r = [4, 4, 4, 9, None, 9, 1, 2], random.Random(0)
    assert abs(voting.maj_at(votes, [4], 1, r, draws=4000) - 3 / 8) < 0.04
    assert (voting.maj_at(votes, [4], 8, r), voting.maj_at([None], [], 2, r)) == (1.0, 0.0)


@pytest.mark.parametrize(
    "pairs, order",
    [
        ([(9, 3.0), (1, 1.0), (1, 1.0)], [9, 1]),
        ([(1, 2.0), (9, 1.0), (9, 1.0)], [9, 1]),
        ([(9, 1.0), (1, 1.0)], [1, 9]),
        ([(None, 1.0)], []),
    ],
)
def test_ties_go_to_weight_then_votes_then_the_smallest_answer(pairs, order):
    rows = voting.tally(pairs)
    assert [row.answer for row in rows] == order and voting.tally(reversed(pairs)) == rows
    assert not rows or math.isclose(sum(row.share for row in rows), 1)


def test_weights_fall_as_a_completion_is_less_sure_longer_or_contradicted():
    sample = Sample(0, "", 0, End.ANSWERED)
    for kind, field, values in [
        ("logprob", "logprob", [0, -0.1, -2]),
        ("entropy", "entropy", [0, 0.1, 2]),
        ("ties", "entropy", [0, 0.1, 2]),
        ("length", "tokens", [0, 100, 30_000]),
    ]:
        first, second, third = (voting.weigh(replace(sample, **{field: value}), kind) for value in values)
        assert first == 1 > second > third > 0
    assert voting.by_tools(5, [None, 5]) > voting.by_tools(5, []) > voting.by_tools(5, [None, 6])


def test_trivial_answers_are_those_of_the_statement_and_0_and_1():
    problem = "Find $x$ with $2^{10} x = 1{,}024 \\cdot 2,048$ and 3.5 units."
    assert {n for n in range(3000) if voting.by_prior(n, problem) < 1} == {0, 1, 2, 3, 5, 10, 1024, 2048}


# ---- When to stop


def test_a_vote_is_decided_when_no_outcome_of_the_rest_changes_the_winner():
    r, decided = random.Random(6), 0
    for _ in range(400):
        draws = [(r.choices([1, 2], [4, 1])[0], r.choice([0.25, 0.5, 1.0, 2.0])) for _ in range(7)]
        pairs, remaining = draws[: r.randint(1, 7)], r.randint(1, 2)
        rows = voting.tally(pairs)
        weights = {row.answer: row.weight for row in rows}
        state = State(Counter(a for a, _ in pairs), len(pairs), remaining, weights=weights, max_weight=2.0)
        if next_step(state, voting.EXACT).stop is Stop.DECIDED:
            decided += 1
            for rest in product([(a, w) for a in (1, 2, 3) for w in (0.25, 2.0)], repeat=remaining):
                assert voting.tally([*pairs, *rest])[0].answer == rows[0].answer
    assert decided > 30


def test_the_error_bound_counts_the_smaller_of_number_and_weight_as_evidence():
    votes = Counter({7: 3, 8: 1})
    assert voting.evidence(votes, {7: 6.0, 8: 0.5}) == (3, [1])
    assert voting.evidence(votes, {7: 1.5, 8: 2.0}) == (1, [3]), "the leader by weight has the fewer votes"
    assert voting.evidence(Counter(), {}) == (0, [])
    chances = [voting.rival_probability(*pair) for pair in [(0, 0), (4, 0), (6, 2)]]
    assert chances == [1 / 2, 1 / 2**5, 46 / 2**9], "of P(p < 1/2) for p ~ Beta(first + 1, second + 1)"
    assert voting.error_bound(6, [2]) == chances[2] + 1 / 2**7


def test_a_solver_settles_equally_unsure_votes_as_soon_as_sure_ones():
    """The evidence is relative: an entropy of 0.7 would make half a vote of each."""
    sampler = SimpleNamespace(settings=Settings(weight="tail_entropy"))
    unsure = [Sample(i, "", 9, End.ANSWERED, 2, 0.5, tail_entropy=0.7) for i in range(4)]
    problem = solver.AskedProblem(sampler, "?", 0, Integer(0, 9))
    question = solver.Solver(problem, solver.Solution(samples=unsure), print)
    assert next_step(question.state(12, math.inf)).stop is Stop.SETTLED
    question.solution.samples.pop()
    assert next_step(question.state(12, math.inf)).stop is None


def test_a_step_stops_for_the_reason_it_names():
    assert next_step(State(Counter({7: 4}), ended=4, running=8, left=4)).stop is Stop.SETTLED
    assert next_step(State(Counter({7: 3}), ended=4, running=1, left=1)).stop is Stop.DECIDED
    assert next_step(State(Counter({1: 1, 2: 1, 3: 1, 4: 1}), ended=15, running=1)).stop is Stop.FUTILE
    for votes in (Counter({1: 1, 2: 1}), Counter()):
        assert next_step(State(votes, ended=4)).stop is Stop.EXHAUSTED
    assert next_step(State(Counter({7: 2}), ended=2, running=9, left=4, time_left=0)).stop is Stop.DEADLINE
    assert next_step(State(Counter(), running=9, left=4)).stop is None


def test_waves_grow_with_disagreement_and_stay_within_what_may_run_and_what_is_affordable():
    fresh = State(Counter(), left=64)
    first = next_step(fresh).start
    assert 4 < first < Policy().in_flight
    agreeing = State(Counter({7: 3}), ended=3, running=first - 3, left=50)
    split = replace(agreeing, votes=Counter({7: 1, 8: 1, 9: 1}))
    assert next_step(agreeing).start == 0
    assert next_step(split).start == Policy().in_flight - (first - 3)
    assert next_step(replace(split, time_left=9, time_each=10)).start == 0
    assert next_step(State(Counter(), left=3)).start == 3
    assert next_step(fresh, Policy(in_flight=5)).start == 5


def test_overlong_samples_are_cut_only_when_half_of_the_samples_have_ended():
    assert next_step(State(Counter({1: 2, 2: 1}), ended=8, running=8, longest=1000)).limit == 3000
    assert next_step(State(Counter({1: 2, 2: 1}), ended=7, running=8, longest=1000)).limit == math.inf


# ---- When a sample is over


@pytest.mark.parametrize(
    "text, end, answer",
    [
        ("</think>Step 1: $\\boxed{5}$. Then" + AFTER[:900] + "total \\boxed{42}" + AFTER, AFTER, 42),
        ("So \\boxed{12}" + AFTER + "Problem 2: \\boxed{13}", AFTER, 12),
        ("\\boxed{} then \\boxed{\\frac{9}{5}} then $\\boxed{\\frac{84}{2}}$." + AFTER, AFTER[:-2], 42),
        ("First \\boxed{x}" + AFTER + "then \\boxed{7}" + AFTER * 2, "\\boxed{7}" + AFTER, 7),
        (THINKING + AFTER, AFTER[:-5], 32),
        (
            "<think>\\boxed{7}.\n" + "wait\n" * 100 + "So the answer is 8.\n</think>\n\n\\boxed{8}",
            "ink>\n",
            8,
        ),
        ("1 + 1<end_working_out><SOLUTION>2</SOLUTION>", "</SOLUTION>", 2),
        ("<answer>5</answer>", "</answer>", 5),
        # A model may think in the tags of its base.
        ("<think>Perhaps \\boxed{1}. No.\n\nHmm, x.</think><SOLUTION>2</SOLUTION>", "</SOLUTION>", 2),
    ],
)
def test_a_sample_ends_at_its_final_answer_and_not_at_the_first_of_several_boxes(text, end, answer):
    place = text.index(end) + len(end.rstrip("\n"))
    for i in range(place - 30, place + 1):
        assert AnswerWatch(read).find(text[:i]) == (None if i < place else (place, answer))


@pytest.mark.parametrize("seed", range(4))
def test_a_message_that_is_watched_as_it_grows_ends_where_its_whole_text_says(seed):
    r, ended = random.Random(seed), 0
    parts = ["\\boxed{", "}", "\\boxed{7}", "\\fbox{x}", "</think>", "<think>", "<SOLUTION>", "</SOLUTION>"]
    parts += ["5", "</answer>", "\n\n", " and so on" * 30, "y" * 1000, "z " * 2600, "The answer is 8."]
    for _ in range(100):
        text, thinking = "".join(r.choices(parts, k=r.randint(1, 20))), r.random() < 0.3
        before, found = r.choice([0, 0, r.randint(0, len(text))]), None
        watch, end = AnswerWatch(read, Tags(), thinking, text[:before]), before
        while end < len(text) and not found:
            end += r.choice([1, 3, 7, 64, 500])
            found = watch.find(text[before:end])
            assert found == AnswerWatch(read, Tags(), thinking).find(text[:end])
        ended += found is not None
    assert ended > 5


def test_a_sample_goes_on_while_its_sentence_may_give_another_value():
    text = "The answers are $\\boxed{3}$, $\\boxed{5}$ and $\\boxed{7}$." + " bla" * 400
    several = [text[:i] for i in range(0, len(text) + 1, 100)]
    for text in (
        *several,
        "\\boxed{12",
        "\\boxed{x}",
        "the answer is 12",
        "<think>\\boxed{1}",
        "<SOLUTION>12",
    ):
        assert AnswerWatch(read).find(text) is None


@pytest.mark.parametrize("tags, end", [(PUBLIC[0], "42}"), (REASON, "42</result>")])
def test_a_forced_ending_closes_the_thought_and_makes_the_next_number_the_answer(tags, end):
    start, close = tags.think_start, tags.think_end
    talk = SimpleNamespace(settings=Settings(tags=tags))
    for text in (f"{start}so 6 * 7", f"{start}so 6 * 7{close}\n\nIt follows"):
        forced = text + Chat.forced_ending(talk, text, False) + end
        assert AnswerWatch(lambda part: read(part, tags), tags).find(forced + AFTER)[1] == 42
        assert forced.count(close) == 1


def test_a_loop_and_an_endless_count_are_seen_and_ordinary_text_is_not():
    r = random.Random(0)

    def prose(n):
        return "".join(r.choices("abcdefgh \n", k=n))

    for period in (1, 100, 3000, 5000):
        loop = prose(period)
        copies = 1 + voting.REPEATS * max(1, math.ceil(voting.BLOCK / period))
        assert voting.is_repeating(prose(5000) + loop * copies)
        assert period < voting.BLOCK or not voting.is_repeating(prose(5000) + loop * (voting.REPEATS - 1))
    cases = [f"- Case {n}: $a = {n}$, $b = 594 - {n}$, and $a^2 = {n * n}$.\n\n" for n in range(102, 1102)]
    assert voting.is_counting("".join(cases))
    for honest in "", prose(50_000), "".join(cases[:100]) + "So it is \\boxed{7}.":
        assert not voting.is_repeating(honest) and not voting.is_counting(honest)


# ---- Recorded completions


def test_final_answers_of_real_completions_are_the_ones_they_end_with(amc):
    pairs = [(q.gold, *pair) for q in amc for pair in zip(q.peer, q.ours, strict=True)]
    both = [(w.answer, o.answer) for _, w, o in pairs if isinstance(w.answer, int) and o.answer is not None]
    assert len(both) > 350 and sum(a == b for a, b in both) / len(both) > 0.985
    # Labels take the last number where there is no answer.
    right = sum(gold == o.answer for gold, _, o in pairs), sum(gold == w.answer for gold, w, _ in pairs)
    assert right[0] > 0.96 * right[1]
    assert sum(o.tokens for *_, o in pairs) < 0.55 * sum(w.tokens for _, w, _ in pairs)


@pytest.mark.slow  # thousands of replays
def test_the_documented_figures_are_those_of_the_replay(amc):
    """Of the AMC file, 300 orders each: accuracy, tokens and wall."""
    page = (ROOT / "docs" / "voting.md").read_text()
    table = page.split("| amc23_15_models | ours")[1].split("gsm8k_175b")[0]
    row = re.compile(
        r"^\|\s*\| ([\w: ]+?)(?: \(.*?\))? \| (0\.\d+) \|.*?\| ([\d,]+) \|.*?\| ([\d,]+) \|", re.M
    )
    documented = {rule: figures for rule, *figures in row.findall("| | ours" + table)}
    assert documented.keys() >= {*replay.STOPS, "all:length", "ours:length"}
    measured = replay.measure(amc, [replay.parse_rule(rule) for rule in documented], 300, 0)
    for rule, (accuracy, tokens, wall) in zip(documented, measured.mean(axis=2), strict=True):
        assert documented[rule] == [f"{accuracy:.3f}", f"{tokens:,.0f}", f"{wall:,.0f}"]
