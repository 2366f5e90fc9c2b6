"""The figures of an evaluation, from samples made by hand; a model's own samples are in test_pipeline."""

import asyncio
import itertools
import json

import pytest

from aimo import config
from aimo.errors import AimoError
from aimo.evaluation import evaluate, scores
from aimo.evaluation.benchmarks import Question
from aimo.evaluation.completions import Header, Trace
from aimo.inference.sampling import Completion
from aimo.inference.settings import resolve
from aimo.run import runs


def evaluation(golds, answers, seed=0):
    """The scores of integer answers, a list for each problem; its i-th completion has 10 + i tokens."""
    questions = [Question(str(i), "", str(gold)) for i, gold in enumerate(golds)]
    traces = [
        Trace(
            str(q), i, 0, "hm" if answer is None else f"<SOLUTION>{answer}</SOLUTION>", 10 + i, True, 0.0, 0.0
        )
        for q, group in enumerate(answers)
        for i, answer in enumerate(group)
    ]
    return scores.score(Header("m", "w", "x", seed, {}, 0, questions), traces)


def test_figures_are_shares_of_completions_and_of_problems():
    found = evaluation([1, 2], [[1, 1, 3, None], [2, 3, 3, None]])
    assert found.metrics() == {"format": 0.0, "pass@1": 3 / 8, "maj@4": 1 / 2, "mean_tokens": 11.5}
    assert found.pass_rates() == [0.5, 0.25]


def test_the_votes_curve_ends_at_all_samples_and_begins_at_one_and_follows_the_seed():
    curve = evaluation([1], [[1, 1, 1, 3, 3, None]]).vote_curve()
    assert list(curve) == [1, 2, 4, 6] and curve[6] == 1.0 and 0 < curve[1] < 1
    curves = [evaluation([1] * 5, [[1, 3] * 8] * 5, seed).vote_curve() for seed in (0, 0, 1)]
    assert curves[0] == curves[1] != curves[2]


@pytest.mark.parametrize("known", [0, 2])
def test_the_score_counts_only_known_answers(known):
    solutions = [
        {"answer": 7, "gold": 7, "votes": {"7": 3}},
        {"answer": 0, "gold": 5, "votes": {}},
        {"answer": 0, "gold": None, "votes": {}},
    ]
    if not known:
        solutions = [s | {"gold": None} for s in solutions]
    correct = 1 if known else 0
    expected = {"questions": 3, "known": known, "correct": correct, "fallbacks": 2}
    assert evaluate.count_right(solutions) == expected


class Model:
    """A public model that gives these answers in turn."""

    def __init__(self, folder, answers=("7",)):
        self.settings, self.answers = resolve(folder, {"samples": 2}), itertools.cycle(answers)

    def load_weights(self, folder):
        pass

    def encode(self, problem):
        return [1]

    async def sample(self, prompt, seed, settings):
        return Completion(f"hm</think>It is \\boxed{{{next(self.answers)}}}.", [5], True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, coroutine):
        return asyncio.run(coroutine)


def test_the_format_of_a_public_model_is_that_of_its_own_tags(public_model, tmp_path):
    profile = tmp_path / "public.yaml"
    profile.write_text(json.dumps({"model": {"base": str(public_model)}}))
    run = runs.Run(config.load(profile), tmp_path, "inference", 0.0)
    row = {"prompt": [{"role": "user", "content": "3 + 4?"}], "answer": "7"}
    figures = evaluate.evaluate_models(Model(public_model), run, [row])["base"].metrics()
    assert (figures["format"], figures["pass@1"]) == (1.0, 1.0)


# Two samples of each problem, with answers that are no integers: 1 of 2, 2 of 2 and 0 of 2 are right.
ROWS = [
    {"prompt": [{"role": "user", "content": f"{i}?"}], "answer": answer}
    for i, answer in enumerate([r"\frac{7}{2}", r"2\sqrt{2}", "x^2+1"])
]
SAMPLED = ["3.5", "4", r"\sqrt{8}", r"2\sqrt2", "x^2", "x+1"]


@pytest.fixture
def a_run(public_model, tmp_path):
    """A stage of a run that trains, or of one that does not."""

    def of(stage, *overrides):
        profile = tmp_path / "public.yaml"
        profile.write_text(json.dumps({"model": {"base": str(public_model)}}))
        if stage != "inference":
            profile = "tiny"
            overrides = [*overrides, r"prompt.answer_start='\\boxed{'", "prompt.answer_end='}'"]
        return runs.Run(config.load(profile, list(overrides)), tmp_path, stage, 0.0)

    return of


def test_held_out_problems_may_have_any_answer(public_model, a_run):
    figures = evaluate.evaluate_models(Model(public_model, SAMPLED), a_run("inference"), ROWS)[
        "base"
    ].metrics()
    assert figures["pass@1"] == pytest.approx(3 / 6) and figures["maj@2"] == pytest.approx(0.5, abs=0.2)


def test_pass_rates_are_of_any_answer(public_model, a_run, monkeypatch):
    monkeypatch.setattr(evaluate, "Engine", lambda *_, **__: Model(public_model, SAMPLED))
    run = a_run("grpo", "grpo.pass_rate=[0.2, 0.8]", "grpo.pass_rate_samples=2")
    kept, rates = evaluate.within_pass_rate(public_model, ROWS, run)
    assert rates == [0.5, 1.0, 0.0] and kept == ROWS[:1]
    assert evaluate.within_pass_rate(public_model, ROWS, run) == (kept, rates), "it is read from the folder"


def test_pairs_are_of_any_answer(public_model, a_run, monkeypatch):
    from aimo.train import dpo

    monkeypatch.setattr(dpo, "Engine", lambda *_, **__: Model(public_model, SAMPLED))
    run = a_run("dpo", "dpo={learning_rate: 1e-6, samples: 2}")
    (pair,) = dpo.sample_pairs(public_model, ROWS, run)
    assert "3.5" in pair["chosen"][0]["content"] and "4" in pair["rejected"][0]["content"]


def test_a_row_without_an_answer_is_refused_before_anything_is_sampled(public_model, a_run):
    with pytest.raises(AimoError, match="1 of 4 problems have no answer"):
        evaluate.evaluate_models(
            Model(public_model, []), a_run("inference"), [*ROWS, {**ROWS[0], "answer": None}]
        )
