"""The tiny base as it is in the repository, and how it is made."""

import json
import random
import runpy

import pytest
from conftest import TINY

from aimo.data.builtin import generate


@pytest.mark.parametrize("model", [TINY, TINY.with_name("tiny-tools")])
def test_padding_ends_no_text(model):
    """On a GPU, Unsloth does not load it otherwise, or leaves the end of a text out of the loss of GRPO."""
    from transformers import AutoTokenizer

    tokenizer, config = AutoTokenizer.from_pretrained(model), json.loads((model / "config.json").read_text())
    assert tokenizer.pad_token_id != tokenizer.eos_token_id and tokenizer.pad_token_id < config["vocab_size"]
    assert tokenizer.decode(tokenizer.encode("ÿ, 中: 2² ÷ 4 ≤ 1")) == "ÿ, 中: 2² ÷ 4 ≤ 1"


@pytest.mark.parametrize("way", ["Answer: ", "= ", "<end_working_out>"])
def test_its_training_texts_hold_the_problem_and_its_answer_in_every_way(way):
    from transformers import AutoTokenizer

    tokenizer, rng, seen = AutoTokenizer.from_pretrained(TINY), random.Random(0), 0
    write = runpy.run_path(str(TINY / "make.py"))["write"]
    for p in generate(60, "train", 0):
        (question, _), (reply, _) = write(tokenizer, p, rng)
        text = tokenizer.decode(reply)
        assert tokenizer.decode(question).startswith(p.problem) and str(p.answer) in text
        assert reply[-1] == tokenizer.eos_token_id
        seen += way in text
    assert seen > 5


@pytest.mark.train
def test_the_same_seed_trains_the_same_model_and_another_seed_another(tmp_path):
    train, weights = runpy.run_path(str(TINY / "make.py"))["train"], []
    train.__globals__["BATCH"] = 8
    for i, seed in enumerate((1, 1, 2)):
        train(tmp_path / str(i), seed=seed, steps=2)
        weights.append((tmp_path / str(i) / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]
