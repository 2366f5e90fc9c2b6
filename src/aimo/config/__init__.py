"""Profiles: one YAML file holds every setting of a run, read into typed dataclasses."""

from aimo.config.data import Columns, Data, Set, Source
from aimo.config.inference import Inference
from aimo.config.profile import Profile
from aimo.config.reading import (
    PROFILES,
    ROOT,
    differing_keys,
    dump,
    load,
    parse,
    read_values,
    resolve,
    set_key,
)
from aimo.config.training import Dpo, Grpo, Lora, Model, Optimization, Sft, Training
from aimo.inference.settings import Prompt

__all__ = [
    "PROFILES", "ROOT", "Columns", "Data", "Dpo", "Grpo", "Inference", "Lora", "Model", "Optimization",
    "Profile", "Prompt", "Set", "Sft", "Source", "Training", "differing_keys", "dump", "load", "parse",
    "read_values", "resolve", "set_key",
]  # fmt: skip
