"""Training: SFT tokens and GRPO samples per second, ours beside a plain TRL script with the same settings, and how full packing is.

    python benchmarks/training.py [--profile tiny] [--set KEY=VALUE …] [--rounds 3] [--json FILE]

Each side trains in a process of its own, in turns; a round's rate leaves out the first two steps, which compile and load, and the
best round counts. Plain TRL is a trainer, PEFT and nothing else. On a GPU the peak memory of both is printed too.
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


def rows_of(profile: Any, tokenizer: Any) -> dict[str, Any]:
    """The profile's sets, ready to train on."""
    from aimo.data import prepare

    return {
        n: rows.to_dicts()
        for n, rows in prepare.format(
            prepare.clean(prepare.load(profile), profile, tokenizer), profile
        ).items()
    }


def ours(stage: str, profile: Any, folder: Path) -> list[tuple[float, float]]:
    """Train with our functions; the time and the tokens (of GRPO: the steps) after each step."""
    from aimo import hub
    from aimo.runs import read_lines
    from aimo.training import models, trainers

    base = hub.local_folder(profile.model.base)
    model, tokenizer = models.load(base, profile), models.load_tokenizer(base, profile)
    rows, times = rows_of(profile, tokenizer), []
    getattr(trainers, stage)(
        model, tokenizer, rows[stage], profile, folder, lambda *_: times.append(time.perf_counter())
    )
    tokens = [record["num_tokens"] for record in read_lines(folder / "log.jsonl") if "loss" in record]
    return list(zip(times, tokens, strict=True))


def plain(stage: str, profile: Any, folder: Path) -> list[tuple[float, float]]:
    """Train with TRL as its documentation shows it."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
    from trl.trainer import utils

    from aimo import hub, rewards
    from aimo.training import models, trainers

    base = hub.local_folder(profile.model.base)
    tokenizer = models.load_tokenizer(base, profile)
    rows, times = rows_of(profile, tokenizer), []
    dtype = models.choose_dtype(profile)[0]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    lora = profile.model.lora
    peft = (
        LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.target_modules, task_type="CAUSAL_LM"
        )
        if lora
        else None
    )
    s = getattr(profile, stage)
    shared = {
        "output_dir": str(folder),
        "max_steps": s.max_steps,
        "learning_rate": s.learning_rate,
        "lr_scheduler_type": s.scheduler,
        "warmup_steps": s.warmup_ratio,
        "optim": s.optimizer,
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
    if (
        not torch.cuda.is_available()
    ):  # TRL 1.15 alone cannot take a step on a CPU: its loss is a Triton kernel
        utils._ChunkedLogProbFunction = trainers.PlainLogProbs
    if stage == "sft":
        args = SFTConfig(
            **shared,
            per_device_train_batch_size=s.batch_size,
            max_length=profile.model.max_length,
            completion_only_loss=True,
        )
        trainer = SFTTrainer(
            model=model,
            args=args,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows["sft"]),
            peft_config=peft,
        )
    else:
        args = GRPOConfig(
            **shared,
            per_device_train_batch_size=s.prompts_per_step * s.num_generations,
            num_generations=s.num_generations,
            max_completion_length=s.max_completion_length,
            temperature=s.temperature,
        )
        trainer = GRPOTrainer(
            model=model,
            args=args,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows["grpo"]),
            reward_funcs=rewards.get_reward_funcs(s.rewards, profile.prompt),
            peft_config=peft,
        )

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    trainer.add_callback(Clock())
    trainer.train()
    return list(zip(times, [r["num_tokens"] for r in trainer.state.log_history if "loss" in r], strict=True))


def child(side: str, stage: str, profile_name: str, overrides: list[str]) -> None:
    """One round of one side; prints its rate."""
    from aimo import config, runs

    runs.quiet()
    if side == "ours":
        import unsloth  # noqa: F401
    import torch

    profile = config.load(
        profile_name,
        [
            f"{stage}.max_steps={STEPS[stage]}",
            f"{stage}.save_steps=1000",
            "grpo.probe_steps=null",
            *overrides,
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        marks = {"ours": ours, "plain": plain}[side](stage, profile, Path(folder))
    (begin, first), (end, last) = marks[1], marks[-1]
    done = (
        last - first
        if stage == "sft"
        else (len(marks) - 2) * profile.grpo.prompts_per_step * profile.grpo.num_generations
    )
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    print(json.dumps({"rate": done / (end - begin), "gpu_gib": memory}))


def packing(rows: int = 2000, limit: int = 4096) -> float:
    """The share of packed rows that tokens of a long-tailed set (log-normal lengths) fill."""
    from datasets import Dataset
    from trl import pack_dataset

    rng = random.Random(0)
    lengths = [min(limit, max(16, int(rng.lognormvariate(6, 1)))) for _ in range(rows)]
    packed = pack_dataset(Dataset.from_list([{"input_ids": [0] * n} for n in lengths]), limit, "bfd")
    return sum(lengths) / (len(packed) * limit)


def main(
    profile: Annotated[str, typer.Option()] = "tiny",
    set_: Annotated[list[str] | None, typer.Option("--set")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
    only: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure both sides of both stages."""
    if only:
        return child(*only.split(":"), profile, set_ or [])  # type: ignore[call-arg]
    table = Table("stage", "per second", "ours", "plain TRL", "ours / plain", "GPU memory, GiB")
    results: list[dict[str, Any]] = []
    for stage in STEPS:
        best: dict[str, dict[str, Any]] = {}
        for turn in range(rounds):
            for side in ("ours", "plain") if turn % 2 else ("plain", "ours"):
                command = [sys.executable, __file__, "--profile", profile, "--only", f"{side}:{stage}"]
                command += [part for value in set_ or [] for part in ("--set", value)]
                found = json.loads(
                    subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[
                        -1
                    ]
                )
                best[side] = max(best.get(side, found), found, key=lambda f: f["rate"])
        unit = "tokens" if stage == "sft" else "samples"
        ratio = best["ours"]["rate"] / best["plain"]["rate"]
        memory = (
            ""
            if best["ours"]["gpu_gib"] is None
            else f"{best['ours']['gpu_gib']:.1f} and {best['plain']['gpu_gib']:.1f}"
        )
        results.append({"stage": stage, "unit": unit, "ratio": ratio} | {side: best[side] for side in best})
        table.add_row(
            stage, unit, *(f"{best[side]['rate']:,.1f}" for side in ("ours", "plain")), f"{ratio:.2f}", memory
        )
    fill = packing()
    Console().print(table)
    print(f"Packing fills {fill:.1%} of the tokens of 2,000 rows with log-normal lengths.")
    if to:
        to.write_text(json.dumps({"stages": results, "packing": fill}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
