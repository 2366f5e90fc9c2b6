"""Word problems of one to three steps in everyday words, with small numbers, and their worked solutions.

    python data/smollm2/problems.py [FOLDER] [--seed 0]

writes sft.jsonl, grpo.jsonl and heldout.jsonl: rows of `problem`, `solution` (one step a line), `answer` and
`family`. No problem is in two files.
"""

import random
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from aimo.data.sources import Split, WordProblem, stream
from aimo.inference.storage import write_lines

SFT, GRPO, HELDOUT = 560, 1200, 100  # rows

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Lily", "Tom")
THINGS = ("apples", "books", "cakes", "pens", "toys", "cups", "eggs", "stamps", "cards", "shells")
BOXES = ("boxes", "bags", "baskets")
Parts = tuple[list[str], list[str], int]  # a problem in two wordings, its steps, its answer


def more(r: random.Random) -> Parts:
    name, things = r.choice(NAMES), r.choice(THINGS)
    a, b = r.randint(3, 30), r.randint(3, 20)
    texts = [
        f"{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?",
        f"There are {a} {things} on the table and {b} {things} on the floor. How many {things} are there?",
    ]
    return texts, [f"{a} + {b} = {a + b}"], a + b


def fewer(r: random.Random) -> Parts:
    name, things = r.choice(NAMES), r.choice(THINGS)
    b, c = r.randint(3, 15), r.randint(3, 20)
    a = b + c
    texts = [
        f"{name} has {a} {things} and gives away {b}. How many {things} are left?",
        f"There were {a} {things} in the shop, and {b} were sold. How many {things} remain?",
    ]
    return texts, [f"{a} - {b} = {c}"], c


def times(r: random.Random) -> Parts:
    name, things, boxes = r.choice(NAMES), r.choice(THINGS), r.choice(BOXES)
    a, b = r.randint(2, 9), r.randint(2, 9)
    texts = [
        f"{name} has {a} {boxes} with {b} {things} in each. How many {things} does {name} have?",
        f"{name} buys {a} {things} for {b} dollars each. How many dollars does {name} pay?",
    ]
    return texts, [f"{a} * {b} = {a * b}"], a * b


def share(r: random.Random) -> Parts:
    things = r.choice(THINGS)
    a, b = r.randint(2, 9), r.randint(2, 9)
    texts = [
        f"{a * b} {things} are shared equally by {a} children. How many {things} does each child get?",
        f"{a * b} {things} are put into boxes of {a}. How many boxes are needed?",
    ]
    return texts, [f"{a * b} / {a} = {b}"], b


def both(r: random.Random) -> Parts:
    name, things = r.choice(NAMES), r.choice(THINGS)
    a, b, c = r.randint(5, 20), r.randint(3, 15), r.randint(2, 10)
    s = a + b
    texts = [
        f"{name} has {a} {things}, buys {b} more and gives away {c}. How many {things} are left?",
        f"A shop had {a} {things}. It got {b} new ones and sold {c}. How many {things} does it have now?",
    ]
    return texts, [f"{a} + {b} = {s}", f"{s} - {c} = {s - c}"], s - c


def packed(r: random.Random) -> Parts:
    name, things, boxes = r.choice(NAMES), r.choice(THINGS), r.choice(BOXES)
    a, b, c = r.randint(2, 6), r.randint(2, 8), r.randint(2, 9)
    p = a * b
    texts = [
        f"{name} has {c} {things} and buys {a} {boxes} of {b} {things}. How many {things} does {name} have?",
        f"There are {a} {boxes} with {b} {things} each, and {c} more {things}. How many {things} are there?",
    ]
    return texts, [f"{a} * {b} = {p}", f"{p} + {c} = {p + c}"], p + c


def two_kinds(r: random.Random) -> Parts:
    name, (x, y) = r.choice(NAMES), r.sample(THINGS, 2)
    a, b, c, d = (r.randint(2, 6) for _ in range(4))
    p, q = a * b, c * d
    texts = [
        f"{name} buys {a} {x} for {b} dollars each and {c} {y} for {d} dollars each. "
        f"How many dollars does {name} pay?",
        f"One of the {x} costs {b} dollars and one of the {y} costs {d} dollars. "
        f"How much do {a} {x} and {c} {y} cost?",
    ]
    return texts, [f"{a} * {b} = {p}", f"{c} * {d} = {q}", f"{p} + {q} = {p + q}"], p + q


FAMILIES = [more, fewer, times, share, both, packed, two_kinds]


def draw(r: random.Random) -> WordProblem:
    family = r.choice(FAMILIES)
    texts, steps, answer = family(r)
    return WordProblem(family.__name__, r.choice(texts), "\n".join(steps), answer)


def generate(n: int, split: Split, seed: int | str) -> list[WordProblem]:
    """Return the first `n` different problems of a split."""
    unique: dict[str, WordProblem] = {}
    for problem in stream(split, seed, draw):
        unique.setdefault(problem.problem, problem)
        if len(unique) == n:
            break
    return list(unique.values())


def main(
    folder: Annotated[Path, typer.Argument()] = Path(__file__).parent,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write the three files."""
    train, heldout = generate(SFT + GRPO, "train", seed), generate(HELDOUT, "heldout", seed)
    for name, rows in (("sft", train[:SFT]), ("grpo", train[SFT:]), ("heldout", heldout)):
        write_lines(folder / f"{name}.jsonl", [asdict(row) for row in rows])


if __name__ == "__main__":
    typer.run(main)
