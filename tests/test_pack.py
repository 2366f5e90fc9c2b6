"""An adapter as a submission: what the host takes, what vLLM serves of it, and the archive."""

import json
import re
import shlex
import shutil
import zipfile

import numpy as np
import pytest
from conftest import ROOT, TINY, here, refused
from safetensors.numpy import load_file, save_file

from aimo import config
from aimo.inference.competitions import COMPETITIONS

PAGE = (ROOT / "docs/competitions.md").read_text().partition("\n## An adapter")[2].partition("\n## ")[0]
(OF_PAGE,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
TARGETS = re.search(r"targets: .*", OF_PAGE)[0]
RULES = OF_PAGE.replace("rank: 32", "rank: 8").replace(TARGETS, "targets: [q_proj, v_proj]")
RULES = RULES.replace("size_mb: 20", "size_mb: 1")
SFT = ["grpo=null", "model.backend=transformers", "model.lora.rank=8"]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A run whose SFT left an adapter, the rules, and functions that change configuration and weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RULES)
    run, adapter = tmp_path / "run", tmp_path / "run" / "sft" / "trained"
    adapter.mkdir(parents=True)
    (run / "profile.yaml").write_text(config.dump(config.load("tiny", SFT)))
    target = {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": str(TINY),
    }
    (adapter / "adapter_config.json").write_text(json.dumps(target))
    shapes = {"q_proj": (192, 192), "v_proj": (64, 192)}
    weights = {
        f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_{half}.weight": np.ones(
            shape, np.float32
        )
        for layer in range(4)
        for name, (height, width) in shapes.items()
        for half, shape in (("A", (8, width)), ("B", (height, 8)))
    }
    save_file(weights, adapter / "adapter_model.safetensors")
    return run


def configured(**changes):
    def change(run):
        path = run / "sft/trained/adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def weighed(what):
    def change(run):
        path = run / "sft/trained/adapter_model.safetensors"
        save_file(what(load_file(path)), path)

    return change


def renamed(old, new):
    return weighed(lambda weights: {key.replace(old, new): value for key, value in weights.items()})


def of_profile(*changes):
    def change(run):
        (run / "profile.yaml").write_text(config.dump(config.load("tiny", [*SFT, *changes])))

    return change


def continued(run):
    (run / "profile.yaml").write_text(config.dump(config.load("tiny", SFT[1:])))
    shutil.copytree(run / "sft", run / "grpo")


def test_an_adapter_is_packed_byte_for_byte_for_the_host_s_base(made):
    done = here("kaggle", "pack", "run", "--competition", "tiny.yaml", "--no-serve")
    assert done.returncode == 0, done.stderr
    assert "adapter: rank 8 for data/tiny-base, 16 tensors, float32, 0.1 MB" in done.stdout
    with zipfile.ZipFile(made / "submission.zip") as archive:
        assert archive.namelist() == ["adapter_config.json", "adapter_model.safetensors"]
        packed = json.loads(archive.read("adapter_config.json"))
        assert packed["base_model_name_or_path"] == "tiny-base" and packed["r"] == 8
        trained = made / "sft/trained/adapter_model.safetensors"
        assert archive.read("adapter_model.safetensors") == trained.read_bytes()


def test_the_page_s_command_packs_what_its_rules_take(made):
    (command,) = re.findall(r"^aimo (kaggle pack .*)$", PAGE, re.MULTILINE)
    (made.parent / "tiny.yaml").write_text(OF_PAGE)
    (made.parent / "runs").mkdir()
    made.rename(made.parent / "runs/adapter")
    done = here(*shlex.split(command), "--no-serve")
    assert done.returncode == 0 and "submission: runs/adapter/submission.zip" in done.stdout


@pytest.mark.parametrize(
    "break_it, told",
    [
        (configured(r=16), ["its rank is 16, and the host takes 8 at most", "--set model.lora.rank=8"]),
        (renamed("lora_A.weight", "lora_A.default.weight"), ["lora_A.default.weight, no weight of LoRA"]),
        (
            weighed(lambda w: dict(list(w.items())[1:])),
            ["have the ranks 0 and 8", "adapter_config.json says 8"],
        ),
        (weighed(lambda w: {}), ["it holds nothing, no weight of LoRA"]),
        (
            configured(base_model_name_or_path="/models/other"),
            ["for the base /models/other", "serves tiny-base"],
        ),
        (
            of_profile("model.base=Qwen/Qwen3-4B"),
            ["its base is Qwen/Qwen3-4B", "serves tiny-base; train on that"],
        ),
        (
            renamed("layers.3", "layers.4"),
            ["layers.4.self_attn.q_proj is for 192 x 192", "does not have there"],
        ),
        (
            weighed(lambda w: {k: v.astype(np.float64) for k, v in w.items()}),
            ["float64 weights", "float16; set"],
        ),
        (
            renamed("v_proj", "k_proj"),
            ["k_proj has weights, and the host takes those of q_proj, v_proj; leave"],
        ),
        (configured(note="x" * 1_000_000), ["MB, and the host takes 1; train a smaller rank"]),
        (configured(use_dora=True), ["use_dora is True, which vLLM does not serve"]),
        (
            configured(rank_pattern={"q_proj": 4}),
            ["rank_pattern is {'q_proj': 4}, which vLLM does not serve"],
        ),
        (
            lambda run: (run / "sft/trained/adapter_model.safetensors").unlink(),
            ["it is missing; train stage sft"],
        ),
        (lambda run: shutil.rmtree(run / "sft/trained"), ["no stage of it has trained an adapter"]),
        (
            continued,
            ["it continues sft/model, and the host serves tiny-base; pack", "run/sft, or train grpo alone"],
        ),
    ],
)
def test_what_the_host_would_not_take_is_refused_in_one_line_and_nothing_is_written(made, break_it, told):
    break_it(made)
    refused("kaggle", "pack", made, "--competition", "tiny.yaml", "--no-serve", told=told)
    assert not (made / "submission.zip").exists() and not list(made.rglob("pack.json"))


def test_an_earlier_stage_is_packed_by_its_name(made):
    continued(made)
    done = here("kaggle", "pack", made / "sft", "--competition", "tiny.yaml", "--no-serve")
    assert done.returncode == 0 and (made / "sft/pack.json").exists()


@pytest.mark.parametrize(
    "change, told",
    [
        (("rank: 8", "rnk: 8"), "artefact.lora.rnk: unknown key, did you mean rank?"),
        (("temperature: 0.0", "temprature: 0.0"), "temprature"),
        (("kind: adapter", "kind: csv"), "lora: what the host takes goes with kind: adapter"),
        (("bases: [tiny-base]", "bases: []"), "artefact.lora.bases"),
    ],
)
def test_a_wrong_key_of_the_adapter_is_named(tmp_path, change, told):
    (tmp_path / "tiny.yaml").write_text(RULES.replace(*change))
    refused("competition", "check", tmp_path / "tiny.yaml", told=[told])


def test_another_competition_takes_no_adapter(made):
    refused("kaggle", "pack", made, "--competition", "aimo3", told=["aimo3: it takes answers and no adapter"])
    assert COMPETITIONS["nemotron-reasoning"].artefact.lora.serving["max_tokens"] == 7680


@pytest.mark.engine
def test_vllm_serves_what_was_trained_and_the_score_is_forecast(made):
    """An adapter of the tiny base as SFT leaves it; then another in its place."""
    import polars as pl
    import torch

    from aimo.run import runs
    from aimo.train import models, served

    profile = config.load("tiny", [*SFT, "model.lora.target_modules=[q_proj,v_proj]"])
    (made / "profile.yaml").write_text(config.dump(profile))
    rows = [
        {"prompt": [{"role": "user", "content": f"What is {i} + 1?"}], "answer": str(i + 1)} for i in range(8)
    ]
    (made / "data").mkdir()
    pl.DataFrame(rows).write_parquet(made / "data/heldout.parquet")
    run = runs.Run(profile, made, "sft", 0.0)
    model, tokenizer = models.load_model(TINY, profile), models.load_tokenizer(TINY, profile)

    def train(seed):
        torch.manual_seed(seed)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data.normal_(std=0.1)
        model.save_pretrained(made / "sft/trained")

    train(0)
    served.remember(model, tokenizer, run, None)
    done = here("kaggle", "pack", made, "--competition", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    record = json.loads((made / "sft/pack.json").read_text())
    assert record["served_difference"] < 1e-4 and set(record["forecast"]) == {"base", "adapter", "gain"}
    assert "on 8 questions, by nemotron" in done.stdout and (made / "submission.zip").exists()
    (made / "submission.zip").unlink()
    train(1)
    refused("kaggle", "pack", made, "--competition", "tiny.yaml", told=["is not the model that was trained"])
    assert not (made / "submission.zip").exists()
