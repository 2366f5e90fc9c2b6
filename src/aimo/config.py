"""Profiles: one YAML file holds every setting of a run, read into the typed dataclasses below.

Unknown keys, wrong types and impossible values are refused by name before any work starts. Keys with a default may be
left out of the file. Left out: settings that nobody has yet had a reason to change; they are constants where they are used.
"""

import difflib
import json
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from aimo.errors import AimoError

ROOT = Path(__file__).parents[2]
PROFILES = ROOT / "notebooks" / "profiles"

Stage = Literal["data", "sft", "grpo", "inference"]
STAGES: tuple[Stage, ...] = ("data", "sft", "grpo", "inference")

strict = ConfigDict(extra="forbid", strict=True)
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(config=strict)
class Lora:
    """Low-rank adapters (PEFT); merged into the weights when a stage ends."""

    rank: Positive = 32
    alpha: Positive = 64
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])


@dataclass(config=strict)
class Model:
    """The base model and how it is trained."""

    base: str
    """A model folder (relative paths start at the repository), or a hub id."""
    backend: Literal["unsloth", "transformers"] = "unsloth"
    max_length: Positive = 2048
    """Tokens of prompt and completion together."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    load_in_4bit: bool = False
    lora: Lora | None = field(default_factory=Lora)
    """null trains all weights."""


@dataclass(config=strict)
class Prompt:
    """Tags and system prompt; they are saved with the model as its chat template."""

    system: str = ""
    think_start: Annotated[str, Field(min_length=1)] = "<start_working_out>"
    think_end: Annotated[str, Field(min_length=1)] = "<end_working_out>"
    answer_start: Annotated[str, Field(min_length=1)] = "<SOLUTION>"
    answer_end: Annotated[str, Field(min_length=1)] = "</SOLUTION>"


@dataclass(config=strict)
class Columns:
    """Which columns of a source hold what."""

    problem: str = "problem"
    answer: str = "answer"
    """The gold answer, alone or at the end of a text (`#### 42`, `\\boxed{42}`)."""
    solution: str | None = None
    """A worked solution, which format SFT imitates."""


@dataclass(config=strict)
class Source:
    """Where rows come from: `builtin`, a .csv, .jsonl or .parquet file, a dataset folder, or a hub id."""

    source: str = "builtin"
    subset: str | None = None
    """The configuration of a hub dataset."""
    split: str = "train"
    """`train` or `heldout` for built-in problems; a split's name for a hub dataset."""
    rows: Positive | None = None
    """Keep at most this many rows; needed for built-in problems."""
    columns: Columns = field(default_factory=Columns)
    max_tokens: Positive | None = None
    """Drop rows whose prompt and solution are longer."""
    empty_thoughts: Share = 0.0
    """Format SFT only: this share of the rows answers at once, so that working a problem out is GRPO's to discover."""

    @model_validator(mode="after")
    def check(self) -> "Source":
        """Refuse what the types alone allow."""
        if self.source == "builtin":
            if self.rows is None:
                raise ValueError("rows: built-in problems are endless; say how many")
            if self.split not in ("train", "heldout"):
                raise ValueError(f"split: built-in problems have train and heldout, not {self.split!r}")
        return self


@dataclass(config=strict)
class Data:
    """The three sets of a run."""

    sft: Source
    grpo: Source
    heldout: Source
    """Problems that no stage trains on: they measure base, sft and grpo. Training rows that share a text with them are dropped."""


@dataclass(config=strict)
class Sft:
    """Format SFT: a short supervised fine-tuning on worked examples."""

    learning_rate: Rate
    epochs: Annotated[float, Field(gt=0)] = 1.0
    max_steps: Positive | None = None
    """Stop after this many steps, whatever `epochs` says."""
    batch_size: Positive = 8
    gradient_accumulation_steps: Positive = 1
    warmup_ratio: Share = 0.03
    scheduler: Literal["constant", "linear", "cosine"] = "linear"
    optimizer: Literal["adamw_torch", "adamw_8bit"] = "adamw_torch"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    save_steps: Positive = 50


@dataclass(config=strict)
class Grpo:
    """GRPO: reinforcement learning from right and wrong answers."""

    learning_rate: Rate
    max_steps: Positive
    prompts_per_step: Positive = 8
    num_generations: Annotated[int, Field(ge=2)] = 16
    """Completions per prompt: the group whose mean reward is the baseline."""
    gradient_accumulation_steps: Positive = 1
    max_prompt_length: Positive = 512
    """Longer prompts are dropped, not cut."""
    max_completion_length: Positive = 512
    temperature: Annotated[float, Field(gt=0)] = 1.0
    beta: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL term to the SFT model."""
    rewards: dict[Literal["accuracy", "format"], float] = field(default_factory=lambda: {"accuracy": 1.0})
    """Reward functions (`aimo.rewards`) and their weights."""
    warmup_ratio: Share = 0.0
    scheduler: Literal["constant", "linear", "cosine"] = "constant"
    optimizer: Literal["adamw_torch", "adamw_8bit"] = "adamw_torch"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    use_vllm: bool = False
    """Generate with vLLM inside the trainer's process (GPU only)."""
    save_steps: Positive = 50

    @model_validator(mode="after")
    def check(self) -> "Grpo":
        """Refuse what the types alone allow."""
        if (self.prompts_per_step * self.num_generations) % self.gradient_accumulation_steps:
            raise ValueError(
                f"gradient_accumulation_steps: {self.gradient_accumulation_steps} does not divide the "
                f"{self.prompts_per_step} x {self.num_generations} completions of a step"
            )
        return self


@dataclass(config=strict)
class Inference:
    """Sampling and voting, in the notebook and in the kernel."""

    test: str | None = None
    """A CSV with `id` and `problem` (AIMO 3) or `question` (AIMO 2); null takes built-in held-out problems."""
    test_rows: Positive = 10
    """How many built-in problems stand in for a test file."""
    samples: Positive = 16
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Positive = 512
    """Tokens of one completion."""
    gpu_memory: Share = 0.9
    """Share of the GPU's memory that vLLM takes; on a CPU it takes 1 GiB."""


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

    @model_validator(mode="after")
    def check(self) -> "Profile":
        """Refuse what the types alone allow."""
        if self.grpo.max_prompt_length + self.grpo.max_completion_length > self.model.max_length:
            raise ValueError("grpo: max_prompt_length + max_completion_length exceed model.max_length")
        return self


def resolve(path: str) -> Path:
    """A path as given, or else from the repository's root."""
    return Path(path) if Path(path).exists() else ROOT / path


def load(profile: str | Path, overrides: list[str] | None = None) -> Profile:
    """Read a profile by name (`tiny`) or path (`my.yaml`) and apply overrides such as `grpo.max_steps=50`.

    Raises AimoError naming the key that is unknown, of the wrong type, or impossible.
    """
    path = Path(profile) if str(profile).endswith(".yaml") else PROFILES / f"{profile}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise AimoError(f"profile {str(profile)!r} does not exist: use one of {known}, or a path to a .yaml file")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as e:
        raise AimoError(f"profile {path}: not valid YAML: {' '.join(str(e).split())}") from None
    if not isinstance(values, dict):
        raise AimoError(f"profile {path}: expected keys and values; start from {PROFILES / 'tiny.yaml'}")
    for override in overrides or []:
        set_key(values, override)
    return parse(values, where=f"profile {path.stem}")


def set_key(values: dict[str, Any], override: str) -> None:
    """Apply `section.key=value` to nested values in place; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals:
        raise AimoError(f"--set {override!r}: expected KEY=VALUE, such as grpo.max_steps=50")
    *parents, last = key.split(".")
    for name in parents:
        if not isinstance(values.setdefault(name, {}), dict):
            raise AimoError(f"--set {override!r}: {name} is a value, not a section")
        values = values[name]
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise AimoError(f"--set {override!r}: {text!r} is not a YAML value; quote it") from None


def parse(values: dict[str, Any], where: str) -> Profile:
    """Validate nested values into a Profile; one AimoError names every bad key."""
    try:
        return TypeAdapter(Profile).validate_json(json.dumps(floats(values)))  # strict Python input would refuse sections
    except ValidationError as e:
        raise AimoError(f"{where}: " + "; ".join(explain(error) for error in e.errors())) from None


def floats(value: Any) -> Any:
    """YAML 1.1 reads `5e-6` as text; read it as the number that everyone means."""
    if isinstance(value, dict):
        return {k: floats(v) for k, v in value.items()}
    if isinstance(value, str) and value[:1] in "0123456789.-" and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def explain(error: Any) -> str:
    """One pydantic error as `section.key: what is wrong`."""
    key = ".".join(str(part) for part in error["loc"])
    match error["type"]:
        case "unexpected_keyword_argument":
            close = difflib.get_close_matches(str(error["loc"][-1]), all_keys(), n=1)
            return f"{key}: unknown key" + (f", did you mean {close[0]}?" if close else "")
        case "missing":
            return f"{key}: missing"
        case "value_error":
            return (f"{key}." if key else "") + error["msg"].removeprefix("Value error, ")
        case _:
            message = error["msg"].replace("Input should be", "should be")
            return f"{key}: {message}, not {error['input']!r}"


def all_keys() -> set[str]:
    """The names of all keys a profile may have."""
    sections = [Profile, Model, Lora, Prompt, Data, Source, Columns, Sft, Grpo, Inference]
    return {name for section in sections for name in section.__dataclass_fields__}  # type: ignore[attr-defined]


def dump(profile: Profile) -> str:
    """The profile as YAML, every key written out."""
    return yaml.safe_dump(asdict(profile), sort_keys=False, allow_unicode=True)  # type: ignore[call-overload]


def differing_keys(a: Profile, b: Profile) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both values."""
    flat_a, flat_b = flatten(asdict(a)), flatten(asdict(b))  # type: ignore[call-overload]
    return {k: (flat_a.get(k), flat_b.get(k)) for k in sorted(flat_a | flat_b) if flat_a.get(k) != flat_b.get(k)}


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
