"""The four rewards of Unsloth's Qwen3-4B-Base recipe, with the scores of its notebook.

https://github.com/unslothai/notebooks (Qwen3_(4B)-GRPO)
"""

import re
from typing import Any

from aimo.inference.answers import DEFAULT_TAGS
from aimo.inference.settings import Tags
from aimo.rewards.inputs import Column, Completions, Rewards, read_golds, text_of


def solution_of(text: str, tags: Tags) -> str | None:
    """The recipe's answer: between its tags, after the thought, with nothing behind it on the line."""
    rest = text.partition(tags.think_end)[2].partition(tags.answer_start)[2]
    match = re.match(rf"(.+?){re.escape(tags.answer_end)}\s*$", rest, re.DOTALL | re.MULTILINE)
    return match[1] if match else None


def match_format_exactly(completions: Completions, prompt: Tags | None = None, **_: Any) -> Rewards:
    """3 for the end of a thought and then an answer in its tags, else 0."""
    return [0.0 if solution_of(text_of(c), prompt or DEFAULT_TAGS) is None else 3.0 for c in completions]


def match_format_approximately(completions: Completions, prompt: Tags | None = None, **_: Any) -> Rewards:
    """For each tag but the opening one: 0.5 if it occurs exactly once, else -1."""
    tags = prompt or DEFAULT_TAGS
    counted = (tags.think_end, tags.answer_start, tags.answer_end)
    return [sum(0.5 if text_of(c).count(tag) == 1 else -1.0 for tag in counted) for c in completions]


def check_answer(
    completions: Completions, solution: Column = None, prompt: Tags | None = None, **columns: Any
) -> Rewards:
    """5 for the gold answer's text, 3.5 if only spaces differ, 2 within 10 %, 1.5 within 20 %, else -2.5.

    -4.5 where one of the two is no number, -2 for a completion out of format.
    """
    guesses = [solution_of(text_of(c), prompt or DEFAULT_TAGS) for c in completions]
    golds = read_golds(solution, **columns)
    return [score_guess(guess, gold) for guess, gold in zip(guesses, golds, strict=True)]


def score_guess(guess: str | None, gold: str) -> float:
    """The score of `check_answer` for one completion."""
    if guess is None:
        return -2.0
    if guess.strip() == gold.strip():
        return 5.0 if guess == gold else 3.5
    try:
        ratio = float(guess) / float(gold)
    except (ValueError, ZeroDivisionError):
        return -4.5
    if 0.9 <= ratio <= 1.1:
        return 2.0
    return 1.5 if 0.8 <= ratio <= 1.2 else -2.5


def check_numbers(
    completions: Completions, solution: Column = None, prompt: Tags | None = None, **columns: Any
) -> Rewards:
    """The first number after the answer tag: 3.5 if right, -1.5 if wrong, -2.5 if none, 0 if unreadable."""
    start = (prompt or DEFAULT_TAGS).answer_start
    answers = [text_of(c).partition(start)[2] for c in completions]
    golds = read_golds(solution, **columns)
    return [score_number(answer, gold) for answer, gold in zip(answers, golds, strict=True)]


def score_number(answer: str, gold: str) -> float:
    """The score of `check_numbers` for one completion."""
    number = re.search(r"-?[\d.,]+", answer)
    if number is None:
        return -2.5
    try:
        return 3.5 if float(number[0].replace(",", "")) == float(gold.replace(",", "")) else -1.5
    except ValueError:
        return 0.0
