"""One real pass of the whole road, with few steps: both backends, killed and resumed, reported, and asked again."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import nbformat
import papermill
import polars as pl
import pytest
from conftest import AIMO, SMALL, aimo, settings

from aimo.config import ROOT
from aimo.runs import read_lines


def wait_for(condition, timeout=300):
    """Wait until a condition holds."""
    end = time.time() + timeout
    while not condition():
        assert time.time() < end, "timed out"
        time.sleep(0.2)


def train_steps(folder: Path) -> list[int]:
    return [record["step"] for record in read_lines(folder / "log.jsonl") if "loss" in record]


@pytest.fixture(scope="module")
def road(tmp_path_factory) -> Path:
    """A run killed with -9 in the middle of GRPO, then started again to its end."""
    folder = tmp_path_factory.mktemp("road") / "run"
    command = [str(AIMO), "run", "--profile", "tiny", "--run-dir", str(folder), *settings(SMALL)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(lambda: list(folder.glob("grpo/checkpoint-2/trainer_state.json")) or process.poll() is not None)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (folder / "before.json").write_text(
        json.dumps({"sft": os.stat(folder / "sft/model/model.safetensors").st_mtime_ns})
    )
    assert not (folder / "grpo/model").exists()
    done = aimo("run", "--profile", "tiny", "--run-dir", str(folder), *settings(SMALL))
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    (folder / "stderr.txt").write_text(done.stderr)
    return folder


def test_a_killed_run_goes_on_and_keeps_what_was_finished(road):
    said = (road / "stdout.txt").read_text()
    assert "sft: finished before, kept" in said and "grpo: finished in" in said
    assert (
        json.loads((road / "before.json").read_text())["sft"]
        == os.stat(road / "sft/model/model.safetensors").st_mtime_ns
    )
    assert train_steps(road / "grpo") == [1, 2, 3, 4], "a step was lost or trained twice"


def test_nothing_but_the_run_itself_is_said(road):
    assert (road / "stderr.txt").read_text() == ""
    for path in (road / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, 4).cells:
            for output in cell.get("outputs", []):
                assert output.get("name") != "stderr", f"{path.name}: {output.text[:300]}"


def test_metrics_have_the_figures_of_each_model_and_the_seconds_of_each_stage(road):
    stages = json.loads((road / "metrics.json").read_text())["stages"]
    for name in ("base", "sft", "grpo"):
        assert {"format", "pass@1", "maj@4", "mean_tokens"} <= set(stages[name])
        assert 0 <= stages[name]["pass@1"] <= 1 and stages[name]["mean_tokens"] > 3
    assert all(stages[name]["seconds"] > 0 for name in ("data", "sft", "grpo", "inference"))


def test_every_stage_leaves_its_notebook_its_page_and_its_product(road):
    for stem in ("01_data_prep", "02_format_sft", "03_grpo", "04_inference"):
        assert (road / "notebooks" / f"{stem}.ipynb").exists()
        assert "<img" in (road / "notebooks" / f"{stem}.html").read_text() or stem == "01_data_prep"
    for stage in ("sft", "grpo"):
        assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "aimo.json"} <= {
            p.name for p in (road / stage / "model").iterdir()
        }
    table = pl.read_parquet(road / "submission.parquet")
    assert (
        table.columns == ["id", "answer"] and len(table) == 4 and table["answer"].is_between(0, 99999).all()
    )


def test_the_report_is_one_page_that_needs_nothing_else(road):
    page = (road / "report.html").read_text()
    assert not re.search(r"(src|href)=['\"](?!data:)", page)
    for part in (
        "after format SFT",
        "after GRPO",
        "Before and after",
        "The test file",
        "Settings",
        "Versions",
        "num_generations: 4",
    ):
        assert part in page
    assert page.count("data:image/png") >= 4


def test_a_finished_run_is_kept_and_a_changed_profile_is_refused_with_the_keys(road):
    before = (road / "metrics.json").read_bytes()
    again = aimo("run", "--profile", "tiny", "--run-dir", str(road), *settings(SMALL))
    assert again.returncode == 0 and again.stdout.count("finished before, kept") == 4
    changed = aimo(
        "run", "--profile", "tiny", "--run-dir", str(road), *settings(SMALL), "--set", "grpo.max_steps=5"
    )
    assert (
        changed.returncode == 2
        and "grpo.max_steps (was 4, now 5)" in changed.stderr
        and "--from" in changed.stderr
    )
    assert changed.stderr.count("\n") == 1 and (road / "metrics.json").read_bytes() == before


def test_another_test_file_is_answered_from_the_last_stage_on(road, shared):
    for competition, high in (("aimo2", 999), ("aimo3", 99999)):
        test = str(shared / competition / "reference.csv")
        done = aimo(
            "run",
            "--profile",
            "tiny",
            "--run-dir",
            str(road),
            *settings(SMALL),
            "--from",
            "inference",
            "--test",
            test,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("finished before, kept") == 3
        table = pl.read_parquet(road / "submission.parquet")
        assert (
            sorted(table["id"]) == sorted(pl.read_csv(test, infer_schema=False)["id"])
            and table["answer"].is_between(0, high).all()
        )
        golds = dict(pl.read_csv(test, infer_schema=False).select("id", "answer").rows())
        right = sum(int(golds[i]) == answer for i, answer in table.rows())
        assert f"10 questions: {right} of 10 known answers right" in (road / "report.html").read_text()


@pytest.mark.parametrize("lora", ["null", "{rank: 8, alpha: 16}"])
def test_the_transformers_backend_trains_full_weights_and_adapters_into_a_model_that_vllm_loads(
    road, tmp_path, lora
):
    folder = tmp_path / "run"
    shutil.copytree(road / "data", folder / "data")
    extra = ["model.backend=transformers", f"model.lora={lora}", "inference.max_tokens=40"]
    arguments = {"profile": "tiny", "run_dir": str(folder), "overrides": SMALL + extra}
    for stem in ("02_format_sft", "03_grpo", "04_inference"):
        papermill.execute_notebook(
            ROOT / "notebooks" / f"{stem}.ipynb",
            tmp_path / f"{stem}.ipynb",
            arguments,
            cwd=ROOT / "notebooks",
            progress_bar=False,
        )
    assert len(pl.read_parquet(folder / "submission.parquet")) == 4
    base, trained = (
        (ROOT / "data/tiny-base/model.safetensors").read_bytes(),
        (folder / "sft/model/model.safetensors").read_bytes(),
    )
    assert base != trained and abs(len(base) - len(trained)) < 5000, "not a plain, merged model"


@pytest.mark.parametrize(
    "stem, stage", [("02_format_sft", "data"), ("03_grpo", "data"), ("04_inference", "data")]
)
def test_a_notebook_started_too_early_names_the_missing_stage_and_the_command(tmp_path, stem, stage):
    with pytest.raises(papermill.PapermillExecutionError) as e:
        papermill.execute_notebook(
            ROOT / "notebooks" / f"{stem}.ipynb",
            tmp_path / "out.ipynb",
            {"run_dir": str(tmp_path / "run")},
            cwd=tmp_path,
            progress_bar=False,
        )
    assert e.value.ename == "AimoError"
    assert f"which stage {stage} makes" in e.value.evalue and "aimo run --profile tiny" in e.value.evalue
