"""Broken files of a model folder are named in one line, before vLLM starts."""

import json
import shutil

import pytest
from conftest import TINY

from aimo.inference import gateway
from aimo.inference.errors import AimoError
from aimo.inference.model_folder import check_model_folder, read_adapter


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny base."""
    return shutil.copytree(TINY, tmp_path / "model")


def refused(call, *told):
    """The one-line error of a call, which must tell these."""
    with pytest.raises(AimoError) as e:
        call()
    assert all(part in str(e.value) for part in told), e.value


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_broken_json_file_is_named_with_the_remedy(folder, name):
    (folder / name).write_text('{"a": ')
    refused(lambda: check_model_folder(folder), name, "save it again")


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_weights_file_that_was_cut_off_is_named_with_the_remedy(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(lambda: check_model_folder(folder), "model.safetensors", "copy the model again")


def test_a_missing_file_a_missing_shard_and_a_missing_architecture_are_named(folder):
    check_model_folder(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "model-2.safetensors"}}')
    refused(lambda: check_model_folder(folder), "model-2.safetensors")
    configuration = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(configuration | {"architectures": None}))
    refused(lambda: check_model_folder(folder), "config.json", "`architectures`", "save it again")
    for name in ("tokenizer.json", "model.safetensors", "config.json"):
        (folder / name).unlink()
        refused(lambda: check_model_folder(folder), "missing", name.partition(".")[2])


@pytest.mark.engine
def test_a_model_that_vllm_does_not_know_ends_a_trial_run_and_leaves_no_answers(
    folder, tmp_path, monkeypatch
):
    other = {"architectures": ["OtherForCausalLM"], "model_type": "other"}
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | other))
    (tmp_path / "test.csv").write_text("id,problem\na,1 + 1?\n")
    monkeypatch.chdir(tmp_path)
    refused(
        lambda: gateway.serve_submission("aimo3", str(folder), "test.csv", 600, {}),
        f"vLLM did not start with {folder}: ",
        "model type `other`",
        "; take a model that this vLLM loads, or a newer vLLM",
    )
    assert not (tmp_path / "submission.parquet").exists()


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"r": "8"}', '{"r": 0}'])
def test_a_missing_or_broken_adapter_configuration_is_named(tmp_path, text):
    if text:
        (tmp_path / "adapter_config.json").write_text(text)
    refused(lambda: read_adapter(tmp_path), "adapter_config.json", "PEFT")
