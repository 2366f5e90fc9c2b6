"""`aimo serve` with the tiny base, and a distillation from it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import AIMO, TINY, aimo, wait_for

from aimo import serving
from aimo.errors import AimoError, EngineError
from aimo.inference.settings import resolve


@pytest.mark.engine  # it imports vLLM
def test_the_settings_of_a_profile_are_options_of_vllm():
    layer = {"gpu_memory": 0.5, "vllm": {"data_parallel_size": 2, "reasoning_parser": "deepseek_r1"}}
    command = serving.command(TINY, resolve(TINY, layer), 7, "0.0.0.0", 8001)
    wanted = {"--data-parallel-size=2", "--reasoning-parser=deepseek_r1", "--gpu-memory-utilization=0.5"}
    wanted |= {
        "--seed=7",
        "--host=0.0.0.0",
        "--port=8001",
        "--enforce-eager",
        "--served-model-name=tiny-base",
    }
    assert wanted <= set(command) and f"--model={TINY}" in command


def test_a_port_that_is_taken_is_refused(tmp_path):
    with serving.socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        start = serving.serving(TINY, resolve(TINY), port=port, log=tmp_path / "log")
        with pytest.raises(AimoError, match=f"--port {port} of 127.0.0.1: Address already in use"), start:
            pass


def test_a_server_that_ends_before_it_answers_is_explained(tmp_path, monkeypatch):
    failing = ["sh", "-c", "echo 'ValueError: no such parser' >&2; exit 1"]
    monkeypatch.setattr(serving, "command", lambda *_: failing)
    start = serving.serving(TINY, resolve(TINY), log=tmp_path / "log")
    with pytest.raises(EngineError, match=r"did not serve .*: ValueError: no such parser"), start:
        pass


STAND_IN = """
import subprocess, sys
import polars  # it makes a wait that Ctrl-C interrupts go on
from aimo import cli, serving

program = "import http.server as h, sys; h.test(h.SimpleHTTPRequestHandler, port=int(sys.argv[1]))"

serving.command = lambda model, settings, seed, host, port: [
    "sh", "-c", f"touch health; {sys.executable} -c '{program}' {port} & wait"
]
sys.argv = ["aimo", "serve", sys.argv[1], "--port", "0"]
cli.main()
"""


def test_ctrl_c_ends_every_process_of_a_server(tmp_path):
    with (tmp_path / "stdout").open("w+") as log:
        command = [sys.executable, "-c", STAND_IN, str(TINY)]
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path)
    said = (tmp_path / "stdout").read_text
    wait_for(lambda: "is ready at" in said() or server.poll() is not None, 60)
    below = psutil.Process(server.pid).children(recursive=True)
    assert len(below) == 2, said()
    server.send_signal(signal.SIGINT)
    assert server.wait(20) == 0 and said().endswith("ended\n")
    assert psutil.wait_procs(below, timeout=5)[1] == []


@pytest.mark.engine
def test_a_served_model_is_distilled_from_and_ctrl_c_leaves_nothing(tmp_path):
    log = (tmp_path / "stdout").open("w+")
    command = ["serve", str(TINY), "--port", "0", "--log", str(tmp_path / "vllm.log")]
    server = subprocess.Popen([AIMO, *command], stdout=log, stderr=log)
    try:
        said = Path(log.name).read_text
        wait_for(lambda: "is ready at" in said() or server.poll() is not None)
        assert server.poll() is None, (said(), (tmp_path / "vllm.log").read_text()[-2000:])
        below = psutil.Process(server.pid).children(recursive=True)
        address = said().split("ready at ")[1].split(";")[0]
        out, kept = tmp_path / "out.jsonl", tmp_path / "kept.jsonl"
        profile = ["--profile", "tiny-distil", "--set", "distil.rows=20"]
        asked = aimo("distil", *profile, "--api-addr", address, "--output-file", str(out))
        assert asked.returncode == 0, asked.stderr
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert len(rows) == 160 and {row["model"] for row in rows} == {"tiny-base"}
        assert all(row["generation"].startswith("<start_working_out>") for row in rows if row["complete"])
        done = aimo("reject", str(out), "--out", str(kept), "--profile", "tiny-distil")
        assert done.returncode == 0 and "completions of 20 problems" in done.stdout, done.stderr
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0 and said().endswith("ended\n")
        assert psutil.wait_procs(below, timeout=5)[1] == []
    finally:
        server.kill()
