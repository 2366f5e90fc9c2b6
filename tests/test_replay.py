"""Rules of voting, stopping and time on recorded samples; what can be wrong with the files."""

import itertools
import json
import math
import random
import statistics
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
from conftest import here, refused

from aimo.data import sources
from aimo.evaluation import replay, traces
from aimo.evaluation.traces import RecordedQuestion, RecordedSample, Traces
from aimo.inference.answers import Number
from aimo.inference.errors import AimoError
from aimo.inference.journal import Journal
from aimo.inference.local import answer_file
from aimo.inference.sample import End, Sample

DONE = [RecordedSample(tokens, answer) for tokens, answer in [(10, 5), (30, 5), (20, 6), (50, 5)]]


def play(samples, rule, budget=math.inf):
    return replay.play(samples, replay.parse_rule(rule), budget)


def gpt_oss(shared):
    return traces.read_traces([shared / "traces" / "aimo3_gpt_oss_120b_attempts.jsonl"])[0]


def write_journal(path, samples, model="m", settings=None):
    journal = Journal(path, model, "aimo3", settings)
    for question, sample in samples:
        journal.add(question, "1 + 1?", sample)
    return path


def test_a_replay_counts_every_token_once_and_keeps_to_its_limits():
    r = random.Random(4)
    for _ in range(100):
        answers = [r.choice([1, 1, 2, 3, None]) for _ in range(r.randint(1, 24))]
        samples = [RecordedSample(r.lognormvariate(6, 1), answer) for answer in answers]
        rule, peaks = replay.parse_rule("ours"), []

        def watched(state, rule=rule, peaks=peaks):
            peaks.append(state.running)
            return rule.next_step(state)

        over, outcome = replay.play(samples, replay.Rule("watched", watched, is_ours=True))
        assert max(peaks) <= 16 and len(over) <= len(samples)
        assert outcome.tokens <= sum(s.tokens for s in samples) + 1e-6
        assert outcome.wall <= outcome.tokens + 1e-6


FAST = [RecordedSample(100, 7, pace=10.0), RecordedSample(100, 8, pace=5.0)]


@pytest.mark.parametrize(
    "samples, rule, budget, outcome",
    [
        # Stopped samples cost what they wrote.
        (DONE, "all", math.inf, (5, 110, 50)),
        (DONE, "2 of 4", math.inf, (5, 10 + 20 + 30 + 30, 30)),
        (DONE, "1 ended of 4", math.inf, (5, 40, 10)),
        # At the end of the budget those that ended vote.
        (DONE, "all", 25, (5, 10 + 25 + 20 + 25, 25)),
        (DONE, "ours", 5, (None, 20, 5)),
        # A recorded pace makes wall time of tokens.
        (FAST, "all", math.inf, (7, 200, 20)),
        (FAST, "1 ended of 2", math.inf, (7, 150, 10)),
    ],
)
def test_a_rule_makes_of_samples_an_answer_tokens_and_wall_time(samples, rule, budget, outcome):
    over, found = play(samples, rule, budget)
    assert found == outcome
    if outcome[1] == 110:
        assert list(over.items()) == [(0, 5), (2, 6), (1, 5), (3, 5)], "in the order of their end"


@pytest.mark.parametrize(
    "weight, field, unsure, sure",
    [
        ("logprob", "logprob", -2.0, -0.1),
        ("tail_logprob", "tail_logprob", -2.0, -0.1),
        ("entropy", "entropy", 2.0, 0.1),
        ("tail_entropy", "tail_entropy", 2.0, 0.1),
        ("programs", "printed", (8,), (9,)),
    ],
)
def test_a_weight_lets_one_sure_sample_outvote_two_unsure_ones_or_tie_them(weight, field, unsure, sure):
    samples = [RecordedSample(10, 4, **{field: unsure})] * 2 + [RecordedSample(10, 9, **{field: sure})]
    assert play(samples, "all")[1].answer == 4
    assert play(samples, f"all:{weight}")[1].answer == 9


def test_ties_are_told_apart_by_entropy_and_nothing_else_is():
    tied = [RecordedSample(10, 4, tail_entropy=0.9), RecordedSample(20, 9, tail_entropy=0.2)]
    assert [play(tied, rule)[1].answer for rule in ("all", "all:ties", "ours", "ours:ties")] == [4, 9, 4, 9]
    r = random.Random(0)
    for _ in range(100):
        answers = [r.choice([1, 2, 3]) for _ in range(r.randint(1, 16))]
        samples = [RecordedSample(r.random(), answer, tail_entropy=3 * r.random()) for answer in answers]
        votes = Counter(answers).most_common()
        assert play(samples, "all:ties")[1].answer in [a for a, n in votes if n == votes[0][1]]
        plain, ties = play(samples, "ours")[1], play(samples, "ours:ties")[1]
        assert ties.tokens <= plain.tokens, "what cannot tie any more is decided"


def test_samples_that_are_all_equally_unsure_are_settled_as_soon_as_sure_ones():
    samples = [RecordedSample(10 + i, 1, entropy=0.7, tail_logprob=-1.5) for i in range(16)]
    over, outcome = play(samples, "ours")
    assert len(over) == 4
    assert play(samples, "ours:entropy") == play(samples, "ours:tail_logprob") == (over, outcome)


def test_a_rule_of_ours_may_have_other_values():
    assert play(DONE, "ours max_error=0.5")[1].tokens < play(DONE, "ours")[1].tokens


def test_an_order_that_comes_twice_counts_twice():
    """All orders of three samples, weighed as often as they were drawn."""
    question = RecordedQuestion(5, DONE[:3], DONE[:3], "q")
    rule = replay.parse_rule("1 ended of 2")
    mean = replay.measure([question], [rule], draws=6000)[0]
    exact = [replay.play([DONE[i] for i in order[:2]], rule)[1] for order in itertools.permutations(range(3))]
    assert abs(mean.tokens[0] - sum(one.tokens for one in exact) / 6) < 0.5
    assert abs(mean.accuracy[0] - sum(one.answer == 5 for one in exact) / 6) < 0.03


def test_two_early_answers_that_agree_are_not_believed(shared):
    """In dd7f5e the first two of eight agree on 266, and 160 is right."""
    recorded = gpt_oss(shared)
    question = next(q for q in recorded.questions if q.id == "dd7f5e")
    assert [sample.answer for sample in sorted(question.ours, key=lambda s: s.tokens)][:2] == [266, 266]
    assert play(question.ours, "2 of 8")[1].answer == 266
    assert play(question.ours, "ours")[1].answer == 160
    ours, early = replay.compare_rules(recorded, [replay.parse_rule("2 of 8")], draws=20)
    assert early.flipped == {"dd7f5e": (1.0, 0.0)} and not ours.flipped
    assert early.difference.low < early.difference.value < 0
    assert early.tokens < ours.tokens and early.tokens_ratio.value > 1


def test_a_journal_and_the_public_formats_are_read_alike(tmp_path, shared):
    question = next(q for q in gpt_oss(shared).questions if q.id == "dd7f5e")
    samples = [
        ("dd7f5e", Sample(i, "", s.tokens, End.FINISHED, s.answer, end_s=s.tokens / 50, entropy=s.entropy))
        for i, s in enumerate(question.ours)
    ]
    parts = {"a.jsonl": samples[:3], "b.jsonl": samples[3:]}
    files = [write_journal(tmp_path / name, part) for name, part in parts.items()]
    pooled = traces.read_traces(files, {"dd7f5e": 160})[0]
    assert pooled.name == "m" and pooled.unit == "seconds" and len(pooled.questions) == 1
    ours = replay.compare_rules(pooled, draws=5)[0]
    as_public = replay.compare_rules(Traces("", [question]), draws=5)[0]
    assert (ours.accuracy, ours.tokens) == (1.0, pytest.approx(as_public.tokens))
    assert ours.wall == pytest.approx(as_public.wall / 50)


def test_stopped_samples_run_as_long_as_they_did_and_have_no_vote(tmp_path):
    samples = [Sample(0, "", 10, End.FINISHED, 3), Sample(1, "", 40, End.STOPPED)]
    file = write_journal(tmp_path / "journal.jsonl", [("q", sample) for sample in samples])
    read = traces.read_traces([file], {"q": 3})[0]
    assert read.stopped == 1
    assert play(read.questions[0].ours, "all")[1] == (3, 50, 40)


def test_what_programs_of_a_sample_without_an_answer_printed_is_read_by_any_equality(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", kind=Number(relative=0.01))
    for index, answer in enumerate([2.0, 2.01, None]):
        journal.add("q", "1 + 1?", Sample(index, "", 9, End.FINISHED, answer, printed=(2.005, None)))
    (question,) = traces.read_traces([tmp_path / "journal.jsonl"], {"q": "2"})[0].questions
    assert [sample.answer for sample in question.ours] == [2.0, 2.0, None]
    assert [sample.printed for sample in question.ours] == [(2.0, None)] * 2 + [(2.005, None)]


def test_the_command_prints_the_rules_and_writes_json_and_a_plot(tmp_path, shared):
    file = shared / "traces" / "aimo3_gpt_oss_120b_attempts.jsonl"
    to, plot = tmp_path / "a.json", tmp_path / "a.png"
    done = here("replay", file, "--draws", 5, "--json", to, "--plot", plot)
    rows = json.loads(to.read_text())["rules"]
    assert {"ours", "4 of 8", "all:ties", "ours:entropy"} <= {row["rule"] for row in rows}
    assert rows[0]["accuracy"] == 0.9 and plot.stat().st_size > 10_000
    again = here("replay", file, "--draws", 5)
    assert "no rule differs from ours in accuracy by more than luck among" in done.stdout
    assert all(row["p"] <= row["corrected"] <= 1 for row in rows)
    assert again.stdout == done.stdout and "86e8e5" not in done.stdout, "it is wrong under every rule"
    assert "ours max_error=0.2" in here("replay", file, "--draws", 2, "--policy", "ours max_error=0.2").stdout


KEY = {"key": "k", "id": "q"}
GOOD = json.dumps(KEY | {"sample": asdict(Sample(0, "", 5, End.FINISHED, 3))})


@pytest.mark.parametrize(
    "text, named",
    [
        (f"{GOOD}\n{GOOD[:40]}", "line 2: cut off; delete the line: sed -i 2d"),
        (
            GOOD.replace('"tokens": 5', '"tokens": 5, "colour": 5'),
            "line 1: colour: unknown key; another version",
        ),
        (GOOD.replace('"tokens": 5', '"tokens": "many"'), "line 1: tokens: should be a valid integer"),
        (GOOD.replace('"tokens": 5, ', ""), "line 1: tokens: missing"),
        (f'{{"journal": {{"model": "m", "mood": 1}}}}\n{GOOD}', "line 1: mood: unknown key"),
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
    assert named in str(e.value) and "\n" not in str(e.value) and str(path) in str(e.value)


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["no.jsonl"], "no.jsonl: No such file"),
        (["JOURNAL"], "question q has no answer; give --answers CSV"),
        (["JOURNAL", "--answers", "JOURNAL"], "has no column 'answer'"),
        (["JOURNAL", "--policy", "all:hope"], "'all:hope': a rule is STOP or STOP:WEIGHT"),
        (["JOURNAL", "--policy", "ours speed=3"], "ours has the keys in_flight, max_error"),
        (["JOURNAL", "--answers", "GOLDS", "--policy", "all:logprob"], "no logprob recorded; record it with"),
        (["JOURNAL", "--answers", "GOLDS", "--json", "no/folder/a.json"], "no/folder"),
        (["JOURNAL", "--answers", "GOLDS", "--json", "FOLDER"], "Is a directory; take a file that can"),
        (["JOURNAL", "--answers", "GOLDS", "--plot", "plot.xyz"], "Format 'xyz' is not supported"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(tmp_path, arguments, named):
    journal = write_journal(tmp_path / "journal.jsonl", [("q", Sample(0, "", 5, End.FINISHED, 3))])
    (tmp_path / "golds.csv").write_text("id,answer\nq,3\n")
    paths = {"JOURNAL": str(journal), "FOLDER": str(tmp_path), "GOLDS": str(tmp_path / "golds.csv")}
    refused("replay", *(paths.get(word, word) for word in arguments), told=[named])


def test_what_the_solver_journals_can_be_replayed(tmp_path, engine, monkeypatch):
    """From an answered file to the table of rules, confidences included."""
    monkeypatch.setattr(engine, "settings", replace(engine.settings, confidence=True))
    problems = sources.generate(4, "heldout", 5)
    rows = "".join(f'q{i},"{p.problem}",{p.answer}\n' for i, p in enumerate(problems))
    (tmp_path / "test.csv").write_text(f"id,problem,answer\n{rows}")
    solutions = answer_file(engine, tmp_path / "test.csv", tmp_path / "a.csv", 0)
    read = traces.read_traces([tmp_path / "a.journal.jsonl"], traces.read_gold_file(tmp_path / "test.csv"))[0]
    samples = [sample for solution in solutions.values() for sample in solution.samples]
    assert read.stopped == sum(sample.end is End.STOPPED for sample in samples)
    figures = replay.compare_rules(read, draws=10)
    assert {"ours:tail_entropy", "all:logprob", "ours:ties"} <= {row.rule for row in figures}
    for question in read.questions:
        votes = Counter(sample.answer for sample in question.ours if sample.answer is not None)
        assert votes == solutions[question.id].votes


# The forecast, beside enumeration and simulation


@pytest.mark.parametrize("runs", [1, 2, 3])
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


def test_a_day_of_other_questions_is_as_simulated():
    rates, r = [0.1, 0.8, 1.0], random.Random(0)
    found = replay.forecast_score(rates, 2, 50)
    scores = [
        sum((r.random() < rate) + (r.random() < rate) for rate in r.choices(rates, k=50)) / 2
        for _ in range(5000)
    ]
    assert abs(found.mean - statistics.mean(scores)) < 0.2
    assert abs(found.deviation - statistics.stdev(scores)) < 0.1
    share = sum(score >= 34 for score in scores) / len(scores)
    assert abs(found.at_least()[68] - share) < 0.02


def test_so_many_runs_find_a_gain_of_one_point_in_four_of_five_trials():
    n = replay.runs_to_tell(1.7)
    assert n == 46 and replay.runs_to_tell(1.7, gain=2.0) == 12
    means = np.random.default_rng(0).normal(0, 1.7, (2, 4000, n)).mean(axis=2)
    for gain, share in ((1, 0.8), (0, 0.05)):
        found = np.abs(means[1] + gain - means[0]) > 1.96 * 1.7 * math.sqrt(2 / n)
        assert found.mean() == pytest.approx(share, abs=0.02 if gain else 0.01)


def test_the_chance_of_a_right_run_is_that_of_a_fresh_draw():
    """One sample a run: the share of right samples. Five of five: three or more of 0.6, not a sure vote."""
    samples = [RecordedSample(10, 7)] * 3 + [RecordedSample(10, 8)] * 2
    questions = [RecordedQuestion(7, samples, samples), RecordedQuestion(8, samples, samples)]
    one = replay.chances_of(questions, replay.parse_rule("all"), samples=1, draws=4000)
    assert one == pytest.approx([0.6, 0.4], abs=0.03)
    five = replay.chances_of(questions, replay.parse_rule("all"), samples=5, draws=2000)
    assert five == pytest.approx([0.683, 0.317], abs=0.04)


def test_the_command_prints_the_chances_and_the_runs_that_tell_a_point_from_luck(shared):
    file = shared / "traces" / "aimo3_gpt_oss_120b_attempts.jsonl"
    done = here("forecast", file, "--competition", "aimo3", "--runs", "2", "--draws", "20")
    assert "10 questions recorded" in done.stdout and "a gain of one point needs 46 runs" in done.stdout
