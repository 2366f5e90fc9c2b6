"""The solver's settings: a model folder's are defaults, a profile and the command line go over them."""

import json

import pytest

from aimo.errors import AimoError
from aimo.inference.settings import Settings, Tags, resolve


def write(folder, **values):
    (folder / "aimo.json").write_text(json.dumps(values))
    return folder


def test_each_layer_goes_over_those_before_it_and_keeps_their_other_keys(tmp_path):
    folder = write(tmp_path, samples=4, temperature=0.5, vllm={"max_num_seqs": 4, "seed_": 1})
    found = resolve(folder, {"temperature": 0.6, "vllm": {"max_num_seqs": 8}}, {"samples": 2})
    assert (found.samples, found.temperature) == (2, 0.6)
    assert found.vllm == {"max_num_seqs": 8, "seed_": 1}, "engine arguments are merged key by key"
    assert found.top_p == Settings().top_p


def test_a_folder_keeps_the_settings_that_were_written_into_it(tmp_path):
    settings = Settings(samples=3, min_p=0.1, tags=Tags("<t>", "</t>", "<a>", "</a>"), thinking=True)
    (tmp_path / "aimo.json").write_text(settings.to_json())
    assert resolve(tmp_path) == settings


@pytest.mark.parametrize(
    "template, think_end",
    [("{{ x }}<think>", "</think>"), ("a</think>b", "</think>"), ("<end_working_out>", "<end_working_out>")],
)
def test_tags_of_a_public_model_are_those_of_its_template(tmp_path, template, think_end):
    (tmp_path / "chat_template.jinja").write_text(template)
    assert resolve(tmp_path).tags.think_end == think_end


@pytest.mark.parametrize(
    "values, told",
    [
        ({"temprature": 1.0}, "did you mean temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"samples": 0}, "samples"),
        ({"tags": {"think_end": ""}}, "think_end"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line_in_a_folder_and_in_a_layer(tmp_path, values, told):
    for call in (lambda: resolve(tmp_path, values), lambda: resolve(write(tmp_path, **values))):
        with pytest.raises(AimoError, match=told) as e:
            call()
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_broken_aimo_json_is_named_with_the_remedy(tmp_path, text):
    (tmp_path / "aimo.json").write_text(text)
    with pytest.raises(AimoError, match=r"aimo\.json.*delete it to take the defaults"):
        resolve(tmp_path)


def test_the_description_holds_every_setting():
    lines = Settings(samples=3).describe().splitlines()
    assert "samples: 3" in lines and len(lines) == len(json.loads(Settings().to_json()))
