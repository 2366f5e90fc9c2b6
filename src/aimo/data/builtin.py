"""The built-in problems: twelve families of small word problems, number theory, algebra and counting.

The tiny base and the demo train on them: nothing is downloaded, and nobody has seen the held-out ones. A
family draws its numbers and words in a fixed order, so that a seed gives the same problems in every version.
"""

import operator
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

Split = Literal["train", "heldout"]
WORDS, FAMILIES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text()).values()
SIGNS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv, "min": min
}  # fmt: skip


@dataclass(frozen=True)
class WordProblem:
    """A problem with its worked solution."""

    family: str
    problem: str
    solution: str  # one step a line
    answer: int


def draw_problem(r: random.Random) -> WordProblem:
    """Draw a family, its numbers and words, and one of its wordings."""
    name = r.choice(list(FAMILIES))
    family = FAMILIES[name]
    known: Any = {}
    steps: list[tuple[Any, ...]] = []  # a, sign, b, their figure

    def work_out(left: Any, sign: str, right: Any) -> int:
        a, b = (known[part] if part in known else int(part) for part in (left, right))
        steps.append((a, sign, b, SIGNS[sign](a, b)))
        return SIGNS[sign](a, b)

    while True:
        for key, drawn in family["draw"].items():
            if isinstance(drawn, list):
                low, high = (known.get(bound, bound) for bound in drawn)
                known[key] = r.randint(low, high)
            elif (words := WORDS.get(drawn)) is None:
                known[key] = work_out(*drawn.split())
            elif " " in key:
                two = r.choice(words) if isinstance(words[0], list) else r.sample(words, 2)
                known |= zip(key.split(), two, strict=True)
            else:
                known[key] = r.choice(words)
        steps.clear()  # these figures are given
        answer = 0
        for step in family["steps"]:
            key, _, *figure = step.split()
            answer = known[key] = work_out(*figure)
        if name == "digits":
            answer = int(str(answer)[0])
            for digit in str(known["n"])[1:]:
                answer = work_out(answer, "+", digit)
        if name == "gcd":
            x, y = known["a"], known["b"]
            while x != y:
                x, y = max(x, y), min(x, y)
                x = answer = work_out(x, "-", y)
        if name != "gcd" or 2 <= len(steps) <= 6:
            break
    text = r.choice(family["texts"]).format(**known)
    solution = "\n".join(f"{a} {sign} {b} = {figure}" for a, sign, b, figure in steps)
    return WordProblem(name, text, solution, answer)


def drawn(split: Split, seed: int | str, draw: Callable[[random.Random], Any]) -> Iterator[Any]:
    """Yield without end what `draw` makes whose `problem` is of the split.

    A problem is held out by a hash of its text, so no train problem is a held-out one, whatever the seeds.
    """
    r = random.Random(f"{split}-{seed}")
    while True:
        problem = draw(r)
        if (zlib.crc32(problem.problem.encode()) % 10 == 0) == (split == "heldout"):
            yield problem


def stream(split: Split, seed: int | str) -> Iterator[WordProblem]:
    """Yield problems of one split without end, families drawn evenly."""
    return drawn(split, seed, draw_problem)


def generate(n: int, split: Split, seed: int | str) -> list[WordProblem]:
    """Return the first `n` problems of `stream` with different texts."""
    unique: dict[str, WordProblem] = {}
    for problem in stream(split, seed):
        unique.setdefault(problem.problem, problem)
        if len(unique) == n:
            break
    return list(unique.values())
