"""What watches a trained stage: it records every step, stops what goes wrong or takes too long, and probes how good the model is.

Out of scope: plots, which are `views`, made from the records.
"""

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerCallback

from aimo.config import Profile
from aimo.errors import AimoError
from aimo.inference import answers, prompts
from aimo.rewards.functions import text_of
from aimo.runs import read_lines

LOG = "log.jsonl"
SAMPLES = "samples.jsonl"


class Record(TrainerCallback):
    """Writes each logged record as a JSON line with the seconds and tokens a second, and reports the step."""

    def __init__(self, folder: Path, progress: Callable[[int, int], None]):
        self.path, self.progress = folder / LOG, progress
        self.last: tuple[float, float] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the records up to the checkpoint that training goes on from, and none after it."""
        if state.is_world_process_zero:
            self.path.write_text("".join(json.dumps(record) + "\n" for record in state.log_history))

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the newest record."""
        record = state.log_history[-1]
        now, tokens = time.monotonic(), record.get("num_tokens")
        if tokens is not None:
            if self.last:
                record["tokens_per_second"] = (tokens - self.last[1]) / (now - self.last[0])
            self.last = now, tokens
        if torch.cuda.is_available():
            record["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if state.is_world_process_zero:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell how far training is."""
        if state.is_world_process_zero:
            self.progress(state.global_step, state.max_steps)


class Limits(TrainerCallback):
    """Stops and saves before a stage takes more time, or its run more disk, than the profile allows."""

    def __init__(self, profile: Profile, folder: Path):
        self.limits, self.folder = profile.training, folder
        self.started = self.stepped = time.monotonic()
        self.slowest = 0.0
        self.reason = ""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop when another step as slow as the slowest, and saving, would pass the limit."""
        now = time.monotonic()
        if state.global_step > 1:  # the first step compiles and loads
            self.slowest = max(self.slowest, now - self.stepped)
        self.stepped = now
        limit = self.limits.time_limit_s
        if limit and agreed(now - self.started + 2 * self.slowest > limit):
            self.stop(control, f"the time limit of {limit} s")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop when another checkpoint would pass the budget."""
        if self.limits.disk_gb is None:
            return
        if agreed(state.is_world_process_zero and self.next_gb() > self.limits.disk_gb):
            control.should_training_stop = True
            self.reason = f"the disk budget of {self.limits.disk_gb} GB"

    def next_gb(self) -> float:
        """What the run will take after one more checkpoint."""
        newest = max(self.folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime, default=None)
        return (size(self.folder.parent) + size(newest)) / 1e9 if newest else 0.0

    def stop(self, control: Any, reason: str) -> None:
        """End after this step, with a checkpoint."""
        control.should_training_stop = control.should_save = True
        self.reason = reason


def agreed(decision: bool) -> bool:
    """The main process's decision, for all of them: they read different clocks, and a disk at different times."""
    return broadcast_object_list([decision])[0]


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Samples(TrainerCallback):
    """Keeps a few of GRPO's completions with their rewards every so many steps, as JSON lines."""

    def __init__(self, folder: Path, every: int, most: int = 4):
        self.path, self.every, self.most = folder / SAMPLES, every, most
        self.trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the samples up to the checkpoint that training goes on from."""
        if state.is_world_process_zero:
            kept = [line for line in read_lines(self.path) if line["step"] <= state.global_step]
            self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the last completions."""
        if not state.is_world_process_zero or (state.global_step % self.every and state.global_step != 1):
            return
        logs = self.trainer._logs
        with self.path.open("a") as file:
            for i in range(-min(self.most, len(logs["completion"])), 0):
                rewards = {name: values[i] for name, values in logs["rewards"].items()}
                prompt, completion = (text_of(logs[name][i]) for name in ("prompt", "completion"))
                line = {"step": state.global_step, "problem": prompt, "completion": completion} | rewards
                file.write(json.dumps(line | {"advantage": logs["advantages"][i]}, ensure_ascii=False) + "\n")


class Signal(TrainerCallback):
    """Counts the groups in which all completions have one reward; TRL 1.15 takes the rounding of their mean for a difference."""

    trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Correct the share of the step's groups, before it is logged."""
        shares = self.trainer._metrics["train"]["frac_reward_zero_std"]
        if shares:  # none in a step that uses completions again
            values = torch.tensor(
                [list(column) for column in self.trainer._logs["rewards"].values()]
            ).nan_to_num()
            groups = (self.trainer.reward_weights.to(values.device) @ values).view(
                -1, self.trainer.num_generations
            )
            shares[-1] = (groups.amax(1) - groups.amin(1) < 1e-5).float().mean().item()


class Probe(TrainerCallback):
    """Answers fixed problems greedily every so many steps; keeps the model that answered most of them."""

    def __init__(
        self, answer: Callable[[], list[str]], golds: list[str], profile: Profile, every: int, folder: Path
    ):
        self.answer, self.golds, self.profile, self.every, self.best = (
            answer,
            golds,
            profile,
            every,
            folder / "best",
        )
        self.trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Probe the model that training starts from."""
        if state.global_step == 0:
            if state.is_world_process_zero:
                shutil.rmtree(self.best, ignore_errors=True)
            Trainer.log(self.trainer, self.probe())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Probe, and keep the model if it is the best so far."""
        if (
            state.global_step % self.every
            and state.global_step != state.max_steps
            and not control.should_training_stop
        ):
            return
        figures = self.probe()
        Trainer.log(self.trainer, figures)  # GRPOTrainer's would close its own record of the step
        control.should_log = True  # that call has cleared it, and the step's own record is still due
        earlier = [
            r["probe/accuracy"] for r in state.log_history[:-1] if "probe/accuracy" in r and r["step"] > 0
        ]
        if figures["probe/accuracy"] >= max(earlier, default=0.0):
            self.trainer.save_model(str(self.best))
            if state.is_world_process_zero:
                (self.best / "probe.json").write_text(json.dumps({"step": state.global_step} | figures))

    def probe(self) -> dict[str, float]:
        """Shares of well-formed and of right completions, and their mean length in tokens."""
        prompt, texts = self.profile.prompt, self.answer()
        verdicts = answers.are_correct(texts, self.golds, (prompt.answer_start, prompt.answer_end))
        return {
            "probe/accuracy": sum(v is True for v in verdicts) / len(texts),
            "probe/format": sum(prompts.is_well_formed(prompt, text) for text in texts) / len(texts),
            "probe/length": sum(len(self.trainer.processing_class.encode(text)) for text in texts)
            / len(texts),
        }


class Finite(TrainerCallback):
    """Stops at the first loss or gradient that is not finite, with the step, the batch, likely causes and the remedy."""

    def __init__(self, trainer: Any, stage: str, profile: Profile, folder: Path):
        self.stage, self.profile, self.folder = stage, profile, folder
        self.batch = ""
        compute = trainer.compute_loss

        def guarded(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            result = compute(model, inputs, *args, **kwargs)
            loss = float((result[0] if isinstance(result, tuple) else result).detach())
            ids = inputs.get("input_ids", inputs.get("prompt_ids"))
            self.batch = (
                ""
                if ids is None
                else " ".join(trainer.processing_class.decode(ids[0], skip_special_tokens=True).split())[:80]
            )
            self.check("loss", loss, trainer.state.global_step + 1)
            return result

        trainer.compute_loss = guarded

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Check the gradient; in float16 the trainer skips steps whose gradient overflows, and goes on."""
        if not args.fp16:
            self.check("gradient", float(state.log_history[-1].get("grad_norm", 0.0)), state.global_step)

    def check(self, what: str, value: float, step: int) -> None:
        """Raise AimoError for a value that is not finite."""
        if not math.isfinite(value):
            raise AimoError(
                not_finite(self.stage, self.profile, self.folder, f"{what} is {value}", step, self.batch)
            )


def not_finite(stage: str, profile: Profile, folder: Path, what: str, step: int, batch: str) -> str:
    """What to say of it."""
    rate = getattr(profile, stage).learning_rate
    half = (
        "float16 overflows (set model.dtype: bfloat16 or float32), or "
        if profile.model.dtype == "float16"
        else ""
    )
    good = sorted((int(p.name.split("-")[1]) for p in folder.glob("checkpoint-*")), reverse=True)
    kept = (
        f"the last good checkpoint is {folder / f'checkpoint-{good[0]}'}"
        if good
        else "no checkpoint was written yet"
    )
    return (
        f"{stage}: the {what} at step {step}, in the batch of {batch!r}; {half}{stage}.learning_rate {rate:g} is too high "
        f"(try {rate / 4:g}), or a row is broken; {kept}"
    )
