"""The time bank beside the field's rule and equal shares: scores and overruns of simulated competition days.

    python benchmarks/timebank.py --traces FILE … [--competitions 10000] [--json FILE]
    python benchmarks/timebank.py --attempts FILE [--competitions 10000] [--json FILE]

A day asks 50 questions in random order. On some days the engine stalls for minutes, and on one day in five it
dies and restarts, which loses the running samples. The solver's rules (`voting.next_step`) decide when a
question ends; a question whose budget is spent is answered with the votes that it has. All policies get the
same days. An overrun is a day that ends after its limit.

With `--traces` (files as for `aimo replay`) the questions are recorded completions, the engine's speed
follows a random walk, and a day has 4,500 to 18,000 seconds.

With `--attempts` (aimo3_gpt_oss_120b_attempts.jsonl: tokens, answers and seconds of gpt-oss-120b on an H100)
a day has 17,400 seconds. A question is one of the recorded ten. Its 8 samples run at once, at 98 tokens a
second each, give or take 7 %, as recorded. A sample is one of the question's recorded attempts, its tokens
multiplied by a log-normal factor of spread 0.25. Two more factors are assumptions, as ten problems do not
show them: how much longer each question is (log-normal, spread 0.5), and how much longer all of the day's
are (0.75 to 1.75, uniform). The recorded run stopped at four equal answers, so that its longest attempts are
missing.
"""

import json
import math
import random
import statistics
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

from aimo.evaluation.traces import RecordedQuestion, RecordedSample, read_traces
from aimo.inference import solver, voting
from aimo.inference.voting import State

QUESTIONS = 50
START_S = 180.0  # the engine's start
OVERHEAD_S = 2.0  # of a question: the gateway, the prompt, the forced answers
Share = Callable[[float, int], float]  # (seconds left, questions left) -> seconds for the next question
MakeDay = Callable[[list[RecordedQuestion], int], "Day"]  # (questions to draw from, seed)


@dataclass
class Day:
    """What happens on one day; the same for every policy."""

    questions: list[RecordedQuestion]
    seed: int
    limit_s: float
    speeds: list[float]
    """Tokens a second of one stream, for each question."""
    stalls: dict[int, float]
    """Question to the seconds for which the engine writes nothing."""
    death: int | None
    """The question during which the engine dies; None when it lives."""


def faults(rng: random.Random) -> tuple[dict[int, float], int | None]:
    stalls = {rng.randrange(QUESTIONS): rng.uniform(60, 600) for _ in range(rng.randrange(3))}
    return stalls, rng.randrange(QUESTIONS) if rng.random() < 0.2 else None


def recorded_day(pool: list[RecordedQuestion], seed: int) -> Day:
    rng = random.Random(seed)
    questions = rng.choices(pool, k=QUESTIONS)
    limit_s = rng.uniform(0.5, 2.0) * 9000 + START_S
    speeds = [30.0]
    while len(speeds) < QUESTIONS:
        speeds.append(min(60.0, max(10.0, speeds[-1] * math.exp(rng.gauss(0, 0.1)))))
    return Day(questions, seed, limit_s, speeds, *faults(rng))


def gpt_oss_day(pool: list[RecordedQuestion], seed: int) -> Day:
    """A day of gpt-oss-120b on an H100, as the module's docstring says."""
    rng = random.Random(seed)
    longer = rng.uniform(0.75, 1.75)
    questions = []
    for question in rng.choices(pool, k=QUESTIONS):
        factor = longer * rng.lognormvariate(0, 0.5)
        drawn = rng.choices(question.ours, k=8)
        samples = [
            RecordedSample(one.tokens * factor * rng.lognormvariate(0, 0.25), one.answer) for one in drawn
        ]
        questions.append(RecordedQuestion(question.gold, [], samples))
    speeds = [98 * rng.lognormvariate(0, 0.07) for _ in range(QUESTIONS)]
    return Day(questions, seed, 17_400, speeds, *faults(rng))


def live(day: Day, share: Share) -> tuple[int, float]:
    """Answer a day's questions; returns the right answers and the seconds from the limit to the end."""
    rng = random.Random(day.seed)
    now, right = START_S, 0
    for i, question in enumerate(day.questions):
        seconds = share(day.limit_s - now - OVERHEAD_S * (QUESTIONS - i), QUESTIONS - i)
        lost = day.stalls.get(i, 0.0) + (START_S if day.death == i else 0.0)
        took, answer = ask(question, max(0.0, seconds), lost, day.speeds[i], rng)
        now += took + OVERHEAD_S
        right += answer is not None and answer == question.gold
    return right, now - day.limit_s


def ask(
    question: RecordedQuestion, budget: float, lost: float, speed: float, rng: random.Random
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
    """The time bank as a rerun uses it, which expects 50 questions and does not know their number."""

    def share(left: float, questions: int) -> float:
        return solver.next_budget(limit_s, limit_s - left, QUESTIONS - questions, QUESTIONS, known=False)

    return share


def fixed(limit_s: float) -> Share:
    """The same seconds for each question, as in most public notebooks."""
    return lambda left, _: min(left, (limit_s - START_S) / QUESTIONS - OVERHEAD_S)


def equal(_: float) -> Share:
    """An equal share of the time left for each question left."""
    return lambda left, questions: left / questions


def field(_: float) -> Share:
    """The rule of AIMO 3's public notebooks: 300 seconds are kept for each question to come, and one question
    takes at most 900 and at least 300. Here no question takes more than is left."""
    return lambda left, questions: min(left, max(300.0, min(900.0, left - 300.0 * (questions - 1))))


POLICIES = {
    "time bank": bank,
    "the field's rule": field,
    "fixed seconds": fixed,
    "equal share of the rest": equal,
}


def simulate(pool: list[RecordedQuestion], day: MakeDay, seeds: range) -> list[dict[str, tuple[int, float]]]:
    """One day for each seed; returns each policy's score and seconds past the limit, by its name."""
    days = [day(pool, seed) for seed in seeds]
    return [{name: live(day, share(day.limit_s)) for name, share in POLICIES.items()} for day in days]


def main(
    traces: Annotated[
        list[Path] | None, typer.Option(help="Recorded completions. Repeat for several.")
    ] = None,
    attempts: Annotated[Path | None, typer.Option(help="Recorded attempts of gpt-oss.")] = None,
    competitions: Annotated[int, typer.Option(min=1, help="Simulated days.")] = 10_000,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Simulate all days with each policy."""
    if bool(traces) == bool(attempts):
        raise typer.BadParameter("give --traces or --attempts")
    make = gpt_oss_day if attempts else recorded_day
    pool = [
        question
        for one in read_traces([attempts] if attempts else traces or [])
        for question in one.questions
    ]
    chunks = [range(start, min(start + 50, competitions)) for start in range(0, competitions, 50)]
    with ProcessPoolExecutor() as processes:
        parts = processes.map(simulate, [pool] * len(chunks), [make] * len(chunks), chunks)
        days = [day for part in track(parts, "days", len(chunks)) for day in part]
    table = Table(
        "policy",
        "mean score of 50",
        "ours minus theirs",
        "days behind / ahead",
        "overruns",
        "latest end, s",
    )
    ours = [day["time bank"][0] for day in days]
    results = []
    for name in POLICIES:
        scores, ends = zip(*(day[name] for day in days), strict=True)
        gains = [own - score for own, score in zip(ours, scores, strict=True)]
        mean = statistics.fmean(gains)
        figures = {
            "policy": name,
            "score": statistics.fmean(scores),
            "gain": mean,
            "gain_error": 1.96 * statistics.pstdev(gains) / math.sqrt(len(gains)),
            "behind": sum(gain < 0 for gain in gains),
            "ahead": sum(gain > 0 for gain in gains),
            "overruns": sum(end > 1e-6 for end in ends),
            "latest_s": max(ends),
        }
        results.append(figures)
        table.add_row(
            name,
            f"{figures['score']:.2f}",
            f"{mean:+.2f} ± {figures['gain_error']:.2f}",
            f"{figures['behind']:,} / {figures['ahead']:,}",
            f"{figures['overruns']:,}",
            f"{figures['latest_s']:.1f}",
        )
    Console(width=120).print(table)
    print("Latest end is in seconds after the day's limit; ± is a 95 % interval of the mean over days.")
    if to:
        to.write_text(json.dumps({"competitions": competitions, "policies": results}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
