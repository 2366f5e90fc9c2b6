"""95 % intervals over questions: of a mean, of a paired difference and of a ratio, by the bootstrap.

Questions are resampled, each with all its samples, because the samples of one question depend on each other.
The percentiles are widened by sqrt(n / (n - 1)), because a resample of n questions varies too little by that
factor (Hesterberg 2014, arXiv 1411.5279). Out of scope: luck of the sampling itself (`aimo.evaluation.forecast`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds of its interval."""

    value: float
    low: float
    high: float


def mean(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean of (n,) values, one a question."""
    return ratio(values, np.ones(len(values)), seed)


def difference(values: Sequence[float], baseline: Sequence[float], seed: int = 0) -> Interval:
    """The mean difference of two (n,) measurements of the same questions."""
    return mean(np.subtract(values, baseline), seed)


def ratio(values: Sequence[float], baseline: Sequence[float], seed: int = 0) -> Interval:
    """The ratio of the means of two (n,) measurements of the same questions; the same questions are drawn
    of both. Costs 2,000 draws of n questions: 0.1 s for n = 1,000."""
    above, below = np.asarray(values, float), np.asarray(baseline, float)
    n = len(above)
    drawn = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    value = above.mean() / below.mean()
    off = above[drawn].mean(axis=1) / below[drawn].mean(axis=1) - value
    widened = off * np.sqrt(n / max(1, n - 1))
    low, high = np.quantile(value + widened, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))
