"""What a stage saves computes what it trained: another template, number type or adapter is caught."""

import random

import pytest
from conftest import TINY

from aimo import config
from aimo.errors import AimoError
from aimo.evaluation.served import compare
from aimo.run import runs
from aimo.train import models


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def stage(request, tmp_path_factory):
    """A stage as training leaves it, its tokenizer, and a function that trains another adapter there."""
    import torch

    from aimo.train import served

    settings = [f"model.dtype={request.param}", "model.backend=transformers", "inference.max_tokens=8"]
    run = runs.Run(config.load("tiny", settings), tmp_path_factory.mktemp("run"), "sft", 0.0)
    model, tokenizer = models.load_model(TINY, run.profile), models.load_tokenizer(TINY, run.profile)
    rows = [{"prompt": [{"role": "user", "content": f"What is {i} + 1?"}]} for i in range(16)]

    def train(seed):
        torch.manual_seed(seed)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data.normal_(std=0.02)
        model.save_pretrained(run.folder / "trained")

    train(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served, "TOKENS", 12)
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        served.remember(model, tokenizer, run, rows)
        assert all(weight.equal(before[name]) for name, weight in model.named_parameters())
    return run, tokenizer, train


def other_template(folder, train):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "Question: " + tokenizer.chat_template
    tokenizer.save_pretrained(folder)


def other_dtype(folder, train):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    model.to(torch.bfloat16 if model.dtype == torch.float32 else torch.float16).save_pretrained(folder)


def other_adapter(folder, train):
    train(1)


def no_adapter(folder, train):
    from transformers import AutoModelForCausalLM

    saved = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    AutoModelForCausalLM.from_pretrained(TINY, dtype=saved.dtype).save_pretrained(folder)


@pytest.mark.parametrize(
    "change, told",
    [
        (None, None),
        (other_template, "chat template makes other tokens"),
        (other_dtype, "its weights are b?float16, and the stage computed in b?float"),
        (other_adapter, "not those of the trained adapter"),
        (no_adapter, "not those of the trained adapter"),
    ],
)
def test_what_is_served_is_what_was_trained_or_the_stage_stops_with_the_reason(stage, change, told):
    from aimo.train import served

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


@pytest.mark.parametrize(
    "changed, noise, bound, told",
    [  # nats that training changed, and that the server's rounding adds
        (0.3, 0.02, None, None),
        (0.3, 0.5, None, "differ by"),  # more than rounding explains
        (0.3, 0.5, 2.0, None),  # and more than that is allowed
        (0.0, 0.02, None, None),  # nothing was trained: nothing can be told apart
        (-0.08, 0.02, None, "not those of the trained adapter"),  # within the bound, and without the adapter
    ],
)
def test_what_counts_as_rounding_is_measured_and_a_small_adapter_is_told_from_none(
    changed, noise, bound, told
):
    draw, rounding = random.Random(0), 0.03
    start = [draw.gauss(-1, 0.5) for _ in range(2000)]
    trained = [value + draw.gauss(0, abs(changed)) for value in start]
    merged = [value + draw.gauss(0, rounding) for value in trained]
    served = [value + draw.gauss(0, noise) for value in (start if changed < 0 else merged)]
    talk = {"ids": [1, 2], "log_probs": trained, "merged": merged, "start": start}
    arguments = {"dtype": "bfloat16", "talks": [talk]}, [([1, 2], served)], "bfloat16", "sft: it", bound
    if not told:
        assert compare(*arguments) == pytest.approx(noise * 0.8, rel=0.1)
        return
    with pytest.raises(AimoError, match=told):
        compare(*arguments)


@pytest.mark.parametrize(
    "served_is, learnt, noise",
    [("trained", 0.034, 0.05), ("trained", 0.002, 0.05), ("start", 0.034, 0.05), ("other", 0.034, 0.0025)],
)
@pytest.mark.parametrize("seed", range(5))
def test_in_vllm_a_weak_adapter_in_16_bits_is_told_from_none_and_from_another(served_is, learnt, noise, seed):
    """vLLM rounds by more than training changed: the bound for its kernels tells nothing."""
    draw = random.Random(seed)
    start = [draw.gauss(-1, 0.5) for _ in range(600)]
    trained, other = ([value + draw.gauss(0, learnt) for value in start] for _ in range(2))
    served = {"trained": trained, "start": start, "other": other}[served_is]
    talk = {"ids": [1], "log_probs": trained, "merged": trained, "start": start}
    found = [([1], [value + draw.gauss(0, noise) for value in served])]
    arguments = {"dtype": "bfloat16", "talks": [talk]}, found, "bfloat16", "sft: it"
    if served_is == "trained":
        assert compare(*arguments, kernels=0.1) == pytest.approx(noise * 0.8, rel=0.1)
        return
    with pytest.raises(AimoError, match="not those of the trained adapter"):
        compare(*arguments, kernels=0.1)


def test_a_merge_in_16_bits_that_loses_an_adapter_of_less_than_a_last_bit_stops_no_stage():
    draw = random.Random(0)
    start = [draw.gauss(-1, 0.5) for _ in range(600)]
    trained = [value + draw.gauss(0, 0.002) for value in start]
    talk = {"ids": [1], "log_probs": trained, "merged": start, "start": start}
    arguments = {"dtype": "bfloat16", "talks": [talk]}, [([1], start)], "bfloat16", "sft: it"
    assert compare(*arguments) == 0


@pytest.mark.parametrize("apart, told", [(0.1, None), (0.3, "differ by 0.3 on average, 0.2 is allowed")])
def test_all_weights_in_16_bits_have_a_wider_bound(apart, told):
    kept = {"dtype": "bfloat16", "talks": [{"ids": [1], "log_probs": [-1.0, -2.0]}]}
    arguments = kept, [([1], [-1 - apart, -2 + apart])], "bfloat16", "sft: it"
    if not told:
        assert compare(*arguments) == pytest.approx(apart)
        return
    with pytest.raises(AimoError, match=told):
        compare(*arguments)


def test_without_held_out_problems_nothing_is_compared(tmp_path):
    from aimo.train import served

    run = runs.Run(config.load("tiny", []), tmp_path, "sft", 0.0)
    served.remember(None, None, run, None)
    assert served.check(run) == {}
