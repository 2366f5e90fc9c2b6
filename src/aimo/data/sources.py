"""Read the sources that a profile names, whatever their columns are called, into one table of `problem`, `answer`, `solution`.

Files (.jsonl, .csv, .parquet), folders of them as Kaggle attaches, folders saved by `datasets`, hub ids, built-in problems,
and mixtures of all these. Out of scope: streaming; a set must fit into memory.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import polars as pl

from aimo.config import Columns, Set, Source, resolve
from aimo.data import builtin
from aimo.errors import AimoError

SCHEMA = {
    "problem": pl.String,
    "answer": pl.String,
    "solution": pl.String,
    "correct": pl.Boolean,
    "kind": pl.String,
    "pass_rate": pl.Float64,
    "verification_info": pl.String,
    "source": pl.String,
}
LINES = 50_000  # rows that are Python objects at one time


@dataclass(frozen=True)
class Preset:
    """What a hub id says about its columns."""

    columns: Columns
    subset: str | None = None
    split: str | None = None


TRACES = Columns(answer="expected_answer", solution="generated_solution", pass_rate="pass_rate_72b_tir")
# A local copy takes the same by `preset: ID`.
PRESETS = {
    "open-r1/OpenR1-Math-220k": Preset(
        Columns(
            solution="generations",
            correct="correctness_math_verify",
            complete="is_reasoning_complete",
            kind="question_type",
        ),
        "default",
    ),
    "open-r1/Mixture-of-Thoughts": Preset(Columns(answer=None, messages="messages"), "math"),
    "open-r1/DAPO-Math-17k-Processed": Preset(Columns(problem="prompt", answer="solution"), "all"),
    "unsloth/OpenMathReasoning-mini": Preset(TRACES, split="cot"),
    "nvidia/OpenMathReasoning": Preset(TRACES, split="cot"),
    "AI-MO/NuminaMath-1.5": Preset(
        Columns(
            solution="solution",
            correct="solution_is_valid",
            complete="problem_is_valid",
            kind="question_type",
        )
    ),
    "GAIR/LIMO": Preset(Columns(problem="question", solution="solution")),
    "simplescaling/s1K-1.1": Preset(
        Columns(problem="question", answer="solution", solution="deepseek_thinking_trajectory")
    ),
    "openai/gsm8k": Preset(Columns(problem="question", solution="answer"), "main"),
}


def load(wanted: Set, seed: int, where: str) -> tuple[pl.DataFrame, Counter[str]]:
    """The rows of a set with the columns of SCHEMA, and what was lost in reading; `where` names the set in errors.

    A mixture is shuffled together (Open-R1's dataset mixtures); sources with a worked solution do not mix with others.
    """
    if not wanted.mixture:
        return load_source(wanted, seed, where)
    parts, lost = [], Counter[str]()
    for i, source in enumerate(wanted.mixture):
        rows, missing = load_source(source, seed, f"{where}.mixture.{i}")
        parts.append(rows)
        lost += missing
    for i, rows in enumerate(parts):
        if has_solutions(rows) != has_solutions(parts[0]):
            lacking, other = (i, 0) if has_solutions(parts[0]) else (0, i)
            raise AimoError(
                f"{where}.mixture: {wanted.mixture[other].source} has the column solution and {wanted.mixture[lacking].source} has not; "
                "map columns.solution in both or in none"
            )
    return pl.concat(parts).sample(fraction=1.0, shuffle=True, seed=seed), lost


def has_solutions(rows: pl.DataFrame) -> bool:
    """Whether any row has a worked solution."""
    return rows["solution"].null_count() < len(rows)


def load_source(source: Source, seed: int, where: str) -> tuple[pl.DataFrame, Counter[str]]:
    """One source's rows; AimoError names a file or a column that is not there."""
    lost = Counter[str]()
    if source.source == "builtin":
        assert source.rows is not None
        drawn = builtin.generate(source.rows, source.split or "train", f"{where.split('.')[1]}-{seed}")  # type: ignore[arg-type]
        rows = pl.DataFrame(
            {
                "problem": [p.problem for p in drawn],
                "answer": [str(p.answer) for p in drawn],
                "solution": [p.solution for p in drawn],
            }
        )
    else:
        source = with_preset(source, where)
        rows = standard(read(source, lost, where), source, where)
    rows = rows.select(
        *(
            pl.col(c).cast(t) if c in rows.columns else pl.lit(None, t).alias(c)
            for c, t in SCHEMA.items()
            if c != "source"
        ),
        pl.lit(source.source).alias("source"),
    )
    share = int(len(rows) * source.weight)
    keep = min(share, source.rows or share)
    return (rows.sample(keep, seed=seed, shuffle=True) if keep < len(rows) else rows), lost


def with_preset(source: Source, where: str) -> Source:
    """A source with the subset, split and columns of its preset where it says nothing itself."""
    name = source.preset or source.source
    if source.preset and name not in PRESETS:
        raise AimoError(f"{where}.preset: {name!r} is not known: use one of {', '.join(PRESETS)}, or columns")
    known = PRESETS.get(name, Preset(Columns()))
    return replace(
        source,
        subset=source.subset or known.subset,
        split=source.split or known.split,
        columns=source.columns or known.columns,
    )


def column_map(columns: Columns) -> dict[str, str]:
    """Role to column, for the roles that a source has."""
    named = {f.name: getattr(columns, f.name) for f in fields(columns) if getattr(columns, f.name)}  # type: ignore[arg-type]
    if columns.messages:
        named = {role: column for role, column in named.items() if role not in ("problem", "solution")}
    return named


def read(source: Source, lost: Counter[str], where: str) -> pl.DataFrame:
    """The mapped columns of a source as they are."""
    assert source.columns
    path, wanted = resolve(source.source), sorted(set(column_map(source.columns).values()))
    try:
        saved_by_datasets = any((path / name).exists() for name in ("state.json", "dataset_dict.json"))
        if path.suffix in READERS or (path.is_dir() and not saved_by_datasets):
            files = data_files(path, source, where)
            tables = [READERS[file.suffix](file, wanted, source, lost, where) for file in files]
            return pl.concat(tables, how="vertical_relaxed")
        import datasets

        if path.is_dir():
            saved = datasets.load_from_disk(str(path))
            table = saved[source.split or "train"] if isinstance(saved, datasets.DatasetDict) else saved
        else:
            table = datasets.load_dataset(source.source, source.subset, split=source.split or "train")
        require(wanted, table.column_names, source, where)
        return table.select_columns(wanted).to_polars()
    except AimoError:
        raise
    except Exception as e:  # polars, pyarrow and the hub client raise many kinds
        reason = " ".join(str(e).split())[:200]
        what = (
            f"{path} cannot be read"
            if path.exists()
            else f"{source.source!r} is no file here and no dataset on the hub"
        )
        raise AimoError(f"{where}.source: {what} ({reason})") from None


def data_files(path: Path, source: Source, where: str) -> list[Path]:
    """The files of one kind in a folder, those of the split where names tell; or the file itself."""
    if not path.exists():
        raise AimoError(f"{where}.source: {path} does not exist")
    files = sorted(f for f in path.rglob("*") if f.suffix in READERS) if path.is_dir() else [path]
    named = [f for f in files if path.is_dir() and (source.split or "train") in str(f.relative_to(path))]
    files = named or files
    if len({f.suffix for f in files}) != 1:
        found = ", ".join(sorted({f.suffix for f in files})) or "none"
        raise AimoError(
            f"{where}.source: {path} must hold .jsonl, .csv or .parquet files of one kind; found {found}; name one file"
        )
    return files


def require(wanted: Iterable[str], have: Iterable[str], source: Source, where: str) -> None:
    """Refuse a source that lacks a mapped column."""
    assert source.columns
    have = list(have)
    for role, column in column_map(source.columns).items():
        if column in wanted and column not in have:
            raise AimoError(
                f"{where}.columns.{role}: {source.source} has no column {column!r}; it has {', '.join(have) or 'none'}"
            )


def read_csv(path: Path, wanted: list[str], source: Source, _: Counter[str], where: str) -> pl.DataFrame:
    """A CSV file; every cell is text."""
    require(wanted, pl.read_csv(path, n_rows=0, infer_schema=False).columns, source, where)
    return pl.read_csv(path, columns=wanted, infer_schema=False)


def read_parquet(path: Path, wanted: list[str], source: Source, _: Counter[str], where: str) -> pl.DataFrame:
    """A Parquet file."""
    require(wanted, pl.read_parquet_schema(path), source, where)
    return pl.read_parquet(path, columns=wanted)


def read_jsonl(path: Path, wanted: list[str], source: Source, lost: Counter[str], where: str) -> pl.DataFrame:
    """A file of JSON objects, whose values may differ in type from line to line."""
    found: dict[str, None] = {}
    tables: list[pl.DataFrame] = []
    for rows in batches(objects(path, source, lost, where)):
        for row in rows:
            found |= dict.fromkeys(row)
        tables.append(pl.DataFrame([column(name, [row.get(name) for row in rows]) for name in wanted]))
    require(wanted, found, source, where)
    return pl.concat(tables, how="vertical_relaxed")


def objects(path: Path, source: Source, lost: Counter[str], where: str) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl file; a corrupt line is refused or counted."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line) if line.strip() else None
                if row is not None and not isinstance(row, dict):
                    raise ValueError(f"a {type(row).__name__}, not an object")
            except (ValueError, RecursionError) as e:
                if source.corrupt_lines == "refuse":
                    reason = f"line {number} is not a JSON object: {e}; mend it, or set {where}.corrupt_lines: skip"
                    raise AimoError(f"{where}.source: {path} cannot be read ({reason})") from None
                lost["corrupt line"] += 1
            else:
                if row is not None:
                    yield row


def batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows in lists of LINES, so that few of them are Python objects at a time."""
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == LINES:
            yield batch
            batch = []
    yield batch


def column(name: str, values: list[Any]) -> pl.Series:
    """Values of any type as text, or as lists where some are lists."""
    if any(isinstance(v, list) for v in values):
        return pl.Series(name, [v if isinstance(v, list) or v is None else [v] for v in values], strict=False)
    return pl.Series(
        name, [v if isinstance(v, str) or v is None else json.dumps(v) for v in values], dtype=pl.String
    )


READERS: dict[str, Callable[[Path, list[str], Source, Counter[str], str], pl.DataFrame]] = {
    ".csv": read_csv,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}


def standard(table: pl.DataFrame, source: Source, where: str) -> pl.DataFrame:
    """Mapped columns under their roles: one row a trace, text as text, `correct` where a solution is right and complete."""
    assert source.columns
    roles = column_map(source.columns)
    rows = table.select(**{role: pl.col(column) for role, column in roles.items()})
    if "messages" in roles:
        said = pl.col("messages").list
        turn = pl.element().struct
        rows = rows.with_columns(
            problem=said.eval(turn.field("content").filter(turn.field("role") == "user")).list.first(),
            solution=said.eval(turn.field("content").filter(turn.field("role") == "assistant")).list.last(),
        ).drop("messages")
    flags = [role for role in ("correct", "complete") if role in roles]
    if isinstance(rows.schema.get("solution"), pl.List):
        # A flag that is missing for some trace is a flag for none: nothing unverified gets through.
        number = pl.col("solution").list.len()
        unknown = pl.lit("").repeat_by(number)
        texts = [pl.col(f).cast(pl.List(pl.String)).alias(f) for f in flags]
        rows = rows.with_columns(texts).with_columns(
            pl.when(pl.col(f).list.len() == number).then(pl.col(f)).otherwise(unknown) for f in flags
        )
        rows = rows.explode("solution", *flags)
    if isinstance(rows.schema.get("verification_info"), pl.Struct):
        rows = rows.with_columns(pl.col("verification_info").struct.json_encode())
    for role in rows.columns:
        kind = rows.schema[role]
        if isinstance(kind, pl.List | pl.Struct | pl.Array | pl.Object) or kind == pl.Binary:
            raise AimoError(
                f"{where}.columns.{role}: {source.source} holds {kind} in {roles.get(role, 'messages')!r}, not text"
            )
    right = [
        pl.col(f).cast(pl.String).str.to_lowercase().is_in(["true", "yes", "1"]).fill_null(False)
        for f in flags
    ]
    if right:
        rows = rows.with_columns(correct=pl.all_horizontal(right))
    if "answer" not in roles and "solution" in rows.columns:
        rows = rows.with_columns(answer=pl.col("solution"))
    return rows.with_columns(
        pl.col("pass_rate").cast(pl.Float64, strict=False) if "pass_rate" in roles else []
    )
