"""`aimo competition check` and `score`: a competition's file, and a file of answers as the host counts it."""

from pathlib import Path
from typing import Annotated

import typer

from aimo.commands.options import arg, opt
from aimo.inference import competitions, local

app = typer.Typer(no_args_is_help=True, help="Competitions: check a file of rules, score a file of answers.")
Rules = Annotated[str, arg("aimo1, aimo2, aimo3, another name, or a YAML file.")]


@app.command()
def check(
    competition: Rules,
    test: Annotated[Path | None, opt("A test file; its first question is printed as it is asked.")] = None,
) -> None:
    """Check a competition's file, and say what it asks, takes and submits."""
    rules = competitions.find_competition(competition)
    inputs, artefact = rules.inputs, rules.artefact
    options = f", options {', '.join(inputs.options)}" if inputs.options else ""
    columns = "" if artefact.kind == "adapter" else f" with {artefact.id}, {artefact.answer}"
    through = f" through {artefact.server}" if artefact.server else ""
    print(f"competition: {competitions.name_of(competition)}, {rules.slug}")
    print(f"asks: {inputs.problem} of {inputs.id}{options}, {rules.passes} times")
    print(f"takes: {rules.answer}, else {rules.answer.fallback!r}")
    print(f"submits: {artefact.file}{columns}{through}")
    print(f"scored by: {rules.scoring}")
    if artefact.kind == "adapter":
        print("`aimo solve` answers nothing for it: it takes an adapter")
    if test:
        competitions.find_competition(competition, asks=True)
        _, table = local.read_questions(test, competition)
        golds = competitions.known_answers(table, rules)
        print(f"test file: {len(table)} questions, {len(golds)} known answers; the first:")
        print(table[rules.problem_column][0])


@app.command()
def score(
    competition: Rules,
    submission: Annotated[Path, arg("The file that would be submitted.")],
    answers: Annotated[Path, arg("A file with the right answers, in a column `answer`.")],
) -> None:
    """Score a file of answers by the competition's metric."""
    from aimo.evaluation.submission import score_file  # draws, which `aimo --help` does not wait for

    print(f"score: {score_file(competitions.find_competition(competition), submission, answers)}")
