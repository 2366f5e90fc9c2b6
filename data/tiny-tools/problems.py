"""Problems that a short program solves and a tiny model does not in its head, with their programs."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aimo.data.sources import Split, stream


@dataclass(frozen=True)
class ProgrammedProblem:
    """A problem with the programs that solve it."""

    family: str
    problem: str
    programs: list[str]
    """Each ends in an expression, whose value it prints; the last one's is the answer."""

    def outputs(self) -> list[str]:
        """Return what each program prints."""
        names: dict[str, Any] = {}
        printed = []
        for program in self.programs:
            *statements, last = program.splitlines()
            exec("\n".join(statements), names)
            printed.append(str(eval(last, names)))
        return printed


PROGRAMMED: dict[str, tuple[str, list[str], list[str]]] = {
    "power": (
        "abm",
        ["What is the remainder when {a}^{b} is divided by {m}?", "Find {a}^{b} modulo {m}."],
        ["pow({a}, {b}, {m})"],
    ),
    "product": (
        "abcm",
        [
            "What is the remainder when {a} * {b} * {c} is divided by {m}?",
            "Multiply {a} by {b} and by {c}, then divide by {m}. What remains?",
        ],
        ["n = {a} * {b} * {c}\nn", "n % {m}"],
    ),
    "digits": (
        "abm",
        [
            "What is the sum of the digits of {a}^{b} modulo {m}?",
            "Add the digits of {a}^{b} and divide by {m}. What remains?",
        ],
        ["sum(map(int, str({a} ** {b}))) % {m}"],
    ),
    "prime": (
        "abcm",
        [
            "What is the largest prime factor of {a} * {b} + {c} modulo {m}?",
            "Divide the largest prime factor of {a} * {b} + {c} by {m}. What remains?",
        ],
        ["from sympy import primefactors\nmax(primefactors({a} * {b} + {c})) % {m}"],
    ),
    "powers": (
        "knm",
        [
            "What is 1^{k} + 2^{k} + ... + {n}^{k} modulo {m}?",
            "Add the powers i^{k} for i from 1 to {n}. What is the remainder of the sum divided by {m}?",
        ],
        ["sum(i ** {k} for i in range({n} + 1)) % {m}"],
    ),
    "choice": (
        "abm",
        [
            "In how many ways can {a} of {b} people be chosen, modulo {m}?",
            "How many sets of {a} numbers are there among {b} numbers? Give it modulo {m}.",
        ],
        ["from math import comb\ncomb({b}, {a}) % {m}"],
    ),
    "recurrence": (
        "abnm",
        [
            "A sequence begins {a}, {b}; each later term is the sum of the two before. "
            "What is term {n} modulo {m}?",
            "The first two terms are {a} and {b}, then each is the sum of the two before. "
            "Find term {n} modulo {m}.",
        ],
        ["x, y = {a}, {b}\nfor _ in range({n} - 1): x, y = y, x + y\nx % {m}"],
    ),
}
"""The numbers of a family, from 12 to 99, its problem in several wordings, and its programs."""


def stream_programmed(split: Split, seed: int) -> Iterator[ProgrammedProblem]:
    """As `stream`, for problems that a program solves."""

    def draw(r: random.Random) -> ProgrammedProblem:
        family = r.choice(list(PROGRAMMED))
        letters, texts, programs = PROGRAMMED[family]
        if family == "choice":
            numbers = [*sorted(r.sample(range(12, 100), 2)), r.randint(12, 99)]
        else:
            numbers = [r.randint(3, 9) if letter == "k" else r.randint(12, 99) for letter in letters]
        named = dict(zip(letters, numbers, strict=True))
        return ProgrammedProblem(
            family, r.choice(texts).format(**named), [program.format(**named) for program in programs]
        )

    return stream(split, seed, draw)
