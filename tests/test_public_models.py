"""The profiles of public models: they parse, vLLM takes their arguments, and their prompts read well."""

import pytest

from aimo import config
from aimo.inference import prompts
from aimo.inference.competitions import COMPETITIONS
from aimo.inference.settings import validate

PUBLIC = {
    name: profile
    for name in sorted(path.stem for path in config.PROFILES.glob("*.yaml"))
    if not (profile := config.load(name)).trained
}


def test_there_is_one_for_each_kind_of_machine():
    assert {"aimo3-gpt-oss-120b", "aimo3-gpt-oss-20b", "qwen3-30b-a3b-thinking", "aimo2-r1-14b-awq"} < set(
        PUBLIC
    )


@pytest.mark.parametrize("name", PUBLIC)
def test_it_does_inference_alone_and_vllm_has_its_arguments(name):
    from aimo.inference.engine import check_arguments

    assert PUBLIC[name].stages == ("inference",)
    check_arguments(PUBLIC[name].inference.vllm or {})


@pytest.mark.parametrize("competition", COMPETITIONS)
@pytest.mark.parametrize("name", PUBLIC)
def test_each_sample_reads_the_problem_the_competitions_rules_and_where_the_answer_goes(name, competition):
    settings = validate(PUBLIC[name].inference.written, name, "correct it")
    rules = COMPETITIONS[competition].rules
    asked = [prompts.variant(settings, i) for i in range(settings.samples)]
    for one in asked:
        text = f"{one.system}\n{one.user}".replace("{rules}", rules).replace("{problem}", "What is 1 + 1?")
        assert "What is 1 + 1?" in text and rules in text and "\\boxed{}" in text
        assert "{" not in text.replace("\\boxed{}", "")
