"""Rewards of the text itself: steps that are numbered, words that repeat, and tokens beyond a limit."""

import re
from typing import Any

from aimo.rewards.inputs import Column, Completions, RewardFunc, Rewards, bind, text_of

STEP = re.compile(r"Step \d+:|^(?:\d+\.|[-*])|First,|Second,|Next,|Finally,", re.MULTILINE)


def reasoning_steps_reward(completions: Completions, **_: Any) -> Rewards:
    """A third for each of the first three steps: `Step 1:`, `1.`, `-` or `*` at a line's start, `First,` …"""
    return [min(1.0, len(STEP.findall(text_of(c))) / 3) for c in completions]


def get_repetition_penalty_reward(
    ngram_size: int = 3, max_penalty: float = -1.0, language: str = "en"
) -> RewardFunc:
    """`max_penalty` times the share of n-grams that are repeats (arXiv 2502.03373, C.2).

    Words are separated by spaces (en) or jieba (zh). ValueError for a positive penalty and another language.
    """
    if max_penalty > 0:
        raise ValueError(f"max_penalty {max_penalty} should not be positive")
    if language not in ("en", "zh"):
        raise ValueError(f"language {language!r} is unknown: repetition_penalty splits en and zh")
    return bind(repetition_penalty_reward, ngram_size, max_penalty, language)


def repetition_penalty_reward(
    ngram_size: int, max_penalty: float, default: str, /, completions: Completions, **_: Any
) -> Rewards:
    """0 for a completion that has no n-gram twice; closer to `max_penalty` the more of its n-grams repeat."""

    def words(text: str) -> list[str]:
        if default == "en":
            return text.lower().split()
        import jieba

        jieba.setLogLevel("WARNING")
        return jieba.lcut(text)

    split = [words(text_of(c)) for c in completions]
    ngrams = [list(zip(*(w[i:] for i in range(ngram_size)), strict=False)) for w in split]
    return [(len(set(n)) / len(n) - 1) * -max_penalty if n else 0.0 for n in ngrams]


def get_soft_overlong_punishment(max_completion_len: int, soft_punish_cache: int) -> RewardFunc:
    """0, and down to -1 over the last `soft_punish_cache` tokens of `max_completion_len` (DAPO, eq. 13)."""
    return bind(soft_overlong_punishment_reward, max_completion_len, soft_punish_cache)


def soft_overlong_punishment_reward(
    max_completion_len: int,
    soft_punish_cache: int,
    /,
    completion_ids: Column = None,
    completions: Completions = (),
    **_: Any,
) -> Rewards:
    """TRL's function, of characters where there are no token ids."""
    from trl.rewards import get_soft_overlong_punishment

    counted: Any = [text_of(c) for c in completions] if completion_ids is None else completion_ids
    return get_soft_overlong_punishment(max_completion_len, soft_punish_cache)(counted)
