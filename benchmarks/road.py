"""The whole pipeline with the tiny profile, once for each seed: the figures of each model beside the base's.

    python benchmarks/road.py [--seed 0 …] [--set KEY=VALUE …] [--json FILE]

The figures are those of 200 held-out problems. Exits with 1 when a figure lies outside its bounds.
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from aimo import pipeline
from aimo.run import runs

BOUNDS = {
    "sft": {"format": (0.98, 1.0), "pass@1": (0.15, 0.50)},
    "grpo": {"format": (0.98, 1.0), "pass@1": (0.75, 1.0), "maj@16": (0.88, 1.0)},
}
MIN_GAIN = 0.30  # of GRPO's pass@1 over SFT's


def out_of_bounds(seed: int, models: dict[str, Any]) -> list[str]:
    """A line for each figure that lies outside its bounds."""
    missed = []
    for name, bounds in BOUNDS.items():
        for key, (low, high) in bounds.items():
            value = models[name][key]
            if not low <= value <= high:
                missed.append(f"seed {seed}, {name}: {key} is {value:.3f}, not from {low} to {high}")
    if models["grpo"]["pass@1"] - models["sft"]["pass@1"] < MIN_GAIN:
        missed.append(f"seed {seed}: GRPO gains less than {MIN_GAIN} in pass@1")
    return missed


def main(
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Repeat for several.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a key of the profile; repeat.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Run each seed and print its figures."""
    results, missed = [], []
    columns = ("format", "pass@1", "of base", "maj@16", "of base", "mean tokens", "seconds")
    table = Table("seed", "model", *columns)
    for seed in seeds or [0, 1, 2]:
        with tempfile.TemporaryDirectory() as folder:
            path = pipeline.run_profile("tiny", folder, overrides=[f"seed={seed}", *(set_ or [])])
            models = runs.figures(path)
        for name in ("base", "sft", "grpo"):
            figures = {"seed": seed, "model": name} | models[name]
            for key in ("pass@1", "maj@16"):
                figures[f"{key}_ratio"] = figures[key] / models["base"][key]
            results.append(figures)
            keys = ("format", "pass@1", "pass@1_ratio", "maj@16", "maj@16_ratio")
            cells = [f"{figures[key]:.3f}" for key in keys] + [f"{figures['mean_tokens']:.1f}"]
            table.add_row(str(seed), name, *cells, f"{figures.get('seconds', 0):.0f}")
        missed += out_of_bounds(seed, models)
    Console(width=110).print(table)
    print("\n".join(missed) or "All figures are within their bounds.")
    if to:
        to.write_text(json.dumps(results, indent=2) + "\n")
    raise typer.Exit(bool(missed))


if __name__ == "__main__":
    typer.run(main)
