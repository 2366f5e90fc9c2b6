"""A step of GRPO with a real model on a CPU: seconds and memory of 24 November 2026 beside today's.

    python benchmarks/grpo_step.py [--prompts 4] [--samples 8] [--tokens 150] [--steps 3] [--json FILE]

`make smollm2` makes the model and its problems. Each side trains in a process of its own, with completions
of exactly so many tokens. `before` keeps all logits and activations of a step, computes each prompt for each
of its completions and each log-probability twice, and starts vLLM as TRL does. The first step, which loads,
is left out. Seconds are the step's on the clock and those that it computed; memory is the largest that the
process took.
"""

import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

SIDES = {
    "before": ["grpo.generation=vllm"],
    "ours": ["grpo.generation=vllm"],
    "ours, Transformers generates": ["grpo.generation=transformers"],
}


def train(side: str, steps: int, overrides: list[str]) -> None:
    """Train a few steps, and print what one took."""
    from aimo import config
    from aimo.data import prepare
    from aimo.run import hub, runs
    from aimo.train import compat, models

    class Timed(runs.Run):
        def progress(self, step: int, total: int, note: str = "") -> None:
            if step > len(marks):
                marks.append((time.perf_counter(), time.process_time()))

    runs.quiet()
    profile = config.load("smollm2", overrides)
    base = hub.local_folder(profile.model.base)
    model, tokenizer = models.load_model(base, profile), models.load_tokenizer(base, profile)
    sets = prepare.clean_sets(prepare.load_sets(profile), profile, tokenizer)
    rows = prepare.format_sets(sets, profile)["grpo"].to_dicts()
    if side == "before":
        as_trl_has_it, patch = compat.vllm_generation.LLM, compat.patch_trl

        def patch_all_but_vllm() -> None:
            patch()
            compat.vllm_generation.LLM = as_trl_has_it  # type: ignore[misc]

        compat.LOGITS, compat.patch_trl = sys.maxsize, patch_all_but_vllm
        compat.disable_input_dtype_casting = lambda *_: contextlib.nullcontext()  # type: ignore
    marks: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        models.training_of("grpo")(model, tokenizer, rows, Timed(profile, Path(folder), "grpo", time.time()))
    (begin, computed_begin), (end, computed_end) = marks[-steps], marks[-1]
    found = {
        "seconds": (end - begin) / (steps - 1),
        "computed": (computed_end - computed_begin) / (steps - 1),
        "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }
    print(json.dumps(found))


def main(
    prompts: Annotated[int, typer.Option(min=1)] = 4,
    samples: Annotated[int, typer.Option(min=2)] = 8,
    tokens: Annotated[int, typer.Option(min=1)] = 150,
    steps: Annotated[int, typer.Option(min=2)] = 3,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a key of all sides; repeat.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
    only: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Train every side, and print the figures with their ratios to the first side's."""
    if only:
        return train(only, steps, set_ or [])
    rows: dict[str, dict[str, float]] = {}
    table = Table(
        "side", "seconds a step", "computed", "memory, GB", "ratio of seconds", "computed", "memory"
    )
    for side, overrides in SIDES.items():
        least = "min_tokens" if "vllm" in overrides[0] else "min_new_tokens"
        same = [f"grpo.prompts_per_step={prompts}", f"grpo.num_generations={samples}"]
        same += [f"grpo.max_completion_length={tokens}", f"grpo.max_steps={steps}", "grpo.max_resample=null"]
        same += [f"grpo.trl={{generation_kwargs: {{{least}: {tokens}}}}}"]
        command = [sys.executable, __file__, "--only", side, "--steps", str(steps)]
        command += [part for key in [*same, *overrides, *(set_ or [])] for part in ("--set", key)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        rows[side] = found
        ratios = [value / rows["before"][key] for key, value in found.items()]
        table.add_row(side, *(f"{value:.1f}" for value in found.values()), *(f"{r:.2f}" for r in ratios))
    Console(width=110).print(table)
    if to:
        to.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
