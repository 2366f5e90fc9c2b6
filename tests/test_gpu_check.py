"""`make gpu-check`: every profile has a row, a crash costs one row, and a CPU runs the same commands."""

import importlib.util
import json
import subprocess
import sys
import time

import pytest
import typer
from conftest import ROOT

from aimo import config

SCRIPT = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    """The benchmark as a module."""
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


def listed(gpu, work, here):
    makers = (gpu.others, gpu.backends, gpu.profiles, gpu.launches)
    return {check.name: check for make in makers for check in make(work, here)}


@pytest.mark.parametrize("machine", [(0, 0, True), (1, 15, False), (1, 80, True), (8, 80, True)])
def test_every_profile_has_a_row_on_every_machine_and_what_is_left_out_says_why(gpu, tmp_path, machine):
    checks = listed(gpu, tmp_path, gpu.Here(*machine))
    for path in config.PROFILES.glob("*.yaml"):
        own = config.load(path.stem).model.base.startswith("data/")
        assert own or f"profile-{path.stem}" in checks
    assert all(check.commands or check.lacks for check in checks.values())
    left = {name for name, check in checks.items() if check.lacks}
    assert ("unsloth-4bit" in left) == (machine[0] == 0)
    assert ("unsloth-bf16" in left) == (not machine[2])
    assert ("vllm-server" in left) == ("launch-fsdp" in left) == (machine[0] < 2)


def test_what_a_machine_cannot_run_is_replaced_and_told(gpu, tmp_path):
    on_cpu = listed(gpu, tmp_path, gpu.Here(0))["profile-kaggle-t4"]
    assert "model.load_in_4bit=false" in on_cpu.note and "model.dtype=auto" in on_cpu.note
    on_gpu = listed(gpu, tmp_path, gpu.Here(1, 80))["profile-kaggle-t4"]
    assert on_gpu.profile.model.load_in_4bit and on_gpu.profile.model.dtype == "float16" and not on_gpu.note


def python(code):
    return [sys.executable, "-c", code]


def test_a_crash_costs_one_row_with_its_last_line_and_the_exit_code(gpu, tmp_path, monkeypatch):
    checks = [
        gpu.Check("aborts", [python("import os; os.abort()"), python("raise SystemError('never reached')")]),
        gpu.Check("raises", [python("print('x'); raise ValueError('the cause') from KeyError('y')")]),
        gpu.Check("passes", [python("pass")], look=lambda: {"tokens/s": 12.5}),
        gpu.Check("left out", [], "needs a GPU"),
    ]
    monkeypatch.setattr(gpu, "others", lambda *_: checks)
    for rest in ("backends", "profiles", "launches"):
        monkeypatch.setattr(gpu, rest, lambda *_: [])
    with pytest.raises(typer.Exit) as ended:
        gpu.main(run_dir=tmp_path, to=tmp_path / "copy.json")
    assert ended.value.exit_code == 1
    result = json.loads((tmp_path / "copy.json").read_text())
    assert result["headline"] == "2 failed, 1 passed, 1 skipped"
    rows = {row["name"]: row for row in result["checks"]}
    assert rows["raises"]["note"] == "ValueError: the cause" and rows["left out"]["note"] == "needs a GPU"
    assert rows["passes"]["figures"] == {"tokens/s": 12.5}
    page = (tmp_path / "gpu-check.html").read_text()
    assert all(text in page for text in ("aborts", "ValueError: the cause", "tokens/s 12.5", "needs a GPU"))
    assert "never reached" not in page


def test_a_check_that_hangs_is_ended_with_what_it_started(gpu, tmp_path):
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(601.5)'])"
    begun = time.monotonic()
    told = gpu.error_of(python(child), tmp_path / "hangs.log", tmp_path, gpu.Here(0), 1.0)
    assert told == "not done after 1 s" and time.monotonic() - begun < 60
    left = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True).stdout
    assert "time.sleep(601.5)" not in left


def test_without_time_a_check_is_skipped_and_says_how_to_run_it(gpu, tmp_path):
    check = gpu.Check("late", [python("pass")])
    gpu.run(check, tmp_path, tmp_path, gpu.Here(0), time.monotonic())
    assert check.state == "skipped" and "--only late" in check.note


@pytest.mark.train
def test_on_a_cpu_a_model_is_trained_merged_and_compared_by_the_same_commands(tmp_path):
    command = [sys.executable, str(SCRIPT), "--only", "merge", "--run-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "gpu-check.json").read_text())["checks"]
    assert row["state"] == "passed" and row["figures"]["sft tokens/s"] > 0
