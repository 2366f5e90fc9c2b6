"""95 % intervals over questions: of a mean, of a paired difference and of a ratio, by the bootstrap.

Questions are resampled, each with all its samples, because the samples of one question depend on each other.
The bounds are percentiles (Efron 1979), further out where there are few questions (Hesterberg 2015).
Out of scope: the luck of sampling (`aimo.evaluation.forecast`).
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds of its interval."""

    value: float
    low: float
    high: float


def mean(values: ArrayLike, seed: int = 0) -> Interval:
    """The mean of (n,) values, one a question."""
    return ratio(values, np.ones_like(values), seed)


def share(values: ArrayLike, seed: int = 0) -> Interval:
    """The mean of (n,) shares, one a question.

    Where all are 0 or all are 1 the bootstrap sees no spread: the far bound is then the exact one of n equal
    outcomes (Clopper and Pearson 1934).
    """
    found, spared = mean(values, seed), 1 - ((1 - LEVEL) / 2) ** (1 / len(np.atleast_1d(values)))
    if found.low == found.high == 0:
        return Interval(0.0, 0.0, spared)
    return Interval(1.0, 1 - spared, 1.0) if found.low == found.high == 1 else found


def difference(values: ArrayLike, baseline: ArrayLike, seed: int = 0) -> Interval:
    """The mean difference of two (n,) measurements of the same questions."""
    return mean(np.subtract(values, baseline), seed)


def ratio(values: ArrayLike, baseline: ArrayLike, seed: int = 0) -> Interval:
    """The ratio of the means of two (n,) measurements of the same questions.

    The same questions are drawn of both. Costs 2,000 draws of n questions: 0.1 s for n = 1,000.
    """
    above, below = np.asarray(values, float), np.asarray(baseline, float)
    drawn = np.random.default_rng(seed).integers(len(above), size=(RESAMPLES, len(above)))
    ratios = above[drawn].mean(axis=1) / below[drawn].mean(axis=1)
    tail = tail_of(len(above))
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Interval(float(above.mean() / below.mean()), float(low), float(high))


def tail_of(n: int) -> float:
    """What lies beyond each bound: 0.025 for many questions, less for few, whose percentiles are too narrow.

    That is the normal distribution's tail beyond Student's t, times the root of n / (n - 1).
    """
    z, freedom = NormalDist().inv_cdf((1 + LEVEL) / 2), max(1, n - 1)
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return NormalDist().cdf(-t * (1 + 1 / freedom) ** 0.5)
