"""What a profile can set of each reward: its weight, and its function's options."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from aimo.inference.settings import NonNegative, Positive, strict


@dataclass(config=strict)
class Reward:
    """Any reward; those without a class of their own below have no other setting."""

    weight: float = 1.0
    """What the reward is multiplied by before rewards are added."""


@dataclass(config=strict)
class Cosine(Reward):
    """`cosine`: the rewards of right and wrong answers at length 0 and at `max_len`."""

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
    """Words in a row that count as repeated."""
    max_penalty: Annotated[float, Field(le=0)] = -1.0
    """The reward of nothing but repetition."""
    language: Literal["en", "zh"] = "en"
    """How words are separated: by spaces, or for Chinese by jieba."""


@dataclass(config=strict)
class SoftOverlongPunishment(Reward):
    """`soft_overlong_punishment`: where it begins and where it reaches -1, in tokens."""

    max_completion_len: Positive = 16384
    """Where it reaches -1."""
    soft_punish_cache: NonNegative = 4096
    """How long before that it begins."""


@dataclass(config=strict)
class Code(Reward):
    """`code` and `binary_code`: where programs run, and how many at once."""

    num_parallel: Positive = 2
    """Programs that run at one time."""
    provider_type: Literal["local", "e2b", "morph"] = "local"
    """The sandbox of this machine, or a service whose package is installed besides."""


BatchSize = Annotated[int, Field(ge=-1)]


@dataclass(config=strict)
class IoiCode(Reward):
    """`ioi_code`: where programs run, and how many tests at once."""

    test_batch_size: BatchSize = 1
    """Tests that run at one time; after a failed one no more are. -1: all."""
    provider_type: Literal["piston", "local"] = "piston"
    """The servers of PISTON_ENDPOINTS, or g++ and the sandbox."""


@dataclass(config=strict)
class CfCode(IoiCode):
    """`cf_code`: besides, what a program is worth."""

    scoring_mode: Literal["pass_fail", "partial", "weighted_sum"] = "weighted_sum"
    """Whether all tests pass, the share that passes, or the first plus a tenth of the second."""
    patch_code: bool = False
    """Whether C++ gets the standard headers that it lacks."""


@dataclass(config=strict)
class CodeFormat(Reward):
    """`code_format`: the language of rows without a `language` of their own."""

    language: str = "python"
    """Such as python or cpp."""
