"""The path to the trainer on a GPU, with GPUs faked where torch and the driver are asked; nothing trains.

A fake stands for what this machine lacks: torch.cuda, nvidia-smi, Unsloth's loader, Transformers' loader.
"""

import re
import shlex
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import yaml
from conftest import TINY

from aimo import config, pipeline
from aimo.inference.errors import AimoError
from aimo.run import machine, runs
from aimo.train import arguments, grpo, models, trainers

LAUNCHED = {
    "ddp": {},
    "fsdp": {"ACCELERATE_USE_FSDP": "true"},
    "zero2": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero3": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}
"""Variables that `accelerate launch` sets for each process of a strategy."""
TRAINED = sorted(path.stem for path in config.PROFILES.glob("*.yaml") if config.load(path.stem).trained)


@pytest.fixture(params=[1])
def gpus(request, monkeypatch):
    """So many GPUs, H100s with bfloat16; libraries that look for one when they are imported found none."""
    import peft  # noqa: F401
    import torch
    import trl  # noqa: F401

    fakes = {
        "is_available": lambda: True,
        "device_count": lambda: request.param,
        "get_device_name": lambda *_: "NVIDIA H100",
        "is_bf16_supported": lambda **_: True,
        "set_device": lambda _: None,
        "current_device": lambda: 0,
        "get_device_capability": lambda *_: (9, 0),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return request.param


def launched(monkeypatch, how, rank=3, processes=8):
    """This process as `accelerate launch` with a strategy starts it among others."""
    number = {"WORLD_SIZE": str(processes), "LOCAL_RANK": str(rank)}
    for name, value in (LAUNCHED[how] | number).items():
        monkeypatch.setenv(name, value)


def profile(*overrides):
    return config.load("tiny", ["model.backend=transformers", "model.dtype=auto", *overrides])


@pytest.fixture
def loaded(monkeypatch):
    """What reaches Transformers' and Unsloth's loaders. Unsloth's prints, and starts vLLM."""
    import torch
    from transformers import AutoModelForCausalLM
    from vllm.utils.system_utils import suppress_stdout

    calls = SimpleNamespace(transformers=None, unsloth=None)
    model = torch.nn.Linear(1, 1)
    model.device, model.dtype = torch.device("cpu"), torch.float32

    def generate(asked, params, use_tqdm):
        calls.asked, calls.params = asked, params
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[5, 6])]) for _ in asked]

    model.vllm_engine = SimpleNamespace(generate=generate)

    def transformers(folder, **keywords):
        calls.transformers = keywords
        return model

    def unsloth(folder, **keywords):
        print("Unsloth's banner")
        with suppress_stdout():
            calls.unsloth = keywords
        return model, None

    fake = SimpleNamespace(from_pretrained=unsloth, get_peft_model=lambda model, **_: model)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", transformers)
    monkeypatch.setattr("peft.get_peft_model", lambda model, *_, **__: model)
    monkeypatch.setattr("peft.prepare_model_for_kbit_training", lambda model, **_: model)
    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace(FastLanguageModel=fake))
    return calls


def load(*overrides, with_vllm=False):
    return models.load_model(TINY, profile(*overrides), with_vllm)


def test_unsloth_is_silent_but_vllm_finds_a_file_descriptor_while_it_loads(gpus, loaded, capfd):
    load("model.backend=unsloth", "model.lora=null", with_vllm=True)
    assert loaded.unsloth["fast_inference"] and loaded.unsloth["full_finetuning"]
    told = capfd.readouterr().out
    assert told.startswith("Training in bfloat16") and "banner" not in told
    load("model.backend=unsloth", "model.lora=null")
    assert loaded.unsloth["float32_mixed_precision"], "all weights are trained in float32"


def test_texts_before_training_come_from_the_vllm_that_unsloth_started(gpus, loaded):
    from transformers import AutoTokenizer

    model, tokenizer = load("model.backend=unsloth", with_vllm=True), AutoTokenizer.from_pretrained(TINY)
    rows = [{"prompt": [{"role": "user", "content": "1 + 1?"}]}] * 2
    assert models.complete(model, tokenizer, rows, 7) == [tokenizer.decode([5, 6])] * 2
    asked = tokenizer.apply_chat_template(rows[0]["prompt"], add_generation_prompt=True, return_dict=False)
    assert loaded.asked == [{"prompt_token_ids": asked}] * 2
    assert (loaded.params.temperature, loaded.params.max_tokens) == (0.0, 7)
    assert loaded.params.stop_token_ids == [tokenizer.eos_token_id]


@pytest.mark.parametrize("how, kept", [("zero3", "bfloat16"), ("ddp", "float32")])
def test_adapters_have_the_bases_type_under_deepspeed_and_float32_without(monkeypatch, how, kept):
    import torch

    launched(monkeypatch, how)
    model = models.load_with_peft(TINY, profile("model.dtype=bfloat16"))
    trained = {weight.dtype for weight in model.parameters() if weight.requires_grad}
    assert model.dtype == torch.bfloat16 and trained == {getattr(torch, kept)}


def test_float32_weights_compute_in_the_type_of_the_profile_before_training_too(loaded):
    import torch

    model = load("model.lora=null", "model.dtype=bfloat16")
    assert model(torch.ones(1, 1)).dtype == torch.bfloat16 and model.weight.dtype == torch.float32


def test_adapters_of_a_four_bit_model_are_trained_in_float32_though_trl_casts_them(tmp_path):
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from trl import SFTTrainer

    p = profile()
    run = runs.Run(p, tmp_path, "sft", 0.0)
    model = AutoModelForCausalLM.from_pretrained(TINY)
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.is_loaded_in_4bit = True  # TRL asks no more
    rows, args = Dataset.from_list([{"prompt": "1+1=", "completion": "2"}]), arguments.stage_arguments(run)
    parts = {"model": model, "args": args, "processing_class": models.load_tokenizer(TINY, p)}
    trainer = trainers.make_trainer(SFTTrainer, run, **parts, train_dataset=rows)
    trained = {weight.dtype for weight in trainer.model.parameters() if weight.requires_grad}
    assert trained == {torch.float32}


@pytest.mark.parametrize("gpus", [1, 2], indirect=True)
def test_a_notebook_takes_one_gpu_and_says_how_to_train_on_the_others(gpus, loaded, capsys, tmp_path):
    load()
    assert ("takes one of the 2 GPUs; `aimo launch`" in capsys.readouterr().out) == (gpus == 2)
    assert arguments.stage_arguments(runs.Run(profile(), tmp_path, "sft", 0.0)).n_gpu == 1


def test_a_probe_leaves_checkpointing_on_and_answers_no_more_tokens_at_once_than_fit_beside_vllm():
    import torch

    class Asked(torch.nn.Linear):
        """Its `generate` turns checkpointing off, as Unsloth 2026.10.9's `unsloth_fast_generate` does."""

        device, gradient_checkpointing = torch.device("cpu"), "unsloth"

        def for_training(self, use_gradient_checkpointing):
            self.training, self.gradient_checkpointing = True, use_gradient_checkpointing

        def generate(self, input_ids, max_new_tokens, **_):
            batches.append(len(input_ids))
            self.gradient_checkpointing = False
            return torch.nn.functional.pad(input_ids, (0, max_new_tokens), value=7)

    tokenizer, model = models.load_tokenizer(TINY, profile()), Asked(1, 1)
    rows = [{"prompt": [{"role": "user", "content": "1 + 1?" * (i % 3 + 1)}]} for i in range(50)]
    batches = []
    long = models.complete(model, tokenizer, rows, 5120)
    assert model.gradient_checkpointing == "unsloth" and model.training
    assert len(long) == sum(batches) == 50 and max(batches) * 5120 < 2**15 and len(batches) < 12
    batches = []
    short = models.complete(model, tokenizer, rows, 80)
    assert batches == [50], "short answers are one batch"
    assert [text[:3] for text in long] == [text[:3] for text in short]


@pytest.mark.parametrize(
    "overrides, told",
    [
        (["model.load_in_4bit=true", "grpo.generation=vllm_server"], "set model.load_in_4bit to false"),
        (["model.backend=unsloth", "model.lora=null", "grpo.generation=vllm"], "set model.backend to"),
        (["model.load_in_4bit=true", "model.lora=null"], "four-bit weights are frozen; set "),
    ],
)
def test_what_these_versions_cannot_run_is_refused_when_the_profile_is_read(overrides, told):
    with pytest.raises(AimoError, match=told):
        profile(*overrides)


@pytest.mark.parametrize("is_smallest", [False, True])
@pytest.mark.parametrize(
    "name, stage", [(name, stage) for name in TRAINED for stage in config.load(name).trained]
)
def test_advice_when_memory_runs_out_is_taken_by_the_runs_folder(tmp_path, name, stage, is_smallest):
    values = yaml.safe_load((config.PROFILES / f"{name}.yaml").read_text())
    if stage != "grpo":
        values[stage] |= {"batch_size": 1 if is_smallest else 6}
    elif is_smallest:
        grpo = config.load(name).grpo
        most = grpo.prompts_per_step * grpo.num_generations  # nothing is left to accumulate
        values[stage] |= {"gradient_accumulation_steps": most}
    p, folder = config.parse({"profile": name} | values, name), tmp_path / "a run's $folder"
    runs.open_folder(folder, p)
    runs.unlock(folder)
    (folder / stage / "checkpoint-2").mkdir(parents=True)
    told = trainers.out_of_memory(runs.Run(p, folder, stage, 0.0), 3)
    assert is_smallest or "--from" not in told, "a step keeps its rows: nothing has to be done again"
    if "--set" not in told:
        assert is_smallest and "a smaller model.base" in told
        return
    # The command that it advises.
    words = shlex.split(re.search(r"`(aimo run .+)`", told)[1])
    options = list(zip(words[2::2], words[3::2], strict=True))
    given = dict(options)
    assert given["--run-dir"] == str(folder)
    changed = config.load(given["--profile"], [value for key, value in options if key == "--set"])
    pipeline.check_run(changed, folder, given.get("--from"), None)
    runs.open_folder(folder, changed, redo=given.get("--from", "").partition("/")[0] or None)
    runs.unlock(folder)
    assert config.load(folder / "profile.yaml") == changed != p


def test_advice_in_a_launched_process_keeps_its_command(monkeypatch, tmp_path):
    launched(monkeypatch, "zero3")
    told = trainers.out_of_memory(runs.Run(config.load("tiny"), tmp_path, "sft", 0.0), 3)
    assert "`aimo launch` again with `--set sft.batch_size=" in told and "4bit" not in told


def test_a_second_training_lets_go_of_the_first_ones_vllm_before_it_starts_another(monkeypatch, tmp_path):
    model, engines = SimpleNamespace(generate=print), []

    def make(**given):
        assert not hasattr(model, "answer"), "two engines hold memory"
        engines.append(SimpleNamespace(answer=lambda *_: engines))
        return MagicMock(vllm_generation=engines[-1])

    args = SimpleNamespace(device=SimpleNamespace(type="cuda"), use_vllm=True)
    monkeypatch.setattr(grpo, "GrpoTrainer", make)
    monkeypatch.setattr(grpo, "fit", lambda *_: None)
    monkeypatch.setattr(grpo.arguments, "stage_arguments", lambda *_: args)
    for _ in range(2):
        grpo.train_grpo(model, None, [{"prompt": "1?"}], runs.Run(profile(), tmp_path, "grpo", 0.0))
        assert model.answer is engines[-1].answer and model.generate is print, "no shortcut of the CPU"


def test_a_gpu_with_an_old_driver_is_named_and_one_that_was_hidden_left_out(tmp_path, monkeypatch):
    import torch

    tool = tmp_path / "nvidia-smi"  # of a machine whose driver torch refuses
    tool.write_text('#!/bin/sh\ncase "$1" in --query-gpu=driver*) echo 470.57;; *) echo "GPU 0";; esac\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for cuda, told in (
        ("13.0", r"driver 470\.57 is too old for CUDA 13\.0: update it"),
        (None, "run `make setup`"),
    ):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        with pytest.raises(AimoError, match=told):
            machine.computes_on_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not machine.computes_on_gpu()


@pytest.mark.parametrize("strategy", LAUNCHED)
@pytest.mark.parametrize("name", TRAINED)
def test_every_profile_reaches_its_model_as_it_says(gpus, loaded, monkeypatch, name, strategy):
    import torch

    p = config.load(name)
    if p.model.backend == "unsloth" and strategy != "ddp":
        return  # `aimo launch` refuses it
    for stage in p.trained:
        samples = stage == "grpo" and p.grpo.generation == "vllm"
        launched(monkeypatch, strategy, rank=3)
        models.load_model(TINY, p, with_vllm=samples)
        kept = "bfloat16" if p.model.dtype == "auto" else p.model.dtype
        if p.model.backend == "transformers":
            if p.model.lora is None and not strategy.startswith("zero"):
                kept = "float32"
            told, four_bits = loaded.transformers, loaded.transformers["quantization_config"]
            assert bool(four_bits) == p.model.load_in_4bit
            assert not four_bits or four_bits.bnb_4bit_compute_dtype == getattr(torch, kept)
            assert told["attn_implementation"] == p.model.attention
            assert told["device_map"] == (None if strategy in ("fsdp", "zero3") else {"": 3})
        else:
            told = loaded.unsloth
            assert told["fast_inference"] == samples and told["load_in_4bit"] == p.model.load_in_4bit
            assert not samples or told["gpu_memory_utilization"] == p.grpo.vllm_gpu_memory
            assert (told["random_state"], told["max_seq_length"]) == (p.seed, p.model.max_length)
        assert told["dtype"] == getattr(torch, kept)


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("name", TRAINED)
def test_every_profile_computes_in_the_type_that_its_gpu_has(gpus, monkeypatch, tmp_path, name, bf16):
    import torch

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
    p = config.load(name, ["sft.use_liger_kernel=false"] if config.load(name).sft else [])
    wanted = {"auto": "bfloat16" if bf16 else "float16"}.get(p.model.dtype, p.model.dtype)
    for stage in p.trained:
        args = arguments.stage_arguments(runs.Run(p, tmp_path, stage, 0.0))
        assert (args.bf16, args.fp16) == (wanted == "bfloat16", wanted == "float16")
        ours = p.model.backend == "transformers"
        assert args.gradient_checkpointing == (p.model.gradient_checkpointing and ours)
