"""`aimo distil` against a server on loopback that behaves well or badly, and which completions are kept."""

import json
import time
from contextlib import ExitStack, contextmanager

import polars as pl
import pytest
from conftest import TINY, here, lines
from model_server import standing

from aimo import config
from aimo.config import Columns, Distil, Reject, Source
from aimo.data import distil, prepare, sources
from aimo.evaluation.scores import SoFar
from aimo.inference.errors import AimoError
from aimo.run import runs


def reply(text="The answer is \\boxed{2}.", message=(), choice=(), model="teacher", **other):
    choice = {"message": {"content": text} | dict(message), "finish_reason": "stop"} | dict(choice)
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    return {"model": model, "choices": [choice], "usage": usage} | other


def serving(behave=lambda body, n: reply(), model="teacher", delay=0.0):
    return standing(behave, model, delay=delay)


@pytest.fixture
def problems(tmp_path, monkeypatch):
    monkeypatch.setattr(distil, "REST_S", 0.05)
    rows = [{"problem": f"What is {i} + 1?", "answer": i + 1} for i in range(6)]
    return lines(tmp_path / "problems.jsonl", *rows)


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


def says(text, status=200):
    return lambda body, n: (text, status, {})


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


def test_started_again_it_asks_for_what_is_missing_with_the_same_settings(problems):
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
        told = r"temperature was 0\.6 and is now 1\.0; take another output_file"
        with pytest.raises(AimoError, match=told):
            sampled(problems, server, temperature=1.0)


def test_a_server_that_is_too_busy_is_asked_after_its_retry_after(problems):
    def behave(_, n):
        return ("", 429, {"Retry-After": "0.4"}) if n < 3 else reply()

    with serving(behave, delay=0.02) as server:
        tally, rows = sampled(problems, server, max_concurrent=3, retries=0)
    assert names(rows) == EVERY and not tally.failed
    assert server.times[3] - server.times[2] >= 0.38


def test_a_busy_server_that_names_no_time_rests_and_is_not_asked_at_once(problems, monkeypatch):
    monkeypatch.setattr(distil, "REST_S", 0.5)
    with serving(lambda _, n: ("", 503, {"Retry-After": "0"}) if n < 3 else reply(), delay=0.02) as server:
        tally, rows = sampled(problems, server, max_concurrent=3, retries=0)
    assert names(rows) == EVERY and not tally.failed
    assert server.times[3] - server.times[2] >= 0.48


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


FAULTS = [
    (too_late, "no reply within 0.7 s"),
    (says('{"choices": [{"mess'), "holds no completion: {"),
    (says('{"error": {"message": "overloaded"}}'), "overloaded"),
    (says("<html>Bad gateway</html>"), "Bad gateway"),
    (lambda body, n: reply(usage={"prompt_tokens": float("inf")}), "holds no completion: {"),
    (says("[" * 100_000), "holds no completion: [[["),
    (lambda body, n: reply(7), "holds no completion: {"),
    (lambda body, n: ("{", 200, {"Content-Length": 1000}), "the reply was cut off"),
    (lambda body, n: reply(choice={"finish_reason": None}), "without a finish_reason"),
    (lambda body, n: reply(""), "the completion is empty"),
    (lambda body, n: reply(body["messages"][-1]["content"] + " 2"), "begins with the prompt"),
    (says("too long", 400), "HTTP 400: too long"),
]


def test_a_bad_reply_is_no_sample_and_named(problems):
    def behave(body, n):
        return reply() if n % 2 else FAULTS[n // 2][0](body, n)

    with serving(behave) as server:
        keys = {"retries": 0, "timeout": 0.7, "num_generations": 4, "max_concurrent": 1}
        tally, rows = sampled(problems, server, **keys)
    assert tally.failed.total() == len(rows) == 12
    assert [said for _, said in FAULTS if not any(said in fault for fault in tally.failed)] == []


def test_a_server_that_only_fails_is_not_asked_for_everything(problems):
    with serving(lambda body, n: reply("")) as server:
        with pytest.raises(AimoError, match="every sample failed: the completion is empty"):
            sampled(problems, server, retries=0)
        server.bodies.clear()
        with pytest.raises(AimoError, match="100 samples in a row failed: the completion is empty"):
            sampled(problems, server, num_generations=400, max_concurrent=3, retries=0)
        assert len(server.bodies) <= 102  # with two in flight


def test_a_server_that_goes_down_ends_the_run_and_loses_nothing(problems):
    with ExitStack() as stack:

        def go_down(body, n):
            if n == 4:
                stack.close()
            return reply()

        server = stack.enter_context(serving(go_down, delay=0.02))
        told = r"no server has answered for 0\.5 s; start it, and run the same command again"
        with pytest.raises(AimoError, match=told):
            sampled(problems, server, num_generations=100, max_concurrent=2, timeout=0.5, retries=9)
    assert len(records(problems.parent / "out.jsonl")) >= 4


def test_a_server_that_is_not_there_has_another_model_or_refuses_the_key_is_refused(problems, monkeypatch):
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
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    refusing = serving(says("bad key", 401))
    with refusing as server, pytest.raises(AimoError, match=r"HTTP 401: bad key.*OPENAI_API_KEY"):
        sampled(problems, server)
    assert server.keys[-1] == "Bearer sk-1"


JOINED = "<think>\n1 + 1 = 2\n</think>\n\nSo \\boxed{2}."
PARTS = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "So "}, {"text": "\\boxed{2}."}]
FORMS = [
    (("So \\boxed{2}.", {"reasoning": "1 + 1 = 2"}), JOINED),
    (("So \\boxed{2}.", {"reasoning_content": "1 + 1 = 2"}), JOINED),
    ((PARTS,), "So \\boxed{2}."),
    (("1 + 1 = 2</think>2",), "<think>1 + 1 = 2</think>2"),  # the prompt ended in the opening tag
]


def test_a_thought_and_its_text_are_one_completion_which_says_whether_it_is_whole(problems):
    with serving(
        lambda body, n: reply(*FORMS[n % 4][0], choice={"finish_reason": ["stop", "length"][n > 5]})
    ) as server:
        _, rows = sampled(problems, server, max_concurrent=1)
    assert [(row["generation"], row["complete"]) for row in rows] == [
        (FORMS[n % 4][1], n < 6) for n in range(12)
    ]


def test_built_in_problems_and_mixtures_are_distilled_without_repeats(problems):
    parts = [Source(rows=5), Source(str(problems)), Source(str(problems))]
    rows = distil.distilled_problems(Distil(mixture=parts), 0)
    assert len(rows) == 11 and (rows["source"] == "builtin").sum() == 5
    rows = distil.distilled_problems(Distil(str(problems), columns=Columns(id="answer")), 0)
    assert rows["id"].to_list() == rows["answer"].to_list()


def test_columns_are_chosen_and_problems_told_apart_by_the_uuid_column(problems):
    path, out = problems.parent / "other.jsonl", problems.parent / "out.jsonl"
    rows = [{"q": "1 + 1?", "uuid": "a"}, {"q": "1 + 1?", "uuid": "b"}, {"q": "2 + 1?", "uuid": "b"}]
    lines(path, *rows)
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
    source = lines(tmp_path / "bits.jsonl", *({"problem": f"{i}?", "answer": 1} for i in range(4)))
    keys = [f"model.base={TINY}", "seed=3", f"distil.source={source}", "distil.rows=null"]
    keys += ["distil.reject.pass_rate=[0.0, 1.0]"]
    run = runs.Run(config.load("tiny-distil", keys), tmp_path, "distil", 0.0)
    tally, found = distil.distil_in_run(run, SoFar(run.profile.prompt.tags, None)), distil.reject_in_run(run)
    assert asked == [(TINY, 3, "distil")] and tally.done == 32
    assert len(found.kept) > 0 and len(found.kept) == len(records(tmp_path / "distil/kept.jsonl"))
    source = prepare.load_sets(run.profile, tmp_path).rows["sft"]
    assert source["solution"].to_list() == found.kept["generation"].to_list() and source["correct"].all()
    assert json.loads((run.folder / "samples.settings.json").read_text())["weights"]


def test_the_file_is_pushed_with_a_card(problems, hub):
    with serving() as server:
        tally, _ = sampled(problems, server)
    out = problems.parent / "out.jsonl"
    assert distil.push_samples(out, "me/traces", Distil(str(problems)), tally) == "hub/me/traces"
    assert hub["repo"] == ("me/traces", "dataset", True) and hub["train.jsonl"] == out.read_bytes()
    card = hub["README.md"].decode()
    assert "Completions of teacher" in card and "12 of 12" in card


# ---- rejection: which completions are kept


def judged(*samples):
    """A table as sources gives it, from (problem, answer, completion, verdict)."""
    columns = {"problem": pl.String, "answer": pl.String, "solution": pl.String, "correct": pl.Boolean}
    return pl.DataFrame(samples, columns, orient="row")


def of_sum(*texts):
    return judged(*((SUM, "2", text, None) for text in texts))


def kept(table, **keys):
    return distil.reject(table, Reject(**keys)).kept["generation"].to_list()


SUM = "1 + 1?"


def test_a_completion_is_judged_by_its_answer_whatever_its_column_says():
    table = judged(
        (SUM, "2", "\\boxed{3}", True),
        (SUM, "2", "so \\boxed{2}", None),
        (SUM, "2", "as \\boxed{2.0}", True),
        (SUM, "2", "or \\boxed{2}", False),
        (SUM, "2", "it is two", True),
    )
    chosen, dropped, _ = distil.reject(table, Reject())
    assert chosen["generation"].to_list() == ["so \\boxed{2}", "as \\boxed{2.0}"]
    assert chosen["pass_rate"].to_list() == [0.4, 0.4] and chosen["samples"].to_list() == [5, 5]
    assert dropped == {"another answer": 1, "unfinished, or marked wrong": 1, "no final answer": 1}


def test_a_cap_takes_the_first_the_shortest_or_the_most_different():
    texts = ["we add one and one \\boxed{2}", "we add one and then one \\boxed{2}", "two pens \\boxed{2}"]
    table = of_sum(*texts)
    assert kept(table, max_per_problem=1) == texts[:1]
    assert kept(table, max_per_problem=1, prefer="shorter") == texts[2:]
    assert kept(table, max_per_problem=2, prefer="shorter") == [texts[0], texts[2]]
    different = "a different way, namely two pens \\boxed{2}"
    assert kept(of_sum(*texts[:2], different), max_per_problem=2, prefer="diverse")[1] == different
    assert kept(of_sum(*texts[:1] * 3)) == texts[:1], "the same text is kept once"


def test_problems_of_another_pass_rate_are_dropped_and_nothing_left_is_refused():
    easy = [("easy", "2", f"{i} \\boxed{{2}}", None) for i in range(4)]
    fair = [("fair", "2", f"{i} \\boxed{{{i}}}", None) for i in range(4)]
    assert kept(judged(*easy, *fair), pass_rate=(0.1, 0.9)) == ["2 \\boxed{2}"]
    with pytest.raises(AimoError, match=r"no row has a gold answer.*--answer-column"):
        kept(judged((SUM, None, "\\boxed{2}", True)))
    with pytest.raises(AimoError, match=r"no completion is kept \(1 another answer\)"):
        kept(of_sum("\\boxed{3}"))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_what_is_kept_is_a_source_and_shown_on_a_page(tmp_path, suffix):
    samples = [
        {"key": f"{i}", "sample": 0, "problem": f"{i} + 1?", "answer": str(i + 1), "complete": i < 4}
        | {"generation": f"\\boxed{{{max(2, i)}}}"}
        for i in range(6)
    ]
    out = tmp_path / f"kept.{suffix}"
    page = ["--page", tmp_path / "page.html"]
    done = here("reject", lines(tmp_path / "samples.jsonl", *samples), "--out", out, *page)
    assert done.returncode == 0, done.stderr
    assert "2 dropped: unfinished" in done.stdout and "1 kept, of 1 problems" in done.stdout
    rows, _ = sources.load_source(config.Source(str(out), preset="aimo reject"), 0, "data.sft")
    assert rows.select("problem", "answer", "solution", "correct", "pass_rate").rows() == [
        ("1 + 1?", "2", "\\boxed{2}", True, 1.0)
    ]
    headline = json.loads((tmp_path / "page.json").read_text())["headline"]
    assert headline.startswith("1 completions kept, pass rate 0.")
    path = lines(tmp_path / "mine.jsonl", {"problem": SUM, "answer": "2", "text": "\\boxed{2}"})
    done = here("reject", path, "--solution-column", "text", "--out", out)
    assert done.returncode == 0 and "1 kept" in done.stdout, "no other column of aimo distil is needed"


def test_what_is_kept_does_not_depend_on_the_order_in_which_samples_ended(tmp_path):
    samples = [
        {"key": key, "sample": i, "problem": f"{key}?", "answer": "2", "generation": f"{i}: \\boxed{{2}}"}
        for key in "ba"
        for i in range(11)
    ]
    for order in (samples, samples[::-1]):
        path = lines(tmp_path / "samples.jsonl", *(sample | {"complete": True} for sample in order))
        table, _ = sources.load_source(config.Source(str(path), preset="aimo distil"), 0, "distil")
        kept = distil.reject(table, Reject(max_per_problem=3)).kept.select("problem", "generation").rows()
        assert kept == [(f"{key}?", f"{i}: \\boxed{{2}}") for key in "ab" for i in range(3)]
