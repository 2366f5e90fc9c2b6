"""Public reports of the area: data files."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from aimo.config import Columns, Source
from aimo.data import sources
from aimo.evaluation import benchmarks, submission
from aimo.inference.competitions import COMPETITIONS
from aimo.inference.errors import AimoError
from aimo.inference.local import read_questions

ROW = {"problem": "What is 6 x 7?", "answer": "42"}


def load(path, **columns):
    source = Source(str(path), columns=Columns(**columns) if columns else None)
    rows, notes = sources.load_source(source, 0, "data.sft")
    return rows.to_dicts(), notes


def write(name, content):
    """A file of a text, of bytes, or of JSON lines."""
    if isinstance(content, list):
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(name)


def refused(path, *told, **columns):
    with pytest.raises(AimoError) as e:
        load(path, **columns)
    assert all(text in str(e.value) for text in told)


def held(content, expected, repaired=0, **columns):
    [row], notes = load(write("rows.jsonl", content), **columns)
    assert row | expected == row and notes.repaired.total() == repaired


def talk(*texts):
    turns = zip(("user", "assistant") * 2, texts, strict=False)
    return [{"role": role, "content": text} for role, text in turns]


SOLVED = talk("What is 6 x 7?", "\\boxed{42}")


def B01(case):
    held(case["input"], {"problem": "What is 10 + 1?", "solution": "… \\boxed{11}"})


def B02v(case):
    [row], _ = load(write("rows.jsonl", [{"messages": [SOLVED[0], SOLVED[1] | {"thinking": "I know"}]}]))
    assert "I know" in row["solution"] and row["solution"].endswith("\\boxed{42}")


def B03(case):
    rows, notes = load(write("rows.jsonl", [{"messages": talk("Hi", "Hello") + SOLVED}]))
    assert not rows and notes.dropped == {"conversation of several turns": 1}


def B04v(case):
    held(case["input"], {"solution": "\ufffd 42"}, repaired=1, solution="solution")


def B05(case):
    write("train-0.jsonl", [ROW])
    write("train-1.jsonl", [ROW | {"answer": ["3"]}])
    refused(Path.cwd(), "train-0.jsonl", "train-1.jsonl", "'answer'")


def B06(case):
    rows = [{"problem": f"What is {i}?", "answer": i} for i in range(200)]
    rows.append({"problem": "What is a half?", "answer": "\\frac{1}{2}"})
    questions = benchmarks.read_benchmark(str(write("mine.jsonl", rows)))
    assert [questions[i].answer for i in (0, 199, 200)] == ["0", "199", "\\frac{1}{2}"]


def read_everywhere(path):
    """The first problem of a file, as a source, a test file, a benchmark and a file of problems read it."""
    problem = load(path)[0][0]["problem"]
    assert problem == read_questions(path)[1]["problem"][0]
    assert problem == benchmarks.read_benchmark(str(path))[0].problem
    assert problem == submission.read_problems(path, COMPETITIONS["aimo3"])[0]["problem"][0]
    return problem


def B07v(case):
    row = {"id": "a", "problem": "Let\u2028n\u0085be\u2029what", "answer": 4}
    assert read_everywhere(write("mine.jsonl", [row])) == row["problem"]


def B08(case):
    table = pl.DataFrame({"id": ["a"], "problem": ["2 + 2?"], "answer": ["4"]})
    for name, text in (("bom.csv", table.write_csv()), ("bom.jsonl", table.write_ndjson())):
        assert read_everywhere(write(name, "\ufeff" + text)) == "2 + 2?"


def B09(case):
    row = {"data_source": "math_dapo", "prompt": talk("What is 6 x 7?")}
    row |= {"reward_model": {"ground_truth": "42", "style": "rule"}, "extra_info": {"index": "0-1"}}
    lines = write("rows.jsonl", [row])
    pl.DataFrame([row]).write_parquet(lines.with_suffix(".parquet"))
    for path in (lines, lines.with_suffix(".parquet")):
        for columns in ({}, {"problem": "prompt", "answer": "reward_model.ground_truth"}):
            [found], _ = load(path, **columns)
            assert (found["problem"], found["answer"]) == ("What is 6 x 7?", "42")
        refused(path, "reward_model.ground_truth", problem="prompt", answer="reward_model")


def B10(case):
    for source in (write("train.jsonl.gz", gzip.compress(json.dumps(ROW).encode())), Path.cwd()):
        assert load(source)[0][0]["answer"] == "42"


def B11(case):
    problem = r"Find $\beta=\frac{84}{2}$, $5\times 2$"
    held(f'{{"problem": "{problem}", "answer": "42"}}\n', {"problem": problem}, repaired=1)


def B13(case):
    table = write("rows.csv", "problem,answer\nP,NaN\nQ,42\n")
    lines = '{"problem": "P", "answer": NaN}\n{"problem": "Q", "answer": 42}\n'
    columns = pl.DataFrame({"problem": ["P", "Q"], "answer": [float("nan"), 42.0]})
    columns.write_parquet(table.with_suffix(".parquet"))
    for path in (table, write("rows.jsonl", lines), table.with_suffix(".parquet")):
        assert [row["answer"] for row in load(path)[0]] in ([None, "42"], [None, "42.0"])


def B14(case):
    held([{"messages": json.dumps(SOLVED)}], {"problem": "What is 6 x 7?", "solution": "\\boxed{42}"})


def B16(case):
    for text, encoding in (("Où est 6 x 7?", "latin-1"), ("六乘七是多少", "gbk")):
        rows = f"problem,answer\n{text},42\n"
        refused(write("rows.csv", rows.encode(encoding)), "line 2", "encoding", "UTF-8")
        assert load(write("rows.csv", rows.encode("utf-16")))[0][0]["problem"] == text
        refused(write("rows.csv", rows.encode("utf-16-le")), "encoding", "UTF-16")
