"""The CUDA paths that `make gpu-check` leaves out: a whole run, and float32 beside a CPU."""

import math

import pytest
from conftest import SMALL, aimo, settings

from aimo.inference import storage
from aimo.run import machine, runs

pytestmark = [pytest.mark.train, pytest.mark.skipif(not machine.has_gpu(), reason="needs an NVIDIA GPU")]


def losses(folder, stage):
    records = storage.read_lines(folder / stage / "log.jsonl")
    return [record["loss"] for record in records if "loss" in record]


@pytest.mark.parametrize("backend", ["unsloth", "transformers"])
@pytest.mark.parametrize("lora", ["{rank: 32, alpha: 64}", "null"])
def test_every_stage_trains_in_bf16_and_is_sampled(tmp_path, backend, lora):
    extra = [f"model.backend={backend}", f"model.lora={lora}", "model.dtype=bfloat16"]
    extra += ["sft.optimizer=adamw_8bit", "sft.learning_rate=1e-4", "grpo.learning_rate=1e-5"]
    extra += ["dpo={learning_rate: 1.0e-5, problems: 20, max_steps: 2}", "inference.gpu_memory=0.3"]
    done = aimo("run", "--profile", "tiny", "--run-dir", str(tmp_path), *settings(SMALL + extra))
    assert done.returncode == 0, done.stderr
    assert runs.figures(tmp_path)["grpo"]["format"] > 0.5
    for stage in ("sft", "grpo", "dpo"):
        found = losses(tmp_path, stage)
        assert found and all(map(math.isfinite, found))


@pytest.mark.parametrize("backend", ["unsloth", "transformers"])
def test_float32_is_computed_in_float32(tmp_path, monkeypatch, backend):
    """Unsloth's trainers would compute it in 16 bits, and the losses would differ in the third digit."""
    found = []
    for gpus in ("0", ""):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
        folder = tmp_path / f"gpu{gpus}"
        command = ["run", "--profile", "tiny", "--run-dir", str(folder), "--until", "sft"]
        done = aimo(*command, *settings([*SMALL, f"model.backend={backend}", "model.dtype=float32"]))
        assert done.returncode == 0, done.stderr
        found.append(losses(folder, "sft"))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
