"""A profile: every setting of a run, in typed sections; and the table of stages that everything else reads.

A new stage is a row of the table, a notebook and a section of the profile (docs/extending.md). A run does the
stages that its profile has a section for, in the table's order. `aimo.train.arguments` turns the sections of
training into TRL's configuration; keys that only TRL needs go under `trl`.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from aimo.config.data import Above0, Data, Distil, From0, Part, PassRates
from aimo.inference import settings
from aimo.inference.answers import AnswerKind
from aimo.inference.competitions import Competition, parse_competition
from aimo.inference.errors import AimoError
from aimo.inference.settings import NonNegative, Positive, Prompt, Rate, Settings, Share, strict
from aimo.rewards import BY_ANSWER, Reward, read_rewards


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
TRAINED_LENGTH = 2048  # tokens; a public model's own context is longer than training needs
# A profile's name is also that of its folders in runs/ and in submission/.
PLAIN_NAME = re.compile(r"[^\s./\\~-]([^/\\\x00-\x1f\x7f]{0,98}[^\s/\\\x7f])?")
AtLeast2 = Annotated[int, Field(ge=2)]
Scheduler = Literal["constant", "linear", "cosine", "cosine_with_min_lr"]


# ---- Training


@dataclass(config=strict)
class Lora:
    """Low-rank adapters (PEFT); merged into the weights when a stage ends."""

    rank: Positive = 32  # The rank of the two matrices of an adapter
    alpha: Positive = 64  # An adapter's output is multiplied by alpha / rank
    # The layers that get an adapter
    target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


@dataclass(config=strict)
class Model:
    """The base model and how it is trained."""

    base: str  # A model folder (relative paths start at the repository), or a hub id
    revision: str | None = None  # The branch, tag or commit of a hub id; null takes the newest of main
    # What loads and trains the model: Unsloth, or Transformers with PEFT
    backend: Literal["unsloth", "transformers"] = "unsloth"
    # Tokens of prompt and completion together. Null: 2,048 if a stage trains, otherwise the model's own.
    max_length: Positive | None = None
    # auto takes bfloat16 on a GPU that supports it, float16 on an older one, float32 on a CPU
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    load_in_4bit: bool = False  # QLoRA: the frozen weights in four bits (GPU only)
    gradient_checkpointing: bool = True  # On a GPU, recompute activations: slower, but much less memory
    attention: str = "sdpa"  # Transformers' attention, such as flash_attention_2; Unsloth brings its own
    lora: Lora | None = field(default_factory=Lora)  # null trains all weights


@dataclass(config=strict, kw_only=True)
class Optimization:
    """The keys of every stage that trains."""

    learning_rate: Rate  # The peak rate, reached at the end of the warm-up
    epochs: Above0 = 1.0  # How often each row is trained on
    max_steps: Positive | None = None  # Stop after this many steps; overrides `epochs`
    gradient_accumulation_steps: Positive = 1  # Batches per optimizer step
    warmup_ratio: Share = 0.0  # The share of steps over which the rate rises from 0
    scheduler: Scheduler = "linear"  # How the rate falls after the warm-up
    min_lr_rate: Share = 0.1  # For cosine_with_min_lr: the final rate as a share of the peak
    # The 8-bit ones need a GPU
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "adafactor"] = (
        "adamw_torch"
    )
    weight_decay: From0 = 0.0  # How strongly weights are pulled towards 0
    max_grad_norm: Above0 = 1.0  # Gradients of a larger norm are scaled down to it
    save_steps: Positive = 50  # Steps between checkpoints; `trl: {save_total_limit: 5}` keeps more than two
    # Steps between probes: greedy answers to the problems that `data.grpo.test_split` sets aside. The stage
    # keeps the model with the best probe.
    probe_steps: Positive | None = None
    use_liger_kernel: bool = False  # Fused kernels of the liger-kernel package (GPU only)
    # Any other key of TRL's configuration (SFTConfig, GRPOConfig, DPOConfig) by TRL's name
    trl: dict[str, Any] = field(default_factory=dict)


@dataclass(config=strict, kw_only=True)
class Sft(Optimization):
    """Supervised fine-tuning on worked examples, to teach the format or to distil a stronger model."""

    batch_size: Positive = 8  # Rows per device and batch
    warmup_ratio: Share = 0.03  # The share of steps over which the rate rises from 0
    packing: bool = False  # Fill each row of `model.max_length` tokens with several examples
    # bfd packs whole examples, which do not attend to each other, and cuts what exceeds `model.max_length`;
    # wrapped joins all examples, cuts every `model.max_length` tokens, and lets them attend to earlier ones
    packing_strategy: Literal["bfd", "wrapped"] = "bfd"
    group_by_length: bool = True  # Without packing: batch examples of similar length, to pad less
    eval_steps: Positive | None = None  # Steps between evaluations of the loss on `data.sft.test_split`


@dataclass(config=strict, kw_only=True)
class Grpo(Optimization):
    """GRPO: reinforcement learning from right and wrong answers."""

    prompts_per_step: Positive = 8  # Prompts per step on each device, each with a group of completions
    num_generations: AtLeast2 = 16  # Completions per prompt: the group whose mean reward is the baseline
    max_prompt_length: Positive = 512  # Longer prompts are dropped, not cut
    max_completion_length: Positive = 512  # A completion is cut off after this many tokens
    temperature: Above0 = 1.0  # Sampling temperature of the completions to train on
    top_p: Part = 1.0  # Sample from the likeliest tokens that together have this probability
    top_k: NonNegative = 0  # Sample from this many likeliest tokens; 0 from all
    min_p: Share | None = None  # Sample from tokens that are at least this share as likely as the likeliest
    repetition_penalty: Above0 = 1.0  # Above 1, tokens that already occurred become less likely
    # TRL's losses: how tokens and groups are weighted, and how ratios are clipped
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"] = "dapo"
    beta: From0 = 0.0  # Weight of the KL divergence from the model that the stage starts from
    mask_truncated_completions: bool = False  # Leave completions that were cut off out of the loss
    # Completions that the solver would end because they repeat themselves or keep counting: mask leaves
    # their tokens out of the loss, penalty takes 1 off their reward, null only counts them (`degenerate` in
    # log.jsonl)
    degenerate: Literal["mask", "penalty"] | None = None
    # Train only on groups with signal, and try up to this many times a step's prompts to find them (DAPO's
    # dynamic sampling): 1 tries no further prompts and drops groups without signal; null trains on all
    max_resample: Positive | None = None
    # Before training, keep problems whose share of right samples is within these bounds
    pass_rate: PassRates | None = None
    pass_rate_samples: AtLeast2 = 8  # Samples per problem for `pass_rate`
    # Reward functions (docs/rewards.md), each with a weight, or with a weight and options: `cosine: {weight:
    # 0.5, max_len: 2000}`
    rewards: Annotated[dict[str, Any], Field(min_length=1), AfterValidator(read_rewards)] = field(
        default_factory=lambda: {"accuracy": Reward()}
    )
    scheduler: Scheduler = "constant"  # How the rate falls after the warm-up
    # What samples completions: the trained model, vLLM in this process, or a `trl vllm-serve` elsewhere
    generation: Literal["transformers", "vllm", "vllm_server"] = "transformers"
    vllm_server_url: str = "http://127.0.0.1:8000"  # The server's address for `vllm_server`
    vllm_gpu_memory: Share = 0.5  # Share of GPU memory that vLLM takes alongside the trainer
    # Whether completions run Python in the sandbox, as the solver's do with `inference.tool_parser`. Its
    # `tool_turns` and `tool_seconds` apply here too. Tool output counts towards `max_completion_length` but
    # is left out of the loss.
    tools: bool = False
    sample_steps: Positive = 25  # Steps between the completions and rewards recorded in samples.jsonl


@dataclass(config=strict, kw_only=True)
class Dpo(Optimization):
    """DPO: prefer short right completions to long right ones and to wrong ones (second place of AIMO 2)."""

    batch_size: Positive = 8  # Pairs per device and batch
    beta: Above0 = 0.1  # Strength of the penalty for moving away from the model that the stage starts from
    problems: Positive = 500  # How many problems of `data.grpo` to sample pairs for
    samples: AtLeast2 = 8  # Samples per problem


@dataclass(config=strict, kw_only=True)
class Opd(Optimization):
    """On-policy distillation: the model writes, and a stronger teacher grades every token."""

    # A model folder, a hub id or a vLLM server (http://…), with the same vocabulary as the trained model
    teacher: str
    batch_size: Positive = 8  # Problems per device and batch, each with one completion
    divergence: Literal["reverse_kl", "jsd", "forward_kl"] = "reverse_kl"  # Of student and teacher, per token
    max_prompt_length: Positive = 512  # Longer prompts are dropped, not cut
    max_completion_length: Positive = 512  # A completion is cut off after this many tokens
    temperature: Above0 = 1.0  # Temperature of the completions and of both distributions in the loss
    top_p: Part = 1.0  # Sample from the likeliest tokens that together have this probability
    scheduler: Scheduler = "constant"  # How the rate falls after the warm-up
    generation: Literal["transformers", "vllm"] = "transformers"  # What samples: the model, or vLLM beside it
    vllm_gpu_memory: Share = 0.3  # Share of GPU memory that vLLM takes alongside student and teacher

    @property
    def asks_server(self) -> bool:
        return self.teacher.startswith(("http://", "https://"))


@dataclass(config=strict)
class Training:
    """Limits of every trained stage, and where its figures and models go."""

    time_limit_s: Positive | None = None  # Stop training and save after this many seconds of a stage
    disk_gb: Above0 | None = None  # Limit of the run's folder; a stage saves and stops before it is reached
    # How far the served model's log-probabilities may be from the trained one's, in nats on average. Null
    # allows what rounding explains: 0.0005 in float32; in 16 bits three times the change from merging the
    # adapter (at least 0.02, in vLLM 0.1), or 0.2 without an adapter; 0.5 with four-bit weights
    served_bound: Above0 | None = None
    # Where each step's figures go, besides the run's folder
    log_to: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    cache_dir: str | None = None  # Where models and datasets of the hub are kept; null is the hub's own cache
    push_to_hub: str | None = None  # A model repository (`owner/name`) to push a finished stage to
    push_to_kaggle: str | None = None  # A Kaggle model (`owner/model/framework/variation`) to push to as well


# ---- Inference


@dataclass(config=strict, frozen=True)
class SettingsSection:
    """The keys of `Settings`, which documents them. Null: the model folder's value, otherwise the default.

    If a stage trains, `tags` and `max_length` that are null come from the sections `prompt` and `model`.
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

    test: str | None = None  # A CSV with `id` and `problem` or `question`; null: built-in problems
    test_rows: Positive = 10  # How many built-in problems to answer without a test file

    @property
    def written(self) -> dict[str, Any]:
        """The solver's keys that are not null."""
        values = asdict(self)
        return {f.name: values[f.name] for f in fields(SettingsSection) if values[f.name] is not None}


@dataclass(config=strict)
class Profile:
    """All settings of a run. A stage without a section is left out; inference always runs."""

    profile: str  # The profile's name; if it is left out, the file's name without `.yaml`
    model: Model  # The base model
    seed: NonNegative = 0  # Determines every random choice of a run
    # The competition to answer: its name, its YAML file, or the keys of one. Its rules decide which answers
    # `data` keeps, and how answers are rewarded, measured, voted on and submitted. Null: integers, and aimo2
    # or aimo3, whichever has the test file's columns
    competition: dict[str, Any] | None = None
    prompt: Prompt = field(default_factory=Prompt)  # Tags, system prompt and chat template
    distil: Distil | None = None  # A teacher's completions, for `data.sft: {source: distil}`
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
        """What counts as an answer, and which answers are equal; None: the judge decides."""
        return self.rules.answer if self.rules else None

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(stage for stage in STAGES if getattr(self, stage) is not None)

    @property
    def trained(self) -> tuple[str, ...]:
        return tuple(stage for stage in self.stages if stage in TRAINED)

    def trained_before(self, stage: str) -> str | None:
        """Return the stage whose model `stage` starts from, or None if it starts from the base."""
        order = list(STAGES)
        earlier = [name for name in self.trained if order.index(name) < order.index(stage)]
        return earlier[-1] if earlier else None

    def solver_settings(self, model: str | Path) -> Settings:
        """Return a model folder's settings, with the profile's over them."""
        ours: dict[str, Any] = {}
        if self.trained:
            ours["tags"] = asdict(self.prompt.tags)
        if self.model.max_length:
            ours["max_length"] = self.model.max_length
        return settings.resolve_settings(model, ours, self.inference.written)

    @model_validator(mode="after")
    def check(self) -> "Profile":
        if self.trained and self.model.max_length is None:
            self.model.max_length = TRAINED_LENGTH
        if fault := next(self.faults(), None):
            raise ValueError(fault)
        return self

    def faults(self) -> Iterator[str]:
        """Yield the faults that no section can find alone."""
        try:
            rules = self.rules
        except AimoError as e:
            yield str(e)
            return
        if not PLAIN_NAME.fullmatch(self.profile) or self.profile in ("index.html", "README.md"):
            yield f"profile: {self.profile!r} cannot name the run's folder; take a name such as my-run"
        sets = {name: getattr(self.data, name, None) for name in ("sft", "grpo", "heldout")}
        judged: dict[str, Any] = {"data.heldout": sets["heldout"], "dpo": self.dpo}
        judged |= {f"{name}.probe_steps": getattr(self, name).probe_steps for name in self.trained}
        if self.grpo:
            judged |= {f"grpo.rewards.{name}": name in self.grpo.rewards for name in BY_ANSWER}
            judged["grpo.pass_rate"] = self.grpo.pass_rate
        if rules and rules.scoring == "marks" and (key := next(filter(judged.get, judged), None)):
            yield f"{key}: nothing here marks the proofs of {rules.slug}; leave it out"

        sources = [part.source for rows in sets.values() if rows for part in rows.mixture or [rows]]
        if "distil" in sources and not self.distil:
            yield "data: the source distil needs a section distil; add it, or name another source"
        aside = {name: bool(rows and rows.test_split) for name, rows in sets.items()}
        for name in self.trained:
            needed = str(TRAINED[name].trains_on)
            if not sets[needed]:
                yield f"{name}: trains on data.{needed}, which is missing; add it, or set {name} to null"
            if getattr(self, name).probe_steps and not aside["grpo"]:
                yield f"{name}.probe_steps: needs problems that are not trained on; set data.grpo.test_split"
        if self.sft and self.sft.eval_steps and not aside["sft"]:
            yield "sft.eval_steps: needs rows that are not trained on; set data.sft.test_split"

        if self.trained:  # the model is asked as it was trained
            settings.validate_settings(self.inference.written, "inference", "correct it")
            if self.prompt.system and self.inference.system:
                yield "inference.system: the model is trained with prompt.system; remove one of the two"
        if self.model.load_in_4bit and self.model.lora is None:
            yield "model.load_in_4bit: four-bit weights are frozen; set model.lora, such as {rank: 32}"
        if self.opd and self.opd.asks_server and self.opd.temperature != 1:
            yield "opd.temperature: a server's log-probabilities are those of temperature 1; set it to 1"
        for name, stage in ("grpo", self.grpo), ("opd", self.opd):
            if not stage:
                continue
            if stage.max_prompt_length + stage.max_completion_length > (self.model.max_length or 0):
                yield f"{name}: max_prompt_length + max_completion_length exceed model.max_length"
            if stage.generation != "transformers" and self.model.load_in_4bit:
                yield f"{name}.generation: vLLM takes no four-bit weights; set model.load_in_4bit to false"
        if not (grpo := self.grpo):
            return
        if (grpo.prompts_per_step * grpo.num_generations) % grpo.gradient_accumulation_steps:
            told = (
                f"does not divide the {grpo.prompts_per_step} x {grpo.num_generations} completions of a step"
            )
            yield f"grpo.gradient_accumulation_steps: {grpo.gradient_accumulation_steps} {told}"
        punished, most = grpo.rewards.get("soft_overlong_punishment"), grpo.max_completion_length
        if punished and (begins := punished.max_completion_len - punished.soft_punish_cache) >= most:
            told = f"begins at {begins} tokens; set max_completion_len to {most}, max_completion_length"
            yield f"grpo.rewards.soft_overlong_punishment: {told}"
        if grpo.generation == "vllm" and self.model.backend == "unsloth" and self.model.lora is None:
            yield "grpo.generation: Unsloth samples adapters alone in vLLM; set model.backend to another"
        if not grpo.tools:
            return
        if (template := self.prompt.template) in ("plain", "chatml"):
            yield f"grpo.tools: the template {template} offers no tools; set prompt.template to model"
        if self.inference.tool_parser is None:
            yield "grpo.tools: inference.tool_parser is null, and fenced blocks are no calls to TRL; set it"
        for key in ("probe_steps", "pass_rate"):
            if getattr(grpo, key) is not None:
                yield f"grpo.{key}: samples without tools; set it to null, or grpo.tools to false"
