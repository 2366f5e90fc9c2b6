"""Errors that a user sees as one line instead of a traceback."""

from aimo.inference.errors import AimoError, EngineError, explain, explain_exit

__all__ = ["AimoError", "EngineError", "StageError", "explain", "explain_exit"]


class StageError(Exception):
    """A stage failed for another reason: the message names it and where the traceback is. Exit code 1."""
