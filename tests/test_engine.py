"""vLLM with what a profile may ask of it, on the tiny base."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TINY

from aimo import config
from aimo.data import sources
from aimo.evaluation import served
from aimo.inference.answers import Integer
from aimo.inference.engine import Engine
from aimo.inference.errors import AimoError
from aimo.inference.settings import Settings, resolve_settings
from aimo.inference.solver import solve_problem
from aimo.inference.vllm_process import check_arguments
from aimo.inference.voting import EXACT
from aimo.run.runs import Run
from aimo.train import trainers

QUESTIONS = [p.problem for p in sources.generate(6, "heldout", 5)]
GREEDY = Settings(temperature=0, max_tokens=48)


def greedy(engine):
    return [engine.run(engine.sample(engine.encode(q), 0, GREEDY)).text for q in QUESTIONS]


def copy_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((TINY / name).read_bytes())


def test_a_profile_s_arguments_go_over_the_folder_s_and_the_context_shrinks_to_what_memory_holds(
    engine, tmp_path
):
    for path in TINY.iterdir():
        (tmp_path / path.name).symlink_to(path)
    own = {"enable_prefix_caching": True, "max_num_seqs": 4}
    (tmp_path / "aimo.json").write_text(json.dumps({"top_p": 0.99, "vllm": own}))
    speculative = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    blocks = {"num_gpu_blocks_override": 4}  # of 128 tokens on a CPU
    profile = blocks | {"enable_prefix_caching": False, "speculative_config": speculative}
    with Engine(tmp_path, resolve_settings(tmp_path, {"vllm": profile})) as limited:
        config = limited.llm.vllm_config
        assert config.scheduler_config.max_num_seqs == 4 and not config.cache_config.enable_prefix_caching
        assert limited.settings.top_p == 0.99 and limited.max_length == 384 and limited.streams < 16
        assert greedy(limited) == greedy(engine), "speculation changes no greedy text"
        s = solve_problem(limited, QUESTIONS[0], num_samples=12, kind=Integer(0, 99999), policy=EXACT)
        assert s.votes and not s.note
        assert "do not fit" in solve_problem(limited, "1 + " * 400, num_samples=2, kind=Integer(0, 9)).note


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_on_its_base_computes_what_was_trained_and_what_the_merged_model_does(
    tmp_path, engine, dtype
):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    # A stage that has trained an adapter of the tiny base.
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=dtype)
    adapters = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(base, adapters)
    stage = Run(config.load("tiny", ["grpo=null", f"model.dtype={dtype}"]), tmp_path, "sft", 0.0)
    rows = [{"prompt": [{"role": "user", "content": question}]} for question in QUESTIONS]
    trainers.remember(model, engine.tokenizer, stage, rows)
    model.save_pretrained(tmp_path / "adapter")

    settings = replace(engine.settings, vllm={"dtype": dtype})
    with Engine(TINY, settings, adapter=tmp_path / "adapter") as adapted:
        texts = greedy(adapted)
        assert served.check_engine(adapted, stage.folder) < (
            served.EXACT if dtype == "float32" else served.IN_VLLM / 2
        )
    told = "its weights are not" if dtype == "float32" else "its weights are float32, and the stage computed"
    with pytest.raises(AimoError, match=told):
        served.check_engine(engine, stage.folder)
    if dtype == "float32":
        before = greedy(engine)
        model.merge_and_unload().save_pretrained(tmp_path / "merged")
        copy_tokenizer(tmp_path / "merged")
        engine.load_weights(tmp_path / "merged")
        merged = greedy(engine)
        assert served.check_engine(engine, stage.folder) < served.EXACT
        engine.load_weights(TINY)
        assert before == greedy(engine) != texts == merged


def test_weights_with_another_embedding_say_what_they_say_alone(tmp_path, engine):
    """The embedding is the tiny base's output layer too."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    noise = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
    model.lm_head.weight.data.add_(0.05 * noise)
    model.save_pretrained(tmp_path)
    copy_tokenizer(tmp_path)
    with Engine(tmp_path) as alone:
        after = greedy(alone)
    before = greedy(engine)
    engine.load_weights(tmp_path)
    assert greedy(engine) == after != before
    engine.load_weights(TINY)


@pytest.mark.parametrize(
    "key, told",
    [
        ("tensor_paralel_size", "did you mean tensor_parallel_size"),
        ("gpu_memory_utilization", "set inference.gpu_memory instead"),
    ],
)
def test_an_engine_argument_that_vllm_lacks_or_a_setting_replaces_is_named(key, told):
    with pytest.raises(AimoError, match=told):
        check_arguments({key: 1})


def test_a_completion_ends_with_its_stop_text_and_one_likeliest_token_is_greedy(engine):
    settings = replace(GREEDY, temperature=1.0, top_k=1, stop=["<SOLUTION>"])
    for question, whole in zip(QUESTIONS, greedy(engine), strict=True):
        found = engine.run(engine.sample(engine.encode(question), 3, settings))
        assert found.finished and found.text == whole[: whole.index("<SOLUTION>")] + "<SOLUTION>"


def test_log_probabilities_and_entropies_are_the_models_own(engine):
    """What vLLM measures, against Transformers on the same tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    prompt = engine.encode(QUESTIONS[0])
    compared = 0
    for i in range(8):
        completion, broad = (
            engine.run(engine.sample(prompt, i, replace(engine.settings, weight=weight, max_tokens=64)))
            for weight in ("logprob", "entropy")
        )
        ids = engine.tokenizer.encode(completion.text, add_special_tokens=False)
        ids.append(engine.tokenizer.eos_token_id)
        if not completion.finished or len(ids) != completion.tokens or broad.text != completion.text:
            continue
        compared += 1
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        chosen = logits[range(len(ids)), ids].sum().item()
        assert sum(completion.logprobs) == pytest.approx(chosen, abs=1e-2)
        entropy = -(logits.exp() * logits).sum().item()
        assert entropy - 0.2 * len(ids) <= sum(broad.entropies) <= entropy + 1e-2
    assert compared >= 2


def test_votes_weigh_by_the_measure_of_the_settings_and_an_answer_of_the_statement_counts_half(
    engine, monkeypatch
):
    def solved(**settings):
        monkeypatch.setattr(engine, "settings", replace(own, **settings))
        asked = [solve_problem(engine, q, 8, Integer(0, 99999), policy=EXACT) for q in QUESTIONS]
        return {(sample.answer, sample.weight) for solution in asked for sample in solution.ended}

    own = engine.settings
    assert len({weight for answer, weight in solved(weight="tail_entropy") if answer is not None}) > 4
    found = solved(discount_trivial=True)
    assert {weight for answer, weight in found if answer in (0, 1)} <= {0.5}
    assert {weight for _, weight in found} == {0.5, 1.0}
