"""`aimo solve --server` with model servers on loopback that die, return or hang in a question."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import AIMO, TINY, wait_for

from aimo.inference import gateway, supervisor

pytestmark = pytest.mark.slow  # loads a tokenizer, and waits for servers
PIECES = ["3 + 4 = 7", "<end_working_out>", "<SOLUTION>", "7", "</SOLUTION>"]
IDS = [f"q{i}" for i in (3, 1, 4, 0, 5, 2)]


class ModelServer:
    """Speaks as `vllm serve` does; after `streams` completions it dies in the middle of one, or hangs."""

    def __init__(self, streams=10**9, hangs=False, port=0):
        self.left, self.hangs, self.dead = streams, hangs, False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                body = json.dumps({"object": "list", "data": [{"id": "m", "max_model_len": 1000}]}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self):
                outer.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.left -= 1
                fails = outer.left < 0
                if not outer.dead:
                    self.send_response(200)
                    self.send_header("Content-Type", "text/event-stream")
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    for i, piece in enumerate(PIECES[: 1 if fails else None], 1):
                        choice = {"index": 0, "text": piece, "finish_reason": None, "token_ids": [i]}
                        self.event({"choices": [choice]})
                if fails and outer.hangs:
                    time.sleep(1000)
                if fails or outer.dead:
                    outer.die()
                    self.close_connection = True
                    return self.connection.shutdown(socket.SHUT_RDWR)
                self.event({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})
                self.wfile.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

            def event(self, event):
                data = f"data: {json.dumps(event)}\n\n".encode()
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.http.block_on_close = False
        self.http.handle_error = lambda *_: None  # a client that leaves is no news
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def die(self):
        if not self.dead:
            self.dead = True
            self.http.shutdown()
            self.http.server_close()


def arguments(folder, *servers):
    """The command for a file of six questions, two samples each."""
    rows = "".join(f"{i},What is 3 + {i[1]}?\n" for i in IDS)
    (folder / "test.csv").write_text(f"id,problem\n{rows}")
    urls = [part for server in servers for part in ("--server", server.url)]
    files = ["--test", str(folder / "test.csv"), "--out", str(folder / "a.csv")]
    return ["solve", "--model", str(TINY), *files, "--samples", "2", *urls]


@pytest.fixture
def solve(tmp_path, monkeypatch, capsys):
    """Answer the file in this process; returns the exit code, the answers by id, and what was printed."""

    def run(*servers, options=()):
        from aimo import cli

        monkeypatch.setattr(sys, "argv", ["aimo", *arguments(tmp_path, *servers), *options])
        with pytest.raises(SystemExit) as e:
            cli.main()
        return e.value.code, answers(tmp_path), capsys.readouterr()

    return run


def answers(folder):
    """The rows of the answers, as they stand."""
    lines = (folder / "a.csv").read_text().splitlines()
    return [tuple(line.split(",")) for line in lines[1:]]


def test_rows_are_in_the_order_of_the_file_and_progress_is_shown(solve):
    code, rows, said = solve(ModelServer())
    assert code == 0 and rows == [(i, "7") for i in IDS]
    assert "[1/6, about " in said.out and "[6/6, about 0 s left]" in said.out


def test_settings_of_profile_and_command_line_go_over_those_of_the_model_and_are_kept(solve, tmp_path):
    profile = tmp_path / "mine.yaml"
    profile.write_text("inference: {temperature: 0.3, top_p: 0.8, samples: 9, test_rows: 3, tags: null}\n")
    server = ModelServer()
    options = ["--profile", str(profile), "--set", "inference.temperature=0.6"]
    code, _, said = solve(server, options=options)
    kept = json.loads((tmp_path / "a.settings.json").read_text())
    found = {key: kept[key] for key in ("temperature", "top_p", "samples", "min_p")}
    assert code == 0 and found == {"temperature": 0.6, "top_p": 0.8, "samples": 2, "min_p": 0.0}
    assert (server.asked["temperature"], server.asked["top_p"]) == (0.6, 0.8)
    assert "temperature: 0.6" in said.out


@pytest.mark.parametrize(
    "options, told",
    [
        (["--set", "inference.temprature=1"], "temprature"),
        (["--set", "inference.temperature=hot"], "temperature"),
        (["--set", "sft.max_steps=5"], "only keys of inference apply"),
        (["--vllm", "tensor_parallel_size=2"], "give them to `vllm serve`"),
        (["--profile", "nothing"], "does not exist"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line_before_anything_is_asked(solve, tmp_path, options, told):
    (tmp_path / "a.csv").write_text("")
    code, _, said = solve(ModelServer(), options=options)
    assert code == 2 and told in said.err and said.err.count("\n") == 1 and not said.out


def test_a_replica_that_dies_in_the_middle_costs_no_answer(solve):
    dying = ModelServer(streams=3)
    code, rows, _ = solve(dying, ModelServer())
    assert dying.dead and code == 0 and rows == [(i, "7") for i in IDS]


def test_a_server_that_returns_is_waited_for(solve):
    dying = ModelServer(streams=5)

    def restart():
        wait_for(lambda: dying.dead)
        time.sleep(3)
        ModelServer(port=dying.http.server_port)

    threading.Thread(target=restart, daemon=True).start()
    code, rows, _ = solve(dying)
    assert dying.dead and code == 0 and rows == [(i, "7") for i in IDS]


def test_a_server_that_stays_away_ends_the_command_with_1_and_the_answers_so_far(solve, monkeypatch):
    monkeypatch.setattr(gateway, "PATIENCE_S", 1.0)
    monkeypatch.setattr(supervisor, "RETRY_S", 0.2)
    code, rows, said = solve(ModelServer(streams=4))
    assert code == 1 and len(rows) == 2 and set(rows) < {(i, "7") for i in IDS}
    assert [i for i, _ in rows] == [i for i in IDS if (i, "7") in rows]
    told = said.err.strip()
    assert told.startswith("aimo: 2 of 6 questions are answered, in ") and "\n" not in told


def test_an_interrupted_command_keeps_the_answers_so_far_and_says_so_in_one_line(tmp_path):
    server = ModelServer(streams=4, hangs=True)
    process = subprocess.Popen(
        [str(AIMO), *arguments(tmp_path, server)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: server.left < 0 or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert told.startswith("aimo: interrupted; 2 of 6 questions are answered, in ") and told.count("\n") == 1
    assert len(answers(tmp_path)) == 2
