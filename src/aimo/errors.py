"""Errors that a user sees as one line instead of a traceback."""

import difflib
from collections.abc import Collection
from typing import Any

from aimo.inference.errors import AimoError

__all__ = ["AimoError", "StageError", "explain"]


class StageError(Exception):
    """A stage that failed for another reason: the message names it and where the traceback is. Exit code 1."""


def explain(error: Any, known: Collection[str] = ()) -> str:
    """One pydantic error as `section.key: what is wrong`."""
    key = ".".join(str(part) for part in error["loc"])
    match error["type"]:
        case "unexpected_keyword_argument":
            close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
            return f"{key}: unknown key" + (f", did you mean {close[0]}?" if close else "")
        case "missing":
            return f"{key}: missing"
        case "value_error":
            return (f"{key}." if key else "") + error["msg"].removeprefix("Value error, ")
        case _:
            message = error["msg"].replace("Input should be", "should be")
            return f"{key}: {message}, not {error['input']!r}"
