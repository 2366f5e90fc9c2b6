"""The forecast beside enumeration and simulation."""

import itertools
import math
import random
import statistics

import numpy as np
import pytest
from conftest import here

from aimo.evaluation import replay as lab
from aimo.evaluation.replay import parse_rule
from aimo.evaluation.traces import RecordedQuestion, RecordedSample


@pytest.mark.parametrize("runs", [1, 2, 3])
def test_the_chances_of_scores_are_those_of_all_outcomes(runs):
    rates = [0.2, 0.5, 1.0, 0.9]
    found = lab.forecast_score(rates, runs, len(rates))
    chances = np.zeros(len(rates) * runs + 1)
    for outcome in itertools.product([False, True], repeat=len(rates) * runs):
        each = zip(outcome, itertools.cycle(rates), strict=False)
        chances[sum(outcome)] += math.prod(rate if right else 1 - rate for right, rate in each)
    assert found.chances == pytest.approx(chances)
    assert list(found.scores[:3]) == [0, 1 / runs, 2 / runs] and found.mean == pytest.approx(sum(rates))
    assert found.luck == pytest.approx(lab.forecast_score(rates, 1, len(rates)).deviation)


def test_a_day_of_other_questions_is_as_simulated():
    rates, r = [0.1, 0.8, 1.0], random.Random(0)
    found = lab.forecast_score(rates, 2, 50)
    scores = [
        sum((r.random() < rate) + (r.random() < rate) for rate in r.choices(rates, k=50)) / 2
        for _ in range(5000)
    ]
    assert abs(found.mean - statistics.mean(scores)) < 0.2
    assert abs(found.deviation - statistics.stdev(scores)) < 0.1
    share = sum(score >= 34 for score in scores) / len(scores)
    assert abs(found.at_least()[68] - share) < 0.02


def test_so_many_runs_find_a_gain_of_one_point_in_four_of_five_trials():
    n = lab.runs_to_tell(1.7)
    assert n == 46 and lab.runs_to_tell(1.7, gain=2.0) == 12
    means = np.random.default_rng(0).normal(0, 1.7, (2, 4000, n)).mean(axis=2)
    for gain, share in ((1, 0.8), (0, 0.05)):
        found = np.abs(means[1] + gain - means[0]) > 1.96 * 1.7 * math.sqrt(2 / n)
        assert found.mean() == pytest.approx(share, abs=0.02 if gain else 0.01)


def test_the_chance_of_a_right_run_is_that_of_a_fresh_draw():
    """One sample a run: the share of right samples. Five of five: three or more of 0.6, not a sure vote."""
    samples = [RecordedSample(10, 7)] * 3 + [RecordedSample(10, 8)] * 2
    questions = [RecordedQuestion(7, samples, samples), RecordedQuestion(8, samples, samples)]
    one = lab.chances_of(questions, parse_rule("all"), samples=1, draws=4000)
    assert one == pytest.approx([0.6, 0.4], abs=0.03)
    five = lab.chances_of(questions, parse_rule("all"), samples=5, draws=2000)
    assert five == pytest.approx([0.683, 0.317], abs=0.04)


def test_the_command_prints_the_chances_and_the_runs_that_tell_a_point_from_luck(shared):
    file = shared / "traces" / "aimo3_gpt_oss_120b_attempts.jsonl"
    done = here("forecast", file, "--competition", "aimo3", "--runs", "2", "--draws", "20")
    assert "10 questions recorded" in done.stdout and "a gain of one point needs 46 runs" in done.stdout
