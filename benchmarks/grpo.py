"""GRPO until a probe reaches 0.95: seconds and completions of today's demo beside those of November 2026.

    python benchmarks/grpo.py [--seed 0 …] [--set KEY=VALUE …] [--settings] [--json FILE]

For each seed SFT trains one model with the tiny profile. Every side starts from it, in a process of its own.
All answer the same 200 problems greedily every four steps. Seconds leave out the probes and the start.
`--set` changes ours. `--settings` compares ours with each setting of `SETTINGS` instead.
"""

import contextlib
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

MARK = 0.95
BOTH = [
    "data.grpo.rows=4000",
    "data.grpo.test_split=0.05",
    "grpo.save_steps=1000",
    "grpo.probe_steps=4",
]
BEFORE = [
    "grpo.learning_rate=5e-4",
    "grpo.scheduler=constant",
    "grpo.max_steps=100",
    "grpo.prompts_per_step=8",
    "grpo.num_generations=16",
    "grpo.max_completion_length=80",
    "grpo.max_resample=null",
    "grpo.loss_type=dapo",
    "grpo.rewards={accuracy: 1.0, format: 0.2}",
    "grpo.generation=transformers",
    "grpo.trl={}",
]
"""The demo's settings of 24 November 2026."""
TWICE = "num_iterations: 2"  # where a sample is trained on once, the ratios that are clipped are 1
OVERLONG = "{weight: 1.0, max_completion_len: 80, soft_punish_cache: 20}"
SETTINGS = {
    "trained on twice": [f"grpo.trl={{{TWICE}}}"],
    "twice, clip-higher": [f"grpo.trl={{{TWICE}, epsilon_high: 0.28}}"],
    "twice, GSPO": [
        "grpo.loss_type=grpo",
        f"grpo.trl={{{TWICE}, importance_sampling_level: sequence, epsilon: 3e-4, epsilon_high: 4e-4}}",
    ],
    "twice, CISPO": ["grpo.loss_type=cispo", f"grpo.trl={{{TWICE}, epsilon_high: 5.0}}"],
    "Dr. GRPO": ["grpo.loss_type=dr_grpo", "grpo.trl={scale_rewards: none}"],
    "overlong shaping": [f"grpo.rewards.soft_overlong_punishment={OVERLONG}"],
    "overlong filtering": ["grpo.mask_truncated_completions=true"],
    "all weights, same rate": ["model.lora=null"],
    "all weights, a tenth": ["model.lora=null", "grpo.learning_rate=1e-4"],
    "every group": ["grpo.max_resample=null"],
    "filled": ["grpo.max_resample=3"],
}
"""What is published as better, each as a change of ours."""


class Reached(Exception):
    pass


def load(base: Path | None, overrides: list[str]) -> tuple[Any, ...]:
    """The profile, the model, its tokenizer and the rows of all sets."""
    from aimo import config
    from aimo.data import prepare
    from aimo.run import hub, runs
    from aimo.train import models

    runs.quiet()
    profile = config.load("tiny", overrides)
    base = base or hub.local_folder(profile.model.base)
    tokenizer = models.load_tokenizer(base, profile)
    sets = prepare.format_sets(prepare.clean_sets(prepare.load_sets(profile), profile, tokenizer), profile)
    return (
        profile,
        models.load_model(base, profile),
        tokenizer,
        {name: rows.to_dicts() for name, rows in sets.items()},
    )


def sft(folder: Path, overrides: list[str]) -> None:
    """Leave in `folder/sft/model` what both sides start from."""
    from aimo.run import runs
    from aimo.train import models

    profile, model, tokenizer, sets = load(None, overrides)
    run = runs.Run(profile, folder, "sft", time.time())
    models.training_of("sft")(model, tokenizer, sets["sft"], run)
    models.save_model(run, tokenizer, {})


def grpo(folder: Path, overrides: list[str]) -> None:
    """Train until the mark, and print as JSON what it took."""
    from aimo.inference.storage import read_lines
    from aimo.run import runs
    from aimo.train import models

    profile, model, tokenizer, sets = load(folder / "sft" / "model", overrides)
    complete, train, probing = models.complete, models.training_of("grpo"), []

    def timed(*arguments: Any) -> list[str]:
        begin = time.perf_counter()
        texts = complete(*arguments)
        probing.append(time.perf_counter() - begin)
        return texts

    def reached() -> int | None:
        return next((r["step"] for r in read_lines(log) if r.get("probe/accuracy", 0) >= MARK), None)

    class UntilMark(runs.Run):
        def progress(self, step: int, total: int, note: str = "") -> None:
            mark = reached()
            if mark is not None and step > mark:  # the record of a step is written after it
                raise Reached

    models.complete = timed  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as made:
        run = UntilMark(profile, Path(made), "grpo", time.time())
        log = run.folder / "log.jsonl"
        with contextlib.suppress(Reached):
            train(model, tokenizer, sets["grpo"], run, sets["grpo_test"])
        mark, records = reached(), read_lines(log)
    steps = [record for record in records if "loss" in record and record["step"] <= (mark or math.inf)]
    probes = [(r["step"], r["probe/accuracy"], r["probe/format"]) for r in records if "probe/accuracy" in r]
    groups = int(sum(record.get("groups/tried", 0) for record in steps))  # 0: completions of an earlier step
    found = {"steps": len(steps), "completions": groups * profile.grpo.num_generations, "probes": probes}
    seconds = steps[-1]["train_seconds"] - sum(probing[1:])  # the first probe comes before the clock
    print(json.dumps(found | {"seconds": seconds}))


def child(stage: str, folder: str, seed: int, overrides: list[str]) -> str:
    """The last line of a process that trains a stage."""
    command = [sys.executable, __file__, "--only", stage, "--folder", folder]
    for override in [f"seed={seed}", *BOTH, *overrides]:
        command += ["--set", override]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()[-1]


def measure(seed: int, sides: dict[str, list[str]]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        child("sft", folder, seed, [])
        found = [json.loads(child("grpo", folder, seed, overrides)) for overrides in sides.values()]
    return [{"side": side, "seed": seed} | row for side, row in zip(sides, found, strict=True)]


def main(
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Repeat for several.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a key of ours; repeat.")] = None,
    settings: Annotated[bool, typer.Option(help="Compare ours with other settings.")] = False,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
    only: Annotated[str | None, typer.Option(hidden=True)] = None,
    folder: Annotated[Path, typer.Option(hidden=True)] = Path(),
) -> None:
    """Train every side from the same models, and print the figures with their ratios to the first side's."""
    ours = set_ or []
    if only:
        return {"sft": sft, "grpo": grpo}[only](folder, ours)
    others = {name: [*ours, *overrides] for name, overrides in SETTINGS.items()}
    sides = {"ours": ours} | others if settings else {"before": BEFORE, "ours": ours}
    rows = [row for seed in seeds or [0, 1, 2] for row in measure(seed, sides)]
    keys = ("steps", "completions", "seconds", "accuracy", "format")
    table = Table("settings", "seed", *keys)
    for row in rows:
        _, row["accuracy"], row["format"] = row["probes"][-1]
        table.add_row(row["side"], str(row["seed"]), *(f"{row[key]:,.4g}" for key in keys))
    means = {
        side: {key: mean(row[key] for row in rows if row["side"] == side) for key in keys} for side in sides
    }
    ratios = {
        side: {key: found[key] / means[next(iter(sides))][key] for key in ("seconds", "completions")}
        for side, found in means.items()
    }
    Console(width=110).print(table)
    for side, ratio in list(ratios.items())[1:]:
        print(f"{side} / {next(iter(sides))}: " + ", ".join(f"{key} {ratio[key]:.2f}" for key in ratio))
    if to:
        to.write_text(json.dumps({"rows": rows, "means": means, "ratios": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
