"""Unsloth's trainers, which it generates for a GPU, are run and held against TRL's."""

import json
import os
import subprocess
import sys

import pytest
from conftest import TINY

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
RUN = """
import json, sys
from pathlib import Path
import torch
from aimo import config
from aimo.run import runs
from aimo.train import grpo, models, sft, trainers

def say(text):
    return [{"role": "assistant", "content": text}]

torch.set_num_threads(1)
base, profile, found = Path(sys.argv[1]), config.load("tiny", json.loads(sys.argv[2])), {}
tokenizer = models.load_tokenizer(base, profile)
tokenizer.pad_token = tokenizer.eos_token  # as many public models have it
opening = profile.prompt.think_start
rows = [
    {"prompt": [{"role": "user", "content": f"What is {i} + {i}?"}], "answer": str(2 * i)}
    | {"completion": say(f"{opening}{2 * i}"), "chosen": say(f"{2 * i}"), "rejected": say(f"{i}, or {2 * i}")}
    for i in range(12)
]
rows[3]["completion"] = say(opening + "1 + 1 = 2, " * 9)
for stage, kind in {"sft": sft.SftTrainer, "grpo": grpo.GrpoTrainer, "dpo": trainers.DpoTrainer}.items():
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
    *("model.dtype=float32", "model.max_length=24"),
    "sft={learning_rate: 1.0e-2, max_steps: 3, batch_size: 4, probe_steps: 3}",
    "dpo={learning_rate: 1.0e-3, max_steps: 3, batch_size: 4, gradient_accumulation_steps: 1}",
    *("grpo.max_steps=3", "grpo.probe_steps=null", "grpo.prompts_per_step=2", "grpo.num_generations=4"),
    *("grpo.max_prompt_length=16", "grpo.max_completion_length=8", "grpo.generation=transformers"),
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Three steps of SFT, GRPO and DPO by TRL's trainers, and by those that Unsloth generates for a GPU."""
    processes = []
    for before in ("", ON_GPU):  # side by side
        command = [sys.executable, "-c", before + RUN, str(TINY), json.dumps(THREE_STEPS)]
        how = {"cwd": tmp_path_factory.mktemp("ran"), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        how["env"] = os.environ | {"CI": "true"}  # where PyTorch raises more than elsewhere
        processes.append(subprocess.Popen(command, **how, text=True))
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], [err[-2000:] for _, err in outputs]
    return [json.loads(stdout.splitlines()[-1]) for stdout, _ in outputs]


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
    # Three steps see each row once: eleven have 9 or 10 tokens; one has 63 and is cut to 24.
    assert stage != "sft" or b["num_tokens"] <= 24 + 11 * 10


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
