"""Every recipe: what the docs say of it, its commands, and a few steps on the tiny base.

Those steps take the recipe's own data path and rewards.
"""

import json
import math
import re
import shlex

import pytest
import yaml
from conftest import TINY

from aimo import config
from aimo.config.reading import Loader
from aimo.run import runs

RECIPES = sorted(
    path.stem
    for path in config.PROFILES.glob("*.yaml")
    if not path.stem.startswith("tiny") and config.load(path.stem).trained
)
DOCS = config.ROOT / "docs" / "recipes.md"
# What a CPU or the tiny base cannot do, and what takes long; everything else stays as the recipe has it.
SMALL = {
    "model": {
        "base": str(TINY),
        "max_length": 700,
        "dtype": "auto",
        "load_in_4bit": False,
        "attention": "sdpa",
    },
    "prompt": {"eos_token": None},
    "sft": {
        "max_steps": 2,
        "batch_size": 2,
        "gradient_accumulation_steps": 1,
        "optimizer": "adamw_torch",
        "use_liger_kernel": False,
        "packing": False,  # Unsloth, once imported, packs nothing on a CPU
        "packing_strategy": "bfd",
    },
    "grpo": {
        "max_steps": 2,
        "prompts_per_step": 2,
        "num_generations": 4,
        "gradient_accumulation_steps": 1,
        "max_prompt_length": 600,
        "max_completion_length": 24,
        "optimizer": "adamw_torch",
        "generation": "transformers",
    },
}


@pytest.fixture(scope="module")
def one_thread():
    """So small a model gains nothing from several threads, and on a busy machine they wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def scaled(name, folder):
    """A recipe with the tiny base, few steps, and a small file in the layout of each of its data sets."""
    from aimo.data.sources import PRESETS

    values = yaml.safe_load((config.PROFILES / f"{name}.yaml").read_text())
    for section, changes in SMALL.items():
        if section in ("model", "prompt") or section in values:
            values.setdefault(section, {}).update(changes)
    sets = [values["data"][part] for part in ("sft", "grpo", "heldout") if part in values["data"]]
    for source in sets + values["data"]["decontaminate"]:
        hub = source["source"]
        path = folder / f"{hub.replace('/', '--')}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows_like(hub)))
        for key in ("split", "subset"):  # one file has none
            source.pop(key, None)
        source |= {"source": str(path), "preset": hub if hub in PRESETS else None} | (
            {"rows": 12} if "rows" in source else {}
        )
    return config.parse(values, name)


def rows_like(hub):
    """Twenty-four rows in the layout of a data set of the hub, none of them in another."""
    for i in range(24):
        problem, answer = f"In {hub}, what is {i} plus {i + 1}?", str(2 * i + 1)
        trace = f"<think>\n{i} + {i + 1} = {answer}\n</think>\n\nIt is \\boxed{{{answer}}}."
        chat = [{"role": "user", "content": problem}, {"role": "assistant", "content": trace}]
        layouts = {
            "open-r1/OpenR1-Math-220k": {
                "problem": problem,
                "answer": answer,
                "generations": ["<think>\nWRONG", trace],
                "question_type": "math-word-problem",
                "correctness_math_verify": [False, True],
                "is_reasoning_complete": [True, True],
            },
            "open-r1/Mixture-of-Thoughts": {"messages": chat},
            "open-r1/DAPO-Math-17k-Processed": {"prompt": problem, "solution": answer},
            "unsloth/OpenMathReasoning-mini": {
                "problem": problem,
                "expected_answer": answer,
                "generated_solution": trace,
                "pass_rate_72b_tir": "0.5",
            },
            "DigitalLearningGmbH/MATH-lighteval": {"problem": problem, "solution": trace},
            "open-r1/verifiable-coding-problems-python": {
                "problem_statement": problem,
                "verification_info": json.dumps(
                    {"language": "python", "test_cases": [{"input": "", "output": answer}]}
                ),
            },
            "RabotniKuma/Fast-Math-R1-SFT": {"problem": problem, "answer": answer, "generation": trace},
        }
        yield layouts.get(hub, {"problem": problem, "answer": answer})


# ---- What the docs say


def step(p):
    """SFT's tokens at most and GRPO's completions in one step of one device."""
    rows = p.sft.batch_size * p.sft.gradient_accumulation_steps
    return rows * p.model.max_length, p.grpo.prompts_per_step * p.grpo.num_generations


def commands_of(path):
    return [shlex.split(c) for c in re.findall(r"aimo (?:run|launch) [^`#;\n]+", path.read_text())]


def test_every_profile_but_the_demos_is_a_recipe_with_a_row_in_the_docs():
    assert set(RECIPES) == set(re.findall(r"^\| `([^`]+)` \| [^`]", DOCS.read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", RECIPES)
def test_no_recipe_trains_on_what_it_is_measured_by(name):
    p = config.load(name)
    evaluated = {source.source for source in p.data.decontaminate}
    assert evaluated == {"HuggingFaceH4/MATH-500", "HuggingFaceH4/aime_2024", "yentinglin/aime_2025"}
    assert p.data.heldout.source in evaluated


def test_on_24_gb_a_step_has_as_many_tokens_and_completions_as_on_80():
    (small,) = [command for command in commands_of(DOCS) if "model.max_length=4096" in command]
    overrides = [small[i + 1] for i, word in enumerate(small) if word == "--set"]
    name = small[small.index("--profile") + 1]
    assert step(config.load(name, overrides)) == step(config.load(name))


@pytest.mark.parametrize(
    "path", [DOCS, *(config.PROFILES / f"{name}.yaml" for name in RECIPES)], ids=lambda path: path.stem
)
def test_every_documented_command_is_accepted(path):
    from aimo.train import launch

    for words in commands_of(path):
        given = {word: words[i + 1] for i, word in enumerate(words[:-1]) if word.startswith("--")}
        overrides = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        p = config.load(given["--profile"], overrides)
        if words[1] == "launch":
            strategy = given.get("--strategy", "ddp")
            size = int(given["--gpus"]), int(given.get("--nodes", 1))
            job = launch.Job(words[2], p.profile, None, overrides, strategy, *size)
            launch.check_job(job, p)


# ---- What the sources say

OWN = "its own words"
OPEN_R1 = {"seed": 42, "model.attention": "flash_attention_2", "model.lora": None}
SOURCES = {
    # unslothai/notebooks bdda2ef, nb/Qwen3_(4B)-GRPO.ipynb
    "qwen3-4b": {
        "seed": 3407, "model.base": "unsloth/Qwen3-4B-Base", "model.max_length": 2048,
        "model.load_in_4bit": False, "model.lora.rank": 32, "model.lora.alpha": 64, "prompt.system": OWN,
        "prompt.think_start": "<start_working_out>", "prompt.answer_start": "<SOLUTION>",
        "data.sft.source": "unsloth/OpenMathReasoning-mini", "data.sft.max_tokens": 1024,
        "data.grpo.source": "open-r1/DAPO-Math-17k-Processed", "data.grpo.subset": "en",
        "data.grpo.token_quantile": 0.9, "sft.batch_size": 1, "sft.gradient_accumulation_steps": 1,
        "sft.warmup_ratio": "5 steps", "sft.epochs": 2, "sft.learning_rate": 2e-4,
        "sft.optimizer": "adamw_8bit", "sft.weight_decay": 0.001, "sft.scheduler": "linear",
        "grpo.learning_rate": 5e-6, "grpo.weight_decay": 0.001, "grpo.warmup_ratio": 0.1,
        "grpo.scheduler": "linear", "grpo.optimizer": "adamw_8bit", "grpo.prompts_per_step": 1,
        "grpo.num_generations": 4, "grpo.temperature": 1.0, "grpo.min_p": 0.1, "grpo.top_p": 1.0,
        "grpo.max_prompt_length": "measured", "grpo.max_completion_length": "the rest of 2,048",
        "grpo.max_steps": 100, "grpo.save_steps": 100, "grpo.vllm_gpu_memory": 0.9,
        "grpo.rewards": {
            "format_exact": 1.0, "format_approximate": 1.0, "check_answer": 1.0, "check_numbers": 1.0,
        },
    },
    # huggingface/open-r1: sft/config_demo.yaml before 5112bfc (April 2025), grpo/config_demo.yaml at 1416fa0
    "qwen2.5-1.5b-openr1": OPEN_R1 | {
        "model.base": "Qwen/Qwen2.5-1.5B-Instruct", "model.max_length": 16384, "prompt.system": OWN,
        "data.sft.source": "open-r1/OpenR1-Math-220k", "data.grpo.source": "open-r1/OpenR1-Math-220k",
        "data.grpo.rows": None, "sft.learning_rate": 5e-5, "sft.scheduler": "cosine_with_min_lr",
        "sft.min_lr_rate": 0.1, "sft.epochs": 1, "sft.warmup_ratio": 0.05, "sft.batch_size": 16,
        "sft.gradient_accumulation_steps": 1, "sft.packing": True, "sft.use_liger_kernel": True,
        "sft.save_steps": 100, "grpo.learning_rate": 2e-5, "grpo.scheduler": "cosine",
        "grpo.warmup_ratio": 0.1, "grpo.epochs": 1, "grpo.prompts_per_step": 32,
        "grpo.num_generations": 16, "grpo.max_prompt_length": 512, "grpo.max_completion_length": 1024,
        "grpo.rewards": {"accuracy": 1.0, "format": 1.0, "tag_count": 1.0},
    },
    # recipes/OpenR1-Distill-7B/sft/config_distill.yaml at 1416fa0
    "openr1-distill-7b": OPEN_R1 | {
        "model.base": "open-r1/Qwen2.5-Math-7B-RoPE-300k", "model.max_length": 32768, "prompt.system": OWN,
        "prompt.eos_token": "<|im_end|>", "data.sft.source": "open-r1/Mixture-of-Thoughts",
        "data.sft.subset": "all", "sft.learning_rate": 4e-5, "sft.scheduler": "cosine_with_min_lr",
        "sft.min_lr_rate": 0.1, "sft.epochs": 5, "sft.warmup_ratio": 0.03, "sft.batch_size": 2,
        "sft.gradient_accumulation_steps": 8, "sft.max_grad_norm": 0.2, "sft.packing": False,
        "sft.use_liger_kernel": True, "sft.save_steps": "epoch",
    },
    # recipes/OpenR1-Qwen-7B/sft/config.yaml before 5112bfc
    "openr1-qwen-7b": OPEN_R1 | {
        "model.base": "Qwen/Qwen2.5-Math-7B-Instruct", "model.attention": "sdpa", "model.max_length": 32768,
        "data.sft.source": "open-r1/OpenR1-Math-220k", "sft.learning_rate": 5e-5, "sft.epochs": 3,
        "sft.scheduler": "linear", "sft.warmup_ratio": 0.1, "sft.weight_decay": 1e-4,
        "sft.optimizer": "adamw_torch", "sft.batch_size": 1, "sft.gradient_accumulation_steps": 2,
        "sft.packing": True, "sft.use_liger_kernel": True, "sft.save_steps": 500,
    },
    # analokmaus/kaggle-aimo2-fast-math-r1 09bf8ff, experiments/train_first_stage.py, train_second_stage.py
    "fast-math-r1-14b": {
        "seed": 2025, "model.base": "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", "model.max_length": 24000,
        "model.lora": None, "model.attention": "flash_attention_2",
        "data.sft.source": "RabotniKuma/Fast-Math-R1-SFT",
        "data.grpo.source": "RabotniKuma/Fast-Math-R1-GRPO", "data.grpo.rows": None,
        "sft.learning_rate": 1e-5, "sft.epochs": 20, "sft.scheduler": "cosine",
        "sft.batch_size": 1, "sft.gradient_accumulation_steps": 8, "sft.optimizer": "paged_adamw_8bit",
        "sft.packing": True, "sft.save_steps": 50, "grpo.learning_rate": 4e-6, "grpo.max_steps": 40,
        "grpo.scheduler": "cosine", "grpo.prompts_per_step": 16, "grpo.num_generations": 8,
        "grpo.max_prompt_length": 512, "grpo.max_completion_length": 16384, "grpo.temperature": 1.0,
        "grpo.top_p": 0.9, "grpo.min_p": 0.05, "grpo.beta": 0.04, "grpo.optimizer": "paged_adamw_8bit",
        "grpo.save_steps": 5, "grpo.vllm_gpu_memory": 0.3,
        "grpo.rewards": {"format": 1.0, "cosine": 1.0, "length": 1.0},
        "grpo.rewards.cosine.max_len": "30,000 characters",
    },
    # "Open-R1 on AutoDL, in detail", 23 March to 5 April 2025
    "autodl-1.5b": {
        "model.base": "Qwen/Qwen2.5-1.5B-Instruct", "model.lora": None, "model.max_length": 2048,
        "model.dtype": "float16", "model.gradient_checkpointing": True, "prompt.system": "none",
        "data.sft.source": "open-r1/OpenR1-Math-220k", "sft.learning_rate": 1e-5, "sft.epochs": 1,
        "sft.packing": True, "sft.batch_size": 8, "sft.gradient_accumulation_steps": 2,
        "sft.eval_steps": None,
    },
    # recipes/DeepSeek-R1-Distill-Qwen-1.5B/grpo/config_demo.yaml at 1416fa0
    "r1-distill-1.5b": OPEN_R1 | {
        "model.base": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "prompt.system": OWN,
        "data.grpo.source": "open-r1/OpenR1-Math-220k", "data.grpo.drop": [], "grpo.learning_rate": 1e-6,
        "grpo.scheduler": "cosine_with_min_lr", "grpo.min_lr_rate": 0.1, "grpo.warmup_ratio": 0.1,
        "grpo.epochs": 1, "grpo.prompts_per_step": 32, "grpo.num_generations": 16,
        "grpo.max_prompt_length": 512, "grpo.max_completion_length": 2048, "grpo.temperature": 0.7,
        "grpo.use_liger_kernel": True, "grpo.rewards": {"accuracy": 1.0, "format": 1.0, "tag_count": 1.0},
    },
    # recipes/Qwen2.5-Math-7B/grpo/config_simple_rl.yaml at ca8664d (April 2025), seven GPUs and a server
    "simple-rl-7b": OPEN_R1 | {
        "model.base": "Qwen/Qwen2.5-Math-7B", "prompt.system": OWN, "prompt.think_start": "<think>\n",
        "prompt.answer_start": "the text after the thought",
        "data.grpo.source": "DigitalLearningGmbH/MATH-lighteval", "data.grpo.subset": "default",
        "grpo.learning_rate": 3e-6, "grpo.scheduler": "cosine", "grpo.warmup_ratio": 0.1,
        "grpo.epochs": 1, "grpo.prompts_per_step": 128, "grpo.num_generations": 7,
        "grpo.max_prompt_length": 512, "grpo.max_completion_length": 1024,
        "grpo.rewards": {"accuracy": 1.0, "format": 1.0},
    },
    # recipes/Qwen2.5-1.5B-Instruct/grpo/config_demo_code.yaml at 1416fa0, seven GPUs and a server
    "code-grpo-1.5b": OPEN_R1 | {
        "model.base": "Qwen/Qwen2.5-1.5B-Instruct", "prompt.system": OWN,
        "data.grpo.source": "open-r1/verifiable-coding-problems-python",
        "data.grpo.columns.problem": "problem_statement", "grpo.beta": 0.01, "grpo.learning_rate": 5e-6,
        "grpo.scheduler": "cosine_with_min_lr", "grpo.min_lr_rate": 0.1, "grpo.warmup_ratio": 0.03,
        "grpo.max_steps": 500, "grpo.prompts_per_step": 32, "grpo.num_generations": 14,
        "grpo.max_prompt_length": 1024, "grpo.max_completion_length": 2048, "grpo.temperature": 1.0,
        "grpo.save_steps": 50, "grpo.rewards": {"code": 1.0, "format": 0.1},
        "grpo.rewards.code.provider_type": "e2b",
    },
}  # fmt: skip
"""Facts of each recipe's source, by the key that they have here; a text where it has no such value."""


def ours(profile, key):
    """A profile's value of a dotted key; rewards as their weights."""
    found = profile
    for name in key.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    return {name: reward.weight for name, reward in found.items()} if key == "grpo.rewards" else found


def declared():
    """The differences that the docs declare: source and here, by profile and key."""
    rows = re.findall(
        r"^\| `([^`]+)` \| `([^`]+)` \| (.+) \| (.+) \| (.+) \|$", DOCS.read_text(), re.MULTILINE
    )
    return {(name, key): (source, here) for name, key, source, here, _ in rows}


def test_every_recipe_has_the_facts_of_its_source_but_the_kaggle_profiles_which_have_none():
    assert set(SOURCES) == {name for name in RECIPES if not name.startswith("kaggle")}


@pytest.mark.parametrize("name", SOURCES)
def test_each_difference_from_the_source_stands_in_the_docs_and_nothing_else_does(name):
    told = {key: values for (profile, key), values in declared().items() if profile == name}
    profile = config.load(name)
    differing = {key for key, source in SOURCES[name].items() if ours(profile, key) != source}
    assert told.keys() == differing
    for key, (source, here) in told.items():
        value, text = ours(profile, key), SOURCES[name][key]
        assert yaml.load(source, Loader) == text, f"{key}: the source has {text}"
        begun = here.partition("…")[0].strip()
        same = value.startswith(begun) if isinstance(value, str) and "…" in here else None
        assert same or yaml.load(here, Loader) == value, f"{key}: the profile has {value}"


# ---- A few steps on the tiny base


@pytest.mark.train
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_scaled_down_trains_its_stages_into_a_model(tmp_path, name, one_thread):
    from aimo.train import models

    models.import_unsloth()

    from aimo import rewards
    from aimo.data import prepare
    from aimo.inference.judge import is_well_formed
    from aimo.train import trainers

    p = scaled(name, tmp_path)
    tokenizer = models.load_tokenizer(TINY, p)
    sets = prepare.decontaminate_sets(prepare.clean_sets(prepare.load_sets(p), p, tokenizer), p)
    ready = {part: rows.to_dicts() for part, rows in prepare.format_sets(sets, p).items()}
    enough = {"sft": 12, "grpo": 6}  # of a set that both stages share, SFT has the larger part
    assert all(len(ready[stage]) >= enough[stage] for stage in p.trained) and not sets.contaminated
    asked = tokenizer.apply_chat_template(
        ready[p.trained_before("inference")][0]["prompt"], add_generation_prompt=True, tokenize=False
    )
    assert asked.endswith(p.prompt.think_start) == p.prompt.prefill
    told = [row["completion"][0]["content"] for row in ready.get("sft", ())]
    # SFT teaches what GRPO rewards.
    assert all(is_well_formed(p.prompt, text) and "WRONG" not in text for text in told)
    start = TINY
    for stage in p.trained:
        run = runs.Run(p, tmp_path, stage, 0.0)
        model, tokenizer = models.load_model(start, p), models.load_tokenizer(start, p)
        log = models.training_of(stage)(model, tokenizer, ready[stage], run, probe=ready.get("grpo_test"))
        steps = [record for record in log if "loss" in record]
        assert [record["step"] for record in steps] == [1, 2]
        models.save_model(run, tokenizer, trainers.summary(log))
        start = run.folder / "model"
    assert (start / "model.safetensors").exists()
    for function in rewards.get_reward_funcs(p.grpo.rewards, p.prompt) if p.grpo else ():
        assert math.isfinite(steps[-1][f"rewards/{function.__name__}/mean"])
    assert any("probe/accuracy" in record for record in log) == bool(p.grpo and p.grpo.probe_steps)
