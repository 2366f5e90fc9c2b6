"""What the solver itself takes for each token of one sample, by the sample's length, without an engine.

    python benchmarks/solver.py [--rounds 3] [--json FILE]

A stand-in for the engine streams made-up reasoning with formulas, 3.6 characters a token, that comes to no
answer. A row is a sample without tools, with tools that it does not use, and with a program every 1,000
tokens, whose run is left out. Figures are the best of the rounds, in microseconds of one core.
"""

import asyncio
import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from aimo.inference import sample
from aimo.inference.answers import Integer
from aimo.inference.prompts import Completion
from aimo.inference.sample import AskedProblem, RunningSample
from aimo.inference.sandbox import Result
from aimo.inference.settings import PUBLIC, Settings

TOKENS = 4_000, 16_000, 64_000
PROGRAM_EVERY = 1_000
WORDS = [" so", " the", " sum", " is", " of", " which", " we", " then", " but", " for", " with", ".\n\n"]
FORMULAS = ["$", "x", "_{", "1", "}", " = ", "\\frac", "{", "a", "}", "{", "b", "}", "^", "2", "$"]
PROGRAM = ["```", "python", "\n", "print", "(", "6", " * ", "7", ")\n", "```", "\n"]


def write(tokens: int, programs: bool) -> list[str]:
    rng = random.Random(0)
    pieces: list[str] = []
    while len(pieces) < tokens:
        if programs and len(pieces) % PROGRAM_EVERY > PROGRAM_EVERY - 50:
            pieces += PROGRAM + [" "] * (-(len(pieces) + len(PROGRAM)) % PROGRAM_EVERY)
        elif rng.random() < 0.05:
            pieces += FORMULAS
        else:
            pieces.append(rng.choice([*WORDS, str(rng.random())[2:5]]))
    return pieces[:tokens]


class NoPrograms:
    """The sandbox of a sample, without one."""

    def __init__(self, seconds: float):
        pass

    def run(self, code: str) -> Result:
        return Result("42")

    def close(self) -> None:
        pass


class Tokenizer:
    """Its tokens are those of the samples, and letters."""

    added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def encode(self, text: str, **_: Any) -> list[int]:
        return [self.known.setdefault(letter, len(self.known)) for letter in text]

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(map(list(self.known).__getitem__, ids))

    def apply_chat_template(self, talk: list[dict[str, str]], **_: Any) -> list[int]:
        return self.encode(talk[-1]["content"])


class Stream:
    """A sampler that streams the tokens of one sample, as `Engine.sample` does."""

    def __init__(self, pieces: list[str], tools: bool):
        self.tokenizer, self.max_length, self.pieces = Tokenizer(), 10**9, pieces
        settings = Settings(tags=PUBLIC[0], thinking=False, tools=float(tools), max_tokens=10**9)
        self.settings = replace(settings, tool_turns=10**6)
        self.at, self.ids = 0, [self.tokenizer.encode([piece])[0] for piece in pieces]  # type: ignore[arg-type]

    async def sample(self, prompt: list[int], seed: int, settings: Settings, until: Any) -> Completion:
        text, ids = "", []
        for at in range(self.at, len(self.pieces)):
            text += self.pieces[at]
            ids.append(self.ids[at])
            if until(text, ids):
                self.at = at + 1
                return Completion(text, ids, False)
        return Completion(text, ids, False)


def measure(tokens: int, tools: bool, programs: bool) -> float:
    sampler = Stream(write(tokens, programs), tools)
    running = RunningSample(AskedProblem(sampler, "?", 0, Integer(0, 999)), 0, 0.0, tools)  # type: ignore[arg-type]
    begun = time.process_time()
    written = asyncio.run(running.run())
    seconds = time.process_time() - begun
    assert written.tokens == tokens and len(running.results) == programs * tokens // PROGRAM_EVERY
    return 1e6 * seconds / tokens


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each figure.")] = 3,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Print the microseconds for each token."""
    sample.Programs = NoPrograms  # type: ignore[assignment, misc]
    kinds = {
        "without tools": (False, False),
        "with tools, no program": (True, False),
        "a program every 1,000 tokens": (True, True),
    }
    table = Table("µs a token of a sample", *(f"{tokens:,} tokens" for tokens in TOKENS))
    figures = {}
    for kind, asked in kinds.items():
        found = {str(tokens): min(measure(tokens, *asked) for _ in range(rounds)) for tokens in TOKENS}
        figures[kind] = found
        table.add_row(kind, *(f"{value:.1f}" for value in found.values()))
    Console().print(table)
    if to:
        to.write_text(json.dumps({"us_per_token": figures}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
