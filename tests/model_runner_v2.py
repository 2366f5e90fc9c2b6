"""Tests on vLLM's model runner V2, which GPUs have: `python tests/model_runner_v2.py tests/test_engine.py`.

V2's kernels are Triton's, which no package compiles for a CPU: Triton's interpreter runs them, with a backend
that only says "cpu". The GPU lock's Triton is downloaded (200 MB) into a temporary folder.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DRIVER = """
from triton.backends.driver import DriverBase

class CpuDriver(DriverBase):
    is_active = classmethod(lambda cls: True)
    get_benchmarker = map_python_to_cpp_type = get_active_torch_device = get_current_target = None
"""
COMPILER = """
from triton.backends.compiler import BaseBackend

class CpuBackend(BaseBackend):
    supports_target = hash = parse_options = add_stages = load_dialects = get_module_map = None
"""


def unpack(folder: Path) -> None:
    """Put Triton into a folder, with a backend for CPUs, and the name that vLLM's CPU build asks for."""
    (wanted,) = (line for line in (ROOT / "requirements.txt").open() if line.startswith("triton=="))
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, wanted.split(";")[0].strip()], check=True)
    backend = folder / "triton/backends/cpu"
    backend.mkdir()
    for name, text in ("__init__", ""), ("driver", DRIVER), ("compiler", COMPILER):
        (backend / f"{name}.py").write_text(text)
    (points,) = folder.glob("triton-*.dist-info/entry_points.txt")
    section = "[triton.backends]\n"
    points.write_text(points.read_text().replace(section, f"{section}cpu = triton.backends.cpu\n"))
    named = folder / "vllm-0.31.0+cpu.dist-info/METADATA"
    named.parent.mkdir()
    named.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.31.0+cpu\n")


def main() -> int:
    """Run pytest with the arguments."""
    with tempfile.TemporaryDirectory() as folder:
        unpack(Path(folder))
        env = {"PYTHONPATH": folder, "TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}
        command = [sys.executable, "-m", "pytest", *sys.argv[1:]]
        return subprocess.run(command, env=os.environ | env, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
