"""A profile: every setting of a run, in typed sections, with the checks that span sections."""

from dataclasses import field

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from aimo.config.data import Data
from aimo.config.training import Dpo, Grpo, Model, Sft, Training
from aimo.inference.settings import Inference, NonNegative, Prompt, strict
from aimo.stages import STAGES, Stage


@dataclass(config=strict)
class Profile:
    """All settings of a run."""

    profile: str
    """The profile's name: the file's name without `.yaml`."""
    model: Model
    data: Data
    sft: Sft
    grpo: Grpo
    seed: NonNegative = 0
    prompt: Prompt = field(default_factory=Prompt)
    inference: Inference = field(default_factory=Inference)
    training: Training = field(default_factory=Training)
    dpo: Dpo | None = None
    """An optional stage after GRPO."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of a run, in order."""
        return tuple(stage for stage in STAGES if stage != "dpo" or self.dpo)

    @property
    def last_trained(self) -> Stage:
        """The stage whose model answers."""
        return "dpo" if self.dpo else "grpo"

    @model_validator(mode="after")
    def check(self) -> "Profile":
        """Refuse what the types alone allow."""
        for name in ("sft", "grpo", "dpo"):
            stage = getattr(self, name)
            if stage and stage.probe_steps and not self.data.grpo.test_split:
                raise ValueError(
                    f"{name}.probe_steps: a probe needs problems of its own; set data.grpo.test_split, such as 0.02"
                )
        if self.sft.eval_steps and not self.data.sft.test_split:
            raise ValueError(
                "sft.eval_steps: an evaluation needs rows of its own; set data.sft.test_split, such as 0.02"
            )
        if self.grpo.max_prompt_length + self.grpo.max_completion_length > self.model.max_length:
            raise ValueError("grpo: max_prompt_length + max_completion_length exceed model.max_length")
        return self
