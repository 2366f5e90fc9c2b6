"""`aimo doctor`: what is installed, on which device, and the remedy for each missing or mismatched piece.

Out of scope: repairing it.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from pathlib import Path

from aimo.config import ROOT
from aimo.errors import AimoError
from aimo.inference import sandbox
from aimo.run import machine


def check() -> list[dict[str, str]]:
    """A row for each piece: what is found, what is wanted, and the remedy where they differ (else empty)."""
    return [
        python(),
        *packages(),
        device(),
        *gpu(),
        *optional(),
        sandboxing(),
        tiny_base(),
        free_disk(),
        kaggle_token(),
    ]


def row(piece: str, found: str, wanted: str, good: bool, remedy: str = "") -> dict[str, str]:
    """One line of the doctor's table."""
    return {"piece": piece, "found": found, "wanted": wanted, "remedy": "" if good else remedy}


def python() -> dict[str, str]:
    """The interpreter."""
    good = sys.version_info[:2] in ((3, 11), (3, 12))
    remedy = "install Python 3.11 or 3.12, then `make setup`"
    return row("python", platform.python_version(), "3.11 or 3.12", good, remedy)


def packages() -> list[dict[str, str]]:
    """The packages that a result depends on, against the lock file of this machine."""
    lock = ROOT / ("requirements.txt" if machine.has_gpu() else "requirements-cpu.txt")
    wanted = dict(re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(), re.MULTILINE))
    rows = []
    for package in [*machine.PACKAGES, "ipykernel", "six"]:
        name = package if package in wanted else f"{package}-cpu"
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        version = wanted.get(name, "?")
        rows.append(row(name, found, version, found == version, f"`make setup` installs it from {lock.name}"))
    return rows


def device() -> dict[str, str]:
    """The GPU as torch sees it, or the CPU."""
    try:
        import torch

        found = torch.cuda.get_device_name() if machine.computes_on_gpu() else f"CPU, {os.cpu_count()} cores"
    except ImportError:
        return row("device", "unknown", "torch", False, "`make setup`")
    except AimoError as e:
        return row("device", f"CPU, {os.cpu_count()} cores", "NVIDIA GPU", False, str(e))
    return row("device", found, "any", True)


def gpu() -> list[dict[str, str]]:
    """The GPUs' memory, the driver with the CUDA that it supports, and the compiler of extensions."""
    memory = machine.nvidia_smi("--query-gpu=memory.total", "--format=csv,noheader")
    if memory is None:
        return []
    cuda = re.search(r"CUDA Version: ([\d.]+)", machine.nvidia_smi() or "")
    driver = f"{machine.driver()}, CUDA {cuda[1] if cuda else 'unknown'}"
    nvcc = shutil.which("nvcc")
    return [
        row("GPU memory", ", ".join(memory.splitlines()), "any", True),
        row("driver", driver, "any", True),
        row("nvcc", nvcc or "none", "to build flash-attn and deepspeed", True),
    ]


def optional() -> list[dict[str, str]]:
    """Packages that some settings need; flash-attn and deepspeed are built with nvcc."""
    needed = {
        "flash-attn": "attention: flash_attention_2",
        "deepspeed": "--strategy zero2 and zero3",
        "liger-kernel": "use_liger_kernel",
    }
    rows = []
    for name, use in needed.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        rows.append(row(name, found, f"only for {use}", True))
    return rows


def sandboxing() -> dict[str, str]:
    """What the sandbox of programs enforces on this machine."""
    try:
        lacking = [what for what, holds in sandbox.enforced().items() if not holds]
    except AimoError as e:
        return row("sandbox", "none", "for tools and code rewards", False, str(e))
    found = f"not enforced: {', '.join(lacking)}" if lacking else "all enforced"
    return row("sandbox", found, "for tools and code rewards", not lacking, sandbox.remedy(lacking))


def tiny_base() -> dict[str, str]:
    """The model of the demo."""
    there = (ROOT / "data" / "tiny-base" / "model.safetensors").exists()
    remedy = "`git checkout data/tiny-base`, or `aimo tiny-base`"
    return row("tiny base", "present" if there else "missing", "present", there, remedy)


def free_disk() -> dict[str, str]:
    """The room for runs in the current folder."""
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    return row("free disk", f"{free:.0f} GB", "1 GB", free > 1, "free some, or use --run-dir on another disk")


def kaggle_token() -> dict[str, str]:
    """Whether a token of Kaggle's is set up."""
    files = [Path.home() / ".kaggle" / name for name in ("kaggle.json", "access_token")]
    named = any(os.getenv(name) for name in ("KAGGLE_KEY", "KAGGLE_API_TOKEN"))
    there = named or any(file.exists() for file in files)
    return row("kaggle token", "present" if there else "none", "only to push", True)
