"""The figures of an evaluation, from samples made by hand; a model's own samples are in test_pipeline."""

import asyncio
import json

import pytest

from aimo import config, runs
from aimo.evaluation import held_out
from aimo.evaluation.metrics import Evaluation
from aimo.inference.sampling import Completion
from aimo.inference.settings import resolve


def evaluation(golds, answers, tokens=10, seed=0):
    completions = [[Completion("", [0] * (tokens + i), True) for i in range(len(group))] for group in answers]
    return Evaluation(golds, completions, answers, well_formed=0.5, seed=seed)


def test_figures_are_shares_of_completions_and_of_problems():
    found = evaluation([1, 2], [[1, 1, 3, None], [2, 3, 3, None]])
    assert found.metrics() == {"format": 0.5, "pass@1": 3 / 8, "maj@4": 1 / 2, "mean_tokens": 11.5}
    assert found.pass_rates() == [0.5, 0.25]


def test_the_votes_curve_ends_at_all_samples_and_begins_at_one():
    found = evaluation([1], [[1, 1, 1, 3, 3, None]])
    curve = found.majority()
    assert list(curve) == [1, 2, 4, 6] and curve[6] == 1.0 and 0 < curve[1] < 1


def test_the_votes_draws_follow_the_seed():
    answers = [[1, 3] * 8] * 5
    curves = [evaluation([1] * 5, answers, seed=seed).majority() for seed in (0, 0, 1)]
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
    assert held_out.score(solutions) == expected


class Model:
    """A public model that writes the same every time."""

    def __init__(self, folder):
        self.settings = resolve(folder, {"samples": 2})

    def load_weights(self, folder):
        pass

    def encode(self, problem):
        return [1]

    async def sample(self, prompt, seed, settings):
        return Completion("hm</think>It is \\boxed{7}.", [5], True)

    def run(self, coroutine):
        return asyncio.run(coroutine)


def test_the_format_of_a_public_model_is_that_of_its_own_tags(public_model, tmp_path):
    profile = tmp_path / "public.yaml"
    profile.write_text(json.dumps({"model": {"base": str(public_model)}}))
    run = runs.Run(config.load(profile), tmp_path, "inference", 0.0)
    row = {"prompt": [{"role": "user", "content": "3 + 4?"}], "answer": "7"}
    figures = held_out.compare(Model(public_model), run, [row])["base"].metrics()
    assert (figures["format"], figures["pass@1"]) == (1.0, 1.0)
