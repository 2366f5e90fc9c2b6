"""From rows to a model: SFT, GRPO and DPO with TRL."""
