"""The machine: its device, and the versions of the packages that a result depends on."""

import importlib.metadata
import os
import platform
import shutil
import subprocess

from aimo.errors import AimoError

# Those that a result depends on.
PACKAGES = ["torch", "transformers", "trl", "peft", "unsloth", "datasets", "vllm", "math-verify", "jupytext"]
PACKAGES += ["papermill", "kaggle"]


def has_gpu() -> bool:
    """Return whether there is an NVIDIA GPU: `make setup` picks its lock file in the same way."""
    return nvidia_smi("-L") is not None


def nvidia_smi(*arguments: str) -> str | None:
    """Return what `nvidia-smi` prints; None without the tool or a GPU."""
    if not shutil.which("nvidia-smi"):
        return None
    done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def driver() -> str:
    """Return the version of the NVIDIA driver; empty without a GPU."""
    return (nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader") or "").partition("\n")[0]


def computes_on_gpu() -> bool:
    """Return whether torch uses a GPU; AimoError for one that it cannot use and that was not hidden."""
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


def installed(package: str) -> str | None:
    """Return the version of a package, or of its build for CPUs; None without it."""
    for name in (package, f"{package}-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def versions() -> dict[str, str]:
    """Return the installed versions of PACKAGES."""
    return {name: installed(name) or "missing" for name in PACKAGES}


def device() -> str:
    """Return a description of the device."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"
