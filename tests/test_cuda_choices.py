"""What vLLM would run each profile with on its GPUs, and what fits there, without a GPU."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, TINY

from aimo import config
from aimo.inference import vllm_process
from aimo.inference.engine import Engine
from aimo.inference.errors import AimoError
from aimo.inference.harmony import load_harmony
from aimo.inference.settings import Settings, resolve_settings
from aimo.inference.vllm_process import make_plan, plan_for_this_machine

COLUMNS = ("sequences", "batch", "graphs", "backend", "cache", "dtype", "quantisation")
CHOICES = {
    "aimo3-gpt-oss-120b@H100": (16, 8192, 32, "FLASH_ATTN", "fp8_e4m3", "bfloat16", "gpt_oss_mxfp4"),
    "aimo3-gpt-oss-120b@RTX PRO 6000": (16, 8192, 32, "TRITON_ATTN", "fp8_e4m3", "bfloat16", "gpt_oss_mxfp4"),
    "aimo3-gpt-oss-20b@RTX 4090": (16, 2048, 32, "TRITON_ATTN", "auto", "bfloat16", "gpt_oss_mxfp4"),
    "aimo2-r1-14b-awq@4 x L4": (256, 2048, 512, "TRITON_ATTN", "fp8", "float16", "auto_awq"),
    "qwen3-30b-a3b-thinking@H100": (1024, 8192, 512, "FLASH_ATTN", "fp8_e4m3", "bfloat16", None),
    "qwen3-30b-a3b-thinking@RTX PRO 6000": (1024, 8192, 512, "TRITON_ATTN", "fp8_e4m3", "bfloat16", None),
    "qwen3-1.7b@T4": (256, 2048, 512, "TRITON_ATTN", "auto", "float16", None),
    "qwen3-1.7b@A100": (256, 2048, 512, "FLASH_ATTN", "auto", "float16", None),
    "kaggle-t4@T4": (256, 2048, 512, "TRITON_ATTN", "auto", "float16", None),
    "kaggle-h100@H100": (1024, 8192, 512, "FLASH_ATTN", "auto", "bfloat16", None),
    "kaggle-h100@RTX PRO 6000": (1024, 8192, 512, "FLASH_ATTN", "auto", "bfloat16", None),
    "qwen3-4b@RTX 4090": (256, 2048, 512, "FLASH_ATTN", "auto", "bfloat16", None),
}


@pytest.mark.slow
def test_vllm_chooses_for_each_profile_and_gpu_what_the_table_says(tmp_path):
    """No profile ends at FlashInfer, which compiles, on a machine without nvcc."""
    command = [sys.executable, str(Path(__file__).with_name("fake_cuda.py")), *CHOICES]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = {pair: dict(zip(COLUMNS, row, strict=True)) for pair, row in CHOICES.items()}
    assert json.loads(done.stdout) == expected
    page = (ROOT / "docs/notes/gpu.md").read_text()
    for pair, row in CHOICES.items():
        assert f"| {' | '.join([*pair.split('@'), *map(str, row)])} |" in page, pair


def test_where_there_is_nvcc_vllm_chooses_how_an_fp8_cache_is_read(monkeypatch):
    from vllm import platforms

    def chosen(capability, dtype="fp8", **more):
        monkeypatch.setattr(platforms.current_platform, "get_device_capability", lambda: capability)
        settings = Settings(vllm={"kv_cache_dtype": dtype, **more})
        return vllm_process.engine_arguments(TINY, settings, 0).get("attention_backend")

    monkeypatch.setattr(platforms.current_platform, "is_cpu", lambda: False)
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    monkeypatch.setattr("shutil.which", lambda *_: None)
    assert chosen((12, 0)) == chosen((8, 9)) == "TRITON_ATTN" and chosen((9, 0)) is None
    assert chosen((12, 0), "auto") is None and chosen((12, 0), attention_backend="FLASHINFER") == "FLASHINFER"
    monkeypatch.setattr("shutil.which", lambda *_: "/usr/bin/nvcc")
    assert chosen((12, 0)) is None


def test_an_engine_has_an_hour_to_start_unless_the_user_says_otherwise(monkeypatch):
    for given, expected in ({}, "3600"), ({"VLLM_ENGINE_READY_TIMEOUT_S": "60"}, "60"):
        monkeypatch.setattr("os.environ", given)
        vllm_process.set_environment()
        assert given["VLLM_ENGINE_READY_TIMEOUT_S"] == expected


@pytest.mark.slow
def test_the_engine_asks_vllm_for_the_batch_of_a_server(monkeypatch):
    """On a large GPU that is 1,024 sequences and 8,192 tokens; a program's engine gets 128 and 2,048."""

    def begin(arguments, usage_context):
        raise ValueError(f"asked as {usage_context.name}")

    monkeypatch.setattr("vllm.v1.engine.async_llm.AsyncLLM.from_engine_args", begin)
    with pytest.raises(AimoError, match="asked as OPENAI_API_SERVER"):
        Engine(TINY)


@pytest.fixture
def public(monkeypatch):
    """The script with the public models' config.json."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import public_models

    return public_models


# Profile, share of the GPU, its file in GiB; streams at once, and the weights once they are loaded, in GiB.
# gpt-oss-120b takes 64.38 with Triton's experts and 65.97 with Marlin's.
LOGGED = [
    ("aimo3-gpt-oss-120b", 0.96, 60.8, 13, (64.38, 65.97)),
    ("qwen3-30b-a3b-thinking", 0.9, 56.87, 6, (56.8, 56.9)),
    ("qwen3-30b-a3b-thinking", 0.95, 56.87, 8, (56.8, 56.9)),
]


@pytest.mark.parametrize("name, share, file, streams, weights", LOGGED)
def test_a_plan_for_an_h100_says_what_public_logs_say(public, name, share, file, streams, weights):
    profile = config.load(name)
    settings = Settings(**profile.inference.written | {"gpu_memory": share})
    found = public.CONFIGS[profile.model.base]
    plan = make_plan(found, int(file * 2**30), [85_029_158_912], settings)
    assert weights[0] < plan.weights / 2**30 < weights[1] and plan.streams == streams
    # A token of fp8 cache: 18,432 bytes in the 18 layers of gpt-oss that see all; each of 18 others keeps
    # 128 tokens and those of one step.
    token = {"openai/gpt-oss-120b": 18_432, "Qwen/Qwen3-30B-A3B-Thinking-2507": 49_152}[profile.model.base]
    sliding = found.get("layer_types", []).count("sliding_attention") * (128 + 8192) * 1024
    assert plan.cache / plan.kv_tokens == pytest.approx(token + sliding / 131072, rel=1e-3)


H100 = 85_000_000_000
QWEN3 = {"model_type": "qwen3", "hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32}


def plan(memory=(H100,), weights=65_000_000_000, change=None, **settings):
    return make_plan(QWEN3 | (change or {}), weights, memory, Settings(gpu_memory=0.96, **settings))


def test_short_answers_have_more_streams_and_programs_count_to_the_context():
    short, long = plan(weights=1, max_tokens=256), plan(weights=1, max_tokens=10**6)
    assert short.streams > 40 * long.streams
    assert plan(weights=1, max_tokens=256, tools=0.5).streams == long.streams


def test_a_plan_shares_the_weights_among_gpus_and_replicas_have_caches_of_their_own():
    one, four = plan(), plan([H100] * 4, vllm={"tensor_parallel_size": 4})
    assert four.weights == one.weights // 4 and four.kv_tokens > 8 * one.kv_tokens
    eight = plan([H100] * 8, vllm={"tensor_parallel_size": 4, "data_parallel_size": 2})
    assert eight.kv_tokens == 2 * four.kv_tokens
    with pytest.raises(AimoError, match="need 4 GPUs and there are 2"):
        plan([H100] * 2, vllm={"tensor_parallel_size": 4})


def test_a_plan_shortens_the_context_to_what_fits_and_says_when_nothing_does():
    short, nothing = plan(weights=75_000_000_000), plan([16 << 30])
    assert 0 < short.context < plan().context and short.streams >= 1
    assert nothing.context == nothing.streams == 0 and "quantised" in str(nothing)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"kv_lora_rank": 512}, "plan: none for an architecture"),
        ({"layer_types": ["linear_attention"] * 36}, "plan: none for layers"),
        ({"max_position_embeddings": "many"}, r"config\.json"),
        ({"model_type": "new", "max_position_embeddings": "32768"}, "max_position_embeddings is '32768'"),
        (
            {"model_type": "new", "num_attention_heads": "8"},
            "num_attention_heads is '8'",
        ),
        ({"model_type": "new", "rope_scaling": {"type": "yarn", "factor": "four"}}, r"config\.json"),
        ({"model_type": "new", "rope_scaling": "yarn"}, r"config\.json"),
    ],
)
def test_other_kinds_of_attention_and_a_text_for_a_number_are_refused(change, told):
    with pytest.raises(AimoError, match=told):
        plan(change=change)


# GPUs, GiB of each, and the strategy, as the profiles and docs/recipes.md say.
CARDS = {
    "kaggle-t4": (1, 15, "ddp"),
    "kaggle-h100": (1, 80, "ddp"),
    "qwen3-4b": (1, 24, "ddp"),
    "qwen2.5-1.5b-openr1": (1, 80, "ddp"),
    "autodl-1.5b": (1, 80, "ddp"),
    "r1-distill-1.5b": (1, 80, "ddp"),
    "opd-qwen3-1.7b": (1, 80, "ddp"),
    "code-grpo-1.5b": (8, 80, "zero2"),
    "simple-rl-7b": (8, 80, "zero3"),
    "openr1-distill-7b": (8, 80, "zero3"),
    "openr1-qwen-7b": (8, 80, "zero3"),
    "fast-math-r1-14b": (8, 141, "zero3"),
}


def test_every_profile_that_trains_a_public_model_has_a_card():
    every = {path.stem: config.load(path.stem) for path in config.PROFILES.glob("*.yaml")}
    assert {n for n, p in every.items() if p.trained and not p.model.base.startswith("data/")} == {*CARDS}


@pytest.mark.slow
@pytest.mark.parametrize("name, stage", [(n, s) for n in CARDS for s in ("sft", "grpo", "opd")])
def test_the_longest_rows_fit_beside_weights_states_and_vllm(name, stage, public):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from aimo.train import arguments

    profile = config.load(name)
    model, section, (gpus, gib, strategy) = profile.model, getattr(profile, stage), CARDS[name]
    if not section:
        return
    with torch.device("meta"):  # at full depth, without memory
        described = AutoConfig.for_model(**public.CONFIGS[model.base])
        count = AutoModelForCausalLM.from_config(described).num_parameters()
    width, layers = described.hidden_size, described.num_hidden_layers
    split, unsloth = gpus if strategy == "zero3" else 1, model.backend == "unsloth"
    states = 6 if "8bit" in section.optimizer else 12  # a float32 weight's gradient and AdamW's two moments
    if model.lora:
        adapter = layers * 7 * model.lora.rank * (width + described.intermediate_size)
        held = count * (0.6 if model.load_in_4bit else 2) + adapter * (4 + states)
    elif strategy == "zero2":
        held = count * (2 + (4 + states) / gpus)
    else:
        held = count * (4 + states) / split
    if stage == "grpo":
        rows = arguments.completions_per_pass(section, gpus)
        tokens = rows * (section.max_prompt_length + section.max_completion_length)
        if section.generation == "vllm":
            held += section.vllm_gpu_memory * gib * 2**30
            held -= 2 * count if unsloth else 0  # both have the same weights
        logits = 0  # TRL and Unsloth compute them in pieces
    elif stage == "opd":
        tokens, logits = section.batch_size * (section.max_prompt_length + section.max_completion_length), 0
        held += section.vllm_gpu_memory * gib * 2**30 + 16.4e9  # the teacher has 8.2 billion weights
    else:
        tokens = model.max_length * (1 if section.packing else section.batch_size)
        chunked = section.use_liger_kernel or unsloth
        logits = 0 if chunked else 10 * tokens * described.vocab_size
    inputs = 0 if unsloth else 2 * tokens * width * layers  # of the layers; Unsloth moves them to the host
    # One layer computed again: attention's five rows of the width, the MLP's three, forward and backward.
    layer = 2 * 2 * tokens * (5 * width + 3 * described.intermediate_size)
    needed = (held + inputs + layer + logits) / 2**30
    assert needed < 0.92 * gib, f"{name} {stage} needs {needed:.1f} of {gib} GiB"


@pytest.fixture
def random_model(public, tmp_path, monkeypatch):
    """A folder of narrow random weights, as the model's own are quantised."""
    from transformers import AutoTokenizer

    def make(base):
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        public.make_model(base, tmp_path / "model", AutoTokenizer.from_pretrained(TINY), wide=False)
        return tmp_path / "model"

    return make


@pytest.mark.engine
def test_a_model_with_random_awq_weights_generates(random_model):
    model, settings = random_model("casperhansen/deepseek-r1-distill-qwen-14b-awq"), Settings(max_tokens=8)
    assert plan_for_this_machine(model, settings).streams
    with Engine(model, replace(settings, max_length=512)) as engine:
        assert engine.run(engine.sample(engine.encode("1 + 1?"), 0, engine.settings)).tokens == 8


@pytest.mark.engine
def test_a_random_gpt_oss_is_checked_planned_and_asked_and_vllm_reads_its_mxfp4(
    random_model, shared, monkeypatch
):
    """A CPU has no kernel for MXFP4 experts, and vLLM says so once it has read the configuration."""
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", str(shared / "harmony"))
    model = random_model("openai/gpt-oss-20b")
    settings = resolve_settings(model)
    assert settings.format == "harmony" and plan_for_this_machine(model, settings).streams
    assert load_harmony(model).encode("<|start|>", allowed_special="all") == [200006]
    with pytest.raises(AimoError, match=r"(?i)mxfp4"):
        Engine(model, settings)
