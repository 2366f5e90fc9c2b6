"""The machine: its device, the versions that a result depends on, and what `aimo doctor` finds."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from aimo.config import ROOT
from aimo.inference import sandbox
from aimo.inference.errors import AimoError

# Packages that a result depends on.
PACKAGES = ["torch", "transformers", "trl", "peft", "unsloth", "datasets", "vllm", "math-verify", "jupytext"]
PACKAGES += ["papermill", "kaggle"]
# Packages that some settings need; flash-attn and deepspeed are built with nvcc.
OPTIONAL = {
    "flash-attn": "attention: flash_attention_2",
    "deepspeed": "--strategy zero2 and zero3",
    "liger-kernel": "use_liger_kernel",
}


def nvidia_smi(*arguments: str) -> str | None:
    """Return the output of `nvidia-smi`, or None without the tool or a GPU."""
    if not shutil.which("nvidia-smi"):
        return None
    done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def has_gpu() -> bool:  # `make setup` picks its lock file in the same way
    return nvidia_smi("-L") is not None


def driver() -> str:
    return (nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader") or "").partition("\n")[0]


def load_torch() -> Any:
    import torch  # takes seconds, so `aimo --help` and login nodes do without

    return torch


def computes_on_gpu() -> bool:
    """Return whether torch uses a GPU. AimoError if it cannot use a GPU that is not hidden."""
    torch = load_torch()
    if torch.cuda.is_available():
        return True
    if os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1") and has_gpu():
        built = torch.version.cuda
        why = f"its driver {driver()} is too old for CUDA {built}: update it" if built else "run `make setup`"
        raise AimoError(
            f"torch {torch.__version__} cannot use the GPU of this machine; {why}, "
            "or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    return False


def device() -> str:
    torch = load_torch()
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"


def installed(package: str) -> str:
    """Return the version of a package or of its CPU build, or an empty string."""
    for name in (package, f"{package}-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def versions() -> dict[str, str]:
    return {name: installed(name) or "missing" for name in PACKAGES}


def diagnose() -> list[dict[str, str]]:
    """Return a row for each piece: what is found, what is wanted, and the remedy if they differ."""
    rows: list[dict[str, str]] = []

    def add(piece: str, found: str, wanted: str, good: object = True, remedy: str = "") -> None:
        rows.append({"piece": piece, "found": found, "wanted": wanted, "remedy": "" if good else remedy})

    good, pythons = sys.version_info[:2] in ((3, 11), (3, 12)), "3.11 or 3.12"
    add("python", platform.python_version(), pythons, good, f"install Python {pythons}, `make setup`")

    # The packages that a result depends on, against the lock file of this machine.
    lock = ROOT / ("requirements.txt" if has_gpu() else "requirements-cpu.txt")
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(), re.MULTILINE))
    for package in [*PACKAGES, "ipykernel", "six"]:
        name = package if package in locked else f"{package}-cpu"
        found, wanted = installed(package) or "missing", locked.get(name, "?")
        add(name, found, wanted, found == wanted, f"`make setup` installs it from {lock.name}")

    cpu = f"CPU, {os.cpu_count()} cores"
    try:
        add("device", device() if computes_on_gpu() else cpu, "any")
    except ImportError:
        add("device", "unknown", "torch", False, "`make setup`")
    except AimoError as e:
        add("device", cpu, "NVIDIA GPU", False, str(e))
    memory = nvidia_smi("--query-gpu=memory.total", "--format=csv,noheader")
    if memory is not None:
        cuda = re.search(r"CUDA Version: ([\d.]+)", nvidia_smi() or "")
        add("GPU memory", ", ".join(memory.splitlines()), "any")
        ages = (nvidia_smi("--query-gpu=compute_cap", "--format=csv,noheader") or "unknown").splitlines()
        good = ages == ["unknown"] or min(map(float, ages)) >= 7.5
        remedy = "CUDA 13 has no code for it: take a T4 or a newer GPU"
        add("compute capability", ", ".join(ages), "7.5 or newer", good, remedy)
        add("driver", f"{driver()}, CUDA {cuda[1] if cuda else 'unknown'}", "any")
        add("nvcc", shutil.which("nvcc") or "none", "to build flash-attn and deepspeed")
    for name, use in OPTIONAL.items():
        add(name, installed(name) or "none", f"only for {use}")

    try:
        lacking = [what for what, holds in sandbox.enforced().items() if not holds]
        found = f"not enforced: {', '.join(lacking)}" if lacking else "all enforced"
        remedy = sandbox.remedy(lacking)
    except AimoError as e:
        lacking, found, remedy = ["all"], "none", str(e)
    add("sandbox", found, "for tools and code rewards", not lacking, remedy)
    there = (ROOT / "data" / "tiny-base" / "model.safetensors").exists()
    remedy = "`git checkout data/tiny-base`, or `python data/tiny-base/make.py`"
    add("tiny base", "present" if there else "missing", "present", there, remedy)
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    add("free disk", f"{free:.0f} GB", "1 GB", free > 1, "free some, or use --run-dir on another disk")
    files = [Path.home() / ".kaggle" / name for name in ("kaggle.json", "access_token")]
    token = any(map(os.getenv, ("KAGGLE_KEY", "KAGGLE_API_TOKEN"))) or any(file.exists() for file in files)
    add("kaggle token", "present" if token else "none", "only to push")
    return rows
