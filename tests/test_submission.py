"""Kaggle's protocol: test files, `predict`, the gateways and the server of a rerun."""

import dataclasses
import importlib.util
import sys
import threading
import time
import types
from pathlib import Path

import polars as pl
import pytest
from conftest import TINY

from aimo.inference import gateway, startup
from aimo.inference.competitions import COMPETITIONS
from aimo.inference.engine import Supervisor
from aimo.inference.errors import AimoError
from aimo.inference.gateway import Schedule, ask_each, make_predict
from aimo.inference.local import read_questions
from aimo.inference.voting import Stop


def accepted(reply, id_, competition):
    """What the gateway takes a reply of `predict` for."""
    rules = COMPETITIONS[competition]
    return next(ask_each(lambda *_: reply, pl.DataFrame({"id": [id_], rules.inputs.problem: ["x"]}), rules))


def test_the_problem_column_tells_the_competition(tmp_path):
    (tmp_path / "a.csv").write_text("id,question\n1,x\n")
    (tmp_path / "b.csv").write_text("id,problem\n1,x\n")
    assert read_questions(tmp_path / "a.csv")[0] == "aimo2"
    assert read_questions(tmp_path / "b.csv")[0] == "aimo3"
    with pytest.raises(AimoError, match="no column 'question'"):
        read_questions(tmp_path / "b.csv", "aimo2")


def test_the_gateway_takes_a_row_and_refuses_what_would_end_a_submission():
    assert accepted(pl.DataFrame({"id": ["q"], "answer": [5]}), "q", "aimo2") == ("q", 5)
    wrong = (["q"], [1000]), (["q"], [-1]), (["q"], [1.5]), (["other"], [1]), (["q", "q"], [1, 2])
    rows = [pl.DataFrame({"id": ids, "answer": answers}) for ids, answers in wrong]
    for reply in (None, 7, pl.DataFrame({"answer": [1]}), rows[0].clear(), *rows):
        with pytest.raises(AimoError, match="question q"):
            accepted(reply, "q", "aimo2")


SAMPLER = types.SimpleNamespace(settings=types.SimpleNamespace(samples=1), close=lambda: None)


def test_a_question_gets_what_the_time_bank_allows(monkeypatch):
    budgets = []
    monkeypatch.setattr(gateway, "solve_problem", lambda *given, **_: budgets.append(given[5]))
    predict = make_predict(Schedule(COMPETITIONS["aimo3"], 300.0, 3), Supervisor(lambda: SAMPLER))
    for i in range(3):
        predict(f"q{i}", "What is the mean of 3, 4 and 5?")
    # Two shares, as long as the others keep their minimum of 60 s.
    assert 176 < budgets[0] < 181 and 236 < budgets[1] < 241 and 290 < budgets[2] < 301


class FakeServer:
    """Kaggle's side, as the competition's package behaves: `serve` answers what a rerun asks."""

    def __init__(self, predict):
        self.predict, self.rows = predict, []
        FakeServer.last = self

    def serve(self):
        for i, text in ("a", "What is the mean of 3, 4 and 5?"), ("b", ""), ("c", "Solve 3 x + 4 = 19."):
            reply = self.predict(pl.Series("id", [i]), pl.Series("problem", [text]))
            self.rows.append(accepted(reply, i, "aimo3"))

    def run_local_gateway(self, paths):
        self.paths = paths


def kaggle_package(monkeypatch, number):
    """Put the competition's package where Python finds it."""
    package = types.ModuleType(f"kaggle_evaluation.aimo_{number}_inference_server")
    setattr(package, f"AIMO{number}InferenceServer", FakeServer)
    monkeypatch.setitem(sys.modules, "kaggle_evaluation", types.ModuleType("kaggle_evaluation"))
    monkeypatch.setitem(sys.modules, package.__name__, package)


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """Serve a test file with these bytes or this text, or none, in a folder of its own. Nothing is loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gateway, "start_engine", lambda *_: SAMPLER)

    def serve(competition, content=None, model=TINY, limit_s=100.0, **settings):
        if content is not None:
            Path("t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
        return gateway.serve_submission(competition, str(model), "t.csv", limit_s, settings)

    return serve


@pytest.fixture
def rerun(monkeypatch):
    kaggle_package(monkeypatch, 3)
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")


def no_engine(*_):
    raise AimoError("no engine")


def test_in_a_rerun_a_model_that_is_not_there_costs_its_answers_and_not_the_submission(
    rerun, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    solutions = gateway.serve_submission("aimo3", "nothing", "", 100.0, {})
    assert FakeServer.last.rows == [("a", 0), ("b", 0), ("c", 0)]
    assert all("no such folder" in s.note for s in solutions.values())


def test_in_a_rerun_the_server_starts_before_the_engine_has_loaded(rerun, serve, monkeypatch):
    serving, loaded_first = threading.Event(), []

    def start_engine(*_):
        loaded_first.append(not serving.wait(20))
        no_engine()

    monkeypatch.setattr(gateway, "start_engine", start_engine)
    monkeypatch.setattr(FakeServer, "serve", lambda self: (serving.set(), self.predict(["a"], ["1 + 1?"])))
    assert serve("aimo3")["a"].note == "no engine" and not any(loaded_first)


def test_a_competition_without_a_server_takes_a_csv_in_the_order_of_its_test_file(serve, monkeypatch):
    """A rerun without an engine has the fallback for each question; a trial run ends with the reason."""
    text = "id,problem\n" + "".join(f"q{i},{i} + 1?\n" for i in range(12))
    monkeypatch.setattr(gateway, "start_engine", no_engine)
    with pytest.raises(AimoError, match=r"^no engine$"):
        serve("aimo1", text)
    assert not Path("submission.csv").exists()
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    serve("aimo1", text)
    rows = "".join(f"q{i},0\n" for i in range(12))
    assert Path("submission.csv").read_text() == f"id,answer\n{rows}"


def test_the_start_up_counts_against_the_time_limit_except_where_a_person_works(rerun, serve, monkeypatch):
    monkeypatch.setattr(startup, "STARTED", time.monotonic() - 700)
    left = []
    monkeypatch.setattr(gateway, "solve_problem", lambda *arguments, **_: left.append(arguments[5]))
    serve("aimo3", limit_s=1000.0)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    serve("aimo3", limit_s=1000.0)
    assert sum(left[:3]) < 60 < sum(left[3:]), "of 50 questions"


@pytest.mark.parametrize(
    "content, competition, settings, told",
    [
        ("id,problem\n", "aimo3", {}, "t.csv has no rows"),
        ("name,problem\n1,x\n", "aimo3", {}, "t.csv has no column 'id'"),
        ("id,problem\na,x\na,y\n", "aimo3", {}, "t.csv has the id 'a' twice"),
        ("id,problem\n,x\n", "aimo3", {}, "t.csv .*without an id"),
        ("id,question\na,x\n", "aimo3", {}, "has no column 'problem', only id, question; aimo3 needs it"),
        ("id,problem\na,\u00e9\n".encode("latin-1"), "aimo3", {}, "t.csv: .*give a CSV in UTF-8"),
        ("id,problem\na,x,y\n", "aimo3", {}, "t.csv: .*give a CSV in UTF-8"),
        (None, "aimo3", {}, "t.csv: .*give a CSV in UTF-8"),
        ("", "aimo9", {}, "competition 'aimo9' is unknown: use one of aimo1, aimo2, aimo3"),
        ("id,problem\n1,x\n", "aimo3", {"temprature": 1.0}, "temprature"),
        ("id,question,answer\nq,x,1000\n", "aimo2", {}, "question q: .* '1000' is no integer"),
        ("id,question,answer\nq,x,\n", "aimo2", {}, "question q: .* '' is no integer"),
    ],
)
def test_what_is_wrong_with_a_kernels_parameters_is_named_before_anything_starts(
    serve, monkeypatch, content, competition, settings, told
):
    monkeypatch.setattr(gateway, "Supervisor", None)
    with pytest.raises(AimoError, match=told):
        serve(competition, content, **settings)
    assert not Path("settings.json").exists()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AimoError, match=r"^vllm not installed.*attach"):
        serve("aimo3", "id,problem\n1,x\n")


@pytest.mark.parametrize("where", ["{}", "competitions/{}"])
def test_kaggles_package_is_found_in_both_places_it_may_lie(monkeypatch, tmp_path, where):
    package = tmp_path / where.format(COMPETITIONS["aimo2"].slug) / "kaggle_evaluation"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "aimo_2_inference_server.py").write_text("class AIMO2InferenceServer:\n    place = __file__\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert gateway.kaggle_server("aimo2", tmp_path).place.startswith(str(package))
    for name in ("kaggle_evaluation", "kaggle_evaluation.aimo_2_inference_server"):
        del sys.modules[name]


def test_outside_a_rerun_kaggles_own_gateway_is_preferred(serve, monkeypatch):
    kaggle_package(monkeypatch, 2)
    serve("aimo2", "id,question\n1,x\n")
    assert FakeServer.last.paths == ("t.csv",)


@pytest.fixture
def play(serve, monkeypatch):
    """Serve a test file of ten with an `answer` to question i of pass n; returns the questions, by pass."""

    def play(competition, answer, column="problem", golds=True):
        asked = {}

        def solve(sampler, text, count, kind, seed, left, solution, **_):
            asked.setdefault(seed + 1, []).append(text)
            solution.answer, solution.stop = answer(int(text.removeprefix("text")), seed + 1), Stop.SETTLED

        monkeypatch.setattr(gateway, "solve_problem", solve)
        head = f"id,{column},answer\n" if golds else f"id,{column}\n"
        serve(competition, head + "".join(f"q{i},text{i}{f',{i}' * golds}\n" for i in range(10)))
        return list(asked.values())

    return play


def test_aimo3_is_answered_twice_and_scores_one_for_two_right_answers_and_half_for_one(play, capsys):
    """Questions below 6 are right in both passes, those below 9 in the second alone."""
    first, second = play("aimo3", lambda i, n: i if i < 6 or (n == 2 and i < 9) else 99)
    assert sorted(first) == sorted(second) == [f"text{i}" for i in range(10)]
    assert first != second and first != sorted(first)
    assert "score: 7.5 of 10, in 2 passes" in capsys.readouterr().out
    answers = pl.read_parquet("submission.parquet")
    assert answers.rows() == [(f"q{i}", i if i < 6 else 99) for i in range(10)]


def test_aimo2_is_answered_once_and_a_file_without_answers_is_not_scored(play, capsys):
    assert len(play("aimo2", lambda i, n: i % 8, "question")) == 1
    assert "score: 8 of 10, in 1 passes" in capsys.readouterr().out
    assert [len(one) for one in play("aimo3", lambda i, n: i, golds=False)] == [10]
    assert "score" not in capsys.readouterr().out


def test_a_start_up_longer_than_kaggles_gateway_waits_is_refused_before_the_first_question(
    serve, monkeypatch
):
    rules = dataclasses.replace(COMPETITIONS["aimo3"], start_limit_s=0.5)
    monkeypatch.setitem(COMPETITIONS, "aimo3", rules)
    monkeypatch.setattr(startup, "STARTED", time.monotonic() - 2)
    with pytest.raises(AimoError, match=r"ready 2 s after .*Kaggle's gateway waits 0 s.*wheels"):
        serve("aimo3", "id,problem\n1,x\n")
