"""Profiles: one YAML file holds every setting of a run, read into typed dataclasses."""

from aimo.config.data import Columns, Data, Set, Source
from aimo.config.profile import Profile
from aimo.config.reading import PROFILES, ROOT, differing_keys, dump, load, parse, resolve, set_key
from aimo.config.training import Dpo, Grpo, Lora, Model, Optimization, Sft, Training
from aimo.inference.settings import Inference, Prompt
from aimo.stages import STAGES, Stage

__all__ = [
    "PROFILES", "ROOT", "STAGES", "Columns", "Data", "Dpo", "Grpo", "Inference", "Lora", "Model", "Optimization", "Profile", "Prompt",
    "Set", "Sft", "Source", "Stage", "Training", "differing_keys", "dump", "load", "parse", "resolve", "set_key",
]  # fmt: skip
