"""Token ids of the SFT set: those of generation, made once."""

import pytest
from conftest import TINY

from aimo import config
from aimo.run import runs

PROMPT = [{"role": "user", "content": "What is 12 + 1?"}]


def row(text, prompt=PROMPT):
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": text}]}


def tokenizer_of(*overrides):
    from aimo.train import models

    return models.load_tokenizer(TINY, config.load("tiny", list(overrides)))


def test_what_is_trained_begins_with_the_tokens_of_generation_even_where_a_tag_merges_with_what_follows():
    from aimo.train.sft import tokenize

    tokenizer = tokenizer_of("prompt.think_start=tog", "prompt.think_end=/")
    reply = "together 13/<SOLUTION>13</SOLUTION>"
    asked = tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, return_dict=False)
    (trained,) = tokenize([row(reply)], tokenizer)
    replied = len(trained["input_ids"]) - len(asked)
    assert trained["input_ids"][: len(asked)] == asked
    assert trained["completion_mask"] == [0] * len(asked) + [1] * replied
    assert trained["input_ids"][-1] == tokenizer.eos_token_id
    talk = [*PROMPT, {"role": "assistant", "content": reply}]
    as_one_text = tokenizer.apply_chat_template(talk, return_dict=False)
    assert tokenizer.decode(as_one_text) == tokenizer.decode(trained["input_ids"])
    assert as_one_text[: len(asked)] != asked, "this tag does not merge with what follows"


@pytest.fixture
def made(monkeypatch, tmp_path):
    """Reads or makes token ids in one folder; returns them and how many rows were tokenized for that."""
    from aimo.train import arguments, sft

    counts = []
    tokenize = sft.tokenize
    monkeypatch.setattr(
        sft, "tokenize", lambda rows, *more: counts.append(len(rows)) or tokenize(rows, *more)
    )

    def make(rows, tokenizer, *overrides):
        profile = config.load("tiny", ["model.backend=transformers", *overrides])
        args = arguments.stage_arguments(runs.Run(profile, tmp_path, "sft", 0.0))
        counts.clear()
        ids = sft.read_or_tokenize(rows, tokenizer, args, tmp_path)["input_ids"]
        return list(ids), sum(counts)

    return make


def test_rows_are_tokenized_once_and_again_when_rows_or_template_change(made, capsys):
    rows, tokenizer = [row(f"{i} apples") for i in range(40)], tokenizer_of()
    first, count = made(rows, tokenizer)
    assert count == 40 and capsys.readouterr().out.startswith("Tokenizing 40 rows.\nTokenized in ")
    assert made(rows, tokenizer_of()) == (first, 0) and capsys.readouterr().out == ""
    other, count = made([*rows[:-1], row("40 pears")], tokenizer)
    assert count == 40 and other[:-1] == first[:-1] and other[-1] != first[-1]
    system, count = made(rows, tokenizer_of("prompt.system=Think."))
    assert count == 40 and system != first
    assert made(rows, tokenizer) == (first, 0)


def test_dataset_num_proc_shares_the_work_between_processes_with_the_same_result(made, monkeypatch):
    import datasets

    asked = []
    whole = datasets.Dataset.map

    def counted(self, *arguments, num_proc=None, **more):
        asked.append(num_proc)
        return whole(self, *arguments, num_proc=num_proc, **more)

    rows, tokenizer = [row(f"{i} apples") for i in range(40)], tokenizer_of()
    one, _ = made(rows, tokenizer)
    monkeypatch.setattr(datasets.Dataset, "map", counted)
    two, count = made(rows[::-1], tokenizer, "sft.trl={dataset_num_proc: 2}")
    assert two == one[::-1] and count == 40 and asked == [2]
