"""How a model is asked and its samples voted: prompt, tags, sampling, tools, weights. A profile's `inference` section is read into this."""

import json
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

SETTINGS = "aimo.json"

strict = ConfigDict(extra="forbid", strict=True)
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(config=strict)
class Prompt:
    """Tags, system prompt and chat template; all are saved with the model."""

    system: str = ""
    template: str = "plain"
    """`plain` (Unsloth's recipe), `chatml` (Qwen, Open-R1), `model` for the base's own, or a path to a Jinja file."""
    eos_token: str | None = None
    """The token that ends a reply, such as <|im_end|>; null takes the tokenizer's."""
    prefill: bool = True
    """Whether a prompt ends in the opening tag, so that a completion starts inside it."""
    think_start: Annotated[str, Field(min_length=1)] = "<start_working_out>"
    think_end: Annotated[str, Field(min_length=1)] = "<end_working_out>"
    answer_start: Annotated[str, Field(min_length=1)] = "<SOLUTION>"
    answer_end: Annotated[str, Field(min_length=1)] = "</SOLUTION>"


@dataclass(config=strict)
class Inference:
    """Sampling and voting, in the notebook and in the kernel."""

    test: str | None = None
    """A CSV with `id` and `problem` (AIMO 3) or `question` (AIMO 2); null takes built-in held-out problems."""
    test_rows: Positive = 10
    """How many built-in problems stand in for a test file."""
    samples: Positive = 16
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Share = 0.0
    max_tokens: Positive = 512
    """Tokens of one completion."""
    tools: Share = 0.0
    """The share of samples whose Python is run in the sandbox, and its output fed back."""
    tool_turns: Positive = 4
    """How many programs of a sample are run."""
    tool_parser: str | None = None
    """vLLM's parser of the model's own tool calls (`hermes` for Qwen); null runs its fenced Python blocks."""
    weight: Literal["equal", "logprob", "entropy", "length"] = "equal"
    """What a vote weighs by (docs/voting.md)."""
    discount_trivial: bool = False
    """Whether 0, 1 and the numbers of the statement count half."""
    gpu_memory: Share = 0.9
    """Share of the GPU's memory that vLLM takes; on a CPU it takes 1 GiB."""
    vllm: dict[str, Any] = field(default_factory=dict)
    """vLLM's engine arguments by its own names: tensor_parallel_size, kv_cache_dtype, quantization, speculative_config …"""


@dataclass(frozen=True)
class Settings:
    """How a model wants to be sampled; a trained model folder carries it as aimo.json."""

    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 16384
    max_length: int | None = None
    """Tokens of prompt and completion together; None is the model's own limit."""
    answer_tags: tuple[str, str] = ("<SOLUTION>", "</SOLUTION>")
    think_end: str = "</think>"
    thinking: bool = False
    """Whether a prompt ends inside a thought, so that a completion starts there."""
    tools: float = 0.0
    """The share of samples whose Python is run, and its output fed back (tool-integrated reasoning)."""
    tool_turns: int = 4
    """How many programs of a sample are run."""
    tool_parser: str | None = None
    """vLLM's parser of the model's own tool calls (`hermes` for Qwen); None runs its fenced Python blocks."""
    weight: str = "equal"
    """What a vote weighs by: equal, logprob, entropy or length (`aimo.inference.voting`)."""
    discount_trivial: bool = False
    """Whether 0, 1 and the numbers of the statement count half."""
    vllm: dict[str, Any] = field(default_factory=dict)
    """vLLM's own engine arguments, such as tensor_parallel_size."""


def read_settings(model: Path) -> Settings:
    """The settings a model folder carries, or the defaults."""
    path = model / SETTINGS
    values = json.loads(path.read_text()) if path.exists() else {}
    if "answer_tags" in values:
        values["answer_tags"] = tuple(values["answer_tags"])
    return Settings(**values)
