"""Kaggle's evaluation protocol around the solver: questions in, `submission.parquet` out.

In a competition rerun, Kaggle's own inference server starts at once and waits while the model loads.
Otherwise a gateway asks the questions of a CSV one by one: Kaggle's own if `kaggle_evaluation` can be
imported, or `ask_each`, which makes the same calls and checks. A CSV with answers always goes to `ask_each`,
in as many passes as the competition has, and is scored.
"""

import contextlib
import importlib
import io
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from aimo.inference import competitions, startup
from aimo.inference.answers import Proof, Value
from aimo.inference.competitions import Competition
from aimo.inference.engine import Engine, Supervisor
from aimo.inference.errors import AimoError, one_line, say
from aimo.inference.journal import Journal
from aimo.inference.model_folder import check_model_folder, identity
from aimo.inference.sample import Sample
from aimo.inference.settings import Settings, check_parameters, resolve_settings
from aimo.inference.solver import Solution, next_budget, solve_problem
from aimo.inference.storage import write_whole
from aimo.inference.vllm_process import is_verbose, plan_for_this_machine, set_environment, stderr_to
from aimo.inference.voting import Stop

ATTEMPTS = 3  # per question, each with another engine
MIN_ATTEMPT_S = 60  # a question with less time left is not worth another engine
ANSWER_MARGIN_S = 30  # kept back from the time that Kaggle allows for one answer
Predict = Callable[[Any, Any], pl.DataFrame]


@dataclass
class Schedule:
    """The questions of a session, and the time for them."""

    rules: Competition
    limit_s: float | None  # for all questions, start-up included
    questions: int | None  # their number, if it is known
    asked: int = 0
    started: float = field(default_factory=time.monotonic)

    def budget(self) -> float | None:
        limits = []
        if self.limit_s is not None:
            expected, known = self.questions or self.rules.questions, self.questions is not None
            elapsed = time.monotonic() - self.started
            limits.append(next_budget(self.limit_s, elapsed, self.asked, expected, known))
        if self.rules.answer_limit_s is not None:
            limits.append(self.rules.answer_limit_s - ANSWER_MARGIN_S)
        return min(limits, default=None)

    def progress(self) -> str:
        """Return how many questions were asked, and the time left by the limit or by an estimate."""
        counted = f"{self.asked}/{self.questions}" if self.questions else f"{self.asked}"
        elapsed = time.monotonic() - self.started
        if self.limit_s is not None:
            return f"{counted}, {(self.limit_s - elapsed) / 60:.0f} min left"
        if self.questions is None:
            return counted
        left = elapsed / self.asked * (self.questions - self.asked)
        return f"{counted}, about {f'{left:.0f} s' if left < 100 else f'{left / 60:.0f} min'} left"


@contextlib.contextmanager
def surviving(what: str) -> Iterator[None]:
    """Print an error of the block instead of ending the whole submission with it; raise only Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        with contextlib.suppress(BaseException):
            print(f"{what}: {one_line(e)}", flush=True)


def make_predict(
    schedule: Schedule,
    supervisor: Supervisor,
    seed: int = 0,
    solutions: dict[str, Solution] | None = None,
    journal: Journal | None = None,
    heard: Callable[[str, Solution], None] = lambda question_id, solution: None,
) -> Predict:
    """Return the function that Kaggle's gateway calls for each question.

    It takes two Series of length 1 (id, problem) and returns one row of `id` and `answer`. It raises only a
    person's KeyboardInterrupt: whatever else fails, it prints the reason and returns the vote so far, or the
    fallback answer. `solutions` collects the solutions by id. `heard` gets the id and the solution of a
    question after each of its samples and after its answer.
    """
    found = {} if solutions is None else solutions
    kept, rules = journal or Journal(), schedule.rules

    def value_of(given: Any) -> Any:  # a Series of length 1, of polars or pandas, or the value itself
        return given if given is None or isinstance(given, str | int) else next(iter(given))

    def predict(id_: Any, problem: Any) -> pl.DataFrame:
        begun, question_id, text = time.monotonic(), "", ""
        budget, solution = rules.answer_limit_s, Solution(rules.answer.fallback)

        def keep(entry: Sample | Value) -> None:
            with surviving("the journal"):
                kept.add(question_id, text, entry)
            with surviving("the display"):
                heard(question_id, solution)

        def left() -> float | None:
            return None if budget is None else max(1.0, budget - (time.monotonic() - begun))

        with surviving("the question"):
            question_id = str(value_of(id_))
            text = str(value_of(problem) or "").encode(errors="replace").decode()
            budget = schedule.budget()
        schedule.asked += 1
        with surviving("the journal"):
            solution = kept.recall(question_id, text)
            if solution.stop is not Stop.KNOWN:
                solution.answer = rules.answer.fallback
        with surviving("the question"):
            for attempt in range(0 if solution.stop is Stop.KNOWN else ATTEMPTS):
                sampler, patience = None, left()
                if attempt and patience is not None and patience < MIN_ATTEMPT_S:
                    break
                if attempt:
                    say(f"{solution.note}; the question is asked again")
                try:
                    sampler = supervisor.get(patience)
                    kind, told = rules.answer, rules.rules
                    if isinstance(kind, Proof):  # by its name: it is one of the kind's `modules`
                        proofs = importlib.import_module("aimo.inference.proofs")
                        proofs.prove_problem(sampler, text, kind, seed, left(), solution, keep, told)
                    else:
                        asked = sampler, text, sampler.settings.samples, kind, seed, left()
                        solve_problem(*asked, solution=solution, keep=keep, rules=told)
                except TimeoutError as e:
                    state = "hung" if sampler else "was not ready"
                    solution.fail(f"the engine {state} within {patience:.0f} s" if patience else one_line(e))
                except KeyboardInterrupt:
                    raise
                except BaseException as e:
                    solution.fail(one_line(e))
                if solution.stop is not Stop.FAILED:
                    break
                if sampler:  # load another one for the next attempt or question
                    supervisor.replace(sampler)
        if solution.votes and solution.stop is not Stop.KNOWN:  # a fallback is not worth keeping
            keep(solution.answer)
        found[question_id] = solution
        with surviving("the report"):
            if schedule.asked == 1 and schedule.limit_s is not None:
                print(f"first answer: {time.monotonic() - startup.STARTED:.1f} s after the start", flush=True)
            print(f"[{schedule.progress()}] {question_id}: {solution.explain()}", flush=True)
        column = pl.Series("answer", [solution.answer], rules.answer.type)
        return pl.DataFrame({"id": [question_id], "answer": column})

    return predict


def ask_each(
    predict: Predict, table: pl.DataFrame, rules: Competition, seed: int = 0
) -> Iterator[tuple[str, Value]]:
    """Ask a table's questions in random order, one per call, and yield (id, answer).

    AimoError for a reply that Kaggle would not accept.
    """
    questions = table.select("id", rules.inputs.problem).rows()
    random.Random(seed).shuffle(questions)
    for question_id, text in questions:
        reply: Any = predict(pl.Series("id", [question_id]), pl.Series(rules.inputs.problem, [text]))
        has_columns = isinstance(reply, pl.DataFrame) and reply.columns == ["id", "answer"]
        rows = reply.rows() if has_columns else []
        if [row[0] for row in rows] != [question_id] or not rules.answer.accepts(rows[0][1]):
            valid = f"one row of id and answer, {rules.answer}"
            found = " ".join(repr(rows or reply).split())  # all lines of a table
            raise AimoError(f"question {question_id}: predict must return {valid}, not {found}")
        yield question_id, rows[0][1]


def write_answers(
    out: Path, ids: Iterable[str], answers: Mapping[str, Value], rules: Competition, fill: bool = False
) -> None:
    """Write answers in the columns of a competition's artefact; `fill` adds the fallback for the others.

    Parquet holds types, so ids that are all integers are written as integers there.
    """
    if fill:
        answers = {question_id: rules.answer.fallback for question_id in ids} | {**answers}
    rows = [(question_id, answers[question_id]) for question_id in ids if question_id in answers]
    columns = {rules.artefact.id: pl.String, rules.artefact.answer: rules.answer.type}
    table = pl.DataFrame(rows, columns, orient="row").with_columns(
        pl.lit(value).alias(name) for name, value in rules.artefact.others.items()
    )
    id_ = rules.artefact.id
    if rules.artefact.kind == "parquet" and table[id_].str.contains(r"^(0|-?[1-9]\d{0,17})$").all():
        table = table.with_columns(pl.col(id_).cast(pl.Int64))
    content = io.BytesIO()
    table.write_csv(content) if out.suffix == ".csv" else table.write_parquet(content)
    write_whole(out, content.getvalue())


def write_settings(settings: Settings, path: Path) -> None:
    say(f"{settings.describe()}\n")
    write_whole(path, settings.to_json())


def report_fallbacks(solutions: Mapping[str, Solution], rules: Competition) -> None:
    fallbacks = sum(not solution.votes for solution in solutions.values())
    say(f"{len(solutions)} questions answered, {fallbacks} with the fallback {rules.answer.fallback}")
    for question_id, solution in solutions.items():
        if solution.note:
            say(f"  {question_id}: {solution.note}")


def kaggle_server(competition: str, inputs: Path = startup.INPUTS) -> Any:
    """Return Kaggle's inference server class for a competition, or None if there is none to import."""
    rules = competitions.find_competition(competition)
    if rules.artefact.server is None:
        return None
    module, _, name = rules.artefact.server.partition(".")
    sys.path.extend(str(inputs / folder) for folder in (rules.slug, f"competitions/{rules.slug}"))
    try:
        return getattr(importlib.import_module(f"kaggle_evaluation.{module}"), name)
    except ImportError:
        return None


def check_installed(settings: Settings) -> None:
    startup.check_modules("vllm", *(["openai_harmony"] if settings.format == "harmony" else []))


def start_engine(model: str, settings: Settings, seed: int, adapter: str | None) -> Engine:
    """Print what should fit into the GPUs and how long each step takes; start and return the engine."""
    check_model_folder(model)
    check_installed(settings)
    set_environment()
    startup.collect_less()
    with startup.step("import of vLLM"), stderr_to(None if is_verbose() else Path(os.devnull)):
        importlib.import_module("vllm")
        importlib.import_module("transformers.models.auto")  # the plan reads the model's config with it
    try:
        say(plan_for_this_machine(model, settings))
    except Exception as e:  # vLLM needs no plan: it measures by itself
        say(one_line(e))
    with startup.step("start of the engine"):
        return Engine(model, settings, seed=seed, adapter=adapter)


def answer_table(
    supervisor: Supervisor,
    table: pl.DataFrame,
    rules: Competition,
    limit_s: float,
    seed: int,
    open_journal: Callable[[int], Journal],
    started: float | None = None,
    keep: Callable[[dict[str, Value]], None] = lambda answers: None,
) -> list[tuple[dict[str, Value], dict[str, Solution]]]:
    """Answer a table through `ask_each`; return each pass's answers and solutions, by id.

    A table with answers is asked in as many passes as the competition has. The passes share `limit_s` seconds
    from `started` on (None: from now). Each has its own seed and journal (`open_journal` takes its number,
    from 1). `keep` gets the first pass's answers, before its first question and after each.
    """
    started = time.monotonic() if started is None else started
    count = rules.passes if "answer" in table.columns else 1
    passes = []
    for number in range(1, count + 1):
        if count > 1:
            say(f"pass {number} of {count}")
        own_start = started + (number - 1) * limit_s / count  # a pass leaves the next one what it saves
        schedule = Schedule(rules, limit_s / count, len(table), started=own_start)
        answers: dict[str, Value] = {}
        solutions: dict[str, Solution] = {}
        passes.append((answers, solutions))
        predict = make_predict(schedule, supervisor, seed + number - 1, solutions, open_journal(number))
        if number == 1:
            keep(answers)
        for question_id, answer in ask_each(predict, table, rules, seed + number - 1):
            answers[question_id] = answer
            if number == 1:
                keep(answers)
    return passes


@check_parameters
def serve_submission(
    competition: str,
    model: str,
    test_csv: str,
    time_limit_s: float,
    settings: Mapping[str, Any],
    adapter: str | None = None,
    seed: int = 0,
) -> dict[str, Solution]:
    """Run the submission kernel: answer Kaggle's gateway in a rerun, otherwise the questions of `test_csv`.

    `settings` override the model folder's; the resolved ones are printed and written to settings.json.
    Return the first pass's solutions by id. AimoError for wrong arguments, before anything starts, and for a
    model that vLLM cannot load; in a rerun the questions get the fallback instead.
    """
    rules = competitions.find_competition(competition, asks=True)
    rerun = bool(os.getenv("KAGGLE_IS_COMPETITION_RERUN")) and rules.artefact.server is not None
    server_class = kaggle_server(competition)
    if rerun and server_class is None:
        raise AimoError("kaggle_evaluation is not among the inputs; add the competition to them")
    table, golds = pl.DataFrame(), {}
    folder = Path.cwd()  # the engine loads in a thread
    if not rerun:
        check_model_folder(model)
        check_installed(resolve_settings(model, settings))
        try:
            if test_csv.endswith(".parquet"):
                columns = [one for one in pl.read_parquet(test_csv) if not one.dtype.is_nested()]
                table = pl.DataFrame([one.cast(pl.String) for one in columns])
            else:
                table = pl.read_csv(test_csv, infer_schema=False)
            table = table.fill_null("").rename(str.strip)
        except (OSError, pl.exceptions.PolarsError) as e:
            told = "give a CSV in UTF-8, or a Parquet file"
            raise AimoError(f"test file {test_csv}: {one_line(e)}; {told}") from None
        table = competitions.pose(table, test_csv, competition)
        golds = competitions.known_answers(table, rules)
    if rules.artefact.server and (most := rules.start_limit_s) is not None:
        took = time.monotonic() - startup.STARTED
        said = f"the server is ready {took:.0f} s after the start; Kaggle's gateway waits {most:.0f} s for it"
        if took > most and not rerun:
            raise AimoError(f"{said}: attach fewer wheels, or do later what the first question can wait for")
        say(said)

    def load() -> Engine:
        resolved = resolve_settings(model, settings)
        with contextlib.suppress(OSError):  # a full disk costs only this file
            write_settings(resolved, folder / "settings.json")
        return start_engine(model, resolved, seed, adapter)

    def open_journal(number: int = 1) -> Journal:
        path, weights = folder / (f"journal-{number}.jsonl" if number > 1 else "journal.jsonl"), ""
        with contextlib.suppress(OSError, AimoError):  # a broken folder, which does not load either
            weights = identity(model, adapter)
        known, own_seed = competitions.name_of(competition), seed + number - 1
        return Journal(path, model, known, settings, weights, own_seed, kind=rules.answer)

    def keep(answers: dict[str, Value]) -> None:  # after each question, in case the session dies
        write_answers(folder / rules.artefact.file, table["id"], answers, rules, fill=True)

    supervisor = Supervisor(load)
    solutions: dict[str, Solution] = {}
    try:
        if not os.getenv("KAGGLE_IS_COMPETITION_RERUN"):
            supervisor.get()  # a trial run fails if the model does not load; a rerun uses fallbacks
        if not rerun and (server_class is None or golds):
            given = supervisor, table, rules, time_limit_s, seed, open_journal
            passes = answer_table(*given, startup.begun(), keep)
            solutions = passes[0][1]
        else:
            schedule = Schedule(rules, time_limit_s, len(table) or None, started=startup.begun())
            server = server_class(make_predict(schedule, supervisor, seed, solutions, open_journal()))
            server.serve() if rerun else server.run_local_gateway((str(test_csv),))
    finally:
        supervisor.close()
    report_fallbacks(solutions, rules)
    if golds:
        say(f"score: {competitions.describe_score(rules, golds, [answers for answers, _ in passes])}")
    return solutions
