"""What stands in for private names of other libraries does what they do."""

import re
from types import SimpleNamespace

import pytest
from conftest import TINY

from aimo.train import callbacks, compat


@pytest.mark.parametrize("at_once", [1 << 23, 22], ids=["whole", "in parts"])
def test_the_plain_loss_is_cross_entropy_with_its_gradient(at_once, monkeypatch):
    import torch

    monkeypatch.setattr(compat, "LOGITS", at_once)
    outputs = "entropy", "log_sum_sq_probs", "mean_logits", "is_top1"
    torch.manual_seed(0)
    hidden = torch.randn(5, 8, requires_grad=True)
    weight, targets = torch.randn(11, 8), torch.tensor([0, 3, 10, 7, 7])
    given = hidden, weight, None, targets, 0.7, 1024, None, 1.0, outputs
    chosen, entropy, log_square, mean, top = compat.PlainLogProbs.apply(*given)
    logits = hidden @ weight.T / 0.7
    p = torch.distributions.Categorical(logits=logits)
    cross_entropy = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    found = (-chosen, entropy, log_square.exp(), mean)
    for one, wanted in zip(
        found, (cross_entropy, p.entropy(), p.probs.square().sum(-1), logits.mean(-1)), strict=True
    ):
        assert torch.allclose(one, wanted, atol=1e-5)
    assert torch.equal(top, logits.argmax(-1) == targets)
    gradients = (torch.autograd.grad(loss.sum(), hidden)[0] for loss in (-chosen, cross_entropy))
    assert torch.allclose(*gradients, atol=1e-5)


def test_completions_are_counted_while_they_end_and_stay_what_they_are(monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr(callbacks, "COUNT_S", 0.0)
    told = []
    display = callbacks.Live.__new__(callbacks.Live)  # without a trainer
    display.trainer, display.ended = SimpleNamespace(doing=told.append), False
    model, tokenizer = (kind.from_pretrained(TINY) for kind in (AutoModelForCausalLM, AutoTokenizer))
    prompts = tokenizer(["1 + 1 ="] * 16, return_tensors="pt")

    def sample():
        torch.manual_seed(0)
        return model.generate(**prompts, max_new_tokens=60, do_sample=True)

    before = sample()
    for _ in range(2):  # a cell that runs twice
        display.count(model)
    assert torch.equal(sample(), before)
    counts = [int(re.fullmatch(r"sampling, (\d+) of 16 completions ended", line)[1]) for line in told]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] > 8 and len(counts) <= 60

    told.clear()
    monkeypatch.setenv("TQDM_DISABLE", "1")
    engine = SimpleNamespace(generate=lambda use_tqdm: use_tqdm)
    display.count(engine, is_vllm=True)
    bar = engine.generate()
    assert list(bar(range(3), desc="Rendering prompts")) == [0, 1, 2] and not told
    processed = bar(total=4, desc="Processed prompts", dynamic_ncols=True, postfix="")
    processed.update(4)
    assert processed.format_dict["elapsed"] > 0  # vLLM divides by it
    processed.close()
    assert told[-1] == "sampling, 4 of 4 completions ended"
    display.ended = True
    display.sampled(5, 5)
    assert "5" not in told[-1], "a cell that samples later shows training's bar again"


def test_a_stop_that_python_swallows_as_in_a_finaliser_is_raised_at_the_end_of_the_step():
    display = callbacks.Live.__new__(callbacks.Live)
    display.interrupted = False
    display.on_step_end(None, None, None)
    for stop in (lambda: display.interrupt(2, None), lambda: display.on_step_end(None, None, None)):
        with pytest.raises(KeyboardInterrupt):
            stop()


def test_the_vllm_that_samples_answers_probes_greedily_with_the_newest_weights_and_then_samples_as_before():
    made, seen = object.__new__(compat.ExactGeneration), []
    made.max_model_length, made.accelerator = 8, SimpleNamespace(num_processes=1, process_index=0)
    before = dict.fromkeys(("temperature", "top_p", "top_k", "min_p", "repetition_penalty"), 0.7)
    before |= {"max_completion_length": 99, "generation_kwargs": None}
    vars(made).update(before)
    made.sync_weights = lambda: seen.append("weights")

    def generate(prompts, images, count):
        seen.append((made.temperature, made.max_completion_length, made.generation_kwargs))
        return prompts, [[7]] * len(prompts), None, None

    made.generate = generate
    assert made.answer([[1, 2], [3]], 5, 0) == [[7], [7]]
    assert seen == ["weights", (0.0, 5, {"stop_token_ids": [0]})] and before.items() <= vars(made).items()
    assert made.answer([[1] * 8], 5, 0) is None, "there is no room to answer"
