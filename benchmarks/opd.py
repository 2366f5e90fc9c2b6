"""On-policy distillation beside GRPO on the tiny profile: GRPO's model teaches the SFT model.

    python benchmarks/opd.py [--seed 0 …] [--steps 20] [--json FILE]

For each seed SFT, then GRPO; then the same SFT, then OPD with GRPO's model as the teacher. Figures are those
of 200 held-out problems; seconds are the stage's own, sampling included.
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from aimo import pipeline
from aimo.config import load
from aimo.run import runs


def main(
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Repeat for several.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of OPD; GRPO has those of the profile.")] = 20,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a key; repeat.")] = None,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Train both ways from each seed and print their figures."""
    results, more = [], set_ or []
    table = Table("seed", "model", "format", "pass@1", "maj@16", "mean tokens", "stage s", "completions")
    for seed in seeds or [0, 1, 2]:
        with tempfile.TemporaryDirectory() as folder:
            taught = pipeline.run_profile("tiny", Path(folder) / "grpo", overrides=[f"seed={seed}", *more])
            section = (
                f"opd={{teacher: {taught / 'grpo' / 'model'}, learning_rate: 1.0e-3, scheduler: cosine, "
            )
            section += (
                f"max_steps: {steps}, batch_size: 32, max_prompt_length: 128, max_completion_length: 80}}"
            )
            overrides = [f"seed={seed}", *more, section, "grpo=null"]
            student = pipeline.run_profile("tiny", Path(folder) / "opd", overrides=overrides)
            grpo = load("tiny", overrides[:-2]).grpo
            assert grpo and grpo.max_steps
            counts = {
                "grpo": grpo.max_steps * grpo.prompts_per_step * grpo.num_generations,
                "opd": 32 * steps,
            }
            for run, names in (taught, ("base", "sft", "grpo")), (student, ("opd",)):
                figures, metrics = runs.figures(run), runs.read_metrics(run)
                for name in names:
                    found = {"seed": seed, "model": name} | figures[name]
                    found["stage_s"] = metrics.get(name, {}).get("train_seconds", 0.0)
                    found["completions"] = counts.get(name, 0)
                    results.append(found)
                    keys = ("format", "pass@1", "maj@16")
                    cells = [f"{found[key]:.3f}" for key in keys] + [f"{found['mean_tokens']:.1f}"]
                    table.add_row(
                        str(seed), name, *cells, f"{found['stage_s']:.0f}", f"{found['completions']:,}"
                    )
    Console(width=110).print(table)
    if to:
        to.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
