"""The time bank beside equal shares: scores and overruns of simulated competition days.

    python benchmarks/timebank.py --traces FILE … [--competitions 10000] [--json FILE]

A day asks 50 questions in random order, drawn from recorded completions (files as in
benchmarks/voting.py). The engine's speed follows a random walk. On some days it stalls for minutes, and
on one day in five it dies and restarts, which loses the running samples. The solver's rules
(`voting.next_step`) decide when a question ends; a question whose budget is spent is answered with the
votes that it has. All policies get the same days. An overrun is a day that ends after its limit.
"""

import json
import math
import random
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
from voting import Question, load  # benchmarks/voting.py

from aimo.inference import timebank, voting
from aimo.inference.voting import State

QUESTIONS = 50
START_S = 180.0  # the engine's start
OVERHEAD_S = 2.0  # of a question: the gateway, the prompt, the forced answers
Share = Callable[[float, int], float]  # (seconds left, questions left) -> seconds for the next question


@dataclass
class Day:
    """What happens on one day; the same for every policy."""

    questions: list[Question]
    seed: int
    limit_s: float
    stalls: dict[int, float]
    """Question to the seconds for which the engine writes nothing."""
    death: int | None
    """The question during which the engine dies; None when it lives."""


def make_day(pool: list[Question], seed: int) -> Day:
    """A day whose limit is between 4,500 and 18,000 seconds and the engine's start."""
    rng = random.Random(seed)
    questions = rng.choices(pool, k=QUESTIONS)
    stalls = {rng.randrange(QUESTIONS): rng.uniform(60, 600) for _ in range(rng.randrange(3))}
    limit_s = rng.uniform(0.5, 2.0) * 9000 + START_S
    death = rng.randrange(QUESTIONS) if rng.random() < 0.2 else None
    return Day(questions, seed, limit_s, stalls, death)


def live(day: Day, share: Share) -> tuple[int, float]:
    """Answer a day's questions; returns the right answers and the seconds from the limit to the end."""
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
    """Answer one question in at most `budget` seconds; returns the seconds and the answer.

    Each stream writes `speed` tokens a second, but nothing in the first `lost` seconds.
    """
    samples = rng.sample(question.ours, len(question.ours))
    votes: Counter[object] = Counter()
    running: list[list[float | int]] = []  # for each stream: tokens still to write, index of its sample
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
    """The time bank."""
    least = timebank.minimum(limit_s - START_S - OVERHEAD_S * QUESTIONS, QUESTIONS)
    return lambda left, questions: timebank.budget(left, questions, least)


def fixed(limit_s: float) -> Share:
    """The same seconds for each question, as in most public notebooks."""
    return lambda left, _: min(left, (limit_s - START_S) / QUESTIONS - OVERHEAD_S)


def equal(_: float) -> Share:
    """An equal share of the time left for each question left."""
    return lambda left, questions: left / questions


POLICIES = {"time bank": bank, "fixed seconds": fixed, "equal share of the rest": equal}


def simulate(pool: list[Question], seeds: range) -> list[dict[str, tuple[int, float]]]:
    """One day for each seed; returns each policy's score and seconds past the limit, by its name."""
    days = [make_day(pool, seed) for seed in seeds]
    return [{name: live(day, share(day.limit_s)) for name, share in POLICIES.items()} for day in days]


def main(
    traces: Annotated[list[Path], typer.Option(help="Repeat for several.")],
    competitions: Annotated[int, typer.Option(min=1, help="Simulated days.")] = 10_000,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Simulate all days with each policy."""
    pool = [question for path in traces for question in load(path)]
    chunks = [range(start, min(start + 50, competitions)) for start in range(0, competitions, 50)]
    with ProcessPoolExecutor() as processes:
        parts = processes.map(simulate, [pool] * len(chunks), chunks)
        days = [day for part in track(parts, "days", len(chunks)) for day in part]
    table = Table(
        "policy", "mean score of 50", "ours / theirs", "days worse than fixed", "overruns", "latest end, s"
    )
    results = []
    for name in POLICIES:
        scores, ends = zip(*(day[name] for day in days), strict=True)
        figures = {
            "policy": name,
            "score": sum(scores) / len(days),
            "worse": sum(day[name][0] < day["fixed seconds"][0] for day in days),
            "overruns": sum(end > 1e-6 for end in ends),
            "latest_s": max(ends),
        }
        results.append(figures)
        figures["ratio"] = results[0]["score"] / figures["score"]
        counts = f"{figures['worse']:,}", f"{figures['overruns']:,}", f"{figures['latest_s']:.1f}"
        table.add_row(name, f"{figures['score']:.2f}", f"{figures['ratio']:.3f}", *counts)
    Console(width=110).print(table)
    print("Latest end is in seconds after the day's limit.")
    if to:
        to.write_text(json.dumps({"competitions": competitions, "policies": results}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
