"""Errors that a user sees as one line instead of a traceback."""

import signal

from aimo.inference.errors import AimoError, EngineError, explain

__all__ = ["AimoError", "EngineError", "StageError", "explain", "explain_exit"]


class StageError(Exception):
    """A stage failed for another reason: the message names it and where the traceback is. Exit code 1."""


# What a signal that ended a stage's process means, and what to do.
REMEDIES = {
    signal.SIGKILL: "most often for want of memory: take smaller batches or a smaller model.max_length",
    signal.SIGFPE: "known of bfloat16 on some GPUs (docs/troubleshooting.md): try model.dtype=float32",
    signal.SIGILL: "compiled code for another CPU: try model.backend=transformers",
    signal.SIGSEGV: "a fault in compiled code: another seed or model.backend=transformers may avoid it",
    signal.SIGABRT: "compiled code gave up: another seed or model.backend=transformers may avoid it",
    signal.SIGBUS: "no room in memory or on the disk it maps: look at `df`, and at /dev/shm in a container",
}


def explain_exit(status: int | None) -> str:
    """How a process ended, by its exit status (negative for a signal), the likely cause and the remedy."""
    if status is None or status >= 0:
        return f"ended with exit status {status}; run again, it continues from the last checkpoint"
    cause = REMEDIES.get(signal.Signals(-status), "a signal from outside")
    again = "Run again, it continues from the last checkpoint"
    return f"was ended by {signal.Signals(-status).name}, {cause}. {again}"
