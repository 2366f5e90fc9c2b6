"""The tiny tool model with and without its tools: pass@1 on held-out problems, for three seeds.

    python benchmarks/tools.py [--model FOLDER]

A row is a seed: it draws the problems and the samples. Without tools the model is asked in the same way, but
its prompt offers none.
"""

import runpy
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from aimo.config import ROOT
from aimo.inference.engine import Engine


def main(model: Annotated[Path, typer.Option()] = ROOT / "data" / "tiny-tools") -> None:
    """Measure the model and print the table."""
    with Engine(model) as engine:
        figures = runpy.run_path(str(ROOT / "data" / "tiny-tools" / "make.py"))["measure"](engine)
    table = Table(*figures.columns)
    for row in figures.iter_rows():
        table.add_row(*(f"{value:.3g}" for value in row))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
