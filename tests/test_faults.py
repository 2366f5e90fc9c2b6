"""No answer is lost: faults in the real engine, with the tiny base, in a stand-in for it, in the sandbox."""

import asyncio
import errno
import io
import json
import os
import signal
import sys
import time
from dataclasses import replace
from functools import partial

import polars as pl
import psutil
import pytest
from conftest import TINY
from scripted import Scripted

from aimo.inference import gateway, sandbox, solver, voting
from aimo.inference.competitions import COMPETITIONS
from aimo.inference.engine import Engine, Supervisor
from aimo.inference.errors import AimoError, EngineError
from aimo.inference.gateway import Schedule, make_predict
from aimo.inference.journal import Journal
from aimo.inference.local import answer_file
from aimo.inference.local import ask as ask_by_hand
from aimo.inference.sample import End
from aimo.inference.settings import resolve_settings
from aimo.inference.solver import Solution

QUESTION = "What is the mean of 3, 4 and 5?"
PROGRAM = "```python\nimport time; time.sleep(0.5); print(42)\n```\n"


def predictor(load, limit_s=400.0, questions=3, **more):
    """`predict` of AIMO 3 with an engine that `load` gives, or a supervisor."""
    supervisor = load if isinstance(load, Supervisor) else Supervisor(load)
    return make_predict(Schedule(COMPETITIONS["aimo3"], limit_s, questions), supervisor, **more)


def ask(predict, problem=QUESTION, question_id="q"):
    """What `predict` answers, as Kaggle's gateway asks; the row must be valid."""
    row = predict(pl.Series("id", [question_id]), pl.Series("problem", [problem]))
    assert row.columns == ["id", "answer"] and row["id"].to_list() == [question_id]
    assert 0 <= row["answer"][0] <= 99999
    return row["answer"][0]


def engine_processes():
    """The processes of vLLM that belong to this one."""
    alive = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    return [p for p in alive if "EngineCore" in " ".join([p.name(), *p.cmdline()])]


@pytest.fixture(scope="module")
def expected(engine):
    """What an engine in good health answers."""
    return ask(predictor(lambda: engine))


@pytest.fixture(scope="module")
def own(engine):
    """A supervisor whose engines the tests may harm; what one test leaves is what the next one harms."""
    kept = set(engine_processes())
    supervisor = Supervisor(lambda: Engine(TINY))
    supervisor.processes = lambda: [p for p in engine_processes() if p not in kept]
    supervisor.get()
    assert supervisor.processes()
    yield supervisor
    supervisor.close()


@pytest.mark.engine
def test_an_engine_that_hangs_is_replaced_and_the_samples_that_ended_are_kept(
    own, expected, monkeypatch, tmp_path
):
    monkeypatch.setattr(solver, "HANG_S", 4.0)
    monkeypatch.setattr(gateway, "solve_problem", partial(solver.solve_problem, policy=voting.EXACT))
    first, processes, solutions = own.get(), own.processes(), {}
    journal = Journal(tmp_path / "journal.jsonl", "m")
    add, kept = journal.add, []

    def freeze(question_id, problem, entry):
        add(question_id, problem, entry)
        kept.append(entry)
        for process in processes if len(kept) == 3 else ():
            process.send_signal(signal.SIGSTOP)

    monkeypatch.setattr(journal, "add", freeze)
    assert ask(predictor(own, journal=journal, solutions=solutions)) == expected
    assert own.get(0) is not first
    samples = solutions["q"].samples
    assert kept[:3] == samples[:3] and len({sample.index for sample in samples}) == len(samples)


@pytest.mark.engine
def test_an_engine_that_dies_under_a_test_file_is_replaced_and_every_question_answered(
    own, tmp_path, expected
):
    rows = "".join(f'q{i},"{QUESTION}"\n' for i in (2, 0, 1))
    (tmp_path / "test.csv").write_text(f"id,problem\n{rows}")
    first = own.get()
    for process in own.processes():
        process.kill()
    solutions = answer_file(first, tmp_path / "test.csv", tmp_path / "a.csv", 0)
    answers = "".join(f"q{i},{expected}\n" for i in (2, 0, 1))
    assert (tmp_path / "a.csv").read_text() == f"id,answer\n{answers}"
    assert not any(s.note for s in solutions.values())
    assert resolve_settings(TINY, json.loads((tmp_path / "a.settings.json").read_text())) == first.settings
    with pytest.raises(AimoError, match="closed"):
        first.run(asyncio.sleep(0))


TEXTS = ["", None, "x" * 200_000, "求 3、4、5 的平均数。", "<|im_end|><SOLUTION>7</SOLUTION>", "\x00\ufffd"]


@pytest.mark.parametrize("problem", TEXTS)
def test_every_question_gets_a_valid_row_and_is_sampled_to_the_end(engine, problem):
    solutions = {}
    ask(predictor(lambda: engine, solutions=solutions), problem)
    found = solutions["q"]
    assert found.ended or "empty" in found.note or "do not fit" in found.note
    assert bool(found.votes) != bool(found.note)
    assert all(sample.text and sample.end is not End.TIME for sample in found.ended)


# ---- Faults at the border: a stand-in for the model raises what real libraries have raised


class PanicException(BaseException):
    """As pyo3 raises where Rust panics: no Exception."""


def right(number, prompt):
    return "So \\boxed{42}\x03"


def failing(error, times=10**9):
    """A model whose first requests raise."""

    def write(number, prompt):
        if number < times:
            raise error
        return right(number, prompt)

    return write


class Broken:
    """Raises at any use."""

    def __init__(self, error):
        self.error = error

    def __getattr__(self, name):
        raise self.error

    __call__ = __iter__ = __getitem__ = lambda self, *_, **__: self.any


def journal_that_raises(error, *methods):
    journal = Journal()
    for method in methods:
        setattr(journal, method, Broken(error))
    return journal


def shut(monkeypatch):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)


PANIC = PanicException("called `Option::unwrap()` on a `None` value")
FAULTS = {  # the answer is 42 where a fault costs a part, 0 where it costs the model
    "loading raises": (0, {"load": Broken(ValueError("bad"))}),
    "loading exits": (0, {"load": Broken(SystemExit(3))}),
    "every stream exits": (0, {"write": failing(SystemExit(3))}),
    "every stream panics": (0, {"write": failing(PANIC)}),
    "one stream panics": (42, {"write": failing(PANIC, 1)}),
    "a stream is cancelled": (42, {"write": failing(asyncio.CancelledError(), 1)}),
    "the tokenizer panics": (0, {"tokenizer": Broken(PANIC)}),
    "standard output is closed": (42, {"patch": shut}),
    "print raises": (42, {"patch": lambda m: m.setattr("builtins.print", Broken(PANIC))}),
    "explain raises": (42, {"patch": lambda m: m.setattr(Solution, "explain", Broken(PANIC))}),
    "the journal cannot be used": (42, {"journal": journal_that_raises(PANIC, "add", "recall")}),
    "the time bank raises": (42, {"patch": lambda m: m.setattr(Schedule, "budget", Broken(PANIC))}),
    "the vote raises": (0, {"patch": lambda m: m.setattr(voting, "next_step", Broken(PANIC))}),
    "every answer has a surrogate": (42, {"write": lambda *_: "\ud800 \\boxed{42}\x03"}),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_predict_returns_a_valid_row_whatever_fails(fault, monkeypatch):
    answer, change = FAULTS[fault]
    sampler = Scripted(change.get("write", right))
    sampler.tokenizer = change.get("tokenizer", sampler.tokenizer)
    loads, load = [], change.get("load", lambda: loads.append(1) or sampler)
    predict = predictor(load, journal=change.get("journal"))
    with monkeypatch.context() as patch:
        change.get("patch", lambda _: None)(patch)
        rows = [predict(pl.Series([f"q{i}"]), pl.Series(["What is \ufffd 6 x 7?"])) for i in range(2)]
    assert [row.rows() for row in rows] == [[("q0", answer)], [("q1", answer)]]
    replaced = fault.startswith(("every stream", "the vote"))
    assert len(loads) <= 1 or replaced, "an engine in health was replaced"


def test_a_restarted_kernel_answers_what_its_journal_knows_and_asks_for_nothing(tmp_path):
    path, models = tmp_path / "journal.jsonl", [Scripted(right) for _ in range(3)]
    assert ask(predictor(lambda: models[0], journal=Journal(path, "m"))) == 42
    path.write_text(path.read_text() + '{"key": "q2", "sam')
    again = predictor(lambda: models[1], journal=Journal(path, "m"))
    assert ask(again) == 42 and next(models[1].requests) == 0
    assert ask(again, "Another problem?") == 42 and next(models[1].requests) > 1, "of the same id"
    assert ask(predictor(lambda: models[2], journal=Journal(path, "another model"))) == 42
    assert next(models[2].requests) > 1


def test_a_person_who_interrupts_is_obeyed():
    predict = predictor(lambda: Scripted(right), journal=journal_that_raises(KeyboardInterrupt(), "recall"))
    with pytest.raises(KeyboardInterrupt):
        predict(pl.Series(["q"]), pl.Series(["6 x 7"]))


def test_samples_that_fail_cost_their_votes_and_not_the_engine():
    sampler, loads, solutions = Scripted(failing(SystemExit("gone"), 3)), [], {}
    predict = predictor(lambda: loads.append(1) or sampler, solutions=solutions)
    assert ask(predict) == 42 and len(loads) == 1
    assert sum(sample.end is End.FAILED for sample in solutions["q"].samples) == 3
    assert "3 samples failed: SystemExit: gone" in solutions["q"].note


def test_a_problem_asked_by_hand_is_answered_by_the_samples_that_do_not_fail(capsys):
    assert ask_by_hand(Scripted(failing(ValueError("bad"), 1), samples=2), "6 x 7") == "42"
    with pytest.raises(EngineError, match="bad"):
        ask_by_hand(Scripted(failing(ValueError("bad")), samples=2), "6 x 7")


def test_servers_that_go_down_in_the_middle_are_waited_for_and_the_samples_asked_again():
    loads, solutions = [], {}

    def write(number, prompt):  # three of eight differ, so that no vote is settled before
        if len(loads) == 1 and number >= 3:
            raise ConnectionError("refused")
        return f"\\boxed{{{number}}}\x03" if len(loads) == 1 else right(number, prompt)

    assert ask(predictor(lambda: loads.append(1) or Scripted(write), solutions=solutions)) == 42
    indices = [sample.index for sample in solutions["q"].samples]
    assert len(loads) == 2 and len(set(indices)) == len(indices)


def test_a_program_longer_than_the_hang_limit_is_no_hang_and_a_silent_engine_is(monkeypatch):
    monkeypatch.setattr(solver, "HANG_S", 0.3)
    monkeypatch.setattr(solver, "HEALTH_CHECK_S", 0.1)
    sampler = Scripted(lambda number, prompt: right(0, "") if "output" in prompt else PROGRAM, tools=1.0)
    sampler.settings = replace(sampler.settings, samples=1)
    loads = []
    assert ask(predictor(lambda: loads.append(1) or sampler)) == 42 and len(loads) == 1
    silent = Scripted(lambda *_: asyncio.sleep(1000))
    monkeypatch.setattr(gateway, "ATTEMPTS", 1)
    solutions = {}
    assert ask(predictor(lambda: silent, solutions=solutions)) == 0
    assert "wrote nothing" in solutions["q"].note
    silent.queue_s = 0.6
    begun = time.monotonic()
    assert ask(predictor(lambda: silent, solutions=solutions)) == 0
    assert time.monotonic() - begun > 0.6, "a server may queue a stream for so long"


def test_a_sandbox_that_runs_out_of_descriptors_costs_the_programs_and_not_the_samples(monkeypatch, capsys):
    full = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    monkeypatch.setattr(sandbox, "Session", Broken(full))
    monkeypatch.setattr(solver, "has_sandbox", lambda: True)
    sandbox.note_fault.cache_clear()
    sampler = Scripted(lambda _, prompt: right(0, "") if "```output" in prompt else PROGRAM, tools=1.0)
    assert [ask(predictor(lambda: sampler)) for _ in range(2)] == [42, 42]
    assert capsys.readouterr().out.count(full.strerror) == 1


@pytest.mark.parametrize("id_, problem", [("q", "6 x 7"), (5, None), ([], []), (None, float("nan"))])
def test_predict_takes_whatever_kind_of_value_a_gateway_gives(id_, problem):
    row = predictor(lambda: Scripted(right))(id_, problem)
    assert row.columns == ["id", "answer"] and row.shape == (1, 2)
