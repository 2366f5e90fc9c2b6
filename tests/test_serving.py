"""`aimo serve` with the tiny base: who may ask it, and how it ends."""

import fcntl
import json
import math
import shutil
import signal
import subprocess
import sys
from functools import partial

import psutil
import pytest
from conftest import AIMO, TINY, aimo, left_of, wait_for
from model_server import standing
from test_opd import train_student

from aimo.inference import vllm_process
from aimo.inference.answers import Integer
from aimo.inference.errors import AimoError, EngineError
from aimo.inference.model_folder import read_tokenizer
from aimo.inference.server import Server
from aimo.inference.settings import resolve_settings
from aimo.inference.solver import solve_problem


def test_a_model_folder_cannot_set_what_could_run_its_code_and_the_user_can(tmp_path):
    code = {"auto_map": {"AutoConfig": "evil.Config"}}
    for key, value in ("worker_cls", "evil"), ("hf_overrides", code), ("block_size", {"a": 1}):
        (tmp_path / "aimo.json").write_text(json.dumps({"vllm": {"max_num_seqs": 4, key: value}}))
        told = rf"aimo\.json: vllm\.{key} could .* inference\.vllm\.{key} yourself"
        with pytest.raises(AimoError, match=told):
            resolve_settings(tmp_path)
        assert resolve_settings(tmp_path, {"vllm": {key: 5}}).vllm == {"max_num_seqs": 4, key: 5}
    harmless = {"dtype": "half", "kv_cache_dtype": "fp8", "max_num_seqs": 4}
    (tmp_path / "aimo.json").write_text(json.dumps({"vllm": harmless}))
    assert resolve_settings(tmp_path).vllm == harmless


@pytest.mark.engine  # it imports Transformers
def test_code_in_a_model_folder_does_not_run_without_the_user_s_word(tmp_path):
    folder, ran = shutil.copytree(TINY, tmp_path / "model"), tmp_path / "ran"
    named = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["evil.Own", None]}}
    (folder / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "evil.Config"}}')
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    code = f"open({str(ran)!r}, 'w')\nfrom transformers import PretrainedConfig\n"
    (folder / "evil.py").write_text(f"{code}class Config(PretrainedConfig): ...\nclass Own: ...\n")
    with pytest.raises(AimoError, match="is code in the folder, which is not run"):
        read_tokenizer(folder)
    assert not ran.exists()
    with pytest.raises(AimoError):
        read_tokenizer(folder, trust_remote_code=True)
    assert ran.exists()


def test_a_port_that_is_taken_is_refused_and_a_server_that_ends_before_it_answers_explained(
    tmp_path, monkeypatch
):
    serve = partial(vllm_process.serving, TINY, resolve_settings(TINY), log=tmp_path / "log")
    with vllm_process.socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = f"--port {port} of 127.0.0.1: Address already in use"
        with pytest.raises(AimoError, match=told), serve(port=port):
            pass
    failing = ["sh", "-c", "echo 'ValueError: no such parser' >&2; exit 1"]
    monkeypatch.setattr(vllm_process, "server_command", lambda *_: failing)
    with pytest.raises(EngineError, match=r"did not serve .*: ValueError: no such parser"), serve():
        pass


STARTER = """
import fcntl, sys, time
from pathlib import Path
from aimo.inference import vllm_process

lock = open("lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
command = ["sh", "-c", sys.argv[1]]
with open("log", "a") as log, vllm_process.running(command, log, [lock.fileno()]) as process:
    while process.poll() is None:
        time.sleep(0.05)
print(process.returncode)
"""
RANKS = "setsid sh -c 'sleep 1000 & sleep 1000 & wait' & (setsid sleep 1000 &) ; wait"


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_however_its_starter_ends_every_process_of_a_job_ends_and_then_its_lock_is_free(tmp_path, sign):
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, RANKS], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    try:
        tree = psutil.Process(starter.pid)
        wait_for(lambda: [p.name() for p in tree.children(recursive=True)].count("sleep") == 3, 20)
        below = tree.children(recursive=True)
        assert all("/lock'" in str(process.open_files()) for process in below)
        with (tmp_path / "lock").open("a") as lock:
            starter.send_signal(sign)
            starter.wait(20)
            fcntl.flock(lock, fcntl.LOCK_EX)  # waits for the last of them
            assert left_of(below) == []
    finally:
        starter.kill()


def test_a_killed_guard_takes_the_command_with_it(tmp_path):
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, "touch started; exec sleep 1000"], cwd=tmp_path
    )
    wait_for((tmp_path / "started").exists, 20)
    guard, sleep = psutil.Process(starter.pid).children(recursive=True)
    guard.kill()
    assert left_of([guard, sleep]) == [] and starter.wait(5) == 0


@pytest.mark.parametrize("ends, status", [("exit 3", "3"), ("kill -9 $$", "-9")])
def test_the_exit_status_of_a_command_is_passed_on_and_what_it_left_is_ended(tmp_path, ends, status):
    command = [sys.executable, "-c", STARTER, f"sleep 1000 & {ends}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert done.stdout == f"{status}\n"


def test_what_does_not_end_when_asked_is_killed(tmp_path):
    stubborn = "trap '' TERM; touch started; sleep 1000 & while true; do wait; done"
    program = (
        "import sys; from aimo.inference import process_guard as p; p.END_S = 0.3; p.guard(sys.argv[1:])"
    )
    guard = subprocess.Popen([sys.executable, "-c", program, "sh", "-c", stubborn], cwd=tmp_path)
    wait_for((tmp_path / "started").exists, 20)
    below = psutil.Process(guard.pid).children(recursive=True)
    guard.terminate()
    guard.wait(5)
    assert below and left_of(below) == []


# ---- A real server; the last test ends it


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """`aimo serve` with the tiny base: its address, its process and what it says."""
    folder = tmp_path_factory.mktemp("served")
    command = ["serve", str(TINY), "--port", "0", "--log", str(folder / "vllm.log")]
    with (folder / "stdout").open("w") as out:
        server = subprocess.Popen([AIMO, *command], stdout=out, stderr=out)
    try:
        said = (folder / "stdout").read_text
        wait_for(lambda: "is ready at" in said() or server.poll() is not None)
        assert server.poll() is None, (said(), (folder / "vllm.log").read_text()[-2000:])
        yield said().split("ready at ")[1].split(";")[0], server, said
    finally:
        server.kill()


EASY = "A shop sells pens for 3 dollars and books for 4 dollars. How much do 2 pens and 5 books cost?"


@pytest.mark.engine
def test_the_solver_votes_with_a_server_as_with_the_engine(served):
    assert served[0].endswith("/v1")
    with Server([served[0], served[0].removesuffix("/v1")], TINY) as server:
        s = solve_problem(server, EASY, num_samples=16, kind=Integer(0, 99999))
        assert s.votes and s.answer == max(s.votes, key=lambda a: (s.votes[a], -a)) and not s.note
        assert all(0 < c.tokens <= server.settings.max_tokens for c in s.ended)


def test_a_server_that_is_not_there_or_has_no_model_is_named():
    with pytest.raises(AimoError, match=r"http://127\.0\.0\.1:9/v1 does not answer"):
        Server(["http://127.0.0.1:9"], TINY)
    with standing(None, model=None) as empty, pytest.raises(AimoError, match="list of models has none"):
        Server([empty.url], TINY)


@pytest.mark.engine
def test_a_student_comes_nearer_to_a_teacher_behind_vllm(served, tmp_path):
    # The loss is of the sampled token and all others: less than the divergence, and as noisy as the sample.
    losses, before, after = train_student(tmp_path, served[0], divergence="reverse_kl")
    assert len(losses) == 12 and all(map(math.isfinite, losses)) and after < 0.92 * before


@pytest.mark.engine
def test_a_served_model_is_distilled_from_and_ctrl_c_leaves_nothing(served, tmp_path):
    address, server, said = served
    below = psutil.Process(server.pid).children(recursive=True)
    out, kept = tmp_path / "out.jsonl", tmp_path / "kept.jsonl"
    profile = ["--profile", "tiny-distil", "--set", "distil.rows=8"]
    asked = aimo("distil", *profile, "--api-addr", address, "--output-file", str(out))
    assert asked.returncode == 0, asked.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 64 and {row["model"] for row in rows} == {"tiny-base"}
    assert all(row["generation"].startswith("<start_working_out>") for row in rows if row["complete"])
    done = aimo("reject", str(out), "--out", str(kept), "--profile", "tiny-distil")
    assert done.returncode == 0 and "completions of 8 problems" in done.stdout, done.stderr
    server.send_signal(signal.SIGINT)
    assert server.wait(60) == 0 and said().endswith("ended\n")
    assert psutil.wait_procs(below, timeout=5)[1] == []
