"""Profiles: one YAML file holds every setting of a run, read into the typed dataclasses below.

Unknown keys, wrong types and impossible values are refused by name before any work starts. Keys with a default may be
left out of the file. Left out: settings that nobody has yet had a reason to change; they are constants where they are used, or under `trl`.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from aimo.errors import AimoError

ROOT = Path(__file__).parents[2]
PROFILES = ROOT / "notebooks" / "profiles"

Stage = Literal["data", "sft", "grpo", "dpo", "inference"]
STAGES: tuple[Stage, ...] = ("data", "sft", "grpo", "dpo", "inference")

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
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto takes bfloat16 on a GPU that has it, float16 on an older one, float32 on a CPU."""
    load_in_4bit: bool = False
    """QLoRA: the frozen weights in four bits (GPU only)."""
    gradient_checkpointing: bool = True
    """On a GPU, compute activations twice and keep few: slower, much less memory."""
    attention: str = "sdpa"
    """Transformers' attention, such as flash_attention_2 where it is installed; Unsloth brings its own."""
    lora: Lora | None = field(default_factory=Lora)
    """null trains all weights."""


@dataclass(config=strict)
class Prompt:
    """Tags, system prompt and chat template; all are saved with the model."""

    system: str = ""
    template: str = "plain"
    """`plain` (Unsloth's recipe), `chatml` (Qwen, Open-R1), `model` for the base's own, or a path to a Jinja file."""
    eos_token: str | None = None
    """The token that ends a reply, such as <|im_end|>; null takes the tokenizer's."""
    prefill: bool = True
    """Whether a prompt ends in the opening tag, so that a completion starts inside it."""
    think_start: Annotated[str, Field(min_length=1)] = "<start_working_out>"
    think_end: Annotated[str, Field(min_length=1)] = "<end_working_out>"
    answer_start: Annotated[str, Field(min_length=1)] = "<SOLUTION>"
    answer_end: Annotated[str, Field(min_length=1)] = "</SOLUTION>"


@dataclass(config=strict)
class Columns:
    """Which columns of a source hold what."""

    problem: str = "problem"
    answer: str | None = "answer"
    """The gold answer, alone or at the end of a text (`#### 42`, `\\boxed{42}`); null takes the solution's own answer."""
    solution: str | None = None
    """A worked solution, which format SFT imitates; or a list of them, the traces of several samples."""
    correct: str | None = None
    """Whether the solution is right: a boolean, or one for each of its traces. Only right ones stay."""
    complete: str | None = None
    """Whether the solution came to its end: a boolean, or one for each of its traces."""
    messages: str | None = None
    """A conversation of `role` and `content`: its question and last reply stand in for problem and solution."""
    kind: str | None = None
    """The question's type, in which `MCQ` and `proof` are known."""
    pass_rate: str | None = None
    """The share of a model's samples that were right."""
    verification_info: str | None = None
    """Test cases of a programming problem, for the code rewards; such a row needs no answer."""


@dataclass(config=strict)
class Source:
    """Where rows come from: `builtin`, a .csv, .jsonl or .parquet file, a folder of one of these, a dataset folder, or a hub id."""

    source: str = "builtin"
    preset: str | None = None
    """The hub id of the set that a local copy was made from; its columns are known (`aimo.sources.PRESETS`)."""
    subset: str | None = None
    """The configuration of a hub dataset."""
    split: str | None = None
    """`train` (the default) or `heldout` for built-in problems; a split's name for a dataset."""
    rows: Positive | None = None
    """Keep at most this many rows; needed for built-in problems."""
    weight: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Keep this share of the rows (Open-R1's mixtures)."""
    columns: Columns | None = None
    corrupt_lines: Literal["refuse", "skip"] = "refuse"
    """What to do with a line of a .jsonl file that is not a JSON object; skipped ones are counted."""

    @model_validator(mode="after")
    def check_source(self) -> "Source":
        """Refuse what the types alone allow."""
        if self.source == "builtin" and not getattr(self, "mixture", None):
            if self.rows is None:
                raise ValueError("rows: built-in problems are endless; say how many")
            if self.split not in (None, "train", "heldout"):
                raise ValueError(f"split: built-in problems have train and heldout, not {self.split!r}")
        return self


@dataclass(config=strict)
class Set(Source):
    """One of the three sets: a source or a mixture of several, and which of its rows are kept."""

    mixture: list[Source] = field(default_factory=list)
    """Several sources in place of one, shuffled together."""
    test_split: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Set this share of the problems aside, to evaluate on during training."""
    integer_answers: bool = True
    """Drop rows whose answer is not an integer, as the olympiad's are."""
    answer_range: tuple[int, int] | None = None
    """Drop rows whose answer lies outside, such as [0, 99999]."""
    max_tokens: Positive | None = None
    """Drop rows whose prompt and solution are longer."""
    token_quantile: Annotated[float, Field(gt=0, le=1)] | None = None
    """Drop rows longer than this quantile of the set (Unsloth's recipe keeps 0.9)."""
    language: str | None = None
    """Keep problems in this language (`en`); those too short to tell stay."""
    drop: list[Literal["multiple_choice", "proof"]] = field(default_factory=list)
    near_duplicates: Rate | None = None
    """Drop problems that share this part of another's word triples (Jaccard) and all its numbers."""
    pass_rate: tuple[float, float] | None = None
    """Keep problems whose pass rate lies within: neither hopeless nor solved already."""
    traces: Literal["first", "shortest", "all"] = "first"
    """Which solution to keep where a problem has several right ones."""
    verbatim: bool = False
    """SFT only: a solution is a whole completion, tags and answer included, as distilled traces are."""
    empty_thoughts: Share = 0.0
    """Format SFT only: this share of the rows answers at once, so that working a problem out is GRPO's to discover."""

    @model_validator(mode="after")
    def check_set(self) -> "Set":
        """Refuse what the types alone allow."""
        if self.mixture and (self.source != "builtin" or self.columns):
            raise ValueError("mixture: a set has either a source or a mixture; put the source into the mixture")
        for name in ("answer_range", "pass_rate"):
            bounds = getattr(self, name)
            if bounds and bounds[0] > bounds[1]:
                raise ValueError(f"{name}: {bounds[0]} is above {bounds[1]}; write the smaller one first")
        return self


@dataclass(config=strict)
class Data:
    """The three sets of a run, and what they must not contain."""

    sft: Set
    grpo: Set
    heldout: Set
    """Problems that no stage trains on: they measure base, sft and grpo. Training rows that share a text with them are dropped."""
    benchmarks: list[Source] = field(default_factory=list)
    """Evaluation sets: training rows that share words with them are dropped, as with a held-out set that is not built in."""
    ngram: Positive = 8
    """How many words in a row make a row contaminated."""
    near_ngrams: bool = False
    """Compare words without LaTeX markup and punctuation, and problems shorter than `ngram` as a whole."""


@dataclass(config=strict)
class Reward:
    """A reward function of `aimo.rewards`; those without a class of their own below have no other setting."""

    weight: float = 1.0


@dataclass(config=strict)
class Cosine(Reward):
    """`cosine`: what right and wrong answers are worth at length 0 and at `max_len`."""

    min_value_wrong: float = -1.0
    """Short and wrong."""
    max_value_wrong: float = -0.5
    """Long and wrong."""
    min_value_correct: float = 0.5
    """Long and right."""
    max_value_correct: float = 1.0
    """Short and right."""
    max_len: Positive = 1000
    """In tokens."""


@dataclass(config=strict)
class RepetitionPenalty(Reward):
    """`repetition_penalty`: a share of `max_penalty`."""

    ngram_size: Positive = 3
    max_penalty: Annotated[float, Field(le=0)] = -1.0
    language: Literal["en", "zh"] = "en"
    """How words are told apart: by spaces, or for Chinese by jieba."""


@dataclass(config=strict)
class SoftOverlongPunishment(Reward):
    """`soft_overlong_punishment`: from 0 to -1 over the last `soft_punish_cache` tokens before `max_completion_len`."""

    max_completion_len: Positive = 16384
    soft_punish_cache: NonNegative = 4096


@dataclass(config=strict)
class Code(Reward):
    """`code` and `binary_code`: where programs run, and how many at once."""

    num_parallel: Positive = 2
    provider_type: Literal["local", "e2b"] = "local"


@dataclass(config=strict)
class CodeFormat(Reward):
    """`code_format`: the language of rows without a `language` of their own."""

    language: str = "python"


PLAIN_REWARDS = "accuracy format tag_count reasoning_steps length format_exact format_approximate check_answer check_numbers"
REWARDS: dict[str, type[Reward]] = dict.fromkeys(PLAIN_REWARDS.split(), Reward) | {
    "cosine": Cosine,
    "repetition_penalty": RepetitionPenalty,
    "soft_overlong_punishment": SoftOverlongPunishment,
    "code": Code,
    "binary_code": Code,
    "code_format": CodeFormat,
}


def read_rewards(values: Mapping[str, Any]) -> dict[str, Reward]:
    """`{name: weight}` or `{name: {weight: …, option: …}}` as settings; ValueError for unknown names and options, with the known ones."""
    read = {}
    for name, value in values.items():
        if name not in REWARDS:
            why = "needs a Piston server and is not built yet" if name in ("ioi_code", "cf_code") else "is unknown"
            raise ValueError(f"{name}: reward {name!r} {why}; use one of {', '.join(REWARDS)}")
        options = vars(value) if isinstance(value, Reward) else value if isinstance(value, dict) else {"weight": value}
        known = REWARDS[name].__dataclass_fields__  # type: ignore[attr-defined]
        if unknown := options.keys() - known:
            raise ValueError(f"{name}: no option {', '.join(map(repr, sorted(unknown)))}; it has {', '.join(known)}")
        try:
            read[name] = REWARDS[name](**options)
        except ValidationError as e:
            raise ValueError(f"{name}." + "; ".join(explain(error) for error in e.errors())) from None
    return read


@dataclass(config=strict, kw_only=True)
class Optimization:
    """What every trained stage has. Any other key of TRL's configuration goes under `trl`, by TRL's name."""

    learning_rate: Rate
    epochs: Annotated[float, Field(gt=0)] = 1.0
    max_steps: Positive | None = None
    """Stop after this many steps, whatever `epochs` says."""
    gradient_accumulation_steps: Positive = 1
    warmup_ratio: Share = 0.0
    scheduler: Literal["constant", "linear", "cosine", "cosine_with_min_lr"] = "linear"
    min_lr_rate: Share = 0.1
    """For cosine_with_min_lr: the last rate as a share of the first."""
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "adafactor"] = "adamw_torch"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    save_steps: Positive = 50
    """Steps between checkpoints, of which the last two are kept."""
    probe_steps: Positive | None = None
    """Steps between probes on the problems that `data.grpo.test_split` sets aside; the stage ends with the best model probed."""
    use_liger_kernel: bool = False
    """Fused kernels of the liger-kernel package (GPU only)."""
    trl: dict[str, Any] = field(default_factory=dict)


@dataclass(config=strict, kw_only=True)
class Sft(Optimization):
    """Supervised fine-tuning on worked examples: a short one for the format, or a long one to distil a stronger model."""

    batch_size: Positive = 8
    """Rows on one device at a time."""
    warmup_ratio: Share = 0.03
    packing: bool = False
    """Fill each row of `model.max_length` tokens with several examples, which do not see each other."""
    group_by_length: bool = True
    """Without packing: batches of examples of like length, for less padding."""
    eval_steps: Positive | None = None
    """Steps between evaluations of the loss on the problems that `data.sft.test_split` sets aside."""


@dataclass(config=strict, kw_only=True)
class Grpo(Optimization):
    """GRPO: reinforcement learning from right and wrong answers."""

    prompts_per_step: Positive = 8
    num_generations: Annotated[int, Field(ge=2)] = 16
    """Completions per prompt: the group whose mean reward is the baseline."""
    max_prompt_length: Positive = 512
    """Longer prompts are dropped, not cut."""
    max_completion_length: Positive = 512
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: NonNegative = 0
    """Sample from this many likeliest tokens; 0 from all."""
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"] = "dapo"
    beta: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL term to the SFT model."""
    mask_truncated_completions: bool = False
    """Leave completions that were cut off out of the loss."""
    pass_rate: tuple[float, float] | None = None
    """Before training, keep problems of which the model solves a share within these bounds."""
    pass_rate_samples: Annotated[int, Field(ge=2)] = 8
    rewards: Annotated[dict[str, Any], Field(min_length=1), AfterValidator(read_rewards)] = field(
        default_factory=lambda: {"accuracy": Reward()}
    )
    """Reward functions (docs/rewards.md): a weight each, or a weight and options, `cosine: {weight: 0.5, max_len: 2000}`."""
    scheduler: Literal["constant", "linear", "cosine", "cosine_with_min_lr"] = "constant"
    generation: Literal["transformers", "vllm", "vllm_server"] = "transformers"
    """Who samples: the trained model itself, vLLM in the same process (GPU only), or a `trl vllm-serve` elsewhere."""
    vllm_server_url: str = "http://127.0.0.1:8000"
    vllm_gpu_memory: Share = 0.5
    """Share of the GPU's memory that vLLM takes beside the trainer."""
    sample_steps: Positive = 25
    """Steps between sample completions kept with their rewards, for a person to read."""

    @model_validator(mode="after")
    def check(self) -> "Grpo":
        """Refuse what the types alone allow."""
        if (self.prompts_per_step * self.num_generations) % self.gradient_accumulation_steps:
            raise ValueError(
                f"gradient_accumulation_steps: {self.gradient_accumulation_steps} does not divide the "
                f"{self.prompts_per_step} x {self.num_generations} completions of a step"
            )
        overlong = self.rewards.get("soft_overlong_punishment")
        if overlong and overlong.max_completion_len - overlong.soft_punish_cache >= self.max_completion_length:
            raise ValueError(
                f"rewards.soft_overlong_punishment: starts beyond {overlong.max_completion_len} - {overlong.soft_punish_cache} tokens, "
                f"which no completion reaches; set max_completion_len to max_completion_length, {self.max_completion_length}"
            )
        return self


@dataclass(config=strict, kw_only=True)
class Dpo(Optimization):
    """DPO after GRPO: short right completions against long right and wrong ones (second place of AIMO 2)."""

    batch_size: Positive = 8
    """Pairs on one device at a time."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """How strongly the model is held to the one it starts from."""
    problems: Positive = 500
    """GRPO problems that pairs are sampled for."""
    samples: Annotated[int, Field(ge=2)] = 8


@dataclass(config=strict)
class Training:
    """What guards and records every trained stage."""

    time_limit_s: Positive | None = None
    """Stop training and save after this many seconds of a stage."""
    disk_gb: Annotated[float, Field(gt=0)] | None = None
    """What the run's folder may take; a stage stops and saves before it takes more."""
    log_to: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    """Where figures go besides the run's folder."""
    cache_dir: str | None = None
    """Where the hub's models and data sets are kept; null is the hub's own cache."""
    push_to_hub: str | None = None
    """A model repository (`owner/name`) that a finished stage is pushed to."""
    push_to_kaggle: str | None = None
    """A Kaggle model (`owner/model/framework/variation`) that a finished stage is pushed to."""


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
    min_p: Share = 0.0
    max_tokens: Positive = 512
    """Tokens of one completion."""
    tools: Share = 0.0
    """The share of samples whose Python is run in the sandbox, and its output fed back."""
    tool_turns: Positive = 4
    """How many programs of a sample are run."""
    tool_parser: str | None = None
    """vLLM's parser of the model's own tool calls (`hermes` for Qwen); null runs its fenced Python blocks."""
    weight: Literal["equal", "logprob", "entropy", "length"] = "equal"
    """What a vote weighs by (docs/voting.md)."""
    discount_trivial: bool = False
    """Whether 0, 1 and the numbers of the statement count half."""
    gpu_memory: Share = 0.9
    """Share of the GPU's memory that vLLM takes; on a CPU it takes 1 GiB."""
    vllm: dict[str, Any] = field(default_factory=dict)
    """vLLM's engine arguments by its own names: tensor_parallel_size, kv_cache_dtype, quantization, speculative_config …"""


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
                raise ValueError(f"{name}.probe_steps: a probe needs problems of its own; set data.grpo.test_split, such as 0.02")
        if self.sft.eval_steps and not self.data.sft.test_split:
            raise ValueError("sft.eval_steps: an evaluation needs rows of its own; set data.sft.test_split, such as 0.02")
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


def set_key(values: dict[str, Any], override: str, option: str = "--set") -> None:
    """Apply `section.key=value` to nested values in place; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals:
        raise AimoError(f"{option} {override!r}: expected KEY=VALUE, such as grpo.max_steps=50")
    *parents, last = key.split(".")
    for name in parents:
        if not isinstance(values.setdefault(name, {}), dict):
            raise AimoError(f"{option} {override!r}: {name} is a value, not a section")
        values = values[name]
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise AimoError(f"{option} {override!r}: {text!r} is not a YAML value; quote it") from None


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
    sections = [Profile, Model, Lora, Prompt, Data, Set, Columns, Sft, Grpo, Dpo, Training, Inference]
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
