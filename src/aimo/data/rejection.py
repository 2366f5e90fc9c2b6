"""Rejection sampling: which of a teacher's completions are good enough to imitate.

Every completion is judged by its final answer, whatever the set says of itself; one that a column marks as
wrong or unfinished is not kept either. Out of scope: steps that are wrong on the way to a right answer.
"""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from aimo.config import Reject, Source
from aimo.config.stages import STAGES
from aimo.data import filters, sources
from aimo.errors import AimoError
from aimo.inference.answers import extract
from aimo.inference.judge import are_equal
from aimo.inference.settings import PUBLIC, Tags
from aimo.run.runs import Run

KEPT = {"problem": "problem", "answer": "answer", "generation": "solution", "correct": "right"}


class Rejection(NamedTuple):
    """What is kept of a set, and what is known of its problems."""

    kept: pl.DataFrame
    """`problem`, `answer`, `generation`, `correct`, `pass_rate` and `samples` of each completion to keep."""
    dropped: Counter[str]
    """The other completions by reason."""
    problems: pl.DataFrame
    """`problem`, `answer`, `pass_rate` (the share of right completions) and `samples` of each problem."""

    def __str__(self) -> str:
        """A count a line."""
        rows = len(self.kept) + self.dropped.total()
        rate: Any = self.problems["pass_rate"].mean()
        return "\n".join(
            [
                f"{rows:>9,} completions of {len(self.problems):,} problems, mean pass rate {rate:.3f}",
                *(f"{count:>9,} dropped: {reason}" for reason, count in self.dropped.items()),
                f"{len(self.kept):>9,} kept, of {self.kept['problem'].n_unique():,} problems",
            ]
        )


def reject(rows: pl.DataFrame, wanted: Reject, tags: Tags = PUBLIC[0]) -> Rejection:
    """Judge the completions of a source's rows (`aimo.data.sources`), and choose among the right ones.

    AimoError when no row has a gold answer, or none is kept.
    """
    if rows["answer"].fill_null("").eq("").all():
        raise AimoError("reject: no row has a gold answer to judge by; name its column with --answer-column")
    found = rows.select(pl.col("solution").fill_null("") != "").to_series()
    rows = rows.filter(found & rows["problem"].is_not_null())
    own, right = judged(rows, tags)
    key = filters.key(rows["problem"])
    rows = rows.with_columns(key=key, own=own, right=right & rows["correct"].fill_null(True))
    rows = rows.with_columns(
        pass_rate=pl.col("right").mean().over("key"), samples=pl.len().over("key").cast(pl.Int64)
    )
    about = ["problem", "answer", "pass_rate", "samples"]
    problems = rows.unique("key", keep="first", maintain_order=True).select(about)
    dropped = Counter({"no completion": int((~found).sum())})

    def drop(where: pl.Expr, reason: str) -> None:
        nonlocal rows
        kept = rows.remove(where)
        dropped[reason] += len(rows) - len(kept)
        rows = kept

    drop(~pl.col("correct").fill_null(True), "unfinished, or marked wrong")
    drop(pl.col("own").is_null(), "no final answer")
    drop(~pl.col("right"), "another answer")
    drop(~pl.col("pass_rate").is_between(*wanted.pass_rate), "pass rate of its problem")
    drop(~pl.struct("key", "solution").is_first_distinct(), "same text")
    rows = rows.with_columns(order=ranks(rows, wanted))
    drop(pl.col("order") > (wanted.max_per_problem or len(rows)), "more than max_per_problem")
    if rows.is_empty():
        counts = ", ".join(f"{n} {reason}" for reason, n in dropped.items() if n)
        raise AimoError(f"reject: no completion is kept ({counts}); look at the teacher and at pass_rate")
    columns = {name: pl.col(column) for name, column in KEPT.items()}
    return Rejection(rows.select(**columns, pass_rate="pass_rate", samples="samples"), +dropped, problems)


def in_run(run: Run) -> Rejection:
    """As `reject`, for what the stage `distil` has sampled; writes its product."""
    assert run.profile.distil
    source = Source(str(run.folder / "samples.jsonl"), preset="aimo distil")
    rows, _ = sources.load_source(source, run.profile.seed, "distil")
    found = reject(rows, run.profile.distil.reject, run.profile.prompt.tags)
    save(found.kept, run.dir / STAGES["distil"].product)
    return found


def judged(rows: pl.DataFrame, tags: Tags) -> tuple[pl.Series, pl.Series]:
    """(n,) the final answer of each completion, null without one, and (n,) whether it is the gold answer."""
    own: list[str | None] = []
    right: list[bool] = []
    for start in range(0, len(rows), filters.CHUNK):
        part = rows[start : start + filters.CHUNK]
        answers = [extract(text, tags) for text in part["solution"]]
        golds = [gold or "" for gold in part["answer"]]
        right += [verdict is True for verdict in are_equal(answers, golds)]
        own += answers
    return pl.Series(own, dtype=pl.String), pl.Series(right, dtype=pl.Boolean)


def ranks(rows: pl.DataFrame, wanted: Reject) -> pl.Series:
    """(n,) the place of each completion among those of its problem, from 1, in the order of preference."""
    if wanted.prefer == "first":
        return rows.select(pl.int_range(1, pl.len() + 1).over("key")).to_series()
    length = pl.col("solution").str.len_chars()
    if wanted.prefer == "shorter":
        return rows.select(length.rank("ordinal").over("key").cast(pl.Int64)).to_series()
    places = [0] * len(rows)
    groups = rows.with_row_index().sort(length).group_by("key", maintain_order=True)
    for indices, texts in groups.agg("index", "solution").select("index", "solution").iter_rows():
        for place, i in enumerate(diverse(texts), 1):
            places[indices[i]] = place
    return pl.Series(places, dtype=pl.Int64)


def diverse(texts: list[str]) -> list[int]:
    """The first text, then always the one that shares the fewest word triples (Jaccard) with those before.

    Costs n² / 2 comparisons.
    """
    triples = [filters.shingles(text) for text in texts]
    order, nearest = [0], [0.0] * len(texts)
    left = list(range(1, len(texts)))
    while left:
        last = triples[order[-1]]
        for i in left:
            nearest[i] = max(nearest[i], len(triples[i] & last) / max(1, len(triples[i] | last)))
        order.append(min(left, key=lambda i: nearest[i]))
        left.remove(order[-1])
    return order


def save(kept: pl.DataFrame, out: Path) -> None:
    """Write the kept rows to a .jsonl or .parquet file, whole or not at all."""
    partial = out.with_suffix(".partial")
    try:
        (kept.write_parquet if out.suffix == ".parquet" else kept.write_ndjson)(partial)
        partial.replace(out)
    except OSError as e:
        raise AimoError(f"--out {out}: {e.strerror or e}; take a file that can be written") from None
