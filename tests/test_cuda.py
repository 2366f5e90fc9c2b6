"""The CUDA paths that `make gpu-check` leaves out: a whole run, and float32 beside a CPU."""

import pytest
from conftest import SMALL, aimo, settings

from aimo.inference import storage
from aimo.run import machine

pytestmark = [pytest.mark.train, pytest.mark.skipif(not machine.has_gpu(), reason="needs an NVIDIA GPU")]


def losses(folder, stage):
    records = storage.read_lines(folder / stage / "log.jsonl")
    return [record["loss"] for record in records if "loss" in record]


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
