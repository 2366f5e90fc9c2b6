"""vLLM with what a profile may ask of it, on the tiny base."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TINY

from aimo.data import sources
from aimo.inference.answers import Integer
from aimo.inference.engine import Engine, sampling_parameters
from aimo.inference.errors import AimoError
from aimo.inference.settings import Settings, resolve_settings
from aimo.inference.solver import solve_problem
from aimo.inference.vllm_process import ONE_PROCESS, check_arguments, engine_arguments
from aimo.inference.voting import EXACT
from aimo.train import trainers

QUESTIONS = [p.problem for p in sources.generate(6, "heldout", 5)]
GREEDY = Settings(temperature=0, max_tokens=48)


def greedy(engine):
    return [engine.run(engine.sample(engine.encode(q), 0, GREEDY)).text for q in QUESTIONS]


def copy_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((TINY / name).read_bytes())


@pytest.fixture(scope="module")
def limited(engine, tmp_path_factory):
    """An engine with arguments of the folder and of a profile: little memory, speculation, few streams."""
    folder = tmp_path_factory.mktemp("limited")
    for path in TINY.iterdir():
        (folder / path.name).symlink_to(path)
    speculative = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    own = {"enable_prefix_caching": True, "max_num_seqs": 4}
    (folder / "aimo.json").write_text(json.dumps({"top_p": 0.99, "vllm": own}))
    # Blocks of 128 tokens on a CPU.
    profile = {
        "num_gpu_blocks_override": 4,
        "enable_prefix_caching": False,
        "speculative_config": speculative,
    }
    with Engine(folder, resolve_settings(folder, {"vllm": profile})) as limited:
        yield limited


def test_the_context_shrinks_to_what_memory_holds(limited):
    assert limited.max_length == 384 and limited.streams < 16
    s = solve_problem(limited, QUESTIONS[0], num_samples=12, kind=Integer(0, 99999), policy=EXACT)
    assert s.votes and not s.note
    assert "do not fit" in solve_problem(limited, "1 + " * 400, num_samples=2, kind=Integer(0, 9)).note


def test_arguments_of_the_profile_go_over_the_folders_and_speculation_changes_no_greedy_text(limited, engine):
    assert limited.settings.top_p == 0.99
    config = limited.llm.vllm_config
    assert config.scheduler_config.max_num_seqs == 4, "the folder's argument is lost"
    assert not config.cache_config.enable_prefix_caching, "the profile's does not go over the folder's"
    assert greedy(limited) == greedy(engine)


def adapt(folder, tokenizer, dtype):
    """A stage that has trained an adapter of the tiny base, and the model with it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from aimo import config
    from aimo.run.runs import Run

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=dtype)
    adapters = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(base, adapters)
    stage = Run(config.load("tiny", ["grpo=null", f"model.dtype={dtype}"]), folder, "sft", 0.0)
    rows = [{"prompt": [{"role": "user", "content": question}]} for question in QUESTIONS]
    trainers.remember(model, tokenizer, stage, rows)
    model.save_pretrained(folder / "adapter")
    return stage, model


def test_an_adapter_on_its_base_computes_what_was_trained_and_what_the_merged_model_does(tmp_path, engine):
    from aimo.evaluation.served import EXACT, check_engine

    stage, model = adapt(tmp_path, engine.tokenizer, "float32")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    copy_tokenizer(tmp_path / "merged")
    with Engine(TINY, adapter=tmp_path / "adapter") as adapted:
        texts = greedy(adapted)
        assert check_engine(adapted, stage.folder) < EXACT
    before = greedy(engine)
    with pytest.raises(AimoError, match="in vLLM is not the model that was trained: its weights are not"):
        check_engine(engine, stage.folder)
    engine.load_weights(tmp_path / "merged")
    merged = greedy(engine)
    assert check_engine(engine, stage.folder) < EXACT
    engine.load_weights(TINY)
    assert before == greedy(engine) != texts == merged


def test_an_adapter_that_was_trained_in_bfloat16_is_served_in_it(tmp_path, engine):
    from aimo.evaluation.served import IN_VLLM, check_engine

    stage, _ = adapt(tmp_path, engine.tokenizer, "bfloat16")
    settings = replace(engine.settings, vllm={"dtype": "bfloat16"})
    with Engine(TINY, settings, adapter=tmp_path / "adapter") as adapted:
        assert check_engine(adapted, stage.folder) < IN_VLLM / 2
    with pytest.raises(AimoError, match="its weights are float32, and the stage computed in bfloat16"):
        check_engine(engine, stage.folder)


def test_weights_with_another_embedding_say_what_they_say_alone(tmp_path, engine):
    """With all weights trained, the embedding differs too, which is the tiny base's output layer."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight.add_(0.05 * torch.randn_like(model.lm_head.weight))
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


@pytest.mark.parametrize("vllm, chosen", [({}, ONE_PROCESS), ({"tensor_parallel_size": 2}, None)])
def test_a_model_in_one_part_runs_in_the_engines_own_process_on_a_cpu(monkeypatch, vllm, chosen):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments = engine_arguments(TINY, Settings(vllm=vllm), 0)
    assert arguments["distributed_executor_backend"] == chosen


def test_a_streams_parameters_are_the_settings_and_end_with_the_context():
    settings = Settings(temperature=0.3, top_p=0.8, top_k=7, min_p=0.1, max_tokens=50)
    given = sampling_parameters(settings, seed=5, room=40)
    assert (given.temperature, given.top_p, given.top_k, given.min_p) == (0.3, 0.8, 7, 0.1)
    assert (given.max_tokens, given.seed) == (40, 5)
    assert sampling_parameters(replace(settings, seeded=False), seed=5, room=40).seed is None


def test_a_completion_ends_with_its_stop_text_and_one_likeliest_token_is_greedy(engine):
    settings = replace(GREEDY, temperature=1.0, top_k=1, stop=["<SOLUTION>"])
    for question, whole in zip(QUESTIONS, greedy(engine), strict=True):
        found = engine.run(engine.sample(engine.encode(question), 3, settings))
        assert found.finished and found.text == whole[: whole.index("<SOLUTION>")] + "<SOLUTION>"


@pytest.mark.parametrize("weight", ["logprob", "tail_entropy", "ties", "length"])
def test_votes_weigh_by_what_the_settings_say(engine, monkeypatch, weight):
    monkeypatch.setattr(engine, "settings", replace(engine.settings, weight=weight))
    s = solve_problem(engine, QUESTIONS[0], num_samples=8, kind=Integer(0, 99999), policy=EXACT)
    weights = [sample.weight for sample in s.ended if sample.answer is not None]
    assert weights and all(0 < w <= 1 for w in weights) and len(set(weights)) > 1
    known = {}
    for sample in s.ended:
        same = sample.text, sample.tokens  # a token after the answer counts where it came with it
        assert known.setdefault(same, sample.weight) == pytest.approx(sample.weight, rel=1e-3)
    assert s.answer == s.tally[0].answer


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


def test_an_answer_from_the_statement_counts_half_where_that_is_asked(engine, monkeypatch):
    monkeypatch.setattr(engine, "settings", replace(engine.settings, discount_trivial=True))
    solved = [solve_problem(engine, q, 8, Integer(0, 99999), policy=EXACT) for q in QUESTIONS]
    weights = {sample.answer: sample.weight for solution in solved for sample in solution.ended}
    assert {weight for answer, weight in weights.items() if answer in (0, 1)} <= {0.5}
    assert set(weights.values()) == {0.5, 1.0}
