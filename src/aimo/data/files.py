"""Read the mapped columns of a .csv, .jsonl or .parquet file."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from aimo.errors import AimoError

LINES = 50_000
"""Rows that are Python objects at one time."""


def read(
    path: Path, roles: Mapping[str, str], corrupt_lines: str, lost: Counter[str], where: str
) -> pl.DataFrame:
    """The columns of a file that `roles` names; with `corrupt_lines` "skip", `lost` counts the corrupt lines.

    AimoError when the file is damaged or a column is not there; `where` is the source's key in the profile.
    """
    try:
        if path.suffix == ".csv":
            return read_csv(path, roles, where)
        if path.suffix == ".parquet":
            require(roles, pl.read_parquet_schema(path), str(path), where)
            return pl.read_parquet(path, columns=sorted(set(roles.values())))
        return read_jsonl(path, roles, corrupt_lines, lost, where)
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError):
        raise AimoError(
            f"{where}.source: {path} cannot be read as {path.suffix}: it is empty, cut off or "
            "of another kind; get it again, or leave it out"
        ) from None


def require(roles: Mapping[str, str], have: Iterable[str], source: str, where: str) -> None:
    """Refuse a source that lacks a mapped column."""
    have = list(have)
    for role, column in roles.items():
        if column not in have:
            known = ", ".join(have) or "none"
            raise AimoError(f"{where}.columns.{role}: {source} has no column {column!r}; it has {known}")


def read_csv(path: Path, roles: Mapping[str, str], where: str) -> pl.DataFrame:
    """A CSV file; every cell is text."""
    have = pl.read_csv(path, n_rows=0, infer_schema=False).columns
    require(roles, have, str(path), where)
    for column in roles.values():
        if f"{column}_duplicated_0" in have:  # polars' name of a second one
            raise AimoError(f"{where}.source: {path} has two columns {column!r}; rename or remove one")
    return pl.read_csv(path, columns=sorted(set(roles.values())), infer_schema=False)


def read_jsonl(
    path: Path, roles: Mapping[str, str], corrupt_lines: str, lost: Counter[str], where: str
) -> pl.DataFrame:
    """A file of JSON objects, whose values may differ in type from line to line."""
    wanted = sorted(set(roles.values()))
    found: dict[str, None] = {}
    tables: list[pl.DataFrame] = []
    lines = objects(path, corrupt_lines, lost, where)
    while rows := list(islice(lines, LINES)):
        for row in rows:
            found |= dict.fromkeys(row)
        tables.append(pl.DataFrame([column(name, [row.get(name) for row in rows]) for name in wanted]))
    require(roles, found, str(path), where)
    return pl.concat(tables, how="vertical_relaxed")


def objects(path: Path, corrupt_lines: str, lost: Counter[str], where: str) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl file; a corrupt line is refused, or counted and skipped."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                yield row
            elif corrupt_lines == "skip":
                lost["corrupt line"] += 1
            else:
                raise AimoError(
                    f"{where}.source: {path} cannot be read: line {number} is not a JSON object; "
                    f"correct it, or set {where}.corrupt_lines: skip"
                )


def column(name: str, values: list[Any]) -> pl.Series:
    """Values of any type as text, or as lists where some are lists."""
    if any(isinstance(v, list) for v in values):
        lists = [v if isinstance(v, list) or v is None else [v] for v in values]
        return pl.Series(name, lists, strict=False)
    texts = [v if isinstance(v, str) or v is None else json.dumps(v) for v in values]
    return pl.Series(name, texts, dtype=pl.String)
