"""Code that the stages share: build TRL's trainer, train from the last checkpoint to the end, and finish.

A stage's folder holds checkpoints, `log.jsonl` with the figures of every step, and `trained`, the adapter or
the weights. A restarted stage continues from its last checkpoint. The saved model is read back and compared
with the trained one: `served.json` keeps log-probabilities of replies to held-out problems.
"""

import contextlib
import functools
import gc
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import trl
from accelerate import PartialState
from accelerate.utils import set_seed
from transformers import AutoModelForCausalLM, PrinterCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from aimo.data import prepare
from aimo.data.prepare import Rows
from aimo.evaluation.served import Reading, compare, encode_talks, read_kept
from aimo.inference import vllm_process
from aimo.inference.errors import AimoError
from aimo.inference.model_folder import read_tokenizer
from aimo.inference.storage import read_lines, write_json, write_lines
from aimo.report import pages
from aimo.run import machine, runs
from aimo.run.runs import Run
from aimo.train import arguments, callbacks, compat, models

Log = list[dict[str, Any]]

# Keys of the log whose last value is a figure of the stage; a slash becomes an underscore.
FIGURES = [
    *("loss", "reward", "eval_loss", "probe/accuracy", "mean_loss"),
    *("train_seconds", "samples_per_second", "steps_per_second", "total_flos"),
]

REFERENCE = "ref"  # TRL's name for its copy of an adapter


class Seeded:
    """A sampler whose order depends only on the seed and the epoch. Without it, Transformers 5.17 and TRL
    1.15 resume a run in a later epoch with the first epoch's order."""

    def __init__(self, sampler: Any, trainer: Any):
        self.sampler, self.trainer = sampler, trainer

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        args, epoch = self.trainer.args, int(self.trainer.state.epoch or 0)
        seed = args.seed if args.data_seed is None else args.data_seed
        self.sampler.generator = torch.Generator().manual_seed(seed + epoch)
        return iter(self.sampler)


class Shared(compat.OrderHook):
    """A base class of all trainers: it orders rows, reports what the stage is doing, and stops at the first
    loss or gradient that is not finite. `make_trainer` sets `run`."""

    first_row: Any = ()  # token ids of the newest batch's first row
    sampled_ids: Any = None  # token ids of the newest batch, if the stage samples what it trains on
    phase = speed = ""  # what the stage is doing, and its tokens per second

    def order_rows(self, sampler: Any) -> Any:
        return Seeded(sampler, self)

    def doing(self, what: str) -> None:
        if what != self.phase:
            self.phase = what
            self.tell()

    def tell(self) -> None:
        if self.is_world_process_zero():
            note = self.speed if self.speed and self.phase == "training" else self.phase
            self.run.progress(self.state.global_step, self.state.max_steps, note)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.doing("training")
        if "completion_ids" in inputs:
            self.sampled_ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        result = super().compute_loss(model, inputs, *args, **kwargs)
        ids = inputs.get("input_ids", inputs.get("prompt_ids"))  # (rows, tokens)
        self.first_row = () if ids is None else ids[0]
        loss = result[0] if isinstance(result, tuple) else result
        self.check_finite("loss", float(loss.detach()), self.state.global_step + 1)
        return result

    def floating_point_ops(self, inputs: Any) -> int:
        """Return a batch's operations: the newest batch's if TRL samples it, as `inputs` are then texts."""
        inputs = inputs if self.sampled_ids is None else {"input_ids": self.sampled_ids}
        return int(super().floating_point_ops(inputs))

    def log(self, logs: dict[str, float], *args: Any) -> None:
        super().log(logs, *args)
        if rate := self.state.log_history[-1].get("tokens_per_second"):
            self.speed = f"{rate:,.0f} tokens/s"
        self.tell()
        if not self.args.fp16:  # with fp16, the trainer skips steps whose gradient overflows
            self.check_finite("gradient", float(logs.get("grad_norm", 0.0)), self.state.global_step)

    def check_finite(self, what: str, value: float, step: int) -> None:
        """Raise AimoError if a value is not finite. It names the batch, likely causes, what to set, and the
        last good checkpoint."""
        if math.isfinite(value):
            return
        stage, profile = self.run.stage, self.run.profile
        text = self.processing_class.decode(self.first_row, skip_special_tokens=True)
        batch = " ".join(text.split())[:80]
        rate = getattr(profile, stage).learning_rate
        causes = f"{stage}.learning_rate {rate:g} is too high, or a row is broken"
        change: dict[str, Any] = {f"{stage}.learning_rate": rate / 4}
        if profile.model.dtype == "float16":
            causes, change = f"float16 overflows, or {causes}", {"model.dtype": "float32"}
        good = runs.newest_first(self.run.folder)
        kept = f"the last good checkpoint is {good[0]}" if good else "no checkpoint was written yet"
        raise AimoError(
            f"{stage}: the {what} is {value} at step {step}, in the batch of {batch!r}; {causes}; {kept}; "
            f"{runs.continue_with(self.run.dir, profile, stage, change)}"
        )


class DpoTrainer(Shared, trl.DPOTrainer):
    """TRL's DPO with the shared part."""


def rows_per_step(args: Any) -> int:
    """Return how many rows (for GRPO: completions) a step of the optimiser trains on, in all processes."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def make_trainer(kind: Any, run: Run, **given: Any) -> Any:
    """Return a trainer. Raise AimoError, in one line, if TRL refuses the configuration.

    GRPO and OPD sample completions from vLLM in this process, a server, or the model itself.
    """
    args, model = given["args"], given["model"]
    generation = getattr(getattr(run.profile, run.stage), "generation", None)
    compat.patch_trl()
    if generation == "vllm":
        vllm_process.set_environment()
        if os.environ.get("MASTER_PORT", "0") == "0":  # TRL would take 29500, and so may another run
            os.environ["MASTER_PORT"] = str(vllm_process.free_port("127.0.0.1", 0))
    if generation and vars(model).pop("answer", None):  # of an interrupted training's vLLM
        gc.collect()
    try:
        trainer = kind(**given)
    except ValueError as e:
        raise AimoError(f"{run.stage}: {' '.join(str(e).split())}") from None
    # TRL copies a given adapter as the reference. Ours starts without effect, so the base is the reference.
    # Also, Transformers 5.17 reads only the copy from a checkpoint that has one.
    if REFERENCE in getattr(model, "peft_config", ()):
        model.delete_adapter(REFERENCE)
    # TRL casts a four-bit model's adapters to bfloat16. They then lose small steps, and the gradient scaler
    # of float16 training refuses them. DeepSpeed casts and copies on its own.
    if not arguments.with_deepspeed():
        for weight in trainer.model.parameters():
            if weight.requires_grad and weight.dtype != torch.float32:
                weight.data = weight.data.float()
    trainer.remove_callback(PrinterCallback)
    trainer.run = run
    if generation == "vllm":
        set_seed(args.seed, device_specific=True)  # vLLM has set another in this process
    if generation and args.use_vllm:
        model.answer = trainer.vllm_generation.answer  # `models.complete` calls it
    # On a GPU, vLLM and Unsloth replace both. Ask `args.device`: a model to be sharded is still on the CPU.
    if generation and args.device.type == "cpu":
        trainer.add_callback(callbacks.Trim())
        if run.profile.model.lora:
            generate = model.generate

            @functools.wraps(generate)
            def merged(*args: Any, **kwargs: Any) -> Any:  # takes a third of the matrix products
                with models.merged(model):
                    return generate(*args, **kwargs)

            model.generate = merged
    return trainer


def fit(trainer: Any, run: Run, probe: Rows | None) -> Log:
    """Train from the last complete checkpoint to the end. Save the adapter or the weights to `trained`: those
    of the best probed model, if there are `probe` rows.

    Return the records with a loss or a probe, followed by the stage's totals. Raise AimoError if the rows are
    too few for a step, if an interrupted training has changed the model, if a loss or gradient is not finite,
    or if the device has not enough memory.
    """
    stage, folder, args = run.stage, run.folder, trainer.args
    # With too few rows, TRL would finish without training a step.
    rows, needed, remedy = len(trainer.train_dataset), 1, "take more rows"
    if stage == "grpo":
        needed = args.generation_batch_size // trainer.num_generations
        remedy = "lower grpo.prompts_per_step, raise data.grpo.rows, or widen grpo.pass_rate"
    elif args.dataloader_drop_last:
        needed = args.train_batch_size * args.world_size
        remedy = f"lower {stage}.batch_size, or leave out {stage}.trl.dataloader_drop_last"
    if rows < needed:
        raise AimoError(f"{stage}: {rows} rows do not make a step, which takes {needed}; {remedy}")

    model, limits = trainer.accelerator.unwrap_model(trainer.model), callbacks.Budgets(run)
    trainer.add_callback(limits)
    trainer.add_callback(callbacks.Record(run))
    if probe and getattr(run.profile, stage).probe_steps:
        trainer.add_callback(callbacks.Probe(trainer, run, probe))
    if runs.by_hand():
        trainer.add_callback(callbacks.Live(run, trainer))

    with args.main_process_first(local=False):  # it removes what is incomplete or newer
        checkpoint = callbacks.last_checkpoint(folder)
        if trainer.is_world_process_zero():
            last = runs.step_of(Path(checkpoint)) if checkpoint else 0
            callbacks.keep_best(folder, last)
            for path in filter(Path.exists, (folder / "probes.jsonl", folder / "samples.jsonl")):
                lines = read_lines(path) if last else []
                write_lines(path, [line for line in lines if line["step"] <= last])
            if checkpoint:  # aimo 1.0.1 left this: see `make_trainer`
                shutil.rmtree(Path(checkpoint, REFERENCE), ignore_errors=True)
    if checkpoint:
        models.check_adapter(Path(checkpoint), Path(model.config.name_or_path))
        print(f"Continuing from {Path(checkpoint).name}.")
    elif getattr(model, "was_trained_on", False):
        raise AimoError(
            f"{stage}: the model in memory has been trained on, and there is no checkpoint to continue from; "
            "load it again (run the notebook from its first cell)"
        )
    model.was_trained_on = True

    try:
        with contextlib.suppress(callbacks.AlreadyTrained):
            trainer.train(resume_from_checkpoint=checkpoint)
    except KeyboardInterrupt:
        if not runs.by_hand():
            raise
        trainer.accelerator.free_memory(trainer.optimizer, trainer.lr_scheduler)
        trainer.optimizer = trainer.lr_scheduler = None
        again = "run the notebook again: no checkpoint was saved yet"
        if saved := callbacks.last_checkpoint(folder):
            again = f"run the cell again to continue from step {runs.step_of(Path(saved))}"
        raise AimoError(f"{stage}: stopped after step {trainer.state.global_step}; {again}") from None
    except RuntimeError as e:  # torch.OutOfMemoryError is one
        if not any(words in str(e) for words in ("out of memory", "not enough memory")):
            raise
        raise AimoError(out_of_memory(run, trainer.state.global_step + 1)) from None
    state = trainer.state
    if limits.reason:
        print(f"Stopped at step {state.global_step} of {state.max_steps}, before {limits.reason}.")
    callbacks.save_trained(trainer, folder)
    if trainer.is_world_process_zero():
        remember(model, trainer.processing_class, run, probe)

    # A sample is a row; for GRPO a completion, trained on or not. Seconds include probes and checkpoints.
    log, seconds = state.log_history, state.log_history[-1]["train_seconds"]
    groups = sum(record.get("groups/tried", 0) for record in log)
    samples = groups * trainer.num_generations if groups else state.global_step * rows_per_step(args)
    losses = [record["loss"] for record in log if "loss" in record]
    totals = {
        "step": state.global_step,
        "mean_loss": sum(losses) / len(losses) if losses else None,
        "train_seconds": seconds,
        "samples_per_second": samples / seconds,
        "steps_per_second": state.global_step / seconds,
        "total_flos": state.total_flos,
        "stopped": limits.reason,
    }
    return [r for r in log if r.keys() & {"loss", "eval_loss", "probe/accuracy"}] + [totals]


def out_of_memory(run: Run, step: int) -> str:
    """Return the message for a lack of memory: the keys to change, and how to continue with them. The first
    advice keeps the number of rows per step, so that the model learns the same."""
    stage, profile = run.stage, run.profile
    section, length = getattr(profile, stage), profile.model.max_length
    steps, options = section.gradient_accumulation_steps, []
    assert length
    if stage == "grpo":
        in_parts = section.prompts_per_step * section.num_generations // int(os.environ.get("WORLD_SIZE", 1))
        more = next((n for n in range(2 * steps, in_parts + 1) if in_parts % n == 0), None)
        options += [{"grpo.gradient_accumulation_steps": more}] if more else []
    else:
        size = section.batch_size
        less = max((n for n in range(1, size // 2 + 1) if size % n == 0), default=size)
        split = {f"{stage}.batch_size": less, f"{stage}.gradient_accumulation_steps": steps * size // less}
        options += [split] if less < size else []
    sampling = [one for one in (profile.grpo, profile.opd) if one]
    if stage in ("grpo", "opd"):
        options.append({f"{stage}.max_completion_length": max(1, section.max_completion_length // 2)})
    else:
        least = max((one.max_prompt_length + one.max_completion_length for one in sampling), default=1)
        options += [{"model.max_length": max(least, length // 2)}] if least < length else []
    samples_with_vllm = any(one.generation != "transformers" for one in sampling)
    frozen = profile.model.lora is not None and not profile.model.load_in_4bit
    if frozen and machine.computes_on_gpu() and not samples_with_vllm and not arguments.is_sharded():
        options.append({"model.load_in_4bit": True})
    told = f"{stage}: out of memory at step {step}; "
    for changes in options:
        with contextlib.suppress(AimoError):  # a reward, say, may need the longer completions
            return told + runs.continue_with(run.dir, profile, stage, changes)
    smaller = "model.base or opd.teacher" if stage == "opd" else "model.base"
    return told + f"take a smaller {smaller}, or a device with more memory"


def leave_group() -> bool:
    """Leave the process group, which would shard a merge. Return whether this is the main process."""
    state = PartialState()
    state.wait_for_everyone()
    gc.collect()  # the trainer's reference cycles hold DistributedDataParallel, which holds the group
    state.destroy_process_group()
    unset_hf_deepspeed_config()
    return state.is_main_process


def summary(log: Log) -> dict[str, Any]:
    """Return the figures of a stage for its card and for metrics.json: its steps, the last value of each of
    `FIGURES`, and what stopped it early."""
    found: dict[str, Any] = {"steps": max(record["step"] for record in log)}
    for key in FIGURES:
        values = [record[key] for record in log if record.get(key) is not None]
        if values:
            found[key.replace("/", "_")] = round(values[-1], 4)
    return found | ({"stopped": log[-1]["stopped"]} if log[-1].get("stopped") else {})


def finish(run: Run, tokenizer: Any, log: Log, **more: Any) -> dict[str, Any]:
    """Save the model, check that it computes what was trained, push it where the profile says, and record the
    stage as finished. Return the recorded figures, which include `more`."""
    figures = more | summary(log)
    models.save_model(run, tokenizer, figures | run.data_hash())
    figures |= check(run)
    models.push_trained(run)
    run.finish(**figures)
    pages.write_by_hand(run.dir)
    return figures


ROWS, TOKENS = 64, 16  # held-out problems, and the tokens generated for each
PART = 16  # problems answered at once
PIECE = 1024  # tokens whose log-probabilities are computed at once


def log_probs(model: Any, pairs: Sequence[tuple[list[int], list[int]]], dtype: str) -> list[Reading]:
    """Return each pair's prompt with the log-probabilities (n,) of its reply's tokens, computed in `dtype`. A
    pair is a prompt and a reply, both token ids."""
    found: list[Reading] = []
    was_training, compute = model.training, getattr(torch, dtype)
    model.eval()
    for prompt, reply in pairs:
        row = torch.tensor([prompt + reply], device=model.device)  # (1, prompt + n)
        with torch.no_grad(), torch.autocast(model.device.type, compute, enabled=dtype != "float32"):
            logits = model(input_ids=row).logits[0, len(prompt) - 1 : -1]  # (n, vocabulary)
        ids = row[0, len(prompt) :, None]  # (n, 1)
        pieces = zip(logits.split(PIECE), ids.split(PIECE), strict=True)
        values = [part.float().log_softmax(-1).gather(-1, chosen)[:, 0] for part, chosen in pieces]
        found.append((prompt, [round(value, 6) for value in torch.cat(values).tolist()]))
    model.train(was_training)
    return found


def remember(model: Any, tokenizer: Any, run: Run, probe: Rows | None) -> None:
    """Write the trained model's replies to held-out problems, or else to `probe` rows, to `served.json`, with
    log-probabilities. Remove that file if there are no rows, or if no process has the whole model."""
    path = run.folder / "served.json"
    rows = prepare.read_set(run.dir / "data", "heldout")[:ROWS] or (probe or [])[:ROWS]
    if not rows or arguments.is_sharded():
        path.unlink(missing_ok=True)
        return
    dtype, settings = arguments.choose_dtype(run.profile)[0], run.profile.model
    talks: Rows = []

    def keep(key: str) -> None:
        read = log_probs(model, encode_talks(tokenizer, talks), dtype)
        for talk, (ids, values) in zip(talks, read, strict=True):
            talk |= {"ids": ids, key: values}

    # A four-bit model's adapters are merged into weights that are not the trainer's.
    can_merge = settings.lora and not settings.load_in_4bit
    with torch.random.fork_rng(), models.merged(model) if can_merge else contextlib.nullcontext():
        torch.manual_seed(run.profile.seed)
        for first in range(0, len(rows), PART):
            part = rows[first : first + PART]
            texts = models.complete(model, tokenizer, part, TOKENS, do_sample=True)
            replies = zip(part, texts, strict=True)
            talks += [{"prompt": row["prompt"], "reply": text} for row, text in replies if text]
        if can_merge:
            keep("merged")
    keep("log_probs")
    if settings.lora:
        with model.disable_adapter():
            keep("start")
    write_json(path, {"dtype": dtype, "four_bits": settings.load_in_4bit, "talks": talks})


def check(run: Run) -> dict[str, float]:
    """Return the mean difference in log-probabilities between the saved model, on a GPU if that has room, and
    the trained one; {} without `served.json`. Raise AimoError as `compare` does."""
    folder, kept = run.folder / "model", read_kept(run.folder)
    if not kept:
        return {}
    device = "cpu"
    if machine.computes_on_gpu():
        torch.cuda.empty_cache()
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        device = "cuda" if torch.cuda.mem_get_info()[0] > 1.2 * size else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    model.to(device)
    saved_in = str(model.dtype).removeprefix("torch.")
    found = log_probs(model, encode_talks(read_tokenizer(folder), kept["talks"]), saved_in)
    difference = compare(kept, found, saved_in, f"{run.stage}: {folder}", run.profile.training.served_bound)
    return {"served_difference": round(difference, 6)}
