"""Ask a model on this machine: one problem aloud (`ask`), or the questions of a test file (`answer_file`)."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import polars as pl

from aimo.inference import files, gateway
from aimo.inference.answer_kinds import Latex, Value
from aimo.inference.competitions import Competition, find_competition, name_of, pose
from aimo.inference.engine import Supervisor
from aimo.inference.errors import AimoError, EngineError, one_line
from aimo.inference.journal import Journal
from aimo.inference.sample import AskedProblem, RunningSample
from aimo.inference.sampling import Sampler
from aimo.inference.sandbox import has_sandbox
from aimo.inference.solver import Solution, cancel
from aimo.inference.storage import AGAIN, KEPT

PATIENCE_S = 150  # that `answer_file` waits for an engine, or for a model server that was restarted
REFRESH_S = 0.1  # between two looks at what a sample has written for a person


def read_questions(
    test_file: str | Path, competition: str | Competition | None = None
) -> tuple[str | Competition, pl.DataFrame]:
    """Return a test file's competition, and its table of texts: `id`, the problem column, perhaps `answer`.

    Options stand below their problem. Without a `competition`, the problem column decides: `question` is
    aimo2, `problem` is aimo3. Raises AimoError naming the fault.
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

    Rows are in the file's order; beside them are the settings and every sample (`out` with the suffix
    .settings.json, and `journal_beside`). Started again, it continues from them; with `other`, the option
    that names another `out`, AimoError when they are another model's, or have other settings.
    `heard` is told of a question whenever one of its samples has ended. A failed engine is replaced. Returns
    the solutions by id. When it is interrupted (`again` says what continues), the disk is full, or no engine
    can be started any more, the answers so far are written and AimoError or EngineError says so.
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
    """Return the file of the samples behind a file of answers."""
    return out.with_suffix(".journal.jsonl")


def ask(sampler: Sampler, text: str, seed: int = 0) -> str:
    """Print the first of `settings.samples` samples as it is written, then the vote if there are several.

    Returns the answer that most samples gave, among equals the earliest; all samples run Python if the
    settings give any of them tools. Raises AimoError when the problem cannot be asked, EngineError when the
    engine fails or no sample holds an answer.
    """
    problem = AskedProblem(sampler, text, seed, Latex())
    if fault := problem.fault():
        raise AimoError(f"{fault}; ask another")
    try:
        texts = sampler.run(sample_aloud(problem))
    except Exception as e:  # the engine's own kinds
        raise EngineError(f"the problem could not be answered: {one_line(e)}") from None
    groups: Counter[str] = Counter()  # of equal answers, such as 1/2 and 0.5, by the first
    for answer in filter(None, map(problem.read, texts)):
        groups[Latex().group(answer, groups)] += 1
    if not groups:
        raise EngineError(f"{len(texts)} samples hold no answer; give more --samples or inference.max_tokens")
    ranked = groups.most_common()
    if len(texts) > 1:
        print(*(f"{count} of {len(texts)}: {answer}" for answer, count in ranked), "", sep="\n")
    return ranked[0][0]


async def sample_aloud(problem: AskedProblem) -> list[str]:
    """Print the first sample as it grows; return the texts of all that did not fail."""
    settings = problem.sampler.settings
    tools = settings.tools > 0 and has_sandbox()
    samples = [RunningSample(problem, index, 0.0, tools) for index in range(settings.samples)]
    tasks = [asyncio.create_task(sample.answer()) for sample in samples]
    shown = ""

    def show(text: str) -> None:
        nonlocal shown
        if not text.startswith(shown):  # a turn may lose what it wrote last
            shown = next(shown[:same] for same in range(len(shown), -1, -1) if text.startswith(shown[:same]))
            print()
        print(text[len(shown) :], end="", flush=True)
        shown = text

    try:
        while not tasks[0].done():
            await asyncio.wait(tasks[:1], timeout=REFRESH_S)
            show(samples[0].text)
        if not tasks[0].exception():
            show(f"{tasks[0].result().text}\n\n")
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        faults = [one for one in ended if isinstance(one, BaseException)]
        if len(faults) == len(ended):
            raise faults[0]
        return [one.text for one in ended if not isinstance(one, BaseException)]
    finally:
        await cancel([task for task in tasks if not task.done()])
