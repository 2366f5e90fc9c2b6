"""Which rows cannot be used or are not wanted, as expressions and columns of a table of problems."""

import re
from collections.abc import Callable
from typing import Any

import polars as pl

from aimo.data import decontaminate
from aimo.inference.answers import extract, to_integer
from aimo.inference.files import CHUNK
from aimo.inference.judge import are_equal
from aimo.inference.settings import Tags

ANY = pl.lit(True)
WORDS_TO_TELL = 8  # fewer words do not determine a language
CHOICES = r"(?s)\(A\).*\(B\).*\(C\)|\n\s*A[.):].*\n\s*B[.):].*\n\s*C[.):]"
# A question whose `kind` says so, or one that lists choices A, B and C.
IS_MULTIPLE_CHOICE = (pl.col("kind") == "MCQ").fill_null(False) | pl.col("problem").str.contains(CHOICES)
# A question whose `kind` or answer says so, or one that asks to prove and for nothing else.
IS_PROOF = pl.any_horizontal(pl.col("kind", "answer").str.to_lowercase() == "proof").fill_null(False) | (
    pl.col("problem").str.contains(r"(?i)\b(prove|show) that\b")
    & ~pl.col("problem").str.contains(r"(?i)\b(find|determine|compute|calculate|evaluate|what|how many)\b")
)


def key(problems: pl.Series) -> pl.Series:
    """(n,) a 64-bit hash of each problem without case and spacing.

    Two different problems of a million have the same one with a probability of 10^-7.
    """
    return per_chunk(problems, lambda part: part.str.to_lowercase().str.replace_all(r"\s+", " ").hash())


def per_chunk(values: pl.Series, function: Callable[[pl.Series], pl.Series]) -> pl.Series:
    """(n,) a function of a series, CHUNK rows at a time, so that few rows are in memory twice."""
    starts = range(0, len(values) or 1, CHUNK)
    return pl.concat([function(values[start : start + CHUNK]) for start in starts])


def mapped(values: pl.Series, function: Callable[[str], Any], kind: Any) -> pl.Series:
    """(n,) a Python function of each text, null for null."""

    def map_part(part: pl.Series) -> pl.Series:
        return pl.Series([None if text is None else function(text) for text in part], dtype=kind)

    return per_chunk(values, map_part)


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


def judge_solutions(rows: pl.DataFrame, tags: Tags, judged: pl.Expr = ANY) -> tuple[pl.Series, pl.Series]:
    """(n,) the final answer of each `solution` that is `judged`; (n,) whether it is the gold `answer`.

    A solution without a final answer, such as a derivation in prose, has null, and is not right.
    """
    own: list[str | None] = []
    right: list[bool] = []
    for part in rows.iter_slices(CHUNK):
        texts = part.select(pl.when(judged).then(pl.col("solution"))).to_series()
        found = [None if text is None else extract(text, tags) for text in texts]
        pairs = {i: pair for i, pair in enumerate(zip(found, part["answer"], strict=True)) if all(pair)}
        answers, golds = zip(*pairs.values(), strict=True) if pairs else ((), ())
        verdicts = dict(zip(pairs, are_equal(answers, golds), strict=True))
        own += found
        right += [verdicts.get(i) is True for i in range(len(found))]
    return pl.Series(own, dtype=pl.String), pl.Series(right, dtype=pl.Boolean)


def in_other_language(problems: pl.Series, language: str) -> pl.Series:
    """(n,) whether a problem is certainly not in a language (langid.py's model), formulas aside."""
    from py3langid import classify  # loads a model

    def differs(problem: str) -> bool:
        words = re.sub(r"\$[^$]*\$|\\\w+|[^\w\s]|\d", " ", problem)
        enough = len(words.split()) >= WORDS_TO_TELL or not words.isascii()
        return enough and classify(words[:1000])[0] != language

    return mapped(problems, differs, pl.Boolean)


def thoughts(solutions: pl.Series) -> pl.Series:
    """(n,) worked solutions without the answer line, think tags and calculator marks of public sets."""

    def bare(part: pl.Series) -> pl.Series:
        text = part.str.replace_all(r"<<[^<>]*>>|</?think>", "").str.strip_chars()
        return text.str.replace(r"\n####[^\n]*$", "").str.strip_chars()

    return per_chunk(solutions, bare)


def near_duplicates(problems: pl.Series, threshold: float, seed: int) -> pl.Series:
    """(n,) whether an earlier problem shares `threshold` of the word triples (Jaccard) and all numbers.

    MinHash finds the candidates, and each is compared. Problems that differ in a number are different
    problems.
    """
    from rensa import RMinHash, RMinHashLSH

    # 64 hashes in 16 bands of 4: a pair at a Jaccard of 0.8 meets in some band with a chance of 0.9998.
    index = RMinHashLSH(threshold, 64, 16)

    def is_near(text: str, other: str) -> bool:
        if sorted(re.findall(r"\d+", text)) != sorted(re.findall(r"\d+", other)):
            return False
        mine, theirs = shingles(text), shingles(other)
        return len(mine & theirs) >= threshold * len(mine | theirs)

    near = []
    for i, text in enumerate(problems):
        sketch = RMinHash(64, seed)
        sketch.update(list(shingles(text)))
        near.append(any(is_near(text, problems[j]) for j in index.query(sketch)))
        if not near[-1]:
            index.insert(i, sketch)
    return pl.Series(near, dtype=pl.Boolean)


def shingles(text: str) -> set[str]:
    """Return the word triples of a text, without case, LaTeX markup and punctuation; or its few words."""
    words = decontaminate.normalise(text, near=True).split()
    return set(decontaminate.grams(words, 3)) or {" ".join(words)}
