"""A kernel's start: weights read ahead, inputs found, the context. Its wheels: `test_wheels`."""

import json
import shutil

import pytest
from conftest import TINY

from aimo.inference import startup
from aimo.inference.settings import Settings
from aimo.inference.vllm_process import context_limit, engine_arguments, plan_for_this_machine


def test_weights_are_read_ahead_while_the_memory_holds_all_of_them_and_no_fault_is_raised(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(startup, "BLOCK", 1 << 20)
    for i, size in enumerate([5 << 20, 1 << 20, 0]):
        (tmp_path / f"model-{i}.safetensors").write_bytes(b"w" * size)
    startup.read_ahead(tmp_path).join()
    assert "0.00629 GB read into the page cache" in capsys.readouterr().out
    left = iter([7e6, 7e6, *[6e6] * 100])
    with monkeypatch.context() as patch:
        patch.setattr(startup, "available_memory", lambda: next(left))
        startup.read_ahead(tmp_path).join()
    said = capsys.readouterr().out
    assert "0.0021 GB read into the page cache" in said and "the memory does not hold all 0.0 GB" in said
    (tmp_path / "model-9.safetensors").symlink_to("nowhere")
    startup.read_ahead(tmp_path).join()
    said = capsys.readouterr()
    assert said.out.startswith("weights: not read ahead") and said.out.count("\n") == 1 and not said.err


@pytest.mark.parametrize(
    "path, place",
    [
        ("/kaggle/input/aimo-problems/reference.csv", "datasets/me/aimo-problems/reference.csv"),
        ("/kaggle/input/datasets/me/aimo-problems/reference.csv", "aimo-problems/reference.csv"),
        ("/kaggle/input/aimo-train/run", "notebooks/me/aimo-train/run"),
        ("/kaggle/input/gpt/Transformers/20b/2", "models/openai/gpt/transformers/20b/2"),
        ("https://www.kaggle.com/models/openai/gpt/Transformers/20b/2", "gpt/transformers/20b/2"),
        ("https://www.kaggle.com/datasets/me/aimo-problems?select=a.csv", "datasets/me/aimo-problems"),
        ("/kaggle/input/aimo-3/test.csv", "competitions/aimo-3/test.csv"),
    ],
)
def test_an_input_is_found_in_either_layout(tmp_path, path, place):
    (tmp_path / place).mkdir(parents=True)
    asked = path.replace("/kaggle/input", str(tmp_path))
    assert startup.find_input([asked, [path]], tmp_path) == [str(tmp_path / place), [str(tmp_path / place)]]


def test_an_input_of_another_owner_or_of_two_is_not_taken_and_what_is_attached_is_told(tmp_path, capsys):
    for owner in ("me", "you"):
        (tmp_path / "models" / owner / "aimo" / "transformers" / "a" / "1").mkdir(parents=True)
    for path in ("models/them/aimo/transformers/a/1", "aimo/transformers/a/1", "nothing/at/all"):
        path = f"/kaggle/input/{path}"
        assert startup.find_input(path, tmp_path) == path
        said = capsys.readouterr().out
        assert f"inputs: {path} is " in said and f"{tmp_path}/models/me/aimo" in said
    for other in (None, 5, "", "model", "/nowhere", "a\0b"):
        assert startup.find_input(other, tmp_path) == other
    assert capsys.readouterr().out == ""


QWEN3 = {"model_type": "qwen3", "max_position_embeddings": 32768, "hidden_size": 2560}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}
OLD_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0] * 48}


def described(kind, length=None, nested=False, **more):
    """A config.json of a kind of model, with what it says of its context."""
    said = ({"max_position_embeddings": length} if length else {}) | more
    return {"model_type": kind} | ({"text_config": said} if nested else said)


LENGTHS = {
    "plain": (QWEN3, 32768),
    "unsaid": (described("qwen3"), 32768),
    "nested": (described("gemma3", 65536, nested=True), 65536),
    "nested and unsaid": (described("gemma3", nested=True, num_hidden_layers=34), 131072),
    "nested in an unknown kind": (described("new", 131072, nested=True), 131072),
    "yarn": (described("qwen3", 32768, rope_parameters=YARN), 131072),
    "yarn in the old style": (described("qwen3", 32768, rope_scaling=OLD_YARN), 131072),
    "yarn beyond a longer limit": (described("qwen3", 40960, rope_scaling=OLD_YARN), 131072),
    "yarn that the limit counts": (described("qwen3", 131072, rope_scaling=OLD_YARN), 131072),
    "linear": (described("qwen3", 32768, rope_scaling={"type": "linear", "factor": 2.0}), 65536),
    "dynamic": (described("qwen3", 32768, rope_scaling={"type": "dynamic", "factor": 2.0}), 65536),
    "llama3": (
        described("llama", 131072, rope_scaling=LLAMA3 | {"original_max_position_embeddings": 8192}),
        131072,
    ),
    "longrope": (described("phi3", 131072, original_max_position_embeddings=4096, rope_scaling=LONG), 4096),
}


@pytest.mark.parametrize("config, limit", LENGTHS.values(), ids=LENGTHS)
def test_the_context_is_read_from_a_nested_and_from_an_extended_configuration(config, limit):
    assert context_limit(config) == limit


@pytest.mark.slow
@pytest.mark.parametrize("config, limit", LENGTHS.values(), ids=LENGTHS)
def test_the_context_is_the_one_that_vllm_takes(config, limit, tmp_path):
    if config["model_type"] in ("new", "gemma3"):
        pytest.skip("vLLM knows no such kind, or asks for its image processor")
    from vllm.config import ModelConfig

    model = shutil.copytree(TINY, tmp_path / "model")
    kinds = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM", "phi3": "Phi3ForCausalLM"}
    (model / "config.json").write_text(json.dumps(config | {"architectures": [kinds[config["model_type"]]]}))
    longer = engine_arguments(model, Settings(), 0)["hf_overrides"]
    found = ModelConfig(model=str(model), max_model_len=-1, dtype="float32", hf_overrides=longer)
    assert found.max_model_len == limit


def test_a_plan_is_what_vllm_finds(engine, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    found = plan_for_this_machine(TINY, Settings())
    assert (found.context, found.streams) == (engine.max_length, engine.streams)
    assert found.kv_tokens == engine.llm.vllm_config.cache_config.kv_cache_size_tokens
    assert json.loads((TINY / "config.json").read_text())["max_position_embeddings"] == found.context
