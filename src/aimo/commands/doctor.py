"""`aimo doctor`: what is installed, on which device, and the remedy for each missing or mismatched piece."""

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

# Packages that some settings need; flash-attn and deepspeed are built with nvcc.
OPTIONAL = {
    "flash-attn": "attention: flash_attention_2",
    "deepspeed": "--strategy zero2 and zero3",
    "liger-kernel": "use_liger_kernel",
}


def diagnose() -> list[dict[str, str]]:
    """Return a row for each piece: what is found, what is wanted, and the remedy where they differ."""
    rows: list[dict[str, str]] = []

    def add(piece: str, found: str, wanted: str, good: bool = True, remedy: str = "") -> None:
        rows.append({"piece": piece, "found": found, "wanted": wanted, "remedy": "" if good else remedy})

    good = sys.version_info[:2] in ((3, 11), (3, 12))
    add(
        "python", platform.python_version(), "3.11 or 3.12", good, "install Python 3.11 or 3.12, `make setup`"
    )

    # The packages that a result depends on, against the lock file of this machine.
    lock = ROOT / ("requirements.txt" if machine.has_gpu() else "requirements-cpu.txt")
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(), re.MULTILINE))
    for package in [*machine.PACKAGES, "ipykernel", "six"]:
        name = package if package in locked else f"{package}-cpu"
        found, wanted = machine.installed(package) or "missing", locked.get(name, "?")
        add(name, found, wanted, found == wanted, f"`make setup` installs it from {lock.name}")

    cpu = f"CPU, {os.cpu_count()} cores"
    try:
        import torch  # seconds

        add("device", torch.cuda.get_device_name() if machine.computes_on_gpu() else cpu, "any")
    except ImportError:
        add("device", "unknown", "torch", False, "`make setup`")
    except AimoError as e:
        add("device", cpu, "NVIDIA GPU", False, str(e))
    memory = machine.nvidia_smi("--query-gpu=memory.total", "--format=csv,noheader")
    if memory is not None:
        cuda = re.search(r"CUDA Version: ([\d.]+)", machine.nvidia_smi() or "")
        add("GPU memory", ", ".join(memory.splitlines()), "any")
        add("driver", f"{machine.driver()}, CUDA {cuda[1] if cuda else 'unknown'}", "any")
        add("nvcc", shutil.which("nvcc") or "none", "to build flash-attn and deepspeed")
    for name, use in OPTIONAL.items():
        add(name, machine.installed(name) or "none", f"only for {use}")

    found, remedy = diagnose_sandbox()
    add("sandbox", found, "for tools and code rewards", not remedy, remedy)
    there = (ROOT / "data" / "tiny-base" / "model.safetensors").exists()
    remedy = "`git checkout data/tiny-base`, or `python data/tiny-base/make.py`"
    add("tiny base", "present" if there else "missing", "present", there, remedy)
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    add("free disk", f"{free:.0f} GB", "1 GB", free > 1, "free some, or use --run-dir on another disk")
    files = [Path.home() / ".kaggle" / name for name in ("kaggle.json", "access_token")]
    token = any(map(os.getenv, ("KAGGLE_KEY", "KAGGLE_API_TOKEN"))) or any(file.exists() for file in files)
    add("kaggle token", "present" if token else "none", "only to push")
    return rows


def diagnose_sandbox() -> tuple[str, str]:
    """Return what the sandbox of programs enforces on this machine, and the remedy for what it does not."""
    try:
        lacking = [what for what, holds in sandbox.enforced().items() if not holds]
    except AimoError as e:
        return "none", str(e)
    found = f"not enforced: {', '.join(lacking)}" if lacking else "all enforced"
    return found, sandbox.remedy(lacking) if lacking else ""
