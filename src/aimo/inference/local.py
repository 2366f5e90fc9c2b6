"""Ask a model one problem and show what it writes (`ask`), or answer a test file (`answer_file`)."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import polars as pl

from aimo.inference import files, gateway
from aimo.inference.answers import Latex, Value
from aimo.inference.competitions import Competition, find_competition, name_of, pose
from aimo.inference.engine import Supervisor
from aimo.inference.errors import AimoError, EngineError, one_line
from aimo.inference.journal import Journal
from aimo.inference.prompts import Sampler, cancel
from aimo.inference.sample import AskedProblem, RunningSample, Sample
from aimo.inference.solver import Solution, Solver
from aimo.inference.storage import AGAIN, KEPT
from aimo.inference.voting import Stop

PATIENCE_S = 150  # that `answer_file` waits for an engine or a restarted model server
REFRESH_S = 0.1  # between two updates of the text that `ask` shows


def read_questions(
    test_file: str | Path, competition: str | Competition | None = None
) -> tuple[str | Competition, pl.DataFrame]:
    """Return a test file's competition and its table of texts: `id`, the problem column, perhaps `answer`.

    Options to choose from follow their problem's text. Without a `competition`, the problem column decides:
    `question` is aimo2, `problem` is aimo3. AimoError names the fault.
    """
    if competition is not None:
        find_competition(competition, asks=True)
    table = files.read_texts(test_file, "test file ")
    if competition is None:
        competition = "aimo2" if "question" in table.columns and "problem" not in table.columns else "aimo3"
    return competition, pose(table, test_file, competition)


def answer_file(
    sampler: Sampler,
    test_file: str | Path,
    out: Path,
    seed: int,
    competition: str | Competition | None = None,
    other: str = "--out",
    heard: Callable[[str, Solution], None] = lambda question_id, solution: None,
    again: str = AGAIN,
) -> dict[str, Solution]:
    """Answer a test file through `ask_each`; write the answers to `out`, a .csv or .parquet file.

    Rows keep the file's order. Beside `out` are the settings (.settings.json) and every sample
    (`journal_beside`), from which a second call continues. AimoError, which names `other`, the option for
    another `out`, if those samples are another model's or have other settings. `heard` is called as in
    `make_predict`. A failed engine is replaced. Return the solutions by id. After an interrupt (`again` says
    how to continue), on a full disk, or if no engine starts any more, the answers so far are written, and
    AimoError or EngineError says so.
    """
    competition, table = read_questions(test_file, competition)
    settings = asdict(sampler.settings) | {"context": sampler.max_length}
    path = journal_beside(out)
    rules, name = find_competition(competition), name_of(competition)
    journal = Journal(path, str(sampler.model), name, settings, sampler.identity, seed, other, rules.answer)
    solutions: dict[str, Solution] = {}
    given: dict[str, Value] = {}
    supervisor = Supervisor(sampler.respawn, sampler, PATIENCE_S)
    schedule = gateway.Schedule(rules, None, len(table))
    predict = gateway.make_predict(schedule, supervisor, seed, solutions, journal, heard)

    def so_far() -> str:
        where = f", in {out}" if given else ""
        return f"{len(given)} of {len(table)} questions are answered{where}"

    try:
        gateway.write_settings(sampler.settings, out.with_suffix(".settings.json"))
        for question_id, answer in gateway.ask_each(predict, table, rules, seed):
            if journal.fault:
                raise AimoError(f"{so_far()}; {journal.fault}")
            if not solutions[question_id].is_lost:
                given[question_id] = answer
                gateway.write_answers(out, table["id"], given, rules)
            elif supervisor.has_given_up:
                break
    except KeyboardInterrupt:
        raise AimoError(f"interrupted; {so_far()}; {again} to continue") from None
    except OSError as e:
        raise AimoError(f"{so_far()}; {out}: {e.strerror}; {KEPT}") from None
    finally:
        supervisor.close()
        journal.close()
    gateway.report_fallbacks(solutions, rules)
    if lost := [solution for solution in solutions.values() if solution.is_lost]:
        remedy = "start the engine or servers again and repeat the command"
        raise EngineError(f"{so_far()}: {lost[-1].note}; {remedy}")
    return solutions


def journal_beside(out: Path) -> Path:
    return out.with_suffix(".journal.jsonl")


def ask(sampler: Sampler, text: str, seed: int = 0) -> str:
    """Print the first of `settings.samples` samples as it is written, then the vote if there are several.

    Return the voted answer. All samples run Python if the settings give any of them tools. AimoError if the
    problem cannot be asked; EngineError if the engine fails or no sample holds an answer.
    """
    solution, shown = Solution(), ""
    problem = AskedProblem(sampler, text, seed, Latex())
    solver = Solver(problem, solution, lambda sample: None, sampler.settings.samples)
    solver.tools = math.ceil(solver.tools)
    if fault := problem.fault():
        raise AimoError(f"{fault}; ask another")

    def show() -> None:
        nonlocal shown
        samples: list[Sample | RunningSample] = [*solution.samples, *solver.running.values()]
        text = next((sample.text for sample in samples if sample.index == 0), "")
        if not text.startswith(shown):  # a turn may drop its last text
            shown = next(shown[:n] for n in range(len(shown), -1, -1) if text.startswith(shown[:n]))
            print()
        print(text[len(shown) :], end="", flush=True)
        shown = text

    async def solve_aloud() -> None:
        task = asyncio.create_task(solver.run(math.inf))
        try:
            while not task.done():
                await asyncio.wait([task], timeout=REFRESH_S)
                show()
            await task
        finally:  # also after Ctrl-C, which ends only this coroutine
            await cancel([task])
        print("\n")

    try:
        sampler.run(solve_aloud())
    except Exception as e:  # engines raise many kinds
        solution.fail(one_line(e))
    if solution.stop is Stop.FAILED:
        raise EngineError(f"the problem could not be answered: {solution.note}")
    rows, count = solution.tally, len(solution.ended)
    if not rows:
        raise EngineError(f"{count} samples hold no answer; give more --samples or inference.max_tokens")
    if count > 1:
        print(*(f"{row.votes} of {count}: {row.answer}" for row in rows), "", sep="\n")
    return str(rows[0].answer)
