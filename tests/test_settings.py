"""The solver's settings: a model folder's are defaults, a profile and the command line go over them."""

import json
from dataclasses import asdict, fields

import pytest

from aimo import config
from aimo.config.profile import SettingsSection
from aimo.errors import AimoError
from aimo.inference.settings import Settings, Tags, resolve_settings


def write(folder, **values):
    (folder / "aimo.json").write_text(json.dumps(values))
    return folder


def test_each_layer_goes_over_those_before_it_and_keeps_their_other_keys(tmp_path):
    folder = write(tmp_path, samples=4, temperature=0.5, vllm={"max_num_seqs": 4, "block_size": 16})
    found = resolve_settings(folder, {"temperature": 0.6, "vllm": {"max_num_seqs": 8}}, {"samples": 2})
    assert (found.samples, found.temperature) == (2, 0.6)
    assert found.vllm == {"max_num_seqs": 8, "block_size": 16}, "engine arguments are merged key by key"
    assert found.top_p == Settings().top_p


def test_a_folder_keeps_the_settings_that_were_written_into_it(tmp_path):
    settings = Settings(samples=3, min_p=0.1, tags=Tags("<t>", "</t>", "<a>", "</a>"), thinking=True)
    (tmp_path / "aimo.json").write_text(settings.to_json())
    assert resolve_settings(tmp_path) == settings


@pytest.mark.parametrize(
    "template, think_end",
    [("{{ x }}<think>", "</think>"), ("a</think>b", "</think>"), ("<end_working_out>", "<end_working_out>")],
)
def test_tags_of_a_public_model_are_those_of_its_template(tmp_path, template, think_end):
    (tmp_path / "chat_template.jinja").write_text(template)
    assert resolve_settings(tmp_path).tags.think_end == think_end


@pytest.mark.parametrize(
    "values, told",
    [
        ({"temprature": 1.0}, "did you mean temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"tool_seconds": 3600}, "tool_seconds"),
        ({"tags": {"think_end": ""}}, "think_end"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line_in_a_folder_and_in_a_layer(tmp_path, values, told):
    for layers in ([values], []):
        folder = tmp_path if layers else write(tmp_path, **values)
        with pytest.raises(AimoError, match=told) as e:
            resolve_settings(folder, *layers)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_broken_aimo_json_is_named_with_the_remedy(tmp_path, text):
    (tmp_path / "aimo.json").write_text(text)
    with pytest.raises(AimoError, match=r"aimo\.json.*delete it to take the defaults"):
        resolve_settings(tmp_path)


def test_a_folders_own_sampling_is_the_default_below_its_aimo_json_and_every_layer(tmp_path):
    own = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.05, "min_p": None}
    (tmp_path / "generation_config.json").write_text(json.dumps(own))
    assert sampling(resolve_settings(tmp_path)) == (0.6, 0.95, 20)
    assert sampling(resolve_settings(tmp_path, {"top_k": 0})) == (0.6, 0.95, 0)
    write(tmp_path, temperature=1.0, top_p=0.5)
    assert sampling(resolve_settings(tmp_path, {"top_p": 0.9})) == (1.0, 0.9, 20)


def sampling(settings):
    return settings.temperature, settings.top_p, settings.top_k


@pytest.mark.parametrize(
    "text, told", [('{"top_k": -5}', "top_k"), ('{"top_p": "a"}', "top_p"), ("{", "JSON")]
)
def test_a_generation_config_that_cannot_be_used_is_named_with_the_remedy(tmp_path, text, told):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(AimoError, match=rf"generation_config\.json.*{told}.*repair the file, or delete") as e:
        resolve_settings(tmp_path)
    assert "\n" not in str(e.value)


BOXED = {"think_start": "<think>", "think_end": "</think>", "answer_start": "\\boxed{", "answer_end": "}"}
OTHER = [{"share": 0.5, "system": "Use <SOLUTION>x</SOLUTION>."}]


@pytest.mark.parametrize(
    "layer, told",
    [
        ({"tags": asdict(Tags()), "system": "Put it in \\boxed{}."}, "inference.system asks for .boxed"),
        ({"tags": BOXED, "user": "{problem} Write <ANSWER>x</ANSWER>."}, "inference.user asks for </ANSWER>"),
        ({"tags": BOXED, "variants": OTHER}, "inference.variants.0.system asks for </SOLUTION>"),
        ({"variants": [{"share": 0.6}, {"share": 0.6}]}, "more than 1 in all"),
        ({"user": "Solve it."}, "user: .*problem"),
        ({"variants": [{"share": 0.5, "user": "Solve it."}]}, "variants.0.user: .*problem"),
    ],
)
def test_prompts_that_contradict_the_tags_or_leave_the_problem_out_are_refused_in_one_line(
    tmp_path, layer, told
):
    with pytest.raises(AimoError, match=told) as e:
        resolve_settings(tmp_path, layer)
    assert "\n" not in str(e.value)


def test_prompts_that_ask_for_what_is_read_are_accepted(tmp_path):
    prompts = {"system": "Think in <think></think>.", "user": "{problem} Put it in \\boxed{}. {rules}"}
    assert resolve_settings(tmp_path, {"tags": BOXED} | prompts).system == prompts["system"]
    tagged = "Think. <end_working_out> <SOLUTION>x</SOLUTION>, or <answer>x</answer>"
    assert resolve_settings(tmp_path, {"tags": asdict(Tags()), "system": tagged}).system == tagged


@pytest.mark.parametrize(
    "overrides, told",
    [
        (["inference.system=Put it in \\boxed{}."], "inference.system asks for .boxed"),
        (["prompt.system=Put it in \\boxed{}."], "prompt.system asks for .boxed"),
        (["prompt.system=Think.", "inference.system=Work it out."], "trained with prompt.system"),
    ],
)
def test_a_profile_that_trains_is_refused_before_it_trains(overrides, told):
    with pytest.raises(AimoError, match=told):
        config.load("tiny", overrides)


def test_a_profile_may_hold_every_setting_and_no_other():
    assert [f.name for f in fields(SettingsSection)] == [f.name for f in fields(Settings)]
