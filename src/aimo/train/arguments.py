"""TRL's configuration of a stage, made from the profile. Import Unsloth before: it replaces TRL's classes.

A key of a stage's section that TRL's configuration has too is passed on by its name. `RENAMED` has those with
another name here, `REFUSED` those that cannot be changed. Any other key under `STAGE.trl` is passed to TRL as
it is, and takes precedence over our fixed values. Out of scope: launching on several devices (`launch`).
"""

import difflib
import importlib.util
import math
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from aimo.config import Grpo, Profile
from aimo.errors import AimoError
from aimo.run import machine
from aimo.train import placement

RENAMED = {
    "num_train_epochs": "{stage}.epochs",
    "lr_scheduler_type": "{stage}.scheduler",
    "warmup_steps": "{stage}.warmup_ratio",
    "optim": "{stage}.optimizer",
    "per_device_train_batch_size": "{stage}.batch_size",
    "eval_strategy": "sft.eval_steps",
    "train_sampling_strategy": "sft.group_by_length",
    "reward_weights": "grpo.rewards",
    "use_vllm": "grpo.generation",
    "vllm_mode": "grpo.generation",
    "vllm_server_base_url": "grpo.vllm_server_url",
    "vllm_server_host": "grpo.vllm_server_url",
    "vllm_server_port": "grpo.vllm_server_url",
    "vllm_gpu_memory_utilization": "grpo.vllm_gpu_memory",
    "vllm_max_model_length": "model.max_length",
    "max_tool_calling_iterations": "inference.tool_turns",
    "max_length": "model.max_length",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "gradient_checkpointing": "model.gradient_checkpointing",
    "seed": "seed",
    "report_to": "training.log_to",
    "push_to_hub": "training.push_to_hub",
    "hub_model_id": "training.push_to_hub",
    "chat_template_path": "prompt.template",
    "eos_token": "prompt.eos_token",
}
"""TRL's name of what the profile has under another: a key, in which {stage} stands for the stage."""

REFUSED = {
    "output_dir": "a stage writes into the run's folder; choose that with --run-dir",
    "resume_from_checkpoint": "a stage goes on from its last checkpoint, or --from {stage}/checkpoint-N",
    "model_init_kwargs": "the model is loaded before; its settings are under model",
    "dataset_text_field": "rows have a prompt and a completion, not one text; choose columns under data",
    "use_cpu": "the GPU is used where there is one; set CUDA_VISIBLE_DEVICES= to hide it",
    "do_train": "TRL's trainers do not read it",
    "do_eval": "TRL's trainers do not read it; set sft.eval_steps",
    "do_predict": "TRL's trainers do not read it",
}
"""Why a key of TRL's cannot be set, and what to do instead."""

UNSLOTHS = {
    "gradient_checkpointing_kwargs": "its offloaded checkpointing is reentrant",
    "router_aux_loss_coef": "its forward pass computes no auxiliary loss of experts",
    "padding_free": "null lets it leave out padding where the model allows it; the loss is the same",
    "generation_kwargs": "an empty mapping says what TRL's null says",
    "bf16_full_eval": "it acts on evaluations outside training, and no stage has one",
    "fp16_full_eval": "the same",
}
"""Keys of TRL's that keep the value of Unsloth's configuration where it differs from TRL's, and why."""


def sft_arguments(profile: Profile, folder: Path) -> Any:
    """TRL's SFTConfig of a profile with an `sft` section; `folder` is the stage's."""
    from trl import SFTConfig

    sft = profile.sft
    assert sft
    batch_size, steps = sft.batch_size, sft.gradient_accumulation_steps
    packs_whole = sft.packing and sft.packing_strategy == "bfd"
    if packs_whole and "flash" not in profile.model.attention:
        # TRL joins the packed rows of a batch; without flash attention its cost grows with the square.
        batch_size, steps = 1, steps * batch_size
    evaluation = (
        {"eval_strategy": "steps", "per_device_eval_batch_size": batch_size} if sft.eval_steps else {}
    )
    return configure(
        SFTConfig,
        "sft",
        profile,
        folder,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=steps,
        max_length=profile.model.max_length,
        completion_only_loss=True,
        train_sampling_strategy="random",  # trl_trainers.SftTrainer orders rows by length
        **evaluation,
    )


def grpo_arguments(profile: Profile, folder: Path) -> Any:
    """TRL's GRPOConfig of a profile with a `grpo` section; `folder` is the stage's."""
    from trl import GRPOConfig

    grpo = profile.grpo
    assert grpo
    if grpo.generation == "vllm" and profile.model.lora is None and not machine.computes_on_gpu():
        raise AimoError(
            "grpo.generation: on a CPU vLLM keeps the output layer it started with; "
            "set model.lora, or grpo.generation to transformers"
        )
    server = {"vllm_server_base_url": grpo.vllm_server_url} if grpo.generation == "vllm_server" else {}
    return configure(
        GRPOConfig,
        "grpo",
        profile,
        folder,
        per_device_train_batch_size=completions_per_pass(grpo, int(os.environ.get("WORLD_SIZE", 1))),
        reward_weights=[reward.weight for reward in grpo.rewards.values()],
        use_vllm=grpo.generation != "transformers",
        vllm_mode="server" if grpo.generation == "vllm_server" else "colocate",
        vllm_gpu_memory_utilization=grpo.vllm_gpu_memory,
        vllm_max_model_length=profile.model.max_length,
        **server,
    )


def dpo_arguments(profile: Profile, folder: Path) -> Any:
    """TRL's DPOConfig of a profile with a `dpo` section; `folder` is the stage's."""
    from trl import DPOConfig

    assert profile.dpo
    return configure(
        DPOConfig,
        "dpo",
        profile,
        folder,
        per_device_train_batch_size=profile.dpo.batch_size,
        max_length=profile.model.max_length,
    )


def configure(kind: Any, stage: str, profile: Profile, folder: Path, **arguments: Any) -> Any:
    """TRL's configuration `kind` of a stage; `arguments` are those of this stage alone.

    AimoError names a key under `trl` that TRL does not know, that has a key of its own, or that TRL refuses.
    """
    from aimo.train import compat

    section = getattr(profile, stage)
    known = {f.name for f in fields(kind)}
    for key in section.trl:
        check_key(key, stage, section, kind.__name__, known)
    if profile.training.log_to != "none":
        require(profile.training.log_to, f"training.log_to: {profile.training.log_to}")
    if section.use_liger_kernel:
        require("liger_kernel", f"{stage}.use_liger_kernel")
    values = common(stage, profile, folder) | same_name(section, known) | arguments | section.trl
    try:
        configured = kind(**values)
        # Of TRL's own there is one at a time: DeepSpeed's configuration lives as long as the last one made.
        plain = configured if trls_own(kind) is kind else trls_own(kind)(**values)
    except (TypeError, ValueError) as e:
        raise AimoError(f"{stage}: {' '.join(str(e).split())}") from None
    for name in {f.name for f in fields(plain)} - UNSLOTHS.keys():  # Unsloth's class changes some values
        setattr(configured, name, getattr(plain, name))
    compat.take_one_gpu(configured)
    # Unsloth's word for computing in 16 bits is float32, its weights' type, and bfloat16 for the weights' own
    # type. Without it, its trainers compute float32 in 16 bits.
    in_16_bits = configured.bf16 or configured.fp16
    os.environ["UNSLOTH_MIXED_PRECISION"] = "float32" if in_16_bits else "bfloat16"
    return configured


def trls_own(kind: Any) -> Any:
    """TRL's configuration class; Unsloth puts a subclass of the same name in its place."""
    return [base for base in kind.__mro__ if base.__name__ == kind.__name__][-1]


def same_name(section: Any, known: set[str]) -> dict[str, Any]:
    """The keys of a stage's section that TRL's configuration has by the same name; null takes TRL's
    default."""
    values = {f.name: getattr(section, f.name) for f in fields(section) if f.name in known}
    return {name: value for name, value in values.items() if value is not None}


def common(stage: str, profile: Profile, folder: Path) -> dict[str, Any]:
    """What every stage passes to TRL under another name than the profile's, and our fixed values."""
    section, cuda = getattr(profile, stage), machine.computes_on_gpu()
    dtype = placement.choose_dtype(profile)[0]
    least = {"min_lr_rate": section.min_lr_rate} if section.scheduler == "cosine_with_min_lr" else {}
    # Unsloth brings its own checkpointing on a GPU; a model that runs on a CPU is small enough to do without.
    checkpointing = cuda and profile.model.gradient_checkpointing and profile.model.backend == "transformers"
    return {
        "output_dir": str(folder),
        "num_train_epochs": section.epochs,
        "lr_scheduler_type": section.scheduler,
        "lr_scheduler_kwargs": least,
        "warmup_steps": section.warmup_ratio,  # below 1, Transformers takes it as a share of all steps
        "optim": section.optimizer,
        "save_total_limit": 2,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "seed": profile.seed,
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "gradient_checkpointing": checkpointing,
        "use_cpu": not cuda,
        "report_to": profile.training.log_to,
        "run_name": f"{profile.profile}-{stage}",
        "disable_tqdm": True,
    }


def check_key(key: str, stage: str, section: Any, config: str, known: set[str]) -> None:
    """Refuse a key under `STAGE.trl` that would be ignored, by the name of what to set instead."""
    where = f"{stage}.trl.{key}"
    ours = RENAMED.get(key)
    if stage == "grpo" and key == "per_device_train_batch_size":
        ours = "grpo.prompts_per_step"
    if key == "lr_scheduler_kwargs" and section.scheduler == "cosine_with_min_lr":
        ours = "{stage}.min_lr_rate"
    if key in {f.name for f in fields(section)}:
        ours = f"{stage}.{key}"
    if ours:
        raise AimoError(f"{where}: set {ours.format(stage=stage)} instead")
    if key in REFUSED:
        raise AimoError(f"{where} cannot be set: {REFUSED[key].format(stage=stage)}")
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1)
        raise AimoError(
            f"{where}: {config} has no such key" + (f", did you mean {close[0]}?" if close else "")
        )


def require(package: str, key: str) -> None:
    """Refuse a key whose package is not installed."""
    if importlib.util.find_spec(package) is None:
        name = package.replace("_", "-")
        raise AimoError(f"{key} needs a package that is not installed: pip install {name}")


def completions_per_pass(grpo: Grpo, processes: int) -> int:
    """GRPO's completions in one forward pass of a process: a step's, split over processes and accumulation
    steps."""
    completions = grpo.prompts_per_step * grpo.num_generations
    parts = processes * grpo.gradient_accumulation_steps
    if completions % parts:
        prompts = parts // math.gcd(parts, grpo.num_generations)
        raise AimoError(
            f"grpo: {grpo.prompts_per_step} x {grpo.num_generations} completions a step do not split evenly "
            f"over {processes} processes x {grpo.gradient_accumulation_steps} steps of accumulation; "
            f"make grpo.prompts_per_step a multiple of {prompts}"
        )
    return completions // parts
