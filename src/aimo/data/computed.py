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
    a, b, m = r.randint(12, 99), r.randint(20, 999), r.randint(1000, 9999)
    texts = [f"What is the remainder when {a}^{b} is divided by {m}?", f"Find {a}^{b} modulo {m}."]
    return texts, [f"pow({a}, {b}, {m})"]


def product(r: random.Random) -> Parts:
    a, b, m = r.randint(10000, 99999), r.randint(10000, 99999), r.randint(1000, 9999)
    texts = [
        f"What is the remainder when {a} * {b} is divided by {m}?",
        f"Multiply {a} by {b} and divide by {m}. What remains?",
    ]
    return texts, [f"n = {a} * {b}\nn", f"n % {m}"]


def digits(r: random.Random) -> Parts:
    a, b = r.randint(12, 99), r.randint(20, 99)
    texts = [f"What is the sum of the digits of {a}^{b}?", f"Add the digits of the number {a}^{b}."]
    return texts, [f"sum(map(int, str({a} ** {b})))"]


def divisor(r: random.Random) -> Parts:
    a, b = (r.randint(100, 999) * k for k in [r.randint(100, 999)] * 2)
    texts = [
        f"What is the greatest common divisor of {a} and {b}?",
        f"Ropes of {a} and {b} meters are cut into equal pieces. "
        f"What is the longest possible length of a piece?",
    ]
    return texts, [f"from math import gcd\ngcd({a}, {b})"]


def prime(r: random.Random) -> Parts:
    n = r.randint(300, 999) * r.randint(300, 999)
    texts = [f"What is the largest prime factor of {n}?", f"Which is the largest prime that divides {n}?"]
    return texts, [f"from sympy import primefactors\nmax(primefactors({n}))"]


def powers(r: random.Random) -> Parts:
    k, n, m = r.randint(3, 9), r.randint(50, 999), r.randint(1000, 9999)
    texts = [
        f"What is 1^{k} + 2^{k} + ... + {n}^{k} modulo {m}?",
        f"Add the powers i^{k} for i from 1 to {n}. What is the remainder of the sum divided by {m}?",
    ]
    return texts, [f"total = 0\nfor i in range({n} + 1): total += i ** {k}\ntotal % {m}"]


def multiples(r: random.Random) -> Parts:
    (a, b), n = r.sample(range(3, 60), 2), r.randint(1000, 99999)
    texts = [
        f"How many integers from 1 to {n} are divisible by {a} or {b}?",
        f"Count the multiples of {a} or {b} among the integers from 1 to {n}.",
    ]
    return texts, [f"sum(i % {a} == 0 or i % {b} == 0 for i in range(1, {n} + 1))"]


def recurrence(r: random.Random) -> Parts:
    a, b, n, m = r.randint(1, 99), r.randint(1, 99), r.randint(30, 999), r.randint(1000, 9999)
    texts = [
        f"A sequence begins {a}, {b}; each later term is the sum of the two before. "
        f"What is term {n} modulo {m}?",
        f"The first two terms are {a} and {b}, then each term is the sum of the two before it. "
        f"Find the remainder when term {n} is divided by {m}.",
    ]
    return texts, [f"x, y = {a}, {b}\nfor _ in range({n} - 1): x, y = y, x + y\nx % {m}"]


FAMILIES = [power, product, digits, divisor, prime, powers, multiples, recurrence]


def stream(split: Split, seed: int) -> Iterator[Problem]:
    """An endless iterator of problems of one split, which the hash of a problem's text decides."""
    r = random.Random(f"{split}-{seed}")
    while True:
        family = r.choice(FAMILIES)
        texts, programs = family(r)
        text = r.choice(texts)
        if (zlib.crc32(text.encode()) % 10 == 0) == (split == "heldout"):
            yield Problem(family.__name__, text, programs)
