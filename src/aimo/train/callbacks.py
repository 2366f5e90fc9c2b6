"""Callbacks of every trained stage: the record of each step, limits of time and disk, probes, and broken
losses.

Import this module after Unsloth. Out of scope: plots of the records, which are in `report.plots`.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from aimo.config import Profile
from aimo.errors import AimoError
from aimo.inference import prompts
from aimo.inference.answers import are_correct
from aimo.inference.storage import append_lines, read_lines, write_lines
from aimo.rewards import text_of
from aimo.run import runs
from aimo.run.runs import SESSION_END, SESSION_OVER
from aimo.train import checkpoints, compat
from aimo.train.tool_use import transcript

LOG = "log.jsonl"
SAMPLES = "samples.jsonl"
SAMPLES_KEPT = 4  # completions of a step
DIFFERENCE = "sampling/sampling_logp_difference/mean"
BOUND = "sampling/sampling_logp_difference/bound"
LEAST_BOUND = 0.02
"""Differences of up to this, in nats, count as rounding. bfloat16 beside float32 on the tiny base: 0.001 to
0.004."""


class AlreadyTrained(Exception):
    """Raised before the first step when the checkpoint is of the last one: TRL would train one more."""


class Record(TrainerCallback):
    """Writes each logged record as a JSON line, with seconds, tokens per second and GPU memory; reports the
    step."""

    def __init__(self, folder: Path, progress: Callable[[int, int], None]):
        self.path, self.progress = folder / LOG, progress
        self.started = time.monotonic()
        self.seconds_before = 0.0
        """Training seconds up to the checkpoint that training continues from."""
        self.last: tuple[float, float] | None = None
        """Time and tokens of the record before."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop the records after the checkpoint that training continues from."""
        self.started = time.monotonic()
        if state.log_history:
            self.seconds_before = state.log_history[-1].get("train_seconds", 0.0)
        if state.is_world_process_zero:
            write_lines(self.path, state.log_history)
        if state.global_step >= state.max_steps:
            raise AlreadyTrained

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the newest record."""
        record = state.log_history[-1]
        now, tokens = time.monotonic(), record.get("num_tokens")
        if tokens is not None:
            if self.last:
                record["tokens_per_second"] = (tokens - self.last[1]) / (now - self.last[0])
            self.last = now, tokens
        record["train_seconds"] = self.seconds_before + now - self.started
        if torch.cuda.is_available():
            record["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if state.is_world_process_zero:
            append_lines(self.path, [record])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report how far training is."""
        if state.is_world_process_zero:
            self.progress(state.global_step, state.max_steps)


class Limits(TrainerCallback):
    """Stops and saves before a stage takes more time, or its run more disk, than the profile allows, and
    before the session ends."""

    def __init__(self, profile: Profile, folder: Path):
        self.limits, self.folder = profile.training, folder
        self.started = self.last_step = time.monotonic()
        self.session_end = float(os.environ.get(SESSION_END, "inf"))
        self.slowest = 0.0
        self.reason = ""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop when another step as slow as the slowest, and saving, would pass a limit of time."""
        now = time.monotonic()
        if state.global_step > 1:  # the first step compiles and loads
            self.slowest = max(self.slowest, now - self.last_step)
        self.last_step = now
        limit = self.limits.time_limit_s
        if limit and main_process_says(now - self.started + 2 * self.slowest > limit):
            control.should_training_stop = control.should_save = True
            self.reason = f"the time limit of {limit} s"
        if SESSION_END in os.environ and main_process_says(now + 2 * self.slowest > self.session_end):
            control.should_training_stop = control.should_save = True
            self.reason = SESSION_OVER

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop when another checkpoint would pass the disk budget."""
        budget = self.limits.disk_gb
        if budget is None:
            return
        if main_process_says(gb_after_next(self.folder) > budget):
            control.should_training_stop = True
            self.reason = f"the disk budget of {budget} GB"


def gb_after_next(folder: Path) -> float:
    """Gigabytes of the run that a stage's folder is in, with one more checkpoint like the newest; 0 before
    the first."""
    written = runs.newest_first(folder)
    return (bytes_of(folder.parent) + bytes_of(written[0])) / 1e9 if written else 0.0


def bytes_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main_process_says(decision: bool) -> bool:
    """The main process's decision, in all processes: they read different clocks, and the disk at different
    times."""
    return broadcast_object_list([decision])[0]


class Samples(TrainerCallback):
    """Keeps a few of GRPO's completions with their rewards every `every` steps, as JSON lines."""

    def __init__(self, trainer: Any, folder: Path, every: int):
        self.trainer, self.path, self.every = trainer, folder / SAMPLES, every

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop the samples after the checkpoint that training continues from."""
        if state.is_world_process_zero:
            kept = [line for line in read_lines(self.path) if line["step"] <= state.global_step]
            write_lines(self.path, kept)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the last completions."""
        due = state.global_step == 1 or state.global_step % self.every == 0
        if not (due and state.is_world_process_zero):
            return
        logs = compat.last_completions(self.trainer)
        lines = []
        for i in range(-min(SAMPLES_KEPT, len(logs["completion"])), 0):
            line = {"step": state.global_step, "problem": text_of(logs["prompt"][i])}
            line |= {"completion": transcript(logs["completion"][i])}
            line |= {name: rewards[i] for name, rewards in logs["rewards"].items()}
            lines.append(line | {"advantage": logs["advantages"][i]})
        append_lines(self.path, lines)


class Mismatch(TrainerCallback):
    """Warns when the log-probabilities of vLLM and of the trainer differ by more than rounding.

    TRL scores the completions of a step with both, right after it has sent vLLM the weights of the step, so
    that weights which did not arrive show at once. At the first step both have the weights that the stage
    starts from; what they differ by there is rounding.
    """

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Add the bound to the newest record, and warn of the first step in a row that is above it."""
        differences = [record[DIFFERENCE] for record in state.log_history if DIFFERENCE in record]
        record = state.log_history[-1]
        if DIFFERENCE not in record:
            return
        record[BOUND] = bound = max(LEAST_BOUND, 4 * differences[0])
        was_above = len(differences) > 1 and differences[-2] > bound
        if record[DIFFERENCE] > bound and not was_above and state.is_world_process_zero:
            print(
                f"Step {state.global_step}: the log-probabilities of vLLM and of the trainer differ by "
                f"{record[DIFFERENCE]:.3f} on average, by {differences[0]:.3f} at the start. vLLM may sample "
                "with the weights of an earlier step: docs/troubleshooting.md."
            )


class Probe(TrainerCallback):
    """Answers fixed problems greedily every `every` steps, and keeps in `best` the model that solved most of
    them.

    `answer` returns a completion for each of the problems, whose answers are `golds`.
    """

    def __init__(
        self,
        trainer: Any,
        answer: Callable[[], list[str]],
        golds: list[str],
        profile: Profile,
        every: int,
        folder: Path,
    ):
        self.trainer, self.answer, self.golds = trainer, answer, golds
        self.prompt, self.every, self.folder = profile.prompt, every, folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Probe the model that training starts from."""
        if state.global_step == 0:
            if state.is_world_process_zero:
                checkpoints.keep_best(self.folder, step=0)
            self.trainer.log_apart(self.probe())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Probe, and keep the model if none before was better."""
        is_last = state.global_step == state.max_steps or control.should_training_stop
        if state.global_step % self.every and not is_last:
            return
        figures = self.probe()
        self.trainer.log_apart(figures)
        control.should_log = True  # the call above cleared it, and the step's record is still to come
        trained = [record for record in state.log_history[:-1] if record["step"] > 0]
        earlier = [record["probe/accuracy"] for record in trained if "probe/accuracy" in record]
        if figures["probe/accuracy"] >= max(earlier, default=0.0):
            checkpoints.save_best(self.trainer, self.folder, figures)

    def probe(self) -> dict[str, float]:
        """Shares of right and of well-formed completions, and their mean length in tokens."""
        texts = self.answer()
        right = sum(verdict is True for verdict in are_correct(texts, self.golds, self.prompt.tags))
        well_formed = sum(prompts.is_well_formed(self.prompt, text) for text in texts)
        tokens = sum(len(self.trainer.processing_class.encode(text)) for text in texts)
        return {
            "probe/accuracy": right / len(texts),
            "probe/format": well_formed / len(texts),
            "probe/length": tokens / len(texts),
        }


class Finite(TrainerCallback):
    """Stops at the first loss or gradient that is not finite. The trainer calls `check_loss` with each
    loss."""

    def __init__(self, trainer: Any, stage: str, profile: Profile, folder: Path):
        self.trainer, self.stage, self.profile, self.folder = trainer, stage, profile, folder
        self.row: Sequence[int] = []
        """Token ids of the first row of the last batch."""

    def check_loss(self, loss: float, row: Sequence[int]) -> None:
        """Check the loss of a batch that starts with `row`."""
        self.row = row
        self.check("loss", loss, self.trainer.state.global_step + 1)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Check the gradient. In float16 the trainer itself skips steps whose gradient overflows."""
        if not args.fp16:
            self.check("gradient", float(state.log_history[-1].get("grad_norm", 0.0)), state.global_step)

    def check(self, what: str, value: float, step: int) -> None:
        """Raise AimoError for a value that is not finite, with the batch, likely causes and the remedy."""
        if math.isfinite(value):
            return
        text = self.trainer.processing_class.decode(self.row, skip_special_tokens=True)
        batch = " ".join(text.split())[:80]
        where = f"the {what} is {value} at step {step}, in the batch of {batch!r}"
        raise AimoError(f"{self.stage}: {where}; {remedy(self.stage, self.profile, self.folder)}")


def remedy(stage: str, profile: Profile, folder: Path) -> str:
    """Likely causes of a loss that is not finite, what to set, and the last good checkpoint."""
    rate = getattr(profile, stage).learning_rate
    causes = f"{stage}.learning_rate {rate:g} is too high, or a row is broken"
    change: dict[str, Any] = {f"{stage}.learning_rate": rate / 4}
    if profile.model.dtype == "float16":
        causes, change = f"float16 overflows, or {causes}", {"model.dtype": "float32"}
    good = runs.newest_first(folder)
    kept = f"the last good checkpoint is {good[0]}" if good else "no checkpoint was written yet"
    return f"{causes}; {kept}; {runs.continue_with(folder.parent, profile, stage, change)}"
