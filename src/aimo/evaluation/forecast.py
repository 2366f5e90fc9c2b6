"""Forecast the score of a competition day from recorded samples, and how many runs tell a gain from luck.

A day asks `questions` questions `runs` times each; a question scores the share of its runs that are right, so
in AIMO 3 (two runs) both right give 1 and one right gives 0.5. Assumptions:

- p_q, the chance that one run answers question q, is the share of `draws` replays that are right, each of
  which draws samples with replacement from those recorded of q. With few recorded samples this p_q is too
  near 0 or 1, and the forecast is too narrow.
- Given its p_q, a run is independent of the others: right runs of q are binomial(runs, p_q).
- When as many questions were recorded as the day asks, the day asks these. Otherwise each of its questions is
  drawn at random, with replacement, from the recorded ones.

The score's distribution is the convolution of the questions' distributions, exact given p_q. Time, which a
rule may run out of, has no part in it (docs/solver.md, the time bank).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import comb
from statistics import NormalDist

import numpy as np
from rich.console import Console
from rich.table import Table

from aimo.evaluation.replay import Rule, replay_order
from aimo.evaluation.traces import RecordedQuestion

LEVEL, POWER = 0.05, 0.8
LEAST_SHOWN = 0.001  # chance of a score
FIELD_DEVIATION = 1.7  # of 21 runs of the baseline of AIMO 3's winners (mean 39.3 of 50)


@dataclass(frozen=True)
class Forecast:
    """The distribution of a score in steps of 1 / runs."""

    scores: np.ndarray  # 0, 1 / runs, 2 / runs …
    chances: np.ndarray  # of each score
    luck: float  # standard deviation of the score of one run on the same questions

    @property
    def mean(self) -> float:
        return float(self.scores @ self.chances)

    @property
    def deviation(self) -> float:
        return float(np.sqrt((self.scores - self.mean) ** 2 @ self.chances))

    def at_least(self) -> np.ndarray:
        """Return the chance of each score or a higher one."""
        return self.chances[::-1].cumsum()[::-1]


def chances_of(
    questions: Sequence[RecordedQuestion], rule: Rule, samples: int = 16, draws: int = 300, seed: int = 0
) -> list[float]:
    """Return (n,) the chance that one run of a rule, with so many samples, is right on each question."""
    rng = random.Random(seed)
    found = []
    for question in questions:
        recorded = range(len(question.ours))
        right = [replay_order(question, rng.choices(recorded, k=samples), rule)[0] for _ in range(draws)]
        found.append(sum(right) / draws)
    return found


def forecast_score(rates: Sequence[float], runs: int, questions: int) -> Forecast:
    """Forecast a day of `questions` questions with the chances `rates` (m,) of the recorded ones."""
    rights = range(runs + 1)  # of a question, binomial
    each = np.array([[comb(runs, k) * p**k * (1 - p) ** (runs - k) for k in rights] for p in rates])
    chances = reduce(np.convolve, each if len(rates) == questions else [each.mean(axis=0)] * questions)
    variance = np.mean([rate * (1 - rate) for rate in rates]) * questions
    return Forecast(np.arange(len(chances)) / runs, chances, float(np.sqrt(variance)))


def runs_to_tell(deviation: float, gain: float = 1.0) -> int:
    """Return how many runs each of two settings needs to tell a gain in points from luck.

    n = 2 ((z(0.975) + z(0.8)) deviation / gain)^2: a two-sided test of two means at the level of 0.05 finds
    the gain with a probability of 0.8. Scores are taken as normal, of equal deviation, on the same questions.
    """
    z = NormalDist().inv_cdf
    return max(1, int(np.ceil(2 * ((z(1 - LEVEL / 2) + z(POWER)) * deviation / gain) ** 2)))


def show_forecast(found: Forecast) -> None:
    table = Table("score", "chance", "at least")
    for score, chance, more in zip(found.scores, found.chances, found.at_least(), strict=True):
        if chance >= LEAST_SHOWN:
            table.add_row(f"{score:g}", f"{chance:.1%}", f"{more:.1%}")
    Console().print(table)
    print(f"mean {found.mean:.2f}, deviation {found.deviation:.2f}")
    for whose, deviation in ("this one's", found.luck), ("AIMO 3's baseline's", FIELD_DEVIATION):
        needed = f"a gain of one point needs {runs_to_tell(deviation)} runs of each setting"
        print(f"one run on the same questions, {whose} deviation {deviation:.2f}: {needed}")
