"""SFT, GRPO and DPO: TRL's trainers, resumable, watched (`callbacks`), with the profile's settings.

What they leave in the stage's folder: checkpoints, `log.jsonl` with the figures of every step, and `trained`, the adapter or
the weights. Out of scope: launching on several devices, which is `launch`.
"""

import dataclasses
import difflib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aimo import rewards
from aimo.config import Grpo, Optimization, Profile
from aimo.data.prepare import Rows
from aimo.errors import AimoError

Progress = Callable[[int, int], None]
Log = list[dict[str, Any]]


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
    """Fine-tune on `prompt` and `completion` rows, loss on the completion only; returns one record a step.

    `test` rows are evaluated on every `sft.eval_steps`; `probe` rows (`prompt`, `answer`) are answered every `sft.probe_steps`. Goes
    on from the last checkpoint in `folder`, if there is one.
    """
    import pyarrow.compute as pc
    from trl import SFTConfig, SFTTrainer

    s = profile.sft
    # Packed rows of a batch are joined into one; without flash attention its cost grows with the square, so a batch is one row.
    rows_at_once = 1 if s.packing and "flash" not in profile.model.attention else s.batch_size
    evaluation = (
        {"eval_strategy": "steps", "eval_steps": s.eval_steps, "per_device_eval_batch_size": rows_at_once}
        if s.eval_steps
        else {}
    )
    args = configure(
        SFTConfig,
        "sft",
        profile,
        folder,
        per_device_train_batch_size=rows_at_once,
        gradient_accumulation_steps=s.gradient_accumulation_steps * s.batch_size // rows_at_once,
        max_length=profile.model.max_length,
        completion_only_loss=True,
        packing=s.packing,
        train_sampling_strategy="random",  # ByLength is ours
        **evaluation,
    )
    trainer: Any = SFTTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=tokenize(rows, tokenizer),
        eval_dataset=tokenize(test, tokenizer) if test and s.eval_steps else None,
    )
    if s.group_by_length and not s.packing:
        lengths = pc.list_value_length(trainer.train_dataset.with_format("arrow")[:]["input_ids"]).to_pylist()
        rows_a_step = s.batch_size * s.gradient_accumulation_steps * args.world_size
        trainer._get_train_sampler = lambda _=None: ByLength(lengths, rows_a_step)
    return fit(trainer, "sft", profile, folder, progress, probe)


class ByLength:
    """Rows in random order, but those of a step are neighbours in length among the rows of 50 steps, for less padding.

    The longest row comes in the first step, so that what does not fit in memory fails at once.
    """

    def __init__(self, lengths: list[int], rows_a_step: int):
        self.lengths, self.rows_a_step = lengths, rows_a_step
        self.generator: Any = None

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        import torch

        order = torch.randperm(len(self), generator=self.generator).tolist()
        longest = max(order, key=self.lengths.__getitem__)
        order.insert(0, order.pop(order.index(longest)))
        whole = len(self) - len(self) % self.rows_a_step  # what is left over makes the last step, a short one
        near = [
            row
            for pool in cut(order[:whole], 50 * self.rows_a_step)
            for row in sorted(pool, key=self.lengths.__getitem__)
        ]
        steps = cut(near, self.rows_a_step)
        steps = [steps[i] for i in torch.randperm(len(steps), generator=self.generator).tolist()]
        steps.sort(key=lambda step: longest not in step)
        return itertools.chain(*steps, order[whole:])


def cut(rows: list[int], size: int) -> list[list[int]]:
    """Rows in parts of a size, the last maybe smaller."""
    return [rows[i : i + size] for i in range(0, len(rows), size)]


class Seeded:
    """A trainer's sampler, drawn from the seed and the epoch alone: the same in all processes, and when a run goes on in a later epoch.

    By themselves Transformers 5.17 and TRL 1.15 then start with the order of the first epoch again.
    """

    def __init__(self, sampler: Any, trainer: Any):
        self.sampler, self.trainer = sampler, trainer

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        import torch

        epoch = int(self.trainer.state.epoch or 0)
        self.sampler.generator = torch.Generator().manual_seed(self.trainer.args.seed + epoch)
        return iter(self.sampler)


def tokenize(rows: Rows, tokenizer: Any) -> Any:
    """`prompt` and `completion` rows as `input_ids` and `completion_mask`: the prompt's tokens are those of generation.

    Tokenised as one text, the end of a prompt may merge with what follows (`>` and `a` into `>a`), and a model would be trained on
    tokens that it never sees when it is asked.
    """

    def encode(row: dict[str, Any]) -> dict[str, list[int]]:
        asked = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
        prompt, reply = (
            tokenizer.encode(text, add_special_tokens=False) for text in (asked, whole[len(asked) :])
        )
        return {"input_ids": prompt + reply, "completion_mask": [0] * len(prompt) + [1] * len(reply)}

    return to_dataset(rows).map(encode, remove_columns=["prompt", "completion"])


def grpo(
    model: Any,
    tokenizer: Any,
    rows: Rows,
    profile: Profile,
    folder: Path,
    progress: Progress,
    probe: Rows | None = None,
) -> Log:
    """Reinforce the completions that the rewards prefer within their group (GRPO, DeepSeekMath 2024); rows have `prompt`, `answer`.

    A step samples `num_generations` completions for each of `prompts_per_step` prompts; advantages are rewards relative
    to the group's mean. Returns one record a step. Goes on from the last checkpoint in `folder`, if there is one.
    """
    import torch
    from trl import GRPOConfig, GRPOTrainer

    from aimo.training import models
    from aimo.training.callbacks import Samples, Signal

    s = profile.grpo
    if s.generation == "vllm" and not torch.cuda.is_available():
        raise AimoError("grpo.generation: vllm needs a GPU and there is none; set it to transformers")
    args = configure(
        GRPOConfig,
        "grpo",
        profile,
        folder,
        per_device_train_batch_size=completions_at_once(s, int(os.environ.get("WORLD_SIZE", 1))),
        gradient_accumulation_steps=s.gradient_accumulation_steps,
        num_generations=s.num_generations,
        max_completion_length=s.max_completion_length,
        temperature=s.temperature,
        top_p=s.top_p,
        top_k=s.top_k,
        min_p=s.min_p,
        repetition_penalty=s.repetition_penalty,
        loss_type=s.loss_type,
        beta=s.beta,
        mask_truncated_completions=s.mask_truncated_completions,
        reward_weights=[reward.weight for reward in s.rewards.values()],
        use_vllm=s.generation != "transformers",
        vllm_mode="server" if s.generation == "vllm_server" else "colocate",
        vllm_server_base_url=s.vllm_server_url if s.generation == "vllm_server" else None,
        vllm_gpu_memory_utilization=s.vllm_gpu_memory,
        vllm_max_model_length=profile.model.max_length,
    )
    samples, signal = Samples(folder, s.sample_steps), Signal()
    trainer = samples.trainer = signal.trainer = GRPOTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=to_dataset(rows),
        reward_funcs=list(rewards.get_reward_funcs(s.rewards, profile.prompt)),
        callbacks=[samples, signal],
    )
    if model.device.type == "cpu":  # on a GPU vLLM and Unsloth have better means
        trim_padding(trainer)
        if profile.model.lora:
            models.merge_to_generate(model)
    return fit(trainer, "grpo", profile, folder, progress, probe)


def trim_padding(trainer: Any) -> None:
    """Let a GRPO trainer compute log-probabilities in up to four parts, each padded to its own longest row only."""
    import torch
    from torch.nn.functional import pad

    compute = trainer._get_per_token_logps_and_entropies

    def trimmed(
        model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any, Any]:
        rows, width = input_ids.shape
        # Prompts are padded on their left and completions on their right.
        begins = attention_mask.argmax(1)
        ends = (width - attention_mask.flip(1).argmax(1)).clamp(min=width - logits_to_keep + 1)
        order = ends.argsort()
        found = []
        for part in order.split(max(8, -(-rows // 4))):
            begin, end = int(begins[part].min()), int(ends[part].max())
            kept = logits_to_keep - (width - end)
            *values, aux_loss = compute(
                model, input_ids[part, begin:end], attention_mask[part, begin:end], kept, *args, **kwargs
            )
            found.append(
                [*(None if value is None else pad(value, (0, width - end)) for value in values), aux_loss]
            )
        logps, entropies, aux_losses = zip(*found, strict=True)
        back = order.argsort()
        return (
            torch.cat(logps)[back],
            None if entropies[0] is None else torch.cat(entropies)[back],
            None if aux_losses[0] is None else torch.stack(aux_losses).mean(),
        )

    trainer._get_per_token_logps_and_entropies = trimmed


def dpo(
    model: Any,
    tokenizer: Any,
    rows: Rows,
    profile: Profile,
    folder: Path,
    progress: Progress,
    probe: Rows | None = None,
) -> Log:
    """Prefer `chosen` over `rejected` completions of each `prompt` (DPO, Rafailov 2023); returns one record a step.

    The model held to is the one that training starts from. Goes on from the last checkpoint in `folder`, if there is one.
    """
    from trl import DPOConfig, DPOTrainer

    s = profile.dpo
    assert s
    args = configure(
        DPOConfig,
        "dpo",
        profile,
        folder,
        per_device_train_batch_size=s.batch_size,
        gradient_accumulation_steps=s.gradient_accumulation_steps,
        max_length=profile.model.max_length,
        beta=s.beta,
    )
    columns = ("prompt", "chosen", "rejected")
    pairs = to_dataset([{column: row[column] for column in columns} for row in rows])
    trainer = DPOTrainer(model=model, args=args, processing_class=tokenizer, train_dataset=pairs)
    return fit(trainer, "dpo", profile, folder, progress, probe)


def completions_at_once(s: Grpo, processes: int) -> int:
    """GRPO's completions on one device at a time: those of a step, split over the processes and the steps of accumulation."""
    completions, parts = s.prompts_per_step * s.num_generations, processes * s.gradient_accumulation_steps
    if completions % parts:
        raise AimoError(
            f"grpo: {s.prompts_per_step} x {s.num_generations} completions a step do not split evenly over {processes} processes x "
            f"{s.gradient_accumulation_steps} steps of accumulation; make grpo.prompts_per_step a multiple of {parts}"
        )
    return completions // parts


def configure(kind: Any, stage: str, profile: Profile, folder: Path, **arguments: Any) -> Any:
    """TRL's configuration of a stage; a key under `trl` that TRL does not know, or that has a key of ours, is refused."""
    import torch

    from aimo.training.models import choose_dtype

    s: Optimization = getattr(profile, stage)
    cuda, dtype = torch.cuda.is_available(), choose_dtype(profile)[0]
    arguments |= {
        "output_dir": str(folder),
        "num_train_epochs": s.epochs,
        "max_steps": s.max_steps or -1,
        "learning_rate": s.learning_rate,
        "lr_scheduler_type": s.scheduler,
        "lr_scheduler_kwargs": {"min_lr_rate": s.min_lr_rate} if s.scheduler == "cosine_with_min_lr" else {},
        "warmup_steps": s.warmup_ratio,  # below 1, Transformers takes it as a share of all steps
        "optim": s.optimizer,
        "weight_decay": s.weight_decay,
        "max_grad_norm": s.max_grad_norm,
        "save_steps": s.save_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "seed": profile.seed,
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        # Unsloth brings its own on a GPU; a model that runs on a CPU is small enough to do without.
        "gradient_checkpointing": cuda
        and profile.model.gradient_checkpointing
        and profile.model.backend == "transformers",
        "use_liger_kernel": s.use_liger_kernel,
        "use_cpu": not cuda,
        "report_to": profile.training.log_to,
        "run_name": f"{profile.profile}-{stage}",
        "disable_tqdm": True,
    }
    known = {field.name for field in dataclasses.fields(kind)}
    for key in s.trl:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            raise AimoError(
                f"{stage}.trl.{key}: {kind.__name__} has no such key"
                + (f", did you mean {close[0]}?" if close else "")
            )
        if key in arguments:
            raise AimoError(f"{stage}.trl.{key}: the profile has a key of its own for this; set it there")
    if profile.training.log_to != "none":
        require(profile.training.log_to, f"training.log_to: {profile.training.log_to}")
    if s.use_liger_kernel:
        require("liger_kernel", f"{stage}.use_liger_kernel")
    try:
        return kind(**arguments, **s.trl)
    except (TypeError, ValueError) as e:
        raise AimoError(f"{stage}: {' '.join(str(e).split())}") from None


def require(package: str, key: str) -> None:
    """Refuse a key whose package is not installed."""
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise AimoError(
            f"{key} needs a package that is not installed: pip install {package.replace('_', '-')}"
        )


def fit(
    trainer: Any, stage: str, profile: Profile, folder: Path, progress: Progress, probe: Rows | None
) -> Log:
    """Train to the end, from the last complete checkpoint; leave the adapter or the weights in `trained`, the best probed if any."""
    import torch
    from transformers import PrinterCallback
    from trl.trainer import utils

    from aimo.training import callbacks, models

    if utils._ChunkedLogProbFunction is None:  # no Triton, so no GPU; Unsloth has put in its own
        utils._ChunkedLogProbFunction = PlainLogProbs  # type: ignore[misc, assignment]
    sampler = trainer._get_train_sampler
    trainer._get_train_sampler = lambda dataset=None: Seeded(sampler(dataset), trainer)
    trainer.remove_callback(PrinterCallback)
    limits = callbacks.Limits(profile, folder)
    trainer.add_callback(limits)
    every = getattr(profile, stage).probe_steps
    if every and probe:

        def answer() -> list[str]:
            model = trainer.accelerator.unwrap_model(trainer.model)
            return complete(model, trainer.processing_class, probe, profile.grpo.max_completion_length)

        watching = callbacks.Probe(answer, [row["answer"] for row in probe], profile, every, folder)
        watching.trainer = trainer
        trainer.add_callback(watching)
    trainer.add_callback(callbacks.Record(folder, progress))
    trainer.add_callback(callbacks.Finite(trainer, stage, profile, folder))
    with trainer.accelerator.main_process_first():  # it removes what is incomplete
        checkpoint = last_checkpoint(folder)
    if checkpoint:
        models.check_adapter(
            Path(checkpoint), Path(trainer.accelerator.unwrap_model(trainer.model).config._name_or_path)
        )
        print(f"Going on from {Path(checkpoint).name}.")
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except (torch.OutOfMemoryError, RuntimeError) as e:
        if (
            isinstance(e, torch.OutOfMemoryError)
            or "not enough memory" in str(e)
            or "out of memory" in str(e)
        ):
            raise AimoError(out_of_memory(stage, profile, trainer.state.global_step + 1)) from None
        raise
    if limits.reason:
        print(
            f"Stopped at step {trainer.state.global_step} of {trainer.state.max_steps}, before {limits.reason}."
        )
    best = folder / "best"
    if callbacks.agreed((best / "probe.json").exists()):
        if trainer.is_world_process_zero():
            shutil.rmtree(folder / "trained", ignore_errors=True)
            best.rename(folder / "trained")
            restore(trainer.model, folder / "trained")
    else:
        trainer.save_model(str(folder / "trained"))
    return [
        record
        for record in trainer.state.log_history
        if "loss" in record or "eval_loss" in record or "probe/accuracy" in record
    ]


def summary(log: Log) -> dict[str, Any]:
    """The figures of a stage for its card and for metrics.json: its steps, and the last of each that was logged."""
    keys = {"loss": "loss", "reward": "reward", "eval_loss": "eval_loss", "probe/accuracy": "probe_accuracy"}
    found = {name: [record[key] for record in log if key in record] for key, name in keys.items()}
    return {"steps": max(record["step"] for record in log)} | {
        name: round(values[-1], 4) for name, values in found.items() if values
    }


def restore(model: Any, trained: Path) -> None:
    """Put saved adapters or weights back into the model at hand."""
    from safetensors.torch import load_file

    if (trained / "adapter_model.safetensors").exists():
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, load_file(trained / "adapter_model.safetensors"))
    else:
        for file in trained.glob("*.safetensors"):
            model.load_state_dict(
                load_file(file), strict=False
            )  # shards, and tied weights that are saved once


def out_of_memory(stage: str, profile: Profile, step: int) -> str:
    """Which setting to lower, and by what."""
    s: Any = getattr(profile, stage)
    accumulate = f"and {stage}.gradient_accumulation_steps from {s.gradient_accumulation_steps} to {2 * s.gradient_accumulation_steps}"
    if stage == "grpo":
        remedy = f"raise grpo.gradient_accumulation_steps from {s.gradient_accumulation_steps} to {2 * s.gradient_accumulation_steps}"
    elif s.batch_size > 1:
        remedy = f"lower {stage}.batch_size from {s.batch_size} to {s.batch_size // 2} {accumulate}"
    else:
        remedy = f"lower model.max_length from {profile.model.max_length} to {profile.model.max_length // 2}, or set model.load_in_4bit: true"
    return f"{stage}: out of memory at step {step}; {remedy}, then run again: it goes on from the last checkpoint"


class PlainLogProbs:
    """TRL 1.15's loss kernel in plain PyTorch: TRL has it in Triton only, which a CPU cannot run."""

    @staticmethod
    def apply(
        hidden: Any,
        weight: Any,
        bias: Any,
        targets: Any,
        temperature: float,
        _chunk: int,
        cap: Any,
        scale: float,
        _: Any,
    ) -> Any:
        """For hidden states (n, h) and targets (n,): log-probability, entropy, log of the summed squared probabilities,
        mean logit and whether the target is the likeliest token, each (n,).
        """
        import torch

        logits = torch.nn.functional.linear(hidden, weight, bias).float() * scale
        logits = (cap * torch.tanh(logits / cap) if cap else logits) / temperature
        log_p = logits.log_softmax(-1)
        chosen = log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return (
            chosen,
            -(log_p.exp() * log_p).sum(-1),
            (2 * log_p).logsumexp(-1),
            logits.mean(-1),
            logits.argmax(-1) == targets,
        )


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; newer ones cut off by a kill are removed, and named."""
    from safetensors import SafetensorError, safe_open

    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda p: -int(p.name.split("-")[1])):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())  # the trainer writes this file last
            for weights in checkpoint.glob("*.safetensors"):
                with safe_open(weights, "pt"):
                    pass
            return str(checkpoint)
        except (OSError, ValueError, SafetensorError):
            print(f"{checkpoint.name} was not written to its end; the one before is used.")
            shutil.rmtree(checkpoint)
    return None


def complete(model: Any, tokenizer: Any, rows: Rows, max_tokens: int) -> list[str]:
    """The most likely completion of each row's prompt, for a person to read or for a probe."""
    import torch

    texts = [
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        for row in rows
    ]
    batch = tokenizer(
        texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
    ).to(model.device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        out = model.generate(
            **batch, max_new_tokens=max_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
    model.train(was_training)
    return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def to_dataset(rows: Rows) -> Any:
    """Rows as the dataset that TRL reads."""
    from datasets import Dataset

    return Dataset.from_list(rows)
