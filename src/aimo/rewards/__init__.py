"""Reward functions with TRL's signature, by name: Open-R1's, and those of Unsloth's Qwen3-4B-Base recipe.

`table` has a row for each; `math` and `code` hold the functions. Called directly, they expect Open-R1's
layout, and those of Unsloth's recipe its tags. `get_reward_funcs` binds them to a profile's tags.
"""

# ruff: noqa: F401
from aimo.rewards.code import binary_code_reward, cf_code_reward, code_reward, extract_code, ioi_code_reward
from aimo.rewards.math import (
    accuracy_reward,
    check_answer,
    check_numbers,
    format_reward,
    get_code_format_reward,
    get_cosine_scaled_reward,
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
    len_reward,
    match_format_approximately,
    match_format_exactly,
    reasoning_steps_reward,
    tag_count_reward,
    text_of,
)
from aimo.rewards.table import BY_ANSWER, REWARDS, Reward, get_reward_funcs, read_rewards
