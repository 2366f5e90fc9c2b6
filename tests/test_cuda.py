"""The CUDA paths, on the tiny base: skipped where there is no GPU."""

import json

import pytest
import torch
from conftest import SMALL, aimo, settings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.mark.parametrize("backend", ["unsloth", "transformers"])
def test_the_road_in_bf16(tmp_path, backend):
    extra = ["model.dtype=bfloat16", f"model.backend={backend}", "sft.optimizer=adamw_8bit", "inference.gpu_memory=0.3"]
    done = aimo("run", "--profile", "tiny", "--run-dir", str(tmp_path / "run"), *settings(SMALL + extra))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/metrics.json").read_text())["stages"]["grpo"]["format"] > 0.5
