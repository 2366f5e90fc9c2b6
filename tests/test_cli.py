"""The command line: one line for a mistake, an exit code for each kind of failure, no process left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib import metadata
from types import SimpleNamespace

import psutil
import pytest
from conftest import AIMO, SMALL, TINY, aimo, here, left_of, refused, settings, wait_for


@pytest.mark.parametrize(
    "extra, told",
    [
        (["--profile", "nano"], ["'nano'", "tiny"]),
        (["--profile", "tiny", "--set", "grpo.max_stepz=5"], ["grpo.max_stepz", "max_steps"]),
        (["--profile", "tiny", "--from", "train"], ["'train'", "data, sft, grpo, inference"]),
        (["--profile", "tiny", "--from", "dpo"], ["'dpo'", "data, sft, grpo, inference"]),
        (["--profile", "tiny", "--until", "train"], ["--until 'train'", "data, sft, grpo, inference"]),
        (["--profile", "tiny", "--from", "grpo", "--until", "sft"], ["--until 'sft'", "--from 'grpo'"]),
        (["--profile", "tiny", "--from", "sft/checkpoint-3"], ["sft/checkpoint-3", "there are: none"]),
        (["--profile", "tiny", "--test", "none.csv"], ["none.csv", "does not exist"]),
        (["--profile", "tiny", "--set", "inference.test=none.csv"], ["none.csv", "does not exist"]),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path, extra, told):
    folder = tmp_path / "run"
    refused("run", "--run-dir", str(folder), *extra, told=told)
    assert not folder.exists()


def test_an_unwritable_folder_is_refused_by_name_before_anything_is_computed(tmp_path):
    (tmp_path / "file").write_text("")
    folder = str(tmp_path / "file" / "run")
    refused("run", "--profile", "tiny", "--run-dir", folder, told=[folder, "--run-dir"])


def test_the_version_and_a_page_of_help_for_users_are_printed():
    assert here("--version").stdout == f"aimo {metadata.version('aimo')}\n"
    page = here("--help").stdout
    assert all(part in page for part in ("aimo run --profile tiny", "solve", "doctor", "Exit codes"))
    wrong = aimo("run", "--profile", "nano")
    assert wrong.returncode == 2 and wrong.stderr.startswith("aimo: profile 'nano' does not exist")


def test_a_model_folder_is_checked_before_it_is_loaded(tmp_path):
    refused("solve", "--model", tmp_path / "none", "6 x 7", told=[str(tmp_path / "none"), "no such folder"])


def below(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes that a command has started."""
    return psutil.Process(process.pid).children(recursive=True)


def end_of(process: subprocess.Popen, started: list[psutil.Process]) -> dict:
    """How a command ended, and which of the processes it had started are left 10 s later."""
    _, stderr = process.communicate(timeout=120)
    return {"code": process.returncode, "stderr": stderr, "left": left_of(started, 10)}


INTERRUPTED = "aimo: interrupted; run the same command again to continue\n"


@pytest.mark.train
def test_a_long_run_is_refused_beside_itself_names_the_signal_that_killed_it_and_ends_at_ctrl_c(tmp_path):
    folder = tmp_path / "run"
    quick = ["model.backend=transformers", "data.grpo.rows=20", "grpo.probe_steps=null"]
    long = settings([*SMALL, "sft.max_steps=4000", "sft.save_steps=5", *quick])
    command = [str(AIMO), "run", "--profile", "tiny", "--run-dir", str(folder), *long]

    def newest() -> int:
        written = folder.glob("sft/checkpoint-*/trainer_state.json")
        return max((int(path.parent.name.split("-")[1]) for path in written), default=0)

    def start() -> tuple[subprocess.Popen, list[psutil.Process]]:
        before = newest()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: newest() > before or process.poll() is not None)
        return process, below(process)

    first, started = start()
    second = aimo(*command[1:])
    assert second.returncode == 2 and second.stderr.count("\n") == 1
    assert all(part in second.stderr for part in (str(folder), f"process {first.pid}", "--run-dir"))
    kernel = next(one for one in started if "ipykernel_launcher" in one.cmdline())
    kernel.send_signal(signal.SIGFPE)
    killed = end_of(first, started)
    assert killed["code"] == 1 and killed["stderr"].count("\n") == 1 and killed["left"] == []
    told = ("stage sft", "sigfpe", "model.dtype", "run again", "02_format_sft.log")
    assert all(part in killed["stderr"].lower() for part in told)
    first, started = start()
    first.send_signal(signal.SIGINT)
    assert end_of(first, started) == {"code": 2, "stderr": INTERRUPTED, "left": []}


@pytest.mark.engine
def test_sigterm_during_inference_ends_a_run_in_one_line_and_leaves_no_process_behind(tmp_path):
    profile, folder = tmp_path / "alone.yaml", tmp_path / "run"
    profile.write_text(json.dumps({"model": {"base": str(TINY)}, "inference": {"test_rows": 3000}}))
    command = [str(AIMO), "run", "--profile", str(profile), "--run-dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (folder / "submission.settings.json").exists() or process.poll() is not None)
    time.sleep(2)
    started = below(process)
    process.send_signal(signal.SIGTERM)
    assert end_of(process, started) == {"code": 2, "stderr": INTERRUPTED, "left": []}


def test_help_lists_every_command_and_loads_no_library_that_takes_a_second():
    code = "import inspect, sys; from aimo.commands.run import app; inspect.stack(); heavy = sys.argv.pop()\n"
    code += "try: app()\nfinally: print({name.partition('.')[0] for name in sys.modules} & {*heavy.split()})"
    heavy = "torch transformers vllm trl datasets matplotlib IPython openai kaggle papermill nbconvert"
    command = [sys.executable, "-c", code, "--help", heavy]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    commands = (
        "run launch solve serve init distil reject replay forecast evaluate compare doctor kernel kaggle"
    )
    assert not [name for name in commands.split() if f" {name} " not in shown]
    assert shown.endswith("set()\n"), shown[-200:]


def test_a_late_module_runs_at_its_first_use_once_and_again_after_an_interrupt(tmp_path, monkeypatch):
    package = tmp_path / "tardy"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from aimo import load_late\nload_late(__name__, 'one', 'two', 'lacking')"
    )
    (package / "one.py").write_text("import runs\nruns.count()\nvalue = 7")
    (package / "two.py").write_text("value, other = 7, 8")
    counted = []

    def count():
        counted.append(1)
        if len(counted) == 1:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "runs", SimpleNamespace(count=count))
    monkeypatch.syspath_prepend(tmp_path)
    from tardy import one

    assert not counted and not hasattr(one, "__path__") and one.__name__ == "tardy.one"
    with pytest.raises(KeyboardInterrupt):
        _ = one.value
    from tardy.one import value

    assert value == one.value == 7 and len(counted) == 2
    from tardy import two

    two.value = 9  # what is set before the first use stays
    assert (two.value, two.other) == (9, 8)
    with pytest.raises(ImportError):
        from tardy import lacking  # noqa: F401
    for name in ("tardy", "tardy.one", "tardy.two"):
        del sys.modules[name]


@pytest.mark.slow  # imports every package
def test_the_doctor_finds_every_package_at_the_version_of_the_lock():
    done = aimo("doctor")
    for package in ("torch", "vllm", "unsloth", "math-verify", "papermill", "kaggle", "device", "tiny base"):
        assert package in done.stdout
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("value, shown", [("0", 0), ("1", 2)])
def test_what_libraries_write_is_shown_where_aimo_verbose_asks_for_it_and_a_users_own_always(value, shown):
    code = "import gc; before = gc.get_threshold(); import aimo.commands.run; import logging, warnings; "
    code += "assert gc.get_threshold() == before, 'of whoever imports aimo'; "
    code += "from aimo.run.runs import quiet; quiet(); logging.basicConfig(); "
    code += "warnings.warn('own'); logging.getLogger('mine').warning('own'); "
    code += "warnings.warn_explicit('notice', UserWarning, 'a.py', 1, module='torch.nn'); "
    code += "logging.getLogger('vllm.config').warning('notice')"
    command, env = [sys.executable, "-c", code], os.environ | {"AIMO_VERBOSE": value}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stderr.count(": notice") + done.stderr.count("config:notice") == shown
    assert done.stderr.count(": own") + done.stderr.count("mine:own") == 2
