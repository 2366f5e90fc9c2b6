"""`aimo data pack`: packed rows are made once, and found again by what made them."""

from pathlib import Path

import polars as pl
import pytest
from conftest import TINY, here

from aimo import config
from aimo.data import prepare
from aimo.run import runs

LONG = ["sft.packing=true", "model.backend=transformers", "model.max_length=64", "grpo=null"]


@pytest.fixture
def run_dir(tmp_path):
    """A run whose data are prepared."""
    profile = config.load("tiny", LONG)
    runs.open_folder(tmp_path / "run", profile)
    runs.unlock(tmp_path / "run")
    turns = [("What is 1 + 1?", f"so {i}<end_working_out><SOLUTION>2</SOLUTION>") for i in range(40)]
    rows = [
        {
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": reply}],
        }
        for question, reply in turns
    ]
    (tmp_path / "run/data").mkdir()
    pl.DataFrame(rows).write_parquet(tmp_path / "run/data/sft.parquet")
    (tmp_path / "run/data/README.md").touch()
    return tmp_path / "run"


def pack(run_dir, *more):
    """The file of the packed rows that the command prints."""
    arguments = ["data", "pack", "--profile", "tiny", "--run-dir", str(run_dir), *more]
    for key in LONG:
        arguments += ["--set", key]
    done = here(*arguments)
    runs.unlock(run_dir)
    assert not done.returncode, done.stderr
    assert "40 rows in " in done.stdout and "% full" in done.stdout
    return run_dir.parent / done.stdout.split("full: ")[1].split("\n")[0]


def test_packed_rows_are_kept_and_made_again_only_when_a_row_changes(run_dir):
    kept = pack(run_dir)
    made = kept.stat().st_mtime_ns
    assert pack(run_dir) == kept and kept.stat().st_mtime_ns == made
    rows = pl.read_parquet(run_dir / "data/sft.parquet")
    rows[::-1].write_parquet(run_dir / "data/sft.parquet")
    assert pack(run_dir) != kept


def test_packed_rows_are_pushed_as_parquet(run_dir, monkeypatch):
    import huggingface_hub

    pushed = {}

    class Hub:
        def create_repo(self, repo, **more):
            pushed["repo"] = repo

        def create_commit(self, repo, parts, **more):
            for part in parts:
                pushed[part.path_in_repo] = part.path_or_fileobj
            pushed["rows"] = pl.read_parquet(pushed["train.parquet"])
            return type("Commit", (), {"commit_url": f"hub/{repo}"})

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    pack(run_dir, "--push-to-hub", "me/packed")
    assert pushed["repo"] == "me/packed" and b"packing_strategy" in pushed["README.md"]
    assert pushed["rows"]["input_ids"].list.len().max() <= 64 and "seq_lengths" in pushed["rows"].columns


@pytest.mark.train
def test_training_takes_the_rows_that_were_packed_and_packs_the_same_ones(run_dir):
    from aimo.train import models, sft

    def dataset(folder, run_dir=run_dir):
        profile = config.load("tiny", LONG)
        with pytest.MonkeyPatch.context() as m:
            m.setattr(sft, "fit", lambda trainer, *_: trainer)
            model, tokenizer = models.load_model(TINY, profile), models.load_tokenizer(TINY, profile)
            rows = prepare.read_set(run_dir / "data", "sft")
            run = runs.Run(profile, folder, "sft", 0.0)
            return sft.train_sft(model, tokenizer, rows, run).train_dataset

    (run_dir / "alone").mkdir()
    alone = dataset(run_dir / "alone").to_list()
    kept = pack(run_dir)
    made = kept.stat().st_mtime_ns
    moved = run_dir.rename(run_dir.with_name("copied"))  # as to another machine
    trained_on = dataset(moved, moved)
    assert trained_on.to_list() == alone
    assert [Path(file["filename"]).name for file in trained_on.cache_files] == [kept.name]
    assert (moved / kept.relative_to(run_dir)).stat().st_mtime_ns == made
