"""Every recipe: its stated facts, and a few steps of it scaled down to the tiny base, by its own data path, template and rewards."""

import json

import pytest
import yaml
from conftest import TINY

from aimo import config, data, models, training

FACTS = {
    "qwen3-4b": {
        "model.base": "unsloth/Qwen3-4B-Base", "model.lora.rank": 32, "model.lora.alpha": 64, "prompt.think_start": "<start_working_out>",
        "prompt.answer_start": "<SOLUTION>", "prompt.prefill": True, "sft.optimizer": "adamw_8bit", "grpo.optimizer": "adamw_8bit",
        "data.grpo.source": "open-r1/DAPO-Math-17k-Processed",
    },
    "qwen2.5-1.5b-openr1": {
        "model.base": "Qwen/Qwen2.5-1.5B-Instruct", "data.sft.source": "open-r1/OpenR1-Math-220k", "sft.packing": True,
        "model.max_length": 16384, "sft.learning_rate": 5e-5, "sft.scheduler": "cosine_with_min_lr", "sft.use_liger_kernel": True,
    },
    "openr1-distill-7b": {
        "data.sft.source": "open-r1/Mixture-of-Thoughts", "model.max_length": 32768, "sft.learning_rate": 4e-5, "sft.epochs": 5,
        "sft.max_grad_norm": 0.2,
    },
    "openr1-qwen-7b": {"model.base": "open-r1/Qwen2.5-Math-7B-RoPE-300k", "sft.packing": True, "model.max_length": 32768},
    "fast-math-r1-14b": {"model.base": "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", "sft.epochs": 10},
    "kaggle-t4": {"model.dtype": "float16", "model.load_in_4bit": True, "training.time_limit_s": 18000},
    "kaggle-h100": {"model.dtype": "auto", "training.time_limit_s": 18000},
}  # fmt: skip
REWARDS = {"qwen2.5-1.5b-openr1": {"accuracy", "format", "tag_count"}, "fast-math-r1-14b": {"accuracy", "cosine", "length"}}
# What a CPU or the tiny base cannot do; everything else stays as the recipe has it.
SMALL = {
    "model": {"base": str(TINY), "max_length": 600, "dtype": "auto", "load_in_4bit": False, "attention": "sdpa"},
    "prompt": {"eos_token": None},
    "sft": {"max_steps": 2, "batch_size": 2, "gradient_accumulation_steps": 1, "optimizer": "adamw_torch", "use_liger_kernel": False},
    "grpo": {
        "max_steps": 2, "prompts_per_step": 2, "num_generations": 4, "gradient_accumulation_steps": 1, "max_prompt_length": 500,
        "max_completion_length": 24, "optimizer": "adamw_torch", "generation": "transformers", "pass_rate": None, "probe_steps": None,
    },
    "training": {"disk_gb": None},
}  # fmt: skip


def scaled(name, folder):
    """A recipe with the tiny base, few steps, and small files in the layout of its data sets."""
    values = yaml.safe_load((config.PROFILES / f"{name}.yaml").read_text())
    for section, changes in SMALL.items():
        values.setdefault(section, {}).update(changes)
    for reward in values["grpo"]["rewards"].values():
        if isinstance(reward, dict) and "max_len" in reward:
            reward["max_len"] = 24
    for part in ("sft", "grpo", "heldout"):
        source = values["data"][part]
        path = folder / f"{part}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows_like(source["source"], part)))
        source |= {"source": str(path), "preset": source["source"] if "MATH-500" not in source["source"] else None, "rows": 12}
    values["data"]["grpo"]["test_split"] = 0
    values["data"]["benchmarks"] = [{"source": str(folder / "heldout.jsonl")}]
    return config.parse(values, name)


def rows_like(source, part):
    """Twelve rows in a data set's layout."""
    for i in range(12):
        problem, answer = f"In the {part}, what is {i} plus {i + 1}?", str(2 * i + 1)
        trace = f"<think>\n{i} + {i + 1} = {answer}\n</think>\nIt is \\boxed{{{answer}}}."
        yield {
            "open-r1/OpenR1-Math-220k": {
                "problem": problem, "answer": answer, "generations": ["<think>\nno", trace], "question_type": "math-word-problem",
                "correctness_math_verify": [False, True], "is_reasoning_complete": [False, True],
            },
            "open-r1/Mixture-of-Thoughts": {
                "messages": [{"role": "user", "content": problem}, {"role": "assistant", "content": trace}]
            },
            "open-r1/DAPO-Math-17k-Processed": {"prompt": problem, "solution": answer},
            "unsloth/OpenMathReasoning-mini": {
                "problem": problem, "expected_answer": answer, "generated_solution": trace, "pass_rate_72b_tir": "0.5"
            },
        }.get(source, {"problem": problem, "answer": answer})  # fmt: skip


def test_every_profile_but_the_demo_is_a_recipe_with_facts():
    assert FACTS.keys() == {p.stem for p in config.PROFILES.glob("*.yaml")} - {"tiny"}


@pytest.mark.parametrize("name", FACTS)
def test_a_recipe_is_what_it_says(name):
    p = config.load(name)
    values = config.flatten(json.loads(json.dumps(config.asdict(p), default=vars)))
    assert {key: values[key] for key in FACTS[name]} == FACTS[name]
    assert set(p.grpo.rewards) == REWARDS.get(name, set(p.grpo.rewards))
    assert p.data.benchmarks and p.data.heldout.source != "builtin"


@pytest.mark.parametrize("name", FACTS)
def test_a_recipe_scaled_down_trains_both_stages_into_a_model(tmp_path, name):
    p = scaled(name, tmp_path)
    tokenizer = models.load_tokenizer(TINY, p)
    sets = data.decontaminate(data.clean(data.load(p), p, tokenizer), p)
    ready = {part: rows.to_dicts() for part, rows in data.format(sets, p).items()}
    assert len(ready["sft"]) > 5 and not sets.contaminated
    start = TINY
    for stage in ("sft", "grpo"):
        folder = tmp_path / stage
        folder.mkdir()
        model, tokenizer = models.load(start, p), models.load_tokenizer(start, p)
        log = getattr(training, stage)(model, tokenizer, ready[stage], p, folder, lambda *_: None)
        assert [record["step"] for record in log if "loss" in record] == [1, 2]
        models.save(folder / "trained", start, tokenizer, p, folder / "model", training.summary(log))
        start = folder / "model"
    assert (start / "model.safetensors").exists() and {f"rewards/{n}" for n in ("accuracy_reward/mean",)} <= log[0].keys()
