"""Reward functions with TRL's signature, by name. Left out: all that the built-in recipe does not need yet."""

from collections.abc import Callable, Iterable
from typing import Any

from aimo import answers, prompts
from aimo.config import Prompt

Reward = Callable[..., list[float | None]]  # None: not to be scored


def get_reward_funcs(names: Iterable[str], prompt: Prompt) -> list[Reward]:
    """The named rewards for a profile's tags; each is called as `f(completions=…, answer=…)` and returns one float a completion."""
    tags = (prompt.answer_start, prompt.answer_end)

    def accuracy_reward(completions: list[Any], answer: list[str], **_: Any) -> list[float | None]:
        """1 for the right answer, 0 for a wrong one, None where the gold answer cannot be read."""
        verdicts = answers.are_correct([text_of(c) for c in completions], answer, tags)
        return [None if verdict is None else float(verdict) for verdict in verdicts]

    def format_reward(completions: list[Any], **_: Any) -> list[float | None]:
        """1 for one thought, then one answer, in the profile's tags, else 0."""
        return [float(prompts.is_well_formed(prompt, text_of(c))) for c in completions]

    known: dict[str, Reward] = {"accuracy": accuracy_reward, "format": format_reward}
    return [known[name] for name in names]


def text_of(completion: str | list[dict[str, str]]) -> str:
    """A completion's text, whether TRL passes it as text or as a conversation."""
    return completion if isinstance(completion, str) else completion[0]["content"]
