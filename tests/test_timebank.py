"""The division of a notebook's time among its questions."""

import random

import pytest

from aimo.inference.timebank import MAX_SHARES, budget, minimum, next_budget, questions_left


@pytest.mark.parametrize("seed", range(200))
def test_no_day_runs_over_and_every_question_gets_its_minimum(seed):
    rng = random.Random(seed)
    left, questions = rng.uniform(10, 20000), rng.randint(1, 100)
    least = minimum(left, questions)
    for i in range(questions):
        allowed = budget(left, questions - i, least)
        assert least - 1e-6 <= allowed <= left + 1e-6
        left -= allowed * rng.choice([0, 0.1, 1, 1])


def test_what_easy_questions_save_goes_to_hard_ones():
    assert budget(1000, 10, minimum(1000, 10)) == MAX_SHARES * 100
    assert budget(1000, 2, minimum(1000, 10)) == 940, "all but the minimum of the last"


def test_after_a_stall_beyond_the_minimum_all_get_equal_shares():
    assert budget(100, 10, minimum(10000, 10)) == 10


def test_without_time_left_a_question_gets_none():
    assert budget(0, 5, 1) == budget(-3, 5, 1) == 0


def test_more_questions_than_expected_are_planned_for():
    assert questions_left(0, 50, known=False) == 50
    assert questions_left(49, 50, known=False) == 2 == questions_left(120, 50, known=False)
    assert questions_left(2, 3, known=True) == 1 == questions_left(5, 3, known=True)


@pytest.mark.parametrize("asked", [50, 60, 120])
def test_questions_that_take_all_that_they_get_end_before_the_limit_however_many_there_are(asked):
    elapsed, budgets = 180.0, []
    for i in range(asked):
        budgets.append(next_budget(17_400, elapsed, i, 50, known=False))
        elapsed += budgets[-1]
    assert elapsed < 17_400 and min(budgets) >= 1
    assert min(budgets[:49]) > 200 and budgets[49] > 100, "half of the last one's is kept for one more"
