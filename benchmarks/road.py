"""The road's figures on 200 held-out problems, for several seeds: `python benchmarks/road.py [--set KEY=VALUE …] [--json FILE]`.

Each seed is a run of its own from the data to the answers; the bounds beside the figures are what the road must show.
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from aimo import pipeline, runs

BOUNDS = {
    "sft": {"format": (0.98, 1.0), "pass@1": (0.15, 0.50)},
    "grpo": {"format": (0.98, 1.0), "pass@1": (0.75, 1.0), "maj@16": (0.88, 1.0)},
}


def main(
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Repeat for several.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a key of the profile; repeat.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Run each seed and print its figures; exit 1 when one is out of bounds."""
    results, missed = [], []
    table = Table("seed", "stage", "format", "pass@1", "maj@16", "mean tokens", "seconds")
    for seed in seeds or [0, 1, 2]:
        with tempfile.TemporaryDirectory() as folder:
            stages = runs.read_metrics(
                pipeline.run("tiny", folder, overrides=[f"seed={seed}", *(set_ or [])])
            )["stages"]
        for name in ("base", "sft", "grpo"):
            figures = stages[name]
            results.append({"seed": seed, "stage": name} | figures)
            values = [f"{figures[key]:.3f}" for key in ("format", "pass@1", "maj@16")]
            table.add_row(
                str(seed), name, *values, f"{figures['mean_tokens']:.1f}", f"{figures.get('seconds', 0):.0f}"
            )
            for key, (low, high) in BOUNDS.get(name, {}).items():
                if not low <= figures[key] <= high:
                    missed.append(
                        f"seed {seed}, {name}: {key} is {figures[key]:.3f}, not from {low} to {high}"
                    )
        if stages["grpo"]["pass@1"] - stages["sft"]["pass@1"] < 0.30:
            missed.append(f"seed {seed}: GRPO gains less than 0.30 in pass@1")
    Console().print(table)
    print("\n".join(missed) or "all figures within bounds")
    if to:
        to.write_text(json.dumps(results, indent=2) + "\n")
    raise typer.Exit(bool(missed))


if __name__ == "__main__":
    typer.run(main)
