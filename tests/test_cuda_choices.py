"""What vLLM would run each inference profile with on its GPUs, and what fits there, without a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from aimo import config

COLUMNS = ("sequences", "batch", "graphs", "backend", "cache", "dtype", "quantisation")
CHOICES = {
    "aimo3-gpt-oss-120b@H100": (16, 8192, 32, "FLASH_ATTN", "fp8_e4m3", "bfloat16", "gpt_oss_mxfp4"),
    "aimo3-gpt-oss-120b@RTX PRO 6000": (16, 8192, 32, "TRITON_ATTN", "fp8_e4m3", "bfloat16", "gpt_oss_mxfp4"),
    "aimo3-gpt-oss-20b@RTX 4090": (16, 2048, 32, "TRITON_ATTN", "auto", "bfloat16", "gpt_oss_mxfp4"),
    "aimo2-r1-14b-awq@4 x L4": (256, 2048, 512, "TRITON_ATTN", "fp8", "float16", "auto_awq"),
    "qwen3-30b-a3b-thinking@H100": (1024, 8192, 512, "FLASH_ATTN", "fp8_e4m3", "bfloat16", None),
    "qwen3-1.7b@T4": (256, 2048, 512, "TRITON_ATTN", "auto", "float16", None),
    "kaggle-t4@T4": (256, 2048, 512, "TRITON_ATTN", "auto", "float16", None),
    "kaggle-h100@H100": (1024, 8192, 512, "FLASH_ATTN", "auto", "bfloat16", None),
}


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    command = [sys.executable, str(Path(__file__).with_name("fake_cuda.py")), *CHOICES]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path_factory.mktemp("cuda"))
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("pair", CHOICES)
def test_vllm_chooses_for_each_profile_and_gpu_what_the_table_says(chosen, pair):
    assert chosen[pair] == dict(zip(COLUMNS, CHOICES[pair], strict=True))


@pytest.mark.slow
def test_no_profile_ends_at_flashinfer_which_compiles_where_there_is_no_nvcc(chosen):
    assert not [pair for pair, row in chosen.items() if row["backend"] == "FLASHINFER"]


def test_the_plan_of_gpt_oss_is_what_its_logs_say(monkeypatch):
    """Loaded, gpt-oss-120b takes 64.38 GiB with Triton's experts and 65.97 with Marlin's; its file, 60.8."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from public_models import CONFIGS

    from aimo.inference.plan import make_plan
    from aimo.inference.settings import Settings

    settings = Settings(**config.load("aimo3-gpt-oss-120b").inference.written)
    plan = make_plan(CONFIGS["openai/gpt-oss-120b"], int(60.8 * 2**30), [85_029_158_912], settings)
    assert 64.38 < plan.weights / 2**30 < 65.97


# GPUs, GiB of each, and the strategy, as the profiles and docs/recipes.md say.
CARDS = {
    "kaggle-t4": (1, 15, "ddp"),
    "kaggle-h100": (1, 80, "ddp"),
    "qwen3-4b": (1, 24, "ddp"),
    "qwen2.5-1.5b-openr1": (1, 80, "ddp"),
    "autodl-1.5b": (1, 80, "ddp"),
    "openr1-distill-7b": (8, 80, "zero3"),
    "openr1-qwen-7b": (8, 80, "zero3"),
    "fast-math-r1-14b": (8, 141, "zero3"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CARDS)
def test_the_longest_rows_of_sft_fit_beside_weights_and_states(name, monkeypatch):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from public_models import CONFIGS

    profile = config.load(name)
    model, sft, (gpus, gib, strategy) = profile.model, profile.sft, CARDS[name]
    with torch.device("meta"):  # at full depth, without memory
        described = AutoConfig.for_model(**CONFIGS[model.base])
        count = AutoModelForCausalLM.from_config(described).num_parameters()
    bits8 = "8bit" in sft.optimizer
    states = 4 + (2 if bits8 else 8)  # gradients and AdamW's moments of a float32 weight
    if model.lora:
        rank, linear = model.lora.rank, described.num_hidden_layers * 7
        adapter = linear * rank * (described.hidden_size + described.intermediate_size)
        held = count * (0.6 if model.load_in_4bit else 2) + adapter * (4 + states)
    else:
        held = count * (4 + states) / (gpus if strategy == "zero3" else 1)
    tokens = model.max_length * (1 if sft.packing else sft.batch_size)
    width, layers = described.hidden_size, described.num_hidden_layers
    checkpoints = 2 * tokens * width * layers
    # One layer computed again: attention's five rows of the width, the MLP's three, forward and backward.
    layer = 2 * 2 * tokens * (5 * width + 3 * described.intermediate_size)
    logits = 0 if sft.use_liger_kernel or model.backend == "unsloth" else 10 * tokens * described.vocab_size
    needed = (held + checkpoints + layer + logits) / 2**30
    assert needed < 0.92 * gib, f"{name} needs {needed:.1f} of {gib} GiB"


@pytest.mark.slow
def test_random_awq_weights_run_and_a_random_gpt_oss_is_planned(tmp_path, monkeypatch):
    import torch
    from conftest import TINY
    from transformers import AutoTokenizer

    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from public_models import make_model

    from aimo.inference.engine import Engine
    from aimo.inference.plan import plan_for_this_machine
    from aimo.inference.settings import Settings, resolve_settings

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    make_model("openai/gpt-oss-20b", tmp_path / "gpt-oss", tokenizer, wide=False)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    plan = plan_for_this_machine(tmp_path / "gpt-oss", resolve_settings(tmp_path / "gpt-oss"))
    assert plan.context and plan.streams
    make_model("casperhansen/deepseek-r1-distill-qwen-14b-awq", tmp_path / "awq", tokenizer, wide=False)
    assert not torch.cuda.is_available()
    with Engine(tmp_path / "awq", Settings(max_tokens=8, max_length=512)) as engine:
        prompt = engine.encode("1 + 1?")
        assert engine.run(engine.sample(prompt, 0, engine.settings)).tokens == 8
