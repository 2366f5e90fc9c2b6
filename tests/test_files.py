"""Reading tables from the files that users bring."""

import bz2
import datetime
import decimal
import gzip
import io
import itertools
import json

import polars as pl
import pyarrow as pa
import pytest

from aimo.config import Source
from aimo.data import sources
from aimo.evaluation.benchmarks import read_benchmark
from aimo.inference import files
from aimo.inference.errors import AimoError
from aimo.inference.local import read_questions

TABLE = pl.DataFrame(
    {"id": ["a", "b"], "problem": ["Let\u2028n, be\r\n1.", 'Say "x".'], "answer": ["1", "2"]}
)
ROWS = TABLE.to_dicts()


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def written(table, kind):
    """The bytes of a table as parquet, ipc (an Arrow file) or ipc_stream."""
    getattr(table, f"write_{kind}")(buffer := io.BytesIO())
    return buffer.getvalue()


def read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return files.read_all(tmp_path / name, "file ")


CSV = TABLE.write_csv()
COLUMNS = {name: TABLE[name].to_list() for name in TABLE.columns}
FORMS = {
    "a.csv": CSV.encode(),
    "windows.csv": b"\xef\xbb\xbf" + TABLE.write_csv(line_terminator="\r\n").encode(),
    "excel.csv": TABLE.write_csv(separator=";").encode("utf-16"),
    "a.tsv": TABLE.write_csv(separator="\t").encode(),
    "a.jsonl": lines(*ROWS).encode(),
    "windows.ndjson": b"\xef\xbb\xbf" + lines(*ROWS).replace("\n", "\r\n").encode(),
    "wide.jsonl": lines(*ROWS).encode("utf-16"),
    "list.json": json.dumps(ROWS, indent=1).encode(),
    "lines.json": lines(*ROWS).encode(),
    "held.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "columns.json": json.dumps(COLUMNS).encode(),
    "pandas.json": json.dumps({name: dict(enumerate(cells)) for name, cells in COLUMNS.items()}).encode(),
    "split.json": json.dumps({"columns": [*COLUMNS], "index": [0, 1], "data": TABLE.rows()}).encode(),
    "index.json": json.dumps({i: row for i, row in enumerate(ROWS)}).encode(),
    "a.parquet": written(TABLE, "parquet"),
    "a.arrow": written(TABLE, "ipc"),
    "stream.arrow": written(TABLE, "ipc_stream"),
    "a.csv.gz": gzip.compress(CSV.encode()),
    "no_name.jsonl": gzip.compress(lines(*ROWS).encode()),
    "a.jsonl.zst": pa.compress(lines(*ROWS).encode(), "zstd", asbytes=True),
    "a.csv.bz2": bz2.compress(CSV.encode()),
    "a.parquet.gz": gzip.compress(written(TABLE, "parquet")),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_table_is_read_alike(tmp_path, name):
    assert read(tmp_path, name, FORMS[name]).rows.select(TABLE.columns).equals(TABLE)
    assert files.read_tables([tmp_path / name], "", ["answer"]).rows.to_dict(as_series=False) == {
        "answer": ["1", "2"]
    }
    assert read_questions(tmp_path / name)[1]["id"].to_list() == ["a", "b"]


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("a.csv", b"PK\x03\x04rest", "a zip archive"),
        ("a.jsonl", b"<!DOCTYPE html><html>", "a web page"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("a.parquet", b"PAR1 and no more", "cannot be read: it is cut off"),
        ("a.arrow", written(TABLE, "ipc_stream").replace(b"Say", b"\xff\xff\xff"), "it is cut off"),
        ("a.csv.gz", gzip.compress(CSV.encode() * 9)[:60], "cannot be read: it is cut off"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b'id,problem\na,"x" y\n', "a quote is missing"),
        ("a.csv", b"id,problem\na,x\nb,1,2\n", "line 3: 3 values for 2 columns"),
        ("a.csv", b"id,id\na,x\n", "the column 'id' twice"),
        ("a.jsonl", b'{"id": "a"}\n{"id": "\\alpha"}\n', "line 2 is not a JSON object; write each backslash"),
        ("a.jsonl", b'{"id": "a"}\n["b"]\n', "line 2 is not a JSON object; correct"),
        ("a.json", b'[{"id": 1}, 2]', "row 2 is not a JSON object"),
        ("a.json", b'[{"id": 1}', "line 1 is not a JSON object"),
        ("a.jsonl", b'{"id": "' + "\u4e03".encode("gbk") * 9 + b'"}', "line 1 is not text in UTF-8"),
        ("a.csv", CSV.encode("utf-16-le"), "its encoding is UTF-16"),
        ("a.jsonl", b'{"a":' * 99_999, "is not a JSON object"),
    ],
    ids=itertools.count(),
)
def test_a_file_that_is_no_table_is_refused_by_name_in_one_line(tmp_path, name, content, told):
    with pytest.raises(AimoError) as e:
        read(tmp_path, name, content)
    assert told in str(e.value) and str(tmp_path / name) in str(e.value)


def test_a_file_of_another_kind_is_named_wherever_it_is_given(tmp_path):
    for name, content, told in ("a.xlsx", b"PK\x03\x04", "an Excel sheet"), ("a.pkl", b"\x80", "no table"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AimoError, match=f"{name} is .*{told}"):
            sources.load_source(Source(str(tmp_path / name)), seed=0, where="data.grpo")
        with pytest.raises(AimoError, match=rf"benchmark .*{name}"):
            read_benchmark(str(tmp_path / name))


@pytest.mark.parametrize("rows", [200, files.CHUNK + 1])
def test_a_type_may_change_in_any_row(tmp_path, rows):
    cells = [{"a": i, "b": "x", "c": 1, "d": "t"} for i in range(rows)]
    last = {"a": "\\frac12", "b": ["y", "z"], "c": {"d": 1}, "d": None, "e": True}
    table = read(tmp_path, "a.jsonl", lines(*cells, last))
    assert table.nested == {"c"} and table.rows[-2:].rows() == [
        (str(rows - 1), ["x"], "1", "t", None), ("\\frac12", ["y", "z"], '{"d": 1}', None, "true")
    ]  # fmt: skip


def test_numbers_keep_their_digits_and_what_stands_for_none_is_null(tmp_path):
    big = "9" * 5000
    values = [big, "1.50", "true", "NaN", "null", '"None"', '""', '"<NA>"', '"NaNny"']
    found = read(tmp_path, "a.jsonl", "".join(f'{{"answer": {value}}}\n' for value in values))
    assert found.rows["answer"].to_list() == [big, "1.5", "true", *[None] * 5, "NaNny"]


@pytest.mark.parametrize("kind", ["parquet", "ipc"])
def test_types_of_other_libraries_become_text(tmp_path, kind):
    nan, cases = float("nan"), pl.Series(["x", "y"], dtype=pl.Categorical)
    table = pl.DataFrame(
        {"i": [1, None], "f": [nan, 2.5], "b": [True, False], "c": cases, "d": [decimal.Decimal("1.5"), None],
         "bytes": ["é".encode(), b"\xff"], "l": [[1, 2], None], "lf": [[1.5, nan], []], "n": [None, None],
         "s": [{"x": 1, "y": b"z"}, None], "t": [datetime.timedelta(1), None]}
    )  # fmt: skip
    assert read(tmp_path, "a.parquet", written(table[:0], kind)).rows.is_empty()
    *first, held, _ = read(tmp_path, "a.parquet", written(table, kind)).rows.row(0)
    assert first == ["1", None, "true", "x", "1.5", "é", ["1", "2"], ["1.5", None], None]
    assert json.loads(held) == {"x": 1, "y": "b'z'"}


EATEN = [
    r"\frac{1}{2} \beta \times 3 \theta \text{if } \binom{n}{2} \nabla f \neq 0 \right) \rho",
    r"\bar x \forall y \tan(x) \to \theta \rightarrow \tfrac12",
]
LEFT_ALONE = [
    "x\tan apple\tto eat\ttop\textra", "one\neq. 2 holds\not\nexists an n\nu\nabout",
    "a\r\nright here\r\nho", "\tables",
]  # fmt: skip


def test_backslashes_that_json_took_for_escapes_are_put_back_and_counted(tmp_path, capsys):
    escaped = "".join(f'{{"problem": "{text}"}}\n' for text in EATEN)
    table = read(tmp_path, "a.jsonl", escaped + lines(*({"problem": text} for text in LEFT_ALONE)))
    assert table.rows["problem"].to_list() == [*EATEN, *LEFT_ALONE]
    assert table.repaired.total() == 2 and "2 texts" in capsys.readouterr().out


def test_other_control_characters_are_counted_and_lone_surrogates_replaced(tmp_path):
    table = read(tmp_path, "a.jsonl", '{"a": "x\\u0000y", "b": ["\\ud83d", "z"], "c": {"k": "\\udc4d"}}\n')
    assert table.rows.row(0) == ("x\0y", ["\ufffd", "z"], '{"k": "\ufffd"}')
    assert sorted(table.repaired.values()) == [1, 2]


def test_the_shards_of_a_folder_are_one_table_and_its_metadata_is_none(tmp_path):
    (tmp_path / "data").mkdir()
    for i, row in enumerate(ROWS):
        (tmp_path / f"data/train-0000{i}-of-00002.jsonl.gz").write_bytes(gzip.compress(lines(row).encode()))
    for name in ("dataset_infos.json", "dataset-metadata.json", "._train.jsonl", "notes.txt"):
        (tmp_path / name).write_text("{}")
    assert files.read_all(tmp_path, "").rows.equals(TABLE)
    assert read_questions(tmp_path)[1].equals(TABLE)


def test_keys_of_objects_are_columns_as_objects_and_as_json_in_a_csv(tmp_path):
    row = {"a": "x", "m": {"gold": "4", "n": [{"k": "deep"}]}}
    (tmp_path / "a.jsonl").write_text(lines(row, {"a": "y", "m": None}))
    pl.DataFrame([row | {"m": json.dumps(row["m"])}]).write_csv(tmp_path / "a.csv")
    pl.DataFrame([row]).write_parquet(tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        table = files.read_tables([tmp_path / name], "", ["m.gold", "m.n.0.k", "m.none"])
        assert table.rows.row(0) == ("4", "deep") and {"m.gold", "m.n"} <= set(table.columns)
    (tmp_path / "b.jsonl").write_text(lines({"problem": row}))
    with pytest.raises(AimoError, match="holds objects in the column 'problem'"):
        files.read_texts(tmp_path / "b.jsonl", "file ")


def test_lines_that_cannot_be_read_are_skipped_and_counted(tmp_path):
    (tmp_path / "a.csv").write_text("id,problem\na,x\nb\nc,1,2\nd,y\n")
    (tmp_path / "a.jsonl").write_text('{"id": "a"}\n{oops\n"d"\n\n{"id": "d"}\n')
    for name in ("a.csv", "a.jsonl"):
        table = files.read_tables([tmp_path / name], "", skip=True)
        assert table.rows["id"].to_list() == ["a", "d"] and table.skipped == 2
