"""Answer files of problems as a submission does, and score the answers before submitting.

The kernel `evaluate` asks its files through the local gateway, in the competition's passes, and scores them
by its points. It writes evaluation.html, evaluation.json, and a journal of each pass, which `aimo replay`
reads. Notebook 04 asks a run's test file once.
"""

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from aimo.config import locate
from aimo.data import sources
from aimo.inference import answers, competitions, files, gateway, local, startup
from aimo.inference.competitions import Competition
from aimo.inference.engine import Engine, Supervisor
from aimo.inference.errors import AimoError, listed
from aimo.inference.journal import Journal
from aimo.inference.model_folder import check_model_folder, identity
from aimo.inference.settings import Texts, check_parameters, resolve_settings
from aimo.inference.solver import Solution
from aimo.inference.storage import write_json
from aimo.report import page, plots, tables
from aimo.report.page import Section
from aimo.run.runs import Run, again

AIMO = "aimo1", "aimo2", "aimo3"


@check_parameters
def evaluate_submission(
    competition: str,
    model: str,
    files: Texts,
    time_limit_s: float,
    settings: Mapping[str, Any],
    adapter: str | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Answer files of problems (CSV, JSON lines, …) as the submission would, and return a row per file.

    The files share `time_limit_s`, less the start-up, in proportion to their numbers of problems. Results are
    written after each file. AimoError for wrong arguments, before anything starts, and if the engine does not
    start.
    """
    rules = competitions.find_competition(competition, asks=True)
    competitions.check_scored(rules)
    check_model_folder(model)
    resolved = resolve_settings(model, settings)
    gateway.check_installed(resolved)
    if not files:
        raise AimoError("files: name at least one file of problems with answers")
    problems = {file: read_problems(Path(file), rules, competition) for file in files}
    total = sum(len(table) for table, _ in problems.values())
    weights = identity(model, adapter)
    folder = Path.cwd()  # the engine loads in a thread
    gateway.write_settings(resolved, folder / "settings.json")
    supervisor = Supervisor(lambda: gateway.start_engine(model, resolved, seed, adapter))
    rows: list[dict[str, Any]] = []
    sections: list[Section] = []
    title, scored = f"Evaluation for {competition}", f"Scored by {rules.scoring}"
    if rules.scoring == "points":
        scored = f"Points of a question by its right answers: {', '.join(f'{x:g}' for x in rules.points)}"
    try:
        supervisor.get()
        left_s = time_limit_s - (time.monotonic() - startup.begun())
        for file, (table, left_out) in problems.items():
            name = f"{Path(file).parent.name}-{Path(file).stem}"

            def open_journal(number: int, name: str = name) -> Journal:
                path = folder / f"{name}.journal-{number}.jsonl"
                known = competitions.name_of(competition)
                return Journal(path, model, known, settings, weights, seed + number - 1, kind=rules.answer)

            limit_s = left_s * len(table) / total
            passes = gateway.answer_table(supervisor, table, rules, limit_s, seed, open_journal)
            golds = competitions.known_answers(table, rules)
            given = [answers for answers, _ in passes]
            solutions = [solution for _, solved in passes for solution in solved.values()]
            seconds = [solution.seconds for solution in solutions]
            row = {
                "file": name,
                "questions": len(golds),
                "score": competitions.score_of(rules, golds, given),
                "right in each pass": [
                    sum(rules.answer.equal(gold, one[q]) for q, gold in golds.items()) for one in given
                ],
                "fallbacks": sum(not solution.votes for solution in solutions),
                "seconds": round(sum(seconds), 1),
                "slowest": round(max(seconds), 1),
                "tokens": sum(sample.tokens for one in solutions for sample in one.samples),
                "left out": left_out,
            }
            rows.append(row)
            for number, (_, solved) in enumerate(passes, 1):
                records = solution_records(table, rules, golds, solved)
                sections.append(Section(plots.votes(records), f"{name}, pass {number}"))
                sections.append(Section(tables.answers(records)))
            write_json(folder / "evaluation.json", rows)
            figures = [{key: str(value) for key, value in one.items()} for one in rows]
            shown = [Section(tables.table(figures), "Scores"), *sections]
            lead = f"{model}, asked as the submission would be. {scored}."
            page.write_page(folder / "evaluation.html", title, lead, shown)
            print(json.dumps(row), flush=True)
    finally:
        supervisor.close()
    return rows


def read_problems(path: Path, rules: Competition, competition: str = "aimo3") -> tuple[pl.DataFrame, int]:
    """Return a file's problems whose answers the competition takes, and the number of others."""
    # A file for one AIMO may have the layout of another's.
    kind, table = local.read_questions(path, None if competition in AIMO else competition)
    if "answer" not in table.columns:
        raise AimoError(f"file {path} has no column 'answer'; it needs id, problem and answer")
    askable = [rules.answer.gold(answer) is not None for answer in table["answer"]]
    columns = {competitions.find_competition(kind).inputs.problem: rules.inputs.problem}
    kept = table.filter(askable).rename(columns)
    if kept.is_empty():
        raise AimoError(f"file {path}: no answer is {rules.answer}; take another file")
    return kept, len(table) - len(kept)


def solution_records(
    table: pl.DataFrame, rules: Competition, golds: Mapping[str, Any], solutions: Mapping[str, Solution]
) -> list[dict[str, Any]]:
    """Return each question's solution as JSON values, for the report's tables and plots."""
    records = []
    for id_, problem in table.select("id", rules.inputs.problem).rows():
        solution, gold = solutions[id_], golds.get(id_)
        record = {
            "id": id_,
            "problem": problem,
            "gold": gold,
            "answer": solution.answer,
            "votes": {str(row.answer): row.votes for row in solution.tally},
            "tally": [asdict(row) for row in solution.tally],
            "stop": solution.stop,
            "seconds": round(solution.seconds, 2),
            "note": solution.note,
        }
        text_of = {sample.answer: sample.text for sample in reversed(solution.ended)}
        record["texts"] = {str(row.answer): text_of[row.answer] for row in solution.tally[:2]}
        samples = [asdict(sample) for sample in solution.samples]
        record["samples"] = [{key: one[key] for key in one if key != "text"} for one in samples]
        voted = [solution.answer, *(row.answer for row in solution.tally)]
        equal = [] if gold is None else [answer for answer in voted if rules.answer.equal(gold, answer)]
        if equal and equal[0] != gold:  # the voted answer that equals the gold one, written differently
            record["equal"] = equal[0]
        records.append(record)
    return records


def answer_test_file(engine: Engine, run: Run) -> list[dict[str, Any]]:
    """Answer the run's test file through the local gateway; return a record per question, in file order.
    Write the competition's file (submission.parquet if there is no competition) and solutions.json."""
    rules, profile = run.profile.rules, run.profile
    if rules and rules.artefact.kind == "adapter":  # the competition takes no answers
        write_json(run.folder / "solutions.json", [])
        return []
    test_csv = test_file(run)
    competition, table = local.read_questions(test_csv, rules)
    found = competitions.find_competition(competition)
    asked: dict[str, None] = {}

    def heard(question_id: str, solution: Solution) -> None:
        asked[question_id] = None
        votes = ", ".join(f"{answer}: {count}" for answer, count in solution.votes.most_common(3))
        run.progress(len(asked) - 1, len(table), f"{question_id}: {votes or 'no'} votes")

    # Answers of an earlier model or other settings stay in the run's journal, but are not used.
    answering = engine, test_csv, run.dir / found.artefact.file, profile.seed, rules
    solutions = local.answer_file(*answering, other="", heard=heard, again=again())
    run.progress(len(table), len(table))
    read = found.answer.gold if rules else answers.to_integer
    known = table.select("id", "answer").rows() if "answer" in table.columns else []
    records = solution_records(table, found, {id_: read(answer) for id_, answer in known}, solutions)
    write_json(run.folder / "solutions.json", records)
    return records


def test_file(run: Run) -> Path:
    """Return the profile's test file, or write one of built-in held-out problems, which ask for integers."""
    asked, rules = run.profile.inference, run.profile.rules
    if asked.test:
        return locate(asked.test)
    if rules and rules.answer.type is not int:
        raise AimoError(f"inference.test: {rules.slug} needs a test file; the built-in one asks for integers")
    path, inputs = run.folder / "test.csv", rules.inputs if rules else competitions.Inputs()
    drawn = enumerate(sources.generate(asked.test_rows, "heldout", run.profile.seed + 1))
    rows = [
        {inputs.id: f"{one.family}-{i}", inputs.problem: one.problem, "answer": one.answer}
        for i, one in drawn
    ]
    pl.DataFrame(rows).write_csv(path)
    return path


def count_right(solutions: list[dict[str, Any]]) -> dict[str, int]:
    """Count the questions, the known answers, the right ones among them, and the fallbacks."""
    known = [s for s in solutions if s["gold"] is not None]
    return {
        "questions": len(solutions),
        "known": len(known),
        "correct": sum(s["answer"] == s.get("equal", s["gold"]) for s in known),
        "fallbacks": sum(not s["votes"] for s in solutions),
    }


def read_submission(rules: Competition, path: Path) -> dict[str, Any]:
    """Return a file's answers by id. AimoError if the host would refuse the file."""
    artefact, columns = rules.artefact, (rules.artefact.id, rules.artefact.answer)
    given = files.read_texts(path, "submission ")
    if given.columns != (written := [*columns, *artefact.others]):
        there = listed(given.columns)
        raise AimoError(f"submission {path} has the columns {there}; it needs {', '.join(written)}")
    counts, found = Counter(given[artefact.id].to_list()), {}
    if twice := next((name for name, count in counts.items() if count > 1), None):
        raise AimoError(f"submission {path} has {twice} twice; write a row for each question")
    for name, text in given.select(columns).rows():
        value = rules.answer.gold(text or "")
        if value is None and rules.answer.fallback == "":
            value = ""
        elif value is None or not rules.answer.accepts(value):
            shown = f"{text or '':.40}"
            raise AimoError(f"submission {path}: {name} has {shown!r}, no {rules.answer.noun}; correct it")
        found[name] = value
    return found


def score_file(rules: Competition, submission: Path, known: Path) -> str:
    """Return a description of a file's score, as the host would count it. `known` holds the right answers in
    the column `answer` or the artefact's."""
    competitions.check_scored(rules)
    artefact, found = rules.artefact, read_submission(rules, submission)
    right = files.read_texts(known, "answers ")
    id_ = next((name for name in (artefact.id, rules.inputs.id, "id") if name in right.columns), None)
    answer = next((name for name in ("answer", artefact.answer) if name in right.columns), None)
    if id_ is None or answer is None:
        raise AimoError(f"answers {known}: it has {listed(right.columns)}; it needs {artefact.id} and answer")
    table = right.select(pl.col(id_).alias("id"), pl.col(answer).alias("answer"))
    golds = competitions.known_answers(table, rules)
    if not golds:
        raise AimoError(f"answers {known} has no rows; give the right answers")
    wrong = [f"lacks {name}" for name in golds if name not in found]
    wrong += [f"has {name}, which is not asked" for name in found if name not in golds]
    if wrong:
        raise AimoError(f"submission {submission} {wrong[0]}; write a row for each question")
    return competitions.describe_score(rules, golds, [found])
