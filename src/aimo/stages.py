"""The table of stages."""

from typing import Literal

Stage = Literal["data", "sft", "grpo", "dpo", "inference"]
STAGES: tuple[Stage, ...] = ("data", "sft", "grpo", "dpo", "inference")
