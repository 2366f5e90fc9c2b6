"""The `inference` section of a profile: the solver's settings, and which questions a run answers."""

from pydantic.dataclasses import dataclass

from aimo.inference.settings import Positive, Settings, Tags, strict


@dataclass(config=strict, frozen=True)
class Inference(Settings):
    """Sampling and voting, in the notebook and in the kernel."""

    test: str | None = None
    """A CSV with `id` and `problem` (AIMO 3) or `question` (AIMO 2); null takes built-in problems."""
    test_rows: Positive = 10
    """How many built-in problems stand in for a test file."""
    tags: Tags | None = None  # type: ignore[assignment]
    """Null takes the tags of the `prompt` section; of others, those left out take the defaults of `Tags`."""
