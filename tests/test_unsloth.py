"""Unsloth's trainers, which it generates for a GPU, are built and held against TRL's, for every profile."""

import json
import subprocess
import sys

import pytest
from conftest import TINY

from aimo import config

ON_GPU = """
import os
os.environ["UNSLOTH_ALLOW_CPU"] = "1"
from aimo.train import models
models.import_unsloth()
os.environ["UNSLOTH_ALLOW_CPU"] = "0"
from unsloth.models.rl import PatchFastRL
PatchFastRL()
"""
"""Unsloth as it is on a GPU: its own trainers and configurations in TRL's place."""
INHERIT = """
import inspect
from aimo.train import compat, grpo, sft, trainers
for ours in (sft.SftTrainer, grpo.GrpoTrainer, trainers.DpoTrainer):
    names = [base.__name__ for base in ours.__mro__]
    stage = ours.__name__.replace("Trainer", "").upper()
    assert names.index("Shared") < names.index(f"Unsloth{stage}Trainer")
name = "_get_per_token_logps_and_entropies"
base = next(base for base in grpo.GrpoTrainer.__mro__ if base.__name__ == "UnslothGRPOTrainer")
theirs = inspect.signature(getattr(base, name)).parameters
assert list(theirs)[:5] == list(inspect.signature(getattr(compat.GrpoHook, name)).parameters)[:5]
"""
BUILD = """
import json, sys
from pathlib import Path
from aimo import config, rewards
from datasets import Dataset
from aimo.run import runs
from aimo.train import arguments, grpo, models, sft, trainers

def plain(thing):
    kept = {name: value for name, value in vars(thing).items() if name != "reward_funcs"}
    return {n: v for n, v in kept.items() if isinstance(v, (bool, int, float, str, list, dict, type(None)))}

kinds = {"sft": sft.SftTrainer, "grpo": grpo.GrpoTrainer, "dpo": trainers.DpoTrainer}
found, base = {}, Path(sys.argv[1])
reply = [{"role": "assistant", "content": "2"}]
row = {"prompt": [{"role": "user", "content": "1 + 1?"}], "answer": "2", "completion": reply}
row |= {"chosen": reply, "rejected": reply}
columns = {"sft": ["completion"], "grpo": ["answer"], "dpo": ["chosen", "rejected"]}
for name, settings in json.loads(sys.argv[2]).items():
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
        found[f"{name} {stage}"] = {"args": plain(trainer.args), "trainer": plain(trainer)}
print()
print(json.dumps(found, default=str))
"""
RUN = """
import json, sys
from pathlib import Path
import torch
from aimo import config
from aimo.run import runs
from aimo.train import models, sft

few = ["sft.max_steps=3", "sft.batch_size=4", "sft.learning_rate=0.01", "sft.probe_steps=3"]
profile = config.load("tiny", few)
base, run = Path(sys.argv[1]), runs.Run(profile, Path(), "sft", 0.0)
torch.set_num_threads(1)
model, tokenizer = models.load_with_peft(base, profile), models.load_tokenizer(base, profile)
rows = [
    {
        "prompt": [{"role": "user", "content": f"What is {i} + {i}?"}],
        "completion": [{"role": "assistant", "content": f"<start_working_out>{2 * i}"}],
        "answer": str(2 * i),
    }
    for i in range(12)
]
log = sft.train_sft(model, tokenizer, rows, run, probe=rows[:2])
kinds = [kind.__name__ for kind in sft.SftTrainer.__mro__]
trained = sorted(path.name for path in (run.folder / "trained").iterdir())
print()
steps = [json.loads(line) for line in (run.folder / "log.jsonl").open()]
keys = [sorted(record) for record in steps if "loss" in record][-1]
print(json.dumps([kinds, [record["loss"] for record in log if "loss" in record], trained, keys]))
"""
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
UNSLOTHS_TRAINERS = {
    "padding_free": "as in its configuration",
    "place_model_on_device": "with bf16_full_eval, training places the model when it begins",
    "_context_parallel_manager": "None: one process a sequence",
}
"""Values of Unsloth's trainers that are not those of TRL's, and why."""


def settings_of(name):
    """The settings that build a profile's trainers here: in its own number type, if a CPU has it."""
    profile = config.load(name)
    lacks = {"sft", "grpo"} - set(profile.stages)
    here = [setting for setting in HERE if setting.split(".")[0] not in lacks]
    here += ["prompt.template=plain"] if profile.prompt.template == "model" else []  # that of another model
    here += [] if "grpo" in lacks else ["dpo={learning_rate: 1.0e-6}"]
    return here if profile.model.dtype == "float32" else [*here, "model.dtype=bfloat16"]


def outputs_of(folder, codes, *arguments):
    """What programs print in their last line, as JSON; they run side by side."""
    processes = []
    for i, code in enumerate(codes):
        (cwd := folder / str(i)).mkdir()
        command = [sys.executable, "-c", code, str(TINY), *arguments]
        processes.append(
            subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    outputs = [process.communicate() for process in processes]
    for process, (_, stderr) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, stderr[-2000:]
    return [json.loads(stdout.splitlines()[-1]) for stdout, _ in outputs]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The values of TRL's trainers and of Unsloth's, by profile and stage."""
    names = [path.stem for path in config.PROFILES.glob("*.yaml") if config.load(path.stem).trained]
    settings = json.dumps({name: settings_of(name) for name in names})
    return outputs_of(tmp_path_factory.mktemp("built"), [BUILD, ON_GPU + INHERIT + BUILD], settings)


@pytest.mark.train
def test_unsloths_own_sft_trainer_trains_with_the_losses_of_trls(tmp_path):
    (_, plain, trained, logged), (kinds, losses, saved, keys) = outputs_of(tmp_path, [RUN, ON_GPU + RUN])
    assert kinds.index("Shared") < kinds.index("UnslothSFTTrainer")
    assert len(losses) == 3 and losses == pytest.approx(plain, rel=1e-3) and losses[2] < losses[0]
    assert saved == trained
    # Its loss goes around TRL's, which has the logits that entropy and accuracy need.
    assert {*logged} - {*keys} <= {"entropy", "mean_token_accuracy"} and "tokens_per_second" in keys


def differing(built, part):
    """For each profile and stage, the names of values that Unsloth changes, and of those that it adds."""
    plain, theirs = built
    assert plain.keys() == theirs.keys() and len(plain) >= 18
    for name in plain:
        a, b = plain[name][part], theirs[name][part]
        yield name, {key: (a[key], b.get(key)) for key in a if a[key] != b.get(key)}, b.keys() - a.keys()


@pytest.mark.slow  # Unsloth writes and imports its trainers for a GPU, 30 s
def test_the_arguments_of_unsloths_trainers_are_trls_or_stand_in_a_table_with_a_reason(built):
    from aimo.train.arguments import UNSLOTHS

    for name, changed, added in differing(built, "args"):
        assert changed.keys() <= UNSLOTHS.keys(), f"{name}: {changed}: neither the profile's nor TRL's"
        assert added <= UNSLOTHS_OWN.keys(), f"{name}: a new key of Unsloth's"
    assert not built[1]["tiny sft"]["args"]["fp16"], "float32 is computed in float32"


@pytest.mark.slow
def test_unsloths_trainers_take_the_values_that_trls_take(built):
    for name, changed, added in differing(built, "trainer"):
        assert changed.keys() | added <= UNSLOTHS_TRAINERS.keys(), f"{name}: {changed}, {added}"


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
