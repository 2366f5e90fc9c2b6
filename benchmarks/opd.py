"""On-policy distillation beside GRPO on the tiny profile: GRPO's model teaches the SFT model.

    python benchmarks/opd.py [--seed 0 …] [--set KEY=VALUE …] [--folder FOLDER] [--json FILE]

For each seed SFT, then GRPO; then OPD of the same SFT model with GRPO's model as the teacher. Figures are
those of 200 held-out problems; seconds are the stage's own, sampling included. `--set` changes OPD.
`--folder` keeps the runs: started again, it continues where it stopped.
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

# Chosen with the seeds 10 and 11. A completion that is cut off teaches as much at each of its tokens.
OPD = {"learning_rate": 3e-3, "scheduler": "cosine", "max_steps": 20, "batch_size": 32, "save_steps": 20}
OPD |= {"max_prompt_length": 128, "max_completion_length": 48}
KEYS = ("format", "pass@1", "maj@16")


def train(seed: int, changed: list[str], folder: Path) -> list[dict[str, Any]]:
    """Return a row for each model of a seed: base, SFT, GRPO, OPD."""
    taught = pipeline.run_profile("tiny", str(folder / f"grpo-{seed}"), [f"seed={seed}"])
    section = {"teacher": str(taught / "grpo" / "model")} | OPD
    overrides = [f"seed={seed}", f"model.base={taught / 'sft' / 'model'}", "sft=null", "data.sft=null"]
    overrides += ["grpo=null", f"opd={json.dumps(section)}", *changed]
    student = pipeline.run_profile("tiny", str(folder / f"opd-{seed}"), overrides)
    found = []
    for run, models in (taught, ("base", "sft", "grpo")), (student, ("opd",)):
        figures, metrics = runs.figures(run), runs.read_metrics(run)["stages"]
        for model in models:
            stage = metrics.get(model, {})
            seconds, rate = stage.get("train_seconds", 0.0), stage.get("samples_per_second", 0.0)
            row = {"seed": seed, "model": model} | {key: figures[model][key] for key in KEYS}
            found.append(row | {"seconds": seconds, "completions": round(seconds * rate)})
    return found


def main(
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Repeat for several.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a key of OPD's run; repeat.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Keep the runs here.")] = None,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Train both ways from each seed's SFT model and print their figures."""
    with tempfile.TemporaryDirectory() as made:
        where = folder or Path(made)
        rows = [row for seed in seeds or [0, 1, 2] for row in train(seed, set_ or [], where)]
    table = Table("seed", "model", *KEYS, "stage s", "completions")
    for row in rows:
        sampled = f"{row['completions']:,}" if row["model"] in ("grpo", "opd") else ""
        figures = [f"{row[key]:.3f}" for key in KEYS]
        table.add_row(str(row["seed"]), row["model"], *figures, f"{row['seconds']:.0f}", sampled)
    Console(width=110).print(table)
    for grpo, opd in ((rows[i], rows[i + 1]) for i in range(len(rows)) if rows[i]["model"] == "grpo"):
        below, share = grpo["pass@1"] - opd["pass@1"], opd["seconds"] / grpo["seconds"]
        print(f"seed {grpo['seed']}: OPD is {below:.3f} below its teacher, in {share:.2f} of GRPO's seconds")
    if to:
        to.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
