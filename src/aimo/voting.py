"""Majority vote: pure functions on counts of answers. Left out: weights, and stopping rules that may change the result."""

import random
from collections import Counter
from collections.abc import Sequence


def leader(votes: Counter[int]) -> int | None:
    """The answer with the most votes; of equals the smallest, so that the order of arrival cannot decide."""
    return min(votes, key=lambda answer: (-votes[answer], answer)) if votes else None


def is_decided(votes: Counter[int], remaining: int) -> bool:
    """Whether no outcome of the `remaining` samples can change or tie the leader."""
    first = leader(votes)
    second = max((n for answer, n in votes.items() if answer != first), default=0)
    return votes[first] > second + remaining if first is not None else False


def maj_at(answers: Sequence[int | None], gold: int, k: int, rng: random.Random, draws: int = 20) -> float:
    """The chance that the vote of `k` of these samples is right, over random draws (all samples when there are only k)."""
    if k >= len(answers):
        return float(leader(count(answers)) == gold)
    return sum(leader(count(rng.sample(answers, k))) == gold for _ in range(draws)) / draws


def count(answers: Sequence[int | None]) -> Counter[int]:
    """Votes of the samples that have an answer."""
    return Counter(answer for answer in answers if answer is not None)
