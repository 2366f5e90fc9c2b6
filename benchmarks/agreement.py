"""How often samples that agree are right: the first to end of those that run together, beside any samples.

    python benchmarks/agreement.py FILE … [--draws 400]

Files as for `aimo replay`. Each draw takes 12 of a question's samples, as many as our rule starts at first
(fewer where there are fewer), and looks at the k shortest and at k random ones. A row says in how many draws
all k had one answer, and how often it was right.
"""

import random
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from aimo.evaluation import traces
from aimo.evaluation.traces import RecordedQuestion

STARTED = 12


def agreement(questions: list[RecordedQuestion], k: int, draws: int, seed: int) -> dict[str, tuple[int, int]]:
    """(agreed, right) draws for the k samples that end first and for k random ones."""
    rng = random.Random(seed)
    counts = {"first": (0, 0), "random": (0, 0)}
    for question in questions:
        for _ in range(draws):
            drawn = rng.sample(question.ours, min(STARTED, len(question.ours)))
            by_length = sorted(drawn, key=lambda sample: sample.tokens)
            for name, group in ("first", by_length[:k]), ("random", drawn[:k]):
                answers = {sample.answer for sample in group}
                if len(group) == k and len(answers) == 1 and None not in answers:
                    agreed, right = counts[name]
                    counts[name] = agreed + 1, right + (question.gold in answers)
    return counts


def main(
    files: list[Path],
    draws: Annotated[int, typer.Option(min=1, help="Draws of each question.")] = 400,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Print the table of each file."""
    for one in traces.read_traces(files):
        table = Table(
            "agreeing", "the first to end: draws", "right", "random: draws", "right", title=one.name
        )
        for k in (2, 3, 4):
            found = agreement(one.questions, k, draws, seed)
            cells = [[f"{agreed:,}", f"{right / max(1, agreed):.3f}"] for agreed, right in found.values()]
            table.add_row(str(k), *cells[0], *cells[1])
        Console().print(table)


if __name__ == "__main__":
    typer.run(main)
