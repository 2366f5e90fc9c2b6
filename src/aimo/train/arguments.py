"""Build TRL's configuration of a stage from the profile, and choose the dtype that it trains in.

A key of the stage's section that TRL also has keeps its name. Keys under `STAGE.trl` go to TRL unchanged and
override our fixed values; those in `TAKEN` are refused.
"""

import difflib
import importlib.util
import math
import os
from dataclasses import fields
from typing import Any

from aimo.config import Grpo, Profile
from aimo.config.reading import suggest
from aimo.inference.errors import AimoError
from aimo.run import machine
from aimo.run.runs import Run
from aimo.train import compat

# TRL keys that follow from other keys, or that no stage supports; `aliases.yaml` says what to set instead.
# Transformers reads `do_train`, `do_eval` and `do_predict` nowhere.
TAKEN = {
    *("num_train_epochs", "lr_scheduler_type", "warmup_steps", "optim", "per_device_train_batch_size"),
    *("max_length", "bf16", "fp16", "gradient_checkpointing", "seed", "use_cpu", "output_dir", "report_to"),
    *("eval_strategy", "train_sampling_strategy", "reward_weights", "max_tool_calling_iterations"),
    *("use_vllm", "vllm_mode", "vllm_server_base_url", "vllm_server_host", "vllm_server_port"),
    *("vllm_max_model_length", "vllm_gpu_memory_utilization", "chat_template_path", "eos_token"),
    *("push_to_hub", "hub_model_id", "resume_from_checkpoint", "model_init_kwargs", "dataset_text_field"),
    *("do_train", "do_eval", "do_predict", "teacher_model_name_or_path", "teacher_model_server_url"),
}
# TRL keys that keep the value of Unsloth's configuration where the two differ, and the reason.
UNSLOTHS = {
    "gradient_checkpointing_kwargs": "its offloaded checkpointing is reentrant",
    "router_aux_loss_coef": "its forward pass computes no auxiliary loss of experts",
    "padding_free": "null lets it leave out padding where the model allows it; the loss is the same",
    "generation_kwargs": "an empty mapping says what TRL's null says",
    "bf16_full_eval": "it acts on evaluations outside training, and no stage has one",
    "fp16_full_eval": "the same",
}
SERVED_TOP_K = 20  # most likely tokens that a served teacher sends: vLLM's default limit


def stage_arguments(run: Run) -> Any:
    """Return TRL's configuration of the run's stage. Raise AimoError for a key under `STAGE.trl` that cannot
    be set, a package that is not installed, or a value that TRL refuses."""
    stage, profile, model = run.stage, run.profile, run.profile.model
    section: Any = getattr(profile, stage)
    cuda, dtype = machine.computes_on_gpu(), choose_dtype(profile)[0]
    samples, asks_server = stage in ("grpo", "opd"), stage == "opd" and section.asks_server
    named = "Distillation" if stage == "opd" else stage.upper()
    kind = compat.server_distillation()[1] if asks_server else getattr(compat.trl, f"{named}Config")
    known, own = {f.name for f in fields(kind)}, {f.name for f in fields(section)}
    taken, least_rate = TAKEN | own | {"beta"} if stage == "opd" else TAKEN | own, {}
    if section.scheduler == "cosine_with_min_lr":
        taken, least_rate = taken | {"lr_scheduler_kwargs"}, {"min_lr_rate": section.min_lr_rate}
    for key in section.trl:
        where = f"{stage}.trl.{key}"
        if key in taken:
            raise AimoError(f"{where} cannot be set there{suggest(f'{stage}.{key}')}")
        if key not in known:
            close = "".join(f", did you mean {c}?" for c in difflib.get_close_matches(key, known, n=1))
            raise AimoError(f"{where}: {kind.__name__} has no such key{close}")
    if profile.training.log_to != "none":
        require_package(profile.training.log_to, f"training.log_to: {profile.training.log_to}")
    if section.use_liger_kernel:
        require_package("liger_kernel", f"{stage}.use_liger_kernel")
    if samples and section.generation == "vllm" and model.lora is None and not cuda:
        raise AimoError(
            f"{stage}.generation: on a CPU vLLM keeps the output layer it started with; "
            f"set model.lora, or {stage}.generation to transformers"
        )

    values = {
        "output_dir": str(run.folder),
        "num_train_epochs": section.epochs,
        "lr_scheduler_type": section.scheduler,
        "lr_scheduler_kwargs": least_rate,
        "warmup_steps": section.warmup_ratio,  # below 1, Transformers takes it as a share of all steps
        "optim": section.optimizer,
        "save_total_limit": 2,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "seed": profile.seed,
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        # Unsloth does its own checkpointing on a GPU; a model that trains on a CPU is small and needs none.
        "gradient_checkpointing": cuda and model.gradient_checkpointing and model.backend == "transformers",
        "use_cpu": not cuda,
        "report_to": profile.training.log_to,
        "run_name": f"{profile.profile}-{stage}",
        "disable_tqdm": True,
    }
    values |= {key: value for key in own & known if (value := getattr(section, key)) is not None}
    if samples:
        values["use_vllm"] = section.generation != "transformers"
        values["vllm_gpu_memory_utilization"] = section.vllm_gpu_memory
        values["vllm_max_model_length"] = model.max_length
    else:
        values["max_length"] = model.max_length
    if stage == "grpo":
        size = completions_per_pass(section, int(os.environ.get("WORLD_SIZE", 1)))
        weights = [reward.weight for reward in section.rewards.values()]
        values["reward_weights"] = weights + [1.0] * (section.degenerate == "penalty")
        if section.generation == "vllm_server":
            values |= {"vllm_mode": "server", "vllm_server_base_url": section.vllm_server_url}
    else:
        size = section.batch_size
    if stage == "opd":
        values["beta"] = {"forward_kl": 0.0, "jsd": 0.5, "reverse_kl": 1.0}[section.divergence]
    if asks_server:
        values["loss_top_k"] = SERVED_TOP_K if section.divergence == "forward_kl" else 1  # TRL takes only 1
        url = section.teacher.rstrip("/").removesuffix("/v1")  # TRL appends /health to the root
        values["teacher_model_server_url"] = url
    if stage == "sft":
        values |= {"completion_only_loss": True, "train_sampling_strategy": "random"}  # see sft.ByLength
        values["include_num_input_tokens_seen"] = "non_padding" if model.backend == "unsloth" else "no"
        if section.packing and section.packing_strategy == "bfd" and "flash" not in model.attention:
            # TRL joins a batch's packed rows; without flash attention, the cost grows with their square.
            values["gradient_accumulation_steps"], size = section.gradient_accumulation_steps * size, 1
        if section.eval_steps:
            values |= {"eval_strategy": "steps", "per_device_eval_batch_size": size}
    values |= {"per_device_train_batch_size": size} | section.trl
    try:
        configured = kind(**values)
        # Unsloth replaces TRL's class with a subclass of the same name and changes some values; TRL's are
        # copied back. TRL's is built only then: DeepSpeed's configuration dies with the last object built.
        trls_own = [base for base in kind.__mro__ if base.__name__ == kind.__name__][-1]
        plain = configured if trls_own is kind else trls_own(**values)
    except (TypeError, ValueError) as e:
        raise AimoError(f"{stage}: {' '.join(str(e).split())}") from None
    for name in {f.name for f in fields(plain)} - UNSLOTHS.keys():
        setattr(configured, name, getattr(plain, name))
    compat.take_one_gpu(configured)
    # Unsloth's "float32" computes in 16 bits with float32 weights; its "bfloat16" computes in the weights'
    # own dtype. If this is unset, its trainers compute float32 in 16 bits.
    in_16_bits = configured.bf16 or configured.fp16
    os.environ["UNSLOTH_MIXED_PRECISION"] = "float32" if in_16_bits else "bfloat16"
    return configured


def require_package(package: str, key: str) -> None:
    if importlib.util.find_spec(package) is None:
        name = package.replace("_", "-")
        raise AimoError(f"{key} needs a package that is not installed: pip install {name}")


def completions_per_pass(grpo: Grpo, processes: int) -> int:
    """Return how many completions a GRPO process puts in a pass; AimoError if they do not split evenly."""
    completions = grpo.prompts_per_step * grpo.num_generations
    parts = processes * grpo.gradient_accumulation_steps
    if completions % parts:
        raise AimoError(
            f"grpo: {grpo.prompts_per_step} x {grpo.num_generations} completions a step do not split evenly "
            f"over {processes} processes x {grpo.gradient_accumulation_steps} steps of accumulation; "
            f"make grpo.prompts_per_step a multiple of {parts // math.gcd(parts, grpo.num_generations)}"
        )
    return completions // parts


# ---- Dtype and sharding: from the profile, torch, and the environment that `accelerate launch` sets


def choose_dtype(profile: Profile) -> tuple[str, str]:
    """Return the dtype to compute in, and the reason. Raise AimoError for float16 on a CPU."""
    torch = machine.load_torch()
    wanted, cuda = profile.model.dtype, machine.computes_on_gpu()
    if wanted == "float16" and not cuda:
        raise AimoError("model.dtype: float16 cannot be trained on a CPU; set it to auto")
    if wanted != "auto":
        return wanted, "the profile says so"
    if not cuda:
        return "float32", "there is no GPU"
    name = torch.cuda.get_device_name()
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16", f"{name} computes in it"
    return "float16", f"{name} has no bfloat16"


def weights_dtype(profile: Profile) -> str:
    """Return the dtype to load the weights in.

    Trained weights stay in float32 and autocast computes in 16 bits: a bfloat16 weight would lose an AdamW
    step that is smaller than its last bit. DeepSpeed keeps its own float32 copy.
    """
    trained_here = profile.model.lora is None and not with_deepspeed()
    return "float32" if trained_here else choose_dtype(profile)[0]


def with_deepspeed() -> bool:
    return os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"


def zero_3() -> bool:
    return with_deepspeed() and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"


def is_sharded() -> bool:
    """Return whether each process holds only a part of the model, as under FSDP and ZeRO-3."""
    return zero_3() or os.environ.get("ACCELERATE_USE_FSDP") == "true"
