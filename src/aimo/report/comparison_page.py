"""The page of a comparison: the verdict in words, the differences with intervals, and what flipped.

Out of scope: how the differences are computed (`aimo.evaluation.compare`).
"""

from datetime import date
from pathlib import Path
from typing import Any

from IPython.display import HTML

from aimo.report import mathematics, page, tables
from aimo.report.evaluation_page import completion
from aimo.report.page import Section


def write(folder: Path, found: dict[str, Any]) -> Path:
    """Write `comparison.html` into a comparison's folder and return its path.

    `found` has `title`, `verdicts`, the rows `differences`, and `flips`: by pair, rows with two completions.
    """
    sections = [
        *(Section(HTML(""), "", line) for line in found["verdicts"]),
        Section(
            tables.table(found["differences"]), "Differences", "95 % intervals over questions, in points."
        ),
    ]
    for pair, rows in found["flips"].items():
        lead = "Questions whose vote is right for one and wrong for the other; completions unfold."
        view = tables.table([flip(row) for row in rows]) if rows else tables.note("None.")
        sections.append(Section(view, f"{pair}: {len(rows)} questions flipped", lead))
    return page.write(folder / "comparison.html", found["title"], str(date.today()), sections)


def flip(row: dict[str, Any]) -> dict[str, Any]:
    """One question's line: the pass rates and a completion of each model, side by side."""
    shown: dict[str, Any] = {
        "id": row["id"],
        "problem": mathematics.text(row["problem"]),
        "gold": mathematics.answer(row["gold"]),
    }
    for name, side in row["sides"].items():
        shown[f"{name}, %"] = f"{100 * side['right']:.0f}"
        shown[name] = HTML("".join(completion(one).data for one in side["completions"]))
    return shown
