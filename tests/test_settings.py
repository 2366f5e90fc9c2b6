"""The solver's settings: a model folder's are defaults, a profile and the command line go over them."""

import json
from dataclasses import fields

import pytest

from aimo import config
from aimo.config.profile import SettingsSection
from aimo.inference.errors import AimoError
from aimo.inference.settings import Settings, Tags, resolve_settings


def write(folder, **values):
    (folder / "aimo.json").write_text(json.dumps(values))


def test_each_layer_goes_over_those_before_it_and_keeps_their_other_keys(tmp_path):
    own = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.05, "min_p": None}
    (tmp_path / "generation_config.json").write_text(json.dumps(own))
    found = resolve_settings(tmp_path)
    assert (found.temperature, found.top_p, found.top_k) == (0.6, 0.95, 20)
    write(tmp_path, samples=4, temperature=0.5, top_p=0.5, vllm={"max_num_seqs": 4, "block_size": 16})
    found = resolve_settings(tmp_path, {"top_p": 0.9, "vllm": {"max_num_seqs": 8}}, {"samples": 2})
    assert (found.samples, found.temperature, found.top_p, found.top_k) == (2, 0.5, 0.9, 20)
    assert found.vllm == {"max_num_seqs": 8, "block_size": 16}


def test_a_folder_keeps_the_settings_that_were_written_into_it(tmp_path):
    settings = Settings(samples=3, min_p=0.1, tags=Tags("<t>", "</t>", "<a>", "</a>"), thinking=True)
    (tmp_path / "aimo.json").write_text(settings.to_json())
    assert resolve_settings(tmp_path) == settings


@pytest.mark.parametrize("template, end", [("a</think>", "</think>"), ("<end_working_out>",) * 2])
def test_tags_of_a_public_model_are_those_of_its_template(tmp_path, template, end):
    (tmp_path / "chat_template.jinja").write_text(template)
    assert resolve_settings(tmp_path).tags.think_end == end


@pytest.mark.parametrize(
    "values, told",
    [
        ({"temprature": 1.0}, "did you mean temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"tags": {"think_end": ""}}, "think_end"),
        ({"variants": [{"share": 0.6}, {"share": 0.6}]}, "more than 1 in all"),
        ({"variants": [{"share": 0.5, "user": "Solve it."}]}, "variants.0.user: .*problem"),
    ],
)
def test_a_wrong_setting_is_named_in_a_folder_and_in_a_layer(tmp_path, values, told):
    with pytest.raises(AimoError, match=told):
        resolve_settings(tmp_path, values)
    write(tmp_path, **values)
    with pytest.raises(AimoError, match=f"aimo.json: .*{told}"):
        resolve_settings(tmp_path)


@pytest.mark.parametrize(
    "name, text", [("aimo.json", "[]"), ("generation_config.json", '{"top_k": -5}')], ids=str
)
def test_a_broken_file_of_a_folder_is_named_with_the_remedy(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(AimoError, match=f"{name}.*repair the file"):
        resolve_settings(tmp_path)


def test_a_profile_that_trains_is_refused_before_it_trains():
    with pytest.raises(AimoError, match="trained with prompt"):
        config.load("tiny", ["prompt.system=Think.", "inference.system=Work it out."])


def test_a_profile_may_hold_every_setting_and_no_other():
    assert [f.name for f in fields(SettingsSection)] == [f.name for f in fields(Settings)]
