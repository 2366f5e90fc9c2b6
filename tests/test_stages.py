"""Pipelines of one trained stage each: SFT alone with all weights, GRPO from the base, DPO after it."""

import json
import os
import pty
import re
from pathlib import Path

import polars as pl
import pytest
from conftest import AIMO, ROOT, TINY, here, settings

from aimo.run.runs import figures, read_metrics


def on_a_terminal(command: list[str]) -> str:
    """What a command shows on a terminal; it must succeed."""
    shown = []

    def read(terminal: int) -> bytes:
        shown.append(os.read(terminal, 65536))
        return shown[-1]

    status = pty.spawn(command, read)
    assert status == 0, shown[-3:]
    return b"".join(shown).decode()


KIND = ["data.sft.rows=60", "data.grpo.rows=60", "model.backend=transformers", "inference.samples=2"]
KIND += ["inference.test_rows=2", "inference.max_tokens=40"]
SFT = ["sft.max_steps=2", "sft.save_steps=1", "model.lora=null", "data.heldout.rows=8"]
SFT += ["grpo=null", "data.grpo=null"]
GRPO = ["grpo.max_steps=1", "grpo.probe_steps=1", "grpo.num_generations=4", "model.lora={rank: 8, alpha: 16}"]
GRPO += ["sft=null", "data.sft=null", "data.heldout=null"]


@pytest.mark.train
def test_sft_alone_trains_all_weights_into_a_plain_model_and_shows_its_progress(tmp_path, monkeypatch):
    """In a folder that is named relative to the current one, as in the README."""
    monkeypatch.chdir(tmp_path)
    arguments = ["run", "--profile", "tiny", "--run-dir", "run", *settings(KIND + SFT)]
    shown = on_a_terminal([str(AIMO), *arguments, "--until", "sft"])
    folder = tmp_path / "run"
    assert re.search(r"\d of 2\b", shown), "no progress of SFT's two steps"
    assert list(read_metrics(folder)["stages"]) == ["data", "sft"]
    base, trained = (TINY / "model.safetensors"), (folder / "sft/model/model.safetensors")
    assert base.read_bytes() != trained.read_bytes()
    assert abs(base.stat().st_size - trained.stat().st_size) < 5000, "not a plain, merged model"


@pytest.mark.train
def test_grpo_starts_from_the_base_and_dpo_from_what_there_is_with_adapters_and_no_held_out_set(tmp_path):
    folder = tmp_path / "run"
    arguments = ["run", "--profile", "tiny", "--run-dir", str(folder), *settings(KIND + GRPO)]
    done = here(*arguments, "--until", "grpo")
    assert done.returncode == 0, done.stderr
    assert list(read_metrics(folder)["stages"]) == ["data", "grpo"] and not (folder / "inference").exists()
    assert "report.html" in done.stdout and "submission" not in done.stdout

    def trained_on(stage: str) -> Path:
        adapter = json.loads((folder / stage / "trained/adapter_config.json").read_text())
        return ROOT / adapter["base_model_name_or_path"]

    assert trained_on("grpo") == TINY
    dpo = "dpo={learning_rate: 1.0e-5, max_steps: 1, batch_size: 2, problems: 12, samples: 4}"
    done = here(*arguments, "--set", dpo, "--from", "dpo")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished before, kept") == 2 and trained_on("dpo") == folder / "grpo/model"
    assert list(figures(folder)) == ["grpo", "dpo"]
    assert len(pl.read_parquet(folder / "submission.parquet")) == 2
