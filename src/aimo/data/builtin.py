"""The built-in problems: twelve families of small word problems, number theory, algebra and counting.

Every problem has a worked solution of two to six one-line steps and an integer answer. They are what the
tiny base is trained on and what the demo runs on, because no download is needed and nobody can have seen the
held-out ones. Out of scope: anything hard. A tiny model must be able to learn them, and must not be able to
guess them.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "heldout"]

NAMES = [
    "Ana",
    "Ben",
    "Chen",
    "Dara",
    "Emil",
    "Fay",
    "Gus",
    "Hana",
    "Ivan",
    "Jo",
    "Kim",
    "Leo",
    "Mia",
    "Nils",
    "Olga",
]
THINGS = ["pens", "books", "cups", "lamps", "apples", "cakes", "hats", "kites", "maps", "toys"]
GROUPS = [
    ("boys", "girls"),
    ("cats", "dogs"),
    ("red balls", "blue balls"),
    ("poets", "painters"),
    ("oaks", "pines"),
]
HOBBIES = ["chess", "football", "piano", "tennis", "drums", "cards"]
TANKS = [("tank", "liters"), ("barn", "sacks"), ("bank", "coins"), ("store", "boxes")]


@dataclass(frozen=True)
class Problem:
    """A problem with its worked solution."""

    family: str
    problem: str
    solution: str  # one step a line
    answer: int


Parts = tuple[str, list[str], int]  # problem, steps, answer


def shopping(r: random.Random) -> Parts:
    a, b, c, d = r.randint(2, 9), r.randint(2, 12), r.randint(2, 9), r.randint(2, 12)
    x, y = r.sample(THINGS, 2)
    text = r.choice(
        [
            f"{r.choice(NAMES)} buys {a} {x} at {b} dollars each and {c} {y} at {d} dollars each. "
            f"What is the total cost?",
            f"A shop sells {x} for {b} dollars and {y} for {d} dollars. "
            f"How much do {a} {x} and {c} {y} cost?",
        ]
    )
    p, q = a * b, c * d
    return text, [f"{a} * {b} = {p}", f"{c} * {d} = {q}", f"{p} + {q} = {p + q}"], p + q


def tank(r: random.Random) -> Parts:
    start, rate, days = r.randint(10, 60), r.randint(2, 9), r.randint(3, 12)
    place, unit = r.choice(TANKS)
    gained = rate * days
    loss = r.randint(2, min(40, start + gained - 1))
    full = start + gained
    text = r.choice(
        [
            f"A {place} holds {start} {unit}. It gains {rate} {unit} a day for {days} days and then "
            f"loses {loss}. How many {unit} are left?",
            f"For {days} days a {place} with {start} {unit} gets {rate} more {unit} each day. "
            f"Then {loss} are taken. How many {unit} remain?",
        ]
    )
    return (
        text,
        [f"{rate} * {days} = {gained}", f"{start} + {gained} = {full}", f"{full} - {loss} = {full - loss}"],
        full - loss,
    )


def equation(r: random.Random) -> Parts:
    a, x, b = r.randint(2, 9), r.randint(3, 40), r.randint(2, 50)
    v = r.choice("xyzn")
    c = a * x + b
    text = r.choice(
        [f"Solve {a} {v} + {b} = {c} for {v}.", f"If {b} more than {a} times {v} is {c}, what is {v}?"]
    )
    return text, [f"{c} - {b} = {a * x}", f"{a * x} / {a} = {x}"], x


def remainder(r: random.Random) -> Parts:
    a, b, c, m = r.randint(3, 12), r.randint(3, 12), r.randint(2, 30), r.randint(6, 12)
    n = a * b + c
    q = n // m
    text = r.choice(
        [
            f"What is the remainder when {a} * {b} + {c} is divided by {m}?",
            f"Find the value of {a} * {b} + {c} modulo {m}.",
        ]
    )
    return (
        text,
        [f"{a} * {b} = {a * b}", f"{a * b} + {c} = {n}", f"{m} * {q} = {m * q}", f"{n} - {m * q} = {n % m}"],
        n % m,
    )


def sequence(r: random.Random) -> Parts:
    a, d, half = r.randint(2, 40), r.randint(2, 12), r.randint(2, 4)
    n = 2 * half
    rise = (n - 1) * d
    last = a + rise
    text = r.choice(
        [
            f"A sequence starts at {a} and grows by {d} each time. What is the sum of its first {n} terms?",
            f"The first of {n} numbers is {a}, and each next one is {d} larger. What do they add up to?",
        ]
    )
    steps = [
        f"{n - 1} * {d} = {rise}",
        f"{a} + {rise} = {last}",
        f"{a} + {last} = {a + last}",
        f"{half} * {a + last} = {half * (a + last)}",
    ]
    return text, steps, half * (a + last)


def pairs(r: random.Random) -> Parts:
    n, m = r.randint(3, 12), r.randint(3, 12)
    x, y = r.choice(GROUPS)
    text = r.choice(
        [
            f"There are {n} {x} and {m} {y}. How many pairs of the same kind can be chosen?",
            f"In how many ways can you pick two {x} from {n} or two {y} from {m}?",
        ]
    )
    p, q = n * (n - 1), m * (m - 1)
    steps = [
        f"{n} * {n - 1} = {p}",
        f"{p} / 2 = {p // 2}",
        f"{m} * {m - 1} = {q}",
        f"{q} / 2 = {q // 2}",
        f"{p // 2} + {q // 2} = {(p + q) // 2}",
    ]
    return text, steps, (p + q) // 2


def ages(r: random.Random) -> Parts:
    age, times, years = r.randint(3, 15), r.randint(2, 5), r.randint(2, 12)
    a, b = r.sample(NAMES, 2)
    older = age * times
    text = r.choice(
        [
            f"{a} is {times} times as old as {b}, who is {age}. "
            f"What will the sum of their ages be in {years} years?",
            f"{b} is {age} years old and {a} is {times} times as old. "
            f"How old will they be together after {years} years?",
        ]
    )
    total, more = older + age, 2 * years
    return (
        text,
        [
            f"{times} * {age} = {older}",
            f"{older} + {age} = {total}",
            f"2 * {years} = {more}",
            f"{total} + {more} = {total + more}",
        ],
        total + more,
    )


def garden(r: random.Random) -> Parts:
    a, b, c, d = r.randint(6, 12), r.randint(6, 12), r.randint(2, 5), r.randint(2, 6)
    outer, inner = r.choice([("garden", "pond"), ("wall", "door"), ("field", "barn"), ("yard", "pool")])
    text = r.choice(
        [
            f"A {outer} of {a} by {b} meters has a {inner} of {c} by {d} meters in it. "
            f"How many square meters remain?",
            f"What area of a {a} by {b} {outer} is not covered by a {c} by {d} {inner}?",
        ]
    )
    p, q = a * b, c * d
    return text, [f"{a} * {b} = {p}", f"{c} * {d} = {q}", f"{p} - {q} = {p - q}"], p - q


def average(r: random.Random) -> Parts:
    mean = r.randint(12, 50)
    x, y = r.randint(5, 2 * mean - 5), r.randint(5, mean)
    z = 3 * mean - x - y
    text = r.choice(
        [
            f"{r.choice(NAMES)} scores {x}, {y} and {z} points in three games. What is the average?",
            f"What is the mean of {x}, {y} and {z}?",
        ]
    )
    return text, [f"{x} + {y} = {x + y}", f"{x + y} + {z} = {3 * mean}", f"{3 * mean} / 3 = {mean}"], mean


def gcd(r: random.Random) -> Parts:
    while True:
        a, b = (r.randint(2, 12) * k for k in [r.randint(2, 9)] * 2)
        x, y, steps = max(a, b), min(a, b), []
        while x != y:
            steps.append(f"{x} - {y} = {x - y}")
            x, y = max(x - y, y), min(x - y, y)
        if 2 <= len(steps) <= 6:
            break
    text = r.choice(
        [
            f"What is the greatest common divisor of {a} and {b}?",
            f"Ropes of {a} and {b} meters are cut into equal pieces. "
            f"What is the longest possible length of a piece?",
        ]
    )
    return text, steps, x


def digits(r: random.Random) -> Parts:
    a, b, c = r.randint(4, 12), r.randint(5, 12), r.randint(11, 80)
    n = a * b + c
    text = r.choice(
        [
            f"What is the sum of the digits of {a} * {b} + {c}?",
            f"Add the digits of the number {a} * {b} + {c}.",
        ]
    )
    steps, total = [f"{a} * {b} = {a * b}", f"{a * b} + {c} = {n}"], int(str(n)[0])
    for digit in str(n)[1:]:
        steps.append(f"{total} + {digit} = {total + int(digit)}")
        total += int(digit)
    return text, steps, total


def neither(r: random.Random) -> Parts:
    both, only_a, only_b, rest = r.randint(2, 12), r.randint(3, 25), r.randint(3, 25), r.randint(2, 30)
    a, b, n = both + only_a, both + only_b, both + only_a + only_b + rest
    x, y = r.sample(HOBBIES, 2)
    text = r.choice(
        [
            f"Of {n} students {a} like {x}, {b} like {y} and {both} like both. How many like neither?",
            f"A class has {n} students: {a} chose {x}, {b} chose {y}, {both} of them chose both. "
            f"How many chose none?",
        ]
    )
    return (
        text,
        [f"{a} + {b} = {a + b}", f"{a + b} - {both} = {a + b - both}", f"{n} - {a + b - both} = {rest}"],
        rest,
    )


FAMILIES = [shopping, tank, equation, remainder, sequence, pairs, ages, garden, average, gcd, digits, neither]


def stream(split: Split, seed: int | str) -> Iterator[Problem]:
    """An endless iterator of problems of one split, families drawn evenly.

    A problem is held out by a hash of its text, so no train problem can be a held-out one, whatever the
    seeds.
    """
    r = random.Random(f"{split}-{seed}")
    while True:
        family = r.choice(FAMILIES)
        text, steps, answer = family(r)
        if (zlib.crc32(text.encode()) % 10 == 0) == (split == "heldout"):
            yield Problem(family.__name__, text, "\n".join(steps), answer)


def generate(n: int, split: Split, seed: int | str) -> list[Problem]:
    """The first `n` problems of `stream` with different texts."""
    unique: dict[str, Problem] = {}
    for problem in stream(split, seed):
        unique.setdefault(problem.problem, problem)
        if len(unique) == n:
            break
    return list(unique.values())
