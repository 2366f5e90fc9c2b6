"""The page of an evaluation: figures with intervals, beside published ones, and completions to unfold.

Out of scope: where the figures come from (`aimo.evaluation`).
"""

import html
import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from IPython.display import HTML

from aimo import machine
from aimo.report import mathematics, page, plots, tables
from aimo.report.page import Section

SHOWN = 6000  # characters of a completion
COLOURS = {"measured": plots.RIGHT, "published": "#3b76b0", "not run": plots.GREY}
MEANINGS = {
    "measured": "measured here",
    "published": "published by others, with their own settings",
    "not run": "not run here",
}


def write(folder: Path, found: dict[str, Any]) -> Path:
    """Write `evaluation.html` into an evaluation's folder and return its path.

    `found` is evaluation.json's object with `questions`, `curves`, `settings` and `published` rows.
    """
    sections = [
        *figures(found),
        *beside(*found["published"]),
        *groups(found["benchmarks"]),
        *leakage(found["leakage"]),
        *audit(found.get("audit", {})),
        *questions(found["questions"]),
        Section(page.text(json.dumps(found["settings"], indent=2, ensure_ascii=False)), "Settings"),
    ]
    lead = f"{date.today()}, {machine.device()}"
    return page.write(folder / "evaluation.html", f"Evaluation: {found['model']}", lead, sections)


def figures(found: dict[str, Any]) -> Iterator[Section]:
    """The figures of each benchmark, and how they grow with the number of completions."""
    rows = []
    for name, figures in found["benchmarks"].items():
        row: dict[str, Any] = {"benchmark": name}
        for key, value in figures.items():
            if isinstance(value, list) and "@" in key:
                row[f"{key.partition('@')[0]}@{'1' if key == 'pass@1' else 'k'}, %"] = percent(value)
            elif key in ("questions", "samples", "seconds"):
                row[{"samples": "k"}.get(key, key)] = value
            elif key == "mean_tokens":
                row["tokens"] = f"{value[0]:,.0f}"
            elif key in ("cut_off", "no_answer"):
                row[f"{key.replace('_', ' ')}, %"] = f"{100 * value:.1f}"
            elif key == "lighteval":
                row |= {metric: float(share) for metric, share in value.items()}
        rows.append(row)
    lead = (
        "pass@1 is the mean over all completions, pass@k the chance that one of k is right, maj@k that their "
        "vote is. In brackets the 95 % interval over questions."
    )
    yield Section(tables.table(rows), "Figures", lead)
    if any(len(curve) > 1 for curves in found["curves"].values() for curve in curves.values()):
        yield Section(plots.by_samples(found["curves"]))


def percent(figure: list[float]) -> str:
    """A share with its interval, in percent."""
    value, low, high = (100 * number for number in figure)
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def beside(rows: list[dict[str, Any]], sources: list[dict[str, Any]]) -> Iterator[Section]:
    """Our figures and published ones; each cell says by its colour which it is."""
    marked = [
        {
            key: badge(value, row["kind"]) if isinstance(value, float) or value in COLOURS else value
            for key, value in row.items()
        }
        for row in rows
    ]
    legend = ", ".join(f"{kind}: {meaning}" for kind, meaning in MEANINGS.items())
    yield Section(tables.table(marked), "Beside published figures", f"pass@1 in percent. {legend}.")
    yield Section(tables.table(sources))


def badge(value: float | str, kind: str) -> HTML:
    """A figure or a word in the colour of its kind."""
    colour = COLOURS.get(str(value), COLOURS[kind])
    shown = f"{value:.1f}" if isinstance(value, float) else value
    return HTML(f"<span style='color:{colour};font-weight:600'>{html.escape(shown)}</span>")


def groups(benchmarks: dict[str, dict[str, Any]]) -> Iterator[Section]:
    """pass@1 by subject and level, of the benchmarks that have them."""
    for name, figures in benchmarks.items():
        for by in ("subject", "level"):
            rows = [
                {by: label, "questions": row["questions"], "pass@1, %": percent(row["pass@1"])}
                for label, row in figures.get(f"by_{by}", {}).items()
            ]
            if rows:
                yield Section(tables.table(rows), f"{name} by {by}")


def leakage(checked: dict[str, dict[str, Any]]) -> Iterator[Section]:
    """How much of each benchmark's text stands in the training data."""
    rows = [
        {"benchmark": name, "share of its text, %": "not checked", "why": found["why"]}
        if "why" in found
        else {
            "benchmark": name,
            "share of its text, %": f"{100 * found['share']:.2f}",
            "questions with any": len(found["found"]),
            "training texts": found["texts"],
            "data": found["data"],
        }
        for name, found in checked.items()
    ]
    if rows:
        lead = "Runs of eight words of a question that also stand in the model's training data."
        yield Section(tables.table(rows), "Leakage", lead)


def audit(found: dict[str, list[dict[str, Any]]]) -> Iterator[Section]:
    """The completions on which a second scorer disagrees."""
    for name, rows in found.items():
        view = tables.table(rows) if rows else tables.note("math-verify gives the same verdicts.")
        yield Section(view, f"{name}: verdicts that math-verify does not share")


def questions(benchmarks: dict[str, list[dict[str, Any]]]) -> Iterator[Section]:
    """Each question with the share of its completions that are right, and completions to unfold."""
    for name, rows in benchmarks.items():
        view = tables.table(
            [
                {
                    "id": row["id"],
                    "problem": mathematics.text(row["problem"]),
                    "gold": mathematics.answer(row["gold"]),
                    "right, %": f"{100 * row['right']:.0f}",
                    "tokens": f"{row['tokens']:,.0f}",
                    "completions": HTML("".join(completion(one).data for one in row["completions"])),
                }
                for row in rows
            ]
        )
        yield Section(view, f"{name}: questions", "One right and one wrong completion of each unfold.")


def completion(one: dict[str, Any]) -> HTML:
    """A completion to unfold, with its answer as the summary."""
    verdict = "right" if one["right"] else "wrong"
    text = one["text"]
    if len(text) > SHOWN:
        left_out = f"\n\n… {len(text) - SHOWN:,} characters left out …\n\n"
        text = text[: SHOWN // 2] + left_out + text[-SHOWN // 2 :]
    return page.fold(f"{verdict}: {one['answer'] or 'no answer'}", mathematics.text(text))
