"""`aimo compare`: models on the same questions, how large a difference is, and whether it is more than luck.

Each question's difference is taken first, and the bootstrap draws questions, so that easy and hard ones do
not blur it. Out of scope: questions or settings that differ, which are refused.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from math import ceil, comb
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from aimo.errors import AimoError
from aimo.evaluation.completions import Header
from aimo.evaluation.evaluate import make_folder, read_evaluation, row_of
from aimo.evaluation.scores import Interval, Scores, difference_interval, ratio_interval
from aimo.inference.settings import ASKED
from aimo.inference.storage import write_json
from aimo.report import pages

SIGNIFICANCE, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Comparison:
    """Model b against model a, the baseline."""

    a: Scores
    b: Scores
    passes: Interval
    """Difference in pass@1."""
    votes: Interval | None
    """Difference in maj@k, k being what both have; None for one completion of each question."""
    tokens: Interval
    """b's mean tokens divided by a's."""
    mcnemar: float | None
    """The p-value of McNemar's exact test; None where there are several completions of a question."""

    @property
    def is_real(self) -> bool:
        """Whether the interval of the difference in pass@1 excludes 0, or McNemar's test says so."""
        if self.mcnemar is not None:
            return self.mcnemar < SIGNIFICANCE
        return self.passes.low > 0 or self.passes.high < 0

    def flips(self) -> list[int]:
        """The rows whose vote is right for one and wrong for the other; the largest changes come first."""
        changes = np.abs(self.b.right.mean(axis=1) - self.a.right.mean(axis=1))
        flipped = np.flatnonzero(self.a.votes() != self.b.votes())
        return sorted(flipped.tolist(), key=lambda row: -changes[row])


def run(folders: list[Path], allowed: Collection[str], folder: Path) -> list[str]:
    """Compare evaluations with the first of them, write comparison.json and its page; returns the verdicts.

    AimoError when they have no benchmark in common, or were made with other questions or settings.
    """
    runs = {path.name: read_evaluation(path) for path in folders}
    if len(runs) < 2:
        raise AimoError("compare takes two or more folders of `aimo evaluate` with different names")
    (a, baseline), *others = runs.items()
    common = [name for name in baseline if all(name in scores for _, scores in others)]
    if not common:
        raise AimoError(f"{' and '.join(runs)} have no benchmark in common; evaluate the same ones")
    for name in common:
        check([scores[name].header for scores in runs.values()], allowed)
    verdicts, differences, flips = [], [], {}
    for name in common:
        for b, scores in others:
            found = compare(baseline[name], scores[name])
            verdicts.append(f"{name}: {verdict(found, a, b)}")
            differences.append({"benchmark": name, "model": b, "against": a} | row(found))
            flips[f"{name}: {a} and {b}"] = [flip(found, i, a, b) for i in found.flips()]
    make_folder(folder)
    try:
        write_json(folder / "comparison.json", {"headline": " ".join(verdicts), "differences": differences})
    except OSError as e:
        raise AimoError(f"--run-dir {folder}: {e.strerror}; make room, or take another") from None
    title = f"Comparison: {', '.join(runs)}"
    pages.write_comparison(
        folder, {"title": title, "verdicts": verdicts, "differences": differences, "flips": flips}
    )
    pages.write_index(folder)
    return verdicts


def row(found: Comparison) -> dict[str, Any]:
    """The figures of a comparison, differences in points of 100."""
    k = found.a.samples
    figures: dict[str, Any] = {"questions": len(found.a.right), "k": k, "pass@1": points(found.passes)}
    if found.votes:
        figures[f"maj@{k}"] = points(found.votes)
    if found.mcnemar is not None:
        figures["McNemar's p"] = f"{found.mcnemar:.2g}"
    tokens = found.tokens
    return figures | {
        "tokens, ratio": f"{tokens.value:.2f} ({tokens.low:.2f} to {tokens.high:.2f})",
        "is real": "yes" if found.is_real else "open",
    }


def points(difference: Interval) -> str:
    """A difference with its interval."""
    value, low, high = (100 * number for number in (difference.value, difference.low, difference.high))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def flip(found: Comparison, i: int, a: str, b: str) -> dict[str, Any]:
    """A question that flipped, with completions of both models."""
    rows = {name: row_of(scores, i) for name, scores in ((a, found.a), (b, found.b))}
    question = {key: rows[a][key] for key in ("id", "problem", "gold")}
    return question | {"sides": rows}


def check(headers: list[Header], allowed: Collection[str] = ()) -> None:
    """Refuse headers of different questions, or of settings that differ and are not `allowed`."""
    first, *others = headers
    for other in others:
        names = f"{first.model} and {other.model} on {first.benchmark}"
        if first.questions != other.questions:
            raise AimoError(
                f"{names}: their questions differ; evaluate both on the same file with the same --rows"
            )
        mine, theirs = (limited(header) for header in (first, other))
        for key in (*ASKED, "context"):  # but for what an older version did not record
            if key in mine and key in theirs and mine[key] != theirs[key] and key not in allowed:
                raise AimoError(
                    f"{names}: {key} is {mine[key]!r} for one and {theirs[key]!r} for the other; evaluate "
                    f"again with the same, or compare its effect with --differ {key}"
                )


def limited(header: Header) -> dict[str, Any]:
    """The settings, with no more tokens than the context allows."""
    settings = asdict(header) | header.settings
    return settings | {"max_tokens": min(settings.get("max_tokens", header.context), header.context)}


def compare(a: Scores, b: Scores) -> Comparison:
    """Compare two models on the same questions, by as many completions as both have."""
    k = min(a.samples, b.samples)
    a, b = a.first(k), b.first(k)
    return Comparison(
        a,
        b,
        difference_interval(b.right.mean(axis=1), a.right.mean(axis=1)),
        difference_interval(b.votes(), a.votes()) if k > 1 else None,
        ratio_interval(b.tokens, a.tokens),
        mcnemar(int((b.right & ~a.right).sum()), int((a.right & ~b.right).sum())) if k == 1 else None,
    )


def mcnemar(gained: int, lost: int) -> float:
    """The two-sided p-value of McNemar's exact test, of questions gained and lost."""
    n = gained + lost
    return min(1.0, 2 * sum(comb(n, i) for i in range(min(gained, lost) + 1)) / 2**n)


def verdict(found: Comparison, a: str, b: str) -> str:
    """In plain words whether b is better than a, and what would tell if that is open."""
    points = 100 * found.passes.value
    bounds = f"95 % interval {100 * found.passes.low:+.1f} to {100 * found.passes.high:+.1f}"
    if found.mcnemar is not None:
        bounds += f", McNemar p = {found.mcnemar:.2g}"
    if found.is_real:
        kind = "better" if points > 0 else "worse"
        return f"{b} is {kind} than {a} by {abs(points):.1f} points of pass@1 ({bounds}): more than luck."
    return f"{b} against {a}: {points:+.1f} points of pass@1 ({bounds}) may be luck. {what_would_tell(found)}"


def what_would_tell(found: Comparison) -> str:
    """How many more completions or questions would show a difference of this size, with a power of 0.8.

    The variance of the mean difference is (between + within / k) / n: between questions, and within them.
    """
    k, n = found.a.samples, len(found.a.right)
    difference = found.passes.value
    if difference == 0:
        return "No number of completions would show a difference of nothing."
    z = NormalDist().inv_cdf
    wanted = (difference / (z(1 - SIGNIFICANCE / 2) + z(POWER))) ** 2  # the variance at which it shows
    rates = [scores.right.mean(axis=1) for scores in (found.a, found.b)]
    total = float(np.var(rates[1] - rates[0], ddof=1)) if n > 1 else 0.0
    within = sum(float(np.mean(rate * (1 - rate))) for rate in rates) * k / (k - 1) if k > 1 else 0.0
    between = max(0.0, total - within / k)
    needed = f"about {ceil(total / wanted):,} questions like these"
    if k == 1:
        return f"{needed.capitalize()} would tell."
    if n * wanted > between and (more := ceil(within / (n * wanted - between))) > k:
        return (
            f"About {more:,} completions of each question instead of {k} would tell, and so would {needed}."
        )
    return f"More completions of these {n:,} questions would not tell; {needed}, {k} completions each, would."
