"""`aimo compare`: paired differences, whether they are real, what would tell, and what is refused."""

import json
import re
from itertools import product

import numpy as np
import pytest
from conftest import ROOT, TINY
from test_evaluate import header, run

from aimo.config import RUNS
from aimo.evaluation import benchmarks, compare, evaluate, scores
from aimo.evaluation.completions import File, Trace


def make(folder, right, **changes):
    """An evaluation's folder from (n, k) verdicts."""
    questions = [benchmarks.Question(f"q{i}", f"What is {i}?", str(i)) for i in range(len(right))]
    folder.mkdir()
    file = File(folder / "x.jsonl", header(questions, **changes))
    for i, group in enumerate(right):
        for n, ok in enumerate(group):
            text = f"<SOLUTION>{i if ok else -1}</SOLUTION>"
            file.add(Trace(f"q{i}", n, n, text, 10 + 5 * bool(ok), True, 0.0, 1.0))
    found = {"x": scores.score(file.header, list(file.traces.values()))}
    evaluate.write_results(evaluate.Wanted(TINY, folder.name, "w", ["x"], []), found, {}, folder, False)
    return found["x"]


def draw(rng, n, k, gain):
    """(2, n, k) verdicts of two models on the same questions; the second is better by about `gain`."""
    rates = rng.beta(2, 2, n)
    better = np.clip(rates + gain + rng.normal(0, 0.05, n), 0, 1)
    return rng.random((2, n, k)) < np.stack([rates, better])[:, :, None]


def test_a_clear_gain_is_real_and_no_gain_is_not(monkeypatch, capsys, tmp_path):
    a, b = draw(np.random.default_rng(0), 100, 8, 0.2)
    for name, right in {"a": a, "b": b, "c": a[:, ::-1]}.items():
        make(tmp_path / name, right)
    folders = [tmp_path / name for name in "abc"]
    code, out, err = run(monkeypatch, capsys, "compare", *folders, "--run-dir", tmp_path / "compared")
    assert code == 0, err
    better, same = out.splitlines()[:2]
    assert better.startswith("x: b is better than a by") and "more than luck" in better
    assert "c against a: +0.0 points" in same and "may be luck" in same
    rows = json.loads((tmp_path / "compared/comparison.json").read_text())["differences"]
    assert [row["is real"] for row in rows] == ["yes", "open"]
    page = (tmp_path / "compared/comparison.html").read_text()
    flipped = compare.compare_scores(
        *(evaluate.read_evaluation(folder)["x"] for folder in folders[:2])
    ).flips()
    assert f"x: a and b: {len(flipped)} questions flipped" in page and "x: a and c: 0 questions" in page


def test_mcnemar_counts_the_outcomes_at_least_as_uneven():
    for gained, lost in ((0, 0), (5, 0), (7, 2), (4, 4)):
        n = gained + lost
        uneven = sum(abs(2 * sum(flips) - n) >= abs(gained - lost) for flips in product((0, 1), repeat=n))
        assert compare.mcnemar(gained, lost) == pytest.approx(uneven / 2**n)


def test_one_completion_of_each_question_is_tested_by_mcnemar(tmp_path):
    a = make(tmp_path / "a", np.array([[False]] * 6 + [[True]] * 20))
    b = make(tmp_path / "b", np.array([[True]] * 26))
    found = compare.compare_scores(a, b)
    assert found.mcnemar == pytest.approx(2 / 64) and found.votes is None and found.is_real
    assert "McNemar p = 0.031" in compare.verdict(found, "a", "b")


def test_as_many_completions_as_are_said_to_tell_do_tell(tmp_path):
    """With about the power of 0.8 that their number is made for, were the gain as large as it seemed."""
    rng = np.random.default_rng(5)
    rates = rng.uniform(0.3, 0.7, 60)
    few = rng.random((2, 60, 4)) < np.stack([rates, rates + 0.06])[:, :, None]
    found = compare.compare_scores(make(tmp_path / "a", few[0]), make(tmp_path / "b", few[1]))
    assert not found.is_real
    said = compare.what_would_tell(found)
    needed = int(re.match(r"About (\d+) completions of each question instead of 4 would tell", said)[1])
    told = []
    for seed in range(200):
        gained = np.stack([rates, rates + found.passes.value])[:, :, None]
        rate = (np.random.default_rng(seed).random((2, 60, needed)) < gained).mean(axis=2)
        told.append(scores.difference_interval(rate[1], rate[0]).low > 0)
    assert 0.65 < np.mean(told) < 0.9


def test_where_questions_differ_more_than_completions_only_more_questions_tell(tmp_path):
    """Half of the questions are gained and half are lost but for one: no sampling noise at all."""
    a = np.array([[True] * 8] * 11 + [[False] * 8] * 12)
    found = compare.compare_scores(make(tmp_path / "a", a), make(tmp_path / "b", ~a))
    assert "More completions of these 23 questions would not tell; about" in compare.what_would_tell(found)


def test_models_are_compared_by_as_many_completions_as_both_have(tmp_path):
    rng = np.random.default_rng(1)
    a, b = make(tmp_path / "a", rng.random((9, 6)) < 0.5), make(tmp_path / "b", rng.random((9, 4)) < 0.5)
    found = compare.compare_scores(a, b)
    assert found.a.samples == found.b.samples == 4
    assert found.passes.value == pytest.approx(b.right.mean() - a.right[:, :4].mean())


@pytest.mark.parametrize(
    "rows, changes, message",
    [
        (4, {}, "their questions differ"),
        (5, {"temperature": 0.6}, "temperature is 1.0 for one and 0.6 for the other"),
        (5, {"max_tokens": 8}, "--differ max_tokens"),
    ],
)
def test_other_questions_and_other_settings_are_refused(
    monkeypatch, capsys, tmp_path, rows, changes, message
):
    right = np.ones((5, 2), bool)
    make(tmp_path / "a", right)
    make(tmp_path / "b", right[:rows], **changes)
    arguments = ["compare", tmp_path / "a", tmp_path / "b", "--run-dir", tmp_path / "compared"]
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2 and message in err and err.count("\n") == 1 and not (tmp_path / "compared").exists()
    if changes:
        assert run(monkeypatch, capsys, *arguments, "--differ", next(iter(changes)))[0] == 0


def test_a_comparison_without_a_folder_goes_where_the_tests_runs_are(monkeypatch, capsys, tmp_path):
    """Not into the runs of whoever runs the tests."""
    for name in "ab":
        make(tmp_path / name, np.ones((3, 2), bool))
    code, out, _ = run(monkeypatch, capsys, "compare", tmp_path / "a", tmp_path / "b")
    assert code == 0 and f"page: {RUNS}/compare-a-b/comparison.html" in out and (RUNS / "index.html").exists()
    assert not RUNS.is_relative_to(ROOT)


@pytest.mark.parametrize("folders", [["a"], ["a", "a"], ["a", "none"]])
def test_two_evaluations_are_needed(monkeypatch, capsys, tmp_path, folders):
    make(tmp_path / "a", np.ones((3, 2), bool))
    code, _, err = run(monkeypatch, capsys, "compare", *(tmp_path / name for name in folders))
    assert code == 2 and err.count("\n") == 1
