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

from aimo import machine
from aimo.config import ROOT
from aimo.errors import AimoError
from aimo.inference import sandbox


def check() -> list[dict[str, str]]:
    """A row for each piece: what is found, what is wanted, and the remedy where they differ (else empty)."""
    return [python(), *packages(), device(), sandboxing(), tiny_base(), free_disk(), kaggle_token()]


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
    except ImportError:
        return row("device", "unknown", "torch", False, "`make setup`")
    if torch.cuda.is_available():
        return row("device", torch.cuda.get_device_name(), "any", True)
    unseen = machine.has_gpu()
    remedy = "torch does not see the GPU: `make setup` installs the CUDA build"
    wanted = "NVIDIA GPU" if unseen else "any"
    return row("device", f"CPU, {os.cpu_count()} cores", wanted, not unseen, remedy)


def sandboxing() -> dict[str, str]:
    """What the sandbox of programs enforces on this machine."""
    try:
        lacking = [what for what, holds in sandbox.enforced().items() if not holds]
    except AimoError as e:
        lacking = [str(e)]
    found = f"not enforced: {', '.join(lacking)}" if lacking else "all enforced"
    return row("sandbox", found, "for tools and code rewards", True)


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
