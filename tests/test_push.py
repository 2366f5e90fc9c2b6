"""Pushing a finished model: a fake in place of the hub's client, Kaggle's own against the stand-in."""

from typing import ClassVar

import huggingface_hub
import pytest

from aimo import config
from aimo.errors import AimoError
from aimo.inference.storage import read_lines
from aimo.run import runs

pytest_plugins = ["stand_in"]
MODEL = "me/model/transformers/default"


class Hub:
    """The hub's client, which takes what it is given, or refuses it."""

    refuses = False
    pushed: ClassVar[list] = []

    def create_repo(self, name, private, exist_ok):
        if self.refuses:
            raise PermissionError("401 Client Error: Unauthorized\nfor url …")
        self.pushed.append((name, private, exist_ok))

    def upload_folder(self, repo_id, folder_path):
        self.pushed.append((repo_id, folder_path))
        return f"https://huggingface.co/{repo_id}/tree/main"


@pytest.fixture
def push(kaggle, run_dir, monkeypatch):
    """Push the model of a run as its stage does; returns the model's folder."""
    from aimo.train import models

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "pushed", [])

    def run(*overrides):
        models.push_trained(runs.Run(config.load("tiny", list(overrides)), run_dir, "grpo", 0.0))
        return run_dir / "grpo" / "model"

    return run


def test_a_model_is_pushed_to_where_the_profile_says_and_nowhere_else(push, kaggle, run_dir):
    folder = push()
    assert Hub.pushed == [] and not kaggle.models
    push("training.push_to_hub=me/model", f"training.push_to_kaggle={MODEL}")
    assert Hub.pushed == [("me/model", True, True), ("me/model", str(folder))]
    (version,) = kaggle.models["me/model"]["default"]
    assert version == {path.name: path.read_bytes() for path in folder.iterdir()}
    (recorded,) = read_lines(run_dir.parent / "kaggle.jsonl")
    assert (recorded["model"], recorded["run"], recorded["profile"]) == (f"{MODEL}/1", str(run_dir), "tiny")


@pytest.mark.parametrize(
    ("key", "told"), [("push_to_hub", "401 .*HF_TOKEN"), ("push_to_kaggle", "does not accept the token")]
)
def test_a_push_that_is_refused_names_the_token_and_where_the_model_is_kept(push, monkeypatch, key, told):
    monkeypatch.setattr(Hub, "refuses", True)
    monkeypatch.setenv("KAGGLE_API_TOKEN", "bad-token")
    with pytest.raises(
        AimoError, match=rf"training\.{key}: '{MODEL}' was refused.*{told}.*kept in .*model"
    ) as e:
        push(f"training.{key}={MODEL}")
    assert "\n" not in str(e.value)
