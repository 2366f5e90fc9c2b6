"""An adapter as a submission: what the host takes, what vLLM serves of it, and the archive."""

import json
import re
import shlex
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY, here, refused
from safetensors.numpy import load_file, save_file

from aimo import config

pytest_plugins = ["stand_in"]
PAGE = (ROOT / "docs/competitions.md").read_text().partition("\n## An adapter")[2].partition("\n## ")[0]
(OF_PAGE,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
TARGETS = re.search(r"targets: .*", OF_PAGE)[0]
RULES = OF_PAGE.replace("rank: 32", "rank: 8").replace(TARGETS, "targets: [q_proj, v_proj]")
RULES = RULES.replace("size_mb: 20", "size_mb: 1")
TRAINED = "sft/trained"
SFT = ["grpo=null", "model.backend=transformers", "model.lora.rank=8"]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A run whose SFT left an adapter, and the rules."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RULES)
    run, adapter = tmp_path / "run", tmp_path / "run" / TRAINED
    adapter.mkdir(parents=True)
    write_profile(run, *SFT)
    names = {"target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": str(TINY)}
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 16} | names))
    modules = [f"base_model.model.model.layers.0.self_attn.{name}_proj.lora" for name in "qv"]
    weights = {f"{name}_{half}.weight": np.ones((8, 8), np.float32) for name in modules for half in "AB"}
    save_file(weights, adapter / "adapter_model.safetensors")
    return run


def pack(run, *arguments):
    done = here("kaggle", "pack", run, "--competition", "tiny.yaml", "--no-serve", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def archived(run):
    """Make an archive of the adapter as it is."""
    with zipfile.ZipFile(run / "submission.zip", "w") as archive:
        for path in sorted((run / TRAINED).iterdir()):
            archive.write(path, path.name)
    return run / "submission.zip"


def configured(run, **changes):
    path = run / TRAINED / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weighed(run, what):
    path = run / TRAINED / "adapter_model.safetensors"
    save_file(what(load_file(path)), path)


def renamed(run, old, new):
    weighed(run, lambda weights: {key.replace(old, new): value for key, value in weights.items()})


def write_profile(run, *changes):
    (run / "profile.yaml").write_text(config.dump(config.load("tiny", list(changes))))


def continued(run):
    write_profile(run, *SFT[1:])
    shutil.copytree(run / "sft", run / "grpo")


def test_an_adapter_is_packed_byte_for_byte_for_the_host_s_base(made):
    assert "adapter: rank 8 for tiny-base, 4 tensors, float32, 0.0 MB" in pack(made)
    with zipfile.ZipFile(made / "submission.zip") as archive:
        assert archive.namelist() == ["adapter_config.json", "adapter_model.safetensors"]
        packed = json.loads(archive.read("adapter_config.json"))
        assert packed["base_model_name_or_path"] == "tiny-base" and packed["r"] == 8
        trained = made / "sft/trained/adapter_model.safetensors"
        assert archive.read("adapter_model.safetensors") == trained.read_bytes()
    assert not list(made.glob(".joined*"))


def test_the_page_s_commands_pack_and_submit_what_its_rules_take(made, kaggle):
    (made.parent / "tiny.yaml").write_text(OF_PAGE)
    (made.parent / "runs").mkdir()
    made.rename(made.parent / "runs/adapter")
    (command,) = re.findall(r"^aimo (kaggle pack .*)$", PAGE, re.MULTILINE)
    done = here(*shlex.split(command), "--no-serve")
    assert done.returncode == 0 and "submission: runs/adapter/submission.zip" in done.stdout
    packed = {"competition": "tiny.yaml", "forecast": {"adapter": [0.6, 0.5, 0.7]}, "questions": 50}
    Path("runs/adapter/sft/pack.json").write_text(json.dumps(packed))
    (command,) = re.findall(r"`aimo (kaggle submit [^`]*)`", PAGE)
    done = here(*shlex.split(command))
    assert done.returncode == 0 and "adapter: rank 8 for tiny-base" in done.stdout, done.stderr
    (request,) = kaggle.asked("CreateSubmission")
    assert kaggle.blobs[request.blob_file_tokens]["data"] == Path("runs/adapter/submission.zip").read_bytes()
    row = next(line for line in here("kaggle", "scores", "tiny.yaml").stdout.splitlines() if " 100 " in line)
    assert "0.600 (0.462 to 0.724)" in row and "forecast" in row and "runs/adapter" in row


OF_THE_ADAPTER = [
    (lambda run: configured(run, r=16), "its rank is 16, and the host takes 8 at most; train with"),
    (lambda run: renamed(run, "A.weight", "A.default.weight"), "lora_A.default.weight, no weight of LoRA"),
    (lambda run: weighed(run, lambda w: dict(list(w.items())[1:])), "have the ranks 0 and 8, and adapter_c"),
    (lambda run: weighed(run, lambda w: {}), "it holds nothing, no weight of LoRA"),
    (lambda run: configured(run, base_model_name_or_path="/models/other"), "for the base /models/other, and"),
    (lambda run: weighed(run, lambda w: {k: v.astype(float) for k, v in w.items()}), "has float64 weights"),
    (lambda run: renamed(run, "v_proj", "k_proj"), "k_proj has weights, and the host takes those of q_proj,"),
    (lambda run: configured(run, note="x" * 1_000_000), "MB, and the host takes 1; train a smaller rank"),
    (lambda run: configured(run, use_dora=True), "use_dora is True, which vLLM does not serve"),
]
OF_THE_RUN = [
    (lambda run: write_profile(run, *SFT, "model.base=Qwen/Qwen3-4B"), "its base is Qwen/Qwen3-4B, and"),
    (lambda run: (run / TRAINED / "adapter_model.safetensors").unlink(), "missing; train stage sft"),
    (lambda run: shutil.rmtree(run / "sft/trained"), "no stage of it has trained an adapter"),
    (continued, "sft and grpo add up to 16, and the host takes 8; train with --set model.lora.rank=4"),
    (lambda run: (continued(run), shutil.rmtree(run / TRAINED)), "no adapter is there, and grpo starts"),
]


@pytest.mark.parametrize("break_it, told", OF_THE_ADAPTER + OF_THE_RUN)
def test_what_the_host_would_not_take_is_refused_in_one_line_and_nothing_is_written(made, break_it, told):
    break_it(made)
    refused("kaggle", "pack", made, "--competition", "tiny.yaml", "--no-serve", told=[told])
    assert not (made / "submission.zip").exists() and not list(made.rglob("pack.json"))


BROKEN = [
    (lambda run: archived(run).write_bytes(archived(run).read_bytes()[:-9]), "it is no whole archive"),
    (lambda run: zipfile.ZipFile(run / "submission.zip", "w").close(), "host takes adapter_config.json"),
    (lambda run: ((run / TRAINED / "notes.md").touch(), archived(run)), "notes.md, and the host takes"),
]


@pytest.mark.parametrize("break_it, told", OF_THE_ADAPTER[:1] + BROKEN)
def test_an_archive_that_the_host_would_not_take_is_refused_before_anything_is_uploaded(
    made, kaggle, break_it, told
):
    break_it(made)
    if not (made / "submission.zip").exists():
        archived(made)
    submit = ["kaggle", "submit", made / "submission.zip", "--competition", "tiny.yaml", "--message", "m"]
    refused(*submit, told=[told, f"{made}/submission.zip"])
    assert not kaggle.requests


def test_adapters_of_stages_in_a_row_are_joined_into_one_that_computes_the_same(made, tmp_path):
    """SFT's, merged into the base, and GRPO's on that; one has modules that the other lacks."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    continued(made)
    (tmp_path / "tiny.yaml").write_text(RULES.replace("rank: 8", "rank: 12"))

    def train(model, stage, rank, **how):
        made_of = peft.LoraConfig(r=rank, target_modules=["q_proj", "v_proj"][: 2 - rank % 2], **how)
        model = peft.get_peft_model(model, made_of)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data.normal_(std=0.1)
        model.save_pretrained(made / stage / "trained")
        return model.merge_and_unload()

    torch.manual_seed(0)
    ids = torch.arange(9)[None]  # (1, 9)
    base = AutoModelForCausalLM.from_pretrained(TINY)
    after_sft = train(base, "sft", 4, lora_alpha=12, use_rslora=True)
    wanted = train(after_sft, "grpo", 7, lora_alpha=16)(ids).logits
    assert "adapter: rank 11 for tiny-base, 16 tensors" in pack(made)
    with zipfile.ZipFile(made / "submission.zip") as archive:
        archive.extractall(tmp_path / "joined")
    base = AutoModelForCausalLM.from_pretrained(TINY)
    start = base(ids).logits
    found = peft.PeftModel.from_pretrained(base, tmp_path / "joined")(ids).logits
    assert (found - wanted).abs().max() < 1e-4 < 0.1 < (start - wanted).abs().max()
    assert "rank 4 for" in pack(made / "sft"), "an earlier stage is packed by its name"


def test_another_competition_takes_no_adapter(made):
    refused("kaggle", "pack", made, "--competition", "aimo3", told=["aimo3: it takes answers and no adapter"])


@pytest.mark.engine
def test_vllm_serves_what_was_trained_and_the_score_is_forecast(made):
    """Adapters of the tiny base as SFT and GRPO leave them; then another in place of the last."""
    import polars as pl
    import torch

    from aimo.run import runs
    from aimo.train import models, trainers

    write_profile(made, *SFT[1:], "model.lora.rank=4", "model.lora.target_modules=[q_proj,v_proj]")
    profile = config.load(made / "profile.yaml")
    asked = [[{"role": "user", "content": f"What is {i} + 1?"}] for i in range(8)]
    rows = [{"prompt": prompt, "answer": str(i + 1)} for i, prompt in enumerate(asked)]
    (made / "data").mkdir()
    pl.DataFrame(rows).write_parquet(made / "data/heldout.parquet")

    def train(stage, base, seed):
        run, model = runs.Run(profile, made, stage, 0.0), models.load_model(base, profile)
        tokenizer = models.load_tokenizer(base, profile)
        torch.manual_seed(seed)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data.normal_(std=0.1)
        model.save_pretrained(run.folder / "trained")
        if seed < 2:
            trainers.remember(model, tokenizer, run, None)
            models.save_model(run, tokenizer, {})

    train("sft", TINY, 0)
    (made / "grpo").mkdir()
    train("grpo", made / "sft/model", 1)
    done = here("kaggle", "pack", made, "--competition", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    record = json.loads((made / "grpo/pack.json").read_text())
    assert record["served_difference"] < 1e-4 and set(record["forecast"]) == {"base", "adapter", "gain"}
    assert "on 8 questions, by nemotron" in done.stdout and "rank 8 for" in done.stdout
    (made / "submission.zip").unlink()
    train("grpo", made / "sft/model", 2)
    refused("kaggle", "pack", made, "--competition", "tiny.yaml", told=["is not the model that was trained"])
    assert not (made / "submission.zip").exists()
