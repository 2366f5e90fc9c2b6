"""Broken files of a model folder are named in one line, before vLLM starts."""

import json
import shutil

import pytest
from conftest import TINY

from aimo.inference import gateway
from aimo.inference.errors import AimoError
from aimo.inference.model_folder import check_model_folder, read_adapter

WEIGHTS = (TINY / "model.safetensors").read_bytes()
CONFIG = json.loads((TINY / "config.json").read_text())


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny base."""
    return shutil.copytree(TINY, tmp_path / "model")


@pytest.mark.parametrize(
    "name, content, told",
    [
        *((name, b'{"a": ', "save it again") for name in ("config.json", "tokenizer.json")),
        *(("model.safetensors", WEIGHTS[:keep], "copy the model again") for keep in (0, 5, 100, -1)),
        *((name, None, "missing") for name in ("config.json", "tokenizer.json", "model.safetensors")),
        ("model.safetensors.index.json", b'{"weight_map": {"w": "model-2.safetensors"}}', "model-2.saf"),
        ("config.json", json.dumps(CONFIG | {"architectures": None}).encode(), "names no `architectures`"),
    ],
)
def test_a_file_that_is_broken_cut_off_or_missing_is_named(folder, name, content, told):
    check_model_folder(folder)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(AimoError, match=told) as e:
        check_model_folder(folder)
    assert name.partition(".")[2] in str(e.value)


@pytest.mark.engine
def test_a_model_that_vllm_does_not_know_ends_a_trial_run_and_leaves_no_answers(
    folder, tmp_path, monkeypatch
):
    other = {"architectures": ["OtherForCausalLM"], "model_type": "other"}
    (folder / "config.json").write_text(json.dumps(CONFIG | other))
    (tmp_path / "test.csv").write_text("id,problem\na,1 + 1?\n")
    monkeypatch.chdir(tmp_path)
    told = "vLLM did not start with .*model type `other`.*; take a model that this vLLM loads, or a newer"
    with pytest.raises(AimoError, match=told):
        gateway.serve_submission("aimo3", str(folder), "test.csv", 600, {})
    assert not (tmp_path / "submission.parquet").exists()


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"r": "8"}', '{"r": 0}'])
def test_a_missing_or_broken_adapter_configuration_is_named(tmp_path, text):
    if text:
        (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(AimoError, match=r"adapter_config\.json.*PEFT"):
        read_adapter(tmp_path)
