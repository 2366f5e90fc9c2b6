"""The `model`, `sft`, `grpo`, `dpo` and `training` sections of a profile.

`aimo.train.arguments` turns them into TRL's configuration. Keys that only TRL needs go under `trl`.
"""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from aimo.config.data import Above0, From0, Part
from aimo.inference.settings import NonNegative, Positive, Rate, Share, strict
from aimo.rewards import Reward, read_rewards

AtLeast2 = Annotated[int, Field(ge=2)]
Scheduler = Literal["constant", "linear", "cosine", "cosine_with_min_lr"]


@dataclass(config=strict)
class Lora:
    """Low-rank adapters (PEFT); merged into the weights when a stage ends."""

    rank: Positive = 32  # The rank of the two matrices of an adapter
    alpha: Positive = 64  # An adapter counts alpha / rank times
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
    # Tokens of prompt and completion together. Null: 2,048 where a stage trains, else the model's own.
    max_length: Positive | None = None
    # auto takes bfloat16 on a GPU that has it, float16 on an older one, float32 on a CPU
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    load_in_4bit: bool = False  # QLoRA: the frozen weights in four bits (GPU only)
    gradient_checkpointing: bool = True  # On a GPU, compute activations twice: slower, much less memory
    attention: str = "sdpa"  # Transformers' attention, such as flash_attention_2; Unsloth brings its own
    lora: Lora | None = field(default_factory=Lora)  # null trains all weights

    @model_validator(mode="after")
    def check(self) -> "Model":
        if self.load_in_4bit and self.lora is None:
            raise ValueError("load_in_4bit: four-bit weights are frozen; set lora, such as {rank: 32}")
        return self


@dataclass(config=strict, kw_only=True)
class Optimization:
    """What every trained stage has."""

    learning_rate: Rate  # The highest rate, which the warm-up ends at
    epochs: Above0 = 1.0  # How often each row is trained on
    max_steps: Positive | None = None  # Stop after this many steps; goes over `epochs`
    gradient_accumulation_steps: Positive = 1  # Batches whose gradients make one step
    warmup_ratio: Share = 0.0  # The share of the steps in which the rate rises from 0
    scheduler: Scheduler = "linear"  # How the rate falls after the warm-up
    min_lr_rate: Share = 0.1  # For cosine_with_min_lr: the last rate as a share of the first
    # The 8-bit ones need a GPU
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "adafactor"] = (
        "adamw_torch"
    )
    weight_decay: From0 = 0.0  # How strongly weights are drawn to 0
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

    batch_size: Positive = 8  # Rows on one device at a time
    warmup_ratio: Share = 0.03  # The share of the steps in which the rate rises from 0
    packing: bool = False  # Fill each row of `model.max_length` tokens with several examples
    # bfd packs whole examples, which do not attend to each other, and cuts what exceeds `model.max_length`;
    # wrapped joins all examples and cuts every `model.max_length` tokens; they attend to those before them
    packing_strategy: Literal["bfd", "wrapped"] = "bfd"
    group_by_length: bool = True  # Without packing: batch examples of similar length, to pad less
    eval_steps: Positive | None = None  # Steps between losses on the rows of `data.sft.test_split`


@dataclass(config=strict, kw_only=True)
class Grpo(Optimization):
    """GRPO: reinforcement learning from right and wrong answers."""

    prompts_per_step: Positive = 8  # Groups of a step, on each device
    num_generations: AtLeast2 = 16  # Completions per prompt: the group whose mean reward is the baseline
    max_prompt_length: Positive = 512  # Longer prompts are dropped, not cut
    max_completion_length: Positive = 512  # Tokens; a completion is cut off there
    temperature: Above0 = 1.0  # Of the completions that are trained on
    top_p: Part = 1.0  # Sample from the likeliest tokens that together have this probability
    top_k: NonNegative = 0  # Sample from this many likeliest tokens; 0 from all
    min_p: Share | None = None  # Sample from tokens that are at least this share as likely as the likeliest
    repetition_penalty: Above0 = 1.0  # Above 1, tokens that have occurred become less likely
    # TRL's losses: how tokens and groups are weighted, and how ratios are clipped
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"] = "dapo"
    beta: From0 = 0.0  # Weight of the KL divergence from the model that the stage starts from
    mask_truncated_completions: bool = False  # Leave completions that were cut off out of the loss
    # Completions that the solver would end because they repeat themselves or count on: mask leaves their
    # tokens out of the loss, penalty takes 1 off their reward, null only counts them (`degenerate` in
    # log.jsonl)
    degenerate: Literal["mask", "penalty"] | None = None
    # Train on groups with signal only, from at most this many times as many prompts as a step has (DAPO's
    # dynamic sampling): 1 samples no more than before and leaves the others out; null trains on all
    max_resample: Positive | None = None
    # Before training, keep problems whose share of right samples lies within these bounds
    pass_rate: tuple[float, float] | None = None
    pass_rate_samples: AtLeast2 = 8  # Samples of each problem for `pass_rate`
    # Reward functions (docs/rewards.md), each with a weight, or with a weight and options: `cosine: {weight:
    # 0.5, max_len: 2000}`
    rewards: Annotated[dict[str, Any], Field(min_length=1), AfterValidator(read_rewards)] = field(
        default_factory=lambda: {"accuracy": Reward()}
    )
    scheduler: Scheduler = "constant"  # How the rate falls after the warm-up
    # What samples: the trained model, vLLM in this process, or a `trl vllm-serve` elsewhere
    generation: Literal["transformers", "vllm", "vllm_server"] = "transformers"
    vllm_server_url: str = "http://127.0.0.1:8000"  # Where the server of `vllm_server` is
    vllm_gpu_memory: Share = 0.5  # Share of the GPU's memory that vLLM takes beside the trainer
    # Whether completions run Python in the sandbox, as the solver's do with `inference.tool_parser`; its
    # `tool_turns` and `tool_seconds` hold here too. Tool output counts to `max_completion_length`, and is
    # left out of the loss.
    tools: bool = False
    sample_steps: Positive = 25  # Steps between the completions that samples.jsonl keeps with their rewards

    @model_validator(mode="after")
    def check(self) -> "Grpo":
        if (self.prompts_per_step * self.num_generations) % self.gradient_accumulation_steps:
            raise ValueError(
                f"gradient_accumulation_steps: {self.gradient_accumulation_steps} does not divide the "
                f"{self.prompts_per_step} x {self.num_generations} completions of a step"
            )
        overlong = self.rewards.get("soft_overlong_punishment")
        if not overlong:
            return self
        if overlong.max_completion_len - overlong.soft_punish_cache >= self.max_completion_length:
            raise ValueError(
                f"rewards.soft_overlong_punishment: starts beyond {overlong.max_completion_len} - "
                f"{overlong.soft_punish_cache} tokens, which no completion reaches; set max_completion_len "
                f"to max_completion_length, {self.max_completion_length}"
            )
        return self


@dataclass(config=strict, kw_only=True)
class Dpo(Optimization):
    """DPO: prefer short right completions to long right ones and to wrong ones (second place of AIMO 2)."""

    batch_size: Positive = 8  # Pairs on one device at a time
    beta: Above0 = 0.1  # Strength of the penalty for moving away from the model that the stage starts from
    problems: Positive = 500  # How many problems of `data.grpo` pairs are sampled for
    samples: AtLeast2 = 8  # Samples of each problem


@dataclass(config=strict, kw_only=True)
class Opd(Optimization):
    """On-policy distillation: the model writes, and a stronger teacher grades every token of it."""

    # A model folder, a hub id, or a server of vLLM's (http://…), with the vocabulary of the trained model
    teacher: str
    batch_size: Positive = 8  # Problems on one device at a time, each with one completion
    divergence: Literal["reverse_kl", "jsd", "forward_kl"] = "reverse_kl"  # Of student and teacher at a token
    max_prompt_length: Positive = 512  # Longer prompts are dropped, not cut
    max_completion_length: Positive = 512  # Tokens; a completion is cut off there
    temperature: Above0 = 1.0  # Of the completions, and of both distributions in the loss
    top_p: Part = 1.0  # Sample from the likeliest tokens that together have this probability
    scheduler: Scheduler = "constant"  # How the rate falls after the warm-up
    generation: Literal["transformers", "vllm"] = "transformers"  # What samples: the model, or vLLM beside it
    vllm_gpu_memory: Share = 0.3  # Share of the GPU's memory that vLLM takes beside student and teacher

    @property
    def asks_server(self) -> bool:
        return self.teacher.startswith(("http://", "https://"))

    @model_validator(mode="after")
    def check(self) -> "Opd":
        if self.asks_server and self.temperature != 1:
            told = "a server's log-probabilities are those of temperature 1; set it to 1, or name a model"
            raise ValueError(f"temperature: {self.temperature:g}: {told} folder in opd.teacher")
        return self


@dataclass(config=strict)
class Training:
    """Limits of every trained stage, and where its figures and models go."""

    time_limit_s: Positive | None = None  # Stop training and save after this many seconds of a stage
    disk_gb: Above0 | None = None  # What the run's folder may take; a stage stops and saves before
    # How far the log-probabilities of the served model may be from those of the trained one, in nats on
    # average. Null takes what rounding explains: 0.0005 in float32, in 16 bits three times what merging the
    # adapter moves them (at least 0.02, in vLLM 0.1; 0.2 without an adapter), 0.5 with four-bit weights
    served_bound: Above0 | None = None
    # Where the figures of each step go besides the run's folder
    log_to: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    cache_dir: str | None = None  # Where the hub's models and data sets are kept; null is the hub's own cache
    push_to_hub: str | None = None  # A model repository (`owner/name`) that a finished stage is pushed to
    push_to_kaggle: str | None = None  # A Kaggle model (`owner/model/framework/variation`) to push to as well
