"""The page of a distillation: how often the teacher was right, what was dropped, and what is kept.

Out of scope: where the completions come from (`aimo.data`).
"""

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from IPython.display import HTML

from aimo import machine
from aimo.errors import AimoError
from aimo.inference.storage import write_json
from aimo.report import mathematics, page, plots, tables
from aimo.report.page import Section

SHOWN = 50
"""Problems whose completions are shown."""


def write(path: Path, source: str, found: Any, bounds: tuple[float, float]) -> Path:
    """Write the page, with its headline for the list of runs beside it; returns its path.

    `found` is `aimo.data.rejection.Rejection`; `bounds` are the pass rates that were kept.
    """
    rate = found.problems["pass_rate"]
    headline = f"{len(found.kept):,} completions kept, pass rate {rate.mean():.3f}"
    try:
        write_json(path.with_suffix(".json"), {"headline": headline})
        sections = [*counts(found), *rates(found, bounds), *completions(found)]
        return page.write(path, f"Distillation: {source}", f"{date.today()}, {machine.device()}", sections)
    except OSError as e:
        raise AimoError(f"--page {path}: {e.strerror}; take a file that can be written") from None


def counts(found: Any) -> Iterator[Section]:
    """What was kept, and what was dropped for which reason."""
    rows: list[dict[str, Any]] = [{"completions": "kept", "": len(found.kept)}]
    rows += [
        {"completions": mathematics.text(f"dropped: {reason}"), "": count}
        for reason, count in found.dropped.items()
    ]
    yield Section(tables.table(rows), "Kept", f"Of {len(found.problems):,} problems.")


def rates(found: Any, bounds: tuple[float, float]) -> Iterator[Section]:
    """How many problems have which share of right completions."""
    lead = "The share of a problem's completions that are right and finished."
    yield Section(plots.pass_rates(found.problems["pass_rate"].to_list(), bounds), "Pass rates", lead)


def completions(found: Any) -> Iterator[Section]:
    """The first problems, with what is kept of them to unfold."""
    kept = found.kept.group_by("problem").agg("generation")
    texts = dict(kept.iter_rows())
    rows = [
        {
            "problem": mathematics.text(row["problem"]),
            "gold": mathematics.answer(row["answer"] or ""),
            "right, %": f"{100 * row['pass_rate']:.0f}",
            "samples": row["samples"],
            "kept": unfold(texts.get(row["problem"], [])),
        }
        for row in found.problems.head(SHOWN).iter_rows(named=True)
    ]
    yield Section(tables.table(rows), "Problems", f"The first {len(rows):,}.")


def unfold(texts: list[str]) -> HTML:
    """Completions, each behind its length."""
    folds = [page.fold(f"{len(text):,} characters", mathematics.text(text)).data for text in texts]
    return HTML("".join(folds) or "none")
