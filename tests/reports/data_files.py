"""Public reports of the area: data files."""

import json

import polars as pl
import pytest

from aimo.config import Columns, Source
from aimo.data import sources
from aimo.errors import AimoError
from aimo.evaluation import benchmarks, submission
from aimo.inference.competitions import COMPETITIONS
from aimo.inference.local import read_questions

ROW = {"problem": "What is 6 x 7?", "answer": "42"}


def load(path, **columns):
    """A source's rows, and what was left out and repaired."""
    source = Source(str(path), columns=Columns(**columns) if columns else None)
    rows, notes = sources.load_source(source, 0, "data.sft")
    return rows.to_dicts(), notes


def write(path, *rows):
    """JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def folder(request):
    return request.getfixturevalue("tmp_path")


def refused(path, *told, **columns):
    """Whether a source is refused in one line that tells all of these."""
    with pytest.raises(AimoError) as e:
        load(path, **columns)
    assert all(text in str(e.value) for text in told) and "\n" not in str(e.value)


def B01(case, request):
    path = folder(request) / "rows.jsonl"
    path.write_text(case["input"] + "\n")
    [row], _ = load(path)
    assert (row["problem"], row["solution"]) == ("What is 10 + 1?", "… \\boxed{11}")


def B02v(case, request):
    reply = {"role": "assistant", "thinking": "I add them", "content": "\\boxed{11}"}
    talk = [{"role": "user", "content": "What is 10 + 1?"}, reply]
    [row], _ = load(write(folder(request) / "rows.jsonl", {"messages": talk}))
    assert "I add them" in row["solution"] and row["solution"].endswith("\\boxed{11}")


def B03(case, request):
    said = [("user", "Hi"), ("assistant", "Hello"), ("user", "What is 6 x 7?"), ("assistant", "\\boxed{42}")]
    talk = [{"role": role, "content": text} for role, text in said]
    rows, notes = load(write(folder(request) / "rows.jsonl", {"messages": talk}))
    assert not rows and notes.dropped == {"conversation of several turns": 1}


def B04v(case, request):
    path = folder(request) / "rows.jsonl"
    path.write_text(case["input"] + "\n")
    [row], notes = load(path, solution="solution")
    assert row["solution"] == "\ufffd 42" and notes.repaired.total() == 1


def B05(case, request):
    write(folder(request) / "train-0.jsonl", ROW)
    write(folder(request) / "train-1.jsonl", ROW | {"answer": ["3"]})
    refused(folder(request), "train-0.jsonl", "train-1.jsonl", "'answer'")


def B06(case, request):
    rows = [{"problem": f"What is {i}?", "answer": i} for i in range(200)]
    rows.append({"problem": "What is a half?", "answer": "\\frac{1}{2}"})
    questions = benchmarks.read_benchmark(str(write(folder(request) / "mine.jsonl", *rows)))
    assert [questions[i].answer for i in (0, 199, 200)] == ["0", "199", "\\frac{1}{2}"]


def B07v(case, request):
    problem = "Let\u2028n\u0085be\u2029what"
    path = write(folder(request) / "mine.jsonl", {"id": "a", "problem": problem, "answer": 4})
    assert benchmarks.read_benchmark(str(path))[0].problem == problem
    assert submission.read_problems(path, COMPETITIONS["aimo3"])[0]["problem"].to_list() == [problem]
    assert read_questions(path)[1]["problem"].to_list() == [problem] == [load(path)[0][0]["problem"]]


def B08(case, request):
    table = pl.DataFrame({"id": ["a"], "problem": ["2 + 2?"], "answer": ["4"]})
    for name in ("bom.csv", "bom.jsonl"):
        path = folder(request) / name
        path.write_text("\ufeff" + (table.write_csv() if name == "bom.csv" else table.write_ndjson()))
        assert load(path)[0][0]["problem"] == read_questions(path)[1]["problem"][0] == "2 + 2?"
        assert benchmarks.read_benchmark(str(path))[0].problem == "2 + 2?"
        assert submission.read_problems(path, COMPETITIONS["aimo3"])[0].rows() == [("a", "2 + 2?", "4")]


def B09(case, request):
    row = {
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": "What is 6 x 7?"}],
        "reward_model": {"ground_truth": "42", "style": "rule"},
        "extra_info": {"index": "0-1"},
    }
    pl.DataFrame([row]).write_parquet(folder(request) / "rows.parquet")
    write(folder(request) / "rows.jsonl", row)
    for name in ("rows.parquet", "rows.jsonl"):
        for columns in ({}, {"problem": "prompt", "answer": "reward_model.ground_truth"}):
            [found], _ = load(folder(request) / name, **columns)
            assert (found["problem"], found["answer"]) == ("What is 6 x 7?", "42")
        refused(folder(request) / name, "reward_model.ground_truth", problem="prompt", answer="reward_model")


def B10(case, request):
    import gzip

    path = folder(request) / "train.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(ROW).encode()))
    for source in (path, path.parent):
        assert load(source)[0][0]["answer"] == "42"


def B11(case, request):
    path = folder(request) / "rows.jsonl"
    problem = r"Find $\beta=\frac{84}{2}$, $5\times 2$"
    path.write_text(f'{{"problem": "{problem}", "answer": "42"}}\n')
    [row], notes = load(path)
    assert row["problem"] == problem and notes.repaired.total() == 1


def B13(case, request):
    values = [float("nan"), 42.0]
    problems = ["P", "Q"]
    (folder(request) / "rows.csv").write_text("problem,answer\nP,NaN\nQ,42\n")
    (folder(request) / "rows.jsonl").write_text(
        '{"problem": "P", "answer": NaN}\n{"problem": "Q", "answer": 42}\n'
    )
    pl.DataFrame({"problem": problems, "answer": values}).write_parquet(folder(request) / "rows.parquet")
    for name in ("rows.csv", "rows.jsonl", "rows.parquet"):
        rows, _ = load(folder(request) / name)
        assert [row["answer"] for row in rows] in ([None, "42"], [None, "42.0"])


def B14(case, request):
    talk = [{"role": "user", "content": "What is 6 x 7?"}, {"role": "assistant", "content": "\\boxed{42}"}]
    [row], _ = load(write(folder(request) / "rows.jsonl", {"messages": json.dumps(talk)}))
    assert (row["problem"], row["solution"]) == ("What is 6 x 7?", "\\boxed{42}")


def B16(case, request):
    path = folder(request) / "rows.csv"
    for text, encoding in (("Où est 6 x 7?", "latin-1"), ("六乘七是多少", "gbk")):
        path.write_bytes(f"problem,answer\n{text},42\n".encode(encoding))
        refused(path, "line 2", "encoding", "UTF-8")
        path.write_bytes(f"problem,answer\n{text},42\n".encode("utf-16"))
        assert load(path)[0][0]["problem"] == text
        path.write_bytes(f"problem,answer\n{text},42\n".encode("utf-16-le"))
        refused(path, "encoding", "UTF-16")
