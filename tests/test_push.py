"""Pushing a finished model: a fake in place of the hub's client, Kaggle's own against the stand-in."""

import pytest

from aimo import config
from aimo.inference.errors import AimoError
from aimo.inference.storage import read_lines
from aimo.run import runs
from aimo.train import models

pytest_plugins = ["stand_in"]
MODEL = "me/model/transformers/default"


def push(run_dir, **where):
    """Push the model of a run as its stage does; return the model's folder."""
    overrides = [f"training.{key}={place}" for key, place in where.items()]
    models.push_trained(runs.Run(config.load("tiny", overrides), run_dir, "grpo", 0.0))
    return run_dir / "grpo" / "model"


def test_a_model_is_pushed_to_where_the_profile_says_and_nowhere_else(kaggle, hub, run_dir):
    push(run_dir)
    assert not hub and not kaggle.models
    folder = push(run_dir, push_to_hub="me/model", push_to_kaggle=MODEL)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert hub == {"repo": ("me/model", "model", True)} | files
    assert kaggle.models["me/model"]["default"] == [files]
    (recorded,) = read_lines(run_dir.parent / "kaggle.jsonl")
    assert (recorded["model"], recorded["run"], recorded["profile"]) == (f"{MODEL}/1", str(run_dir), "tiny")


def refuse(*_, **__):
    raise PermissionError("401 Client Error: Unauthorized\nfor url …")


@pytest.mark.parametrize(
    ("key", "told"), [("push_to_hub", "401 .*HF_TOKEN"), ("push_to_kaggle", "does not accept the token")]
)
def test_a_push_that_is_refused_names_the_token_and_where_the_model_is_kept(
    kaggle, run_dir, monkeypatch, key, told
):
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    monkeypatch.setenv("KAGGLE_API_TOKEN", "bad-token")
    told = rf"training\.{key}: '{MODEL}' was refused.*{told}.*kept in .*model"
    with pytest.raises(AimoError, match=told):
        push(run_dir, **{key: MODEL})
