"""Intervals over questions hold the truth as often as they say."""

import numpy as np
import pytest

from aimo.evaluation import scores

SAMPLES, EVALUATIONS = 8, 1000


def evaluate(rng, questions):
    """(2, n, k) right or wrong: samples of two models on questions drawn from a population."""
    rates = rng.beta(2, 1, size=questions)
    better = np.clip(rates + rng.normal(0.03, 0.1, questions), 0, 1)
    return rng.random((2, questions, SAMPLES)) < np.stack([rates, better])[:, :, None]


@pytest.mark.slow  # a thousand evaluations
@pytest.mark.parametrize("questions", [30, 60])
def test_intervals_hold_the_truth_in_95_of_100_evaluations(questions):
    figures = {
        "pass@1": lambda right: right[0].mean(axis=1),
        "maj@k": lambda right: (right[0].mean(axis=1) > 0.5) * 1.0,
        "difference": lambda right: right[1].mean(axis=1) - right[0].mean(axis=1),
    }
    rng = np.random.default_rng(0)
    population = evaluate(rng, 200_000)
    evaluations = [evaluate(rng, questions) for _ in range(EVALUATIONS)]
    for name, figure in figures.items():
        truth = np.mean(figure(population))
        found = [scores.mean_interval(figure(right), i) for i, right in enumerate(evaluations)]
        assert 0.93 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.97, name


def test_a_ratio_of_equal_measurements_is_certain_and_of_pairs_narrower_than_of_strangers():
    rng = np.random.default_rng(1)
    values = rng.lognormal(5, 1, 60)
    same = scores.ratio_interval(values, values)
    assert same.low == pytest.approx(1) == same.high
    paired = scores.ratio_interval(0.5 * values * rng.uniform(0.9, 1.1, 60), values)
    apart = scores.ratio_interval(0.5 * rng.permutation(values), values)
    assert paired.low < 0.5 < paired.high and paired.high - paired.low < (apart.high - apart.low) / 4


def test_all_right_or_all_wrong_leaves_the_exact_bound():
    nothing = scores.share_interval(np.zeros(30))
    assert nothing.value == nothing.low == 0 and 0.05 < nothing.high < 0.12  # about 3.7 / 30
    assert scores.share_interval(np.ones(30)) == scores.Interval(1.0, pytest.approx(1 - nothing.high), 1.0)
