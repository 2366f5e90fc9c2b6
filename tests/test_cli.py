import shutil
import signal
import subprocess
import time

import polars as pl
import pytest
from conftest import AIMO, SMALL, TINY, aimo, settings


def refused(*arguments: str, told: list[str]) -> None:
    """The command ends with 2 and one line that holds all of `told`."""
    done = aimo(*arguments)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stderr.startswith("aimo: ") and done.stderr.count("\n") == 1, done.stderr
    for part in told:
        assert part in done.stderr


@pytest.mark.parametrize(
    "extra, told",
    [
        (["--profile", "nano"], ["'nano'", "tiny"]),
        (["--profile", "tiny", "--set", "grpo.max_stepz=5"], ["grpo.max_stepz", "max_steps"]),
        (["--profile", "tiny", "--from", "train"], ["'train'", "data, sft, grpo, dpo, inference"]),
        (["--profile", "tiny", "--test", "none.csv"], ["none.csv", "does not exist"]),
        (["--profile", "tiny", "--set", "inference.test=none.csv"], ["none.csv", "does not exist"]),
    ],
)
def test_a_bad_run_is_refused_before_anything_is_made(tmp_path, extra, told):
    folder = tmp_path / "run"
    refused("run", "--run-dir", str(folder), *extra, told=told)
    assert not folder.exists()


def test_an_unwritable_run_folder_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("")
    refused(
        "run", "--profile", "tiny", "--run-dir", str(tmp_path / "file" / "run"), told=[str(tmp_path / "file")]
    )


@pytest.mark.parametrize(
    "missing, told",
    [
        ("model.safetensors", "weights"),
        ("tokenizer.json", "tokenizer"),
        ("config.json", "config.json"),
        (None, "no such folder"),
    ],
)
def test_a_model_folder_that_is_not_whole_is_refused_by_name(tmp_path, missing, told):
    model = tmp_path / "model"
    if missing:
        shutil.copytree(TINY, model)
        (model / missing).unlink()
    (tmp_path / "t.csv").write_text("id,problem\n1,x\n")
    refused(
        "solve",
        "--model",
        str(model),
        "--test",
        str(tmp_path / "t.csv"),
        "--out",
        str(tmp_path / "o.csv"),
        told=[str(model), told],
    )


def test_solve_answers_a_csv_with_fallbacks_reported(tmp_path):
    (tmp_path / "t.csv").write_text(
        'id,question\nfirst,"What is the mean of 3, 4 and 5?"\nempty,\nlong,' + "x + " * 2000 + "\n"
    )
    for out in ("o.csv", "o.parquet"):
        done = aimo(
            "solve",
            "--model",
            str(TINY),
            "--test",
            str(tmp_path / "t.csv"),
            "--out",
            str(tmp_path / out),
            "--samples",
            "4",
        )
        assert done.returncode == 0, done.stderr
        assert (
            "3 questions answered, 2 with the fallback 0" in done.stdout
            and "the problem is empty" in done.stdout
        )
        table = pl.read_csv(tmp_path / out) if out.endswith("csv") else pl.read_parquet(tmp_path / out)
        assert sorted(table["id"]) == ["empty", "first", "long"] and table["answer"].is_between(0, 999).all()
        assert done.stderr == ""
    refused(
        "solve",
        "--model",
        str(TINY),
        "--test",
        str(tmp_path / "t.csv"),
        "--out",
        str(tmp_path / "o.txt"),
        told=["o.txt", ".parquet"],
    )


def test_ctrl_c_ends_a_run_in_one_line_and_leaves_no_process_behind(tmp_path):
    folder = tmp_path / "run"
    command = [
        str(AIMO),
        "run",
        "--profile",
        "tiny",
        "--run-dir",
        str(folder),
        *settings([*SMALL, "sft.max_steps=4000", "sft.save_steps=5"]),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.time() + 300
    while (
        not list(folder.glob("sft/checkpoint-*/trainer_state.json"))
        and time.time() < end
        and process.poll() is None
    ):
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2 and stderr == "aimo: interrupted; run the same command again to go on\n", (
        stderr
    )
    assert list(folder.glob("sft/checkpoint-*"))
    time.sleep(2)
    assert (
        str(folder) not in subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True).stdout
    )


def test_the_doctor_finds_every_package_at_the_version_of_the_lock(monkeypatch):
    done = aimo("doctor")
    for package in ("torch", "vllm", "unsloth", "math-verify", "papermill", "kaggle", "device", "tiny base"):
        assert package in done.stdout
    assert done.returncode == 0, done.stdout


def test_an_unknown_kernel_is_refused_with_the_known_ones():
    refused("kernel", "build", "sub", told=["'sub'", "submission"])
