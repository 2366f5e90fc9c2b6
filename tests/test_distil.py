"""`aimo distil` against a server on loopback that behaves well or badly."""

import json
import threading
import time
from contextlib import contextmanager

import pytest
from conftest import TINY, here, wait_for
from model_server import standing

from aimo import config
from aimo.config import Columns, Distil, Source
from aimo.data import distil
from aimo.errors import AimoError
from aimo.run import runs


def reply(text="The answer is \\boxed{2}.", message=(), choice=(), model="teacher", **other):
    choice = {"message": {"content": text} | dict(message), "finish_reason": "stop"} | dict(choice)
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    return {"model": model, "choices": [choice], "usage": usage} | other


def serving(behave=lambda body, n: reply(), model="teacher", delay=0.0):
    """A server that answers with `behave(body, n)` of the n-th request."""
    return standing(behave, model, delay=delay)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("aimo.data.model_servers.FIRST_PAUSE_S", 0.05)


def problems_file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def problems(tmp_path):
    rows = [{"problem": f"What is {i} + 1?", "answer": i + 1} for i in range(6)]
    return problems_file(tmp_path / "problems.jsonl", rows)


def sampled(problems, *servers, out="out.jsonl", **keys):
    """The tally, and the records of the file."""
    wanted = {"num_generations": 2, "timeout": 5.0, "prompt_template": "Q: {prompt}"} | keys
    wanted = Distil(str(problems), api_addr=[getattr(s, "address", s) for s in servers], **wanted)
    tally = distil.distil(wanted, problems.parent / out, 0, lambda tally: None)
    return tally, records(problems.parent / out)


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def names(rows):
    return sorted((row["problem"], row["sample"]) for row in rows)


EVERY = sorted((f"What is {i} + 1?", k) for i in range(6) for k in range(2))


def test_every_sample_is_asked_for_once_over_all_servers_with_its_own_seed(problems):
    with serving(delay=0.02) as one, serving(delay=0.02) as other:
        tally, rows = sampled(problems, one, other, max_concurrent=4)
        assert names(rows) == EVERY and one.most + other.most <= 4 and one.bodies and other.bodies
        bodies = one.bodies + other.bodies
        assert len({body["seed"] for body in bodies}) == len(bodies) == 12
        assert {body["temperature"] for body in bodies} == {0.6}
        assert {row["answer"] for row in rows} == {str(i + 1) for i in range(6)}
        assert (tally.prompt_tokens, tally.completion_tokens) == (120, 60)
        _, again = sampled(problems, one, out="again.jsonl", max_concurrent=7, num_generations=3)
    seeds = {(row["problem"], row["sample"]): row["seed"] for row in again}
    assert all(seeds[row["problem"], row["sample"]] == row["seed"] for row in rows)


def test_started_again_it_repairs_a_cut_last_line_and_asks_for_what_is_missing_with_the_same_settings(
    problems,
):
    out = problems.parent / "out.jsonl"
    with serving() as server:
        sampled(problems, server)
        whole = out.read_bytes().splitlines(keepends=True)
        out.write_bytes(b"".join(whole[:7]) + whole[7][:-9])
        asked = len(server.bodies)
        tally, rows = sampled(problems, server)
        assert (tally.known, tally.done, len(server.bodies) - asked) == (7, 5, 5) and names(rows) == EVERY
        tally, rows = sampled(problems, server, num_generations=3)
        assert (tally.known, tally.done, len(rows)) == (12, 6, 18)
        with pytest.raises(
            AimoError, match=r"temperature was 0\.6 and is now 1\.0; take another output_file"
        ):
            sampled(problems, server, temperature=1.0)


def test_a_server_that_is_too_busy_is_asked_after_its_retry_after(problems):
    def behave(_, n):
        return ("", 429, {"Retry-After": "0.4"}) if n < 3 else reply()

    with serving(behave, delay=0.02) as server:
        tally, rows = sampled(problems, server, max_concurrent=3, retries=0)
    assert names(rows) == EVERY and not tally.failed
    assert server.times[3] - server.times[2] >= 0.38


def test_one_failed_sample_costs_that_sample_alone_and_is_asked_for_again(problems):
    with serving() as server:
        poison = distil.sample_seed(0, "What is 3 + 1?", 1)
        server.behave = lambda body, n: ("", 500, {}) if body["seed"] == poison else reply()
        tally, rows = sampled(problems, server, retries=1)
        assert dict(tally.failed) == {"HTTP 500: nothing": 1}
        assert names(rows) == [name for name in EVERY if name != ("What is 3 + 1?", 1)]
        assert sum(body["seed"] == poison for body in server.bodies) == 2
        server.behave = lambda body, n: reply()
        assert names(sampled(problems, server)[1]) == EVERY


def too_late(body, n):
    time.sleep(1.5)
    return reply()


def says(text, status=200):
    return lambda body, n: (text, status, {})


FAULTS = {
    "slow": (too_late, r"no reply within 0\.7 s"),
    "broken JSON": (says('{"choices": [{"mess'), "holds no completion: {"),
    "no choice": (lambda body, n: reply(choices=[]), "holds no completion"),
    "an error": (says('{"error": {"message": "overloaded"}}'), "overloaded"),
    "a page": (says("<html>Bad gateway</html>"), "Bad gateway"),
    "endless usage": (lambda body, n: reply(usage={"prompt_tokens": float("inf")}), "holds no completion"),
    "deep JSON": (says("[" * 100_000), "holds no completion"),
    "text of another type": (lambda body, n: reply(7), "holds no completion"),
    "cut": (lambda body, n: ("{", 200, {"Content-Length": 1000}), "the reply was cut off"),
    "without an end": (lambda body, n: reply(choice={"finish_reason": None}), "without a finish_reason"),
    "empty": (lambda body, n: reply(""), "the completion is empty"),
    "the prompt": (lambda body, n: reply(body["messages"][-1]["content"] + " 2"), "begins with the prompt"),
    "refused": (says("too long", 400), "HTTP 400: too long"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_reply_is_no_sample_and_named(name, problems):
    bad, said = FAULTS[name]
    keys = {"retries": 0, "timeout": 0.7 if name == "slow" else 5.0}
    with serving(bad) as server, pytest.raises(AimoError, match=f"every sample failed: .*{said}"):
        sampled(problems, server, **keys)
    assert (problems.parent / "out.jsonl").read_text() == ""
    with serving(lambda body, n: bad(body, n) if n % 2 else reply()) as server:
        tally, rows = sampled(problems, server, max_concurrent=4, **keys)
    assert tally.failed.total() == len(rows) == 6


def test_a_server_that_only_fails_is_not_asked_for_everything(problems):
    with serving(FAULTS["empty"][0]) as server:
        with pytest.raises(AimoError, match="100 samples in a row failed: the completion is empty"):
            sampled(problems, server, num_generations=400, max_concurrent=3, retries=0)
        assert len(server.bodies) <= 102  # with two in flight


def test_a_server_that_goes_down_ends_the_run_and_loses_nothing(problems):
    out, caught = problems.parent / "out.jsonl", []

    def go():
        with pytest.raises(AimoError) as error:
            sampled(problems, server, num_generations=100, max_concurrent=2, timeout=0.5, retries=9)
        caught.append(str(error.value))

    with serving(delay=0.05) as server:
        run = threading.Thread(target=go)
        run.start()
        wait_for(lambda: out.exists() and out.read_text().count("\n") >= 4, 10)
    run.join(10)
    assert "no server has answered for 0.5 s; start it, and run the same command again" in caught[0]
    assert len(records(out)) >= 4


def test_a_server_that_is_not_there_or_has_another_model_is_refused(problems):
    with pytest.raises(AimoError, match=r"http://127\.0\.0\.1:9/v1 does not answer like `vllm serve`"):
        sampled(problems, "127.0.0.1:9")
    with serving(model="other") as server:
        with pytest.raises(AimoError, match="has other, not 'teacher'; correct model"):
            sampled(problems, server, model="teacher")
        with serving() as one, pytest.raises(AimoError, match="has other, not 'teacher'"):
            sampled(problems, one, server)
    cheap = serving(lambda body, n: reply(model="cheap" if n == 3 else "teacher"))
    with cheap as server, pytest.raises(AimoError, match="the model 'cheap', not 'teacher'"):
        sampled(problems, server, max_concurrent=1)
    assert len(records(problems.parent / "out.jsonl")) == 3


def test_a_key_that_is_refused_ends_the_run(problems, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    refusing = serving(says("bad key", 401))
    with refusing as server, pytest.raises(AimoError, match=r"HTTP 401: bad key.*OPENAI_API_KEY"):
        sampled(problems, server)
    assert server.keys[-1] == "Bearer sk-1"


PARTS = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "So "}, {"text": "\\boxed{2}."}]
JOINED = "<think>\n1 + 1 = 2\n</think>\n\nSo \\boxed{2}."


@pytest.mark.parametrize(
    "text, message, written",
    [
        ("So \\boxed{2}.", {"reasoning": "1 + 1 = 2"}, JOINED),
        ("So \\boxed{2}.", {"reasoning_content": "1 + 1 = 2"}, JOINED),
        (PARTS, {}, "So \\boxed{2}."),
        ("1 + 1 = 2</think>2", {}, "<think>1 + 1 = 2</think>2"),  # the prompt ended in the opening tag
    ],
)
@pytest.mark.parametrize("reason", ["stop", "length"])
def test_a_thought_and_its_text_are_one_completion_which_says_whether_it_is_whole(
    problems, text, message, written, reason
):
    with serving(lambda body, n: reply(text, message, {"finish_reason": reason})) as server:
        _, rows = sampled(problems, server)
    assert {(row["generation"], row["complete"]) for row in rows} == {(written, reason == "stop")}


def test_built_in_problems_and_mixtures_are_distilled_without_repeats(problems):
    parts = [Source(rows=5), Source(str(problems)), Source(str(problems))]
    rows = distil.distilled_problems(Distil(mixture=parts), 0)
    assert len(rows) == 11 and (rows["source"] == "builtin").sum() == 5
    rows = distil.distilled_problems(Distil(str(problems), columns=Columns(id="answer")), 0)
    assert rows["id"].to_list() == rows["answer"].to_list()


def test_columns_are_chosen_and_problems_told_apart_by_the_uuid_column(problems):
    path, out = problems.parent / "other.jsonl", problems.parent / "out.jsonl"
    rows = [{"q": "1 + 1?", "uuid": "a"}, {"q": "1 + 1?", "uuid": "b"}, {"q": "2 + 1?", "uuid": "b"}]
    problems_file(path, rows)
    options = ["--dataset-name", path, "--prompt-column", "q", "--uuid-column", "uuid", "--output-file", out]
    options += ["--num-generations", 1, "--set", "distil.columns.answer=null"]
    with serving() as server:
        done = here("distil", *options, "--set", "distil.input_price=3e5", "--api-addr", server.address)
    assert done.returncode == 0 and names(records(out)) == [("1 + 1?", 0), ("1 + 1?", 0)]
    assert "2 of 2 samples, 30 tokens, " in done.stdout and "cost 6.00" in done.stdout


def test_a_run_serves_its_teacher_where_no_server_is_named_and_keeps_what_is_right(tmp_path, monkeypatch):
    asked = []
    answers = serving(lambda body, n: reply(f"so \\boxed{{{n % 2}}}", model=TINY.name), model=TINY.name)

    @contextmanager
    def serve(folder, settings, seed, log):
        asked.append((folder, seed, log.parent.name))
        with answers as server:
            yield server.url, None

    monkeypatch.setattr(distil.vllm_process, "serving", serve)
    source = problems_file(tmp_path / "bits.jsonl", [{"problem": f"{i}?", "answer": 1} for i in range(4)])
    keys = [f"model.base={TINY}", "seed=3", f"distil.source={source}", "distil.rows=null"]
    keys += ["distil.reject.pass_rate=[0.0, 1.0]"]
    run = runs.Run(config.load("tiny-distil", keys), tmp_path, "distil", 0.0)
    tally, found = distil.distil_in_run(run), distil.reject_in_run(run)
    assert asked == [(TINY, 3, "distil")] and tally.done == 32
    assert len(found.kept) > 0 and len(found.kept) == len(records(tmp_path / "distil/kept.jsonl"))
    assert json.loads((run.folder / "samples.settings.json").read_text())["weights"]


def test_the_file_is_pushed_with_a_card(problems, hub):
    with serving() as server:
        tally, _ = sampled(problems, server)
    out = problems.parent / "out.jsonl"
    assert distil.push_samples(out, "me/traces", Distil(str(problems)), tally) == "hub/me/traces"
    assert hub["repo"] == ("me/traces", "dataset", True) and hub["train.jsonl"] == out.read_bytes()
    card = hub["README.md"].decode()
    assert "data_files: train.jsonl" in card and "Completions of teacher" in card and "12 of 12" in card
