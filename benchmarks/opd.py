"""On-policy distillation beside GRPO on the tiny profile: GRPO's model teaches the SFT model.

    python benchmarks/opd.py [--seed 0 …] [--set KEY=VALUE …] [--folder FOLDER] [--json FILE]

For each seed SFT, then GRPO, and at once OPD of the same SFT model with GRPO's model as the teacher. Then one
engine asks each model the same 600 held-out problems. Seconds are the stage's own, sampling included. `--set`
changes OPD. `--folder` keeps the runs: started again, it continues where it stopped.
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from aimo import config, pipeline
from aimo.data import prepare
from aimo.evaluation.scores import Interval, mean_interval, sample_rows
from aimo.inference.engine import Engine
from aimo.run import runs

# Chosen with seed 20.
OPD = {"learning_rate": 2e-3, "scheduler": "cosine", "max_steps": 40, "batch_size": 16, "save_steps": 40}
OPD |= {"max_prompt_length": 128, "max_completion_length": 64}
HELDOUT = "data.heldout.rows=600"  # of 200, the interval of a difference is as wide as the difference


def train(seed: int, changed: list[str], folder: Path) -> tuple[list[dict[str, Any]], Interval]:
    """Return a row for each model of a seed, SFT, GRPO and OPD, and how far OPD's pass@1 is below its
    teacher's: the mean of the problems' differences with its 95 % interval."""
    whole = [f"seed={seed}", HELDOUT]
    taught = pipeline.run_profile("tiny", str(folder / f"grpo-{seed}"), whole, until="grpo")
    section = {"teacher": str(taught / "grpo" / "model")} | OPD
    overrides = [*whole, f"model.base={taught / 'sft' / 'model'}", "sft=null", "data.sft=null"]
    overrides += ["grpo=null", f"opd={json.dumps(section)}", *changed]
    student = pipeline.run_profile("tiny", str(folder / f"opd-{seed}"), overrides, until="opd")
    found, right = [], {}
    profile, heldout = config.load("tiny", whole), prepare.read_set(taught / "data", "heldout")
    start = taught / "sft" / "model"
    with Engine(start, profile.solver_settings(start), seed=seed) as engine:
        for stage, run in (("sft", taught), ("grpo", taught), ("opd", student)):
            engine.load_weights(run / stage / "model")
            scores = sample_rows(engine, heldout, profile.prompt, engine.settings.samples, seed)
            right[stage], metrics = scores.right.mean(axis=1), runs.read_metrics(run)["stages"][stage]
            seconds = metrics["train_seconds"]
            more = {"seconds": seconds, "completions": round(seconds * metrics["samples_per_second"])}
            found.append({"seed": seed, "model": stage} | scores.metrics() | more)
    return found, mean_interval(right["grpo"] - right["opd"])


def main(
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Repeat for several.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a key of OPD's run; repeat.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Keep the runs here.")] = None,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Train both ways from each seed's SFT model and print their figures."""
    keys, rows, told = ("format", "pass@1", "maj@16"), [], []
    table = Table("seed", "model", *keys, "stage s", "completions")
    with tempfile.TemporaryDirectory() as made:
        for seed in seeds or [0, 1, 2]:
            found, below = train(seed, set_ or [], folder or Path(made))
            for row in found:
                sampled = f"{row['completions']:,}" if row["model"] != "sft" else ""
                figures = [f"{row[key]:.3f}" for key in keys]
                table.add_row(str(seed), row["model"], *figures, f"{row['seconds']:.0f}", sampled)
            share = found[2]["seconds"] / found[1]["seconds"]
            apart = f"{below.value:.3f} below its teacher ({below.low:.3f} to {below.high:.3f})"
            told.append(f"seed {seed}: OPD is {apart}, in {share:.2f} of GRPO's seconds")
            rows += found
    Console(width=110).print(table)
    print(*told, sep="\n")
    if to:
        to.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
