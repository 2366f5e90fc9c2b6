"""SFT, GRPO and DPO as the notebooks call them: TRL's trainers (`trl_trainers`) with the profile's settings.

A stage leaves in its folder checkpoints, `log.jsonl` with the figures of every step, and `trained`, the
adapter or the weights. Started again, it continues from its last checkpoint. Out of scope: several devices,
which is `launch`.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aimo.config import Profile
from aimo.data.prepare import Rows
from aimo.errors import AimoError
from aimo.inference import vllm_process
from aimo.inference.settings import Settings
from aimo.run import machine, runs
from aimo.run.runs import Run
from aimo.train import checkpoints

Progress = Callable[[int, int], None]
Log = list[dict[str, Any]]

FIGURES = {
    "loss": "loss",
    "reward": "reward",
    "eval_loss": "eval_loss",
    "probe/accuracy": "probe_accuracy",
    "mean_loss": "mean_loss",
    "train_seconds": "train_seconds",
    "samples_per_second": "samples_per_second",
    "steps_per_second": "steps_per_second",
    "total_flos": "total_flos",
}
"""Keys of the log whose last value is a figure of the stage, and the figure's name."""


def sft(
    model: Any,
    tokenizer: Any,
    rows: Rows,
    profile: Profile,
    folder: Path,
    progress: Progress,
    test: Rows | None = None,
    probe: Rows | None = None,
) -> Log:
    """Fine-tune on `prompt` and `completion` rows, with the loss on the completion only; returns the records
    of `fit`.

    `test` rows are evaluated on every `sft.eval_steps`, `probe` rows (`prompt`, `answer`) answered every
    `sft.probe_steps`. Rows longer than `model.max_length` are cut there.
    """
    from aimo.train.arguments import sft_arguments
    from aimo.train.tokenization import read_or_tokenize
    from aimo.train.trl_trainers import SftTrainer

    assert profile.sft
    args = sft_arguments(profile, folder)
    trainer = build(
        SftTrainer,
        "sft",
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=read_or_tokenize(rows, tokenizer, args, folder),
        eval_dataset=read_or_tokenize(test, tokenizer, args, folder)
        if test and profile.sft.eval_steps
        else None,
    )
    if profile.sft.packing and not args.packing:  # Unsloth only logs that it leaves it out
        raise AimoError(
            "sft.packing: Unsloth does not pack the rows of this model; set it to false, or take "
            "model.backend transformers"
        )
    trainer.by_length = profile.sft.group_by_length and not profile.sft.packing
    return fit(trainer, "sft", profile, folder, progress, probe)


def grpo(
    model: Any,
    tokenizer: Any,
    rows: Rows,
    profile: Profile,
    folder: Path,
    progress: Progress,
    probe: Rows | None = None,
) -> Log:
    """Reinforce the completions that the rewards prefer within their group (GRPO, DeepSeekMath 2024).

    Rows have `prompt` and `answer`. A step samples `num_generations` completions for each of
    `prompts_per_step` prompts; advantages are rewards relative to the group's mean. Returns the records of
    `fit`.
    """
    from accelerate.utils import set_seed

    from aimo import rewards
    from aimo.train import callbacks, compat, models, tool_use
    from aimo.train.arguments import grpo_arguments
    from aimo.train.trl_trainers import GrpoTrainer

    assert profile.grpo
    args = grpo_arguments(profile, folder)
    check_head(args, model)
    in_process = profile.grpo.generation == "vllm"
    if in_process:
        vllm_process.set_environment()
    compat.generate_with_vllm(on_cpu=in_process and args.device.type == "cpu")
    trainer = build(
        GrpoTrainer,
        "grpo",
        model=model,
        args=args,
        train_dataset=to_dataset(rows),
        reward_funcs=list(rewards.get_reward_funcs(profile.grpo.rewards, profile.prompt)),
        **{"processing_class": tokenizer} | tool_use.trainer_arguments(profile, model, tokenizer, args),
    )
    trainer.max_resample = profile.grpo.max_resample
    if in_process:
        set_seed(args.seed, device_specific=True)  # vLLM has set another in this process
    trainer.add_callback(callbacks.Mismatch())
    trainer.add_callback(callbacks.Samples(trainer, folder, profile.grpo.sample_steps))
    if generates_merged(trainer.args, profile):
        models.merge_to_generate(model)
    return fit(trainer, "grpo", profile, folder, progress, probe)


def check_head(args: Any, model: Any) -> None:
    """Refuse a float32 head on adapters over tied embeddings, which TRL 1.15 looks for in the adapters."""
    if args.cast_lm_head_to_fp32 and hasattr(model, "peft_config") and model.config.tie_word_embeddings:
        raise AimoError(
            "grpo.trl.cast_lm_head_to_fp32: TRL does not cast the head of a model with adapters and tied "
            "embeddings; leave it out, or set model.lora to null"
        )


def generates_merged(args: Any, profile: Profile) -> bool:
    """Whether GRPO samples with its adapters merged in: on a CPU. On a GPU, vLLM and Unsloth make it
    unnecessary; a model that is to be sharded is on the CPU until training starts."""
    return args.device.type == "cpu" and profile.model.lora is not None


def dpo(
    model: Any,
    tokenizer: Any,
    rows: Rows,
    profile: Profile,
    folder: Path,
    progress: Progress,
    probe: Rows | None = None,
) -> Log:
    """Prefer the `chosen` to the `rejected` completion of each `prompt` (DPO, Rafailov 2023).

    The reference model is the one that training starts from. Returns the records of `fit`.
    """
    from aimo.train.arguments import dpo_arguments
    from aimo.train.trl_trainers import DpoTrainer

    columns = ("prompt", "chosen", "rejected")
    trainer = build(
        DpoTrainer,
        "dpo",
        model=model,
        args=dpo_arguments(profile, folder),
        processing_class=tokenizer,
        train_dataset=to_dataset([{column: row[column] for column in columns} for row in rows]),
    )
    return fit(trainer, "dpo", profile, folder, progress, probe)


def build(kind: Any, stage: str, **arguments: Any) -> Any:
    """A trainer; what TRL refuses of the configuration becomes one line."""
    from transformers import PrinterCallback

    from aimo.train import compat, placement

    compat.provide_log_probs()
    try:
        trainer = kind(**arguments)
    except ValueError as e:
        raise AimoError(f"{stage}: {' '.join(str(e).split())}") from None
    placement.keep_trained_in_float32(trainer.model)
    trainer.remove_callback(PrinterCallback)
    return trainer


def fit(
    trainer: Any, stage: str, profile: Profile, folder: Path, progress: Progress, probe: Rows | None
) -> Log:
    """Train to the end, from the last complete checkpoint; leave the adapter or the weights in `trained`.

    With probes that is the best model probed. Returns the records with a loss or a probe, and at the end the
    stage's totals. AimoError for rows too few for a step, a model that an interrupted training has changed, a
    loss that is not finite, and a device without enough memory.
    """
    from aimo.train.callbacks import AlreadyTrained
    from aimo.train.models import check_adapter

    check_rows(trainer, stage)
    limits = watch(trainer, stage, profile, folder, progress, probe)
    with trainer.args.main_process_first(local=False):  # it removes what is incomplete
        checkpoint = checkpoints.last_checkpoint(folder)
        if checkpoint and trainer.is_world_process_zero():
            checkpoints.keep_best(folder, checkpoints.step_of(Path(checkpoint)))
    model = trainer.accelerator.unwrap_model(trainer.model)
    if checkpoint:
        check_adapter(Path(checkpoint), Path(model.config.name_or_path))
        checkpoints.accept_cpu_index()
        print(f"Continuing from {Path(checkpoint).name}.")
    elif getattr(model, "was_trained_on", False):
        raise AimoError(
            f"{stage}: the model in memory has been trained on, and there is no checkpoint to continue from; "
            "load it again (run the notebook from its first cell)"
        )
    model.was_trained_on = True
    try:
        with contextlib.suppress(AlreadyTrained):
            trainer.train(resume_from_checkpoint=checkpoint)
    except RuntimeError as e:  # torch.OutOfMemoryError is one
        if not any(words in str(e) for words in ("out of memory", "not enough memory")):
            raise
        raise AimoError(out_of_memory(stage, profile, folder, trainer.state.global_step + 1)) from None
    if limits.reason:
        state = trainer.state
        print(f"Stopped at step {state.global_step} of {state.max_steps}, before {limits.reason}.")
    checkpoints.save_trained(trainer, folder)
    kept = ("loss", "eval_loss", "probe/accuracy")
    return [r for r in trainer.state.log_history if any(key in r for key in kept)] + [
        totals(trainer) | {"stopped": limits.reason}
    ]


def check_rows(trainer: Any, stage: str) -> None:
    """Refuse a set of which no step can be made; TRL would train none and finish."""
    rows, needed, remedy = len(trainer.train_dataset), 1, "take more rows"
    if stage == "grpo":
        needed = trainer.args.generation_batch_size // trainer.num_generations
        remedy = "lower grpo.prompts_per_step, raise data.grpo.rows, or widen grpo.pass_rate"
    elif trainer.args.dataloader_drop_last:
        needed = trainer.args.train_batch_size * trainer.args.world_size
        remedy = f"lower {stage}.batch_size, or leave out {stage}.trl.dataloader_drop_last"
    if rows < needed:
        raise AimoError(f"{stage}: {rows} rows do not make a step, which takes {needed}; {remedy}")


def watch(
    trainer: Any, stage: str, profile: Profile, folder: Path, progress: Progress, probe: Rows | None
) -> Any:
    """Add the callbacks of a stage to its trainer; returns the one that keeps the limits."""
    from aimo.train import callbacks

    limits = callbacks.Limits(profile, folder)
    trainer.add_callback(limits)
    every = getattr(profile, stage).probe_steps
    if every and probe:
        max_tokens = (
            profile.grpo.max_completion_length
            if profile.grpo
            else profile.inference.max_tokens or Settings.max_tokens
        )

        def answer() -> list[str]:
            model = trainer.accelerator.unwrap_model(trainer.model)
            return complete(model, trainer.processing_class, probe, max_tokens)

        golds = [row["answer"] for row in probe]
        trainer.add_callback(callbacks.Probe(trainer, answer, golds, profile, every, folder))
    trainer.add_callback(callbacks.Record(folder, progress))
    finite = callbacks.Finite(trainer, stage, profile, folder)
    trainer.add_callback(finite)
    trainer.on_loss = finite.check_loss
    return limits


def totals(trainer: Any) -> dict[str, Any]:
    """The last record of a stage: its mean loss, seconds, speed and floating-point operations, from its first
    step on.

    A sample is a row; for GRPO, a completion, trained on or not. Seconds are those of training, probes and
    checkpoints included.
    """
    from aimo.train.trl_trainers import rows_per_step

    state = trainer.state
    groups = sum(record.get("groups/tried", 0) for record in state.log_history)
    samples = groups * trainer.num_generations if groups else state.global_step * rows_per_step(trainer.args)
    losses = [record["loss"] for record in state.log_history if "loss" in record]
    seconds = state.log_history[-1]["train_seconds"]
    return {
        "step": state.global_step,
        "mean_loss": sum(losses) / len(losses) if losses else None,
        "train_seconds": seconds,
        "samples_per_second": samples / seconds,
        "steps_per_second": state.global_step / seconds,
        "total_flos": state.total_flos,
    }


def summary(log: Log) -> dict[str, Any]:
    """The figures of a stage for its card and for metrics.json: its steps, the last value of each of
    `FIGURES`, and what stopped it early."""
    found: dict[str, Any] = {"steps": max(record["step"] for record in log)}
    for key, name in FIGURES.items():
        values = [record[key] for record in log if record.get(key) is not None]
        if values:
            found[name] = round(values[-1], 4)
    if log[-1].get("stopped"):
        found["stopped"] = log[-1]["stopped"]
    return found


def finish(run: Run, tokenizer: Any, log: Log, **more: Any) -> dict[str, Any]:
    """The last step of a trained stage: save the model, push it where the profile says, record the stage.

    Returns the recorded figures, `more` among them.
    """
    from aimo.train import models

    figures, product = more | summary(log), run.folder / "model"
    card = figures | run.data_hash()
    models.save(run.folder / "trained", run.start_model(), tokenizer, run.profile, product, card)
    models.push(product, run.profile, run.dir)
    run.finish(**figures)
    return figures


def out_of_memory(stage: str, profile: Profile, folder: Path, step: int) -> str:
    """Return the message when memory runs out: the keys to change, and how the stage goes on with them.

    What keeps the rows of a step, and so what is learned, comes first.
    """
    section: Any = getattr(profile, stage)
    steps, length, options = section.gradient_accumulation_steps, profile.model.max_length, []
    assert length
    if stage == "grpo":
        in_parts = section.prompts_per_step * section.num_generations // int(os.environ.get("WORLD_SIZE", 1))
        more = next((n for n in range(2 * steps, in_parts + 1) if in_parts % n == 0), None)
        options += [{"grpo.gradient_accumulation_steps": more}] if more else []
        options.append({"grpo.max_completion_length": max(1, section.max_completion_length // 2)})
    else:
        size = section.batch_size
        less = max((n for n in range(1, size // 2 + 1) if size % n == 0), default=size)
        split = {"batch_size": less, "gradient_accumulation_steps": steps * size // less}
        options += [{f"{stage}.{key}": value for key, value in split.items()}] if less < size else []
        grpo = profile.grpo
        least = grpo.max_prompt_length + grpo.max_completion_length if grpo else 1
        options += [{"model.max_length": max(least, length // 2)}] if least < length else []
    if can_load_in_4bit(profile):
        options.append({"model.load_in_4bit": True})
    said = f"{stage}: out of memory at step {step}; "
    for changes in options:
        with contextlib.suppress(AimoError):  # a reward, say, may count on the longer completions
            return said + runs.continue_with(folder.parent, profile, stage, changes)
    return said + "take a smaller model.base, or a device with more memory"


def can_load_in_4bit(profile: Profile) -> bool:
    """Whether four-bit weights would be something new, and the rest of the profile allows them."""
    from aimo.train import placement

    samples_with_vllm = profile.grpo is not None and profile.grpo.generation != "transformers"
    new = profile.model.lora is not None and not profile.model.load_in_4bit
    return new and machine.computes_on_gpu() and not samples_with_vllm and not placement.is_sharded()


TOKENS_AT_ONCE = 2**15
"""Prompt and completion tokens that `complete` answers at once: their cache takes 4.6 GB of a model of four
billion parameters."""


def complete(model: Any, tokenizer: Any, rows: Rows, max_tokens: int) -> list[str]:
    """The most likely completion of each row's prompt, for a person to read or for a probe; [] for no
    rows."""
    texts = [
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        for row in rows
    ]
    longest = max((len(tokenizer.encode(text, add_special_tokens=False)) for text in texts), default=0)
    size = max(1, TOKENS_AT_ONCE // (longest + max_tokens))
    mode = next((on for m in model.modules() if (on := getattr(m, "gradient_checkpointing", False))), False)
    was_training = model.training
    model.eval()
    completions = []
    for first in range(0, len(texts), size):
        completions += generate(model, tokenizer, texts[first : first + size], max_tokens)
    model.train(was_training)
    if was_training and hasattr(model, "for_training"):  # Unsloth's generate turned checkpointing off
        model.for_training(use_gradient_checkpointing=mode)
    return completions


def generate(model: Any, tokenizer: Any, texts: list[str], max_tokens: int) -> list[str]:
    """The most likely completions of prompts, in one batch."""
    import torch

    batch = tokenizer(
        texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
    ).to(model.device)
    with torch.no_grad():
        out = model.generate(
            **batch, max_new_tokens=max_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
    return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def to_dataset(rows: Rows) -> Any:
    """Rows as the dataset that TRL reads."""
    from datasets import Dataset

    return Dataset.from_list(rows)
