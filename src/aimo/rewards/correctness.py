"""Rewards of the right answer, alone or together with the completion's length."""

import math
from collections import defaultdict
from typing import Any

from aimo.rewards.inputs import Column, Completions, RewardFunc, Rewards, bind, judge, lengths


def accuracy_reward(completions: Completions, solution: Column = None, **columns: Any) -> Rewards:
    """1 for the right answer, 0 for a wrong one, None where the gold answer cannot be read."""
    return [None if right is None else float(right) for right in judge(completions, solution, **columns)]


def len_reward(
    completions: Completions, solution: Column = None, prompts: Column = None, **columns: Any
) -> Rewards:
    """From 0.5 for a prompt's shortest completion to -0.5 for its longest; wrong ones get 0 at most.

    Source: Kimi 1.5. An unreadable gold answer counts every completion as right. Without `prompts`, all
    completions are compared.
    """
    sizes = lengths(completions, **columns)
    groups = [str(prompt) for prompt in prompts or [None] * len(sizes)]
    members: dict[str, list[int]] = defaultdict(list)
    for group, size in zip(groups, sizes, strict=True):
        members[group].append(size)
    rewards: Rewards = []
    for right, group, size in zip(judge(completions, solution, **columns), groups, sizes, strict=True):
        low, high = min(members[group]), max(members[group])
        reward = 0.5 - (size - low) / (high - low) if high > low else 0.0
        rewards.append(min(0.0, reward) if right is False else reward)
    return rewards


def get_cosine_scaled_reward(
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
    max_len: int = 1000,
) -> RewardFunc:
    """Right answers earn less, and wrong ones lose less, the longer they are (arXiv 2502.03373, C.1).

    The reward follows half a cosine from length 0 to `max_len`, in tokens.
    """
    right, wrong = (max_value_correct, min_value_correct), (min_value_wrong, max_value_wrong)
    return bind(cosine_scaled_reward, right, wrong, max_len)


def cosine_scaled_reward(
    correct: tuple[float, float],
    wrong: tuple[float, float],
    max_len: int,
    /,
    completions: Completions,
    solution: Column = None,
    **columns: Any,
) -> Rewards:
    """From the first of a pair at length 0 to the second at `max_len` and beyond; None as in `accuracy`."""
    verdicts, sizes = judge(completions, solution, **columns), lengths(completions, **columns)
    rewards: Rewards = []
    for right, size in zip(verdicts, sizes, strict=True):
        short, long = correct if right else wrong
        share = (1 + math.cos(math.pi * min(size / max_len, 1))) / 2
        rewards.append(None if right is None else long + (short - long) * share)
    return rewards
