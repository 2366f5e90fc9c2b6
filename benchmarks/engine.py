"""The solver's tokens per second beside the bare engine's, and its questions per hour beside a fixed vote's.

    python benchmarks/engine.py [--model FOLDER] [--questions 40] [--samples 16] [--rounds 3] [--json FILE]

The bare engine gets all requests of a question at once and returns whole texts; nothing is read while it
writes, stopped or voted. The solver gets the same prompts and seeds. All ways answer one question after
another, in turns, and the best round counts.
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
from aimo.inference.engine import Engine
from aimo.inference.sampling import sample_seed
from aimo.inference.solver import solve_problem
from aimo.inference.voting import Policy


def bare(engine: Engine, problem: str, samples: int) -> int:
    """All samples of a question at once, as whole texts; returns the tokens generated."""

    async def gather() -> int:
        prompt = engine.encode(problem)
        streams = (engine.sample(prompt, sample_seed(0, problem, i), engine.settings) for i in range(samples))
        return sum(completion.tokens for completion in await asyncio.gather(*streams))

    return engine.run(gather())


def streams(engine: Engine, problem: str, samples: int) -> int:
    """The solver with all samples at once and a vote that never ends early; returns the tokens generated."""
    never = Policy(in_flight=samples, max_error=0, futile_error=math.inf, overlong=math.inf)
    return sum(
        sample.tokens for sample in solve_problem(engine, problem, samples, 0, 99999, policy=never).samples
    )


def voted(engine: Engine, problem: str, samples: int) -> int:
    """The solver with its own stop rules; returns the tokens generated."""
    return sum(sample.tokens for sample in solve_problem(engine, problem, samples, 0, 99999).samples)


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
        bare(engine, texts[0], samples)  # vLLM compiles during the first requests
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
    peer = best["bare engine"]
    for name in ways:
        row = best[name]
        cells = []
        for key in ("tokens_per_second", "questions_per_hour"):
            row[f"{key}_ratio"] = row[key] / peer[key]
            cells += [f"{row[key]:,.0f}", f"{row[f'{key}_ratio']:.2f}"]
        table.add_row(name, *cells)
    Console(width=110).print(table)
    print(f"{questions} questions of {samples} samples, {rounds} rounds, {model.name}.")
    print("The bare engine's whole texts are the fixed vote.")
    if to:
        to.write_text(json.dumps({"ways": [best[name] for name in ways]}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
