"""The built-in problems: twelve families of small word problems, number theory, algebra and counting.

The tiny base and the demo train on them: nothing is downloaded, and nobody has seen the held-out ones. A
family draws its numbers and words in a fixed order, so that a seed gives the same problems in every version.
"""

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Split = Literal["train", "heldout"]

NAMES = (
    "Ana", "Ben", "Chen", "Dara", "Emil", "Fay", "Gus", "Hana", "Ivan", "Jo", "Kim", "Leo", "Mia", "Nils",
    "Olga",
)  # fmt: skip
THINGS = ["pens", "books", "cups", "lamps", "apples", "cakes", "hats", "kites", "maps", "toys"]
GROUPS = [
    ("boys", "girls"), ("cats", "dogs"), ("red balls", "blue balls"), ("poets", "painters"), ("oaks", "pines")
]  # fmt: skip
HOBBIES = ["chess", "football", "piano", "tennis", "drums", "cards"]
TANKS = [("tank", "liters"), ("barn", "sacks"), ("bank", "coins"), ("store", "boxes")]
PLACES = [("garden", "pond"), ("wall", "door"), ("field", "barn"), ("yard", "pool")]


@dataclass(frozen=True)
class Problem:
    """A problem with its worked solution."""

    family: str
    problem: str
    solution: str  # one step a line
    answer: int


Parts = tuple[list[str], list[str], int]  # a problem in several wordings, its steps, its answer


def shopping(r: random.Random) -> Parts:
    a, b, c, d = r.randint(2, 9), r.randint(2, 12), r.randint(2, 9), r.randint(2, 12)
    x, y = r.sample(THINGS, 2)
    texts = [
        f"{r.choice(NAMES)} buys {a} {x} at {b} dollars each and {c} {y} at {d} dollars each. "
        "What is the total cost?",
        f"A shop sells {x} for {b} dollars and {y} for {d} dollars. How much do {a} {x} and {c} {y} cost?",
    ]
    p, q = a * b, c * d
    return texts, [f"{a} * {b} = {p}", f"{c} * {d} = {q}", f"{p} + {q} = {p + q}"], p + q


def tank(r: random.Random) -> Parts:
    start, rate, days = r.randint(10, 60), r.randint(2, 9), r.randint(3, 12)
    place, unit = r.choice(TANKS)
    gained = rate * days
    full = start + gained
    loss = r.randint(2, min(40, full - 1))
    texts = [
        f"A {place} holds {start} {unit}. It gains {rate} {unit} a day for {days} days and then "
        f"loses {loss}. How many {unit} are left?",
        f"For {days} days a {place} with {start} {unit} gets {rate} more {unit} each day. "
        f"Then {loss} are taken. How many {unit} remain?",
    ]
    steps = [
        f"{rate} * {days} = {gained}",
        f"{start} + {gained} = {full}",
        f"{full} - {loss} = {full - loss}",
    ]
    return texts, steps, full - loss


def equation(r: random.Random) -> Parts:
    a, x, b, v = r.randint(2, 9), r.randint(3, 40), r.randint(2, 50), r.choice("xyzn")
    c = a * x + b
    texts = [f"Solve {a} {v} + {b} = {c} for {v}.", f"If {b} more than {a} times {v} is {c}, what is {v}?"]
    return texts, [f"{c} - {b} = {a * x}", f"{a * x} / {a} = {x}"], x


def remainder(r: random.Random) -> Parts:
    a, b, c, m = r.randint(3, 12), r.randint(3, 12), r.randint(2, 30), r.randint(6, 12)
    n = a * b + c
    q, rest = divmod(n, m)
    texts = [
        f"What is the remainder when {a} * {b} + {c} is divided by {m}?",
        f"Find the value of {a} * {b} + {c} modulo {m}.",
    ]
    steps = [
        f"{a} * {b} = {a * b}",
        f"{a * b} + {c} = {n}",
        f"{m} * {q} = {m * q}",
        f"{n} - {m * q} = {rest}",
    ]
    return texts, steps, rest


def sequence(r: random.Random) -> Parts:
    a, d, half = r.randint(2, 40), r.randint(2, 12), r.randint(2, 4)
    n = 2 * half
    rise = (n - 1) * d
    last = a + rise
    texts = [
        f"A sequence starts at {a} and grows by {d} each time. What is the sum of its first {n} terms?",
        f"The first of {n} numbers is {a}, and each next one is {d} larger. What do they add up to?",
    ]
    steps = [f"{n - 1} * {d} = {rise}", f"{a} + {rise} = {last}", f"{a} + {last} = {a + last}"]
    return texts, [*steps, f"{half} * {a + last} = {half * (a + last)}"], half * (a + last)


def pairs(r: random.Random) -> Parts:
    n, m = r.randint(3, 12), r.randint(3, 12)
    x, y = r.choice(GROUPS)
    texts = [
        f"There are {n} {x} and {m} {y}. How many pairs of the same kind can be chosen?",
        f"In how many ways can you pick two {x} from {n} or two {y} from {m}?",
    ]
    p, q = n * (n - 1), m * (m - 1)
    steps = [f"{n} * {n - 1} = {p}", f"{p} / 2 = {p // 2}", f"{m} * {m - 1} = {q}", f"{q} / 2 = {q // 2}"]
    return texts, [*steps, f"{p // 2} + {q // 2} = {(p + q) // 2}"], (p + q) // 2


def ages(r: random.Random) -> Parts:
    age, times, years = r.randint(3, 15), r.randint(2, 5), r.randint(2, 12)
    a, b = r.sample(NAMES, 2)
    older = age * times
    total, more = older + age, 2 * years
    texts = [
        f"{a} is {times} times as old as {b}, who is {age}. "
        f"What will the sum of their ages be in {years} years?",
        f"{b} is {age} years old and {a} is {times} times as old. "
        f"How old will they be together after {years} years?",
    ]
    steps = [f"{times} * {age} = {older}", f"{older} + {age} = {total}", f"2 * {years} = {more}"]
    return texts, [*steps, f"{total} + {more} = {total + more}"], total + more


def garden(r: random.Random) -> Parts:
    a, b, c, d = r.randint(6, 12), r.randint(6, 12), r.randint(2, 5), r.randint(2, 6)
    outer, inner = r.choice(PLACES)
    texts = [
        f"A {outer} of {a} by {b} meters has a {inner} of {c} by {d} meters in it. "
        "How many square meters remain?",
        f"What area of a {a} by {b} {outer} is not covered by a {c} by {d} {inner}?",
    ]
    p, q = a * b, c * d
    return texts, [f"{a} * {b} = {p}", f"{c} * {d} = {q}", f"{p} - {q} = {p - q}"], p - q


def average(r: random.Random) -> Parts:
    mean = r.randint(12, 50)
    x, y = r.randint(5, 2 * mean - 5), r.randint(5, mean)
    z = 3 * mean - x - y
    texts = [
        f"{r.choice(NAMES)} scores {x}, {y} and {z} points in three games. What is the average?",
        f"What is the mean of {x}, {y} and {z}?",
    ]
    return texts, [f"{x} + {y} = {x + y}", f"{x + y} + {z} = {3 * mean}", f"{3 * mean} / 3 = {mean}"], mean


def gcd(r: random.Random) -> Parts:
    while True:
        a, b = (r.randint(2, 12) * k for k in [r.randint(2, 9)] * 2)
        x, y, steps = max(a, b), min(a, b), []
        while x != y:
            steps.append(f"{x} - {y} = {x - y}")
            x, y = max(x - y, y), min(x - y, y)
        if 2 <= len(steps) <= 6:
            break
    texts = [
        f"What is the greatest common divisor of {a} and {b}?",
        f"Ropes of {a} and {b} meters are cut into equal pieces. "
        "What is the longest possible length of a piece?",
    ]
    return texts, steps, x


def digits(r: random.Random) -> Parts:
    a, b, c = r.randint(4, 12), r.randint(5, 12), r.randint(11, 80)
    n = a * b + c
    texts = [
        f"What is the sum of the digits of {a} * {b} + {c}?",
        f"Add the digits of the number {a} * {b} + {c}.",
    ]
    steps, total = [f"{a} * {b} = {a * b}", f"{a * b} + {c} = {n}"], int(str(n)[0])
    for digit in str(n)[1:]:
        steps.append(f"{total} + {digit} = {total + int(digit)}")
        total += int(digit)
    return texts, steps, total


def neither(r: random.Random) -> Parts:
    both, only_a, only_b, rest = r.randint(2, 12), r.randint(3, 25), r.randint(3, 25), r.randint(2, 30)
    a, b, n = both + only_a, both + only_b, both + only_a + only_b + rest
    x, y = r.sample(HOBBIES, 2)
    texts = [
        f"Of {n} students {a} like {x}, {b} like {y} and {both} like both. How many like neither?",
        f"A class has {n} students: {a} chose {x}, {b} chose {y}, {both} of them chose both. "
        "How many chose none?",
    ]
    some = a + b - both
    return texts, [f"{a} + {b} = {a + b}", f"{a + b} - {both} = {some}", f"{n} - {some} = {rest}"], rest


FAMILIES = [shopping, tank, equation, remainder, sequence, pairs, ages, garden, average, gcd, digits, neither]


def drawn(split: Split, seed: int | str, family: Callable[[random.Random], Any]) -> Iterator[Any]:
    """Yield without end what `family` draws, whose `problem` is of the split.

    A problem is held out by a hash of its text, so no train problem is a held-out one, whatever the seeds.
    """
    r = random.Random(f"{split}-{seed}")
    while True:
        problem = family(r)
        if (zlib.crc32(problem.problem.encode()) % 10 == 0) == (split == "heldout"):
            yield problem


def stream(split: Split, seed: int | str) -> Iterator[Problem]:
    """Yield problems of one split without end, families drawn evenly."""

    def draw(r: random.Random) -> Problem:
        family = r.choice(FAMILIES)
        texts, steps, answer = family(r)
        return Problem(family.__name__, r.choice(texts), "\n".join(steps), answer)

    return drawn(split, seed, draw)


def generate(n: int, split: Split, seed: int | str) -> list[Problem]:
    """Return the first `n` problems of `stream` with different texts."""
    unique: dict[str, Problem] = {}
    for problem in stream(split, seed):
        unique.setdefault(problem.problem, problem)
        if len(unique) == n:
            break
    return list(unique.values())
