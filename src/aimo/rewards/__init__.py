"""Reward functions by name, with their options."""

from aimo.rewards.functions import get_reward_funcs
from aimo.rewards.settings import REWARDS, Reward, read_rewards

__all__ = ["REWARDS", "Reward", "get_reward_funcs", "read_rewards"]
