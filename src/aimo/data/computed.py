"""Problems that a short program solves and a tiny model does not in its head, with their programs.

The tiny tool model is trained and measured on them. Out of scope: what takes a program more than a moment.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aimo.data.builtin import Split


@dataclass(frozen=True)
class Problem:
    """A problem with the programs that solve it."""

    family: str
    problem: str
    programs: list[str]
    """Each ends in an expression, whose value it prints; the last one's is the answer."""

    def outputs(self) -> list[str]:
        """What each program prints."""
        names: dict[str, Any] = {}
        printed = []
        for program in self.programs:
            *statements, last = program.splitlines()
            exec("\n".join(statements), names)
            printed.append(str(eval(last, names)))
        return printed


Parts = tuple[list[str], list[str]]  # a problem in several wordings, its programs


def power(r: random.Random) -> Parts:
    a, b, m = (r.randint(12, 99) for _ in range(3))
    texts = [f"What is the remainder when {a}^{b} is divided by {m}?", f"Find {a}^{b} modulo {m}."]
    return texts, [f"pow({a}, {b}, {m})"]


def product(r: random.Random) -> Parts:
    a, b, c, m = (r.randint(12, 99) for _ in range(4))
    texts = [
        f"What is the remainder when {a} * {b} * {c} is divided by {m}?",
        f"Multiply {a} by {b} and by {c}, then divide by {m}. What remains?",
    ]
    return texts, [f"n = {a} * {b} * {c}\nn", f"n % {m}"]


def digits(r: random.Random) -> Parts:
    a, b, m = (r.randint(12, 99) for _ in range(3))
    texts = [
        f"What is the sum of the digits of {a}^{b} modulo {m}?",
        f"Add the digits of {a}^{b} and divide by {m}. What remains?",
    ]
    return texts, [f"sum(map(int, str({a} ** {b}))) % {m}"]


def prime(r: random.Random) -> Parts:
    a, b, c, m = (r.randint(12, 99) for _ in range(4))
    texts = [
        f"What is the largest prime factor of {a} * {b} + {c} modulo {m}?",
        f"Divide the largest prime factor of {a} * {b} + {c} by {m}. What remains?",
    ]
    return texts, [f"from sympy import primefactors\nmax(primefactors({a} * {b} + {c})) % {m}"]


def powers(r: random.Random) -> Parts:
    k, n, m = r.randint(3, 9), r.randint(12, 99), r.randint(12, 99)
    texts = [
        f"What is 1^{k} + 2^{k} + ... + {n}^{k} modulo {m}?",
        f"Add the powers i^{k} for i from 1 to {n}. What is the remainder of the sum divided by {m}?",
    ]
    return texts, [f"sum(i ** {k} for i in range({n} + 1)) % {m}"]


def choice(r: random.Random) -> Parts:
    (a, b), m = sorted(r.sample(range(12, 100), 2)), r.randint(12, 99)
    texts = [
        f"In how many ways can {a} of {b} people be chosen, modulo {m}?",
        f"How many sets of {a} numbers are there among {b} numbers? Give it modulo {m}.",
    ]
    return texts, [f"from math import comb\ncomb({b}, {a}) % {m}"]


def recurrence(r: random.Random) -> Parts:
    a, b, n, m = (r.randint(12, 99) for _ in range(4))
    texts = [
        f"A sequence begins {a}, {b}; each later term is the sum of the two before. "
        f"What is term {n} modulo {m}?",
        f"The first two terms are {a} and {b}, then each is the sum of the two before. "
        f"Find term {n} modulo {m}.",
    ]
    return texts, [f"x, y = {a}, {b}\nfor _ in range({n} - 1): x, y = y, x + y\nx % {m}"]


FAMILIES = [power, product, digits, prime, powers, choice, recurrence]


def stream(split: Split, seed: int) -> Iterator[Problem]:
    """An endless iterator of problems of one split, which the hash of a problem's text decides."""
    r = random.Random(f"{split}-{seed}")
    while True:
        family = r.choice(FAMILIES)
        texts, programs = family(r)
        text = r.choice(texts)
        if (zlib.crc32(text.encode()) % 10 == 0) == (split == "heldout"):
            yield Problem(family.__name__, text, programs)
