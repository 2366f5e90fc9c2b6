r"""Decide whether a completion's answer equals the gold answer.

`same` decides plain values in microseconds: numbers, fractions, roots, tuples, sets, matrices, words. What
takes algebra goes to math-verify in worker processes, each answer with a hard time limit, so that a
completion can lose its reward but cannot stop the run. Times and lengths with units: `measures`. Out of
scope: finding the answer (`aimo.inference.answers`); grading proofs.
"""

import atexit
import json
import os
import queue
import re
import select
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

from aimo.inference import measures
from aimo.inference.answers import DEFAULT_TAGS, extract
from aimo.inference.arithmetic import TEXT, Number, canonical, compute, values
from aimo.inference.settings import Tags

TIME_LIMIT_S = 5.0
"""Wall time of one answer in math-verify."""
WORKERS = min(4, len(os.sched_getaffinity(0)))
LETTER_UNIT = re.compile(  # in "5 m", m may be a name or metres
    r"[\d} ](?:[cdghlmost]|[cdkm]m|[gk]m|kg|lbs?|ft|hrs?|yrs?|[ap]m)\Z"
)
NUMERAL = re.compile(r"\d[\dA-F]*_\{\d+\}")
RELATION = re.compile("([^=<>≤≥]+)([=<>≤≥])([^=<>≤≥]+)")


def is_correct(completion: str, gold: str | int, tags: Tags = DEFAULT_TAGS) -> bool | None:
    """Whether a completion's answer equals the gold answer; None when the gold answer cannot be read."""
    return are_correct([completion], [gold], tags)[0]


def are_correct(
    completions: Sequence[str], golds: Sequence[str | int], tags: Tags = DEFAULT_TAGS
) -> list[bool | None]:
    """`is_correct` for n completions and their n gold answers."""
    return are_equal([extract(completion, tags) for completion in completions], golds)


def are_equal(answers: Sequence[str | None], golds: Sequence[str | int]) -> list[bool | None]:
    """Whether each of n answers equals its gold answer; None as in `is_correct`, False for no answer.

    Pairs that need math-verify run side by side in WORKERS processes, TIME_LIMIT_S each; a pair that exceeds
    the time or the memory is wrong. The first such pair costs a second, in which the workers import sympy.
    """
    pairs = [(answer, str(gold).strip()) for answer, gold in zip(answers, golds, strict=True)]
    verdicts: list[bool | None] = [None] * len(pairs)
    hard: dict[tuple[str, str], list[int]] = {}
    for i, (answer, gold) in enumerate(pairs):
        verdicts[i] = quick_verdict(answer, gold)
        if verdicts[i] is None:
            hard.setdefault((answer or "", gold), []).append(i)
    if hard:
        # A few pairs are not worth starting another process for.
        with ThreadPoolExecutor(min(WORKERS, 1 + len(hard) // 8)) as threads:
            found = threads.map(lambda pair: verify(*pair), hard)
            for places, verdict in zip(hard.values(), found, strict=True):
                for i in places:
                    verdicts[i] = verdict
    return verdicts


def quick_verdict(answer: str | None, gold: str) -> bool | None:
    """Whether an answer equals the gold answer, where that takes no algebra; None otherwise."""
    if answer is not None and (verdict := measures.same(answer, gold)) is not None:
        return verdict
    target = compute(gold)
    value = compute(answer) if target is not None and answer is not None else None
    if target is not None and target.denominator == 1 and value is not None:
        return value == target
    if answer is None:
        return False if re.search(r"\w", gold) else None
    if answer == gold and re.search(r"\w", gold):
        return True
    return same(canonical(answer), canonical(gold)) if len(answer + gold) <= 600 else None


# Without algebra


@lru_cache(maxsize=100_000)
def same(answer: str, gold: str) -> bool | None:
    r"""Whether two canonical answers are certainly equal or certainly not; None where that takes algebra.

    Tuples, intervals and matrices are compared by element; sets and lists in any order, with both values of
    \pm.
    """
    if answer == gold:
        return answer != "" or None
    (brackets, xs), (others, ys) = elements(answer), elements(gold)
    if any([text] == found and RELATION.search(text) for text, found in ((answer, xs), (gold, ys))):
        return same_right_sides(answer, gold)
    if ([answer], [gold]) == (xs, ys):
        return same_expression(answer, gold)
    if not xs or not ys or len(xs) * len(ys) > 400:
        return None
    if brackets and brackets == others:
        return same_in_order(xs, ys)
    table = [[same(x, y) for y in ys] for x in xs]
    lines = [*table, *map(list, zip(*table, strict=True))]
    if any(set(line) == {False} for line in lines):
        return False  # one has an element that the other lacks
    return True if brackets == others and all(line.count(True) == 1 for line in lines) else None


def same_in_order(xs: list[str], ys: list[str]) -> bool | None:
    """`same` for two collections whose order counts."""
    if len(xs) != len(ys):
        return False
    verdicts = [same(x, y) for x, y in zip(xs, ys, strict=True)]
    if False in verdicts:
        return False
    return None if None in verdicts else True


def elements(text: str) -> tuple[str, list[str]]:
    r"""A tuple, interval or matrix as (brackets, elements); a set, list or single value as ("", elements)."""
    if matrix := re.fullmatch(r"[(\[]?\\begin\{[bp]?matrix\}(.*)\\end\{[bp]?matrix\}[)\]]?", text):
        rows = [row.split("&") for row in matrix[1].removesuffix(";").split(";")]
        return f"matrix {[len(row) for row in rows]}", [entry.strip() for row in rows for entry in row]
    if bracketed := re.fullmatch(r"(\\\{|[(\[])(.*)(\\\}|[)\]])", text):
        inner = split(bracketed[2])
        if inner and bracketed[1] == r"\{":
            return "", inner
        if len(inner) > 1:
            return bracketed[1] + bracketed[3], inner
    return "", split(text)


def split(text: str) -> list[str]:
    r"""A list at its commas outside brackets, `a \pm b` as two elements; [] when brackets do not match."""
    found, depth, begin = [], 0, 0
    for i, character in enumerate(text + ","):
        depth += (character in "([{") - (character in ")]}")
        if not 0 <= depth <= 8:
            return []
        if depth == 0 and character == ",":
            found.append(text[begin:i].strip())
            begin = i + 1
    return [] if depth else [value for element in found for value in both_signs(element)]


def both_signs(element: str) -> list[str]:
    r"""`a + b` and `a - b` for `a \pm b`; other elements unchanged."""
    if element.count(r"\pm") != 1:
        return [element]
    return [element.replace(r"\pm", sign) for sign in "+-"]


def same_right_sides(answer: str, gold: str) -> bool | None:
    """`same` where one is a relation: a bare value is compared with the other's right side.

    A gold answer's left side must then be a name or `f(x)`; an answer's may be any.
    """
    a, b = RELATION.fullmatch(answer), RELATION.fullmatch(gold)
    if a and b:
        return same(a[3], b[3]) if a.group(1, 2) == b.group(1, 2) else None
    if a and a[2] == "=" and not RELATION.search(gold):
        return same(a[3], gold)
    if b and re.fullmatch(r"\w(\(\w\))?=", b[1] + b[2]) and not RELATION.search(answer):
        return same(answer, b[3])
    return None


def same_expression(answer: str, gold: str) -> bool | None:
    """`same` for what is no collection: by value, else as words."""
    if answer.endswith("%") and (gold.endswith("%") or re.fullmatch(r"\d+\\?%\d+", answer + gold)):
        return same(answer.rstrip("\\%"), gold.rstrip("\\%"))
    x, y = values(answer), values(gold)
    if x and y:
        return same_values(x, y, answer, gold)
    a, b = words_of(answer), words_of(gold)
    if a and b:
        return a == b
    if (a and y) or (b and x):
        return False
    if NUMERAL.fullmatch(answer) and NUMERAL.fullmatch(gold):
        return False  # 40_9 and 40_8: math-verify does not see the base
    if y and isinstance(y[0], Fraction) and "\\" not in answer and not re.search("percent|%", answer):
        numbers = re.findall(r"\d[\d,.]*", answer)  # one, in "10 + John's age"
        if not numbers:
            return False
        if len(numbers) == 1 and compute(numbers[0]) != abs(y[0]) and re.search("[A-Za-z]{4}", answer):
            return False
    return None


def same_values(x: tuple[Number, ...], y: tuple[Number, ...], answer: str, gold: str) -> bool | None:
    """`same` by the values at both points; None where the points disagree, or a letter may be a unit."""
    verdicts = {close(a, b, "." in answer + gold) for a, b in zip(x, y, strict=True)}
    if len(verdicts) > 1:
        return None
    if verdicts == {False} and bool(LETTER_UNIT.search(answer)) != bool(LETTER_UNIT.search(gold)):
        return None
    return verdicts.pop()


def close(a: Number, b: Number, decimal: bool) -> bool | None:
    """Whether two values are equal; None for a near miss, as math-verify rounds decimals to six places."""
    if isinstance(a, Fraction) and isinstance(b, Fraction) and (a == b or not decimal):
        return a == b
    try:
        difference, size = abs(complex(a) - complex(b)), abs(complex(a))
    except OverflowError:  # one overflows a float
        return False
    if difference <= size / 10**12:
        return True
    return False if difference > max(1, size) / 10**5 else None


def words_of(text: str) -> str:
    r"""What may be no formula (`\text{even}`, `ellipse`, `(C)`), without case and spaces; "" for others."""
    found = re.fullmatch(rf"{TEXT}\{{([A-Za-z .()]+)\}}|([A-Za-z .()]+)", text)
    return re.sub("[^a-z]", "", (found[1] or found[2]).lower()) if found else ""


# With algebra: math-verify in worker processes


@lru_cache(maxsize=100_000)
def verify(answer: str, gold: str) -> bool | None:
    """math-verify's verdict from a worker: False past the limits, None for a gold answer it cannot read."""
    if len(answer) > 1000:  # no answer is that long, and parsing one is slow
        answer = ""
    workers = free_workers(os.getpid())
    worker = workers.get()
    try:
        return worker.ask([answer, gold])
    finally:
        workers.put(worker)


@cache
def free_workers(_pid: int) -> "queue.Queue[Worker]":
    """The worker processes that are free; a forked process has its own."""
    free: queue.Queue[Worker] = queue.LifoQueue()  # a started worker is reused
    for _ in range(WORKERS):
        free.put(Worker())
    return free


class Worker:
    """One process that runs math-verify; killed and started again when it exceeds its time.

    A plain subprocess, because multiprocessing would import the caller's script again.
    """

    process: subprocess.Popen[bytes] | None = None

    def ask(self, request: list[str]) -> bool | None:
        """The verdict on [answer, gold]; False when the process dies or exceeds TIME_LIMIT_S."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        assert self.process is not None and self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            ready, _, _ = select.select([self.process.stdout], [], [], TIME_LIMIT_S)
            reply = self.process.stdout.readline() if ready else b""
        except OSError:
            reply = b""
        if not reply:
            self.process.kill()
            self.process.wait()
            return False
        return json.loads(reply)

    def start(self) -> None:
        """Start the process and wait until it has imported what it needs."""
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        atexit.register(self.process.kill)
        assert self.process.stdout
        self.process.stdout.readline()


def serve() -> None:
    """A worker's loop: one JSON line [answer, gold] in, one JSON verdict out."""
    import resource

    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse
    from math_verify import verify as equal

    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    configs = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]

    @lru_cache(maxsize=10_000)
    def read_gold(gold: str) -> list[Any]:
        for text in (f"${gold}$", gold):
            found = parse(text, parsing_timeout=None)
            if any(not isinstance(part, str) for part in found):  # text alone is what it falls back to
                return found
        return []

    def judge(answer: str, gold: str) -> bool | None:
        target = read_gold(gold)
        if not target:
            return None
        if not answer:
            return False
        found = parse(f"\\boxed{{{answer}}}", extraction_config=configs, parsing_timeout=None)
        return bool(found and equal(target, found, timeout_seconds=None))

    print("ready", flush=True)
    for line in sys.stdin:
        try:
            verdict = judge(*json.loads(line))
        except Exception:  # sympy raises any kind
            verdict = False
        print(json.dumps(verdict), flush=True)
