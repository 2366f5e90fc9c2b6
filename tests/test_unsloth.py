"""Unsloth's trainers, which it generates for a GPU, are built and held against TRL's, for every profile."""

import json
import os
import subprocess
import sys

import pytest
from conftest import TINY

from aimo import config

ON_GPU = """
import functools, os
os.environ["UNSLOTH_ALLOW_CPU"] = "1"
from aimo.train import models
models.import_unsloth()
os.environ["UNSLOTH_ALLOW_CPU"] = "0"
from unsloth.models.rl import PatchFastRL
PatchFastRL()
from unsloth.models.vision import FastBaseModel
load = models.load_with_peft

def load_as_unsloth(folder, profile):
    model = load(folder, profile)
    for name in ("for_training", "for_inference"):
        setattr(model, name, functools.partial(getattr(FastBaseModel, name), model))
    return model

models.load_with_peft = load_as_unsloth
"""
"""Unsloth as it is on a GPU: its own trainers and configurations in TRL's place, and the two methods that its
loader gives to a model."""
COMMON = """
import json, sys
from pathlib import Path
import torch
from aimo import config, rewards
from aimo.run import runs
from aimo.train import arguments, grpo, models, sft, trainers

kinds = {"sft": sft.SftTrainer, "grpo": grpo.GrpoTrainer, "dpo": trainers.DpoTrainer}
base, given, found = Path(sys.argv[1]), json.loads(sys.argv[2]), {}

def say(text):
    return [{"role": "assistant", "content": text}]
"""
BUILD = """
from datasets import Dataset

def plain(args):
    kinds = bool, int, float, str, list, dict, type(None)
    return {name: value for name, value in vars(args).items() if isinstance(value, kinds)}

row = {"prompt": [{"role": "user", "content": "1 + 1?"}], "answer": "2"}
row |= dict.fromkeys(["completion", "chosen", "rejected"], say("2"))
columns = {"sft": ["completion"], "grpo": ["answer"], "dpo": ["chosen", "rejected"]}
for name, settings in given.items():
    profile = config.load(name, settings)
    tokenizer = models.load_tokenizer(base, profile)
    for stage in kinds.keys() & set(profile.trained):  # Unsloth has no trainer of OPD
        more = {"train_dataset": Dataset.from_list([{n: row[n] for n in ["prompt", *columns[stage]]}] * 4)}
        if stage == "grpo":
            more["reward_funcs"] = list(rewards.get_reward_funcs(profile.grpo.rewards, profile.prompt))
        if stage == "sft":
            more["train_dataset"] = sft.tokenize(more["train_dataset"].to_list(), tokenizer)
        run = runs.Run(profile, Path(), stage, 0.0)
        trainer = trainers.make_trainer(
            kinds[stage],
            run,
            model=models.load_with_peft(base, profile),
            args=arguments.stage_arguments(run),
            processing_class=tokenizer,
            **more,
        )
        found[f"{name} {stage}"] = plain(trainer.args)
print()
print(json.dumps(found, default=str))
"""
RUN = """
torch.set_num_threads(1)
profile = config.load("tiny", given)
tokenizer = models.load_tokenizer(base, profile)
tokenizer.pad_token = tokenizer.eos_token  # as many public models have it
opening = profile.prompt.think_start
rows = [
    {"prompt": [{"role": "user", "content": f"What is {i} + {i}?"}], "answer": str(2 * i)}
    | {"completion": say(f"{opening}{2 * i}"), "chosen": say(f"{2 * i}"), "rejected": say(f"{i}, or {2 * i}")}
    for i in range(12)
]
rows[3]["completion"] = say(opening + "1 + 1 = 2, " * 9)
for stage, kind in kinds.items():
    run = runs.Run(profile, Path(), stage, 0.0)
    models.training_of(stage)(models.load_with_peft(base, profile), tokenizer, rows, run, probe=rows[:2])
    lines = map(json.loads, (run.folder / "log.jsonl").open())
    saved = sorted(path.name for path in (run.folder / "trained").iterdir())
    mro = [base.__name__ for base in kind.__mro__]
    found[stage] = {"kinds": mro, "saved": saved, "log": [line for line in lines if "loss" in line]}
print()
print(json.dumps(found))
"""
THREE_STEPS = [
    "model.dtype=float32",
    "model.max_length=24",
    "sft={learning_rate: 1.0e-2, max_steps: 3, batch_size: 4, probe_steps: 3}",
    "dpo={learning_rate: 1.0e-3, max_steps: 3, batch_size: 4, gradient_accumulation_steps: 1}",
    *("grpo.max_steps=3", "grpo.probe_steps=null", "grpo.prompts_per_step=2", "grpo.num_generations=4"),
    *("grpo.max_prompt_length=16", "grpo.max_completion_length=8", "grpo.generation=transformers"),
]
HERE = [
    f"model.base={TINY}",
    "model.load_in_4bit=false",
    "model.attention=sdpa",
    "prompt.eos_token=null",
    "sft.use_liger_kernel=false",
    "grpo.generation=transformers",
]
"""Settings that need a GPU, or a model that is not here."""
UNSLOTHS_OWN = {
    "vllm_sampling_params": "unset, it adds nothing to TRL's sampling",
    "unsloth_num_chunks": "pieces in which a loss is computed, for memory",
    "unsloth_logit_chunk_multiplier": "the same",
    "max_seq_length": "unset, it is TRL's max_length",
    "context_parallel_size": "one process a sequence",
    "context_parallel_backend": "the same",
    "context_parallel_rotate_method": "the same",
    "_unsloth_gradient_checkpointing_explicit": "a note that the profile sets gradient_checkpointing",
}
"""Keys that Unsloth's configurations have and TRL's have not, and what they do when they are not set."""


def settings_of(name):
    """The settings that build a profile's trainers here: in its own number type, if a CPU has it."""
    profile = config.load(name)
    lacks = {"sft", "grpo"} - set(profile.stages)
    here = [setting for setting in HERE if setting.split(".")[0] not in lacks]
    here += ["prompt.template=plain"] if profile.prompt.template == "model" else []  # that of another model
    here += [] if "grpo" in lacks else ["dpo={learning_rate: 1.0e-6}"]
    return here if profile.model.dtype == "float32" else [*here, "model.dtype=bfloat16"]


def outputs_of(folder, code, given):
    """What a program prints in its last line, as JSON, without Unsloth and with it, side by side."""
    processes = []
    for before in ("", ON_GPU):
        command = [sys.executable, "-c", before + code, str(TINY), given]
        (cwd := folder / str(len(processes))).mkdir()
        how = {"cwd": cwd, "env": os.environ | {"CI": "true"}}  # where PyTorch raises more than elsewhere
        processes.append(
            subprocess.Popen(command, **how, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    outputs = [process.communicate() for process in processes]
    for process, (_, stderr) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, stderr[-2000:]
    return [json.loads(stdout.splitlines()[-1]) for stdout, _ in outputs]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The arguments of TRL's trainers and of Unsloth's, by profile and stage."""
    names = [path.stem for path in config.PROFILES.glob("*.yaml") if config.load(path.stem).trained]
    settings = json.dumps({name: settings_of(name) for name in names})
    return outputs_of(tmp_path_factory.mktemp("built"), COMMON + BUILD, settings)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Three steps of SFT, GRPO and DPO by TRL's trainers, and by those that Unsloth generates for a GPU."""
    return outputs_of(tmp_path_factory.mktemp("ran"), COMMON + RUN, json.dumps(THREE_STEPS))


@pytest.mark.train  # a minute
@pytest.mark.parametrize("stage", ["sft", "grpo", "dpo"])
def test_unsloths_own_trainers_log_the_losses_and_figures_of_trls(ran, stage):
    plain, theirs = (side[stage] for side in ran)
    assert theirs["kinds"].index("Shared") < theirs["kinds"].index(f"Unsloth{stage.upper()}Trainer")
    assert theirs["saved"] == plain["saved"] and len(plain["log"]) == 3
    for a, b in zip(plain["log"], theirs["log"], strict=True):
        assert b.keys() == a.keys() >= {"loss", "num_tokens", "entropy"}
        assert b["num_tokens"] == a["num_tokens"]
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3, abs=1e-4)
        assert b["entropy"] == pytest.approx(a["entropy"], rel=0.3 if stage == "grpo" else 1e-3)


@pytest.mark.train
def test_a_tokenised_row_is_cut_though_unsloth_does_not_cut_it(ran):
    """Three steps see each row once: eleven have 9 or 10 tokens, one has 63, and `model.max_length` is 24."""
    for side in ran:
        assert side["sft"]["log"][-1]["num_tokens"] <= 24 + 11 * 10


@pytest.mark.slow  # Unsloth writes and imports its trainers for a GPU, 30 s
def test_the_arguments_of_unsloths_trainers_are_trls_or_stand_in_a_table_with_a_reason(built):
    from aimo.train.arguments import UNSLOTHS

    plain, theirs = built
    assert plain.keys() == theirs.keys() and len(plain) >= 18
    for name, ours in plain.items():
        changed = {key: (value, theirs[name].get(key)) for key, value in ours.items()}
        changed = {key: values for key, values in changed.items() if values[0] != values[1]}
        assert changed.keys() <= UNSLOTHS.keys(), f"{name}: {changed}: neither the profile's nor TRL's"
        assert theirs[name].keys() - ours.keys() <= UNSLOTHS_OWN.keys(), f"{name}: a new key of Unsloth's"
    assert not theirs["tiny sft"]["fp16"], "float32 is computed in float32"


OLDER_CPU = """
from pathlib import Path
import torch
torch.cpu._is_avx512_supported = lambda: False
from aimo.train import models
models.import_unsloth()
import unsloth
print(Path("/proc/self/maps").read_text())
"""
"""Unsloth on a CPU that has AVX2 and no AVX-512; one that has it runs the code for AVX2 too."""


@pytest.mark.slow
def test_unsloth_loads_no_compiled_code_that_the_cpu_cannot_run():
    done = subprocess.run([sys.executable, "-c", OLDER_CPU], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "/vllm/_C_AVX2." in done.stdout and "/vllm/_C." not in done.stdout
