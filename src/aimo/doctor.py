"""`aimo doctor`: what is installed, on which device, and the remedy for each missing or mismatched piece. Out of scope: repairing it."""

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
    lock = ROOT / ("requirements.txt" if machine.has_gpu() else "requirements-cpu.txt")
    rows = [
        row(
            "python",
            platform.python_version(),
            "3.11 or 3.12",
            sys.version_info[:2] in ((3, 11), (3, 12)),
            "install Python 3.11 or 3.12, then `make setup`",
        )
    ]
    wanted = dict(re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(), re.MULTILINE))
    for package in [*machine.PACKAGES, "ipykernel", "six"]:
        name = package if package in wanted else f"{package}-cpu"
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        rows.append(
            row(
                name,
                found,
                wanted.get(name, "?"),
                found == wanted.get(name),
                f"`make setup` installs it from {lock.name}",
            )
        )
    rows.append(device())
    try:
        lacking = [what for what, holds in sandbox.enforced().items() if not holds]
    except AimoError as e:
        lacking = [str(e)]
    rows.append(
        row(
            "sandbox",
            f"not enforced: {', '.join(lacking)}" if lacking else "all enforced",
            "for tools and code rewards",
            True,
            "",
        )
    )
    base = ROOT / "data" / "tiny-base" / "model.safetensors"
    rows.append(
        row(
            "tiny base",
            "present" if base.exists() else "missing",
            "present",
            base.exists(),
            "`git checkout data/tiny-base`, or `aimo tiny-base`",
        )
    )
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    rows.append(
        row("free disk", f"{free:.0f} GB", "1 GB", free > 1, "free some, or use --run-dir on another disk")
    )
    token = any(os.getenv(v) for v in ("KAGGLE_KEY", "KAGGLE_API_TOKEN")) or any(
        (Path.home() / ".kaggle" / f).exists() for f in ("kaggle.json", "access_token")
    )
    rows.append(row("kaggle token", "present" if token else "none", "only to push", True, ""))
    return rows


def row(piece: str, found: str, wanted: str, good: bool, remedy: str) -> dict[str, str]:
    """One line of the doctor's table."""
    return {"piece": piece, "found": found, "wanted": wanted, "remedy": "" if good else remedy}


def device() -> dict[str, str]:
    """The GPU as torch sees it, or the CPU."""
    try:
        import torch
    except ImportError:
        return row("device", "unknown", "torch", False, "`make setup`")
    if torch.cuda.is_available():
        return row("device", torch.cuda.get_device_name(), "any", True, "")
    cores = f"CPU, {os.cpu_count()} cores"
    return row(
        "device",
        cores,
        "NVIDIA GPU" if machine.has_gpu() else "any",
        not machine.has_gpu(),
        "torch does not see the GPU: `make setup` installs the CUDA build",
    )
