"""Reward functions with TRL's signature, by name: Open-R1's, and those of Unsloth's Qwen3-4B-Base recipe.

Each takes `completions`, n texts or conversations, and whatever columns the trainer passes, of which
`answer` or `solution` holds the gold answers. It returns n floats, None for a completion that is not scored.
Lengths are tokens where `completion_ids` are passed, characters otherwise. Bound to a profile by
`get_reward_funcs`, they expect the profile's tags, the first of which its prompt ends in. Called directly,
they expect Open-R1's layout (`<think>` and `<answer>` on lines of their own), and those of Unsloth's recipe
its own tags. Out of scope: reward models.
"""

from aimo.rewards.code import binary_code_reward, code_reward, extract_code
from aimo.rewards.contests import cf_code_reward, ioi_code_reward
from aimo.rewards.correctness import accuracy_reward, get_cosine_scaled_reward, len_reward
from aimo.rewards.format import format_reward, get_code_format_reward, tag_count_reward
from aimo.rewards.inputs import text_of
from aimo.rewards.options import Reward
from aimo.rewards.table import REWARDS, get_reward_funcs, read_rewards
from aimo.rewards.text import (
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
    reasoning_steps_reward,
)
from aimo.rewards.unsloth import (
    check_answer,
    check_numbers,
    match_format_approximately,
    match_format_exactly,
)

__all__ = [
    "REWARDS",
    "Reward",
    "accuracy_reward",
    "binary_code_reward",
    "cf_code_reward",
    "check_answer",
    "check_numbers",
    "code_reward",
    "extract_code",
    "format_reward",
    "get_code_format_reward",
    "get_cosine_scaled_reward",
    "get_repetition_penalty_reward",
    "get_reward_funcs",
    "get_soft_overlong_punishment",
    "ioi_code_reward",
    "len_reward",
    "match_format_approximately",
    "match_format_exactly",
    "read_rewards",
    "reasoning_steps_reward",
    "tag_count_reward",
    "text_of",
]
