"""`make gpu-check`: every profile has a row, a failure costs one row, and a CPU runs the same commands."""

import errno
import importlib
import json
import os
import subprocess
import sys
import time

import pytest
import typer
from conftest import ROOT

from aimo import config

SCRIPT = ROOT / "benchmarks" / "gpu.py"
MACHINES = {
    "no GPU": (0, 0, 9.0),
    "T4": (1, 15, 7.5),
    "4090": (1, 24, 8.9),
    "A100": (1, 80, 8.0),
    "8 x H100": (8, 80, 9.0),
}


@pytest.fixture(scope="module")
def gpu():
    """The benchmark as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        yield importlib.import_module("gpu")


def listed(gpu, work, machine):
    here = gpu.Here(*MACHINES[machine])
    return {check.name: check for make in gpu.MAKERS for check in make(work, here)}


@pytest.mark.parametrize("machine", MACHINES)
def test_every_profile_has_a_row_that_makes_a_step_and_what_is_left_out_or_replaced_says_why(
    gpu, tmp_path, machine
):
    gpus, _, capability = MACHINES[machine]
    checks = listed(gpu, tmp_path, machine)
    for path in config.PROFILES.glob("*.yaml"):
        own = config.load(path.stem).model.base.startswith("data/")
        assert own or f"profile-{path.stem}" in checks
    assert all(check.hint if check.commands else check.lacks for check in checks.values())
    first = ["unsloth-bf16", "transformers-vllm", "unsloth-vllm", "solver-speed", "submission-kernel"]
    last = [name.startswith(("profile-", "launch-", "vllm-server")) for name in checks]
    assert [*checks][:5] == first and last == sorted(last), "what most users need comes first"
    left = {name for name, check in checks.items() if check.lacks}
    assert ("unsloth-4bit" in left) == (gpus == 0) and ("unsloth-bf16" in left) == (capability < 8)
    assert ("vllm-server" in left) == ("launch-fsdp" in left) == (gpus < 2)
    assert ("profile-qwen3-30b-a3b-thinking" in left) == (gpus > 0 and capability < 8.9), "its fp8 cache"
    for check in checks.values():
        assert check.alone or not any("solve" in command for command in check.commands), "engines run alone"
        if check.profile and check.profile.grpo:
            grpo, data = check.profile.grpo, check.profile.data.grpo
            assert data.rows * (1 - data.test_split) >= grpo.prompts_per_step, check.name
            assert check.alone or grpo.generation == "transformers"
    t4 = checks["profile-kaggle-t4"]
    assert ("model.load_in_4bit=false" in t4.note and "model.dtype=auto" in t4.note) == (gpus == 0)


@pytest.mark.parametrize("machine", ["T4", "4090", "A100", "8 x H100"])
def test_what_lies_on_the_disk_at_a_time_is_little_and_what_most_need_is_done_in_ten_minutes(
    gpu, tmp_path, machine
):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    checks = [check for check in listed(gpu, tmp_path, machine).values() if not check.lacks]
    sizes = {"openai/gpt-oss-120b": 6.0, "casperhansen/deepseek-r1-distill-qwen-14b-awq": 3.5}  # quantised
    for base in {check.base for check in checks} - sizes.keys():
        sizes[base] = 0.01
        if base in gpu.CONFIGS:  # two layers of full width, in GB at two bytes for each weight
            two = gpu.CONFIGS[base] | {"num_hidden_layers": 2, "vocab_size": 32768}
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**two))
            sizes[base] = 2 * model.num_parameters() / 1e9

    def left(check):  # by each stage: the model, in float32 what was trained and the best of it, a checkpoint
        profile, bytes_each = check.profile, 0
        for stage in profile.trained if profile else ():
            saves = getattr(profile, stage).trl.get("save_strategy") != "no"
            bytes_each += 2 if profile.model.lora else 2 + 4 + 4 + 12 * saves
        return sizes[check.base] / 2 * bytes_each

    jobs, peak = gpu.Here(*MACHINES[machine]).jobs, 0.0
    for i, check in enumerate(checks):
        lie = {c.base for c in checks[: i + 1]} & {c.base for c in checks[i:]}
        side_by_side = [check] if check.alone else [c for c in checks[i : i + jobs] if not c.alone]
        peak = max(peak, sum(sizes[base] for base in lie) + sum(map(left, side_by_side)))
    assert peak < 30, f"{peak:.0f} GB"
    # A process that trains takes half a minute, mostly to import and to save; an engine a minute.
    seconds = {
        make.__name__: sum(
            30 if "aimo.train.launch" in command else 60
            for check in make(tmp_path, gpu.Here(*MACHINES[machine]))
            for command in check.commands
            if not check.lacks
        )
        for make in gpu.MAKERS
    }
    assert seconds["first"] < 600 - gpu.LEAST_S
    assert sum(seconds.values()) < 45 * 60, "docs/training.md says --minutes 45"


WAIT = "import time; time.sleep(60)"


def python(code):
    return [sys.executable, "-c", code]


def lost(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failure_costs_one_row_with_its_reason_and_the_exit_code(gpu, tmp_path, monkeypatch):
    checks = [
        gpu.Check("aborts", [python("import os; os.abort()"), python("raise SystemError('never reached')")]),
        gpu.Check("raises", [python("print('x'); raise ValueError('the cause')")], hint="another way"),
        gpu.Check("full disk", [python("pass")], look=lost),
        gpu.Check("no model", [], base="nobody/knows"),
        gpu.Check("passes", [python("open('left', 'w')")], look=lambda: {"tokens/s": 12.5}),
        gpu.Check("finds no files", [python("import os; os.path.exists('../passes') and os.abort()")]),
        gpu.Check("left out", [], "needs a GPU"),
    ]
    monkeypatch.setattr(gpu, "MAKERS", [lambda *_: checks])
    with pytest.raises(typer.Exit) as ended:
        gpu.main(run_dir=tmp_path, to=tmp_path / "copy.json")
    assert ended.value.exit_code == 1
    result = json.loads((tmp_path / "copy.json").read_text())
    assert result["headline"] == "4 failed, 2 passed, 1 skipped"
    rows = {row["name"]: row for row in result["checks"]}
    assert rows["raises"]["note"] == "ValueError: the cause; try: another way"
    assert "No space" in rows["full disk"]["note"] and "nobody/knows" in rows["no model"]["note"]
    assert rows["passes"]["figures"] == {"tokens/s": 12.5}
    page = (tmp_path / "gpu-check.html").read_text()
    assert all(text in page for text in ("aborts", "ValueError: the cause", "tokens/s 12.5", "needs a GPU"))
    assert "never reached" not in page


def test_a_check_that_hangs_is_ended_and_fails_on_the_page_which_is_printed_where_the_disk_is_full(
    gpu, tmp_path, monkeypatch
):
    sleeps = f"import time; time.sleep(601.{os.getpid()})"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleeps!r}])"
    monkeypatch.setattr(gpu, "MAKERS", [lambda *_: [gpu.Check("hangs", [python(child)])]])
    for least in "LEAST_S", "FAIR_S":
        monkeypatch.setattr(gpu, least, 0)
    with pytest.raises(typer.Exit) as ended:
        gpu.main(run_dir=tmp_path, minutes=0.02)
    assert ended.value.exit_code == 1
    assert "not done after 1 s" in (tmp_path / "gpu-check.html").read_text()
    assert sleeps not in subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True).stdout
    monkeypatch.setattr(gpu, "report", lost)
    with pytest.raises(SystemExit, match=r"(?s)not done after 1 s.*make room"):
        gpu.main(run_dir=tmp_path, minutes=0.02)


def test_what_the_end_cuts_off_is_not_judged_and_a_failed_check_stays_failed(gpu, tmp_path, monkeypatch):
    late, here = gpu.Check("late", [python("pass")]), gpu.Here(0)
    gpu.run(late, tmp_path, tmp_path, here, time.monotonic())
    assert late.state == "skipped" and "more --minutes" in late.note
    monkeypatch.setattr(gpu.Here, "jobs", 2)
    broken = gpu.Check("broken", [python("raise ValueError('x')")], alone=False)
    gpu.run_all([broken], tmp_path, tmp_path, here, (gpu.LEAST_S + 5) / 60)
    assert broken.state == "failed", "no time was left to run it again"
    monkeypatch.setattr(gpu, "LEAST_S", 0)
    long = gpu.Check("long", [python(WAIT)], hint="x")
    gpu.run(long, tmp_path, tmp_path, here, time.monotonic() + 1)
    assert long.state == "skipped" and "the time was over; take --only long" in long.note


@pytest.mark.train
def test_on_a_cpu_a_model_is_trained_merged_and_compared_by_the_same_commands(tmp_path):
    command = [sys.executable, str(SCRIPT), "--only", "merge", "--run-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "gpu-check.json").read_text())["checks"]
    assert row["state"] == "passed" and row["figures"]["sft tokens/s"] > 0
