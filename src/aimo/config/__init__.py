"""Profiles: one YAML file holds every setting of a run, read into typed dataclasses."""

# ruff: noqa: F401
from aimo.config.data import Columns, Data, Distil, Mixture, Reject, Set, Source
from aimo.config.profile import Dpo, Grpo, Inference, Lora, Model, Opd, Optimization, Profile, Sft, Training
from aimo.config.reading import (
    PROFILES,
    ROOT,
    RUNS,
    changed,
    describe,
    differing_keys,
    dump,
    find,
    lasting_changes,
    load,
    locate,
    parse,
    read_values,
    set_key,
)
from aimo.inference.settings import Prompt
