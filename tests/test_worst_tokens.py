"""Choose by the worst token: solutions with a token that the model finds unlikely are shown, and dropped."""

import pytest
from conftest import TINY

from aimo import config
from aimo.inference.errors import AimoError
from aimo.run import runs
from aimo.train import models, sft, trainers

BEGIN = "<start_working_out>"  # the prompt ends with it
END = "<end_working_out><SOLUTION>4</SOLUTION>"
ROWS = [
    {
        "prompt": [{"role": "user", "content": "What is 2 + 2?"}],
        "completion": [{"role": "assistant", "content": BEGIN + thought + END}],
    }
    for thought in ("", "Elephants!", "2 + 2 = 4")
]


def run_with(folder, *settings):
    return runs.Run(config.load("tiny", ["model.backend=transformers", *settings]), folder, "sft", 0.0)


@pytest.fixture(scope="module")
def base():
    profile = config.load("tiny", ["model.backend=transformers"])
    return models.load_model(TINY, profile), models.load_tokenizer(TINY, profile)


def test_the_least_likely_token_is_the_one_that_the_model_gives_the_least_log_probability(base, tmp_path):
    import torch

    model, tokenizer = base
    found = sft.worst_tokens(model, tokenizer, ROWS, run_with(tmp_path))
    for row, token in zip(ROWS, found, strict=True):
        asked = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        reply = row["completion"][0]["content"].removeprefix(BEGIN) + tokenizer.eos_token
        ids = tokenizer(reply, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            values = model(torch.tensor([asked + ids])).logits[0].log_softmax(-1)
        each = [values[len(asked) + i - 1, one].item() for i, one in enumerate(ids)]
        assert token["log_prob"] == pytest.approx(min(each), abs=1e-4)
        assert token["token"] == tokenizer.decode([ids[each.index(min(each))]])
    assert min(found, key=lambda token: token["log_prob"]) == found[1], "elephants are likely"


def test_a_bound_drops_solutions_before_training_and_the_next_start_reads_no_model(
    base, tmp_path, monkeypatch, capsys
):
    model, tokenizer = base
    worst = [token["log_prob"] for token in sft.worst_tokens(model, tokenizer, ROWS, run_with(tmp_path))]
    monkeypatch.setattr(trainers, "log_probs", lambda *_: pytest.fail("the model reads the rows again"))

    def trains_on(rows, *_):
        assert rows == [ROWS[0], ROWS[2]]
        raise InterruptedError

    monkeypatch.setattr(sft, "read_or_tokenize", trains_on)
    with pytest.raises(InterruptedError):
        sft.train_sft(model, tokenizer, ROWS, run_with(tmp_path, f"data.sft.min_logprob={worst[1] + 0.01}"))
    assert "2 of 3 solutions have no token below" in capsys.readouterr().out
    with pytest.raises(AimoError, match=r"data.sft.min_logprob: 0 is above the least likely token of every"):
        sft.train_sft(model, tokenizer, ROWS, run_with(tmp_path, "data.sft.min_logprob=0"))


def test_other_rows_are_read_and_packing_without_the_model_is_refused(base, tmp_path):
    run = run_with(tmp_path, "data.sft.min_logprob=-5", "sft.packing=true")
    found = [sft.worst_tokens(*base, rows, run) for rows in (ROWS, ROWS[::-1])]
    assert found[1] == found[0][::-1] != found[0]
    with pytest.raises(AimoError, match=r"data.sft.min_logprob: the model chooses the rows"):
        sft.pack_rows(run)
