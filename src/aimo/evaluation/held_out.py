"""What notebook 04 shows: the models of a run on held-out problems, and the answers to its test file."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl

from aimo.config import resolve
from aimo.data import builtin
from aimo.evaluation import tracking
from aimo.evaluation.metrics import Evaluation, evaluate
from aimo.inference import answers, competitions, gateway
from aimo.inference.engine import Engine
from aimo.inference.solution import Solution
from aimo.inference.storage import write_json
from aimo.run.runs import Run

SHOWN = 4
"""Rows whose first completion by each model is kept for the report."""


def compare(engine: Engine, run: Run, rows: list[dict[str, Any]]) -> dict[str, Evaluation]:
    """Evaluate the base and each trained model on n held-out rows, one after the other in the same engine.

    Keeps majority.json and samples.json for the report; without rows, there is nothing to evaluate or keep.
    """
    kept = {name: run.folder / f"{name}.json" for name in ("majority", "samples")}
    for path in kept.values():
        path.unlink(missing_ok=True)
    if not rows:
        return {}
    models, profile = run.models(), run.profile
    prompt = profile.prompt
    if not profile.trained:  # the format of a public model is its own
        prompt = replace(prompt, **asdict(engine.settings.tags))
    evaluations: dict[str, Evaluation] = {}
    for i, (name, folder) in enumerate(models.items()):
        engine.load_weights(folder)

        def progress(done: int, total: int, before: int = i) -> None:
            run.progress(before * total + done, len(models) * total)

        evaluations[name] = evaluate(engine, rows, prompt, engine.settings.samples, profile.seed, progress)
    write_json(kept["majority"], {name: e.majority() for name, e in evaluations.items()})
    texts = {name: [group[0].text for group in e.completions[:SHOWN]] for name, e in evaluations.items()}
    write_json(kept["samples"], {"rows": rows[:SHOWN], "texts": texts})
    figures = tracking.flat({name: e.metrics() for name, e in evaluations.items()})
    tracking.log(profile.training.log_to, run.folder, profile.profile, figures)
    return evaluations


def answer(engine: Engine, run: Run) -> list[dict[str, Any]]:
    """Answer the run's test file through the local gateway; a record of each question, in the file's order.

    Writes submission.parquet, and solutions.json for the report.
    """
    test_csv = test_file(run)
    competition, table = competitions.read_questions(test_csv)
    problems = table[competitions.COMPETITIONS[competition].problem_column]
    out = run.dir / "submission.parquet"
    # What an earlier model or other settings left in the run's journal is not taken, and kept.
    solutions = gateway.answer_file(engine, test_csv, out, run.profile.seed, other="")
    golds = table["answer"] if "answer" in table.columns else [None] * len(table)
    records = [
        {"id": question_id, "problem": problem, "gold": answers.to_integer(gold)}
        | record_of(solutions[question_id])
        for question_id, problem, gold in zip(table["id"], problems, golds, strict=True)
    ]
    write_json(run.folder / "solutions.json", records)
    return records


def record_of(solution: Solution) -> dict[str, Any]:
    """A solution as JSON: its vote, its samples, and a sample's text for each of the two leading answers."""
    tally = solution.tally
    text_of = {sample.answer: sample.text for sample in reversed(solution.ended)}
    samples = [asdict(sample) for sample in solution.samples]
    return {
        "answer": solution.answer,
        "votes": {str(row.answer): row.votes for row in tally},
        "tally": [asdict(row) for row in tally],
        "stop": solution.stop,
        "seconds": round(solution.seconds, 2),
        "note": solution.note,
        "texts": {str(row.answer): text_of[row.answer] for row in tally[:2]},
        "samples": [{key: s[key] for key in s if key != "text"} for s in samples],
    }


def test_file(run: Run) -> Path:
    """The profile's test file, or one of built-in held-out problems in AIMO 3's layout."""
    if run.profile.inference.test:
        return resolve(run.profile.inference.test)
    path = run.folder / "test.csv"
    drawn = builtin.generate(run.profile.inference.test_rows, "heldout", run.profile.seed + 1)
    rows = [{"id": f"{p.family}-{i}", "problem": p.problem, "answer": p.answer} for i, p in enumerate(drawn)]
    pl.DataFrame(rows).write_csv(path)
    return path


def score(solutions: list[dict[str, Any]]) -> dict[str, int]:
    """Questions, how many of the known answers are right, and how many answers are fallbacks."""
    known = [s for s in solutions if s["gold"] is not None]
    return {
        "questions": len(solutions),
        "known": len(known),
        "correct": sum(s["answer"] == s["gold"] for s in known),
        "fallbacks": sum(not s["votes"] for s in solutions),
    }
