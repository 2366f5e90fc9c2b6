"""What is said in one line instead of a traceback."""


class AimoError(Exception):
    """What a user can put right: the message names the thing, the value and the remedy. Exit code 2."""

    def _render_traceback_(self) -> list[str]:
        """IPython's hook: a notebook shows the message alone."""
        return [f"AimoError: {self}"]
