"""Training beside a plain TRL script with the same settings: SFT tokens and GRPO samples per second.

    python benchmarks/training.py [--profile tiny] [--set KEY=VALUE …] [--rounds 3] [--json FILE]

Each side trains in a process of its own, in turns. A round's rate leaves out the first two steps, which
compile and load; the best round counts. Plain TRL is a trainer and PEFT. On a GPU the peak memory of both
is printed too, and at the end the share of tokens that packing fills.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

STEPS = {"sft": 40, "grpo": 10}
Marks = list[tuple[float, float]]  # after each step: the time in seconds, the tokens so far


def training_rows(stage: str, profile: Any, tokenizer: Any) -> list[dict[str, Any]]:
    from aimo.data import prepare

    sets = prepare.clean_sets(prepare.load_sets(profile), profile, tokenizer)
    return prepare.format_sets(sets, profile)[stage].to_dicts()


def ours(stage: str, profile: Any, folder: Path) -> Marks:
    from aimo.inference.storage import read_lines
    from aimo.run import hub, runs
    from aimo.train import models

    times: list[float] = []

    class Timed(runs.Run):
        def progress(self, step: int, total: int, note: str = "") -> None:
            if step > len(times):
                times.append(time.perf_counter())

    run = Timed(profile, folder, stage, time.time())
    base = hub.local_folder(profile.model.base)
    model, tokenizer = models.load_model(base, profile), models.load_tokenizer(base, profile)
    rows = training_rows(stage, profile, tokenizer)
    models.training_of(stage)(model, tokenizer, rows, run)
    tokens = [record["num_tokens"] for record in read_lines(run.folder / "log.jsonl") if "loss" in record]
    return list(zip(times, tokens, strict=True))


def plain(stage: str, profile: Any, folder: Path) -> Marks:
    """Train with TRL as its documentation shows it."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback

    from aimo.run import hub
    from aimo.train import arguments, compat, models

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    times: list[float] = []
    base = hub.local_folder(profile.model.base)
    tokenizer = models.load_tokenizer(base, profile)
    dtype = arguments.choose_dtype(profile)[0]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    rows = Dataset.from_list(training_rows(stage, profile, tokenizer))
    compat.patch_trl()  # TRL 1.15 alone cannot take a step on a CPU
    settings = shared_settings(getattr(profile, stage), profile, dtype) | {"output_dir": str(folder)}
    trainer = {"sft": plain_sft, "grpo": plain_grpo}[stage](model, tokenizer, rows, profile, settings)
    trainer.add_callback(Clock())
    trainer.train()
    tokens = [record["num_tokens"] for record in trainer.state.log_history if "loss" in record]
    return list(zip(times, tokens, strict=True))


def shared_settings(section: Any, profile: Any, dtype: str) -> dict[str, Any]:
    """TRL's settings of both stages, from the stage's section of the profile."""
    import torch

    return {
        "max_steps": section.max_steps,
        "learning_rate": section.learning_rate,
        "lr_scheduler_type": section.scheduler,
        "warmup_steps": section.warmup_ratio,
        "optim": section.optimizer,
        "save_strategy": "no",
        "logging_steps": 1,
        "seed": profile.seed,
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "gradient_checkpointing": torch.cuda.is_available() and profile.model.gradient_checkpointing,
        "use_cpu": not torch.cuda.is_available(),
        "report_to": "none",
        "disable_tqdm": True,
    }


def plain_sft(model: Any, tokenizer: Any, rows: Any, profile: Any, settings: dict[str, Any]) -> Any:
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(
        **settings,
        per_device_train_batch_size=profile.sft.batch_size,
        max_length=profile.model.max_length,
        completion_only_loss=True,
    )
    return SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer, peft_config=lora(profile))


def plain_grpo(model: Any, tokenizer: Any, rows: Any, profile: Any, settings: dict[str, Any]) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    from aimo import rewards

    section = profile.grpo
    args = GRPOConfig(
        **settings,
        per_device_train_batch_size=section.prompts_per_step * section.num_generations,
        num_generations=section.num_generations,
        max_completion_length=section.max_completion_length,
        temperature=section.temperature,
    )
    functions: Any = rewards.get_reward_funcs(section.rewards, profile.prompt)
    return GRPOTrainer(
        model, functions, args, train_dataset=rows, processing_class=tokenizer, peft_config=lora(profile)
    )


def lora(profile: Any) -> Any:
    """The profile's adapter as PEFT's configuration; None where all weights are trained."""
    from peft import LoraConfig

    section = profile.model.lora
    if section is None:
        return None
    return LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        target_modules=section.target_modules,
        task_type="CAUSAL_LM",
    )


def child(side: str, stage: str, profile_name: str, overrides: list[str]) -> None:
    """Train one round of one side, and print its rate as JSON."""
    from aimo import config
    from aimo.run import runs

    runs.quiet()
    if side == "ours":
        from aimo.train import models

        models.import_unsloth()
    import torch

    short = [f"{stage}.max_steps={STEPS[stage]}", f"{stage}.save_steps=1000"]
    short += ["grpo.probe_steps=null", "grpo.max_resample=null"]
    profile = config.load(profile_name, [*short, *overrides])
    with tempfile.TemporaryDirectory() as folder:
        marks = {"ours": ours, "plain": plain}[side](stage, profile, Path(folder))
    (begin, first), (end, last) = marks[1], marks[-1]
    done = last - first
    if stage == "grpo" and profile.grpo:
        done = (len(marks) - 2) * profile.grpo.prompts_per_step * profile.grpo.num_generations
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    print(json.dumps({"rate": done / (end - begin), "gpu_gib": memory}))


def packing(rows: int = 2000, limit: int = 4096) -> float:
    """The share of packed tokens that a set with log-normal lengths of at most `limit` tokens fills."""
    from aimo.run import runs

    runs.quiet()
    from datasets import Dataset
    from trl import pack_dataset

    rng = random.Random(0)
    lengths = [min(limit, max(16, int(rng.lognormvariate(6, 1)))) for _ in range(rows)]
    packed = pack_dataset(Dataset.from_list([{"input_ids": [0] * n} for n in lengths]), limit, "bfd")
    return sum(lengths) / (len(packed) * limit)


def measure(stage: str, rounds: int, arguments: list[str]) -> dict[str, Any]:
    """The best round of each side."""
    best: dict[str, dict[str, Any]] = {}
    for turn in range(rounds):
        for side in ("ours", "plain") if turn % 2 else ("plain", "ours"):
            command = [sys.executable, __file__, "--only", f"{side}:{stage}", *arguments]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            best[side] = max(best.get(side, found), found, key=lambda f: f["rate"])
    unit = "tokens" if stage == "sft" else "samples"
    return {"stage": stage, "unit": unit, "ratio": best["ours"]["rate"] / best["plain"]["rate"]} | best


def main(
    profile: Annotated[str, typer.Option()] = "tiny",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a key of the profile; repeat.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
    only: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure both sides of both stages."""
    overrides = set_ or []
    if only:
        side, stage = only.split(":")
        return child(side, stage, profile, overrides)
    arguments = ["--profile", profile] + [part for value in overrides for part in ("--set", value)]
    results = [measure(stage, rounds, arguments) for stage in STEPS]
    table = Table("stage", "per second", "ours", "plain TRL", "ours / plain", "GPU memory, GiB")
    for row in results:
        sides = row["ours"], row["plain"]
        rates = [f"{side['rate']:,.1f}" for side in sides]
        memory = " and ".join(f"{side['gpu_gib']:.1f}" for side in sides if side["gpu_gib"] is not None)
        table.add_row(row["stage"], row["unit"], *rates, f"{row['ratio']:.2f}", memory)
    Console(width=110).print(table)
    fill = packing()
    print(f"Packing fills {fill:.1%} of the tokens of 2,000 rows with log-normal lengths.")
    if to:
        to.write_text(json.dumps({"stages": results, "packing": fill}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
