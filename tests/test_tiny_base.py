import json

import pytest
from conftest import TINY
from safetensors import safe_open

from aimo.data.builtin import generate
from aimo.training import tiny_base


def test_it_is_a_small_qwen3_with_tokenizer_template_and_card():
    config = json.loads((TINY / "config.json").read_text())
    with safe_open(TINY / "model.safetensors", "pt") as weights:
        parameters = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
    assert config["architectures"] == ["Qwen3ForCausalLM"] and 1e6 <= parameters <= 6e6
    assert sum(p.stat().st_size for p in TINY.iterdir()) <= 15e6
    assert {"tokenizer.json", "chat_template.jinja", "README.md"} <= {p.name for p in TINY.iterdir()}


@pytest.mark.parametrize("way", ["Answer: ", "= ", "<end_working_out>"])
def test_its_training_texts_hold_the_problem_and_its_answer_in_every_way(way):
    import random

    from transformers import AutoTokenizer

    tokenizer, rng, seen = AutoTokenizer.from_pretrained(TINY), random.Random(0), 0
    for p in generate(60, "train", 0):
        question, reply = tiny_base.write(tokenizer, p, rng)
        text = tokenizer.decode(reply)
        assert (
            tokenizer.decode(question).startswith(p.problem)
            and str(p.answer) in text
            and reply[-1] == tokenizer.eos_token_id
        )
        seen += way in text
    assert seen > 5


def test_the_same_seed_trains_the_same_model(tmp_path):
    for name in ("a", "b"):
        tiny_base.train(tmp_path / name, seed=1, steps=2)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
