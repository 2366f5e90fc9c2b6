"""Read users' tables: .csv, .tsv, .json, .jsonl, .parquet and .arrow, also as .gz, .bz2 or .zst.

A cell becomes text or null. A number becomes its digits, a list of scalars a list of texts, any other nested
value JSON. A file's content decides how it is read; its name decides only if the content does not.
"""

import codecs
import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import polars as pl
from polars.exceptions import PanicException, PolarsError

from aimo.inference.errors import AimoError, listed
from aimo.inference.expressions import restore_backslashes

KINDS = {
    ".csv": ".csv", ".tsv": ".csv", ".json": ".json", ".jsonl": ".jsonl", ".ndjson": ".jsonl",
    ".parquet": ".parquet", ".arrow": ".arrow", ".feather": ".arrow", ".ipc": ".arrow",
}  # fmt: skip
PACKED = (".gz", ".bz2", ".zst")
PEEK = 1000  # rows that are read to find the columns
CHUNK = 50_000  # rows held as Python objects at a time
# Stems of .json files that describe a data set.
METADATA = re.compile(r"(?i)dataset.metadata|dataset_infos?|dataset_dict|metadata|state|.*\.settings")
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
    b"%pdf": "a PDF; save its rows as CSV",
}
WORDS = {pl.String: "text", pl.List(pl.String): "lists"}
# What libraries raise for a damaged file.
DAMAGED = (PanicException, PolarsError, OSError, EOFError, ValueError, NotImplementedError)


@dataclass
class Table:
    """The content of one or more files."""

    rows: pl.DataFrame  # columns of texts, or of lists of texts
    columns: list[str]  # all in the files, with the keys of objects (`reward_model.ground_truth`)
    nested: set[str] = field(default_factory=set)  # columns of JSON, from objects or nested lists
    skipped: int = 0  # lines that could not be read
    repaired: Counter[str] = field(default_factory=Counter)  # number of texts, by what was odd or repaired


# ---- which files ----


def unpacked(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() in PACKED else path


def kind_of(path: Path) -> str | None:
    """Return a file's kind by its name, as a suffix such as `.csv`, or None if it is no table."""
    return KINDS.get(unpacked(path).suffix.lower())


def stem_of(path: Path) -> str:
    return unpacked(path).stem


def tables_of(paths: Iterable[Path]) -> list[Path]:
    """Return the table files in order: .json files only if there are no others, and without metadata."""
    found = sorted(p for p in paths if kind_of(p) and not p.name.startswith(".") and p.is_file())
    others = [path for path in found if kind_of(path) != ".json"]
    return others or [path for path in found if not METADATA.fullmatch(stem_of(path))]


def other_kind(head: bytes) -> str | None:
    return next((what for sign, what in OTHERS.items() if head.lstrip().lower().startswith(sign)), None)


def one_kind(where: str, path: Path, found: Collection[str | None]) -> AimoError:
    names = ", ".join(sorted(filter(None, found))) or "none"
    kinds = ", ".join(dict.fromkeys(KINDS.values()))
    if path.is_file():
        with path.open("rb") as file:
            what = other_kind(file.read(64)) or f"no table by its name; save or rename it as one of {kinds}"
        return AimoError(f"{where}{path} is {what}")
    return AimoError(f"{where}{path} must hold files of one kind ({kinds}); found {names}; name one file")


# ---- tables ----


def read_all(path: str | Path, where: str) -> Table:
    """Read all columns of a file or a folder of shards with `read_tables`, and print what was repaired."""
    path = Path(path)
    if not path.exists():
        raise AimoError(f"{where}{path} does not exist; correct the path")
    paths = tables_of(path.rglob("*")) if path.is_dir() else [path]
    if len(kinds := {kind_of(file) for file in paths}) != 1:
        raise one_kind(where, path, kinds)
    table = read_tables(paths, where)
    for what, count in table.repaired.items():
        print(f"{where}{path}: {count:,} texts: {what}", flush=True)
    return table


def read_texts(path: str | Path, where: str) -> pl.DataFrame:
    """Read problems with `read_all`, as texts: null becomes "", and a list is joined by commas."""
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
    """Read files as one table: all columns or the `wanted` ones that exist, or `limit` rows of the first.

    A wanted column may be a key of an object (`reward_model.ground_truth`). `skip` counts unreadable lines;
    without it, they are refused with the `hint`. AimoError names the file (after `where`), row and remedy.
    """
    keep = None if wanted is None else {*wanted, *(name.split(".")[0] for name in wanted)}
    paths = paths[:1] if limit else paths
    tables = [
        pick(TableFile(path, f"{where}{path}", keep, limit, skip, hint).read(), wanted) for path in paths
    ]
    first = tables[0]
    for path, other in zip(paths[1:], tables[1:], strict=True):
        if wanted is not None and (odd := set(first.rows.columns) ^ set(other.rows.columns)):
            lacks, has = (path, paths[0]) if min(odd) in first.rows.columns else (paths[0], path)
            raise AimoError(f"{where}{lacks} has no column {min(odd)!r}, which {has} has; add it")
        for name in set(first.rows.columns) & set(other.rows.columns):
            one, two = ("objects" if name in t.nested else WORDS[t.rows[name].dtype] for t in (first, other))
            if one != two and first.rows[name].count() and other.rows[name].count():
                what = f"holds {one} in {name!r} and {path} holds {two}; write the column alike in both"
                raise AimoError(f"{where}{paths[0]} {what}")
    return stacked(tables)


def stacked(tables: Sequence[Table]) -> Table:
    """Concatenate tables. A text becomes a list of one if the column holds lists in another table."""
    nested = set().union(*(table.nested for table in tables))
    lists = {c.name for table in tables for c in table.rows if c.dtype != pl.String}
    frames = []
    for table in tables:
        for column in table.rows:
            if column.name in lists & nested and column.dtype != pl.String:
                table.rows = table.rows.with_columns(as_json(column))
            elif column.name in lists - nested and column.dtype == pl.String:
                one = pl.when(pl.col(column.name).is_not_null()).then(pl.concat_list(column.name))
                table.rows = table.rows.with_columns(one.alias(column.name))
        frames.append(table.rows)
    return Table(
        pl.concat(frames, how="diagonal"),
        list(dict.fromkeys(name for table in tables for name in table.columns)),
        nested,
        sum(table.skipped for table in tables),
        sum((table.repaired for table in tables), Counter[str]()),
    )


# ---- one file, in chunks ----


def arrow() -> Any:
    import pyarrow.parquet  # takes a tenth of a second, and few files need it

    return pyarrow


@dataclass
class TableFile:
    """A file to read."""

    path: Path
    named: str  # its name in errors
    keep: Collection[str] | None  # columns; None: all
    limit: int | None  # of rows
    skip: bool  # whether to count unreadable lines rather than refuse them with the hint
    hint: str
    skipped: int = 0

    def refuse(self, line: int, what: str) -> None:
        if not self.skip:
            raise AimoError(f"{self.named}, line {line}{what}{self.hint}")
        self.skipped += 1

    def open(self) -> IO[bytes]:
        """Open the file. Its first bytes decide whether gzip, bzip2 or zstd decompresses it."""
        with self.path.open("rb") as file:
            head = file.read(4)
        signs = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd"}
        for sign, packing in signs.items():
            if head.startswith(sign):
                return arrow().input_stream(str(self.path), compression=packing)  # type: ignore[no-any-return]
        return self.path.open("rb")

    def read(self) -> Table:
        named, kind = self.named, kind_of(self.path)
        fault = AimoError(f"{named} cannot be read: it is cut off, damaged or of another kind; get it again")
        try:
            with self.open() as stream:
                head = stream.read(2048)
            encoding = next((name for bom, name in BOMS.items() if head.startswith(bom)), "utf-8")
            if not head.decode(encoding, "replace").strip():
                need = "a row for each problem, below the names of the columns"
                raise AimoError(f"{named} is empty; it needs {need}")
            if other := other_kind(head):
                raise AimoError(f"{named} is {other}")
            if head.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")):
                return stacked(list(self.arrow_tables(head)))
            if kind in (".parquet", ".arrow"):
                raise fault
            if encoding == "utf-8" and b"\0" in head:
                what = "its encoding is UTF-16, or it is no text; save it in UTF-8"
                raise AimoError(f"{named} is not text in UTF-8: {what}")
            names: dict[str, None] = {}  # of the columns known so far
            tables: list[Table] = []
            part: list[dict[str, Any]] = []
            newline = "" if kind == ".csv" else "\n"
            with io.TextIOWrapper(self.open(), encoding, newline=newline) as text:  # type: ignore[type-var]
                rows = self.csv_rows(text, names) if kind == ".csv" else self.json_rows(text, kind)
                while not tables or (len(part) == CHUNK and not self.limit):
                    part = list(islice(rows, self.limit or CHUNK))
                    for row in part:
                        names.update(dict.fromkeys(row))
                    table = Table(pl.DataFrame(), list(names))
                    kept = [name for name in names if self.keep is None or name in self.keep]
                    columns = [series(name, [row.get(name) for row in part], table) for name in kept]
                    table.rows = pl.DataFrame(columns)
                    tables.append(cleaned(table))
            table = stacked(tables)
            table.skipped = self.skipped
            return table
        except UnicodeDecodeError:
            with self.open() as stream:
                lines = stream.read().split(b"\n")
            wrong = (i for i, line in enumerate(lines, 1) if line.decode(errors="ignore").encode() != line)
            raise AimoError(
                f"{named}, line {next(wrong, 1)} is not text in UTF-8: its encoding is another one (Latin-1, "
                "GBK, …); save it in UTF-8, such as by `iconv -f GBK -t UTF-8`"
            ) from None
        except DAMAGED as e:
            if isinstance(e, PermissionError | IsADirectoryError | FileNotFoundError):
                raise AimoError(f"{named} cannot be read: {e.strerror}") from None
            raise fault from None

    def arrow_tables(self, head: bytes) -> Iterator[Table]:
        """Read Parquet, or an Arrow file or stream, with pyarrow: polars panics on a damaged file."""
        pyarrow, size, is_parquet = arrow(), self.limit or CHUNK, head.startswith(b"PAR1")
        with self.open() as stream:
            source = stream if stream.seekable() else io.BytesIO(stream.read())
            open_arrow = pyarrow.ipc.open_file if head.startswith(b"ARROW1") else pyarrow.ipc.open_stream
            held = pyarrow.parquet.ParquetFile(source) if is_parquet else open_arrow(source).read_all()
            schema = held.schema_arrow if is_parquet else held.schema
            kept = [name for name in schema.names if self.keep is None or name in self.keep]
            parts = (
                held.iter_batches(size, columns=kept) if is_parquet else held.select(kept).to_batches(size)
            )
            empty = schema.empty_table().select(kept)  # keeps the columns if there are no rows
            for part in islice(chain(parts, [empty]), 1 if self.limit else None):
                part.validate(full=True)  # polars would trust damaged data
                yield replace(from_frame(pl.DataFrame(pl.from_arrow(part))), columns=schema.names)

    def csv_rows(self, text: io.TextIOWrapper, names: dict[str, None]) -> Iterator[dict[str, Any]]:
        """Add the columns to `names`, then yield the rows."""
        csv.field_size_limit(sys.maxsize)
        first = text.readline()
        tabs = unpacked(self.path).suffix.lower() == ".tsv"
        delimiter = "\t" if tabs else next((sign for sign in ",;\t" if sign in first), ",")
        reader = csv.reader(chain([first], text), delimiter=delimiter, strict=True)
        try:
            columns = [name.strip() for name in next(reader)]
            kept = [name for name in columns if self.keep is None or name in self.keep]
            if twice := [name for name in kept if columns.count(name) > 1]:
                what = f"has the column {listed(twice[:1])!r} twice; rename or remove one of them"
                raise AimoError(f"{self.named} {what}")
            names.update(dict.fromkeys(columns))
            for row in reader:
                if len(row) == len(columns):
                    yield dict(zip(columns, row, strict=True))
                elif row:
                    what = f"{len(row)} values for {len(columns)} columns"
                    self.refuse(reader.line_num, f': {what}; put a text with commas between "')
        except csv.Error:
            raise AimoError(
                f"{self.named}: a quote is missing or misplaced in the row up to line {reader.line_num}; "
                'put a text with commas or line breaks between ", and write a " inside it twice'
            ) from None

    def json_rows(self, text: io.TextIOWrapper, kind: str | None) -> Iterator[dict[str, Any]]:
        start = list(islice(text, 1))
        while not start[-1].strip():
            start.append(next(text))
        lines: Iterable[str] = chain(start, text)
        if kind != ".jsonl" or not isinstance(parsed(start[-1]), dict):
            body = "".join(lines)
            if (whole := rows_in(parsed(body), self.named)) is not None:
                yield from whole
                return
            lines = io.StringIO(body, newline="\n")
        for number, line in enumerate(lines, 1):
            row = parsed(line)
            if isinstance(row, dict):
                yield row
            elif line.strip():
                alone = row is None and re.search(r'(?<!\\)(?:\\\\)*\\(?!["\\/bfnrtu])', line)
                remedy = "write each backslash of LaTeX twice" if alone else "correct or remove it"
                self.refuse(number, f" is not a JSON object; {remedy}")


def rows_in(value: Any, named: str) -> list[dict[str, Any]] | None:
    """Return the rows of a JSON list or object, which may hold a list or columns; None for other values."""
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
            value = [{name: value[name].get(key) for name in value} for key in inner[0]]  # as pandas writes
        elif inner and len(inner) == len(value) and len(value) > 1:
            value = [{"id": key} | row for key, row in value.items()]  # rows keyed by id
        else:
            value = [value]
    if not isinstance(value, list):
        return None
    for number, row in enumerate(value, 1):
        if not isinstance(row, dict):
            raise AimoError(f"{named}, row {number} is not a JSON object; correct or remove it")
    return value


# ---- cells ----

# What pandas and others write for a missing value.
MISSING = ["", "NaN", "nan", "-nan", "<NA>", "#N/A", "N/A", "n/a", "None", "NULL", "null"]
CONTROL = "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
SUSPECT = f"{CONTROL}|\t[a-z]|\n(?:eq|abla|otin)|\r[a-z]"


def parsed(text: str) -> Any:
    """Return the value of a JSON text, or None if it is invalid."""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None
    except ValueError:  # an integer with more digits than Python converts
        return json.loads(text, parse_int=str)


def to_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return json.dumps(value, ensure_ascii=False, default=str)


def series(name: str, values: list[Any], table: Table) -> pl.Series:
    """Return Python values as texts, as lists of texts, or as JSON if any is nested deeper.

    Records in `table` whether they are nested and how many were repaired.
    """
    kinds = set(map(type, values))
    entries = (entry for value in values if isinstance(value, list) for entry in value)
    deep = dict in kinds or (list in kinds and any(isinstance(entry, list | dict) for entry in entries))
    if deep:
        table.nested.add(name)
    kind = pl.List(pl.String) if list in kinds and not deep else pl.String
    if kind != pl.String:
        wrapped = [v if isinstance(v, list) or v is None else [v] for v in values]
        cells: list[Any] = [None if v is None else [to_text(entry) for entry in v] for v in wrapped]
    else:
        cells = values if kinds <= {str, type(None)} else [to_text(value) for value in values]
    try:
        return pl.Series(name, cells, dtype=kind)
    except UnicodeEncodeError:  # halves of surrogate pairs
        text = json.dumps(cells, ensure_ascii=False).encode("utf-16", "surrogatepass")
        whole = json.loads(text.decode("utf-16", "replace"))
        changed = sum(a != b for a, b in zip(cells, whole, strict=True))
        table.repaired["half of a surrogate pair, replaced"] += changed
        return pl.Series(name, whole, dtype=kind)


def as_json(column: pl.Series) -> pl.Series:
    """Return a column's values as JSON; polars' encoder supports neither bytes nor durations."""
    parts = (column[start : start + CHUNK].to_list() for start in range(0, max(1, len(column)), CHUNK))
    return pl.concat([pl.Series(column.name, list(map(to_text, part)), dtype=pl.String) for part in parts])


def from_frame(frame: pl.DataFrame, wanted: Collection[str] | None = None) -> Table:
    """Return a data frame of any types as a table of texts, with all or the wanted columns."""
    table, columns = Table(frame, frame.columns), []
    for column in frame:
        kind = column.dtype
        inner = kind.inner if isinstance(kind, pl.List | pl.Array) else kind
        if inner.is_float():
            column = column.list.eval(pl.element().fill_nan(None)) if inner != kind else column.fill_nan(None)
        if inner.is_nested() or inner in (pl.Binary, pl.Object, pl.Duration):
            if kind not in (pl.Binary, pl.Duration):
                table.nested.add(column.name)
            columns.append(as_json(column))
        else:
            columns.append(column.cast(pl.String if inner == kind else pl.List(pl.String)))
    table.rows = pl.DataFrame(columns)
    return pick(cleaned(table), wanted)


def cleaned(table: Table) -> Table:
    """Replace a table's markers of missing values with null, and restore the backslashes of LaTeX."""
    text = pl.col(pl.String)
    table.rows = table.rows.with_columns(pl.when(~text.is_in(MISSING)).then(text))
    for column in table.rows:
        texts = column if column.dtype == pl.String else column.list.join(" ", ignore_nulls=True)
        places = texts.str.contains(SUSPECT).fill_null(False).arg_true()
        old = column.gather(places).to_list()
        new = [
            restore_backslashes(cell)
            if isinstance(cell, str)
            else [text and restore_backslashes(text) for text in cell]
            for cell in old
        ]
        changed = sum(a != b for a, b in zip(old, new, strict=True))
        left = sum(bool(re.search(CONTROL, "".join(filter(None, cell)))) for cell in new)
        table.repaired["control characters in place of a backslash (\\f of \\frac), repaired"] += changed
        table.repaired["control characters, left as they are"] += left
        if changed:
            table.rows = table.rows.with_columns(column.scatter(places, pl.Series(new, dtype=column.dtype)))
    return table


def pick(table: Table, wanted: Collection[str] | None) -> Table:
    """Return a table's wanted columns, which may be keys of objects, and add all such keys to `columns`."""
    keys = []
    for column in table.rows:
        first = column.drop_nulls().head(1).to_list() if column.dtype == pl.String else []
        value = parsed(first[0]) if first and first[0].startswith("{") else None
        keys += [f"{column.name}.{key}" for key in (value if isinstance(value, dict) else {})]
    if wanted is not None:
        for name in wanted:
            top, *parts = name.split(".")
            if parts and name not in table.rows.columns and top in table.rows.columns:
                place = "".join(f"[{part}]" if part.isdigit() else f"['{part}']" for part in parts)
                inner = pl.col(top).str.json_path_match(f"${place}").alias(name)
                if table.rows[top].dtype == pl.String and (found := table.rows.select(inner))[name].count():
                    fresh = cleaned(Table(found, [name]))
                    table.rows = table.rows.with_columns(fresh.rows)
                    table.repaired += fresh.repaired
                    table.columns.append(name)
        table.rows = table.rows.select([name for name in dict.fromkeys(wanted) if name in table.rows.columns])
    table.columns = list(dict.fromkeys([*table.columns, *keys]))
    return table
