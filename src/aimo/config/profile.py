"""A profile: every setting of a run, in typed sections, with the checks that span sections."""

import re
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from aimo.config.data import Data, Distil
from aimo.config.inference import Inference
from aimo.config.stages import STAGES, TRAINED
from aimo.config.training import Dpo, Grpo, Model, Sft, Training
from aimo.inference.settings import (
    NonNegative,
    Prompt,
    Settings,
    contradiction,
    merge,
    resolve_settings,
    strict,
    validate_settings,
)

TRAINED_LENGTH = 2048  # tokens; a public model's own context is longer than what one trains on
ANY_TIME = [
    "profile", "training.*", "*.save_steps", "*.trl.save_total_limit", "model.gradient_checkpointing",
    "grpo.gradient_accumulation_steps", "grpo.sample_steps", "grpo.vllm_gpu_memory", "grpo.vllm_server_url",
    "inference.gpu_memory",
]  # fmt: skip
"""Keys that change no stage's result, so that a run goes on with other values. So it does with another
`batch_size` of SFT or DPO when `gradient_accumulation_steps` keeps the rows of a step."""
FROM_A_STAGE_ON = ["model.max_length", "model.dtype", "model.load_in_4bit", "model.attention"]
"""Keys of all stages that may change from a stage or a checkpoint on (`--from`): what was trained before
keeps its values. So may the keys of that stage and of those after it."""


PLAIN_NAME = re.compile(r"[^\s./\\~-]([^/\\\x00-\x1f\x7f]{0,98}[^\s/\\\x7f])?")
"""Names of a run's folder in runs/ and in submission/."""


@dataclass(config=strict)
class Profile:
    """All settings of a run. A stage without a section is left out; inference is always done."""

    profile: str
    """The profile's name; the file's name without `.yaml` when it is left out."""
    model: Model
    """The base model."""
    seed: NonNegative = 0
    """Every random choice of a run follows from it."""
    prompt: Prompt = field(default_factory=Prompt)
    """Tags, system prompt and chat template."""
    distil: Distil | None = None
    """Completions of a teacher, for `data.sft: {source: distil}`."""
    data: Data | None = None
    """The sets to train and measure on. Needed by every stage that trains."""
    sft: Sft | None = None
    """Supervised fine-tuning."""
    grpo: Grpo | None = None
    """Reinforcement learning."""
    dpo: Dpo | None = None
    """Preference optimisation."""
    inference: Inference = field(default_factory=Inference)
    """How the test file is answered."""
    training: Training = field(default_factory=Training)
    """Limits and logging of every trained stage."""

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of a run, in order."""
        return tuple(stage for stage in STAGES if getattr(self, stage) is not None)

    @property
    def trained(self) -> tuple[str, ...]:
        """The stages that train a model."""
        return tuple(stage for stage in self.stages if stage in TRAINED)

    def trained_before(self, stage: str) -> str | None:
        """The stage whose model `stage` starts from: the last one before it that trains. None: the base."""
        order = list(STAGES)
        earlier = [name for name in self.trained if order.index(name) < order.index(stage)]
        return earlier[-1] if earlier else None

    @property
    def last_trained(self) -> str | None:
        """The stage whose model answers the test file. None: the base does."""
        return self.trained_before("inference")

    def data_sources(self) -> set[str]:
        """The sources of the sets of `data`."""
        sets = [s for s in (self.data.sft, self.data.grpo, self.data.heldout) if s] if self.data else []
        return {source.source for wanted in sets for source in wanted.mixture or [wanted]}

    def solver_settings(self, model: str | Path) -> Settings:
        """How a model folder is asked: by its own settings, and the `inference` section over them."""
        ours: dict[str, Any] = {}
        if self.trained:
            ours["tags"] = asdict(self.prompt.tags)
        if self.model.max_length:
            ours["max_length"] = self.model.max_length
        return resolve_settings(model, ours, self.inference.written)

    @model_validator(mode="after")
    def check(self) -> "Profile":
        if not PLAIN_NAME.fullmatch(self.profile) or self.profile in ("index.html", "README.md"):
            raise ValueError(
                f"profile: {self.profile!r} cannot name the run's folder; take a name such as my-run"
            )
        length = self.model.max_length or TRAINED_LENGTH
        if self.trained:
            self.model.max_length = length
        if not self.distil and "distil" in self.data_sources():
            raise ValueError("data: the source distil needs a section distil; add it, or name another source")
        for name in self.trained:
            self.check_trained(name)
        if self.sft and self.sft.eval_steps and not self.data.sft.test_split:  # type: ignore[union-attr]
            raise ValueError(
                "sft.eval_steps: an evaluation needs rows that are not trained on; set "
                "data.sft.test_split, such as 0.02"
            )
        if self.trained:
            self.check_prompts()
        grpo = self.grpo
        if grpo and grpo.max_prompt_length + grpo.max_completion_length > length:
            raise ValueError("grpo: max_prompt_length + max_completion_length exceed model.max_length")
        if grpo and grpo.generation != "transformers":
            self.check_generation(grpo.generation)
        if grpo and grpo.tools:
            self.check_tools(grpo)
        return self

    def check_generation(self, generation: str) -> None:
        """Check that vLLM can generate with the weights that GRPO trains."""
        other = f"grpo.generation: {generation}"
        if self.model.load_in_4bit:
            raise ValueError(
                f"{other} does not take four-bit weights; set model.load_in_4bit to false, "
                "or grpo.generation to transformers"
            )
        if self.model.backend == "unsloth" and self.model.lora is None and generation == "vllm":
            raise ValueError(
                f"{other}: Unsloth does not sample all weights with vLLM; set model.backend to transformers, "
                "or grpo.generation to transformers, or model.lora"
            )

    def check_tools(self, grpo: Grpo) -> None:
        """Check that completions with tools are possible, and that what else samples has them too."""
        if self.prompt.template in ("plain", "chatml"):
            raise ValueError(
                f"grpo.tools: the template {self.prompt.template} offers no tools; set prompt.template to "
                "model, or a Jinja file that does"
            )
        if self.inference.tool_parser is None:
            raise ValueError(
                "grpo.tools: inference.tool_parser is null, and fenced blocks are no tool calls to TRL; set "
                "it to the parser of the model's family, such as hermes for Qwen"
            )
        for key in "probe_steps", "pass_rate":
            if getattr(grpo, key) is not None:
                raise ValueError(f"grpo.{key}: samples without tools; set it to null, or grpo.tools to false")

    def check_prompts(self) -> None:
        """Check that the model is asked as it was trained, and that its prompts and tags agree."""
        asked = {"tags": asdict(self.prompt.tags)}
        if found := contradiction(
            validate_settings(asked | {"system": self.prompt.system}, "prompt", "correct it")
        ):
            raise ValueError(f"prompt.{found}")
        if found := contradiction(
            validate_settings(merge(asked, self.inference.written), "inference", "correct it")
        ):
            raise ValueError(f"inference.{found}")
        if self.prompt.system and self.inference.system:
            raise ValueError(
                "inference.system: the model is trained with prompt.system; remove one of the two"
            )

    def check_trained(self, name: str) -> None:
        """Check that a trained stage has the rows it needs."""
        rows = TRAINED[name].trains_on
        assert rows
        if not getattr(self.data, rows, None):
            raise ValueError(
                f"{name}: trains on data.{rows}, which is missing; add it, or set {name} to null"
            )
        probes = self.data.grpo if self.data else None
        if getattr(self, name).probe_steps and not (probes and probes.test_split):
            raise ValueError(
                f"{name}.probe_steps: a probe needs problems that are not trained on; "
                "set data.grpo.test_split, such as 0.02"
            )
