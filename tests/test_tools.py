"""Tool-integrated reasoning: the real solver and sandbox, with a remote model server that says what the test needs."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import TINY

from aimo.engine import Server
from aimo.solver import solve
from aimo.voting import EXACT

PROGRAM = "Let us compute.\n```python\nprint(6 * 7)\n```\n"


@pytest.fixture
def serving():
    """Start a server whose model continues a prompt by a function of the prompt's text; returns the solver's engine."""
    started = []

    def start(model: Callable[[str], str]) -> Server:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                self.reply(json.dumps({"data": [{"id": "m", "max_model_len": 1000}]}).encode())

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = model(engine.tokenizer.decode(body["prompt"]))
                pieces = [text[i : i + 5] for i in range(0, len(text), 5)]
                events = [
                    {"choices": [{"text": p, "finish_reason": None}], "usage": {"completion_tokens": i}} for i, p in enumerate(pieces)
                ]
                events.append({"choices": [{"text": "", "finish_reason": "stop"}]})
                self.reply("".join(f"data: {json.dumps(event)}\n\n" for event in events).encode())

            def reply(self, content):
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        engine = Server([f"http://127.0.0.1:{http.server_port}"], TINY)
        engine.settings = replace(engine.settings, tools=1.0, max_tokens=400)
        started.append((http, engine))
        return engine

    yield start
    for http, engine in started:
        engine.close()
        http.shutdown()


def test_a_program_runs_and_its_output_is_read(serving):
    engine = serving(lambda prompt: "so it is <SOLUTION>42</SOLUTION>" if "```output\n42" in prompt else PROGRAM + "unread")
    s = solve(engine, "What is 6 x 7?", samples=4, low=0, high=999, policy=EXACT)
    assert s.answer == 42 and all("unread" not in c.text and "```output\n42\n```" in c.text for c in s.completions)


def test_variables_live_on_from_block_to_block(serving):
    def model(prompt):
        if "```output\n9" in prompt:
            return "<SOLUTION>9</SOLUTION>"
        return "```python\nprint(x + 2)\n```" if "```output" in prompt else "```python\nx = 7\n```"

    assert solve(serving(model), "Q", samples=2, low=0, high=999).answer == 9


def test_an_answer_that_its_own_program_contradicts_counts_less(serving):
    turn = iter(range(100))

    def model(prompt):
        if "```output" in prompt:
            return "<SOLUTION>41</SOLUTION>" if "wild" in prompt else "<SOLUTION>42</SOLUTION>"
        return ("wild guess " if next(turn) % 2 else "") + PROGRAM

    s = solve(serving(model), "Q", samples=4, low=0, high=999, policy=EXACT)
    assert s.votes == {41: 2, 42: 2} and s.answer == 42


def test_a_program_that_found_the_answer_is_a_vote_when_the_sample_says_none(serving):
    s = solve(serving(lambda prompt: "I am lost." if "```output" in prompt else PROGRAM), "Q", samples=2, low=0, high=999, policy=EXACT)
    assert s.answer == 42 and [weight for _, weight in s.weights] == [0.5] * len(s.completions)


def test_a_program_that_never_ends_costs_its_turn_only(serving):
    loop = "```python\nwhile True: pass\n```"
    s = solve(serving(lambda p: "<SOLUTION>7</SOLUTION>" if "```output" in p else loop), "Q", samples=1, low=0, high=999, policy=EXACT)
    assert s.answer == 7 and "time" in s.completions[0].text.split("```output")[1]


def test_no_more_blocks_run_than_the_profile_says(serving):
    engine = serving(lambda prompt: PROGRAM)
    engine.settings = replace(engine.settings, tool_turns=2)
    s = solve(engine, "Q", samples=1, low=0, high=999, policy=EXACT)
    assert s.completions[0].text.count("```output") == 2 and s.completions[0].text.count("```python") == 3


def test_only_the_share_of_samples_has_tools(serving):
    engine = serving(lambda prompt: "<SOLUTION>42</SOLUTION>" if "```output" in prompt else PROGRAM + "<SOLUTION>1</SOLUTION>")
    engine.settings = replace(engine.settings, tools=0.25)
    s = solve(engine, "Q", samples=8, low=0, high=999, policy=EXACT)
    assert sum("```output" in c.text for c in s.completions) <= 2
