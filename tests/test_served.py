"""What a stage saves computes what it trained: another template, number type or adapter is caught."""

import random

import pytest
from conftest import TINY

from aimo import config
from aimo.evaluation.served import compare
from aimo.inference.errors import AimoError
from aimo.run import runs
from aimo.train import models, trainers


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def stage(request, tmp_path_factory):
    """A stage as training leaves it, its tokenizer, and a function that trains another adapter there."""
    import torch

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
        patch.setattr(trainers, "TOKENS", 12)
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        trainers.remember(model, tokenizer, run, rows)
        assert all(weight.equal(before[name]) for name, weight in model.named_parameters())
    return run, tokenizer, train


def change(folder, part):
    """Change a part of a saved model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    if part == "template":
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = "Question: " + tokenizer.chat_template
        tokenizer.save_pretrained(folder)
    elif part == "dtype":
        (model.bfloat16() if model.dtype.itemsize == 4 else model.half()).save_pretrained(folder)
    elif part == "weights":
        AutoModelForCausalLM.from_pretrained(TINY, dtype=model.dtype).save_pretrained(folder)


@pytest.mark.parametrize(
    "part, told",
    [
        ("nothing", None),
        ("template", "chat template makes other tokens"),
        ("dtype", "its weights are b?float16, and the stage computed in b?float"),
        ("adapter", "not those of the trained adapter"),
        ("weights", "not those of the trained adapter"),
    ],
)
def test_what_is_served_is_what_was_trained_or_the_stage_stops_with_the_reason(stage, part, told):
    run, tokenizer, train = stage
    train(seed=int(part == "adapter"))
    models.save_model(run, tokenizer, {})
    change(run.folder / "model", part)
    if not told:
        assert trainers.check(run)["served_difference"] < 1e-4
        return
    with pytest.raises(AimoError, match=rf"^[^\n]*{told}[^\n]*training.served_bound[^\n]*$"):
        trainers.check(run)


def compared(talk, values, **how):
    """Compare what bfloat16 served with what it trained; `talk` has log-probabilities without their ids."""
    kept = {"dtype": "bfloat16", "talks": [{"ids": [1, 2]} | talk]}
    return compare(kept, [([1, 2], values)], "bfloat16", "sft: it", **how)


NOT = "not those of the trained adapter"
IN_VLLM = {"kernels": 0.1}  # rounds by more than training changed: the bound for its kernels tells nothing


@pytest.mark.parametrize(
    "learnt, rounding, served_is, noise, how, told",
    [  # nats that training changed, that the merge rounds, and that the server's rounding adds
        (0.3, 0.03, "merged", 0.02, {}, None),
        (0.3, 0.03, "merged", 0.5, {}, "differ by"),  # more than rounding explains
        (0.3, 0.03, "merged", 0.5, {"bound": 2.0}, None),  # and more than that is allowed
        (0.0, 0.03, "merged", 0.02, {}, None),  # nothing was trained: nothing can be told apart
        (0.08, 0.03, "start", 0.02, {}, NOT),  # within the bound, and without the adapter
        (0.002, 0.0, "merged", 0.05, IN_VLLM, None),
        (0.034, 0.0, "start", 0.05, IN_VLLM, NOT),
        (0.034, 0.0, "other", 0.0025, IN_VLLM, NOT),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_what_counts_as_rounding_is_measured_and_an_adapter_is_told_from_none_and_from_another(
    learnt, rounding, served_is, noise, how, told, seed
):
    draw = random.Random(seed)

    def around(values, spread):
        return [value + draw.gauss(0, spread) for value in values]

    start = around([-1.0] * 2000, 0.5)
    trained, other = around(start, learnt), around(start, learnt)
    merged = around(trained, rounding)
    values = around({"merged": merged, "start": start, "other": other}[served_is], noise)
    talk = {"log_probs": trained, "merged": merged, "start": start}
    if not told:
        assert compared(talk, values, **how) == pytest.approx(noise * 0.8, rel=0.1)
        return
    with pytest.raises(AimoError, match=told):
        compared(talk, values, **how)


def test_in_16_bits_a_merge_may_lose_what_is_smaller_than_a_last_bit_and_all_weights_have_a_wider_bound():
    start = [-1.0, -2.0]
    assert compared({"log_probs": [-1.002, -1.998], "merged": start, "start": start}, start) == 0
    assert compared({"log_probs": start}, [-1.1, -1.9]) == pytest.approx(0.1)
    with pytest.raises(AimoError, match=r"differ by 0\.3 on average, 0\.2 is allowed"):
        compared({"log_probs": start}, [-1.3, -1.7])


def test_without_held_out_problems_nothing_is_compared(tmp_path):
    run = runs.Run(config.load("tiny", []), tmp_path, "sft", 0.0)
    trainers.remember(None, None, run, None)
    assert trainers.check(run) == {}
