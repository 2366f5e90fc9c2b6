"""Where a model is trained, in which number types, and what other processes share it.

Everything here is decided from the profile, from what torch says of the GPUs, and from the environment that
`accelerate launch` sets. Import Unsloth before. Out of scope: starting processes, which is `launch`.
"""

import os
from typing import Any

from aimo.config import Profile
from aimo.errors import AimoError
from aimo.run import machine


def choose_dtype(profile: Profile) -> tuple[str, str]:
    """The number type to compute in, and why."""
    import torch

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
    """The number type to load the weights in.

    Trained weights are kept in float32 and computed with under autocast: AdamW's steps on bfloat16 weights
    are lost where they are smaller than the weight's last bit. DeepSpeed keeps a float32 copy of its own.
    """
    if profile.model.lora is None and not with_deepspeed():
        return "float32"
    return choose_dtype(profile)[0]


def with_deepspeed() -> bool:
    """Whether this process was launched with ZeRO."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"


def zero_stage() -> int:
    """The stage of ZeRO this process was launched with; 0 without."""
    return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 0)) if with_deepspeed() else 0


def is_sharded() -> bool:
    """Whether each process keeps a part of the model only: under FSDP and ZeRO-3."""
    return zero_stage() == 3 or os.environ.get("ACCELERATE_USE_FSDP") == "true"


def device_map() -> dict[str, int] | None:
    """Transformers' `device_map` for the GPU of this process; None leaves the model on the CPU.

    There it stays without a GPU, and where accelerate or DeepSpeed place the shards of it.
    """
    if is_sharded() or not machine.computes_on_gpu():
        return None
    return {"": int(os.environ.get("LOCAL_RANK", 0))}


def describe(profile: Profile) -> str:
    """The number type and the device in one line, and how to use the GPUs that this process leaves."""
    import torch

    name, reason = choose_dtype(profile)
    line = f"Training in {name}: {reason}."
    gpus = torch.cuda.device_count() if machine.computes_on_gpu() else 0
    if gpus > 1 and "WORLD_SIZE" not in os.environ:
        line += f" One process takes one of the {gpus} GPUs; `aimo launch` trains on all."
    return line


def keep_trained_in_float32(model: Any) -> None:
    """Cast every trained parameter to float32, as TRL makes the adapters of a four-bit model bfloat16.

    In that type they lose small steps, and the scaler of float16 training refuses them. Not under DeepSpeed,
    which casts and copies by itself.
    """
    import torch

    if with_deepspeed():
        return
    for weight in model.parameters():
        if weight.requires_grad and weight.dtype != torch.float32:
            weight.data = weight.data.float()
