"""The `inference` section of a profile: the solver's settings, and which questions a run answers."""

from dataclasses import asdict, fields
from typing import Any

from pydantic.dataclasses import dataclass

from aimo.inference.settings import (
    Format,
    NonNegative,
    Positive,
    Share,
    Tag,
    Tags,
    Temperature,
    ToolSeconds,
    TopP,
    User,
    Variant,
    Weight,
    strict,
)


@dataclass(config=strict, frozen=True)
class SettingsSection:
    """The keys of `Settings`, which says what they mean. Null: the model folder's own, else the default.

    Where a stage trains, `tags` and `max_length` that are null come from the sections `prompt` and `model`.
    """

    format: Format | None = None
    system: str | None = None
    user: User | None = None
    variants: list[Variant] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    samples: Positive | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    min_p: Share | None = None
    top_k: NonNegative | None = None
    stop: list[Tag] | None = None
    max_tokens: Positive | None = None
    max_length: Positive | None = None
    tags: Tags | None = None
    thinking: bool | None = None
    tools: Share | None = None
    tool_turns: Positive | None = None
    tool_seconds: ToolSeconds | None = None
    tool_parser: str | None = None
    weight: Weight | None = None
    confidence: bool | None = None
    discount_trivial: bool | None = None
    gpu_memory: Share | None = None
    vllm: dict[str, Any] | None = None


@dataclass(config=strict, frozen=True)
class Inference(SettingsSection):
    """The solver's settings, and which questions a run answers."""

    test: str | None = None
    """A CSV with `id` and `problem` (AIMO 3) or `question` (AIMO 2); null takes built-in problems."""
    test_rows: Positive = 10
    """How many built-in problems stand in for a test file."""

    @property
    def written(self) -> dict[str, Any]:
        """The solver's keys that are not null."""
        values = asdict(self)
        return {f.name: values[f.name] for f in fields(SettingsSection) if values[f.name] is not None}
