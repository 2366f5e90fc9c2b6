"""A profile: every setting of a run, in typed sections. Above it, the table of stages, which all else reads.

A new stage is a row of the table, a notebook and a section of the profile (docs/extending.md). A run does the
stages that its profile has a section for, in the table's order.
"""

import re
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from aimo.config.data import Data, Distil
from aimo.config.training import Dpo, Grpo, Model, Opd, Sft, Training
from aimo.errors import AimoError
from aimo.inference import settings
from aimo.inference.answer_kinds import AnswerKind
from aimo.inference.competitions import Competition, parse_competition
from aimo.inference.settings import NonNegative, Positive, Prompt, Settings, Share, strict


class Stage(NamedTuple):
    """One row of the table."""

    name: str  # also the section of the profile and the folder in a run
    notebook: str  # the file in notebooks/, without its suffix
    product: str  # the last thing the stage writes, relative to the run's folder; later stages need it
    label: str  # its name in tables of figures
    colour: str = "#8a94a0"  # in plots
    trains_on: str | None = None  # the set of the `data` section; None for a stage that trains no model


STAGES = {
    stage.name: stage
    for stage in (
        Stage("distil", "00_distil", "distil/kept.jsonl", "distillation"),
        Stage("data", "01_data_prep", "data/README.md", "data"),
        Stage("sft", "02_format_sft", "sft/model", "after format SFT", "#3b76b0", trains_on="sft"),
        Stage("grpo", "03_grpo", "grpo/model", "after GRPO", "#e1812c", trains_on="grpo"),
        Stage("dpo", "03b_dpo", "dpo/model", "after DPO", "#8172b3", trains_on="grpo"),
        Stage("opd", "03c_opd", "opd/model", "after OPD", "#4f9d69", trains_on="grpo"),
        Stage("inference", "04_inference", "submission.parquet", "inference"),
    )
}
TRAINED = {name: stage for name, stage in STAGES.items() if stage.trains_on}
# The models that a run can measure, with their labels.
MODELS = {"base": "base, prompted in the format"} | {name: stage.label for name, stage in TRAINED.items()}
TRAINED_LENGTH = 2048  # tokens; a public model's own context is longer than what one trains on
# A profile's name is the name of a folder in runs/ and in submission/.
PLAIN_NAME = re.compile(r"[^\s./\\~-]([^/\\\x00-\x1f\x7f]{0,98}[^\s/\\\x7f])?")


@dataclass(config=strict, frozen=True)
class SettingsSection:
    """The keys of `Settings`, which says what they mean. Null: the model folder's own, else the default.

    Where a stage trains, `tags` and `max_length` that are null come from the sections `prompt` and `model`.
    """

    format: settings.Format | None = None
    system: str | None = None
    user: settings.User | None = None
    variants: list[settings.Variant] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    samples: Positive | None = None
    temperature: settings.Temperature | None = None
    top_p: settings.TopP | None = None
    min_p: Share | None = None
    top_k: NonNegative | None = None
    seeded: bool | None = None
    stop: list[settings.Tag] | None = None
    max_tokens: Positive | None = None
    max_length: Positive | None = None
    tags: settings.Tags | None = None
    thinking: bool | None = None
    tools: Share | None = None
    tool_turns: Positive | None = None
    tool_seconds: settings.ToolSeconds | None = None
    tool_parser: str | None = None
    weight: settings.Weight | None = None
    confidence: bool | None = None
    discount_trivial: bool | None = None
    proofs: settings.Proofs | None = None
    gpu_memory: Share | None = None
    vllm: dict[str, Any] | None = None


@dataclass(config=strict, frozen=True)
class Inference(SettingsSection):
    """The solver's settings, and which questions a run answers."""

    test: str | None = None  # A CSV with `id` and `problem` or `question`; null takes built-in ones
    test_rows: Positive = 10  # How many built-in problems stand in for a test file

    @property
    def written(self) -> dict[str, Any]:
        """The solver's keys that are not null."""
        values = asdict(self)
        return {f.name: values[f.name] for f in fields(SettingsSection) if values[f.name] is not None}


@dataclass(config=strict)
class Profile:
    """All settings of a run. A stage without a section is left out; inference is always done."""

    profile: str  # The profile's name; the file's name without `.yaml` when it is left out
    model: Model  # The base model
    seed: NonNegative = 0  # Every random choice of a run follows from it
    # What is answered, by name, by a YAML file or its keys: its answers are kept in `data`, rewarded,
    # measured, voted on and submitted by its rules. Null: integers, and aimo2 or aimo3 as a test file's
    # columns say
    competition: dict[str, Any] | None = None
    prompt: Prompt = field(default_factory=Prompt)  # Tags, system prompt and chat template
    distil: Distil | None = None  # Completions of a teacher, for `data.sft: {source: distil}`
    data: Data | None = None  # The sets to train and measure on. Needed by every stage that trains.
    sft: Sft | None = None  # Supervised fine-tuning
    grpo: Grpo | None = None  # Reinforcement learning
    dpo: Dpo | None = None  # Preference optimisation
    opd: Opd | None = None  # On-policy distillation
    inference: Inference = field(default_factory=Inference)  # How the test file is answered
    training: Training = field(default_factory=Training)  # Limits and logging of every trained stage

    @property
    def rules(self) -> Competition | None:
        """The competition's rules."""
        return parse_competition(self.competition, "competition") if self.competition else None

    @property
    def answer_kind(self) -> AnswerKind | None:
        """What counts as an answer, and which are equal; None: the judge says."""
        return self.rules.answer if self.rules else None

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(stage for stage in STAGES if getattr(self, stage) is not None)

    @property
    def trained(self) -> tuple[str, ...]:
        return tuple(stage for stage in self.stages if stage in TRAINED)

    def trained_before(self, stage: str) -> str | None:
        """Return the stage whose model `stage` starts from; None where that is the base."""
        order = list(STAGES)
        earlier = [name for name in self.trained if order.index(name) < order.index(stage)]
        return earlier[-1] if earlier else None

    def solver_settings(self, model: str | Path) -> Settings:
        """Return how a model folder is asked: by its own settings, and the `inference` section over them."""
        ours: dict[str, Any] = {}
        if self.trained:
            ours["tags"] = asdict(self.prompt.tags)
        if self.model.max_length:
            ours["max_length"] = self.model.max_length
        return settings.resolve_settings(model, ours, self.inference.written)

    @model_validator(mode="after")
    def check(self) -> "Profile":
        """Refuse what no section can see alone."""
        try:
            _ = self.rules
        except AimoError as e:
            raise ValueError(str(e)) from None
        if not PLAIN_NAME.fullmatch(self.profile) or self.profile in ("index.html", "README.md"):
            told = "cannot name the run's folder; take a name such as my-run"
            raise ValueError(f"profile: {self.profile!r} {told}")
        length = self.model.max_length or TRAINED_LENGTH
        sets = {name: getattr(self.data, name, None) for name in ("sft", "grpo", "heldout")}
        if self.trained:
            self.model.max_length = length
        sources = [part.source for rows in sets.values() if rows for part in rows.mixture or [rows]]
        if "distil" in sources and not self.distil:
            raise ValueError("data: the source distil needs a section distil; add it, or name another source")
        aside = "such as 0.02"
        for name in self.trained:
            rows = str(TRAINED[name].trains_on)
            if not sets[rows]:
                told = f"trains on data.{rows}, which is missing; add it, or set {name} to null"
                raise ValueError(f"{name}: {told}")
            if getattr(self, name).probe_steps and not (sets["grpo"] and sets["grpo"].test_split):
                told = "a probe needs problems that are not trained on; set data.grpo.test_split"
                raise ValueError(f"{name}.probe_steps: {told}, {aside}")
        if self.sft and self.sft.eval_steps and not (sets["sft"] and sets["sft"].test_split):
            told = "an evaluation needs rows that are not trained on; set data.sft.test_split"
            raise ValueError(f"sft.eval_steps: {told}, {aside}")
        if self.trained:  # the model is asked as it was trained
            asked = {"tags": asdict(self.prompt.tags)}
            prompt = asked | {"system": self.prompt.system}
            inference = settings.merge(asked, self.inference.written)
            for section, values in ("prompt", prompt), ("inference", inference):
                if found := settings.contradiction(settings.validate_settings(values, section, "correct it")):
                    raise ValueError(f"{section}.{found}")
            if self.prompt.system and self.inference.system:
                told = "the model is trained with prompt.system; remove one of the two"
                raise ValueError(f"inference.system: {told}")
        for stage in (self.grpo, self.opd):
            if stage and stage.max_prompt_length + stage.max_completion_length > length:
                told = "max_prompt_length + max_completion_length exceed model.max_length"
                raise ValueError(f"{type(stage).__name__.lower()}: {told}")
            if stage and stage.generation != "transformers" and self.model.load_in_4bit:
                key = f"{type(stage).__name__.lower()}.generation"
                told = f"does not take four-bit weights; set model.load_in_4bit to false, or {key} to"
                raise ValueError(f"{key}: {stage.generation} {told} transformers")
        if not self.grpo:
            return self

        generation = self.grpo.generation
        if generation == "vllm" and self.model.backend == "unsloth" and self.model.lora is None:
            told = "Unsloth does not sample all weights with vLLM; set model.backend to transformers, or"
            raise ValueError(f"grpo.generation: vllm: {told} grpo.generation to transformers, or model.lora")
        if self.grpo.tools:
            if self.prompt.template in ("plain", "chatml"):
                told = "offers no tools; set prompt.template to model, or a Jinja file that does"
                raise ValueError(f"grpo.tools: the template {self.prompt.template} {told}")
            if self.inference.tool_parser is None:
                told = "inference.tool_parser is null, and fenced blocks are no tool calls to TRL; set it to"
                raise ValueError(
                    f"grpo.tools: {told} the parser of the model's family, such as hermes for Qwen"
                )
            for key in "probe_steps", "pass_rate":
                if getattr(self.grpo, key) is not None:
                    told = "samples without tools; set it to null, or grpo.tools to false"
                    raise ValueError(f"grpo.{key}: {told}")
        return self
