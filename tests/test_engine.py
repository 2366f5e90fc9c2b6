"""vLLM with what a profile may ask of it, on the tiny base."""

import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import TINY
from transformers import AutoModelForCausalLM

from aimo.data import builtin
from aimo.errors import AimoError
from aimo.inference.engine import Engine, check_options
from aimo.inference.settings import Settings
from aimo.inference.solver import solve
from aimo.inference.voting import EXACT

QUESTIONS = [p.problem for p in builtin.generate(6, "heldout", 5)]
GREEDY = Settings(temperature=0, max_tokens=48)


def greedy(engine):
    return [engine.run(engine.sample(engine.encode(q), 0, GREEDY)).text for q in QUESTIONS]


def test_the_context_shrinks_to_what_memory_holds_and_the_plan_is_printed(capsys):
    with Engine(TINY, vllm={"num_gpu_blocks_override": 4}) as small:  # blocks of 128 tokens on a CPU
        assert "context 384 tokens" in capsys.readouterr().out
        assert small.max_length == 384 and small.streams < 16
        s = solve(small, QUESTIONS[0], samples=12, low=0, high=99999, policy=EXACT)
        assert s.votes and not s.note
        assert "do not fit" in solve(small, "1 + " * 400, samples=2, low=0, high=9).note


def test_an_adapter_on_its_base_says_what_the_merged_model_says(tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32),
        LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "merged" / name).write_bytes((TINY / name).read_bytes())
    with Engine(TINY, adapter=tmp_path / "adapter") as engine:
        texts = greedy(engine)
    with Engine(TINY) as engine:
        assert greedy(engine) != texts
        engine.load_weights(tmp_path / "merged")
        assert greedy(engine) == texts


def test_other_weights_in_place_of_the_present_ones_say_what_they_say_alone(tmp_path):
    """With all weights trained, the embedding differs too, which is the tiny base's output layer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    for name in ("before", "after"):
        model.save_pretrained(tmp_path / name)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (tmp_path / name / file).write_bytes((TINY / file).read_bytes())
        with torch.no_grad():
            model.lm_head.weight.add_(0.05 * torch.randn_like(model.lm_head.weight))
    with Engine(tmp_path / "after") as engine:
        after = greedy(engine)
        engine.load_weights(tmp_path / "before")
        before = greedy(engine)
        engine.load_weights(tmp_path / "after")
        assert greedy(engine) == after != before
    with Engine(tmp_path / "before") as engine:
        assert greedy(engine) == before


def test_a_folder_without_an_adapter_is_named(tmp_path):
    with pytest.raises(AimoError, match=r"no adapter_config\.json there"):
        Engine(TINY, adapter=tmp_path)


@pytest.mark.parametrize(
    "key, told", [("tensor_paralel_size", "did you mean tensor_parallel_size"), ("seed", "a key of its own")]
)
def test_an_engine_argument_that_is_none_is_named(key, told):
    with pytest.raises(AimoError, match=told):
        check_options({key: 1})


def test_a_folder_that_carries_engine_arguments_is_loaded_with_them_and_speculation_changes_no_greedy_text(
    tmp_path, engine
):
    for path in TINY.iterdir():
        (tmp_path / path.name).symlink_to(path)
    speculative = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    arguments = {"enable_prefix_caching": False, "max_num_seqs": 4, "speculative_config": speculative}
    (tmp_path / "aimo.json").write_text(json.dumps({"min_p": 0.1, "vllm": arguments}))
    with Engine(tmp_path) as other:
        assert other.settings.min_p == 0.1
        config = other.llm.vllm_config
        assert not config.cache_config.enable_prefix_caching and config.scheduler_config.max_num_seqs == 4
        assert greedy(other) == greedy(engine)


@pytest.mark.parametrize("weight", ["logprob", "entropy", "length"])
def test_votes_weigh_by_what_the_settings_say(engine, monkeypatch, weight):
    monkeypatch.setattr(engine, "settings", replace(engine.settings, weight=weight))
    s = solve(engine, QUESTIONS[0], samples=8, low=0, high=99999, policy=EXACT)
    weights = [sample.weight for sample in s.ended if sample.answer is not None]
    assert weights and all(0 < w <= 1 for w in weights) and len(set(weights)) > 1
    by_text = {}
    for sample in s.ended:
        assert by_text.setdefault(sample.text, sample.weight) == pytest.approx(sample.weight, rel=1e-3)
    assert s.answer == s.tally[0].answer


def test_log_probabilities_and_entropies_are_the_models_own(engine):
    """What vLLM measures, against Transformers on the same tokens."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    prompt = engine.encode(QUESTIONS[0])
    compared = 0
    for i in range(8):
        completion = engine.run(
            engine.sample(prompt, i, replace(engine.settings, weight="logprob", max_tokens=64))
        )
        broad = engine.run(
            engine.sample(prompt, i, replace(engine.settings, weight="entropy", max_tokens=64))
        )
        ids = [
            *engine.tokenizer.encode(completion.text, add_special_tokens=False),
            engine.tokenizer.eos_token_id,
        ]
        if not completion.finished or len(ids) != completion.tokens or broad.text != completion.text:
            continue
        compared += 1
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        chosen = logits[range(len(ids)), ids].sum().item()
        assert completion.logprob == pytest.approx(chosen, abs=1e-2)
        entropy = -(logits.exp() * logits).sum().item()
        assert entropy - 0.2 * len(ids) <= broad.entropy <= entropy + 1e-2
    assert compared >= 2


def test_an_answer_from_the_statement_counts_half_where_that_is_asked(engine, monkeypatch):
    monkeypatch.setattr(engine, "settings", replace(engine.settings, discount_trivial=True))
    answers = {
        sample.answer: sample.weight
        for q in QUESTIONS
        for sample in solve(engine, q, 8, 0, 99999, policy=EXACT).ended
    }
    assert {weight for answer, weight in answers.items() if answer in (0, 1)} <= {0.5}
    assert set(answers.values()) == {0.5, 1.0} and not math.isnan(sum(answers.values()))
