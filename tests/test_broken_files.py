"""Files of ours that are cut off or hold something else: read, or refused in one line by name."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from unittest.mock import MagicMock

import numpy as np
import pytest
from test_compare import make
from test_replay import End, Sample, write_journal
from test_report import ANSWERED, make_run

from aimo.evaluation import compare, replay, traces
from aimo.inference.errors import AimoError
from aimo.report import page, pages

OTHERS = ("text", None, [], {}, [[1]], -1, 1e300, "\ud800")


def broken(value):
    """A JSON value with each of its places (of lists the first two) holding something else, or left out."""
    yield from OTHERS
    places = value if isinstance(value, dict) else range(len(value[:2])) if isinstance(value, list) else ()
    for key in places:
        for other in broken(value[key]):
            changed = copy.copy(value)
            changed[key] = other
            yield changed
        if isinstance(key, str):
            yield {name: one for name, one in value.items() if name != key}


def refuses_breaks(path, number, read, step):
    """Break a line of a file, or a whole JSON file, in every `step`th way: each is read, or refused."""
    original = path.read_bytes()
    lines = original.split(b"\n")
    value = json.loads(original if number is None else lines[number])
    contents = [json.dumps(one).encode() for one in broken(value)]
    if number is not None:
        contents = [b"\n".join([*lines[:number], one, *lines[number + 1 :]]) for one in contents]
    contents += [original[:cut] for cut in range(0, len(original), len(original) // 12)]
    contents += [b"\xff\xfe\x00", b"[" * 100_000, b"\0" * 50, b"[]\n", b"1\n"]
    refused = 0
    for content in contents[::step]:
        path.write_bytes(content)
        try:
            read()
        except AimoError:
            refused += 1
    path.write_bytes(original)
    read()
    assert refused > len(contents[::step]) / 10


@pytest.mark.parametrize("name, line", [("evaluation.json", None), ("x.jsonl", 0), ("x.jsonl", 1)])
def test_a_broken_evaluation_is_refused_by_compare_in_one_line(tmp_path, monkeypatch, name, line):
    for folder in "ab":
        make(tmp_path / folder, np.array([[True, False]] * 2))
    compared = MagicMock(side_effect=ArithmeticError)  # the files were read, and fit
    monkeypatch.setattr(compare, "compare_scores", compared)

    def read():
        with suppress(ArithmeticError):
            compare.compare_folders([tmp_path / "a", tmp_path / "b"], [], tmp_path / "c")

    refuses_breaks(tmp_path / "b" / name, line, read, 11)


JOURNAL = [("q", Sample(n, "", 5 + n, End.FINISHED, 2 + n % 2, entropy=0.5)) for n in range(4)]
WHOLE = {"id": "q", "answer": "7", "samples": [{"text": "\\boxed{7}"}, {"text": "no"}]}
FIGURES = {"id": "q", "answer": 7, "attempts": [{"tokens": 9, "answer": 7, "entropy": 0.5}] * 2}


@pytest.mark.parametrize("kind, line", [("journal", 0), ("journal", 1), (WHOLE, 0), (FIGURES, 0)])
def test_a_broken_file_of_samples_is_refused_in_one_line_or_replayed(tmp_path, kind, line):
    path = tmp_path / "samples.jsonl"
    if kind == "journal":
        write_journal(path, JOURNAL)
    else:
        path.write_text(json.dumps(kind) + "\n")

    def read():
        for one in traces.read_traces([path], {"q": 7}):
            replay.compare_rules(one, [replay.parse_rule("ours"), replay.parse_rule("4 of 8")], draws=2)

    refuses_breaks(path, line, read, 3)


def test_golds_are_read_as_all_tables_are(tmp_path):
    golds = tmp_path / "golds.csv"
    golds.write_bytes(b"\xef\xbb\xbfid;answer\r\nq;2\r\n")
    assert traces.read_gold_file(golds) == {"q": 2}
    for content, told in (
        ("id,answer\nq,2\nr,\n", "the answer of 'r' is ''; give it one"),
        ("id,reply\nq,2\n", "has no column 'answer'"),
        ("id,answer\nq," + "1" * 5000, "golds.csv"),
    ):
        golds.write_text(content)
        with pytest.raises(AimoError, match=told):
            traces.read_gold_file(golds)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["metrics.json", "inference/majority.json", "inference/solutions.json", "sft/log.jsonl"],
)
def test_a_broken_file_of_a_run_is_named_by_its_report(tmp_path, monkeypatch, name):
    run = make_run(tmp_path / "run", ["sft"], heldout=True, solutions=[ANSWERED])
    monkeypatch.setattr("aimo.report.plots.image", lambda _: page.Html(""))  # drawing takes the time
    refuses_breaks(run / name, 0 if name == "sft/log.jsonl" else None, lambda: pages.write_run(run), 9)


def test_a_broken_run_does_not_end_another_and_is_named_in_the_list(tmp_path):
    for name, content in (
        ("cut", '{"stages": {"sft'),
        ("list", "[]"),
        ("text", '{"stages": {"inference": 1}}'),
    ):
        make_run(tmp_path / name)
        (tmp_path / name / "report.html").touch()
        (tmp_path / name / "metrics.json").write_text(content)
    make(tmp_path / "good", np.ones((2, 2), bool))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/evaluation.html").touch()
    (tmp_path / "bad/evaluation.json").write_bytes(b"\xff{")
    pages.write_index(tmp_path / "good", tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert text.count("metrics.json cannot be read") == 3 and "x 100.0 %" in text
    assert text.count("evaluation.json cannot be read") == 1


def test_runs_that_end_together_are_all_in_the_list(tmp_path):
    """Each writes its page and then the list, while others do."""

    def end(name):
        (tmp_path / name).mkdir()
        (tmp_path / name / "evaluation.html").touch()
        pages.write_index(tmp_path / name, tmp_path)

    names = [f"run-{number}" for number in range(12)]
    with ThreadPoolExecutor(12) as threads:
        list(threads.map(end, names))
    text = (tmp_path / "index.html").read_text()
    assert all(f'href="./{name}/evaluation.html"' in text for name in names)
    assert not list(tmp_path.glob(".*"))


def test_a_page_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "a-file").touch()
    with pytest.raises(AimoError, match=r"page .*/a-file/report.html: Not a directory; make room or unlock"):
        pages.page.write_page(tmp_path / "a-file/report.html", "t", "", [])
