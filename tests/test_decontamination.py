"""Decontamination: shared word n-grams, against their definition."""

import random

import polars as pl
import pytest

from aimo.data.decontaminate import find_overlaps, grams

EXAM = "Let n be the number of ways to seat nine people at a round table so that no two of them quarrel."


def rows(problems, benchmarks, **options):
    return find_overlaps(pl.Series(problems, dtype=pl.String), benchmarks, **options)["row"].to_list()


def by_definition(problem, benchmark, n=8):
    """Whether a problem shares n words in a row with one of a benchmark, by the definition."""
    known = {gram for text in benchmark for gram in grams(text.lower().split(), n)}
    return any(gram in known for gram in grams(problem.lower().split(), n))


def test_eight_words_in_a_row_are_contamination_and_seven_are_not():
    words = EXAM.split()
    problems = [
        " ".join(["Ann", *words[3:11], "said"]),
        " ".join(["Ann", *words[3:10], "said"]),
        "LET N be\nthe  number of WAYS to seat",
    ]
    assert rows(problems, {"exam": [EXAM]}) == [0, 2]


@pytest.mark.parametrize("seed", range(5))
def test_verdicts_are_those_of_the_definition(seed):
    rng = random.Random(seed)
    vocabulary = ["a", "the", "Sum", "of", "x\u00a0y", "İ", "ß", "$x^2$", "=", "\u3000", "\x1c", "数"]
    texts = [" ".join(rng.choices(vocabulary, k=rng.randint(0, 30))) for _ in range(400)]
    benchmark = texts[:40]
    expected = [i for i, text in enumerate(texts[40:]) if by_definition(text, benchmark, 5)]
    assert rows(texts[40:], {"b": benchmark}, n=5) == expected and 0 < len(expected) < 360


def test_rows_beyond_the_first_chunk_are_found(monkeypatch):
    monkeypatch.setattr("aimo.data.decontaminate.CHUNK", 3)
    assert rows(["x"] * 7 + [EXAM, "y", EXAM], {"exam": [EXAM]}) == [7, 9]


def test_near_matches_ignore_markup_and_punctuation():
    exam = r"Find the sum of all $\frac{1}{n}$ for which, say, $n \leq 10$ holds."
    copy = r"find the sum of all \( \dfrac 1 n \) for which say n \leq 10 holds"
    assert rows([copy], {"exam": [exam]}) == [] and rows([copy], {"exam": [exam]}, near=True) == [0]


def test_short_problems_count_as_a_whole_when_near():
    assert rows(["What is 2 + 2?"], {"exam": ["What is 2 + 2?"]}) == []
    assert rows(["What is 2 + 2?", "What is 2 + 2 - 1?"], {"exam": ["what is 2 + 2"]}, near=True) == [0]


def test_without_benchmarks_no_row_is_contaminated():
    assert rows(["a b c d e f g h i"], {}) == rows([], {"exam": [EXAM]}) == rows([""], {"exam": [""]}) == []
