"""The options of each reward function, and the registry of their names."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from aimo.errors import explain
from aimo.inference.settings import NonNegative, Positive, strict


@dataclass(config=strict)
class Reward:
    """A reward function of `aimo.rewards.functions`; those without a class of their own below have no other setting."""

    weight: float = 1.0


@dataclass(config=strict)
class Cosine(Reward):
    """`cosine`: what right and wrong answers are worth at length 0 and at `max_len`."""

    min_value_wrong: float = -1.0
    """Short and wrong."""
    max_value_wrong: float = -0.5
    """Long and wrong."""
    min_value_correct: float = 0.5
    """Long and right."""
    max_value_correct: float = 1.0
    """Short and right."""
    max_len: Positive = 1000
    """In tokens."""


@dataclass(config=strict)
class RepetitionPenalty(Reward):
    """`repetition_penalty`: a share of `max_penalty`."""

    ngram_size: Positive = 3
    max_penalty: Annotated[float, Field(le=0)] = -1.0
    language: Literal["en", "zh"] = "en"
    """How words are told apart: by spaces, or for Chinese by jieba."""


@dataclass(config=strict)
class SoftOverlongPunishment(Reward):
    """`soft_overlong_punishment`: from 0 to -1 over the last `soft_punish_cache` tokens before `max_completion_len`."""

    max_completion_len: Positive = 16384
    soft_punish_cache: NonNegative = 4096


@dataclass(config=strict)
class Code(Reward):
    """`code` and `binary_code`: where programs run, and how many at once."""

    num_parallel: Positive = 2
    provider_type: Literal["local", "e2b"] = "local"


@dataclass(config=strict)
class CodeFormat(Reward):
    """`code_format`: the language of rows without a `language` of their own."""

    language: str = "python"


PLAIN_REWARDS = "accuracy format tag_count reasoning_steps length format_exact format_approximate check_answer check_numbers"
REWARDS: dict[str, type[Reward]] = dict.fromkeys(PLAIN_REWARDS.split(), Reward) | {
    "cosine": Cosine,
    "repetition_penalty": RepetitionPenalty,
    "soft_overlong_punishment": SoftOverlongPunishment,
    "code": Code,
    "binary_code": Code,
    "code_format": CodeFormat,
}


def read_rewards(values: Mapping[str, Any]) -> dict[str, Reward]:
    """`{name: weight}` or `{name: {weight: …, option: …}}` as settings; ValueError for unknown names and options, with the known ones."""
    read = {}
    for name, value in values.items():
        if name not in REWARDS:
            why = (
                "needs a Piston server and is not built yet"
                if name in ("ioi_code", "cf_code")
                else "is unknown"
            )
            raise ValueError(f"{name}: reward {name!r} {why}; use one of {', '.join(REWARDS)}")
        options = (
            vars(value)
            if isinstance(value, Reward)
            else value
            if isinstance(value, dict)
            else {"weight": value}
        )
        known = REWARDS[name].__dataclass_fields__  # type: ignore[attr-defined]
        if unknown := options.keys() - known:
            raise ValueError(
                f"{name}: no option {', '.join(map(repr, sorted(unknown)))}; it has {', '.join(known)}"
            )
        try:
            read[name] = REWARDS[name](**options)
        except ValidationError as e:
            raise ValueError(f"{name}." + "; ".join(explain(error) for error in e.errors())) from None
    return read
