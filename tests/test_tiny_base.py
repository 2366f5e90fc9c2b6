"""The tiny base as it is in the repository, and how it is made."""

import json
import random
import runpy

import pytest
from conftest import TINY


def test_it_is_a_small_qwen3_with_tokenizer_template_and_card():
    from safetensors import safe_open

    config = json.loads((TINY / "config.json").read_text())
    with safe_open(TINY / "model.safetensors", "np") as weights:
        parameters = sum(weights.get_tensor(name).size for name in weights.keys())  # noqa: SIM118
    assert config["architectures"] == ["Qwen3ForCausalLM"] and 1e6 <= parameters <= 6e6
    assert sum(p.stat().st_size for p in TINY.iterdir()) <= 15e6
    assert {"tokenizer.json", "chat_template.jinja", "README.md"} <= {p.name for p in TINY.iterdir()}


@pytest.mark.parametrize("way", ["Answer: ", "= ", "<end_working_out>"])
def test_its_training_texts_hold_the_problem_and_its_answer_in_every_way(way):
    from transformers import AutoTokenizer

    from aimo.data.builtin import generate

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
