"""The `inference` section of a profile: the solver's settings, and which questions a run answers."""

from dataclasses import asdict, fields, make_dataclass
from typing import Any, get_type_hints

from pydantic.dataclasses import dataclass

from aimo.inference.settings import Positive, Settings, strict

HINTS = get_type_hints(Settings, include_extras=True)
Optional: Any = make_dataclass(
    "Optional", [(f.name, HINTS[f.name] | None, None) for f in fields(Settings)], frozen=True
)
"""The keys of `Settings`, each of them null where it is not written."""


@dataclass(config=strict, frozen=True)
class Inference(Optional):
    """The keys of `Settings`, for notebook and kernel. Null: the model folder's own, else the default.

    Where a stage trains, `tags` and `max_length` that are null come from the sections `prompt` and `model`.
    """

    test: str | None = None
    """A CSV with `id` and `problem` (AIMO 3) or `question` (AIMO 2); null takes built-in problems."""
    test_rows: Positive = 10
    """How many built-in problems stand in for a test file."""

    @property
    def written(self) -> dict[str, Any]:
        """The solver's keys that are not null."""
        return {key: value for key, value in asdict(self).items() if key in HINTS and value is not None}
