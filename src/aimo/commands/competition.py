"""`aimo competition new`, `check` and `score`: a competition's file, and answers as the host counts them."""

from pathlib import Path
from typing import Annotated

import typer

from aimo.commands.options import arg, check_folder, opt
from aimo.errors import AimoError
from aimo.evaluation import submission as submission_file
from aimo.inference import competitions, local
from aimo.inference.storage import write_whole
from aimo.kaggle import check, client
from aimo.kaggle import competition as drafts

app = typer.Typer(
    no_args_is_help=True, help="Competitions: draft and check a file of rules, score a file of answers."
)
Rules = Annotated[str, arg("aimo1, aimo2, aimo3, another name, or a YAML file.")]


@app.command()
def new(
    competition: Annotated[str, arg("Its slug or its address on kaggle.com.")],
    out: Annotated[Path | None, opt("The file; SLUG.yaml if not given.")] = None,
    dry_run: Annotated[bool, opt("Print each request and send none.", "--dry-run")] = False,
) -> None:
    """Draft a competition's file from its pages and data on Kaggle; `# ?` marks what they do not say."""
    path = out or Path(f"{check.slug_of(competition)}.yaml")
    check_folder("--out", path)
    if path.exists():
        raise AimoError(f"--out {path}: it exists; remove it, or name another file")
    with client.sign_in(dry_run) as api:
        text = drafts.draft_competition(api, competition)
    if not dry_run:
        write_whole(path, text)
        told = f"{len(unsure_lines(text))} lines are marked {competitions.UNSURE}"
        print(f"{path}: {told}; look at them, then `aimo competition check {path}`")


def unsure_lines(text: str) -> list[str]:
    """Return the numbers of the lines of a draft that a person has to look at."""
    lines = enumerate(text.splitlines(), 1)
    return [str(number) for number, line in lines if competitions.UNSURE in line and line[0] != "#"]


@app.command("check")
def check_competition(
    competition: Rules,
    test: Annotated[Path | None, opt("A test file; its first question is printed as it is asked.")] = None,
) -> None:
    """Check a competition's file, and say what it asks, takes and submits."""
    rules = competitions.find_competition(competition)
    inputs, artefact = rules.inputs, rules.artefact
    options = f", options {', '.join(inputs.options)}" if inputs.options else ""
    named = ", ".join([artefact.id, artefact.answer, *artefact.others])
    columns = "" if artefact.kind == "adapter" else f" with {named}"
    through = f" through {artefact.server}" if artefact.server else ""
    print(f"competition: {competitions.name_of(competition)}, {rules.slug}")
    print(f"asks: {inputs.problem} of {inputs.id}{options}, {rules.passes} times")
    print(f"takes: {rules.answer}, else {rules.answer.fallback!r}")
    print(f"submits: {artefact.file}{columns}{through}")
    if lora := artefact.lora:
        print(f"adapter: rank {lora.rank} at most for {lora.bases[0]}, on {', '.join(lora.targets)}")
    print(f"scored by: {rules.scoring}")
    path = Path(competition)
    if marked := unsure_lines(path.read_text(encoding="utf-8-sig")) if path.is_file() else []:
        print(f"not certain yet: the lines with `# ?` ({', '.join(marked)}); look, and remove the mark")
    if artefact.kind == "adapter":
        print("`aimo solve` answers nothing for it: it takes an adapter")
    if test:
        competitions.find_competition(competition, asks=True)
        _, table = local.read_questions(test, competition)
        golds = competitions.known_answers(table, rules)
        print(f"test file: {len(table)} questions, {len(golds)} known answers; the first:")
        print(table[rules.problem_column][0])


@app.command("score")
def score_command(
    competition: Rules,
    submission: Annotated[Path, arg("The file that would be submitted.")],
    answers: Annotated[Path, arg("A file with the right answers, in a column `answer`.")],
) -> None:
    """Score a file of answers by the competition's metric."""
    rules = competitions.find_competition(competition)
    print(f"score: {submission_file.score_file(rules, submission, answers)}")
