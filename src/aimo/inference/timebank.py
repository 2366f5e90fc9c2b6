"""Divides the time of a whole notebook among its questions: pure functions.

A question may take several equal shares, because most take less than one: a settled vote stops early, and
what it saved is there for the questions after it. No question takes what the others need for their minimum.
Out of scope: the clock.
"""

MAX_SHARES = 2.5  # equal shares that one question may take; more gains nothing (docs/solver.md)
MIN_SHARE = 0.6  # of the first equal share: what is reserved for each question still to come
MIN_QUESTIONS_LEFT = 2  # to plan for, so that one more than expected still gets half of what is left
MARGIN_S = 120  # of a Kaggle session, reserved for the gateway to finish


def next_budget(limit_s: float, elapsed_s: float, answered: int, expected: int, known: bool) -> float:
    """Return the seconds, at least 1, for the next question of a notebook with `limit_s` for all.

    `elapsed_s` of them are gone; `answered` of the `expected` questions have been asked; their number may be
    `known` for certain.
    """
    left = limit_s - elapsed_s - (MARGIN_S if limit_s > 10 * MARGIN_S else 0)
    planned = questions_left(answered, expected, known)
    return max(1.0, budget(left, planned, minimum(limit_s, expected)))


def budget(left_s: float, questions: int, minimum_s: float) -> float:
    """Return the seconds for the next of `questions`, `left_s` for all and at least `minimum_s` for each.

    An equal share where the time left does not hold that minimum. Budgets together never exceed the time.
    """
    share = max(0.0, left_s) / questions
    return min(MAX_SHARES * share, max(share, left_s - (questions - 1) * minimum_s))


def minimum(limit_s: float, questions: int) -> float:
    """Return the seconds reserved for every question of a notebook with `limit_s` for all."""
    return MIN_SHARE * max(0.0, limit_s) / questions


def questions_left(answered: int, expected: int, known: bool) -> int:
    """Return how many questions to plan for, at least MIN_QUESTIONS_LEFT unless their number is known."""
    return max(1 if known else MIN_QUESTIONS_LEFT, expected - answered)
