"""Read the sources that a profile names, whatever their columns are called, into tables of the same columns.

Files (.jsonl, .csv, .parquet), folders of them as Kaggle attaches or as copied from the hub, folders saved
by `datasets`, hub ids, built-in problems, and mixtures of all these. Out of scope: streaming; a set must fit
into memory.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import polars as pl

from aimo.config import Columns, Mixture, Set, Source, resolve
from aimo.data import builtin, files, folders
from aimo.data.presets import PRESETS, Preset
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
    "id": pl.String,
}
"""The columns of every table; a column that a source does not have is null."""


def load(wanted: Mixture, seed: int, where: str) -> tuple[pl.DataFrame, Counter[str]]:
    """The rows of a set with the columns of SCHEMA, and the number of corrupt lines that were skipped.

    `where` is the set's key in the profile, for errors. The parts of a mixture are shuffled together
    (Open-R1's dataset mixtures); in a `Set`, sources with a worked solution do not mix with others.
    """
    if not wanted.mixture:
        return load_source(wanted, seed, where)
    parts, lost = [], Counter[str]()
    for i, source in enumerate(wanted.mixture):
        rows, missing = load_source(source, seed, f"{where}.mixture.{i}")
        parts.append(rows)
        lost += missing
    for source, rows in zip(wanted.mixture, parts, strict=True):
        if isinstance(wanted, Set) and has_solutions(rows) != has_solutions(parts[0]):
            pair = [wanted.mixture[0].source, source.source]
            has, lacks = pair if has_solutions(parts[0]) else pair[::-1]
            raise AimoError(
                f"{where}.mixture: {has} has the column solution and {lacks} has not; "
                "map columns.solution in both or in none"
            )
    return pl.concat(parts).sample(fraction=1.0, shuffle=True, seed=seed), lost


def has_solutions(rows: pl.DataFrame) -> bool:
    """Whether any row has a worked solution."""
    return rows["solution"].null_count() < len(rows)


def load_source(source: Source, seed: int, where: str) -> tuple[pl.DataFrame, Counter[str]]:
    """One source's rows with the columns of SCHEMA, and the number of corrupt lines that were skipped.

    AimoError names the file, subset, split or column that is not there.
    """
    lost = Counter[str]()
    if source.source == "builtin":
        rows = builtin_rows(source, seed, where)
    else:
        preset = preset_of(source, where)
        source = replace(source, columns=source.columns or preset.columns)
        rows = standard(read(source, preset, lost, where), source, where)
    here = [pl.col(c).cast(t) for c, t in SCHEMA.items() if c in rows.columns]
    missing = [pl.lit(None, t).alias(c) for c, t in SCHEMA.items() if c not in rows.columns]
    rows = rows.select(*here, *missing).with_columns(source=pl.lit(source.source)).select(list(SCHEMA))
    share = int(len(rows) * source.weight)
    keep = min(share, source.rows or share)
    return (rows.sample(keep, seed=seed, shuffle=True) if keep < len(rows) else rows), lost


def builtin_rows(source: Source, seed: int, where: str) -> pl.DataFrame:
    """Built-in problems; each set of a profile draws its own."""
    assert source.rows is not None
    name = where.removeprefix("data.").split(".")[0]
    drawn = builtin.generate(source.rows, source.split or "train", f"{name}-{seed}")  # type: ignore[arg-type]
    return pl.DataFrame(
        {
            "problem": [p.problem for p in drawn],
            "answer": [str(p.answer) for p in drawn],
            "solution": [p.solution for p in drawn],
        }
    )


def preset_of(source: Source, where: str) -> Preset:
    """What is known of a source by its id or its `preset`; columns of our own names where nothing is."""
    if source.preset and source.preset not in PRESETS:
        known = ", ".join(PRESETS)
        raise AimoError(f"{where}.preset: {source.preset!r} is not known: use one of {known}, or columns")
    return PRESETS.get(source.preset or source.source, Preset(Columns()))


def column_map(columns: Columns) -> dict[str, str]:
    """Role to column, for the roles that a source has."""
    named = {f.name: getattr(columns, f.name) for f in fields(columns)}  # type: ignore[arg-type]
    unused = ("problem", "solution") if columns.messages else ()
    return {role: column for role, column in named.items() if column and role not in unused}


def columns_of(source: Source, preset: Preset) -> dict[str, str]:
    """Role to column, for the roles that a source has, and the columns that its rows are sorted by."""
    return column_map(source.columns or preset.columns) | {column: column for column in preset.order}


def in_order(table: pl.DataFrame, preset: Preset) -> pl.DataFrame:
    """The rows sorted by the columns that a preset names, numbers by value."""
    return table.sort(pl.col(preset.order).cast(pl.String).str.zfill(20)) if preset.order else table


def read(source: Source, preset: Preset, lost: Counter[str], where: str) -> pl.DataFrame:
    """The mapped columns of a source as they are."""
    path = resolve(source.source)
    if not path.exists():
        if path.suffix in folders.KINDS or source.source.startswith(("/", ".")):
            raise AimoError(f"{where}.source: {path} does not exist")
        return read_hub(source, preset, where)
    if source.revision:
        raise AimoError(f"{where}.revision: {path} is a local folder or file; leave the key out")
    if any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
        return read_saved(path, source, preset, where)
    found, columns = chosen_files(path, source, preset, where), columns_of(source, preset)
    tables = [files.read(file, columns, source.corrupt_lines, lost, where) for file in found]
    return in_order(pl.concat(tables, how="vertical_relaxed"), preset)


def chosen_files(path: Path, source: Source, preset: Preset, where: str) -> list[Path]:
    """The file itself, or the files of a folder's subset and split, which must be of one kind."""
    if path.is_file():
        for key in ("subset", "split"):
            if getattr(source, key) is not None:
                raise AimoError(f"{where}.{key}: {path} is one file; leave the key out, or name its folder")
        found = [path]
    else:
        subsets = folders.files_of(path, source.split)
        usual = preset.subset if preset.subset in subsets else "default"
        splits = (
            folders.choose(subsets, source.subset, usual, f"{where}.subset", str(path)) if subsets else {}
        )
        usual = preset.split if preset.split in splits else "train"
        found = folders.choose(splits, source.split, usual, f"{where}.split", str(path)) if splits else []
    kinds = sorted({file.suffix for file in found})
    if len(kinds) != 1 or kinds[0] not in folders.KINDS:
        raise AimoError(
            f"{where}.source: {path} must hold .jsonl, .csv or .parquet files of one kind; "
            f"found {', '.join(kinds) or 'none'}; name one file"
        )
    return found


def read_saved(path: Path, source: Source, preset: Preset, where: str) -> pl.DataFrame:
    """The mapped columns of a folder that `datasets` saved."""
    import datasets

    if source.subset:
        raise AimoError(f"{where}.subset: {path} was saved without subsets; leave the key out")
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception:  # pyarrow and datasets raise many kinds
        raise AimoError(f"{where}.source: {path} cannot be read; save it again with save_to_disk") from None
    splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    usual = preset.split if preset.split in splits else "train"
    table = folders.choose(splits, source.split, usual, f"{where}.split", str(path))
    return mapped_columns(table, source, preset, where)


def read_hub(source: Source, preset: Preset, where: str) -> pl.DataFrame:
    """The mapped columns of a dataset on the hub, downloaded if need be."""
    import datasets

    subset, split = source.subset or preset.subset, source.split or preset.split or "train"
    try:
        table = datasets.load_dataset(source.source, subset, split=split, revision=source.revision)
    except Exception as e:  # the hub client and datasets raise many kinds
        raise AimoError(f"{where}.{why_not(e, source, subset, split)}") from None
    return mapped_columns(table, source, preset, where)


def why_not(error: Exception, source: Source, subset: str | None, split: str) -> str:
    """Why the hub did not give a dataset, and what to do, after the key of the profile."""
    name = repr(source.source)
    if "BuilderConfig" in str(error) or "Config name is missing" in str(error):
        return f"subset: {name} has no subset {subset!r} on the hub, or has several; see its page"
    if "Unknown split" in str(error):
        return f"split: {name} has no split {split!r} on the hub; see its page"
    if source.revision and "revision" in str(error).lower():
        return f"revision: {name} has no revision {source.revision!r} on the hub, or no such dataset is there"
    return (
        f"source: {name} is no file here and no dataset that the hub gives; check the name and the "
        "network, and set HF_TOKEN for a private or gated one"
    )


def mapped_columns(table: Any, source: Source, preset: Preset, where: str) -> pl.DataFrame:
    """The mapped columns of a `datasets.Dataset`."""
    columns = columns_of(source, preset)
    files.require(columns, table.column_names, source.source, where)
    return in_order(table.select_columns(sorted(set(columns.values()))).to_polars(), preset)


def standard(table: pl.DataFrame, source: Source, where: str) -> pl.DataFrame:
    """Mapped columns under their roles: one row a trace, `correct` where it is right and complete."""
    assert source.columns
    roles = column_map(source.columns)
    rows = table.select(**{role: pl.col(column) for role, column in roles.items()})
    if "messages" in roles:
        rows = with_messages(rows)
    flags = [role for role in ("correct", "complete") if role in roles]
    if isinstance(rows.schema.get("solution"), pl.List):
        rows = one_row_a_trace(rows, flags)
    if isinstance(rows.schema.get("verification_info"), pl.Struct):
        rows = rows.with_columns(pl.col("verification_info").struct.json_encode())
    for role, kind in rows.schema.items():
        if isinstance(kind, pl.List | pl.Struct | pl.Array | pl.Object) or kind == pl.Binary:
            column = roles.get(role, "messages")
            raise AimoError(f"{where}.columns.{role}: {source.source} holds {kind} in {column!r}, not text")
    if flags:
        passed = pl.all_horizontal(is_true(flag) for flag in flags)
        # Complete alone says nothing of right: such a solution is judged later.
        verdict = passed if "correct" in roles else pl.when(~passed).then(False)
        rows = rows.with_columns(correct=verdict)
    if "answer" not in roles and "solution" in rows.columns:
        rows = rows.with_columns(answer=pl.col("solution"))
    if "pass_rate" in roles:
        rows = rows.with_columns(pl.col("pass_rate").cast(pl.Float64, strict=False))
    return rows


def with_messages(rows: pl.DataFrame) -> pl.DataFrame:
    """A conversation's first question as the problem, and its last reply as the solution."""
    said, turn = pl.col("messages").list, pl.element().struct
    questions = said.eval(turn.field("content").filter(turn.field("role") == "user"))
    replies = said.eval(turn.field("content").filter(turn.field("role") == "assistant"))
    return rows.with_columns(problem=questions.list.first(), solution=replies.list.last()).drop("messages")


def one_row_a_trace(rows: pl.DataFrame, flags: Iterable[str]) -> pl.DataFrame:
    """A row for each of the solutions in a list, with its own flags.

    If the flag of some trace is missing, no trace of the row is kept.
    """
    number = pl.col("solution").list.len()
    texts = [pl.col(flag).cast(pl.List(pl.String)) for flag in flags]
    unknown = pl.lit("").repeat_by(number)
    whole = [pl.when(pl.col(f).list.len() == number).then(pl.col(f)).otherwise(unknown) for f in flags]
    return rows.with_columns(texts).with_columns(whole).explode("solution", *flags)


def is_true(flag: str) -> pl.Expr:
    """Whether a flag's text says yes; a missing one does not."""
    return pl.col(flag).cast(pl.String).str.to_lowercase().is_in(["true", "yes", "1"]).fill_null(False)
