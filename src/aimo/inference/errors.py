"""Errors that a user sees as one line instead of a traceback."""

import contextlib
import difflib
import os
import re
import signal
from collections.abc import Collection, Iterable
from typing import Any


class AimoError(Exception):
    """An error that the user can fix: the message names the thing, the value and the remedy. Exit code 2."""

    def _render_traceback_(self) -> list[str]:  # IPython's hook: a notebook shows the message alone
        return [f"AimoError: {redact(str(self))}"]


class EngineError(AimoError):
    """The engine, or every model server, failed for good. Exit code 1."""


class StageError(Exception):
    """A stage failed for another reason: the message names it and where the traceback is. Exit code 1."""


class SandboxError(AimoError):
    """The sandbox cannot run programs, now or on this machine; work that needs none continues."""


def redact(text: str) -> str:
    """Return a text without credentials: tokens, passwords and the query strings of URLs."""
    text = re.sub(r"\?[\w.%-]+=[^\s'\")]*", "?…", text)
    text = re.sub(r"//[^/\s@]+@", "//…@", text)
    text = re.sub(r"\b(Bearer|Basic)\s+[^\s'\"]{8,}", r"\1 …", text)
    text = re.sub(r"\b(hf_|KGAT_|sk-|eyJ)[\w.-]{8,}", "…", text)
    for name, value in os.environ.items():
        is_secret = re.search("(TOKEN|KEY|SECRET|PASSWORD)$", name) and not os.path.exists(value)
        if is_secret and len(secret := value.strip()) > 7:
            text = text.replace(secret, "…")
    return text


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return an error as one line without secrets, with its type unless it was written for the user."""
    text = redact(" ".join(str(error).split()))[:limit]
    return text if isinstance(error, AimoError) else f"{type(error).__name__}: {text}"


def say(text: object) -> None:
    """Print a line, or skip it if the output is closed or its disk is full."""
    with contextlib.suppress(OSError, ValueError):
        print(text, flush=True)


def listed(columns: Iterable[str]) -> str:
    """Return the names of the first columns, for a one-line error."""
    names = [" ".join(name.split())[:60] for name in columns]
    return ", ".join(names[:20]) + ", …" * (len(names) > 20) or "none"


def explain(error: Any, known: Collection[str] = ()) -> str:
    """Return a pydantic error as `section.key: what is wrong`, with the closest `known` key."""
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "unexpected_keyword_argument":
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        return f"{key}: unknown key" + (f", did you mean {close[0]}?" if close else "")
    if error["type"] == "missing":
        return f"{key}: missing"
    if error["type"] == "value_error":
        return (f"{key}." if key else "") + error["msg"].removeprefix("Value error, ")
    return f"{key}: {error['msg'].replace('Input should be', 'should be')}, not {error['input']!r}"


COMPILED = "a fault in compiled code: another seed or model.backend=transformers may avoid it"
CAUSES = {  # why a signal ends a stage's process, and the remedy
    signal.SIGKILL: "most often because memory ran out: take smaller batches or a smaller model.max_length",
    signal.SIGFPE: "known of bfloat16 on some GPUs (docs/troubleshooting.md): try model.dtype=float32",
    signal.SIGILL: "compiled code for another CPU: try model.backend=transformers",
    signal.SIGSEGV: COMPILED,
    signal.SIGABRT: COMPILED,
    signal.SIGBUS: "no room in memory or on the disk it maps: look at `df`, and at /dev/shm in a container",
}


def explain_exit(status: int | None) -> str:
    """Return how a process ended (a negative status is a signal), the likely cause and the remedy."""
    again = "run again, it continues from the last checkpoint"
    if status is None or status >= 0:
        return f"ended with exit status {status}; {again}"
    cause = CAUSES.get(signal.Signals(-status), "a signal from outside")
    return f"was ended by {signal.Signals(-status).name}, {cause}; {again}"
