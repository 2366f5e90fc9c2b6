"""SFT, GRPO and DPO: from rows to a saved model."""

from aimo import load_late

# They load torch, and TRL, whose classes Unsloth replaces: it has to come first.
load_late(__name__, "callbacks", "compat", "dpo", "grpo", "models", "opd", "sft", "trainers")
