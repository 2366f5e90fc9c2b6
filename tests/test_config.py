import pytest

from aimo import config
from aimo.errors import AimoError


@pytest.mark.parametrize("path", sorted(config.PROFILES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_profile_loads_and_is_named_like_its_file(path):
    assert config.load(path.stem).profile == path.stem


def test_the_unsloth_recipe_is_the_one_published():
    p = config.load("qwen3-4b")
    assert (p.model.lora.rank, p.model.lora.alpha, len(p.model.lora.target_modules), p.model.max_length) == (
        32,
        64,
        7,
        2048,
    )


@pytest.mark.parametrize(
    "override, told",
    [
        ("grpo.max_stepz=5", ["grpo.max_stepz", "unknown", "max_steps"]),
        ("grpo.max_steps=many", ["grpo.max_steps", "integer", "'many'"]),
        ("grpo.max_steps=0", ["grpo.max_steps", "greater than 0"]),
        ("sft.learning_rate=2", ["sft.learning_rate", "less than 1"]),
        ("model.backend=jax", ["model.backend", "unsloth", "transformers", "'jax'"]),
        ("grpo.gradient_accumulation_steps=7", ["grpo.gradient_accumulation_steps", "does not divide"]),
        (
            "grpo.max_completion_length=5000",
            ["max_prompt_length + max_completion_length", "model.max_length"],
        ),
        ("grpo.rewards={beauty: 1.0}", ["grpo.rewards", "'beauty'"]),
        ("data.sft.rows=null", ["data.sft", "rows"]),
        ("seed", ["KEY=VALUE"]),
    ],
)
def test_a_bad_key_is_refused_by_name_in_one_line(override, told):
    with pytest.raises(AimoError) as e:
        config.load("tiny", [override])
    assert "\n" not in str(e.value)
    for part in told:
        assert part in str(e.value)


def test_a_missing_key_and_a_file_that_is_no_profile_are_refused_by_name(tmp_path):
    path = tmp_path / "mine.yaml"
    for text, told in (
        ("profile: mine\n", r"model: missing.*grpo: missing"),
        ("- 1\n", "expected keys"),
        ("a: [\n", "not valid YAML"),
    ):
        path.write_text(text)
        with pytest.raises(AimoError, match=told):
            config.load(path)


def test_an_unknown_profile_is_refused_with_the_known_ones():
    with pytest.raises(AimoError, match=r"tinny.*tiny"):
        config.load("tinny")


def test_overrides_reach_the_profile_and_a_dumped_profile_loads_as_the_same(tmp_path):
    p = config.load("tiny", ["grpo.max_steps=50", "sft.learning_rate=5e-6", "model.lora=null"])
    assert (p.grpo.max_steps, p.sft.learning_rate, p.model.lora) == (50, 5e-6, None)
    (tmp_path / "copy.yaml").write_text(config.dump(p))
    assert config.load(tmp_path / "copy.yaml") == p
    assert list(config.differing_keys(p, config.load("tiny", ["grpo.max_steps=50"]))) == [
        "model.lora.alpha", "model.lora.rank", "model.lora.target_modules", "sft.learning_rate"
    ]  # fmt: skip
