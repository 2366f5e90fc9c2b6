"""Rewards for mathematics, with TRL's signature: the right answer, the length, the format and the text.

A reward takes n completions, and their rows' columns as keywords. It returns n floats, with None for a
completion that it does not score. `prompt` holds a profile's tags; a completion may lack the first one if the
prompt ends in it. Without `prompt`, rewards expect Open-R1's layout: each tag on its own line.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from aimo.inference.answers import DEFAULT_TAGS, AnswerKind, extract, tagged
from aimo.inference.errors import AimoError
from aimo.inference.judge import are_correct, is_well_formed
from aimo.inference.settings import NonNegative, Positive, Prompt, strict

Texts = Sequence[str | list[dict[str, str]]]  # n completions: texts, or conversations that end in them
Column = Sequence[Any] | None  # n values, one per completion
Layout = Prompt | None
Rewards = list[float | None]
RewardFunc = Callable[..., Rewards]


def text_of(completion: str | list[dict[str, str]]) -> str:
    """Return a completion's text, whether TRL passes a text or a conversation."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def lengths(completions: Texts, completion_ids: Column = None, **_: Any) -> list[int]:
    """Return the n lengths in tokens, or in characters if there are no token ids."""
    return [len(ids) for ids in (map(text_of, completions) if completion_ids is None else completion_ids)]


def read_golds(solution: Column, answer: Column = None, **_: Any) -> list[str]:
    """Return the n gold answers, from `answer` or else `solution`, a whole solution in sets with both."""
    column = solution if answer is None else answer
    if column is None:
        raise AimoError("rewards: the rows have no gold answer; give them a column `answer` or `solution`")
    return [extract(str(gold)) or str(gold) for gold in column]


def verdicts(
    completions: Texts,
    solution: Column,
    prompt: Layout = None,
    answer_kind: AnswerKind | None = None,
    **columns: Any,
) -> list[bool | None]:
    """Return whether each of n completions is right, or None if its gold answer cannot be read.

    `answer_kind` is the kind of a profile's competition, whose rows hold the bare answers.
    """
    texts, tags = [text_of(c) for c in completions], prompt or DEFAULT_TAGS
    if answer_kind and (golds := columns.get("answer")):
        return are_correct(texts, golds, tags, answer_kind)
    return are_correct(texts, read_golds(solution, **columns), tags)


@dataclass(config=strict)
class Reward:
    """The option of every reward; a reward without its own class has no other."""

    weight: float = field(default=1.0, kw_only=True)  # The reward's factor in the sum of rewards


# ---- the right answer, and the completion's length ----


def accuracy_reward(completions: Texts, solution: Column = None, **columns: Any) -> Rewards:
    """Return 1 for a right answer, 0 for a wrong one, None if the gold answer cannot be read."""
    return [None if right is None else float(right) for right in verdicts(completions, solution, **columns)]


def len_reward(completions: Texts, solution: Column = None, prompts: Column = None, **rest: Any) -> Rewards:
    """Return 0.5 for a prompt's shortest completion down to -0.5 for its longest; at most 0 for a wrong one.

    Source: Kimi 1.5. A completion whose gold answer cannot be read counts as right. Without `prompts`, all
    completions are compared.
    """
    sizes = lengths(completions, **rest)
    groups = [str(prompt) for prompt in prompts or [None] * len(sizes)]
    of_group: dict[str, list[int]] = defaultdict(list)
    for group, size in zip(groups, sizes, strict=True):
        of_group[group].append(size)
    rewards: Rewards = []
    for right, group, size in zip(verdicts(completions, solution, **rest), groups, sizes, strict=True):
        low, high = min(of_group[group]), max(of_group[group])
        reward = 0.5 - (size - low) / (high - low) if high > low else 0.0
        rewards.append(min(0.0, reward) if right is False else reward)
    return rewards


@dataclass(config=strict)
class Cosine(Reward):
    """Longer right answers earn less, longer wrong ones lose less (arXiv 2502.03373, C.1).

    The reward follows half a cosine from length 0 to `max_len`; None as in `accuracy`.
    """

    min_value_wrong: float = -1.0  # For a short wrong answer
    max_value_wrong: float = -0.5  # For a long wrong answer
    min_value_correct: float = 0.5  # For a long right answer
    max_value_correct: float = 1.0  # For a short right answer
    max_len: Positive = 1000  # From this length on, the reward stays the same
    __name__ = "cosine_scaled_reward"

    def __call__(self, completions: Texts, solution: Column = None, **columns: Any) -> Rewards:
        rewards: Rewards = []
        sizes = lengths(completions, **columns)
        for right, size in zip(verdicts(completions, solution, **columns), sizes, strict=True):
            short, long = self.min_value_wrong, self.max_value_wrong
            if right:
                short, long = self.max_value_correct, self.min_value_correct
            share = (1 + math.cos(math.pi * min(size / self.max_len, 1))) / 2
            rewards.append(None if right is None else long + (short - long) * share)
        return rewards


# ---- the format: tags around the thought and the answer ----


def answer_of(text: str, prompt: Layout) -> str | None:
    """Return the text between the answer tags of a well-formed completion, or None."""
    if prompt is None:
        rest = text[8:].partition("\n</think>\n<answer>\n")[2] if text.startswith("<think>\n") else ""
        match = re.match(r"(.*)\n</answer>$", rest, re.DOTALL | re.MULTILINE)
        return match[1] if match else None
    found = tagged(text, prompt.answer_start, prompt.answer_end)
    return found[1] if found and is_well_formed(prompt, text) else None


def format_reward(completions: Texts, prompt: Layout = None, **_: Any) -> Rewards:
    """Return 1 for one thought and then one answer, each in its tags, otherwise 0."""
    return [float(answer_of(text_of(c), prompt) is not None) for c in completions]


def tag_count_reward(completions: Texts, prompt: Layout = None, **_: Any) -> Rewards:
    """Return a quarter for each of the four tags that occurs once; the first one may be in the prompt."""
    texts = [text_of(c) for c in completions]
    tags = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")
    if prompt:
        tags = (prompt.think_start, prompt.think_end, prompt.answer_start, prompt.answer_end)
        texts = [text if tags[0] in text else tags[0] + text for text in texts]
    return [sum(text.count(tag) == 1 for tag in tags) / 4 for text in texts]


@dataclass(config=strict)
class CodeFormat(Reward):
    """`format`, with a fenced block in the answer, in the row's `language` or else the option's."""

    language: str = "python"  # For rows without a language, such as python or cpp
    __name__ = "code_format_reward"

    def __call__(
        self, completions: Texts, language: Column = None, prompt: Layout = None, **_: Any
    ) -> Rewards:
        rewards: Rewards = []
        for completion, name in zip(completions, language or [None] * len(completions), strict=True):
            block = rf"```{re.escape(str(name or self.language))}.*?```"
            answer = answer_of(text_of(completion), prompt) or ""
            rewards.append(float(bool(re.search(block, answer, re.DOTALL))))
        return rewards


# ---- the text: numbered steps, repeated words, and tokens beyond a limit ----

STEP = re.compile(r"Step \d+:|^(?:\d+\.|[-*])|First,|Second,|Next,|Finally,", re.MULTILINE)


def reasoning_steps_reward(completions: Texts, **_: Any) -> Rewards:
    """Return 1/3 for each step, at most 1: `Step 1:`, `1.`, `-` or `*` at a line's start, `First,` …"""
    return [min(1.0, len(STEP.findall(text_of(c))) / 3) for c in completions]


def check_penalty(max_penalty: float) -> float:
    if max_penalty > 0:
        raise ValueError(f"max_penalty {max_penalty} should not be positive")
    return max_penalty


@dataclass(config=strict)
class RepetitionPenalty(Reward):
    """`max_penalty` times the share of n-grams that are repeats (arXiv 2502.03373, C.2)."""

    ngram_size: Positive = 3  # Consecutive words that make an n-gram
    max_penalty: Annotated[
        float, AfterValidator(check_penalty)
    ] = -1.0  # The reward for nothing but repetition; 0 or less
    language: Literal["en", "zh"] = "en"  # How words are split: at spaces, or for Chinese by jieba
    __name__ = "repetition_penalty_reward"

    def __call__(self, completions: Texts, **_: Any) -> Rewards:
        texts = [text_of(c) for c in completions]
        if self.language == "en":
            split = [text.lower().split() for text in texts]
        else:
            import jieba  # takes a second to load its dictionary

            jieba.setLogLevel("WARNING")
            split = [jieba.lcut(text) for text in texts]
        ngrams = [list(zip(*(words[i:] for i in range(self.ngram_size)), strict=False)) for words in split]
        return [(len(set(n)) / len(n) - 1) * -self.max_penalty if n else 0.0 for n in ngrams]


@dataclass(config=strict)
class SoftOverlongPunishment(Reward):
    """TRL's: 0, falling to -1 over the last tokens before `max_completion_len` (DAPO, eq. 13).

    Characters count if there are no token ids.
    """

    max_completion_len: Positive = 16384  # The length at which it reaches -1
    soft_punish_cache: NonNegative = 4096  # How many tokens before that it begins
    __name__ = "soft_overlong_punishment_reward"

    def __call__(self, completion_ids: Column = None, completions: Texts = (), **_: Any) -> Rewards:
        from trl.rewards import get_soft_overlong_punishment

        counted: Any = [text_of(c) for c in completions] if completion_ids is None else completion_ids
        return get_soft_overlong_punishment(self.max_completion_len, self.soft_punish_cache)(counted)


# ---- Unsloth's Qwen3-4B-Base recipe, with the scores of its notebook ----
# https://github.com/unslothai/notebooks (Qwen3_(4B)-GRPO)


def recipe_answer(text: str, prompt: Layout) -> str | None:
    """Return the text in the answer tags after the thought, or None; nothing may follow them on the line."""
    tags = prompt or DEFAULT_TAGS
    rest = text.partition(tags.think_end)[2].partition(tags.answer_start)[2]
    match = re.match(rf"(.+?){re.escape(tags.answer_end)}\s*$", rest, re.DOTALL | re.MULTILINE)
    return match[1] if match else None


def match_format_exactly(completions: Texts, prompt: Layout = None, **_: Any) -> Rewards:
    """Return 3 for the end of a thought and then an answer in its tags, otherwise 0."""
    return [0.0 if recipe_answer(text_of(c), prompt) is None else 3.0 for c in completions]


def match_format_approximately(completions: Texts, prompt: Layout = None, **_: Any) -> Rewards:
    """Return the sum over all tags but the first: 0.5 for one that occurs exactly once, otherwise -1."""
    tags = prompt or DEFAULT_TAGS
    counted = (tags.think_end, tags.answer_start, tags.answer_end)
    return [sum(0.5 if text_of(c).count(tag) == 1 else -1.0 for tag in counted) for c in completions]


def check_answer(completions: Texts, solution: Column = None, prompt: Layout = None, **rest: Any) -> Rewards:
    """Return 5 for the gold answer's text, 3.5 if only spaces differ, 2 within 10 %, 1.5 within 20 %.

    -2.5 for another number, -4.5 if either is not a number, -2 for a completion in another format.
    """
    rewards: Rewards = []
    for completion, gold in zip(completions, read_golds(solution, **rest), strict=True):
        answer = recipe_answer(text_of(completion), prompt)
        if answer is None:
            rewards.append(-2.0)
        elif answer.strip() == gold.strip():
            rewards.append(5.0 if answer == gold else 3.5)
        else:
            try:
                ratio = float(answer) / float(gold)
                rewards.append(2.0 if 0.9 <= ratio <= 1.1 else 1.5 if 0.8 <= ratio <= 1.2 else -2.5)
            except (ValueError, ZeroDivisionError):
                rewards.append(-4.5)
    return rewards


def check_numbers(completions: Texts, solution: Column = None, prompt: Layout = None, **rest: Any) -> Rewards:
    """Score the first number after the answer tag: 3.5 right, -1.5 wrong, -2.5 none, 0 unreadable."""
    rewards: Rewards = []
    for completion, gold in zip(completions, read_golds(solution, **rest), strict=True):
        answer = text_of(completion).partition((prompt or DEFAULT_TAGS).answer_start)[2]
        number = re.search(r"-?[\d.,]+", answer)
        try:
            is_right = number and float(number[0].replace(",", "")) == float(gold.replace(",", ""))
            rewards.append(-2.5 if number is None else 3.5 if is_right else -1.5)
        except ValueError:
            rewards.append(0.0)
    return rewards
