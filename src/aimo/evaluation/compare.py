"""`aimo compare`: compare models on the same questions, and test whether a difference is more than luck.

Differences are taken per question, and the bootstrap resamples questions, so that the spread from easy to
hard ones does not blur them. Evaluations whose questions or settings differ are refused.
"""

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from itertools import product
from math import ceil, comb
from pathlib import Path
from typing import Any

import numpy as np

from aimo.config.profile import TRAINED
from aimo.evaluation import scores
from aimo.evaluation.evaluate import make_folder, question_row, read_evaluation
from aimo.evaluation.scores import FOUND, SIGNIFICANCE, Interval, Scores, mean_interval
from aimo.inference.errors import AimoError
from aimo.inference.settings import ASKED
from aimo.inference.storage import read_lines, write_json
from aimo.report import pages
from aimo.run.runs import figures

# The lines to print, the content of comparison.json, and a function that writes the page into a folder.
Compared = tuple[list[str], dict[str, Any], Callable[[Path], Path]]


@dataclass(frozen=True)
class Comparison:
    """Model b against model a, the baseline, on as many completions of each question as both have."""

    a: Scores
    b: Scores
    passes: Interval  # difference in pass@1
    votes: Interval | None  # difference in maj@k; None if k is 1
    tokens: Interval  # b's mean tokens divided by a's
    p: float  # of the difference: by McNemar's test if k is 1, otherwise by random signs
    real_alone: bool  # whether it would be significant as the only comparison
    flips: list[int]  # rows whose vote is right for only one model, largest changes first


def compare_folders(folders: list[Path], allowed: Collection[str], folder: Path) -> list[str]:
    """Compare evaluations with the first one, or runs with each other; write comparison.json and its page.
    Return the verdicts. Only the settings in `allowed` may differ between evaluations."""
    named = {path.name: path for path in folders}
    if len(named) < max(2, len(folders)):
        raise AimoError("compare takes two or more folders with different names; rename those of one name")
    if all((path / "profile.yaml").exists() for path in folders):
        lines, record, page = of_runs(named)
    else:
        lines, record, page = of_evaluations(named, allowed)
    make_folder(folder)
    write_json(folder / "comparison.json", record)
    page(folder)
    pages.write_index(folder)
    return lines


def of_evaluations(named: dict[str, Path], allowed: Collection[str]) -> Compared:
    runs = {name: read_evaluation(path)[1] for name, path in named.items()}
    (a, baseline), *others = runs.items()
    common = [name for name in baseline if all(name in other for _, other in others)]
    if not common:
        raise AimoError(f"{' and '.join(runs)} have no benchmark in common; evaluate the same ones")
    pairs = list(product(common, others))
    for name, (_, other) in pairs:
        first, second = baseline[name].header, other[name].header
        names = f"{first.model} and {second.model} on {name}"
        if first.questions != second.questions:
            told = "their questions differ; evaluate both on one file with the same --rows"
            raise AimoError(f"{names}: {told}")
        if first.answer != second.answer:
            told = "answers are judged by two rules; evaluate both with one --competition"
            raise AimoError(f"{names}: {told}")
        mine, theirs = ({"context": one.context} | one.settings for one in (first, second))
        for one in (mine, theirs):  # no more tokens than the context allows
            one["max_tokens"] = min(one.get("max_tokens", one["context"]), one["context"])
        for key in (*ASKED, "context"):  # older versions did not record every key
            if key in mine and key in theirs and mine[key] != theirs[key] and key not in allowed:
                raise AimoError(
                    f"{names}: {key} is {mine[key]!r} for one and {theirs[key]!r} for the other; evaluate "
                    f"again with the same, or compare its effect with --differ {key}"
                )
    verdicts, differences = [], []
    flips: dict[str, list[dict[str, Any]]] = {}
    compared = [compare_scores(baseline[name], other[name]) for name, (_, other) in pairs]
    corrected = scores.benjamini_hochberg([one.p for one in compared])
    for (name, (b, _)), found, q in zip(pairs, compared, corrected, strict=True):
        verdicts.append(f"{name}: {verdict(found, a, b, len(pairs), q)}")
        k, tokens = found.a.samples, found.tokens
        row = {"benchmark": name, "model": b, "against": a, "questions": len(found.a.right), "k": k}
        row["pass@1"] = in_points(found.passes)
        row |= {f"maj@{k}": in_points(found.votes)} if found.votes else {"McNemar's p": f"{found.p:.2g}"}
        if len(pairs) > 1:
            row |= {"p": f"{found.p:.2g}", f"p, corrected for {len(pairs)}": f"{q:.2g}"}
        row["tokens, ratio"] = f"{tokens.value:.2f} ({tokens.low:.2f} to {tokens.high:.2f})"
        row["is real"] = "yes" if found.real_alone and q < SIGNIFICANCE else "open"
        differences.append(row)
        both = [{a: question_row(found.a, i), b: question_row(found.b, i)} for i in found.flips]
        flips[f"{name}: {a} and {b}"] = [sides[a] | {"sides": sides} for sides in both]
    title = f"Comparison: {', '.join(runs)}"
    shown = {"title": title, "verdicts": verdicts, "differences": differences, "flips": flips}
    record = {"headline": " ".join(verdicts), "differences": differences}
    return verdicts, record, lambda folder: pages.write_comparison(folder, shown)


def of_runs(named: dict[str, Path]) -> Compared:
    found = {name: figures(path) for name, path in named.items()}
    rows = [{"run": name, "model": m} | row for name, models in found.items() for m, row in models.items()]
    logs: dict[str, dict[str, Any]] = {}  # each stage's curves, by run
    for stage in TRAINED:
        read = {name: read_lines(run / stage / "log.jsonl") for name, run in named.items()}
        if len(trained := {name: log for name, log in read.items() if log}) > 1:
            logs[stage] = trained
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        measured = {row["run"]: row["pass@1"] for row in rows if row["model"] == model and "pass@1" in row}
        if len(measured) > 1:
            told = ", ".join(f"{name} {value:.3f}" for name, value in measured.items())
            lines.append(f"{model}, pass@1: {told}")
    record = {"headline": "; ".join(lines), "figures": rows}
    return lines, record, lambda folder: pages.write_runs(folder, named, rows, logs)


def in_points(difference: Interval, form: str = "{} ({} to {})") -> str:
    """Return a difference with its interval, in percentage points."""
    return form.format(*(f"{100 * number:+.1f}" for number in asdict(difference).values()))


def compare_scores(a: Scores, b: Scores) -> Comparison:
    """Compare two models on the same questions and on as many completions as both have."""
    k = min(a.samples, b.samples)
    a, b = a.first(k), b.first(k)
    gains, votes = b.right.mean(axis=1) - a.right.mean(axis=1), b.votes() - a.votes()
    passes, tokens = mean_interval(gains), scores.ratio_interval(b.tokens, a.tokens)
    flips = sorted(np.flatnonzero(votes).tolist(), key=lambda row: -abs(gains[row]))
    if k == 1:
        p = mcnemar(int((gains > 0).sum()), int((gains < 0).sum()))
        return Comparison(a, b, passes, None, tokens, p, p < SIGNIFICANCE, flips)
    real = passes.low > 0 or passes.high < 0
    return Comparison(a, b, passes, mean_interval(votes), tokens, scores.sign_flip(gains), real, flips)


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided p-value of McNemar's exact test."""
    n = gained + lost
    return min(1.0, 2 * sum(comb(n, i) for i in range(min(gained, lost) + 1)) / 2**n)


def verdict(found: Comparison, a: str, b: str, tests: int, corrected: float) -> str:
    """Return whether b is better than a, as one of `tests` comparisons, and what would settle an open one."""
    points = 100 * found.passes.value
    bounds = in_points(found.passes, "95 % interval {1} to {2}")
    if found.a.samples == 1:
        bounds += f", McNemar p = {found.p:.2g}"
    if not found.real_alone:
        said = f"{b} against {a}: {points:+.1f} points of pass@1 ({bounds}) may be luck."
        return f"{said} {what_would_tell(found)}"
    kind = "better" if points > 0 else "worse"
    said = f"{b} is {kind} than {a} by {abs(points):.1f} points of pass@1 ({bounds})"
    if corrected < SIGNIFICANCE:
        return f"{said}: more than luck{f', also among {tests} comparisons' if tests > 1 else ''}."
    one = f"of {tests} comparisons one or another looks like this by chance"
    if tests == 1:
        one = "on so few questions random signs give as much"
    return f"{said}, which may be luck: {one} (p = {found.p:.2g}, corrected {corrected:.2g})."


def what_would_tell(found: Comparison) -> str:
    """Return how many more completions or questions would show such a difference with a power of 0.8.

    The mean difference has the variance (between + within / k) / n, between questions and within them.
    """
    k, n = found.a.samples, len(found.a.right)
    if found.passes.value == 0:
        return "No number of completions would show a difference of nothing."
    wanted = (found.passes.value / FOUND) ** 2  # the largest variance at which it shows
    rates = [one.right.mean(axis=1) for one in (found.a, found.b)]
    total = float(np.var(rates[1] - rates[0], ddof=1)) if n > 1 else 0.0
    within = sum(float(np.mean(rate * (1 - rate))) for rate in rates) * k / (k - 1) if k > 1 else 0.0
    between = max(0.0, total - within / k)
    needed = f"about {ceil(total / wanted):,} questions like these"
    if k == 1:
        return f"{needed.capitalize()} would tell."
    if n * wanted > between and (more := ceil(within / (n * wanted - between))) > k:
        return f"About {more:,} completions of each question instead of {k} would tell; so would {needed}."
    return f"More completions of these {n:,} questions would not tell; {needed}, {k} completions each, would."
