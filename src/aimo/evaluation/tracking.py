"""The figures of pages in TensorBoard, Trackio or W&B, where a profile's `training.log_to` says so.

Out of scope: the figures of training steps, which TRL sends there itself.
"""

import importlib
from pathlib import Path
from typing import Any

from aimo.errors import AimoError


def log(to: str, folder: Path, name: str, figures: dict[str, float]) -> None:
    """Send figures, by names such as `aime24/pass@1`, to a tracker; nothing to do for "none".

    TensorBoard's files go into `folder`. AimoError when the tracker's package is missing.
    """
    if to == "none":
        return
    if to == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(folder / "tensorboard")) as writer:
            for key, value in figures.items():
                writer.add_scalar(key, value)
        return
    tracker = load(to)
    tracker.init(project="aimo", name=name)
    tracker.log(figures)
    tracker.finish()


def load(to: str) -> Any:
    """The module of Trackio or W&B, whose calls are the same."""
    try:
        return importlib.import_module(to)
    except ImportError:
        raise AimoError(f"training.log_to: {to} is not installed; install it, or take tensorboard") from None


def flat(benchmarks: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Figures of benchmarks or models by `NAME/FIGURE`; of those with an interval, the value."""
    return {
        f"{name}/{key}": float(value[0] if isinstance(value, list) else value)
        for name, figures in benchmarks.items()
        for key, value in figures.items()
        if isinstance(value, int | float) or (isinstance(value, list) and len(value) == 3)
    }
