"""Figures that others have published (`published.yaml`), beside those that were measured here."""

from pathlib import Path
from typing import Any

import yaml

from aimo.evaluation.benchmarks import BENCHMARKS

FILE = Path(__file__).with_name("published.yaml")


def beside(measured: dict[str, dict[str, float]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row a model and source with its figure on each benchmark, in percent; and the numbered sources.

    `measured` maps our models to pass@1 by benchmark; what has no figure is "not run".
    """
    entries = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    all_values = [*measured.values(), *(values for entry in entries for values in entry["values"].values())]
    shown = [name for name in BENCHMARKS if any(name in values for values in all_values)]
    rows: list[dict[str, Any]] = [
        {"model": model, "kind": "measured"} | {name: values.get(name, "not run") for name in shown}
        for model, values in measured.items()
    ]
    for number, entry in enumerate(entries, 1):
        for model, values in entry["values"].items():
            figures = {name: values.get(name, "") for name in shown}
            rows.append({"model": model, "kind": "published"} | figures | {"source": number})
    sources = [
        {"number": number, "source": entry["source"], "date": str(entry["date"])}
        for number, entry in enumerate(entries, 1)
    ]
    return rows, sources
