"""Rewards of the format: tags around the thought and the answer, and code blocks in the answer.

Without a prompt these expect Open-R1's layout, each tag on a line of its own.
"""

import re
from typing import Any

from aimo.inference.answers import tagged
from aimo.inference.prompts import is_well_formed
from aimo.inference.settings import Prompt
from aimo.rewards.inputs import Column, Completions, RewardFunc, Rewards, bind, text_of

OPEN_R1_TAGS = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")


def answer_of(text: str, prompt: Prompt | None) -> str | None:
    """What a well-formed completion has between its answer tags, else None."""
    if prompt is None:
        rest = text[8:].partition("\n</think>\n<answer>\n")[2] if text.startswith("<think>\n") else ""
        match = re.match(r"(.*)\n</answer>$", rest, re.DOTALL | re.MULTILINE)
        return match[1] if match else None
    found = tagged(text, prompt.answer_start, prompt.answer_end)
    return found[1] if found and is_well_formed(prompt, text) else None


def format_reward(completions: Completions, prompt: Prompt | None = None, **_: Any) -> Rewards:
    """1 for one thought, then one answer, each in its tags, else 0."""
    return [float(answer_of(text_of(c), prompt) is not None) for c in completions]


def tag_count_reward(completions: Completions, prompt: Prompt | None = None, **_: Any) -> Rewards:
    """A quarter for each of the four tags that occurs once; the opening one may be in the prompt."""
    tags = OPEN_R1_TAGS
    texts = [text_of(c) for c in completions]
    if prompt:
        tags = (prompt.think_start, prompt.think_end, prompt.answer_start, prompt.answer_end)
        texts = [text if tags[0] in text else tags[0] + text for text in texts]
    return [sum(text.count(tag) == 1 for tag in tags) / 4 for text in texts]


def get_code_format_reward(language: str = "python") -> RewardFunc:
    """`format`, with a fenced block of `language` in the answer; a row's own `language` goes first."""
    return bind(code_format_reward, language)


def code_format_reward(
    default: str, /, completions: Completions, language: Column = None, prompt: Prompt | None = None, **_: Any
) -> Rewards:
    """1 for a well-formed completion whose answer holds a block of its language, else 0."""
    answers = [answer_of(text_of(c), prompt) or "" for c in completions]
    blocks = [rf"```{re.escape(name or default)}.*?```" for name in language or [default] * len(answers)]
    found = [re.search(block, answer, re.DOTALL) for block, answer in zip(blocks, answers, strict=True)]
    return [float(match is not None) for match in found]
