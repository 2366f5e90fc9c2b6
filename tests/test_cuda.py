"""The CUDA paths that `make gpu-check` leaves out: whole runs, on the tiny base and a larger random one, and
float32 beside a CPU. Skipped where there is no GPU."""

import math

import pytest
from conftest import SMALL, TINY, aimo, settings

from aimo.inference import storage
from aimo.run import machine, runs

pytestmark = [pytest.mark.train, pytest.mark.skipif(not machine.has_gpu(), reason="needs an NVIDIA GPU")]


@pytest.fixture(scope="session")
def hundred_million(tmp_path_factory):
    """A random model of about 100 million parameters, with the tiny base's architecture and tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("models") / "hundred-million"
    sizes = {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 64,
    }
    config = AutoConfig.from_pretrained(
        TINY, num_hidden_layers=16, layer_types=["full_attention"] * 16, **sizes
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    assert 90e6 < model.num_parameters() < 110e6
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("base", ["tiny", "hundred_million"])
@pytest.mark.parametrize("backend", ["unsloth", "transformers"])
@pytest.mark.parametrize("lora", ["{rank: 32, alpha: 64}", "null"])
def test_both_stages_train_in_bf16_and_are_sampled(tmp_path, request, base, backend, lora):
    folder = TINY if base == "tiny" else request.getfixturevalue(base)
    extra = [f"model.base={folder}", "model.dtype=bfloat16", f"model.backend={backend}", f"model.lora={lora}"]
    extra += [
        "sft.optimizer=adamw_8bit",
        "sft.learning_rate=1e-4",
        "grpo.learning_rate=1e-5",
        "dpo={learning_rate: 1.0e-5, problems: 20, max_steps: 2}",
        "inference.gpu_memory=0.3",
    ]
    done = aimo("run", "--profile", "tiny", "--run-dir", str(tmp_path / "run"), *settings(SMALL + extra))
    assert done.returncode == 0, done.stderr
    assert base != "tiny" or runs.figures(tmp_path / "run")["grpo"]["format"] > 0.5
    for stage in ("sft", "grpo", "dpo"):
        records = storage.read_lines(tmp_path / "run" / stage / "log.jsonl")
        losses = [record["loss"] for record in records if "loss" in record]
        assert losses and all(math.isfinite(loss) for loss in losses)


@pytest.mark.parametrize("backend", ["unsloth", "transformers"])
def test_float32_is_computed_in_float32(tmp_path, monkeypatch, backend):
    """Unsloth's trainers would compute it in 16 bits, and the losses would differ in the third digit."""
    losses = []
    for gpus in ("0", ""):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
        folder = tmp_path / f"gpu{gpus}"
        command = ["run", "--profile", "tiny", "--run-dir", str(folder), "--until", "sft"]
        done = aimo(*command, *settings([*SMALL, f"model.backend={backend}", "model.dtype=float32"]))
        assert done.returncode == 0, done.stderr
        records = storage.read_lines(folder / "sft" / "log.jsonl")
        losses.append([record["loss"] for record in records if "loss" in record])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
