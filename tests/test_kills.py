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

from aimo.inference.storage import SampleFile, read_lines, write_lines

ALL = ["solve", "evaluate", "distil"]
FILES = {"solve": "a.journal.jsonl", "evaluate": "zero.jsonl", "distil": "out.jsonl"}


@pytest.fixture(scope="module")
def server():
    """Counts requests, and does `what` at the one with the number `at`."""
    one_at_a_time = threading.Lock()

    def behave(body, _):
        with one_at_a_time:  # all wait for what is done
            stand.asked += 1
            if stand.asked == stand.at:
                stand.what()
        time.sleep(stand.pause)
        text = f"<SOLUTION>{body['seed'] % 3}</SOLUTION>"
        if "messages" in body:
            choice = {"message": {"content": text}, "finish_reason": "stop"}
            return {"model": "m", "choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
        choice = {"text": text, "token_ids": [5] * 7, "finish_reason": "stop"}
        return f"data: {json.dumps({'choices': [choice]})}\n\n"

    def do(what=None, at=0, pause=0.0):
        stand.asked, stand.at, stand.what, stand.pause = 0, at, what, pause

    with standing(behave) as stand:
        do()
        stand.do = do
        yield stand


@pytest.fixture
def model(server):
    """The server without a trap of another test, and the process's own handler of SIGTERM."""
    server.do()
    handler = signal.getsignal(signal.SIGTERM)
    yield server
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
def command(inputs, server):
    """A command that writes into a folder."""

    def command(name, folder):
        problems, out, csv = inputs / "zero.jsonl", folder / "out.jsonl", folder / "a.csv"
        asked = {
            "solve": ["--model", TINY, "--test", inputs / "test.csv", "--out", csv, "--samples", 3],
            "evaluate": [TINY, "--benchmarks", problems, "--run-dir", folder, "--samples", 3],
            "distil": ["--dataset-name", problems, "--output-file", out, "--num-generations", 3],
        }[name]
        return [name, *map(str, asked), "--api-addr" if name == "distil" else "--server", server.url]

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
def disk(tmp_path):
    """A folder on a disk of so many bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", "-l", folder], capture_output=True)


@pytest.mark.parametrize("what", ["SIGTERM", "folder removed", "full disk"])
@pytest.mark.parametrize("name", ALL)
def test_a_command_that_is_hit_ends_in_one_line_and_the_same_command_continues(
    name, what, model, disk, tmp_path, command, right
):
    expected, folder = right(name), tmp_path / "deep" / "folder"
    if what == "SIGTERM":
        model.do(lambda: os.kill(os.getpid(), signal.SIGTERM), at=9, pause=0.01)
        told = "interrupted", "same command again"
    elif what == "folder removed":
        model.do(lambda: shutil.rmtree(folder), at=7, pause=0.01)
        told = "it was removed", "run the same command again"
    else:
        folder, told = disk(8192), ("No space left on device", "make room")
    code, err = run(command(name, folder))
    assert code == 2 and all(part in err for part in told), err
    assert (what, name) != ("folder removed", "solve") or model.asked < 12, "it went on, with nothing kept"
    kept = samples(name, folder) if folder.exists() else []
    model.do()
    if what == "full disk":
        subprocess.run(["mount", "-o", "remount,size=16m", folder], check=True)
    assert run(command(name, folder))[0] == 0 and result(name, folder) == expected
    assert all(row in samples(name, folder) for row in kept)


@pytest.mark.parametrize("name", ALL)
def test_a_command_whose_output_another_process_writes_is_refused(name, model, tmp_path, command):
    with SampleFile(tmp_path / FILES[name], "--out"):
        code, err = run(command(name, tmp_path))
    assert code == 2 and "another process is writing to it" in err and not model.asked


@pytest.mark.parametrize(
    "out, told",
    [
        ("/proc/a.csv", "No such file or directory; take another --out"),
        ("{inputs}/folder.csv", "no folder"),
        ("{inputs}/../{inputs.name}/test.csv", "it is the file of --test"),
        ("{inputs}/a", "a .csv or a .parquet file"),
    ],
)
def test_an_out_that_cannot_be_is_refused_before_a_model_is_asked(
    out, told, inputs, model, tmp_path, command
):
    before = (inputs / "test.csv").read_bytes()
    code, err = run([*command("solve", tmp_path), "--out", out.format(inputs=inputs)])
    assert code == 2 and told in err and not model.asked and (inputs / "test.csv").read_bytes() == before


def start(arguments):
    command = [str(AIMO), *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow  # starts the commands again and again
@pytest.mark.parametrize("name", ALL)
def test_a_command_killed_at_random_moments_ends_with_equal_answers(name, model, tmp_path, command, right):
    expected, moments = right(name), random.Random(name)
    arguments = command(name, tmp_path)
    for _ in range(2):
        model.do(pause=0.05)
        process, wanted = start(arguments), moments.randint(1, 12)
        wait_for(lambda p=process, n=wanted: model.asked >= n or p.poll() is not None)
        time.sleep(0.05 * moments.random())
        process.kill()
        _, err = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGKILL) and err == ""
    assert run(arguments)[0] == 0
    assert result(name, tmp_path) == expected and len(samples(name, tmp_path)) == 24


@pytest.mark.slow  # a run's first stage, as a process
def test_a_run_on_a_full_disk_ends_in_one_line_and_the_same_command_makes_equal_rows(disk, tmp_path):
    data = ["run", "--profile", "tiny", "--until", "data", "--set", "data.sft.rows=100", "--run-dir"]
    assert aimo(*data, str(tmp_path / "right")).returncode == 0
    folder = disk("99m")
    process = start([*data, str(folder / "run")])
    wait_for((folder / "run/notebooks").exists, 60)
    with (folder / "rest").open("wb", 0) as rest, contextlib.suppress(OSError):
        while True:
            rest.write(bytes(1 << 16))
    err = process.communicate(timeout=120)[1]
    assert process.returncode and err.startswith("aimo: ") and err.count("\n") == 1, err
    (folder / "rest").unlink()
    assert aimo(*data, str(folder / "run")).returncode == 0
    for name in ("sft", "grpo", "heldout"):
        made, wanted = (run / f"data/{name}.parquet" for run in (folder / "run", tmp_path / "right"))
        assert made.read_bytes() == wanted.read_bytes()
