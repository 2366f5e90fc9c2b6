"""`aimo replay` and `aimo forecast`: rules on recorded samples, and the scores that they make likely.

Arguments to one call of `aimo.evaluation`, as in `aimo.cli`. Nothing heavy is imported before a command runs.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from aimo.errors import AimoError


def replay(
    files: Annotated[list[Path], typer.Argument(help="Journals of the solver, or public traces.")],
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="A rule, such as 'ours max_error=0.1', '4 of 8', '10 ended of 12' or 'all:entropy'; repeat. "
            "All that the files hold if not given."
        ),
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="A CSV with id and answer, for files that do not hold them.")
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Random orders of each question.")] = 300,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Draw only so many of each question's samples.")
    ] = None,
    budget: Annotated[
        float, typer.Option(min=0, help="Wall time of a question at most: seconds, or tokens of a sample.")
    ] = math.inf,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw accuracy against tokens here.")] = None,
) -> None:
    """Compare rules of voting, stopping and time on recorded samples, without a model."""
    from aimo.evaluation import replay as lab
    from aimo.evaluation import traces

    check_folder("--json", to)
    check_folder("--plot", plot)
    rules = [lab.parse(name) for name in policy or []]
    figures = []
    for one in traces.read(files, traces.read_golds(answers) if answers else {}):
        rows = lab.compare(one, rules, draws, seed, samples, budget)
        lab.show(one, rows)
        figures += rows
    if to:
        to.write_text(json.dumps({"rules": [asdict(row) for row in figures]}, indent=2) + "\n")
    if plot:
        lab.plot(figures, plot)


def forecast(
    files: Annotated[list[Path], typer.Argument(help="Journals of the solver, or public traces.")],
    competition: Annotated[str, typer.Option(help="aimo1, aimo2 or aimo3.")] = "aimo3",
    runs: Annotated[int, typer.Option(min=1, help="How often each question is asked.")] = 2,
    policy: Annotated[str, typer.Option(help="A rule, as for `aimo replay`.")] = "ours",
    answers: Annotated[
        Path | None, typer.Option(help="A CSV with id and answer, for files that do not hold them.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples of a question.")] = 16,
    draws: Annotated[int, typer.Option(min=1, help="Replays of each question.")] = 300,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Forecast the score of a competition from recorded samples, and how many runs tell a gain from luck."""
    from aimo.evaluation import forecast as lab
    from aimo.evaluation import traces
    from aimo.evaluation.replay import parse
    from aimo.inference.competitions import COMPETITIONS

    if competition not in COMPETITIONS:
        raise AimoError(f"--competition {competition}: there are {', '.join(COMPETITIONS)}")
    for one in traces.read(files, traces.read_golds(answers) if answers else {}):
        chances = lab.rates(one.questions, parse(policy), samples, draws, seed)
        print(f"{one.name}: {len(one.questions)} questions recorded, {policy}, {samples} samples")
        lab.show(lab.forecast(chances, runs, COMPETITIONS[competition].questions))


def check_folder(option: str, path: Path | None) -> None:
    """Refuse a file to write whose folder does not exist."""
    if path and not path.absolute().parent.is_dir():
        raise AimoError(f"{option} {path}: its folder does not exist; make it first")
