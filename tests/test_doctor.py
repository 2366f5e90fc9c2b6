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
    assert rows["kaggle"]["found"] == "missing"
    assert rows["peft"]["remedy"] == "" and rows["peft"]["found"] == real("peft")


def test_the_lock_of_this_machine_and_no_other_decides_what_is_wanted(monkeypatch, tmp_path):
    for name in ("requirements.txt", "requirements-cpu.txt"):
        text = (ROOT / name).read_text()
        (tmp_path / name).write_text(re.sub(r"^peft==.*$", "peft==9.9", text, flags=re.MULTILINE))
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    row = next(row for row in machine.diagnose() if row["piece"] == "peft")
    assert row["wanted"] == "9.9" and "make setup" in row["remedy"]


NVIDIA_SMI = """#!/bin/sh
case "$1" in
--query-gpu=memory*) echo "81559 MiB"; echo "81559 MiB";;
--query-gpu=driver*) echo 570.86; echo 570.86;;
*) echo "| NVIDIA-SMI 570.86    Driver Version: 570.86    CUDA Version: 12.8 |";;
esac
"""


def test_the_gpus_the_driver_the_compiler_and_what_is_built_with_it_are_shown(monkeypatch, tmp_path):
    for name, text in (("nvidia-smi", NVIDIA_SMI), ("nvcc", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    rows = {row["piece"]: row for row in machine.diagnose()}
    assert rows["GPU memory"]["found"] == "81559 MiB, 81559 MiB"
    assert rows["driver"]["found"] == "570.86, CUDA 12.8" and rows["nvcc"]["found"] == f"{tmp_path}/nvcc"
    assert rows["flash-attn"].keys() == rows["deepspeed"].keys() and "liger-kernel" in rows


def test_a_gpu_that_torch_cannot_use_is_a_row_with_the_remedy(monkeypatch, tmp_path):
    import torch

    (tmp_path / "nvidia-smi").write_text(NVIDIA_SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    row = next(row for row in machine.diagnose() if row["piece"] == "device")
    assert row["wanted"] == "NVIDIA GPU" and "driver 570.86 is too old for CUDA 13.0" in row["remedy"]
