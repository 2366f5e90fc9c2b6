"""Read the tables that users bring: .csv, .tsv, .json, .jsonl, .parquet and .arrow, also as .gz or .zst.

Training data, test files, benchmarks and problem files are read here, and here alone. A cell is a text or
null: a number is its digits, a list of scalars is a list of texts, any other nested value is its JSON. What
a file holds decides how it is read, its name only where that does not tell.
"""

import codecs
import csv
import io
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import polars as pl

from aimo.inference.cells import CHUNK, Table, as_json, cleaned, from_frame, parsed, pick, series
from aimo.inference.errors import AimoError

KINDS = {
    ".csv": ".csv", ".tsv": ".csv", ".json": ".json", ".jsonl": ".jsonl", ".ndjson": ".jsonl",
    ".parquet": ".parquet", ".arrow": ".arrow", ".feather": ".arrow", ".ipc": ".arrow",
}  # fmt: skip
PACKED = (".gz", ".zst")
# Stems of .json files that describe a data set.
METADATA = re.compile(
    r"dataset.metadata|dataset_infos?|dataset_dict|metadata|state|.*\.settings", re.IGNORECASE
)
PEEK = 1000  # rows that tell the columns
# Keys of a JSON object that hold its rows.
ROWS_UNDER = ("data", "rows", "examples", "instances", "items", "records", "problems", "questions", "train")
BOMS = {
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
# How files of other kinds begin, in lower case.
OTHERS = {
    b"version https://git-lfs": "a Git-LFS pointer, not the file; fetch the file with `git lfs pull`",
    b"<!doctype": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
    b"<?xml": "XML; convert it to JSON lines",
    b"pk\x03\x04": "a zip archive or an Excel sheet; unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel sheet; save it as CSV",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"\xfd7zxz": "an xz archive; unpack it",
    b"bzh": "a bzip2 archive; unpack it",
    b"%pdf": "a PDF; save its rows as CSV",
}
# What libraries raise for a damaged file.
DAMAGED = (
    pl.exceptions.PolarsError, pl.exceptions.PanicException,
    OSError, EOFError, ValueError, NotImplementedError,
)  # fmt: skip


# ---- which files ----


def kind_of(path: Path) -> str | None:
    """Return a file's kind by its name, as the suffix of the kind; None for no table."""
    return KINDS.get(Path(stem_of(path, packing=True)).suffix.lower())


def stem_of(path: Path, packing: bool = False) -> str:
    """Return a file's name without its suffixes, or without that of the packing alone."""
    name = path.stem if path.suffix.lower() in PACKED else path.name
    return name if packing else Path(name).stem


def tables_of(paths: Iterable[Path]) -> list[Path]:
    """Return the files that hold tables, in order; a .json file counts only where nothing else does."""
    found = sorted(p for p in paths if kind_of(p) and not p.name.startswith(".") and p.is_file())
    others = [path for path in found if kind_of(path) != ".json"]
    return others or [path for path in found if not METADATA.fullmatch(stem_of(path))]


def one_kind(where: str, path: Path, found: Collection[str | None]) -> AimoError:
    """Return the error for a folder without files of one kind."""
    names = ", ".join(sorted(filter(None, found))) or "none"
    kinds = ", ".join(dict.fromkeys(KINDS.values()))
    return AimoError(f"{where}{path} must hold files of one kind ({kinds}); found {names}; name one file")


def listed(columns: Iterable[str]) -> str:
    """Return the names of the first columns, for an error of one line."""
    names = [" ".join(name.split())[:60] for name in columns]
    return ", ".join(names[:20]) + ", …" * (len(names) > 20) or "none"


# ---- tables ----


def read_all(path: str | Path, where: str) -> Table:
    """Read all columns of a file, or of a folder of shards, and print what was repaired.

    AimoError names the file (after `where`), the row and the remedy.
    """
    path = Path(path)
    if not path.exists():
        raise AimoError(f"{where}{path} does not exist; correct the path")
    paths = tables_of(path.rglob("*")) if path.is_dir() else [path]
    if path.is_dir() and len(kinds := {kind_of(file) for file in paths}) != 1:
        raise one_kind(where, path, kinds)
    table = read_tables(paths, where)
    for what, count in table.repaired.items():
        print(f"{where}{path}: {count:,} texts: {what}", flush=True)
    return table


def read_texts(path: str | Path, where: str) -> pl.DataFrame:
    """As `read_all`, for problems: a table of texts, "" for none; a list is its entries, with commas."""
    table = read_all(path, where)
    if deep := sorted(table.nested & {"id", "problem", "question", "answer"}):
        raise AimoError(f"{where}{path} holds objects in the column {deep[0]!r}; write texts there")
    lists = pl.col(pl.List(pl.String)).list.join(", ", ignore_nulls=True)
    return table.rows.with_columns(lists).fill_null("")


def read_tables(
    paths: Sequence[Path],
    where: str,
    wanted: Collection[str] | None = None,
    limit: int | None = None,
    skip: bool = False,
    hint: str = "",
) -> Table:
    """Read files as one table: all columns, or those `wanted` that are there, of `limit` rows or all.

    A wanted column may be a key of an object (`reward_model.ground_truth`). A line that cannot be read is
    counted where `skip` is set, else refused with a `hint`. AimoError names the file (after `where`), the
    row and the remedy.
    """
    tables = [read_one(path, where, wanted, limit, skip, hint) for path in (paths[:1] if limit else paths)]
    first = tables[0]
    for path, other in zip(paths[1:], tables[1:], strict=False):
        if wanted is not None and (odd := set(first.rows.columns) ^ set(other.rows.columns)):
            lacks, has = (path, paths[0]) if min(odd) in first.rows.columns else (paths[0], path)
            raise AimoError(f"{where}{lacks} has no column {min(odd)!r}, which {has} has; add it")
        for name in set(first.rows.columns) & set(other.rows.columns):
            held = [
                "objects" if name in table.nested
                else "text" if table.rows[name].dtype == pl.String
                else "lists"
                for table in (first, other)
            ]  # fmt: skip
            if held[0] != held[1] and first.rows[name].count() and other.rows[name].count():
                raise AimoError(
                    f"{where}{paths[0]} holds {held[0]} in {name!r} and {path} holds {held[1]}; write the "
                    "column alike in both"
                )
    return stacked(tables)


def stacked(tables: Sequence[Table]) -> Table:
    """Return tables below each other; a text is a list of one where others are lists."""
    nested = set().union(*(table.nested for table in tables))
    names = dict.fromkeys(name for table in tables for name in table.rows.columns)
    kinds = {name: {t.rows[name].dtype for t in tables if name in t.rows.columns} for name in names}
    frames = []
    for table in tables:
        frame = table.rows
        for name in frame.columns:
            is_text = frame[name].dtype == pl.String
            if len(kinds[name]) == 2 and name in nested and not is_text:
                frame = frame.with_columns(as_json(frame[name]))
            elif len(kinds[name]) == 2 and name not in nested and is_text:
                wrapped = pl.when(pl.col(name).is_not_null()).then(pl.concat_list(name))
                frame = frame.with_columns(wrapped.alias(name))
        frames.append(frame)
    return Table(
        pl.concat(frames, how="diagonal"),
        list(dict.fromkeys(name for table in tables for name in table.columns)),
        nested,
        sum(table.skipped for table in tables),
        sum((table.repaired for table in tables), Counter[str]()),
    )


# ---- one file, in chunks ----


def read_one(
    path: Path, where: str, wanted: Collection[str] | None, limit: int | None, skip: bool, hint: str
) -> Table:
    """Read one file, as `read_tables`."""
    named = f"{where}{path}"
    keep = None if wanted is None else {*wanted, *(name.split(".")[0] for name in wanted)}
    damaged = AimoError(f"{named} cannot be read: it is cut off, damaged or of another kind; get it again")
    skipped = 0

    def refuse(line: int, what: str) -> None:
        nonlocal skipped
        if not skip:
            raise AimoError(f"{named}, line {line}{what}{hint}")
        skipped += 1

    try:
        with unpacked(path) as stream:
            head = stream.read(2048)
        kind = kind_of(path)
        encoding = next((name for bom, name in BOMS.items() if head.startswith(bom)), "utf-8")
        if not head.decode(encoding, "replace").strip():
            raise AimoError(
                f"{named} is empty; it needs a row for each problem, below the names of the columns"
            )
        for start, what in OTHERS.items():
            if head.lstrip().lower().startswith(start):
                raise AimoError(f"{named} is {what}")
        if head.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")):
            return pick(stacked(list(binary(path, head, keep, limit))), wanted)
        if kind in (".parquet", ".arrow"):
            raise damaged
        if encoding == "utf-8" and b"\0" in head:
            what = "its encoding is UTF-16, or it is no text; save it in UTF-8"
            raise AimoError(f"{named} is not text in UTF-8: {what}")
        newline = "" if kind == ".csv" else "\n"
        with io.TextIOWrapper(unpacked(path), encoding, newline=newline) as text:  # type: ignore[type-var]
            if kind == ".csv":
                tabs = Path(stem_of(path, packing=True)).suffix.lower() == ".tsv"
                found = csv_tables(text, named, keep, limit, refuse, "\t" if tabs else None)
            else:
                found = json_tables(text, named, kind == ".jsonl", keep, limit, refuse)
            table = stacked(list(found))
    except UnicodeDecodeError:
        with unpacked(path) as stream:
            lines = stream.read().split(b"\n")
        wrong = (i for i, line in enumerate(lines, 1) if line.decode(errors="ignore").encode() != line)
        raise AimoError(
            f"{named}, line {next(wrong, 1)} is not text in UTF-8: its encoding is another one (Latin-1, "
            "GBK, …); save it in UTF-8, such as by `iconv -f GBK -t UTF-8`"
        ) from None
    except DAMAGED as e:
        if isinstance(e, PermissionError | IsADirectoryError | FileNotFoundError):
            raise AimoError(f"{named} cannot be read: {e.strerror}") from None
        raise damaged from None
    table.skipped = skipped
    return pick(table, wanted)


def unpacked(path: Path) -> IO[bytes]:
    """Open a file, through gzip or zstd where it begins so."""
    with path.open("rb") as file:
        head = file.read(4)
    packing = "gzip" if head.startswith(b"\x1f\x8b") else "zstd" if head == b"\x28\xb5\x2f\xfd" else None
    if packing is None:
        return path.open("rb")
    import pyarrow as pa  # not installed for a kernel's start

    return pa.input_stream(str(path), compression=packing)  # type: ignore[no-any-return]


def binary(path: Path, head: bytes, keep: Collection[str] | None, limit: int | None) -> Iterator[Table]:
    """Read Parquet, or Arrow as a file or a stream, in chunks; polars panics on a damaged file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with unpacked(path) as stream:
        source = stream if stream.seekable() else io.BytesIO(stream.read())
        if head.startswith(b"PAR1"):
            held = pq.ParquetFile(source)
            schema = held.schema_arrow
        else:
            held = (pa.ipc.open_file if head.startswith(b"ARROW1") else pa.ipc.open_stream)(source)
            schema = held.schema
        kept = [name for name in schema.names if keep is None or name in keep]
        if head.startswith(b"PAR1"):
            parts: Iterable[Any] = held.iter_batches(limit or CHUNK, columns=kept)
        else:
            parts = held.read_all().select(kept).to_batches(limit or CHUNK)
        empty = schema.empty_table().select(kept)  # its columns, where there are no rows
        for part in islice(chain(parts, [empty]), 1 if limit else None):
            part.validate(full=True)  # polars trusts what damaged files hold
            table = from_frame(pl.DataFrame(pl.from_arrow(part)))
            table.columns = schema.names
            yield table


def csv_tables(
    text: io.TextIOWrapper,
    named: str,
    keep: Collection[str] | None,
    limit: int | None,
    refuse: Callable[[int, str], None],
    delimiter: str | None,
) -> Iterator[Table]:
    """Read comma-separated values, or those separated by semicolons or tabs, in chunks."""
    csv.field_size_limit(sys.maxsize)
    first = text.readline()
    delimiter = delimiter or next((sign for sign in ",;\t" if sign in first), ",")
    reader = csv.reader(chain([first], text), delimiter=delimiter, strict=True)
    try:
        columns = [name.strip() for name in next(reader)]
        kept = [name for name in columns if keep is None or name in keep]
        if twice := [name for name in kept if columns.count(name) > 1]:
            raise AimoError(
                f"{named} has the column {listed(twice[:1])!r} twice; rename or remove one of them"
            )
        while True:
            rows: list[list[str]] = []
            for row in reader:
                if len(row) == len(columns):
                    rows.append(row)
                elif row:
                    what = f"{len(row)} values for {len(columns)} columns"
                    refuse(reader.line_num, f': {what}; put a text with commas between "')
                if len(rows) == (limit or CHUNK):
                    break
            cells = {name: [row[columns.index(name)] for row in rows] for name in kept}
            yield cleaned(Table(pl.DataFrame(cells, dict.fromkeys(kept, pl.String)), columns))
            if limit or len(rows) < CHUNK:
                return
    except csv.Error:
        raise AimoError(
            f"{named}: a quote is missing or misplaced in the row up to line {reader.line_num}; "
            'put a text with commas or line breaks between ", and write a " inside it twice'
        ) from None


def json_tables(
    text: io.TextIOWrapper,
    named: str,
    lines: bool,
    keep: Collection[str] | None,
    limit: int | None,
    refuse: Callable[[int, str], None],
) -> Iterator[Table]:
    """Read JSON lines, or one JSON value that holds the rows, in chunks."""

    def objects(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if isinstance(row := parsed(line), dict):
                yield row
                continue
            alone = re.search(r'(?<!\\)(?:\\\\)*\\(?!["\\/bfnrtu])', line)
            is_latex = row is None and alone
            remedy = "write each backslash of LaTeX twice" if is_latex else "correct or remove it"
            refuse(number, f" is not a JSON object; {remedy}")

    start = []
    for line in text:
        start.append(line)
        if line.strip():
            break
    if lines and isinstance(parsed(start[-1]), dict):
        rows = objects(chain(start, text))
    else:
        body = "".join(start) + text.read()
        whole = rows_in(parsed(body), named)
        rows = objects(io.StringIO(body, newline="\n")) if whole is None else iter(whole)
    names: dict[str, None] = {}
    while True:
        part = list(islice(rows, limit or CHUNK))
        for row in part:
            names |= dict.fromkeys(row)
        table, kept = Table(pl.DataFrame(), list(names)), (n for n in names if keep is None or n in keep)
        table.rows = pl.DataFrame([series(name, [row.get(name) for row in part], table) for name in kept])
        yield cleaned(table)
        if limit or len(part) < CHUNK:
            return


def rows_in(value: Any, named: str) -> list[dict[str, Any]] | None:
    """Return the rows of a JSON value: a list, an object that holds one, or columns; None for no value."""
    if isinstance(value, dict):
        held = {key: entry for key, entry in value.items() if key in ROWS_UNDER and isinstance(entry, list)}
        inner = [entry for entry in value.values() if isinstance(entry, dict)]
        sizes = {len(entry) if isinstance(entry, list) else -1 for entry in value.values()}
        if {"columns", "data"} <= value.keys() and sizes != {-1}:  # pandas, orient="split"
            value = [dict(zip(value["columns"], row, strict=False)) for row in value["data"]]
        elif len(held) == 1:
            value = next(iter(held.values()))
        elif len(sizes) == 1 and sizes != {-1} and not held:
            value = [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
        elif inner and len(inner) == len(value) and all(key.isdigit() for key in chain(*inner)):
            value = [{name: value[name].get(key) for name in value} for key in inner[0]]  # orient="columns"
        elif inner and len(inner) == len(value) and len(value) > 1:
            value = [{"id": key} | row for key, row in value.items()]  # orient="index"
        elif held:
            raise AimoError(f"{named} holds several tables ({', '.join(held)}); keep one of them in the file")
        else:
            value = [value]
    if not isinstance(value, list):
        return None
    for number, row in enumerate(value, 1):
        if not isinstance(row, dict):
            raise AimoError(f"{named}, row {number} is not a JSON object; correct or remove it")
    return value
