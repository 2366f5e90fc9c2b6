"""The command line: one line for a mistake, an exit code for each kind of failure, no process left behind."""

import os
import signal
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import psutil
import pytest
from conftest import AIMO, SMALL, aimo, here, left_of, refused, settings, wait_for


@pytest.mark.parametrize(
    "extra, told",
    [
        (["--profile", "nano"], ["'nano'", "tiny"]),
        (["--profile", "tiny", "--set", "grpo.max_stepz=5"], ["grpo.max_stepz", "max_steps"]),
        (["--profile", "tiny", "--from", "dpo"], ["'dpo'", "data, sft, grpo, inference"]),
        (["--profile", "tiny", "--from", "grpo", "--until", "sft"], ["--until 'sft'", "--from 'grpo'"]),
        (["--profile", "tiny", "--from", "sft/checkpoint-3"], ["sft/checkpoint-3", "there are: none"]),
        (["--profile", "tiny", "--test", "none.csv"], ["none.csv", "does not exist"]),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path, extra, told):
    folder = tmp_path / "run"
    refused("run", "--run-dir", str(folder), *extra, told=told)
    assert not folder.exists()
    folder.write_text("")
    refused("run", "--profile", "tiny", "--run-dir", f"{folder}/run", told=[str(folder), "--run-dir"])


def test_the_version_is_printed_and_a_mistake_is_one_line_of_the_console_script():
    assert here("--version").stdout == f"aimo {metadata.version('aimo')}\n"
    wrong = aimo("run", "--profile", "nano")
    assert wrong.returncode == 2 and wrong.stderr.startswith("aimo: profile 'nano' does not exist")


@pytest.mark.train
def test_a_long_run_is_refused_beside_itself_names_the_signal_that_killed_it_and_ends_at_sigterm(tmp_path):
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
        return process, psutil.Process(process.pid).children(recursive=True)

    first, started = start()
    second = aimo(*command[1:])
    assert second.returncode == 2 and second.stderr.count("\n") == 1
    assert all(part in second.stderr for part in (str(folder), f"process {first.pid}", "--run-dir"))
    kernel = next(one for one in started if "ipykernel_launcher" in one.cmdline())
    kernel.send_signal(signal.SIGFPE)
    _, killed = first.communicate(timeout=120)
    assert first.returncode == 1 and killed.count("\n") == 1 and left_of(started, 10) == []
    told = ("stage sft", "sigfpe", "model.dtype", "run again", "02_format_sft.log")
    assert all(part in killed.lower() for part in told)
    first, started = start()
    first.send_signal(signal.SIGTERM)
    _, ended = first.communicate(timeout=120)
    assert (first.returncode, ended) == (2, "aimo: interrupted; run the same command again to continue\n")
    assert left_of(started, 10) == []


def test_help_lists_every_command_and_loads_no_library_that_takes_a_second():
    code = "import inspect, sys; from aimo.commands.run import app; inspect.stack(); heavy = sys.argv.pop()\n"
    code += "try: app()\nfinally: print({name.partition('.')[0] for name in sys.modules} & {*heavy.split()})"
    heavy = "torch transformers vllm trl datasets matplotlib IPython openai kaggle papermill nbconvert"
    command = [sys.executable, "-c", code, "--help", heavy]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(part in shown for part in ("aimo run --profile tiny", "Exit codes", " evaluate ", " kaggle "))
    assert shown.endswith("set()\n"), shown[-200:]


def test_a_late_module_runs_at_its_first_use_once_and_again_after_an_interrupt(tmp_path, monkeypatch):
    package, counted = tmp_path / "tardy", []
    package.mkdir()
    (package / "__init__.py").write_text("from aimo import load_late\nload_late(__name__, 'one')")
    (package / "one.py").write_text("import runs\nruns.count()\nvalue, other = 7, 8")

    def count():
        counted.append(1)
        if len(counted) == 1:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "runs", SimpleNamespace(count=count))
    monkeypatch.syspath_prepend(tmp_path)
    from tardy import one

    assert not counted and not hasattr(one, "__path__")
    with pytest.raises(KeyboardInterrupt):
        _ = one.value
    one.value = 9  # what is set before the first use stays
    assert (one.value, one.other) == (9, 8) and len(counted) == 2
    for name in ("tardy", "tardy.one"):
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
