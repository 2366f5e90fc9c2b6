"""Training that shows itself in a notebook: a bar, the plots so far, and what GRPO samples.

Unattended, under papermill, nothing is drawn: the cell's last line leaves one plot.
"""

import time
from typing import Any

from IPython.display import HTML, display
from transformers import TrainerCallback

from aimo.report import page, plots, tables
from aimo.run.progress import bar_of
from aimo.run.runs import Run
from aimo.train import compat, tool_use

LEAST_S = 2.0  # between two drawings
SHARE = 0.05  # of the time may go into drawing


class Live(TrainerCallback):
    """The display below a cell that trains. It goes when training ends, and stays when it is stopped."""

    def __init__(self, run: Run, trainer: Any):
        self.run, self.trainer = run, trainer
        self.began = self.drawn = time.monotonic()
        self.first = self.step = self.total = 0
        self.speed, self.phase, self.cost = "", "", 0.0
        trainer.doing = self.doing
        self.bar, self.below = (display(page.Html(""), display_id=True) for _ in range(2))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began, self.first, self.total = time.monotonic(), state.global_step, state.max_steps
        self.show_bar(state.global_step)

    def doing(self, what: str) -> None:
        """Say what a slow step does now."""
        if what != self.phase:
            self.phase = what
            self.show_bar(self.step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.show_bar(state.global_step)

    def show_bar(self, step: int) -> None:
        self.step = step
        note = "; ".join(filter(None, [self.speed, self.phase if step < self.total else ""]))
        label = f"{self.run.stage}: step"
        self.bar.update(HTML(bar_of(label, step, self.total, self.first, self.began, note)))

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Draw the log so far, at most every two seconds and a twentieth of the time."""
        now, record = time.monotonic(), state.log_history[-1]
        if speed := record.get("tokens_per_second"):
            self.speed = f"{speed:,.0f} tokens/s"
        if now - self.drawn < max(LEAST_S, self.cost / SHARE) or len(state.log_history) < 2:
            return
        shown = plots.training([r for r in state.log_history if "step" in r])
        if self.run.stage == "grpo":
            shown = page.join([shown, self.samples()])
        self.below.update(shown)
        self.drawn = time.monotonic()
        self.cost = self.drawn - now

    def samples(self) -> page.Html:
        """Return two completions of the last group with their rewards."""
        logs = compat.last_completions(self.trainer)
        rows = [
            {"completion": tool_use.transcript(logs["completion"][i])[-600:]}
            | {name: f"{values[i]:.2f}" for name, values in logs["rewards"].items()}
            for i in range(-min(2, len(logs["completion"])), 0)
        ]
        return tables.table(rows)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(page.Html(""))
        self.below.update(page.Html(""))
