"""SFT, GRPO and DPO: from rows to a saved model."""
