"""Profiles: what is read, what is refused by its key, what may change in a run."""

import json
import time

import pytest
from conftest import TINY

from aimo import config
from aimo.config import reading
from aimo.config.profile import TRAINED
from aimo.inference.errors import AimoError


@pytest.mark.parametrize("path", sorted(config.PROFILES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_profile_loads_and_is_named_like_its_file(path):
    assert config.load(path.stem).profile == path.stem


NO_NAMES = [
    "../../x",
    "/tmp/x",
    "a\\b",
    ".",
    "..",
    ".hidden",
    "-rf",
    "~",
    "a\nb",
    "",
    " ",
    "index.html",
    "x" * 300,
]


@pytest.mark.parametrize(
    "override, told",
    [
        ("grpo.max_stepz=5", ["grpo.max_stepz", "unknown", "max_steps"]),
        ("grpo.max_steps=many", ["grpo.max_steps", "integer", "'many'"]),
        ("sft.learning_rate=2", ["sft.learning_rate", "less than 1"]),
        ("model.backend=jax", ["model.backend", "unsloth", "transformers", "'jax'"]),
        ("grpo.gradient_accumulation_steps=7", ["grpo.gradient_accumulation_steps", "does not divide"]),
        ("grpo.max_completion_length=5000", ["max_prompt_length + max_", "exceed model.max_length"]),
        ("grpo.rewards={beauty: 1.0}", ["grpo.rewards", "'beauty'"]),
        ("data.sft.rows=null", ["data.sft", "rows"]),
        ("data.grpo.pass_rate=[0.9, 0.1]", ["data.grpo.pass_rate", "write the smaller one first"]),
        ("data.sft.mixture=[{source: b.csv}]", ["data.sft", "a set has a source or a mixture"]),
        ("data.heldout.test_split=0.1", ["data", "heldout.test_split", "no effect"]),
        ("seed", ["KEY=VALUE"]),
        ("seed={a: 1, a: 2}", ["--set", "YAML"]),
        ("seed.a=1", ["seed is a value"]),
        ("sft.logging_stepz=5", ["sft.logging_stepz", "unknown", "sft.trl"]),
        ("sft.num_train_epochs=1", ["sft.num_train_epochs: unknown key, it is called sft.epochs"]),
        ("max_prompt_length=1", ["max_prompt_length: unknown key, it is called grpo.max_prompt_length"]),
        ("data=null", ["sft", "data.sft", "missing"]),
        ("data.sft={source: distil}", ["source distil", "needs a section distil"]),
        ("data.grpo.test_split=0", ["grpo.probe_steps", "data.grpo.test_split"]),
        ("sft.eval_steps=5", ["sft.eval_steps", "data.sft.test_split"]),
        *((f"profile={json.dumps(name)}", ["profile: ", "take a name"]) for name in NO_NAMES),
    ],
)  # fmt: skip
def test_a_bad_key_is_refused_by_name(override, told):
    with pytest.raises(AimoError) as e:
        config.load("tiny", [override])
    assert [part for part in told if part not in str(e.value)] == []


def test_a_profile_may_be_named_as_people_name_files_and_stand_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # as a notebook's own folder
    text = (config.PROFILES / "tiny.yaml").read_text()
    for name in ("qwen2.5-1.5b", "my run (2)", "试验", "it's $5"):
        (tmp_path / f"{name}.yaml").write_text(text.replace("profile: tiny", ""))
        assert config.load(f"{name}.yaml").profile == name
    assert config.load("notebooks/profiles/tiny.yaml").profile == "tiny"


STEP = ["sft.batch_size=4", "sft.gradient_accumulation_steps=4"]


@pytest.mark.parametrize(
    "overrides, redo, refused",
    [
        (
            ["training.time_limit_s=60", "training.cache_dir=/c", "sft.save_steps=7", "profile=other"],
            None,
            [],
        ),
        (["grpo.gradient_accumulation_steps=8", "model.gradient_checkpointing=false"], None, []),
        (STEP, None, []),
        (STEP[:1], None, STEP[:1]),
        (STEP[:1], "sft", []),
        (["grpo.learning_rate=1e-6"], None, ["grpo.learning_rate"]),
        (["sft.epochs=9", "grpo.max_steps=9"], "grpo", ["sft.epochs"]),
        (["model.max_length=1000"], None, ["model.max_length"]),
        (["model.max_length=1000", "model.dtype=float32"], "grpo", []),
        (["model.lora.rank=4", "seed=5"], "grpo", ["model.lora.rank", "seed"]),
        (["model.lora.rank=4", "seed=5"], "data", []),
    ],
)
def test_what_changes_no_result_may_change_and_the_rest_from_its_stage_on(overrides, redo, refused):
    small = ["sft.batch_size=16", "sft.gradient_accumulation_steps=1"]
    old, new = config.load("tiny", small), config.load("tiny", [*small, *overrides])
    assert list(config.lasting_changes(old, new, redo)) == [key.partition("=")[0] for key in refused]


def test_every_name_that_is_answered_leads_to_a_key_that_exists():
    known = set(reading.keys())
    last = {key.rpartition(".")[2] for key in known}
    for theirs, ours in reading.ALIASES["keys"].items():
        assert theirs not in last, "a key of ours is no other name"
        for key in ours.split():
            assert key in known if "." in key else key in known | last, theirs


@pytest.mark.parametrize(
    "stages, overrides",
    [
        ("data sft grpo inference", []),
        ("data sft inference", ["grpo=null", "data.grpo=null", "data.heldout=null"]),
        ("data dpo inference", ["sft=null", "grpo=null", "data.sft=null", "dpo={learning_rate: 1e-6}"]),
        ("data sft dpo inference", ["grpo=null", "dpo={learning_rate: 1e-6}"]),
        ("inference", ["data=null", "sft=null", "grpo=null"]),
    ],
)
def test_each_stage_may_be_left_out_and_starts_from_the_last_one_trained_before_it(stages, overrides):
    p = config.load("tiny", overrides)
    assert " ".join(p.stages) == stages
    before = None
    for name in p.stages[1:]:
        assert p.trained_before(name) == before
        before = name if name in TRAINED else before


@pytest.mark.parametrize(
    "seed, told",
    [
        ("seed: 2024-01-01", "seed: should be .* integer, not '2024-01-01'"),
        ("seed: 0\nseed: 1", "'seed' occurs twice.*line"),
        ("seed: &a [*a]", "plain keys and values"),
        ("1: 2", "1: unknown key"),
        ("? {a: 1}\n: 2", "not valid YAML"),
        ("seed: !!binary aGk=", "seed: should be .* integer"),
        ("seed: !!python/object:x 1", "not valid YAML"),
        ("profile: mine\n", "model: missing"),
        ("- 1\n", "expected keys"),
        ("".encode("utf-16") + "profile".encode("utf-16-le"), "not UTF-8 at byte 0"),
        (b"profile: caf\xe9", "not UTF-8 at byte 12"),
    ],
)
def test_a_file_that_is_no_plain_profile_is_refused(tmp_path, seed, told):
    path = tmp_path / "mine.yaml"
    if isinstance(seed, str):
        text = (config.PROFILES / "tiny.yaml").read_text().replace("seed: 0", seed)
        seed = (seed if seed.endswith("\n") else text).encode()
    path.write_bytes(seed)
    with pytest.raises(AimoError, match=rf"^profile .*mine.*{told}"):
        config.load(path)


def test_overrides_reach_the_profile_and_a_dumped_profile_loads_as_the_same(tmp_path):
    p = config.load("tiny", ["grpo.max_steps=50", "sft.learning_rate=5e-6", "model.lora=null"])
    assert (p.grpo.max_steps, p.sft.learning_rate, p.model.lora) == (50, 5e-6, None)
    (tmp_path / "copy.yaml").write_text(config.dump(p))
    assert config.load(tmp_path / "copy.yaml") == p
    differing = ["model.lora.alpha", "model.lora.rank", "model.lora.target_modules", "sft.learning_rate"]
    assert list(config.differing_keys(p, config.load("tiny", ["grpo.max_steps=50"]))) == differing


@pytest.mark.parametrize(
    "keys, length", [([], None), (["model.max_length=512"], 512), (["inference.max_length=64"], 64)]
)
def test_a_context_that_is_set_is_taken_by_inference_alone_whatever_the_default(tmp_path, keys, length):
    (tmp_path / "p.yaml").write_text("model: {base: data/tiny-base}\n")
    profile = config.load(tmp_path / "p.yaml", keys)
    (tmp_path / "again.yaml").write_text(config.dump(profile))
    for one in (profile, config.load(tmp_path / "again.yaml")):
        assert one.solver_settings(TINY).max_length == length
    assert config.load("tiny", ["model.max_length=null"]).model.max_length == 2048  # where a stage trains


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize("text", [BOMB, "a: " + "[" * 5000 + "]" * 5000])
def test_a_profile_that_is_too_deep_or_explodes_is_refused_at_once(tmp_path, text):
    (tmp_path / "p.yaml").write_text(text)
    begun = time.monotonic()
    with pytest.raises(AimoError, match=r"p.yaml: not valid YAML: it is nested more than 50 deep, or holds"):
        config.load(tmp_path / "p.yaml")
    with pytest.raises(AimoError, match="is not a YAML value"):
        config.load("tiny", [f"sft.trl={'[' * 2000}"])
    assert time.monotonic() - begun < 1
