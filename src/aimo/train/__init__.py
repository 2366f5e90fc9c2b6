"""SFT, DPO, GRPO and OPD: from rows to a saved model."""

from aimo import load_late

# These load torch and TRL. Unsloth replaces TRL's classes, so it must be imported first.
load_late(__name__, "callbacks", "compat", "dpo", "grpo", "models", "opd", "sft", "trainers")
