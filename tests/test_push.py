"""Pushing a finished model, with fakes in place of the hub's and Kaggle's clients."""

import sys
import types

import huggingface_hub
import pytest

from aimo import config, hub
from aimo.errors import AimoError


class Hub:
    """The hub's client, which takes what it is given, or refuses it."""

    refuses = False

    def create_repo(self, name, private, exist_ok):
        if self.refuses:
            raise PermissionError("401 Client Error: Unauthorized\nfor url …")
        self.created = name, private, exist_ok

    def upload_folder(self, repo_id, folder_path):
        return f"https://huggingface.co/{repo_id}/tree/main, from {folder_path}"


class Kaggle:
    """Kaggle's client, which exits where there is no token."""

    token = True

    def authenticate(self):
        if not self.token:
            print("Could not find kaggle.json")
            sys.exit(1)

    def model_instance_version_create(self, instance, folder, version_notes="", quiet=False):
        Kaggle.pushed = instance, folder, version_notes


@pytest.fixture
def clients(monkeypatch):
    """Both clients, obliging."""
    module = types.ModuleType("kaggle.api.kaggle_api_extended")
    module.KaggleApi = Kaggle
    for name in ("kaggle", "kaggle.api"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "kaggle.api.kaggle_api_extended", module)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)


def profile(*overrides):
    return config.load("tiny", list(overrides))


def test_a_model_is_pushed_to_where_the_profile_says_and_nowhere_else(clients, tmp_path):
    assert hub.push(tmp_path, profile()) == ""
    said = hub.push(
        tmp_path,
        profile("training.push_to_hub=me/model", "training.push_to_kaggle=me/model/transformers/default"),
    )
    assert (
        f"huggingface.co/me/model/tree/main, from {tmp_path}" in said
        and "kaggle.com/models/me/model/transformers/default" in said
    )
    assert Kaggle.pushed == ("me/model/transformers/default", str(tmp_path), "tiny")


@pytest.mark.parametrize(
    "key, client, value, told",
    [
        ("push_to_hub", Hub, ("refuses", True), "401 .*HF_TOKEN"),
        ("push_to_kaggle", Kaggle, ("token", False), "Kaggle token"),
    ],
)
def test_a_push_that_is_refused_names_the_token_and_where_the_model_is_kept(
    clients, monkeypatch, tmp_path, key, client, value, told
):
    monkeypatch.setattr(client, *value)
    with pytest.raises(
        AimoError, match=rf"training\.{key}: 'me/m' was refused .*{told}.* kept in {tmp_path}"
    ) as e:
        hub.push(tmp_path, profile(f"training.{key}=me/m"))
    assert "\n" not in str(e.value)
