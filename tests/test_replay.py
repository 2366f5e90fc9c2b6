"""Rules of voting, stopping and time on recorded samples; what can be wrong with the files."""

import itertools
import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from conftest import here, refused

from aimo.evaluation import replay, traces
from aimo.evaluation.traces import RecordedQuestion, RecordedSample, Traces
from aimo.inference.answers import Number
from aimo.inference.errors import AimoError
from aimo.inference.journal import Journal
from aimo.inference.sample import End, Sample
from aimo.inference.voting import Step, Stop

DONE = [RecordedSample(tokens, answer) for tokens, answer in [(10, 5), (30, 5), (20, 6), (50, 5)]]
TIED = [RecordedSample(30, 5), RecordedSample(10, 6)]
FAST = [RecordedSample(100, 7, pace=10.0), RecordedSample(100, 8, pace=5.0)]


def play(samples, rule, budget=math.inf):
    return replay.play(samples, replay.parse_rule(rule), budget)


@pytest.fixture
def attempts(shared):
    return shared / "traces" / "aimo3_gpt_oss_120b_attempts.jsonl"


def write_journal(path, samples, model="m", **more):
    journal = Journal(path, model, "aimo3", **more)
    for question, sample in samples:
        journal.add(question, "1 + 1?", sample)
    return path


@pytest.mark.parametrize(
    "samples, rule, budget, outcome",
    [
        # Stopped samples cost what they wrote.
        (DONE, "all", math.inf, (5, 110, 50)),
        (DONE, "2 of 4", math.inf, (5, 10 + 20 + 30 + 30, 30)),
        (DONE, "1 ended of 4", math.inf, (5, 40, 10)),
        (DONE, "ours max_error=0.3", math.inf, (5, 30, 10)),
        # Of equal votes a peer takes that of the first to end, or to start where it awaits all.
        (TIED, "all", math.inf, (5, 40, 30)),
        (TIED, "2 ended of 2", math.inf, (6, 40, 30)),
        # At the end of the budget those that ended vote.
        (DONE, "all", 25, (5, 10 + 25 + 20 + 25, 25)),
        (DONE, "ours", 5, (None, 20, 5)),
        # A recorded pace makes wall time of tokens.
        (FAST, "all", math.inf, (7, 200, 20)),
        (FAST, "1 ended of 2", math.inf, (7, 150, 10)),
    ],
)
def test_a_rule_makes_of_samples_an_answer_tokens_and_wall_time(samples, rule, budget, outcome):
    assert play(samples, rule, budget) == outcome


def test_a_sample_that_is_cut_has_no_vote_and_counts_what_it_wrote():
    over = {2: Stop.EXHAUSTED}
    rule = replay.Rule("cut", lambda state: Step(over.get(state.ended), start=state.left, limit=20))
    assert replay.play([RecordedSample(10, 5), RecordedSample(100, 6)], rule) == (5, 10 + 20, 20)


@pytest.mark.parametrize(
    "weight, unsure, sure",
    [
        ("logprob", -2.0, -0.1),
        ("tail_logprob", -2.0, -0.1),
        ("entropy", 2.0, 0.1),
        ("tail_entropy", 2.0, 0.1),
        ("programs", (8,), (9,)),
    ],
)
def test_a_weight_lets_one_sure_sample_outvote_two_unsure_ones_or_tie_them(weight, unsure, sure):
    field = "printed" if weight == "programs" else weight
    samples = [RecordedSample(10, 4, **{field: unsure})] * 2 + [RecordedSample(10, 9, **{field: sure})]
    assert play(samples, "all")[0] == 4 and play(samples, f"all:{weight}")[0] == 9


def test_ties_are_told_apart_by_entropy_and_nothing_else_is():
    tied = [RecordedSample(10, 4, tail_entropy=0.9), RecordedSample(20, 9, tail_entropy=0.2)]
    assert [play(tied, rule)[0] for rule in ("all", "all:ties", "ours", "ours:ties")] == [4, 9, 4, 9]
    more = [*tied, RecordedSample(15, 4, tail_entropy=3.0)]
    assert [play(more, rule)[0] for rule in ("all:ties", "ours:ties", "all:tail_entropy")] == [4, 4, 9]


def test_an_order_that_comes_twice_counts_twice():
    """All orders of three samples, weighed as often as they were drawn."""
    question = RecordedQuestion(5, DONE[:3], DONE[:3], "q")
    rule = replay.parse_rule("1 ended of 2")
    accuracy, tokens, _ = replay.measure([question], [rule], draws=6000)[0]
    exact = [replay.play([DONE[i] for i in order[:2]], rule) for order in itertools.permutations(range(3))]
    assert abs(tokens[0] - sum(one[1] for one in exact) / 6) < 0.5
    assert abs(accuracy[0] - sum(one[0] == 5 for one in exact) / 6) < 0.03


def test_two_early_answers_that_agree_are_not_believed_and_a_journal_is_read_as_public_traces(
    attempts, tmp_path
):
    """In dd7f5e the first two of eight agree on 266, and 160 is right."""
    (recorded,) = traces.read_traces([attempts])
    question = next(q for q in recorded.questions if q.id == "dd7f5e")
    assert [play(question.ours, rule)[0] for rule in ("2 of 8", "ours")] == [266, 160]
    ours, early = replay.compare_rules(recorded, [replay.parse_rule("2 of 8")], draws=20)
    assert early.flipped == {"dd7f5e": (1.0, 0.0)} and not ours.flipped
    assert early.difference.low < early.difference.value < 0
    assert early.tokens < ours.tokens and early.tokens_ratio.value > 1

    samples = [
        ("dd7f5e", Sample(i, "", s.tokens, End.FINISHED, s.answer, end_s=s.tokens / 50, entropy=s.entropy))
        for i, s in enumerate(question.ours)
    ]
    parts = {"a.jsonl": samples[:3], "b.jsonl": samples[3:]}
    files = [write_journal(tmp_path / name, part) for name, part in parts.items()]
    (pooled,) = traces.read_traces(files, {"dd7f5e": 160})
    assert pooled.name == "m" and pooled.unit == "seconds" and len(pooled.questions) == 1
    ours, as_public = (replay.compare_rules(one, draws=5)[0] for one in (pooled, Traces("", [question])))
    assert (ours.accuracy, ours.tokens) == (1.0, pytest.approx(as_public.tokens))
    assert ours.wall == pytest.approx(as_public.wall / 50)


def test_stopped_samples_run_as_long_as_they_did_and_have_no_vote(tmp_path):
    samples = [Sample(0, "", 10, End.FINISHED, 3), Sample(1, "", 40, End.STOPPED)]
    file = write_journal(tmp_path / "journal.jsonl", [("q", sample) for sample in samples])
    read = traces.read_traces([file], {"q": 3})[0]
    assert read.stopped == 1 and play(read.questions[0].ours, "all") == (3, 50, 40)


def test_what_programs_of_a_sample_without_an_answer_printed_is_read_by_any_equality(tmp_path):
    samples = [
        ("q", Sample(i, "", 9, End.FINISHED, answer, printed=(2.005, None)))
        for i, answer in enumerate([2.0, 2.01, None])
    ]
    file = write_journal(tmp_path / "journal.jsonl", samples, kind=Number(relative=0.01))
    (question,) = traces.read_traces([file], {"q": "2"})[0].questions
    assert [sample.answer for sample in question.ours] == [2.0, 2.0, None]
    assert [sample.printed for sample in question.ours] == [(2.0, None)] * 2 + [(2.005, None)]


def test_the_command_prints_the_rules_and_writes_json_and_a_plot(tmp_path, attempts):
    to, plot = tmp_path / "a.json", tmp_path / "a.png"
    done = here("replay", attempts, "--draws", 5, "--json", to, "--plot", plot)
    rows = json.loads(to.read_text())["rules"]
    assert {"ours", "4 of 8", "all:ties", "ours:entropy"} <= {row["rule"] for row in rows}
    assert rows[0]["accuracy"] == 0.9 and plot.stat().st_size > 10_000
    assert all(row["p"] <= row["corrected"] <= 1 for row in rows)
    assert "no rule differs from ours in accuracy by more than luck among" in done.stdout
    assert here("replay", attempts, "--draws", 5).stdout == done.stdout
    assert "86e8e5" not in done.stdout, "it is wrong under every rule"


GOOD = json.dumps({"key": "k", "id": "q", "sample": asdict(Sample(0, "", 5, End.FINISHED, 3))})


@pytest.mark.parametrize(
    "text, named",
    [
        (f"{GOOD}\n{GOOD[:40]}", "line 2: cut off; delete the line: sed -i 2d"),
        (GOOD.replace('"tokens"', '"colour": 5, "tokens"'), "line 1: colour: unknown key; another version"),
        (GOOD.replace('"tokens": 5', '"tokens": "many"'), "line 1: tokens: should be a valid integer"),
        (f'{{"journal": {{"model": "a"}}}}\n{GOOD}\n{{"journal": {{"model": "b"}}}}', "line 3: model b is"),
        ('{"journal": {"model": "a"}}', "no sample has ended in it"),
        ('{"id": "q", "problem": "1 + 1?"}', "not a file of samples; give a journal"),
        ('{"id": "q", "answer": "x", "samples": []}', "question q has no integer as its answer"),
        ('{"id": "q", "answer": 1, "samples": [{"txt": ""}]}', "line 1: samples.0.text: missing"),
        ("[1]", "line 1: not an object"),
    ],
)
def test_a_file_that_cannot_be_replayed_is_refused_in_one_line_with_the_remedy(tmp_path, text, named):
    path = tmp_path / "journal.jsonl"
    path.write_text(text)
    with pytest.raises(AimoError) as e:
        traces.read_traces([path], {"q": 3} if "journal" in text or "key" in text else {})
    assert named in str(e.value) and str(path) in str(e.value)


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["no.jsonl"], "no.jsonl: No such file"),
        (["JOURNAL"], "question q has no answer; give --answers CSV"),
        (["JOURNAL", "--policy", "all:hope"], "'all:hope': a rule is STOP or STOP:WEIGHT"),
        (["JOURNAL", "--policy", "ours speed=3"], "ours has the keys in_flight, max_error"),
        (["JOURNAL", "--answers", "GOLDS", "--policy", "all:logprob"], "no logprob recorded; record it with"),
        (["JOURNAL", "--answers", "GOLDS", "--json", "no/folder/a.json"], "no/folder"),
        (["JOURNAL", "--answers", "GOLDS", "--json", "FOLDER"], "take a file that can"),
        (["JOURNAL", "--answers", "GOLDS", "--plot", "plot.xyz"], "Format 'xyz' is not supported"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(tmp_path, arguments, named):
    journal = write_journal(tmp_path / "journal.jsonl", [("q", Sample(0, "", 5, End.FINISHED, 3))])
    (tmp_path / "golds.csv").write_text("id,answer\nq,3\n")
    paths = {"JOURNAL": journal, "FOLDER": tmp_path, "GOLDS": tmp_path / "golds.csv"}
    refused("replay", *(paths.get(word, word) for word in arguments), told=[named])


# The forecast, beside enumeration and simulation


@pytest.mark.parametrize("runs", [1, 3])
def test_the_chances_of_scores_are_those_of_all_outcomes(runs):
    rates = [0.2, 0.5, 1.0, 0.9]
    found = replay.forecast_score(rates, runs, len(rates))
    chances = np.zeros(len(rates) * runs + 1)
    for outcome in itertools.product([False, True], repeat=len(rates) * runs):
        each = zip(outcome, itertools.cycle(rates), strict=False)
        chances[sum(outcome)] += math.prod(rate if right else 1 - rate for right, rate in each)
    assert found.chances == pytest.approx(chances)
    assert list(found.scores[:3]) == [0, 1 / runs, 2 / runs] and found.mean == pytest.approx(sum(rates))
    assert found.luck == pytest.approx(replay.forecast_score(rates, 1, len(rates)).deviation)


def test_a_day_of_other_questions_draws_them_from_the_recorded_ones():
    """A question in two runs: 0, 1 or 2 right ones, with the mean of the chances of 0.2 and 0.6."""
    found = replay.forecast_score([0.2, 0.6], 2, 1)
    assert found.chances == pytest.approx([0.4, 0.4, 0.2]) and found.at_least == pytest.approx([1, 0.6, 0.2])
    assert (found.mean, found.deviation) == (pytest.approx(0.4), pytest.approx(0.14**0.5))
    day = replay.forecast_score([0.2, 0.6], 2, 50)
    assert (day.mean, day.deviation) == (pytest.approx(20), pytest.approx((50 * 0.14) ** 0.5))


def test_so_many_runs_find_a_gain_of_one_point_in_four_of_five_trials():
    n = replay.runs_to_tell(1.7)
    assert n == 46 and replay.runs_to_tell(1.7, gain=2.0) == 12
    means = np.random.default_rng(0).normal(0, 1.7, (2, 4000, n)).mean(axis=2)
    found = np.abs(means[1] + 1 - means[0]) > 1.96 * 1.7 * math.sqrt(2 / n)
    assert found.mean() == pytest.approx(0.8, abs=0.02)


def test_the_chance_of_a_right_run_is_that_of_a_fresh_draw():
    """One sample a run: the share of right samples. Five of five: three or more of 0.6, not a sure vote."""
    samples = [RecordedSample(10, 7)] * 3 + [RecordedSample(10, 8)] * 2
    questions = [RecordedQuestion(7, samples, samples), RecordedQuestion(8, samples, samples)]
    for count, shares in (1, [0.6, 0.4]), (5, [0.683, 0.317]):
        found = replay.chances_of(questions, replay.parse_rule("all"), samples=count, draws=3000)
        assert found == pytest.approx(shares, abs=0.03)


def test_the_command_prints_the_chances_and_the_runs_that_tell_a_point_from_luck(attempts):
    done = here("forecast", attempts, "--competition", "aimo3", "--runs", "2", "--draws", "20")
    assert "10 questions recorded" in done.stdout and "a gain of one point needs 46 runs" in done.stdout
