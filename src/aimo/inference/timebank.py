"""The time of a whole notebook, paid out to its questions by need: pure functions.

A question may take several equal shares, because most take less than one: a settled vote stops early and what it saved goes to
those after it. It may never take what the others need to get their minimum. Out of scope: the clock.
"""

MOST = 2.0  # equal shares that one question may take; more is spent in vain (docs/voting.md)
LEAST = 0.6  # of the first equal share: what is kept for each question still to come
UNKNOWN = 10  # questions that may still come when more than expected have been asked


def budget(left_s: float, questions: int, minimum_s: float) -> float:
    """Seconds that the next of `questions` may take when `left_s` are left for all, with `minimum_s` kept for each after it.

    Where the time left does not hold that minimum, an equal share. Budgets together never exceed the time.
    """
    share = max(0.0, left_s) / questions
    return min(MOST * share, max(share, left_s - (questions - 1) * minimum_s))


def minimum(limit_s: float, questions: int) -> float:
    """The seconds that every question is to get, of a notebook with `limit_s` for all."""
    return LEAST * max(0.0, limit_s) / questions


def questions_left(answered: int, expected: int, known: bool) -> int:
    """How many questions to plan for; more than expected must not find an empty bank, so at least UNKNOWN unless it is known."""
    return max(1 if known else UNKNOWN, expected - answered)
