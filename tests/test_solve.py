"""`aimo solve --server` with model servers on loopback that die, return or hang in a question."""

import contextlib
import itertools
import json
import subprocess
import threading
import time

import pytest
from conftest import AIMO, TINY, here, wait_for
from model_server import standing

from aimo.inference import engine, local

pytestmark = pytest.mark.slow  # loads a tokenizer, and waits for servers
PIECES = ["3 + 4 = 7", "<end_working_out>", "<SOLUTION>", "7", "</SOLUTION>"]
IDS = [f"q{i}" for i in (3, 1, 4, 0, 5, 2)]
RIGHT = [(i, "7") for i in IDS]


def event(**choice):
    return f"data: {json.dumps({'choices': [{'index': 0} | choice]})}\n\n"


@pytest.fixture
def serve():
    """Start a server that streams the `replies` in turn, and waits for `go_on` after the first piece of each.

    At the completion `streams` it breaks off, and is down until its `model` is set again.
    """
    with contextlib.ExitStack() as started:

        def serve(*replies, streams=10**9, ids=True):
            pieces, go_on = itertools.cycle(replies or [PIECES]), threading.Event()
            go_on.set()

            def stream(fails):
                for i, piece in enumerate(next(pieces)[: 1 if fails else None], 1):
                    yield event(text=piece, finish_reason=None, **{"token_ids": [i]} if ids else {})
                    go_on.wait()
                if not fails:
                    yield event(text="", finish_reason="stop") + "data: [DONE]\n\n"

            def behave(body, n):
                if n == streams:
                    stand.model = None
                return stream(n == streams) if stand.model or n == streams else None

            stand = started.enter_context(standing(behave, max_length=1000))
            stand.go_on = go_on
            return stand

        yield serve


def arguments(folder, *servers):
    """The command for a file of six questions, two samples each."""
    rows = "".join(f"{i},What is 3 + {i[1]}?\n" for i in IDS)
    (folder / "test.csv").write_text(f"id,problem\n{rows}")
    urls = [part for server in servers for part in ("--server", server.url)]
    files = ["--test", str(folder / "test.csv"), "--out", str(folder / "a.csv")]
    return ["solve", "--model", str(TINY), *files, "--samples", "2", *urls]


def answers(folder):
    """The rows of the answers, as they stand."""
    return [tuple(line.split(",")) for line in (folder / "a.csv").read_text().splitlines()[1:]]


@pytest.fixture
def solve(tmp_path):
    """Answer the file in this process; returns how it ended, and the answers by id."""

    def solve(*servers, options=()):
        return here(*arguments(tmp_path, *servers), *options), answers(tmp_path)

    return solve


def ask(server, *options):
    """Ask one problem in this process."""
    return here("solve", "--model", TINY, "--server", server.url, *options)


def test_questions_that_cannot_be_asked_get_the_fallback_and_are_counted(serve, tmp_path):
    rows = 'id,question\nfirst,"3, 4 and 5?"\nempty,\nlong,' + "x + " * 2000 + "\n"
    (tmp_path / "t.csv").write_text(rows)
    done = ask(serve(["\\boxed{4}"]), "--test", tmp_path / "t.csv", "--out", tmp_path / "a.csv")
    assert done.returncode == 0 and done.stderr == ""
    assert "3 questions answered, 2 with the fallback 0" in done.stdout
    assert "the problem is empty" in done.stdout and "do not fit" in done.stdout
    assert answers(tmp_path) == [("first", "4"), ("empty", "0"), ("long", "0")]


def test_settings_of_profile_and_command_line_go_over_those_of_the_model_and_are_kept(serve, solve, tmp_path):
    profile = tmp_path / "mine.yaml"
    profile.write_text("inference: {temperature: 0.3, top_p: 0.8, samples: 9, test_rows: 3, tags: null}\n")
    server = serve()
    done, _ = solve(server, options=["--profile", profile, "--set", "inference.temperature=0.6"])
    kept = json.loads((tmp_path / "a.settings.json").read_text())
    found = {key: kept[key] for key in ("temperature", "top_p", "samples", "min_p")}
    assert done.returncode == 0 and found == {"temperature": 0.6, "top_p": 0.8, "samples": 2, "min_p": 0.0}
    assert (server.bodies[-1]["temperature"], server.bodies[-1]["top_p"]) == (0.6, 0.8)


@pytest.mark.parametrize("helps", ["another server", "its return"])
def test_a_server_that_dies_in_the_middle_costs_no_answer(serve, solve, helps):
    dying = serve(streams=3)

    def restart():
        wait_for(lambda: dying.model is None)
        time.sleep(2)
        dying.model = "m"

    if helps == "its return":
        threading.Thread(target=restart, daemon=True).start()
    done, rows = solve(dying, *([serve()] if helps == "another server" else []))
    assert len(dying.bodies) > 3 and done.returncode == 0 and rows == RIGHT, "in the file's order"
    assert "[1/6, about " in done.stdout and "[6/6, about 0 s left]" in done.stdout


def test_a_server_that_stays_away_ends_the_command_with_1_and_the_answers_so_far(serve, solve, monkeypatch):
    monkeypatch.setattr(local, "PATIENCE_S", 1.0)
    monkeypatch.setattr(engine, "RETRY_S", 0.2)
    done, rows = solve(serve(streams=4))
    # Which questions four completions answer depends on timing: several are asked at once.
    assert done.returncode == 1 and rows == [row for row in RIGHT if row in rows] and 1 <= len(rows) <= 4
    told = done.stderr.strip()
    assert told.startswith(f"aimo: {len(rows)} of 6 questions are answered, in ") and "\n" not in told


def test_one_problem_is_printed_as_it_is_written_and_its_answer_stands_alone_on_the_last_line(serve):
    server = serve(["Halb so groß:", " \\boxed{\\frac{1}{2}}", "."])
    server.go_on.clear()
    command = [str(AIMO), "solve", "--model", str(TINY), "--server", server.url, "Wie groß?"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.read(len("Halb so groß:")) == "Halb so groß:", "nothing is shown before the end"
    server.go_on.set()
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and rest == " \\boxed{\\frac{1}{2}}.\n\n\\frac{1}{2}\n"


def test_several_samples_of_a_problem_vote_on_answers_that_are_equal_though_written_otherwise(serve):
    replies = ["\\boxed{3}"], ["\\boxed{1/2}"], ["\\boxed{0.5}"], ["so"], ["so"]
    done = ask(serve(*replies), "Wie viel?", "--samples", "4")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[-1] in ("1/2", "0.5")
    assert lines[-4:-1] == [f"2 of 4: {lines[-1]}", "1 of 4: 3", ""]


def test_a_problem_may_be_answered_with_programs_whose_output_is_shown(serve):
    replies = ["Let me see.\n", "```python\n6 * 7\nprint(6 * 7)\n```"], ["So it is \\boxed{42}."]
    out = ask(serve(*replies), "6 * 7?", "--set", "inference.tools=0.5").stdout
    assert "```output\n42\n```\nSo it is \\boxed{42}.\n\n42\n" in out
    assert out.count("Let me see.") == 1 and out.count("print(6 * 7)") == 1


@pytest.mark.parametrize(
    "arguments, code, told",
    [
        ([" "], 2, "the problem is empty"),
        (["x + " * 2000], 2, "do not fit the model's 1000"),
        (["1 + 1?"], 1, "hold no answer"),
        (["no ids"], 1, "sends no token ids; serve with vLLM"),
        ([], 2, "give either a problem"),
        (["1 + 1?", "--out", "a.csv"], 2, "--test and --out go together"),
        (["1 + 1?", "--competition", "aimo1"], 2, "--competition goes with --test"),
        (["1 + 1?", "--set", "sft.max_steps=5"], 2, "only keys of inference apply"),
        (["1 + 1?", "--vllm", "tensor_parallel_size=2"], 2, "give them to `vllm serve`"),
    ],
)
def test_a_problem_that_cannot_be_asked_or_answered_is_told_in_one_line(serve, arguments, code, told):
    done = ask(serve(["I do not know"], ids=arguments != ["no ids"]), *arguments)
    assert done.returncode == code and told in done.stderr and done.stderr.count("\n") == 1
