"""What every reward reads: completions as texts, their lengths, the gold answers, and which are right."""

from collections.abc import Callable, Sequence
from functools import partial, update_wrapper
from typing import Any

from aimo.errors import AimoError
from aimo.inference.answers import DEFAULT_TAGS, are_correct, extract
from aimo.inference.settings import Tags

Completions = Sequence[str | list[dict[str, str]]]
"""n texts, or n conversations whose last message is the completion."""
Column = Sequence[Any] | None
"""n values of a column of the rows, one a completion."""
Rewards = list[float | None]
"""n floats; None for a completion that is not scored."""
RewardFunc = Callable[..., Rewards]


def text_of(completion: str | list[dict[str, str]]) -> str:
    """A completion's text, whether TRL passes it as text or as a conversation."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def lengths(completions: Completions, completion_ids: Column = None, **_: Any) -> list[int]:
    """The n completions' lengths in tokens, or in characters where there are no token ids."""
    return [len(ids) for ids in (map(text_of, completions) if completion_ids is None else completion_ids)]


def read_golds(solution: Column, answer: Column = None, **_: Any) -> list[str]:
    """The n gold answers. `answer` wins over `solution`: in sets with both, the solution is worked out."""
    column = solution if answer is None else answer
    if column is None:
        raise AimoError("rewards: the rows have no gold answer; give them a column `answer` or `solution`")
    return [extract(str(gold)) or str(gold) for gold in column]


def judge(
    completions: Completions, solution: Column, prompt: Tags | None = None, **columns: Any
) -> list[bool | None]:
    """Whether each of n completions has the right answer; None where the gold answer cannot be read."""
    golds = read_golds(solution, **columns)
    return are_correct([text_of(c) for c in completions], golds, prompt or DEFAULT_TAGS)


def bind(function: RewardFunc, *args: Any, **options: Any) -> RewardFunc:
    """A partial that keeps its function's name, for TRL's log, and can be pickled."""
    return update_wrapper(partial(function, *args, **options), function)
