"""What a stage saves computes what it trained: another template, number type or adapter is caught."""

import pytest
from conftest import TINY

from aimo import config
from aimo.errors import AimoError
from aimo.run import runs


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A stage as training leaves it, its tokenizer, and a function that trains another adapter there."""
    import torch

    from aimo.train import models, served

    profile = config.load("tiny", ["model.backend=transformers", "inference.max_tokens=8"])
    run = runs.Run(profile, tmp_path_factory.mktemp("run"), "sft", 0.0)
    model, tokenizer = models.load_model(TINY, profile), models.load_tokenizer(TINY, profile)
    rows = [{"prompt": [{"role": "user", "content": f"What is {i} + 1?"}]} for i in range(4)]

    def train(seed):
        torch.manual_seed(seed)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data.normal_(std=0.02)
        model.save_pretrained(run.folder / "trained")

    train(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served, "TOKENS", 12)
        served.remember(model, tokenizer, run, rows)
    return run, tokenizer, train


def other_template(folder, train):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "Question: " + tokenizer.chat_template
    tokenizer.save_pretrained(folder)


def other_dtype(folder, train):
    import torch
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)


def other_adapter(folder, train):
    train(1)


@pytest.mark.parametrize(
    "change, told",
    [
        (None, None),
        (other_template, "chat template makes other tokens"),
        (other_dtype, "its weights are bfloat16, and the stage computed in float32"),
        (other_adapter, "not those of the trained adapter"),
    ],
)
def test_what_is_served_is_what_was_trained_or_the_stage_stops_with_the_reason(stage, change, told):
    from aimo.train import models, served

    run, tokenizer, train = stage
    folder = run.folder / "model"
    if change is other_adapter:
        change(folder, train)
    models.save_model(run, tokenizer, {})
    if change is None:
        assert served.check(run)["served_difference"] < 1e-4
        return
    if change is not other_adapter:
        change(folder, train)
    with pytest.raises(AimoError, match=told) as e:
        served.check(run)
    assert "\n" not in str(e.value) and "training.served_bound" in str(e.value)
    train(0)


def test_without_held_out_problems_nothing_is_compared(tmp_path):
    from aimo.train import served

    run = runs.Run(config.load("tiny", []), tmp_path, "sft", 0.0)
    served.remember(None, None, run, None)
    assert served.check(run) == {}
