"""Every recipe: its stated facts, its commands, and a few steps of it scaled down to the tiny base, by its own data path and rewards."""

import json
import math
import re
import shlex
from dataclasses import asdict

import pytest
import torch
import yaml
from conftest import TINY

from aimo import config, rewards
from aimo.config import reading
from aimo.data import prepare
from aimo.data.sources import PRESETS
from aimo.inference import prompts
from aimo.training import launch, models, trainers

# Unsloth first: it patches the trainers that the others use, and should be there before them.
FACTS = {
    "qwen3-4b": {
        "model.base": "unsloth/Qwen3-4B-Base", "model.backend": "unsloth", "model.lora.rank": 32, "model.lora.alpha": 64,
        "prompt.think_start": "<start_working_out>", "prompt.answer_start": "<SOLUTION>", "prompt.prefill": True,
        "data.sft.integer_answers": True, "data.sft.max_tokens": 1024, "data.grpo.source": "open-r1/DAPO-Math-17k-Processed",
        "sft.optimizer": "adamw_8bit", "grpo.optimizer": "adamw_8bit",
    },
    "kaggle-t4": {
        "model.dtype": "float16", "model.load_in_4bit": True, "model.max_length": 1536, "training.time_limit_s": 5 * 3600,
    },
    "kaggle-h100": {"model.dtype": "auto", "model.load_in_4bit": False, "training.time_limit_s": 5 * 3600},
    "qwen2.5-1.5b-openr1": {
        "model.base": "Qwen/Qwen2.5-1.5B-Instruct", "model.max_length": 16384, "data.sft.source": "open-r1/OpenR1-Math-220k",
        "sft.packing": True, "sft.learning_rate": 5e-5, "sft.scheduler": "cosine_with_min_lr", "sft.min_lr_rate": 0.1,
        "sft.use_liger_kernel": True, "grpo.rewards": {"accuracy", "format", "tag_count"},
    },
    "openr1-distill-7b": {
        "data.sft.source": "open-r1/Mixture-of-Thoughts", "model.max_length": 32768, "sft.learning_rate": 4e-5, "sft.epochs": 5,
        "sft.max_grad_norm": 0.2,
    },
    "openr1-qwen-7b": {
        "model.base": "open-r1/Qwen2.5-Math-7B-RoPE-300k", "data.sft.source": "open-r1/OpenR1-Math-220k", "data.sft.verbatim": True,
        "model.max_length": 32768, "sft.packing": True, "sft.epochs": 3,
    },
    "fast-math-r1-14b": {
        "model.base": "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", "sft.epochs": 10, "grpo.rewards": {"format", "cosine", "length"},
    },
}  # fmt: skip
# What a CPU or the tiny base cannot do, and what takes long; everything else stays as the recipe has it.
SMALL = {
    "model": {"base": str(TINY), "max_length": 700, "dtype": "auto", "load_in_4bit": False, "attention": "sdpa"},
    "prompt": {"eos_token": None},
    "sft": {"max_steps": 2, "batch_size": 2, "gradient_accumulation_steps": 1, "optimizer": "adamw_torch", "use_liger_kernel": False},
    "grpo": {
        "max_steps": 2, "prompts_per_step": 2, "num_generations": 4, "gradient_accumulation_steps": 1, "max_prompt_length": 600,
        "max_completion_length": 24, "optimizer": "adamw_torch", "generation": "transformers",
    },
}  # fmt: skip
DOCS = config.ROOT / "docs" / "recipes.md"


@pytest.fixture(autouse=True)
def one_thread():
    """So small a model gains nothing from several, and on a busy machine they wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def scaled(name, folder):
    """A recipe with the tiny base, few steps, and a small file in the layout of each of its data sets."""
    values = yaml.safe_load((config.PROFILES / f"{name}.yaml").read_text())
    for section, changes in SMALL.items():
        values.setdefault(section, {}).update(changes)
    sets = [values["data"][part] for part in ("sft", "grpo", "heldout")]
    for source in sets + values["data"]["decontaminate"]:
        hub = source["source"]
        path = folder / f"{hub.replace('/', '--')}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows_like(hub)))
        source |= {"source": str(path), "preset": hub if hub in PRESETS else None} | (
            {"rows": 12} if "rows" in source else {}
        )
    return config.parse(values, name)


def rows_like(hub):
    """Twenty-four rows in the layout of a data set of the hub, none of them in another."""
    for i in range(24):
        problem, answer = f"In {hub}, what is {i} plus {i + 1}?", str(2 * i + 1)
        trace = f"<think>\n{i} + {i + 1} = {answer}\n</think>\n\nIt is \\boxed{{{answer}}}."
        yield {
            "open-r1/OpenR1-Math-220k": {
                "problem": problem, "answer": answer, "generations": ["<think>\nWRONG", trace], "question_type": "math-word-problem",
                "correctness_math_verify": [False, True], "is_reasoning_complete": [True, True],
            },
            "open-r1/Mixture-of-Thoughts": {
                "messages": [{"role": "user", "content": problem}, {"role": "assistant", "content": trace}]
            },
            "open-r1/DAPO-Math-17k-Processed": {"prompt": problem, "solution": answer},
            "unsloth/OpenMathReasoning-mini": {
                "problem": problem, "expected_answer": answer, "generated_solution": trace, "pass_rate_72b_tir": "0.5"
            },
            "RabotniKuma/Fast-Math-R1-SFT": {"problem": problem, "answer": answer, "generation": trace},
        }.get(hub, {"problem": problem, "answer": answer})  # fmt: skip


def test_every_profile_but_the_demo_is_a_recipe_with_facts_and_a_row_in_the_docs():
    names = {path.stem for path in config.PROFILES.glob("*.yaml")} - {"tiny"}
    assert FACTS.keys() == names == set(re.findall(r"^\| `([^`]+)` \|", DOCS.read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", FACTS)
def test_a_recipe_is_what_it_says(name):
    p = config.load(name)
    values = reading.flatten(asdict(p)) | {"grpo.rewards": set(p.grpo.rewards)}
    assert {key: values[key] for key in FACTS[name]} == FACTS[name]
    evaluated = {source.source for source in p.data.decontaminate}
    assert evaluated == {"HuggingFaceH4/MATH-500", "HuggingFaceH4/aime_2024", "yentinglin/aime_2025"}
    assert p.data.heldout.source in evaluated  # what measures a model is no part of its training


@pytest.mark.parametrize(
    "path", [DOCS, *(config.PROFILES / f"{name}.yaml" for name in FACTS)], ids=lambda path: path.stem
)
def test_every_command_that_is_told_is_accepted(path):
    for command in re.findall(r"aimo (?:run|launch) [^`#;\n]+", path.read_text()):
        words = shlex.split(command)
        given = {word: words[i + 1] for i, word in enumerate(words) if word.startswith("--")}
        overrides = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        p = config.load(given["--profile"], overrides)
        if words[1] == "launch":
            job = launch.Job(
                words[2], p.profile, None, overrides, given.get("--strategy", "ddp"), int(given["--gpus"])
            )
            launch.check(job, p)


@pytest.mark.parametrize("name", FACTS)
def test_a_recipe_scaled_down_trains_both_stages_into_a_model(tmp_path, name):
    p = scaled(name, tmp_path)
    tokenizer = models.load_tokenizer(TINY, p)
    sets = prepare.decontaminate(prepare.clean(prepare.load(p), p, tokenizer), p)
    ready = {part: rows.to_dicts() for part, rows in prepare.format(sets, p).items()}
    assert len(ready["sft"]) >= 12 and not sets.contaminated
    asked = tokenizer.apply_chat_template(
        ready["grpo"][0]["prompt"], add_generation_prompt=True, tokenize=False
    )
    assert asked.endswith(p.prompt.think_start) == p.prompt.prefill
    told = [row["completion"][0]["content"] for row in ready["sft"]]
    assert all(
        prompts.is_well_formed(p.prompt, text) and "WRONG" not in text for text in told
    )  # SFT teaches what GRPO rewards
    start = TINY
    for stage in ("sft", "grpo"):
        folder = tmp_path / stage
        folder.mkdir()
        model, tokenizer = models.load(start, p), models.load_tokenizer(start, p)
        log = getattr(trainers, stage)(
            model, tokenizer, ready[stage], p, folder, lambda *_: None, probe=ready.get("grpo_test")
        )
        steps = [record for record in log if "loss" in record]
        assert [record["step"] for record in steps] == [1, 2]
        models.save(folder / "trained", start, tokenizer, p, folder / "model", trainers.summary(log))
        start = folder / "model"
    assert (start / "model.safetensors").exists()
    for function in rewards.get_reward_funcs(p.grpo.rewards, p.prompt):
        assert math.isfinite(steps[-1][f"rewards/{function.__name__}/mean"])
    assert any("probe/accuracy" in record for record in log) == bool(p.grpo.probe_steps)
