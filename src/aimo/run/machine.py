"""The machine: its device, and the versions of the packages that a result depends on."""

import importlib.metadata
import os
import platform
import shutil
import subprocess

from aimo.errors import AimoError

PACKAGES = [
    "torch",
    "transformers",
    "trl",
    "peft",
    "unsloth",
    "datasets",
    "vllm",
    "math-verify",
    "jupytext",
    "papermill",
    "kaggle",
]


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU: `make setup` picks its lock file in the same way."""
    return nvidia_smi("-L") is not None


def nvidia_smi(*arguments: str) -> str | None:
    """What `nvidia-smi` prints; None without the tool or a GPU."""
    if not shutil.which("nvidia-smi"):
        return None
    done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def driver() -> str:
    """The version of the NVIDIA driver; empty without a GPU."""
    return (nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader") or "").partition("\n")[0]


def computes_on_gpu() -> bool:
    """Whether torch uses a GPU. AimoError when there is one that torch cannot use and that was not hidden."""
    import torch

    if torch.cuda.is_available():
        return True
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if not hidden and has_gpu():
        built = torch.version.cuda
        why = f"its driver {driver()} is too old for CUDA {built}: update it" if built else "run `make setup`"
        raise AimoError(
            f"torch {torch.__version__} cannot use the GPU of this machine; {why}, "
            "or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    return False


def versions() -> dict[str, str]:
    """The installed versions of the eleven packages."""
    found = {}
    for name in PACKAGES:
        for candidate in (name, f"{name}-cpu"):
            try:
                found[name] = importlib.metadata.version(candidate)
                break
            except importlib.metadata.PackageNotFoundError:
                found[name] = "missing"
    return found


def device() -> str:
    """A description of the device."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"
