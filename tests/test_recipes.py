"""Every recipe: what the docs say of it, its commands, and a few steps on the tiny base.

Those steps take the recipe's own data path and rewards.
"""

import json
import math
import re
from pathlib import Path

import pytest
import yaml
from conftest import TINY

from aimo import config, rewards
from aimo.data import prepare
from aimo.inference.storage import Loader, write_lines
from aimo.run import runs
from aimo.train import models, trainers

RECIPES = sorted(
    path.stem
    for path in config.PROFILES.glob("*.yaml")
    if (p := config.load(path.stem)).trained and not p.model.base.startswith("data/")  # not a demo
)
DOCS = config.ROOT / "docs" / "recipes.md"
# What a CPU or the tiny base cannot do, and what takes long; everything else stays as the recipe has it.
SMALL = yaml.safe_load(f"""
model: {{base: {TINY}, max_length: 700, dtype: auto, load_in_4bit: false, attention: sdpa}}
prompt: {{eos_token: null}}
sft:  # Unsloth, once imported, packs nothing on a CPU
  {{max_steps: 1, batch_size: 2, gradient_accumulation_steps: 1, optimizer: adamw_torch,
   use_liger_kernel: false, packing: false, packing_strategy: bfd}}
grpo:
  {{max_steps: 1, prompts_per_step: 2, num_generations: 4, gradient_accumulation_steps: 1,
   max_prompt_length: 600, max_completion_length: 24, optimizer: adamw_torch, generation: transformers}}
opd:
  {{teacher: {TINY}, max_steps: 1, batch_size: 2, gradient_accumulation_steps: 1, max_prompt_length: 600,
   max_completion_length: 24, generation: transformers}}
""")


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
        write_lines(path, list(rows_like(hub)))
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
        cases = [{"input": "", "output": answer}]
        layouts = {
            "open-r1/OpenR1-Math-220k": {
                "problem": problem, "answer": answer, "generations": ["<think>\nWRONG", trace],
                "question_type": "math-word-problem", "correctness_math_verify": [False, True],
                "is_reasoning_complete": [True, True],
            },
            "open-r1/Mixture-of-Thoughts": {"messages": chat},
            "open-r1/DAPO-Math-17k-Processed": {"prompt": problem, "solution": answer},
            "unsloth/OpenMathReasoning-mini": {
                "problem": problem, "expected_answer": answer, "generated_solution": trace,
                "pass_rate_72b_tir": "0.5",
            },
            "DigitalLearningGmbH/MATH-lighteval": {"problem": problem, "solution": trace},
            "open-r1/verifiable-coding-problems-python": {
                "problem_statement": problem,
                "verification_info": json.dumps({"language": "python", "test_cases": cases}),
            },
            "zwhe99/DeepMath-103K": {"question": problem, "final_answer": answer},
            "RabotniKuma/Fast-Math-R1-SFT": {"problem": problem, "answer": answer, "generation": trace},
        }  # fmt: skip
        yield layouts.get(hub, {"problem": problem, "answer": answer})


# ---- What the docs say


def test_every_recipe_has_its_sources_facts_and_trains_on_nothing_that_it_is_measured_by():
    assert set(RECIPES) == set(re.findall(r"^\| `([^`]+)` \| [^`]", DOCS.read_text(), re.MULTILINE))
    assert set(SOURCES) == {name for name in RECIPES if not name.startswith("kaggle")}, "these have none"
    for data in (config.load(name).data for name in RECIPES):
        evaluated = {source.source for source in data.decontaminate}
        assert evaluated == {"HuggingFaceH4/MATH-500", "HuggingFaceH4/aime_2024", "yentinglin/aime_2025"}
        assert data.heldout.source in evaluated


# ---- What the sources say

# Facts of each recipe's source, by the key that they have here; a text where it has no such value.
SOURCES = yaml.load((Path(__file__).parent / "recipes.yaml").read_text(), Loader)


@pytest.mark.parametrize("name", SOURCES)
def test_each_difference_from_the_source_stands_in_the_docs_and_nothing_else_does(name):
    rows = re.findall(
        r"^\| `([^`]+)` \| `([^`]+)` \| (.+) \| (.+) \| (.+) \|$", DOCS.read_text(), re.MULTILINE
    )
    told = {key: (source, here) for profile, key, source, here, _ in rows if profile == name}

    def value_of(key):
        """The profile's value of a dotted key; rewards as their weights."""
        found = config.load(name)
        for part in key.split("."):
            found = found[part] if isinstance(found, dict) else getattr(found, part)
        return {kind: reward.weight for kind, reward in found.items()} if key == "grpo.rewards" else found

    assert told.keys() == {key for key, source in SOURCES[name].items() if value_of(key) != source}
    for key, (source, here) in told.items():
        assert yaml.load(source, Loader) == SOURCES[name][key]
        value, begun = value_of(key), here.partition("…")[0].strip()
        same = value.startswith(begun) if isinstance(value, str) and "…" in here else None
        assert same or yaml.load(here, Loader) == value, f"{key}: the profile has {value}"


# ---- A few steps on the tiny base


@pytest.mark.train
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_scaled_down_trains_its_stages_into_a_model(tmp_path, name, one_thread):
    models.import_unsloth()

    from aimo.inference.judge import is_well_formed

    p = scaled(name, tmp_path)
    tokenizer = models.load_tokenizer(TINY, p)
    sets = prepare.decontaminate_sets(prepare.clean_sets(prepare.load_sets(p), p, tokenizer), p)
    ready = {part: rows.to_dicts() for part, rows in prepare.format_sets(sets, p).items()}
    enough = {"sft": 12, "grpo": 6}  # of a set that both stages share, SFT has the larger part
    rows = {stage: ready[config.profile.TRAINED[stage].trains_on] for stage in p.trained}
    assert all(len(rows[stage]) >= enough.get(stage, 6) for stage in p.trained) and not sets.contaminated
    asked = tokenizer.apply_chat_template(
        rows[p.trained_before("inference")][0]["prompt"], add_generation_prompt=True, tokenize=False
    )
    assert asked.endswith(p.prompt.think_start) == p.prompt.prefill
    told = [row["completion"][0]["content"] for row in ready.get("sft", ())]
    # SFT teaches what GRPO rewards.
    assert all(is_well_formed(p.prompt, text) and "WRONG" not in text for text in told)
    start = TINY
    for stage in p.trained:
        run = runs.Run(p, tmp_path, stage, 0.0)
        model, tokenizer = models.load_model(start, p), models.load_tokenizer(start, p)
        log = models.training_of(stage)(model, tokenizer, rows[stage], run, probe=ready.get("grpo_test"))
        steps = [record for record in log if "loss" in record]
        assert [record["step"] for record in steps] == [1]
        models.save_model(run, tokenizer, trainers.summary(log))
        start = run.folder / "model"
    assert (start / "model.safetensors").exists()
    for function in rewards.get_reward_funcs(p.grpo.rewards, p.prompt) if p.grpo else ():
        assert math.isfinite(steps[-1][f"rewards/{function.__name__}/mean"])
    assert any("probe/accuracy" in record for record in log) == bool(p.grpo and p.grpo.probe_steps)
