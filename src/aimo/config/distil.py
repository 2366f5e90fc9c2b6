"""The `distil` section of a profile: which problems a teacher answers, how, and which answers are kept.

The keys of Open-R1's `generate_reasoning.py` have its names. Out of scope: the server's own settings, which
`aimo serve` takes from the `inference` section.
"""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from aimo.config.data import Mixture
from aimo.inference.settings import NonNegative, Positive, Share, strict

Price = Annotated[float, Field(ge=0)]


@dataclass(config=strict)
class Reject:
    """Which completions are kept: right and finished ones, and of those the ones that these keys allow."""

    max_per_problem: Positive | None = None
    """Keep at most so many completions of a problem."""
    prefer: Literal["first", "shorter", "diverse"] = "first"
    """Which ones: the first, the shortest, or the shortest and then those that share the fewest word triples
    with the ones already kept."""
    pass_rate: tuple[Share, Share] = (0.0, 1.0)
    """Keep problems whose share of right completions lies within these bounds; ones that the teacher always
    solves teach little."""

    @model_validator(mode="after")
    def check(self) -> "Reject":
        """Refuse what the types alone allow."""
        low, high = self.pass_rate
        if low > high:
            raise ValueError(f"pass_rate: {low} is above {high}; write the smaller one first")
        return self


@dataclass(config=strict)
class Distil(Mixture):
    """Problems from a source or a mixture, the servers that answer them, and how they are asked."""

    api_addr: list[str] = field(default_factory=list)
    """OpenAI-compatible servers of one model, such as 127.0.0.1:8000 or https://api.deepseek.com. Empty: the
    stage serves `model` itself, as `aimo serve` does."""
    model: str | None = None
    """The teacher's name on the servers, or the model folder or hub id to serve. Null takes the only one that
    the servers have, or `model.base`."""
    num_generations: Positive = 4
    """Completions of a problem; more of them later continue the same file."""
    system: str = ""
    """The system message; empty sends none."""
    prompt_template: Annotated[str, Field(pattern=r"\{prompt\}")] = (
        "You will be given a problem. Please reason step by step, and put your final answer within "
        "\\boxed{}:\n{prompt}"
    )
    """The user message; `{prompt}` is replaced by the problem."""
    temperature: Annotated[float, Field(ge=0)] = 0.6
    """0 always takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Sample from the likeliest tokens that together have this probability."""
    max_tokens: Positive = 16384
    """Tokens of a completion."""
    max_concurrent: Positive = 1000
    """Requests in flight over all servers."""
    timeout: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds that a request may take. When no server has answered for so long, the run ends."""
    retries: NonNegative = 3
    """How often a sample is asked for again after a fault of its own, such as a broken reply."""
    input_price: Price = 0.0
    """What a million tokens of prompts cost."""
    output_price: Price = 0.0
    """What a million tokens of completions cost."""
    reject: Reject = field(default_factory=Reject)
    """What the stage keeps of them, for `data.sft: {source: distil}`."""
