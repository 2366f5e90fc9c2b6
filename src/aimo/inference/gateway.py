"""Kaggle's evaluation protocol around the solver: questions in, `submission.parquet` out.

In a competition rerun, Kaggle's own inference server starts at once and the model loads while it waits; otherwise a
gateway asks the questions of a CSV one by one: Kaggle's own where `kaggle_evaluation` can be imported, else the one below,
which makes the same calls and the same checks. Out of scope: what a question does with its time, which is the solver's.
"""

import hashlib
import importlib.util
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import polars as pl

from aimo.inference import timebank
from aimo.inference.engine import Engine, check_model_folder
from aimo.inference.errors import AimoError
from aimo.inference.solver import FALLBACK, Sample, Solution, solve

Predict = Callable[[Any, Any], pl.DataFrame]
ATTEMPTS = 3  # at a question, each with another engine
CLOSING_S = 30  # for an engine that failed to give back its memory
LAST_CHANCE_S = 60  # less is not worth starting an engine for
MARGIN_S = 120  # of a Kaggle session, kept for the gateway to finish


@dataclass(frozen=True)
class Competition:
    """One competition's rules."""

    problem_column: str
    high: int
    server: str
    questions: int
    """How many the rerun is expected to ask."""
    answer_limit_s: float | None


COMPETITIONS = {
    "aimo2": Competition("question", 999, "aimo_2_inference_server.AIMO2InferenceServer", 50, 1800.0),
    "aimo3": Competition("problem", 99999, "aimo_3_inference_server.AIMO3InferenceServer", 50, None),
}


def read_questions(test_csv: str | Path, competition: str | None = None) -> tuple[str, pl.DataFrame]:
    """A test file as a table with `id`, the problem column and, if known, `answer`; and its competition's name.

    Without a name, the problem column tells: `question` is aimo2, `problem` is aimo3. Raises AimoError naming the fault.
    """
    path = Path(test_csv)
    if competition is not None and competition not in COMPETITIONS:
        raise AimoError(f"competition {competition!r} is unknown: use one of {', '.join(COMPETITIONS)}")
    if not path.is_file():
        raise AimoError(f"test file {path} does not exist; give a CSV with the columns id and problem")
    try:
        table = pl.read_csv(path, infer_schema=False)
    except pl.exceptions.NoDataError:
        raise AimoError(
            f"test file {path} is empty; it needs the columns id and problem, and a row a question"
        ) from None
    except (pl.exceptions.PolarsError, OSError) as e:
        raise AimoError(f"test file {path} cannot be read as CSV: {' '.join(str(e).split())[:200]}") from None
    if competition is None:
        competition = "aimo2" if "question" in table.columns and "problem" not in table.columns else "aimo3"
    for column in ("id", COMPETITIONS[competition].problem_column):
        if column not in table.columns:
            raise AimoError(
                f"test file {path} has no column {column!r}, only {', '.join(table.columns)}; {competition} needs it"
            )
    if table.is_empty():
        raise AimoError(f"test file {path} has no rows; it needs one a question")
    ids = table["id"].fill_null("")
    if (ids == "").any():
        raise AimoError(f"test file {path} has a row without an id; give every question its own")
    if ids.is_duplicated().any():
        raise AimoError(
            f"test file {path} has the id {ids.filter(ids.is_duplicated())[0]!r} twice; give every question its own"
        )
    return competition, table


class Keeper:
    """The engine at work, or the one that is loading; another is started when it fails."""

    def __init__(self, load: Callable[[], Engine], engine: Engine | None = None):
        """Start loading in a thread, unless there is an engine to begin with."""
        self.load, self.given = load, engine
        if engine:
            self.loaded: Future[Engine] = Future()
            self.loaded.set_result(engine)
        else:
            self.start()

    def start(self, failed: Engine | None = None) -> None:
        """Load an engine in a thread, once the memory of one that failed is free."""
        self.loaded = Future()
        Thread(target=self.work, args=(self.loaded, failed), daemon=True).start()

    def work(self, loaded: "Future[Engine]", failed: Engine | None) -> None:
        """Load an engine into a future."""
        if failed:
            closing = Thread(target=failed.close, daemon=True)
            closing.start()
            closing.join(CLOSING_S)
        try:
            loaded.set_result(self.load())
        except BaseException as e:
            loaded.set_exception(e)

    def get(self, timeout: float | None = None) -> Engine:
        """The engine, waited for at most `timeout` seconds; one that did not come up is tried again."""
        if self.loaded.done() and self.loaded.exception():
            self.start()
        return self.loaded.result(timeout)

    def replace(self, failed: Engine) -> None:
        """Start another in place of one that failed, unless that has been done."""
        if self.loaded.done() and not self.loaded.exception() and self.loaded.result() is failed:
            self.start(failed)

    def close(self) -> None:
        """End the engine, if it ever came up and is not the one that was given."""
        if self.loaded.done() and not self.loaded.exception() and self.loaded.result() is not self.given:
            self.loaded.result().close()


class Journal:
    """Each finished sample and answer as a JSON line on disk: a kernel that starts again goes on from them."""

    def __init__(self, path: Path, model: str):
        """Read what an earlier start with the same model left."""
        self.path, self.model = path, model
        self.known: dict[str, Solution] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                entry = json.loads(line)
                solution = self.known.setdefault(entry["key"], Solution())
                if "sample" in entry:
                    solution.samples.append(Sample(**entry["sample"]))
                else:
                    solution.answer, solution.stop, solution.note = (
                        entry["answer"],
                        "known",
                        "from the journal",
                    )
            except (ValueError, KeyError, TypeError):
                print(f"{path}: a line was cut off and is left out: {line[:80]!r}")

    def key(self, question_id: str, problem: str) -> str:
        """What a question is known by: another problem of the same id is another question, as it is to another model."""
        return hashlib.sha256("\0".join((self.model, question_id, problem)).encode()).hexdigest()[:16]

    def recall(self, question_id: str, problem: str) -> Solution:
        """What is known of a question; `stop` is `known` when it was answered."""
        return self.known.get(self.key(question_id, problem)) or Solution()

    def add(self, question_id: str, problem: str, **entry: Any) -> None:
        """Write a line; a disk that is full costs the line, not the answer."""
        line = json.dumps({"key": self.key(question_id, problem), "id": question_id} | entry)
        try:
            with self.path.open("a") as file:
                file.write(line + "\n")
        except OSError as e:
            print(f"{self.path}: {e}; what is not written is lost when the kernel starts again")


def make_predict(
    competition: str,
    keeper: Keeper,
    samples: int,
    time_limit_s: float | None,
    seed: int = 0,
    questions: int | None = None,
    solutions: dict[str, Solution] | None = None,
    journal: Journal | None = None,
) -> Predict:
    """The function Kaggle's gateway calls once a question: two Series of length 1 in, one row of `id` and `answer` out.

    It never raises: whatever goes wrong, the row holds the fallback answer and the reason is printed. `solutions`
    collects what was found, by id. An engine that fails is started again, and the question asked again if it has no vote yet.
    """
    rules = COMPETITIONS[competition]
    started = time.monotonic()
    expected = questions or rules.questions
    answered = 0

    def predict(id_: Any, problem: Any) -> pl.DataFrame:
        nonlocal answered
        question_id, solution = "", Solution()
        begun = time.monotonic()
        try:
            question_id = str(id_[0])
            left = (
                None
                if time_limit_s is None
                else time_limit_s - MARGIN_S * (time_limit_s > 10 * MARGIN_S) - (begun - started)
            )
            planned = timebank.questions_left(answered, expected, known=questions is not None)
            share = (
                None
                if left is None
                else max(1.0, timebank.budget(left, planned, timebank.minimum(time_limit_s or 0, expected)))
            )
            budget = min(
                (b for b in (share, rules.answer_limit_s and rules.answer_limit_s - 30) if b), default=None
            )
            answered += 1
            text = str(problem[0] or "")
            if journal:
                solution = journal.recall(question_id, text)

            def keep(sample: Sample) -> None:
                if journal:
                    journal.add(question_id, text, sample=asdict(sample))

            for _ in range(ATTEMPTS if solution.stop != "known" else 0):
                remaining = budget and max(1.0, budget - (time.monotonic() - begun))
                attempt(keeper, text, samples, rules.high, seed, remaining, solution, keep)
                if solution.stop != "failed" or (remaining or LAST_CHANCE_S) < LAST_CHANCE_S:
                    break
            if journal and solution.votes and solution.stop != "known":  # a fallback is not worth keeping
                journal.add(question_id, text, answer=solution.answer)
        except Exception as e:  # an exception here would end the whole submission
            solution = Solution(
                note=f"{type(e).__name__}: {' '.join(str(e).split())}", seconds=time.monotonic() - begun
            )
        if solutions is not None:
            solutions[question_id] = solution
        rest = (
            ""
            if time_limit_s is None
            else f", {(time_limit_s - (time.monotonic() - started)) / 60:.0f} min left"
        )
        print(f"{question_id}: {solution.explain()}{rest}", flush=True)
        return pl.DataFrame({"id": [question_id], "answer": [solution.answer]})

    return predict


def attempt(
    keeper: Keeper,
    problem: str,
    samples: int,
    high: int,
    seed: int,
    budget: float | None,
    solution: Solution,
    keep: Callable[[Sample], None],
) -> None:
    """One try at a question, from the samples that `solution` has; an engine that raises, hangs or writes nothing is replaced."""
    engine, begun = None, time.monotonic()
    try:
        engine = keeper.get(budget)
        left = budget and max(1.0, budget - (time.monotonic() - begun))
        solve(engine, problem, samples, 0, high, seed, left, solution=solution, keep=keep)
    except TimeoutError:
        solution.stop = "failed"
        solution.note = f"the engine {'hung' if engine else 'was not ready'} within {budget:.0f} s"
    except Exception as e:
        solution.stop, solution.note = "failed", f"{type(e).__name__}: {' '.join(str(e).split())}"
    if engine and solution.stop == "failed":
        keeper.replace(engine)


def local_gateway(predict: Predict, test_csv: str | Path, competition: str, seed: int = 0) -> pl.DataFrame:
    """Ask every question of a CSV in random order and check each row as Kaggle's gateway does; returns the submission."""
    rules = COMPETITIONS[competition]
    _, table = read_questions(test_csv, competition)
    rows = table.select("id", pl.col(rules.problem_column).fill_null("")).rows()
    random.Random(seed).shuffle(rows)
    replies = [
        check_reply(predict(pl.Series("id", [i]), pl.Series(rules.problem_column, [text])), i, rules)
        for i, text in rows
    ]
    return pl.DataFrame(replies, schema={"id": pl.String, "answer": pl.Int64}, orient="row")


def answer_all(
    engine: Engine, test_csv: str | Path, samples: int, seed: int
) -> tuple[pl.DataFrame, dict[str, Solution]]:
    """Answer a test file through the local gateway: the submission, and the solutions by id; an engine that fails is replaced."""
    competition, table = read_questions(test_csv)
    solutions: dict[str, Solution] = {}
    keeper = Keeper(engine.again, engine)
    predict = make_predict(competition, keeper, samples, None, seed, len(table), solutions)
    try:
        submission = local_gateway(predict, test_csv, competition, seed)
    finally:
        keeper.close()
    report_fallbacks(solutions)
    return submission, solutions


def check_reply(reply: Any, question_id: str, rules: Competition) -> tuple[str, int]:
    """One reply of `predict` as (id, answer), or AimoError for what would end a submission on Kaggle."""
    if type(reply).__module__.startswith("pandas"):
        reply = pl.from_pandas(reply)
    if not isinstance(reply, pl.DataFrame) or reply.columns != ["id", "answer"] or len(reply) != 1:
        raise AimoError(
            f"question {question_id}: predict must return one row of id and answer, not {reply!r}"
        )
    found_id, answer = reply.row(0)
    if str(found_id) != question_id or not isinstance(answer, int) or not 0 <= answer <= rules.high:
        raise AimoError(
            f"question {question_id}: predict returned {found_id!r}, {answer!r}; an integer from 0 to {rules.high} is valid"
        )
    return question_id, answer


def kaggle_server(competition: str, inputs: Path = Path("/kaggle/input")) -> Any:
    """Kaggle's inference server class for a competition, or None where `kaggle_evaluation` is not to be found."""
    module, _, name = COMPETITIONS[competition].server.partition(".")
    sys.path.extend(
        str(p.parent) for depth in ("*", "*/*") for p in inputs.glob(f"{depth}/kaggle_evaluation")
    )
    try:
        return getattr(importlib.import_module(f"kaggle_evaluation.{module}"), name)
    except ImportError:
        return None


def install_vllm(inputs: Path = Path("/kaggle/input")) -> None:
    """Where vLLM is not installed, install the wheels of the attached input that holds it, without the internet."""
    if importlib.util.find_spec("vllm"):
        return
    wheel = next(inputs.rglob("vllm-*.whl"), None)
    if wheel is None:
        raise AimoError(
            f"vllm is not installed and no vllm-*.whl lies under {inputs}; attach a dataset of wheels"
        )
    wheels = [str(p) for p in wheel.parent.glob("*.whl")]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", *wheels], check=True
    )
    importlib.invalidate_caches()


def serve(
    competition: str,
    model: str,
    test_csv: str,
    samples: int,
    time_limit_s: float,
    adapter: str | None = None,
    vllm: dict[str, Any] | None = None,
) -> dict[str, Solution]:
    """What the submission kernel does: answer Kaggle's gateway in a rerun, else the questions of `test_csv`.

    `adapter` and `vllm` go to the engine. Returns the solutions by id. Bad settings raise AimoError before anything starts, but
    never in a rerun.
    """
    rerun = bool(os.getenv("KAGGLE_IS_COMPETITION_RERUN"))
    server_class = kaggle_server(competition)
    if rerun and server_class is None:
        raise AimoError(
            "kaggle_evaluation is not among the inputs; add the competition to the kernel's sources"
        )
    questions = None
    if not rerun:
        check_model_folder(Path(model))
        questions = len(read_questions(test_csv, competition)[1])

    def load() -> Engine:
        install_vllm()
        return Engine(model, adapter=adapter, vllm=vllm)

    keeper = Keeper(load)
    solutions: dict[str, Solution] = {}
    journal = Journal(Path("journal.jsonl"), model)
    predict = make_predict(competition, keeper, samples, time_limit_s, 0, questions, solutions, journal)
    try:
        if rerun:
            server_class(predict).serve()
        elif server_class is not None:
            server_class(predict).run_local_gateway((str(test_csv),))
        else:
            local_gateway(predict, test_csv, competition).write_parquet("submission.parquet")
    finally:
        keeper.close()
    report_fallbacks(solutions)
    return solutions


def report_fallbacks(solutions: dict[str, Solution]) -> None:
    """Say how many answers are fallbacks, and why, so that none goes unnoticed."""
    notes = {i: s.note for i, s in solutions.items() if s.note}
    print(
        f"{len(solutions)} questions answered, {sum(not s.votes for s in solutions.values())} with the fallback {FALLBACK}"
    )
    for question_id, note in notes.items():
        print(f"  {question_id}: {note}")
