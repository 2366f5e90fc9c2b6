"""The time bank: simulated competition days, beside fixed equal shares.

    python benchmarks/timebank.py --traces FILE … [--competitions 10000] [--json FILE]

A day asks 50 questions drawn from recorded completions (files as in benchmarks/voting.py), in random order. The engine writes at a
speed that wanders, stalls now and then for minutes, and once in five days dies and restarts, losing what was running. The solver's
own rules (`voting.next_step`) decide; a question that runs out of its budget answers with the votes it has. Both sides see the same
days. An overrun is a day that ends after its limit.
"""

import json
import math
import random
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from aimo.inference import timebank, voting
from aimo.inference.voting import State

sys.path.insert(0, str(Path(__file__).parent))
from voting import Question, load  # the benchmark of the same name

QUESTIONS = 50
START_S = 180.0  # the engine's start
OVERHEAD_S = 2.0  # of a question: the gateway, the prompt, a last word
Share = Callable[[float, int], float]


@dataclass
class Day:
    """What happens on one day: the same for both sides."""

    questions: list[Question]
    seed: int
    limit_s: float
    stalls: dict[int, float]
    """Question to seconds for which nothing is written."""
    death: int | None
    """The question during which the engine dies, if it does."""


def make_day(pool: list[Question], seed: int) -> Day:
    """A day whose limit is between half and twice what its questions would like."""
    rng = random.Random(seed)
    questions = rng.choices(pool, k=QUESTIONS)
    stalls = {rng.randrange(QUESTIONS): rng.uniform(60, 600) for _ in range(rng.randrange(3))}
    return Day(
        questions,
        seed,
        rng.uniform(0.5, 2.0) * 9000 + START_S,
        stalls,
        rng.randrange(QUESTIONS) if rng.random() < 0.2 else None,
    )


def live(day: Day, share: Share) -> tuple[int, float]:
    """One day: right answers, and the seconds it took beyond its limit (none: negative)."""
    rng = random.Random(day.seed)
    now, right, speed = START_S, 0, 30.0
    for i, question in enumerate(day.questions):
        speed = min(60.0, max(10.0, speed * math.exp(rng.gauss(0, 0.1))))
        seconds = share(day.limit_s - now - OVERHEAD_S * (QUESTIONS - i), QUESTIONS - i)
        lost = day.stalls.get(i, 0.0) + (START_S if day.death == i else 0.0)
        took, answer = ask(question, max(0.0, seconds), lost, speed, rng)
        now += took + OVERHEAD_S
        right += answer is not None and answer == question.gold
    return right, now - day.limit_s


def ask(
    question: Question, budget: float, lost: float, speed: float, rng: random.Random
) -> tuple[float, object]:
    """One question, at `speed` tokens a second and stream, of which the first `lost` seconds are for nothing: time and answer."""
    samples = rng.sample(question.ours, len(question.ours))
    votes: Counter[object] = Counter()
    running: list[list[float | int]] = []  # [tokens still to write, index]
    started = ended = 0
    now, longest = min(lost, budget), 0.0
    while True:
        state = State(
            votes, ended, len(running), len(samples) - started, longest, budget - now, longest / speed
        )  # type: ignore[arg-type]
        step = voting.next_step(state)
        if step.stop:
            break
        for _ in range(step.start):
            running.append([samples[started].tokens, started])
            started += 1
        if not running:
            break
        soonest = min(running)
        seconds = min(soonest[0] / speed, step.limit / speed if step.limit < math.inf else math.inf)
        if now + seconds >= budget:
            now = budget
            break
        now += seconds
        for stream in running:
            stream[0] -= seconds * speed
        running.remove(soonest)
        ended += 1
        sample = samples[int(soonest[1])]
        longest = max(longest, sample.tokens)
        if sample.answer is not None:
            votes[sample.answer] += 1
    return now, voting.leader(votes)  # type: ignore[arg-type]


def bank(limit_s: float) -> Share:
    """Ours."""
    least = timebank.minimum(limit_s - START_S - OVERHEAD_S * QUESTIONS, QUESTIONS)
    return lambda left, questions: timebank.budget(left, questions, least)


def equal(left_s: float, questions: int) -> float:
    """The peer: what is left, divided equally."""
    return left_s / questions


def fixed(limit_s: float) -> Share:
    """The peer as most notebooks have it: the same seconds for each question, whatever is left."""
    return lambda left, _: min(left, (limit_s - START_S) / QUESTIONS - OVERHEAD_S)


def simulate(arguments: tuple[list[Question], range]) -> list[dict[str, tuple[int, float]]]:
    """Days of some seeds, lived by each side."""
    pool, seeds = arguments
    days = [make_day(pool, seed) for seed in seeds]
    return [
        {
            "time bank": live(d, bank(d.limit_s)),
            "equal shares": live(d, fixed(d.limit_s)),
            "equal rest": live(d, equal),
        }
        for d in days
    ]


def main(
    traces: Annotated[list[Path], typer.Option(help="Repeat for several.")],
    competitions: Annotated[int, typer.Option(min=1)] = 10_000,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Simulate all days with both sides."""
    pool = [question for path in traces for question in load(path)]
    chunks = [(pool, range(start, min(start + 50, competitions))) for start in range(0, competitions, 50)]
    with ProcessPoolExecutor() as processes:
        days = [day for part in track(processes.map(simulate, chunks), "days", len(chunks)) for day in part]
    table = Table(
        "policy",
        "mean score of 50",
        "days worse than equal shares",
        "overruns",
        "latest end, s after the limit",
    )
    results = []
    for name in days[0]:
        scores, ends = zip(*(day[name] for day in days), strict=True)
        figures = {
            "policy": name,
            "score": sum(scores) / len(days),
            "worse": sum(day[name][0] < day["equal shares"][0] for day in days),
            "overruns": sum(end > 1e-6 for end in ends),
            "latest_s": max(ends),
        }
        results.append(figures)
        table.add_row(
            name,
            f"{figures['score']:.2f}",
            f"{figures['worse']:,}",
            f"{figures['overruns']:,}",
            f"{figures['latest_s']:.1f}",
        )
    Console().print(table)
    if to:
        to.write_text(json.dumps({"competitions": competitions, "policies": results}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
