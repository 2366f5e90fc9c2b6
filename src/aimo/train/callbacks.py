"""Callbacks of training: a record of each step, time and disk limits, probes, and plots below a notebook's
cell; and functions that find, keep and remove the checkpoints that training continues from.
"""

import ctypes
import functools
import io
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from IPython.display import display
from peft import set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import StoppingCriteria, Trainer, TrainerCallback

from aimo.data.prepare import Rows
from aimo.inference.answers import extract
from aimo.inference.errors import AimoError
from aimo.inference.judge import are_correct, is_well_formed
from aimo.inference.settings import Settings
from aimo.inference.storage import append_lines, read_json, write_json, write_lines
from aimo.report import page, plots, tables
from aimo.run.runs import SESSION_END, SESSION_OVER, Run, newest_first, step_of
from aimo.train import models

PROBED = 8  # completions of each probe kept in probes.jsonl

# Transformers 5.17 loads a checkpoint's optimiser onto the process's device. With several CPU processes that
# is `cpu:0`, which torch cannot load to.
torch.serialization.register_package(
    0, lambda _: None, lambda storage, place: storage if place.startswith("cpu:") else None
)


class AlreadyTrained(Exception):
    """Raised before training if the checkpoint is already that of the last step: TRL would train one more."""


class Record(TrainerCallback):
    """Writes each logged record as a line of log.jsonl, with seconds, tokens per second and GPU memory."""

    def __init__(self, run: Run):
        self.path = run.folder / "log.jsonl"
        self.last: tuple[float, float] | None = None  # time and tokens of the previous record

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop the records made after the checkpoint, and continue counting from its seconds."""
        before = state.log_history[-1].get("train_seconds", 0.0) if state.log_history else 0.0
        self.started = time.monotonic() - before
        if state.is_world_process_zero:
            write_lines(self.path, state.log_history)
        if state.global_step >= state.max_steps:
            raise AlreadyTrained

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        record, now = state.log_history[-1], time.monotonic()
        if "num_input_tokens_seen" in record:  # Unsloth's SFT on a GPU has no other count
            record.setdefault("num_tokens", record.pop("num_input_tokens_seen"))
        if (tokens := record.get("num_tokens")) is not None:
            if self.last:
                record["tokens_per_second"] = (tokens - self.last[1]) / (now - self.last[0])
            self.last = now, tokens
        record["train_seconds"] = now - self.started
        if torch.cuda.is_available():
            record["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if state.is_world_process_zero:
            append_lines(self.path, [record])


class Trim(TrainerCallback):
    """Returns freed memory to the system after each step. glibc would keep it in fragments: a gigabyte or
    more if the sizes of tensors change from step to step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # only in glibc
            trim(0)


class Budgets(TrainerCallback):
    """Saves and stops before the stage exceeds its time limit, the run exceeds its disk budget, or the
    session ends. `reason` says what stopped it."""

    def __init__(self, run: Run):
        self.run, self.limits, self.reason = run, run.profile.training, ""
        self.started = self.last_step = time.monotonic()
        self.slowest = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop if less time is left than twice the slowest step: for one more step, and to save."""
        now = time.monotonic()
        if state.global_step > 1:  # the first step compiles and loads
            self.slowest = max(self.slowest, now - self.last_step)
        self.last_step = now
        ends = {}
        if limit := self.limits.time_limit_s:
            ends[f"the time limit of {limit} s"] = self.started + limit
        if SESSION_END in os.environ:
            ends[SESSION_OVER] = float(os.environ[SESSION_END])
        for reason, end in ends.items():
            if main_process_says(now + 2 * self.slowest > end):
                control.should_training_stop = control.should_save = True
                self.reason = reason

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop if one more checkpoint of the newest one's size would exceed the disk budget."""
        if (budget := self.limits.disk_gb) is None:
            return
        folders = self.run.dir, *newest_first(self.run.folder)[:1]
        files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
        if main_process_says(sum(path.stat().st_size for path in files) / 1e9 > budget):
            control.should_training_stop = True
            self.reason = f"the disk budget of {budget} GB"


def main_process_says(decision: bool) -> bool:
    """Return the main process's decision in every process: their clocks and disk readings differ."""
    return broadcast_object_list([decision])[0]


@dataclass(eq=False)
class Probe(TrainerCallback):
    """Answers fixed problems greedily every `probe_steps` steps, and keeps the model that solves most."""

    trainer: Any
    run: Run
    rows: Rows  # with `prompt` and `answer`

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Probe the model that training starts from."""
        if state.global_step == 0:
            self.probe(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Probe, and save the model to `best` unless an earlier one was better."""
        is_last = state.global_step == state.max_steps or control.should_training_stop
        if state.global_step % getattr(self.run.profile, self.run.stage).probe_steps and not is_last:
            return
        earlier = [r["probe/accuracy"] for r in state.log_history if r["step"] and "probe/accuracy" in r]
        figures = self.probe(state.global_step)
        control.should_log = True  # logging the probe cleared it, and the step is not logged yet
        if figures["probe/accuracy"] >= max(earlier, default=0.0):
            best = self.run.folder / "best"
            self.trainer.save_model(str(best))
            if state.is_world_process_zero:
                write_json(best / "probe.json", {"step": state.global_step} | figures)

    def probe(self, step: int) -> dict[str, float]:
        """Log and return the shares of right and well-formed completions, and their mean length in tokens."""
        grpo, solver, prompt = self.run.profile.grpo, self.run.profile.inference, self.run.profile.prompt
        max_tokens = grpo.max_completion_length if grpo else solver.max_tokens or Settings.max_tokens
        tokenizer = self.trainer.processing_class
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        texts = models.complete(model, tokenizer, self.rows, max_tokens)
        golds, kind = [row["answer"] for row in self.rows], self.run.profile.answer_kind
        rights = [verdict is True for verdict in are_correct(texts, golds, prompt.tags, kind)]
        if self.trainer.is_world_process_zero():
            lines = [
                {"step": step, "id": i, "problem": row["prompt"][-1]["content"], "gold": str(row["answer"])}
                | {"right": right, "answer": extract(text, prompt.tags), "text": text}
                for i, (row, text, right) in enumerate(zip(self.rows, texts, rights, strict=True))
            ]
            append_lines(self.run.folder / "probes.jsonl", lines[:PROBED])
        figures = {
            "probe/accuracy": sum(rights) / len(texts),
            "probe/format": sum(is_well_formed(prompt, text) for text in texts) / len(texts),
            "probe/length": sum(len(tokenizer.encode(text)) for text in texts) / len(texts),
        }
        # Not with TRL's `log`, which would add the figures of the step so far and clear them.
        Trainer.log(self.trainer, figures)
        return figures


# ---- Checkpoints


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest complete checkpoint, or None. Remove newer incomplete ones and print their names."""
    for checkpoint in newest_first(folder):
        try:
            read_json(checkpoint / "trainer_state.json", "")  # the trainer writes this file last
            for weights in checkpoint.glob("*.safetensors"):
                with safe_open(weights, "pt"):
                    pass
            return str(checkpoint)
        except (OSError, AimoError, SafetensorError):
            print(f"{checkpoint.name} was not written to its end; the one before is used.")
            shutil.rmtree(checkpoint)
    return None


def keep_until(folder: Path, name: str) -> None:
    """Remove what a stage wrote after its checkpoint `name`, so that training continues from it."""
    step = step_of(folder / name)
    for checkpoint in newest_first(folder):
        if step_of(checkpoint) > step:
            shutil.rmtree(checkpoint)
    keep_best(folder, step)
    for product in ("trained", "model"):
        shutil.rmtree(folder / product, ignore_errors=True)


def keep_best(folder: Path, step: int) -> None:
    """Keep the best probed model, `trained` in a finished stage, unless it was probed after `step`."""
    best, trained = folder / "best", folder / "trained"
    if (trained / "probe.json").exists():
        trained.rename(best)
    probe = best / "probe.json"
    if not probe.exists() or read_json(probe, f"remove {best}")["step"] > step:
        shutil.rmtree(best, ignore_errors=True)


def save_trained(trainer: Any, folder: Path) -> None:
    """Save the adapter or the weights to `trained`: the best probed model's, if any, which is also loaded."""
    best, trained = folder / "best", folder / "trained"
    if not main_process_says((best / "probe.json").exists()):
        trainer.save_model(str(trained))
    elif trainer.is_world_process_zero():
        shutil.rmtree(trained, ignore_errors=True)
        best.rename(trained)
        if (adapter := trained / "adapter_model.safetensors").exists():
            set_peft_model_state_dict(trainer.model, load_file(adapter))
            return
        for file in trained.glob("*.safetensors"):  # not strict: shards, and tied weights saved once
            trainer.model.load_state_dict(load_file(file), strict=False)


# ---- Plots below a notebook's cell

LEAST_S = 2.0  # seconds between two drawings
SHARE = 0.05  # of the time that drawing may take
COUNT_S = 0.5  # seconds between two counts of completions


class Ended(StoppingCriteria):
    """Reports to `tell` how many completions of a batch have ended, and stops none."""

    def __init__(self, ends: Any, tell: Callable[[int, int], None]):
        self.ends, self.tell, self.told = torch.tensor(ends), tell, time.monotonic()
        self.ended: Any = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        last = input_ids[:, -1]  # (completions,)
        self.ended = self.ended | torch.isin(last, self.ends.to(last.device))
        if time.monotonic() - self.told > COUNT_S:  # counting waits for the device
            self.told = time.monotonic()
            self.tell(int(self.ended.sum()), len(last))
        return torch.zeros_like(last, dtype=torch.bool)


class EndedBar(tqdm):  # type: ignore[type-arg]
    """vLLM's progress bar; it reports its count to `tell`."""

    def __init__(self, *args: Any, tell: Callable[[int, int], None], **more: Any):
        self.tell = tell
        super().__init__(*args, **more)

    def display(self, *_: Any, **__: Any) -> None:
        if self.desc.startswith("Processed"):  # not the bar of prompts
            self.tell(self.n, self.total)


class Live(TrainerCallback):
    """Plots below a cell that trains. They disappear when training ends, and stay if it is interrupted."""

    def __init__(self, run: Run, trainer: Any):
        self.run, self.trainer = run, trainer
        self.drawn, self.cost = time.monotonic(), 0.0
        self.interrupted = self.ended = False
        self.count(trainer.accelerator.unwrap_model(trainer.model))
        if vllm := getattr(getattr(trainer, "vllm_generation", None), "llm", None):  # in this process
            self.count(vllm, is_vllm=True)

    def count(self, engine: Any, is_vllm: bool = False) -> None:
        """Make `engine.generate` report how many completions have ended."""
        uncounted = engine.__dict__.setdefault("uncounted", engine.generate)  # kept if the cell runs again
        bar = functools.partial(EndedBar, tell=self.sampled, file=io.StringIO(), disable=False)

        @functools.wraps(uncounted)
        def generate(*args: Any, **given: Any) -> Any:
            if is_vllm:
                return uncounted(*args, **given | {"use_tqdm": bar})
            ends = (given.get("generation_config") or engine.generation_config).eos_token_id
            return uncounted(*args, **given | {"stopping_criteria": [Ended(ends, self.sampled)]})

        engine.generate = generate

    def sampled(self, done: int, total: int) -> None:
        if not self.ended:  # a later cell may sample too
            self.trainer.doing(f"sampling, {done} of {total} completions ended")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        signal.signal(signal.SIGINT, self.interrupt)  # Jupyter restores its own when the cell ends
        self.trainer.tell()
        self.below: Any = display(page.Html(""), display_id=True)

    def interrupt(self, number: int, frame: Any) -> None:
        """Raise KeyboardInterrupt. If a finaliser, say, swallows it, the end of the step raises it again."""
        self.interrupted = True
        signal.default_int_handler(number, frame)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Draw the log so far, at most every two seconds and for at most a twentieth of the time."""
        now = time.monotonic()
        if now - self.drawn < max(LEAST_S, self.cost / SHARE) or len(state.log_history) < 2:
            return
        shown = plots.training([r for r in state.log_history if "step" in r])
        if self.run.stage == "grpo":
            shown = page.join([shown, tables.table(self.trainer.last_samples(2))])
        self.below.update(shown)
        self.drawn = time.monotonic()
        self.cost = self.drawn - now

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ended = True
        self.below.update(page.Html(""))
