"""Find problems that share words: with evaluation problems, by Open-R1's n-gram test, or with each other.

The test, here on hashes, is from s1 (2025). It misses paraphrases and translations, which share no words.
"""

import re

import numpy as np
import polars as pl
from rensa import RMinHash, RMinHashLSH

from aimo.inference.files import CHUNK  # rows at a time: the words of more would fill the memory

MARKUP = re.compile(r"\\(?:left|right|[a-z]?frac|text\w*|math\w+|displaystyle|quad|[,;:! ])|[^\w+*/=<>^-]|_")


def normalise(text: str, near: bool = False) -> str:
    """Lower the case and join words by single spaces (Open-R1's); `near` drops markup and punctuation too."""
    return " ".join((MARKUP.sub(" ", text) if near else text).lower().split())


def find_overlaps(
    problems: pl.Series, benchmarks: dict[str, list[str]], n: int = 8, near: bool = False
) -> pl.DataFrame:
    """Return `row`, `benchmark` and `overlap` of problems that share `n` consecutive words with a benchmark.

    With `near`, a benchmark's problem of fewer than `n` words must match as a whole. Open-R1's test ignores
    such problems.
    """
    lookup: dict[str, str] = {}  # benchmark by its runs of n words
    whole: dict[str, str] = {}  # benchmark by its shorter texts
    for name, texts in benchmarks.items():
        for text in texts:
            words = normalise(text, near).split()
            for gram in grams(words, n):
                lookup.setdefault(gram, name)
            if near and 0 < len(words) < n:
                whole.setdefault(" ".join(words), name)
    _, hashes = gram_hashes(pl.Series(list(lookup), dtype=pl.String), n)
    sieve = np.zeros(1 << 22, bool)  # excludes most hashes of most rows
    sieve[hashes & (len(sieve) - 1)] = True
    found: list[tuple[int, str, str]] = []
    for start in range(0, len(problems) if lookup or whole else 0, CHUNK):
        part = [normalise(text, near) for text in problems[start : start + CHUNK]]
        found += [(start + row, whole[text], text) for row, text in enumerate(part) if text in whole]
        rows, mine = gram_hashes(pl.Series(part, dtype=pl.String), n)
        sieved = np.flatnonzero(sieve[mine & (len(sieve) - 1)])
        hits = sieved[np.isin(mine[sieved], hashes)]
        for row in dict.fromkeys(rows[hits].tolist()):
            # Hashes may collide: compare the words.
            if overlap := next((gram for gram in grams(part[row].split(), n) if gram in lookup), None):
                found.append((start + row, lookup[overlap], overlap))
    schema = {"row": pl.Int64, "benchmark": pl.String, "overlap": pl.String}
    return pl.DataFrame(sorted(found), schema, orient="row")


def shares(texts: list[str], training: pl.Series, n: int = 8) -> list[float]:
    """Return the share (m,) of each text's runs of `n` words that the training has; 0 for shorter texts."""
    rows, wanted = gram_hashes(pl.Series([normalise(text) for text in texts], dtype=pl.String), n)
    found = np.zeros(len(wanted), bool)
    for start in range(0, len(training), CHUNK):
        part = [normalise(text) for text in training[start : start + CHUNK]]
        found |= np.isin(wanted, gram_hashes(pl.Series(part, dtype=pl.String), n)[1])
    total, held = (np.bincount(chosen, minlength=len(texts)) for chosen in (rows, rows[found]))
    return (held / np.maximum(total, 1)).tolist()


def grams(words: list[str], n: int) -> list[str]:
    return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]


def gram_hashes(texts: pl.Series, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the row (m,) and the 64-bit hash (m,) of every run of `n` words in normalised texts."""
    words = pl.DataFrame(
        {"row": pl.arange(len(texts), eager=True, dtype=pl.UInt32), "word": texts.str.split(" ")}
    ).explode("word")
    row, word = words["row"].to_numpy(), words["word"].hash().to_numpy()
    last = len(row) - n + 1
    if last <= 0:
        return row[:0], word[:0]
    total = np.zeros(last, np.uint64)
    for i in range(n):
        total = total * np.uint64(0x9E3779B97F4A7C15) + word[i : i + last]
    inside = row[:last] == row[n - 1 :]
    return row[:last][inside], total[inside]


def near_duplicates(problems: pl.Series, threshold: float, seed: int) -> pl.Series:
    """Return whether each problem (n,) has an earlier one with the same numbers and nearly the same words.

    MinHash finds candidates. They are near duplicates if the Jaccard similarity of their word triples is at
    least `threshold`.
    """
    # 64 hashes in 16 bands of 4: a pair at a Jaccard of 0.8 meets in some band with a chance of 0.9998.
    index, near = RMinHashLSH(threshold, 64, 16), list[bool]()
    for i, text in enumerate(problems):
        mine, numbers = shingles(text), sorted(re.findall(r"\d+", text))
        sketch = RMinHash(64, seed)
        sketch.update(list(mine))
        earlier = [problems[j] for j in index.query(sketch)]
        earlier = [other for other in earlier if sorted(re.findall(r"\d+", other)) == numbers]
        others = map(shingles, earlier)
        near.append(any(len(mine & theirs) >= threshold * len(mine | theirs) for theirs in others))
        if not near[-1]:
            index.insert(i, sketch)
    return pl.Series(near, dtype=pl.Boolean)


def shingles(text: str) -> set[str]:
    """Return a text's word triples, without case, LaTeX markup and punctuation, or else its few words."""
    words = normalise(text, near=True).split()
    return set(grams(words, 3)) or {" ".join(words)}
