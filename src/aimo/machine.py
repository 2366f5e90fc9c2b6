"""The machine: its device, and the versions of the packages that a result depends on."""

import importlib.metadata
import platform
import shutil
import subprocess

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
    return (
        bool(shutil.which("nvidia-smi"))
        and subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0
    )


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
