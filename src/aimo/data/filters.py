"""Which rows cannot be used or are not wanted, as expressions and columns of a table of problems.

Out of scope: a solution's steps; only its final answer is judged.
"""

import re
from collections.abc import Callable
from typing import Any

import polars as pl

from aimo.data import decontamination
from aimo.inference.answers import extract, to_integer
from aimo.inference.judge import are_equal
from aimo.inference.settings import Tags

CHUNK = 50_000
"""Rows that are Python objects at one time."""
WORDS_TO_TELL = 8
"""Fewer words do not determine a language."""


def key(problems: pl.Series) -> pl.Series:
    """(n,) a 64-bit hash of each problem without case and spacing.

    Two different problems of a million have the same one with a probability of 10^-7.
    """
    return problems.str.to_lowercase().str.replace_all(r"\s+", " ").hash()


def between(value: pl.Expr, low: float, high: float) -> pl.Expr:
    """Whether a value is not null and within low…high."""
    return value.is_between(low, high).fill_null(False)


def mapped(values: pl.Series, function: Callable[[str], Any], kind: Any) -> pl.Series:
    """(n,) a Python function of each text, null for null; CHUNK texts are in memory at a time."""
    parts = []
    for start in range(0, len(values), CHUNK):
        found = [None if text is None else function(text) for text in values[start : start + CHUNK]]
        parts.append(pl.Series(found, dtype=kind))
    return pl.concat(parts) if parts else pl.Series(dtype=kind)


def read_answers(texts: pl.Series, tags: Tags) -> list[pl.Series]:
    """(n,) the final `answer` of each text, and (n,) its `integer` of at most 18 digits, else null.

    An answer that is such an integer is written as one; other answers are unchanged.
    """

    def integer_of(answer: str) -> int | None:
        number = to_integer(answer)
        return number if number is not None and abs(number) < 10**18 else None

    answer = mapped(texts, lambda text: (extract(text, tags) or text).strip(), pl.String)
    integer = mapped(answer, integer_of, pl.Int64)
    written = pl.select(pl.coalesce(integer.cast(pl.String), answer)).to_series()
    return [written.alias("answer"), integer.alias("integer")]


def ends_in_another_answer(rows: pl.DataFrame, tags: Tags) -> pl.Series:
    """(n,) whether a solution that no column judges ends in another answer than the gold answer.

    A solution without a final answer, such as a derivation in prose, cannot be judged and is not one of them.
    """
    judged = rows["correct"].is_null() & (rows["answer"].fill_null("") != "") & rows["solution"].is_not_null()
    places = judged.arg_true()
    wrong: list[bool] = []
    for start in range(0, len(places), CHUNK):
        part = rows[places[start : start + CHUNK]]
        own = [extract(solution, tags) for solution in part["solution"]]
        verdicts = are_equal(own, part["answer"].to_list())
        wrong += [a is not None and verdict is not True for a, verdict in zip(own, verdicts, strict=True)]
    none = pl.repeat(False, len(rows), eager=True)
    return none.scatter(places, wrong) if wrong else none


def in_other_language(problems: pl.Series, language: str) -> pl.Series:
    """(n,) whether a problem is certainly not in a language (langid.py's model), formulas aside."""
    from py3langid import classify

    def differs(problem: str) -> bool:
        words = re.sub(r"\$[^$]*\$|\\\w+|[^\w\s]|\d", " ", problem)
        enough = len(words.split()) >= WORDS_TO_TELL or not words.isascii()
        return enough and classify(words[:1000])[0] != language

    return mapped(problems, differs, pl.Boolean)


def is_multiple_choice() -> pl.Expr:
    """A question of that kind, or one that lists choices A, B and C."""
    listed = r"(?s)\(A\).*\(B\).*\(C\)|\n\s*A[.):].*\n\s*B[.):].*\n\s*C[.):]"
    return (pl.col("kind") == "MCQ").fill_null(False) | pl.col("problem").str.contains(listed)


def is_proof() -> pl.Expr:
    """A question of that kind, one whose answer says so, or one that asks to prove and for nothing else."""
    problem = pl.col("problem")
    asks = problem.str.contains(r"(?i)\b(prove|show) that\b")
    seeks = problem.str.contains(r"(?i)\b(find|determine|compute|calculate|evaluate|what|how many)\b")
    of_kind = pl.col("kind").str.to_lowercase().str.contains("^proof$")
    says_so = pl.col("answer").str.to_lowercase() == "proof"
    return (of_kind | says_so).fill_null(False) | (asks & ~seeks)


def thought() -> pl.Expr:
    """A worked solution without the answer line, think tags and calculator marks of public sets."""
    text = pl.col("solution").str.replace_all(r"<<[^<>]*>>|</?think>", "").str.strip_chars()
    return text.str.replace(r"\n####[^\n]*$", "").str.strip_chars()


def near_duplicates(problems: pl.Series, threshold: float, seed: int) -> pl.Series:
    """(n,) whether an earlier problem shares `threshold` of the word triples (Jaccard) and all numbers.

    MinHash finds the candidates, and each is compared. Problems that differ in a number are different
    problems.
    """
    from rensa import RMinHash, RMinHashLSH

    # 64 hashes in 16 bands of 4: a pair at a Jaccard of 0.8 meets in some band with a chance of 0.9998.
    index = RMinHashLSH(threshold, 64, 16)
    near = []
    for i, text in enumerate(problems):
        sketch = RMinHash(64, seed)
        sketch.update(list(shingles(text)))
        near.append(any(is_near(text, problems[j], threshold) for j in index.query(sketch)))
        if not near[-1]:
            index.insert(i, sketch)
    return pl.Series(near, dtype=pl.Boolean)


def is_near(text: str, other: str, threshold: float) -> bool:
    """Whether two problems share all numbers and `threshold` of their word triples."""
    if sorted(re.findall(r"\d+", text)) != sorted(re.findall(r"\d+", other)):
        return False
    mine, theirs = shingles(text), shingles(other)
    return len(mine & theirs) >= threshold * len(mine | theirs)


def shingles(text: str) -> set[str]:
    """The word triples of a problem, without case, LaTeX markup and punctuation; or its few words."""
    words = decontamination.normalise(text, near=True).split()
    return set(decontamination.grams(words, 3)) or {" ".join(words)}
