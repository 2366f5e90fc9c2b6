"""The engine: tokens per second of the solver's streams beside the bare engine, and questions per hour beside a fixed vote.

    python benchmarks/engine.py [--model FOLDER] [--questions 40] [--samples 16] [--rounds 3] [--json FILE]

The bare engine gets a question's requests at once and gives back whole texts: nothing is read, stopped or voted. The solver's
streams answer the same prompts with the same seeds. Both work on one question after another, in turns, and the best round counts.
"""

import asyncio
import json
import math
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from aimo.config import ROOT
from aimo.data import builtin
from aimo.inference.engine import Engine, sample_seed
from aimo.inference.solver import solve
from aimo.inference.voting import Policy


def bare(engine: Engine, problem: str, samples: int) -> int:
    """All samples of a question at once, whole; the tokens generated."""

    async def gather() -> int:
        prompt = engine.encode(problem)
        streams = (engine.sample(prompt, sample_seed(0, problem, i), engine.settings) for i in range(samples))
        return sum(completion.tokens for completion in await asyncio.gather(*streams))

    return engine.run(gather())


def streams(engine: Engine, problem: str, samples: int) -> int:
    """The solver, all samples at once, its vote never over; the tokens generated."""
    never = Policy(in_flight=samples, level=0, hopeless=math.inf, ramble=math.inf)
    return sum(sample.tokens for sample in solve(engine, problem, samples, 0, 99999, policy=never).samples)


def voted(engine: Engine, problem: str, samples: int) -> int:
    """The solver as it is; the tokens generated."""
    return sum(sample.tokens for sample in solve(engine, problem, samples, 0, 99999).samples)


def main(
    model: Annotated[Path, typer.Option()] = ROOT / "data" / "tiny-base",
    questions: Annotated[int, typer.Option(min=1)] = 40,
    samples: Annotated[int, typer.Option(min=1)] = 16,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Measure all three ways in each round."""
    texts = [p.problem for p in builtin.generate(questions, "heldout", 0)]
    ways = {"bare engine": bare, "solver's streams": streams, "solver's vote": voted}
    best: dict[str, dict[str, Any]] = {}
    with Engine(model) as engine:
        bare(engine, texts[0], samples)  # the first request of all is slow
        for turn in range(rounds):
            for name, way in list(ways.items())[:: 1 if turn % 2 else -1]:
                begun = time.perf_counter()
                tokens = sum(way(engine, text, samples) for text in texts)
                seconds = time.perf_counter() - begun
                found = {
                    "way": name,
                    "tokens_per_second": tokens / seconds,
                    "questions_per_hour": 3600 * questions / seconds,
                }
                best[name] = max(best.get(name, found), found, key=lambda f: f["questions_per_hour"])
    table = Table("way", "tokens per second", "of bare", "questions per hour", "of fixed vote")
    first = best["bare engine"]
    for name in ways:
        b = best[name]
        b |= {f"{key}_ratio": b[key] / first[key] for key in ("tokens_per_second", "questions_per_hour")}
        table.add_row(
            name,
            f"{b['tokens_per_second']:,.0f}",
            f"{b['tokens_per_second_ratio']:.2f}",
            f"{b['questions_per_hour']:,.0f}",
            f"{b['questions_per_hour_ratio']:.2f}",
        )
    Console().print(table)
    print(
        f"{questions} questions of {samples} samples, {rounds} rounds, {model.name}; the bare engine's whole texts are the fixed vote."
    )
    if to:
        to.write_text(json.dumps({"ways": [best[name] for name in ways]}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
