"""Killed, on a full disk or without its folder, a command ends with equal answers when it is given again.

Model servers are stand-ins on loopback whose replies follow from the seeds that they are sent.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from functools import cache

import pytest
from conftest import AIMO, TINY, aimo, here, wait_for
from model_server import standing

from aimo.inference.storage import read_lines, write_lines

ALL = ["solve", "evaluate", "distil"]
FILES = {"solve": "a.journal.jsonl", "evaluate": "zero.jsonl", "distil": "out.jsonl"}
NEVER = 10**9


class Model:
    """Counts requests and does `what` at the one with the number `at`."""

    def __init__(self):
        self.one_at_a_time = threading.Lock()
        self.be_quiet()

    def be_quiet(self):
        self.do(None, NEVER, 0.0)

    def do(self, what, at, pause=0.01):
        self.asked, self.at, self.what, self.pause = 0, at, what, pause

    def behave(self, body, _):
        with self.one_at_a_time:  # all wait for what is done
            self.asked += 1
            if self.asked == self.at:
                self.what()
        time.sleep(self.pause)
        text = f"<SOLUTION>{body['seed'] % 3}</SOLUTION>"
        if "messages" in body:
            choice = {"message": {"content": text}, "finish_reason": "stop"}
            return {"model": "m", "choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
        choice = {"text": text, "token_ids": [5] * 7, "finish_reason": "stop"}
        return f"data: {json.dumps({'choices': [choice]})}\n\n"


@pytest.fixture(scope="module")
def model():
    stand_in = Model()
    with standing(stand_in.behave) as stand:
        stand_in.url = stand.url
        yield stand_in


@pytest.fixture(autouse=True)
def as_it_was(model):
    """No trap of another test, and the process's own handler of SIGTERM."""
    model.be_quiet()
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Eight problems as a test file and as a benchmark."""
    folder = tmp_path_factory.mktemp("inputs")
    rows = [{"id": f"q{i}", "problem": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(8)]
    write_lines(folder / "zero.jsonl", rows)
    lines = "".join(f"{row['id']},{row['problem']}\n" for row in rows)
    (folder / "test.csv").write_text(f"id,problem\n{lines}")
    (folder / "folder.csv").mkdir()
    return folder


@pytest.fixture(scope="module")
def command(inputs, model):
    """A command that writes into a folder."""

    def command(name, folder):
        problems, out, csv = inputs / "zero.jsonl", folder / "out.jsonl", folder / "a.csv"
        asked = {
            "solve": ["--model", TINY, "--test", inputs / "test.csv", "--out", csv, "--samples", 3],
            "evaluate": [TINY, "--benchmarks", problems, "--run-dir", folder, "--samples", 3],
            "distil": ["--dataset-name", problems, "--output-file", out, "--num-generations", 3],
        }[name]
        server = ["--api-addr" if name == "distil" else "--server", model.url]
        return [name, *map(str, [*asked, *server])]

    return command


def result(name, folder):
    """What a command has found, without times."""
    if name == "solve":
        return (folder / "a.csv").read_text()
    if name == "distil":
        return sorted((row["problem"], row["sample"], row["generation"]) for row in samples(name, folder))
    figures = json.loads((folder / "evaluation.json").read_text())["benchmarks"]["zero"]
    return {key: value for key, value in figures.items() if key != "seconds"}


def samples(name, folder):
    """The samples that are kept: each once, all lines whole."""
    others = {"journal", "evaluation"} | ({"answer"} if name == "solve" else set())
    rows = [row for row in read_lines(folder / FILES[name]) if not others & {*row}]
    if name == "solve":
        names = [(row["id"], row["sample"]["index"]) for row in rows if row["sample"]["end"] != "stopped"]
    else:
        names = [(row.get("id", row.get("problem")), row.get("index", row.get("sample"))) for row in rows]
    assert len(names) == len(set(names)), "a sample is there twice"
    return rows


def run(arguments):
    """A command in this process: its exit code, and its error, which is one line of ours."""
    done = here(*arguments)
    err = [line for line in done.stderr.splitlines() if line.startswith(("aimo:", "Trace"))]
    assert len(err) == bool(done.returncode), err
    return done.returncode, "".join(err)


@pytest.fixture(scope="module")
def right(command, tmp_path_factory):
    """What each command finds when nothing happens to it."""

    @cache
    def right(name):
        folder = tmp_path_factory.mktemp(name)
        assert run(command(name, folder))[0] == 0
        return result(name, folder)

    return right


@pytest.fixture
def fails(command, right):
    """Run a command to which something happens, and again when it is over; returns what it said first."""

    def fails(name, folder, what=contextlib.nullcontext(), after=lambda: None):  # noqa: B008
        right(name)
        with what:
            code, err = run(command(name, folder))
        assert code == 2
        kept = samples(name, folder) if folder.exists() else []
        after()
        assert run(command(name, folder))[0] == 0 and result(name, folder) == right(name)
        assert all(row in samples(name, folder) for row in kept)
        return err

    return fails


@pytest.mark.parametrize("name", ALL)
def test_sigterm_ends_a_command_in_one_line_and_the_same_command_continues(
    name, model, tmp_path, fails, right
):
    right(name)
    model.do(lambda: os.kill(os.getpid(), signal.SIGTERM), at=9)
    err = fails(name, tmp_path, after=model.be_quiet)
    assert "interrupted" in err and "same command again" in err


@pytest.mark.parametrize("name", ALL)
def test_a_removed_folder_is_told_in_one_line_and_the_same_command_begins_again(
    name, model, tmp_path, fails, right
):
    right(name)
    folder, asked = tmp_path / "deep" / "folder", []
    model.do(lambda: shutil.rmtree(folder), at=7)
    err = fails(name, folder, after=lambda: (asked.append(model.asked), model.be_quiet()))
    assert "it was removed" in err and "run the same command again" in err
    assert name != "solve" or asked[0] < 12, "it went on though nothing was kept"


@pytest.fixture
def full_disk(tmp_path):
    """A folder on a disk of so many bytes, and how to make room."""
    folder, mounted = tmp_path / "disk", []
    folder.mkdir()

    def fill(size):
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(mount, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield fill
    for one in mounted:
        subprocess.run(["umount", "-l", str(one)], check=True)


def remount(folder, option):
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


@pytest.mark.parametrize("name", ALL)
def test_a_full_disk_is_told_in_one_line_and_the_same_command_continues(name, full_disk, fails):
    folder = full_disk(8192)
    err = fails(name, folder, after=lambda: remount(folder, "size=16m"))
    assert "No space left on device" in err and "make room" in err and len(samples(name, folder)) == 24


@pytest.mark.parametrize("name", ["solve", "evaluate"])
def test_a_read_only_folder_is_refused_before_a_model_is_asked(name, model, full_disk, command):
    folder = full_disk("16m")
    remount(folder, "ro")
    code, err = run(command(name, folder))
    assert code == 2 and "Read-only file system; take another" in err and not model.asked


@pytest.mark.parametrize(
    "out, told",
    [
        ("/proc/a.csv", "No such file or directory; take another --out"),
        ("{inputs}/folder.csv", "is a folder"),
        ("{inputs}/../{inputs.name}/test.csv", "it is the file of --test"),
        ("{inputs}/a", "a .csv or a .parquet file"),
    ],
)
def test_an_out_that_cannot_be_is_refused_before_a_model_is_asked(
    out, told, inputs, model, tmp_path, command
):
    arguments = command("solve", tmp_path)
    arguments[arguments.index("--out") + 1] = out.format(inputs=inputs)
    before = (inputs / "test.csv").read_bytes()
    code, err = run(arguments)
    assert code == 2 and told in err and not model.asked and (inputs / "test.csv").read_bytes() == before


@pytest.mark.slow  # starts the commands as processes
@pytest.mark.parametrize("name", ALL)
def test_a_second_command_with_the_same_output_is_refused_while_the_first_works(
    name, model, tmp_path, command, right
):
    right(name)
    arguments, said = command(name, tmp_path), []
    model.do(lambda: said.append(aimo(*arguments, timeout=60)), at=3, pause=0.0)
    assert run(arguments)[0] == 0
    wait_for(lambda: said)
    (other,) = said
    assert other.returncode == 2 and other.stderr.count("\n") == 1 and "process" in other.stderr
    assert result(name, tmp_path) == right(name)


def test_another_model_is_told_by_its_content_and_what_was_found_is_kept(model, tmp_path, command):
    arguments = command("solve", tmp_path)
    assert run(arguments)[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    copy = shutil.copytree(TINY, tmp_path.with_name("copy") / TINY.name)
    asked = model.asked
    moved = [str(copy) if part == str(TINY) else part for part in arguments]
    assert run(moved)[0] == 0 and model.asked == asked, "a copy of the model is the same model"
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    code, err = run(moved)
    assert code == 2 and "weights was" in err and "take another --out" in err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def start(arguments):
    command = [str(AIMO), *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow  # starts the commands again and again
@pytest.mark.parametrize("name", ALL)
def test_a_command_killed_at_random_moments_ends_with_equal_answers(name, model, tmp_path, command, right):
    expected, moments = right(name), random.Random(name)
    arguments = command(name, tmp_path)
    for _ in range(2):
        model.do(None, NEVER, pause=0.05)
        process, wanted = start(arguments), moments.randint(1, 12)
        wait_for(lambda p=process, n=wanted: model.asked >= n or p.poll() is not None)
        time.sleep(0.05 * moments.random())
        process.kill()
        _, err = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGKILL) and err == ""
    assert run(arguments)[0] == 0
    assert result(name, tmp_path) == expected and len(samples(name, tmp_path)) == 24


@pytest.mark.slow  # a run's first stage, as a process
def test_a_run_that_is_hit_in_a_stage_ends_in_one_line_and_the_same_command_makes_equal_rows(
    full_disk, tmp_path
):
    data = ["--profile", "tiny", "--until", "data", "--set", "data.sft.rows=100"]
    assert aimo("run", *data, "--run-dir", str(tmp_path / "right")).returncode == 0
    disk = full_disk("99m")
    arguments = ["run", *data, "--run-dir", str(disk / "run")]
    for what in ("removed", "full"):
        process = start(arguments)
        wait_for(lambda: (disk / "run/notebooks").exists(), 60)
        if what == "removed":
            shutil.rmtree(disk / "run", ignore_errors=True)
        else:
            with (disk / "rest").open("wb", 0) as rest, contextlib.suppress(OSError):
                while True:
                    rest.write(bytes(1 << 16))
        err = process.communicate(timeout=120)[1]
        assert process.returncode and err.startswith("aimo: ") and err.count("\n") == 1, err
    (disk / "rest").unlink()
    assert aimo(*arguments).returncode == 0
    for name in ("sft", "grpo", "heldout"):
        made, wanted = (folder / f"data/{name}.parquet" for folder in (disk / "run", tmp_path / "right"))
        assert made.read_bytes() == wanted.read_bytes()
