"""`runs/index.html`: runs, evaluations and comparisons, the newest first, with headline figures."""

from datetime import datetime
from pathlib import Path
from typing import Any

from aimo.config import ROOT
from aimo.report import page, tables
from aimo.report.page import Section
from aimo.runs import figures

PAGES = {
    "report.html": "run",
    "evaluation.html": "evaluation",
    "comparison.html": "comparison",
    "distillation.html": "distillation",
    "rehearsal.html": "rehearsal",
    "gpu-check.html": "GPU check",
}
"""What a folder's page is named, and what kind it is then."""


def write(folder: Path, runs: Path = ROOT / "runs") -> None:
    """Write the list anew after a page in `folder` was written; nothing to do for a folder elsewhere."""
    if folder.absolute().parent != runs:
        return
    pages = [path for name in PAGES for path in runs.glob(f"*/{name}")]
    pages.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    rows = [row(path, runs) for path in pages]
    view = tables.table(rows) if rows else tables.note("No run has a page yet.")
    page.write(runs / "index.html", "aimo: runs", f"{len(rows)} pages, the newest first.", [Section(view)])


def row(path: Path, runs: Path) -> dict[str, Any]:
    """One page's line in the list."""
    written = datetime.fromtimestamp(path.stat().st_mtime)
    return {
        "written": f"{written:%Y-%m-%d %H:%M}",
        "page": page.link(path.parent.name, str(path.relative_to(runs))),
        "kind": PAGES[path.name],
        "figures": headline(path),
    }


def headline(path: Path) -> str:
    """The figures of a page in one line."""
    if path.name == "report.html":
        measured = {name: row["pass@1"] for name, row in figures(path.parent).items() if "pass@1" in row}
        return ", ".join(f"{name} {value:.3f}" for name, value in measured.items())
    found = page.read_json(path.with_suffix(".json")) or {}
    return found.get("headline", "")
