"""The cells of tables as texts: what other types become, what is missing, and what escapes have eaten."""

import json
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import polars as pl

CHUNK = 50_000  # rows that are Python objects at one time
# What pandas and others write for a missing value.
MISSING = ["", "NaN", "nan", "-nan", "<NA>", "#N/A", "N/A", "n/a", "None", "NULL", "null"]


@dataclass
class Table:
    """What files hold."""

    rows: pl.DataFrame  # columns of texts, or of lists of texts
    columns: list[str]  # all that the files have, with the keys of objects (`reward_model.ground_truth`)
    nested: set[str] = field(default_factory=set)  # columns of JSON, which were objects or lists of these
    skipped: int = 0  # lines that could not be read
    repaired: Counter[str] = field(default_factory=Counter)  # how many texts, by what was odd or changed


def parsed(text: str) -> Any:
    """Return a JSON value; None for no JSON."""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None
    except ValueError:  # an integer of more digits than Python converts
        return json.loads(text, parse_int=str)


def series(name: str, values: list[Any], table: Table) -> pl.Series:
    """Return Python values as texts, as lists of texts, or as JSON where some are nested deeper.

    Notes in `table` whether they are nested, and how many were repaired.
    """
    kinds = set(map(type, values))
    lists = list in kinds
    deep = dict in kinds or (
        lists and any(isinstance(e, list | dict) for v in values if isinstance(v, list) for e in v)
    )
    if lists and not deep:
        wrapped = [v if isinstance(v, list) or v is None else [v] for v in values]
        cells: list[Any] = [None if v is None else [to_text(entry) for entry in v] for v in wrapped]
    else:
        cells = values if kinds <= {str, type(None)} else [to_text(value) for value in values]
    if deep:
        table.nested.add(name)
    kind = pl.List(pl.String) if lists and not deep else pl.String
    try:
        return pl.Series(name, cells, dtype=kind)
    except UnicodeEncodeError:  # lone surrogates

        def sound(text: str | None) -> str | None:
            return text and text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

        whole = [[sound(e) for e in cell] if isinstance(cell, list) else sound(cell) for cell in cells]
        changed = sum(a != b for a, b in zip(cells, whole, strict=True))
        table.repaired["half of a surrogate pair, replaced"] += changed
        return pl.Series(name, whole, dtype=kind)


def to_text(value: Any) -> str | None:
    """Return a value as text, None for none and for NaN."""
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return json.dumps(value, ensure_ascii=False, default=str)


def from_frame(frame: pl.DataFrame, wanted: Collection[str] | None = None) -> Table:
    """Return all or the wanted columns of a table of any types, as texts."""
    table = Table(frame, frame.columns)
    columns = []
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


def as_json(column: pl.Series) -> pl.Series:
    """Return a column's values as JSON; polars' encoder knows neither bytes nor durations."""
    parts = [column[start : start + CHUNK].to_list() for start in range(0, len(column), CHUNK)]
    encoded = [pl.Series(column.name, [to_text(value) for value in part], dtype=pl.String) for part in parts]
    return pl.concat(encoded) if encoded else pl.Series(column.name, [], dtype=pl.String)


ESCAPES = {"\x07": "a", "\b": "b", "\t": "t", "\n": "n", "\v": "v", "\f": "f", "\r": "r"}
# What follows the first letter of commands that no word begins with; \a, \b, \v and \f stand in no text.
EATEN = re.compile(
    "[\x07\b\v\f](?=[A-Za-z]{2})"
    "|\t(?=(?:imes|heta|ext(?:bf|it|rm)?|frac|riangle|ilde|herefore|binom)(?![a-z]))"
    "|\t(?=(?:an|o|au) ?[\\\\({^_])"
    "|\n(?=(?:eq|abla|otin)(?![a-z.]))"
    "|\r(?=(?:ight|ightarrow|ho|angle|floor|ceil)(?![a-z]))"
)
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
SUSPECT = "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f]|\t[a-z]|\n(?:eq|abla|otin)|\r[a-z]"


def cleaned(table: Table) -> Table:
    """Return a table without what stands for a missing value, and with the backslashes of LaTeX put back.

    JSON and Python take the backslash and the first letter of \\frac for a control character.
    """

    def restored(text: str) -> str:
        for _ in range(2):  # the second time beside what the first put back, as in \to \theta
            text = EATEN.sub(lambda found: "\\" + ESCAPES[found[0]], text)
        return text

    text = pl.col(pl.String)
    table.rows = table.rows.with_columns(pl.when(~text.is_in(MISSING)).then(text))
    for column in table.rows:
        if column.dtype == pl.String:
            odd = column.str.contains(SUSPECT)
        else:
            odd = column.list.eval(pl.element().str.contains(SUSPECT)).list.any()
        places = odd.fill_null(False).arg_true()
        old = column.gather(places).to_list()
        new = [
            [e and restored(e) for e in cell] if isinstance(cell, list) else restored(cell) for cell in old
        ]
        changed = sum(a != b for a, b in zip(old, new, strict=True))
        left = sum(bool(CONTROL.search("".join(filter(None, cell or "")))) for cell in new)
        table.repaired += Counter(
            {"control characters in place of a backslash (\\f of \\frac), repaired": changed,
             "control characters, left as they are": left}
        )  # fmt: skip
        if changed:
            column = column.scatter(places, pl.Series(new, dtype=column.dtype))
        table.rows = table.rows.with_columns(column)
    return table


def pick(table: Table, wanted: Collection[str] | None) -> Table:
    """Return the wanted columns, keys of objects among them, and name the keys that objects have."""
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
