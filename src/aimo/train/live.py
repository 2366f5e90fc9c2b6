"""Training that shows itself in a notebook: under the bar of `run.progress` the plots so far, and what GRPO
samples.

Unattended, under papermill, nothing is drawn: the cell's last line leaves one plot.
"""

import functools
import io
import signal
import time
from collections.abc import Callable
from typing import Any

import torch
from IPython.display import display
from tqdm import tqdm
from transformers import StoppingCriteria, TrainerCallback

from aimo.report import page, plots, tables
from aimo.run.runs import Run
from aimo.train import grpo

LEAST_S = 2.0  # between two drawings
SHARE = 0.05  # of the time may go into drawing
COUNT_S = 0.5  # between two counts of completions


class Ended(StoppingCriteria):
    """Counts the completions of a batch that have ended, for `tell`; it stops none."""

    def __init__(self, ends: Any, tell: Callable[[int, int], None]):
        self.ends, self.tell, self.told = torch.tensor(ends), tell, time.monotonic()
        self.ended: Any = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        last = input_ids[:, -1]  # (completions,)
        self.ended = self.ended | torch.isin(last, self.ends.to(last.device))
        if time.monotonic() - self.told > COUNT_S:  # each look waits for the device
            self.told = time.monotonic()
            self.tell(int(self.ended.sum()), len(last))
        return torch.zeros_like(last, dtype=torch.bool)


class EndedBar(tqdm):  # type: ignore[type-arg]
    """vLLM's bar, whose count `tell` gets."""

    def __init__(self, *args: Any, tell: Callable[[int, int], None], **more: Any):
        self.tell = tell
        super().__init__(*args, **more)

    def display(self, *_: Any, **__: Any) -> None:
        if self.desc.startswith("Processed"):  # not the bar of prompts
            self.tell(self.n, self.total)


class Live(TrainerCallback):
    """The plots below a cell that trains. They go when training ends, and stay when it is stopped."""

    below: Any

    def __init__(self, run: Run, trainer: Any):
        self.run, self.trainer = run, trainer
        self.drawn, self.cost = time.monotonic(), 0.0
        self.interrupted = self.ended = False
        self.count(trainer.accelerator.unwrap_model(trainer.model), self.by_transformers)
        if vllm := getattr(getattr(trainer, "vllm_generation", None), "llm", None):  # in this process
            self.count(vllm, self.by_vllm)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        signal.signal(signal.SIGINT, self.interrupt)  # until the cell ends, when Jupyter sets its own again
        self.trainer.tell()
        self.below = display(page.Html(""), display_id=True)

    def interrupt(self, number: int, frame: Any) -> None:
        """Stop here; where the exception is swallowed, as in a finaliser, the end of the step raises it."""
        self.interrupted = True
        signal.default_int_handler(number, frame)

    def sampled(self, done: int, total: int) -> None:
        if not self.ended:  # a later cell may sample too
            self.trainer.doing(f"sampling, {done} of {total} completions ended")

    def count(self, engine: Any, keywords: Callable[..., dict[str, Any]]) -> None:
        """Let `engine.generate` take further keywords, which count the completions that have ended."""
        uncounted = engine.__dict__.setdefault("uncounted", engine.generate)  # once, if the cell runs again

        @functools.wraps(uncounted)
        def generate(*args: Any, **given: Any) -> Any:
            return uncounted(*args, **given | keywords(engine, **given))

        engine.generate = generate

    def by_transformers(self, model: Any, **given: Any) -> dict[str, Any]:
        config = given.get("generation_config") or model.generation_config
        return {"stopping_criteria": [Ended(config.eos_token_id, self.sampled)]}

    def by_vllm(self, _: Any, **given: Any) -> dict[str, Any]:
        return {"use_tqdm": functools.partial(EndedBar, tell=self.sampled, file=io.StringIO(), disable=False)}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Draw the log so far, at most every two seconds and a twentieth of the time."""
        now = time.monotonic()
        if now - self.drawn < max(LEAST_S, self.cost / SHARE) or len(state.log_history) < 2:
            return
        shown = plots.training([r for r in state.log_history if "step" in r])
        if self.run.stage == "grpo":
            shown = page.join([shown, tables.table(grpo.last_samples(self.trainer, 2))])
        self.below.update(shown)
        self.drawn = time.monotonic()
        self.cost = self.drawn - now

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ended = True
        self.below.update(page.Html(""))
