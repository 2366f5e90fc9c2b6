"""`aimo doctor`: what it finds, what it wants and the remedies."""

import importlib.metadata
import re

import pytest

from aimo.config import ROOT
from aimo.run import machine


@pytest.mark.parametrize("has_gpu, lock", [(False, "requirements-cpu.txt"), (True, "requirements.txt")])
def test_a_missing_and_a_mismatched_package_are_named_with_the_remedy(monkeypatch, has_gpu, lock):
    real = importlib.metadata.version

    def version(name):
        if name == "kaggle":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "trl" else real(name)

    monkeypatch.setattr(machine, "has_gpu", lambda: has_gpu)
    monkeypatch.setattr(importlib.metadata, "version", version)
    rows = {row["piece"]: row for row in machine.diagnose()}
    locked = re.search(r"^trl==([^ ;\n]+)", (ROOT / lock).read_text(), re.MULTILINE)[1]
    assert rows["trl"]["found"] == "0.1" and rows["trl"]["wanted"] == locked
    for package in ("trl", "kaggle"):
        assert f"`make setup` installs it from {lock}" in rows[package]["remedy"]
    assert rows["kaggle"]["found"] == "missing" and rows["sandbox"]["found"]
    assert rows["peft"]["remedy"] == "" and rows["peft"]["found"] == real("peft")


NVIDIA_SMI = """#!/bin/sh
case "$1" in
--query-gpu=memory*) echo "81559 MiB"; echo "81559 MiB";;
--query-gpu=compute_cap*) echo 12.0; echo 7.0;;
--query-gpu=driver*) echo 570.86; echo 570.86;;
*) echo "| NVIDIA-SMI 570.86    Driver Version: 570.86    CUDA Version: 12.8 |";;
esac
"""


def test_the_gpus_the_driver_the_compiler_and_what_is_built_with_it_are_shown(monkeypatch, tmp_path):
    import torch

    for name, text in (("nvidia-smi", NVIDIA_SMI), ("nvcc", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    rows = {row["piece"]: row for row in machine.diagnose()}
    device = rows["device"]  # the GPU, which torch cannot use
    assert device["wanted"] == "NVIDIA GPU" and "driver 570.86 is too old for CUDA 13.0" in device["remedy"]
    assert "CUDA 13 has no code for it" in rows["compute capability"]["remedy"], "a V100"
    found = {piece: row["found"] for piece, row in rows.items()}
    assert found["GPU memory"] == "81559 MiB, 81559 MiB" and found["compute capability"] == "12.0, 7.0"
    assert found["driver"] == "570.86, CUDA 12.8" and found["nvcc"] == f"{tmp_path}/nvcc"
    assert {"flash-attn", "deepspeed", "liger-kernel"} <= rows.keys()
