"""`aimo compare`: paired differences, whether they are real, what would tell, and what is refused."""

import json
import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from conftest import ROOT, TINY, here, refused
from test_evaluate import DONE, header
from test_report import make_run

from aimo.config import RUNS
from aimo.evaluation import benchmarks, compare, evaluate, scores
from aimo.evaluation.completions import CompletionFile


def make(folder, right, page=True, **changes):
    """An evaluation's folder from (n, k) verdicts; without its page, which takes a second, if so wanted."""
    questions = [benchmarks.Question(f"q{i}", f"What is {i}?", str(i)) for i in range(len(right))]
    folder.mkdir()
    with CompletionFile(folder / "x.jsonl", header(questions, **changes)) as file:
        for i, group in enumerate(right):
            for n, ok in enumerate(group):
                text = f"<SOLUTION>{i if ok else -1}</SOLUTION>"
                file.add(replace(DONE, id=f"q{i}", index=n, text=text, tokens=10 + 5 * bool(ok)))
    found = {"x": scores.score(file.header, list(file.traces.values()))}
    if page:
        evaluate.write_results(evaluate.Wanted(TINY, folder.name, ["x"], []), found, {}, folder)
    else:
        (folder / "evaluation.json").write_text('{"benchmarks": {"x": {}}}')
    return found["x"]


@pytest.fixture
def compared(tmp_path):
    """The comparison of two models' verdicts."""
    return lambda *rights: compare.compare_scores(
        *(make(tmp_path / name, right, False) for name, right in zip("ab", rights, strict=True))
    )


def test_a_clear_gain_is_real_and_no_gain_is_not(tmp_path):
    rng = np.random.default_rng(0)
    rates = rng.beta(2, 2, 100)
    better = np.clip(rates + 0.2 + rng.normal(0, 0.05, 100), 0, 1)
    a, b = rng.random((2, 100, 8)) < np.stack([rates, better])[:, :, None]
    for name, right in {"a": a, "b": b, "c": a[:, ::-1]}.items():
        make(tmp_path / name, right, page=False)
    better, same, told = here("compare", *(tmp_path / name for name in "abc")).stdout.splitlines()
    assert better.startswith("x: b is better than a by") and "more than luck" in better
    assert "c against a: +0.0 points" in same and "may be luck" in same
    assert told == f"page: {RUNS}/compare-a-b-c/comparison.html" and (RUNS / "index.html").exists()
    assert not RUNS.is_relative_to(ROOT), "not into the runs of whoever runs the tests"
    rows = json.loads((RUNS / "compare-a-b-c/comparison.json").read_text())["differences"]
    assert [row["is real"] for row in rows] == ["yes", "open"]
    page = (RUNS / "compare-a-b-c/comparison.html").read_text()
    assert 10 < int(re.search(r"x: a and b: (\d+) questions flipped", page)[1]) < 50
    assert "x: a and c: 0 questions" in page
    for names, told in ((["a"], "different names"), (["a", "a", "b"], "different"), (["a", "none"], "none")):
        refused("compare", *(tmp_path / name for name in names), told=[told])


def test_among_many_models_a_difference_that_one_alone_would_show_may_be_luck(tmp_path):
    """Twelve models that are equal to the baseline, of which luck makes one look better, and one that is."""
    rng = np.random.default_rng(41)
    rates = rng.uniform(0.3, 0.7, 40)
    models = {f"m{i:02}": rng.random((40, 4)) < rates[:, None] for i in range(13)}
    models["good"] = rng.random((40, 4)) < np.clip(rates + 0.35, 0, 1)[:, None]
    for name, right in models.items():
        make(tmp_path / name, right, page=False)
    said = compare.compare_folders([tmp_path / name for name in models], [], tmp_path / "all")
    (lucky,) = (line for line in said if "which may be luck: of 13 comparisons" in line)
    assert re.search(r"p = 0\.0[0-4]\d*, corrected 0\.[1-9]", lucky)
    assert "x: good is better" in said[-1] and "more than luck, also among 13 comparisons" in said[-1]
    rows = json.loads((tmp_path / "all/comparison.json").read_text())["differences"]
    assert sum(row["is real"] == "yes" for row in rows) == 1 and "p, corrected for 13" in rows[0]
    name = re.match(r"x: (m\d+)", lucky)[1]
    alone = compare.compare_folders([tmp_path / "m00", tmp_path / name], [], tmp_path / "two")
    assert "more than luck." in alone[0]


def test_few_questions_are_tested_by_mcnemar_or_by_random_signs(compared, tmp_path):
    found = compared([[False]] * 6 + [[True]] * 20, [[True]] * 26)
    assert found.p == pytest.approx(2 / 64) and found.votes is None
    assert "McNemar p = 0.031): more than luck." in compare.verdict(found, "a", "b", 1, found.p)
    three = [make(tmp_path / name, [[name == "d"] * 4] * 3, page=False) for name in "cd"]
    found = compare.compare_scores(*three)
    said = compare.verdict(found, "a", "b", 1, found.p)
    assert "may be luck: on so few questions random signs give as much" in said


def test_as_many_completions_as_are_said_to_tell_do_tell(compared):
    """With about the power of 0.8 that their number is made for, were the gain as large as it seemed."""
    rng = np.random.default_rng(5)
    rates = rng.uniform(0.3, 0.7, 60)
    found = compared(*(rng.random((2, 60, 4)) < np.stack([rates, rates + 0.06])[:, :, None]))
    said = compare.what_would_tell(found)
    needed = int(re.match(r"About (\d+) completions of each question instead of 4 would tell", said)[1])
    gained, told = np.stack([rates, rates + found.passes.value])[:, :, None], []
    for seed in range(200):
        rate = (np.random.default_rng(seed).random((2, 60, needed)) < gained).mean(axis=2)
        told.append(scores.mean_interval(rate[1] - rate[0]).low > 0)
    assert not found.real_alone and 0.65 < np.mean(told) < 0.9


def test_where_questions_differ_more_than_completions_only_more_questions_tell(compared):
    """Half of the questions are gained and half are lost but for one; as many completions as both have."""
    a = np.array([[True] * 8] * 11 + [[False] * 8] * 12)
    found = compared(a, ~a[:, :4])
    assert found.a.samples == found.b.samples == 4 and found.passes.value == pytest.approx(1 / 23)
    assert "More completions of these 23 questions would not tell; about" in compare.what_would_tell(found)


@pytest.mark.parametrize(
    "rows, changes, message",
    [
        (4, {}, "their questions differ"),
        (5, {"temperature": 0.6}, "temperature is 1.0 for one and 0.6 for the other"),
        (5, {"max_tokens": 8}, "--differ max_tokens"),
    ],
)
def test_other_questions_and_other_settings_are_refused(tmp_path, rows, changes, message):
    right = np.ones((5, 2), bool)
    make(tmp_path / "a", right, page=False)
    make(tmp_path / "b", right[:rows], page=False, **changes)
    arguments = ["compare", tmp_path / "a", tmp_path / "b", "--run-dir", tmp_path / "compared"]
    refused(*arguments, told=[message])
    assert not (tmp_path / "compared").exists()
    if changes:
        assert here(*arguments, "--differ", *changes).returncode == 0


def test_a_page_has_each_completion_and_says_which_votes_flipped_since_the_evaluation_before(tmp_path):
    before = np.array([[True, True, False], [False, False, False], [True, True, True]])
    after = np.array([[True, False, False], [True, True, False], [True, True, True]])
    make(tmp_path / "before", before)
    assert "flipped since" not in (tmp_path / "before/evaluation.html").read_text()
    make(tmp_path / "after", after)
    text = (tmp_path / "after/evaluation.html").read_text()
    for kind, shown in ("right", after), ("wrong", ~after):
        assert text.count(f'<details class="{kind}">') == shown.sum()
    assert "The votes of 2 questions have flipped since before" in text
    assert re.findall("now right|now wrong", text) == ["now wrong", "now right"]
    assert "Beside published figures" not in text, "nobody else was asked these questions"

    # A run's report has the models side by side, first the questions that flipped.
    found = {name: make(tmp_path / name, right, False) for name, right in (("base", before), ("sft", after))}
    rows = evaluate.kept_questions(found)
    told = [("q0", "sft: now wrong"), ("q1", "sft: now right"), ("q2", "")]
    assert [(row["id"], row["flipped"]) for row in rows] == told
    assert [c["right"] for c in rows[1]["sides"]["sft"]["completions"]] == [True, True, False]


def test_runs_are_compared_by_their_curves(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name, ["sft", "grpo"], heldout=name == "b")
    done = here("compare", tmp_path / "a", tmp_path / "b", "--run-dir", tmp_path / "c")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "c/comparison.html").read_text()
    assert re.findall("<h[12]>(.*?)</h", text) == ["Runs: a, b", "Figures", "Training: sft", "Training: grpo"]


# Tests and intervals


def test_the_correction_is_that_of_benjamini_and_hochbergs_own_example():
    """The 15 p-values of their paper, of which they take four at 0.05 (three by Bonferroni)."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459]
    p += [0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    corrected = scores.benjamini_hochberg(p[::-1])[::-1]
    assert [q < 0.05 for q in corrected] == [True] * 4 + [False] * 11 and corrected == sorted(corrected)
    assert corrected[3] == pytest.approx(0.0095 * 15 / 4) and corrected[-1] == 1.0


def test_random_signs_agree_with_all_signs_and_mcnemar_with_all_outcomes():
    given = np.array([0.5, 0.25, -0.25, 0.5, 0.125, 0.0, 0.75, 0.25])
    whole = [abs(np.dot(signs, given)) >= given.sum() - 1e-9 for signs in product((-1, 1), repeat=8)]
    assert scores.sign_flip(given) == pytest.approx(np.mean(whole), abs=0.01)
    assert scores.sign_flip(np.zeros(5)) == 1.0
    for gained, lost in ((0, 0), (5, 0), (7, 2), (4, 4)):
        n = gained + lost
        uneven = sum(abs(2 * sum(flips) - n) >= abs(gained - lost) for flips in product((0, 1), repeat=n))
        assert compare.mcnemar(gained, lost) == pytest.approx(uneven / 2**n)


def two_models(rng, questions):
    """(2, n, k) right or wrong: samples of two models on questions drawn from a population."""
    rates = rng.beta(2, 1, size=questions)
    better = np.clip(rates + rng.normal(0.03, 0.1, questions), 0, 1)
    return rng.random((2, questions, 8)) < np.stack([rates, better])[:, :, None]


@pytest.mark.slow  # a thousand evaluations
@pytest.mark.parametrize("questions", [30, 60])
def test_intervals_hold_the_truth_in_95_of_100_evaluations(questions):
    figures = {
        "pass@1": lambda right: right[0].mean(axis=1),
        "maj@k": lambda right: (right[0].mean(axis=1) > 0.5) * 1.0,
        "difference": lambda right: right[1].mean(axis=1) - right[0].mean(axis=1),
    }
    rng = np.random.default_rng(0)
    population = two_models(rng, 200_000)
    evaluations = [two_models(rng, questions) for _ in range(1000)]
    for name, figure in figures.items():
        truth = np.mean(figure(population))
        found = [scores.mean_interval(figure(right), i) for i, right in enumerate(evaluations)]
        assert 0.93 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.97, name


def test_a_ratio_of_pairs_is_narrower_than_of_strangers_and_all_right_leaves_the_exact_bound():
    rng = np.random.default_rng(1)
    values = rng.lognormal(5, 1, 60)
    paired = scores.ratio_interval(0.5 * values * rng.uniform(0.9, 1.1, 60), values)
    apart = scores.ratio_interval(0.5 * rng.permutation(values), values)
    assert paired.low < 0.5 < paired.high and paired.high - paired.low < (apart.high - apart.low) / 4
    nothing = scores.share_interval(np.zeros(30))
    assert nothing.value == nothing.low == 0 and 0.05 < nothing.high < 0.12  # about 3.7 / 30
    assert scores.share_interval(np.ones(30)) == scores.Interval(1.0, pytest.approx(1 - nothing.high), 1.0)
