"""Rejection: which completions are kept."""

import json

import polars as pl
import pytest
from conftest import here

from aimo import config
from aimo.config import Reject
from aimo.data import distil, prepare, sources
from aimo.errors import AimoError
from aimo.report import pages


def rows(*samples):
    """A table as sources gives it, from (problem, answer, completion, verdict)."""
    columns = {"problem": pl.String, "answer": pl.String, "solution": pl.String, "correct": pl.Boolean}
    return pl.DataFrame(samples, columns, orient="row")


def of_sum(*texts):
    return rows(*((SUM, "2", text, None) for text in texts))


def kept(table, **keys):
    return distil.reject(table, Reject(**keys)).kept["generation"].to_list()


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SUM = "1 + 1?"


def test_a_completion_is_judged_by_its_answer_whatever_its_column_says():
    table = rows(
        (SUM, "2", "\\boxed{3}", True),
        (SUM, "2", "so \\boxed{2}", None),
        (SUM, "2", "as \\boxed{2.0}", True),
        (SUM, "2", "or \\boxed{2}", False),
        (SUM, "2", "it is two", True),
    )
    chosen, dropped, _ = distil.reject(table, Reject())
    assert chosen["generation"].to_list() == ["so \\boxed{2}", "as \\boxed{2.0}"]
    assert chosen["pass_rate"].to_list() == [0.4, 0.4] and chosen["samples"].to_list() == [5, 5]
    assert dropped == {"another answer": 1, "unfinished, or marked wrong": 1, "no final answer": 1}


def test_a_cap_takes_the_first_the_shortest_or_the_most_different():
    texts = ["we add one and one \\boxed{2}", "we add one and then one \\boxed{2}", "two pens \\boxed{2}"]
    table = of_sum(*texts)
    assert kept(table, max_per_problem=1) == texts[:1]
    assert kept(table, max_per_problem=1, prefer="shorter") == texts[2:]
    assert kept(table, max_per_problem=2, prefer="shorter") == [texts[0], texts[2]]
    different = "a different way, namely two pens \\boxed{2}"
    assert kept(of_sum(*texts[:2], different), max_per_problem=2, prefer="diverse")[1] == different
    assert kept(of_sum(*texts[:1] * 3)) == texts[:1], "the same text is kept once"


def test_problems_that_are_too_easy_or_too_hard_are_dropped():
    table = rows(
        *(("easy", "2", f"{i} \\boxed{{2}}", None) for i in range(4)),
        *(("fair", "2", f"{i} \\boxed{{{i}}}", None) for i in range(4)),
    )
    assert distil.reject(table, Reject(pass_rate=(0.1, 0.9)))[0]["problem"].to_list() == ["fair"]


def test_a_set_without_answers_or_without_a_right_completion_is_refused():
    with pytest.raises(AimoError, match=r"no row has a gold answer.*--answer-column"):
        kept(rows((SUM, None, "\\boxed{2}", True)))
    with pytest.raises(AimoError, match=r"no completion is kept \(1 another answer\)"):
        kept(of_sum("\\boxed{3}"))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_what_is_kept_is_a_source(tmp_path, suffix):
    samples = [
        {"key": f"{i}", "sample": 0, "problem": f"{i} + 1?", "answer": str(i + 1), "complete": i < 4}
        | {"generation": f"\\boxed{{{max(2, i)}}}"}
        for i in range(6)
    ]
    out = tmp_path / f"kept.{suffix}"
    done = here("reject", lines(tmp_path / "samples.jsonl", samples), "--out", out)
    assert done.returncode == 0, done.stderr
    assert "2 dropped: unfinished" in done.stdout and "1 kept, of 1 problems" in done.stdout
    rows, _ = sources.load_source(config.Source(str(out), preset="aimo reject"), 0, "data.sft")
    assert rows.select("problem", "answer", "solution", "correct", "pass_rate").rows() == [
        ("1 + 1?", "2", "\\boxed{2}", True, 1.0)
    ]


def test_what_is_kept_does_not_depend_on_the_order_in_which_samples_ended(tmp_path):
    samples = [
        {"key": key, "sample": i, "problem": f"{key} + 1?", "answer": "2", "generation": f"{i}: \\boxed{{2}}"}
        for key in "ba"
        for i in range(11)
    ]
    written = []
    for order in (samples, samples[::-1]):
        path = lines(tmp_path / "samples.jsonl", [sample | {"complete": True} for sample in order])
        table, _ = sources.load_source(config.Source(str(path), preset="aimo distil"), 0, "distil")
        written.append(distil.reject(table, Reject(max_per_problem=3)).kept.to_dicts())
    assert written[0] == written[1]
    firsts = [f"{i}: \\boxed{{2}}" for i in range(3)]
    assert [row["generation"] for row in written[0]] == 2 * firsts
    assert [row["problem"][0] for row in written[0]] == ["a"] * 3 + ["b"] * 3


def test_a_source_whose_solutions_are_named_needs_no_other_column_of_aimo_distil(tmp_path):
    path = lines(tmp_path / "mine.jsonl", [{"problem": SUM, "answer": "2", "text": "\\boxed{2}"}])
    done = here("reject", path, "--solution-column", "text", "--out", tmp_path / "kept.jsonl")
    assert done.returncode == 0 and "1 kept" in done.stdout, done.stderr


def test_the_source_distil_is_what_the_stage_has_kept(tmp_path):
    source = ["distil={source: builtin, rows: 1}", "data.sft={source: distil, verbatim: true}"]
    profile = config.load("tiny", source)
    (tmp_path / "distil").mkdir()
    tags = "<start_working_out>1 + 1 = 2<end_working_out><SOLUTION>2</SOLUTION>"
    distil.write_kept(
        distil.reject(of_sum(tags), Reject(), profile.prompt.tags).kept, tmp_path / "distil/kept.jsonl"
    )
    loaded = prepare.load_sets(profile, tmp_path).rows["sft"]
    assert loaded["solution"].to_list() == [tags] and loaded["correct"].to_list() == [True]
    with pytest.raises(AimoError, match="the source distil needs a section distil"):
        config.load("tiny", source[1:])


@pytest.mark.slow
def test_the_page_of_a_distillation_works_in_a_browser(tmp_path):
    from test_pages import check

    texts = ["so $1 + 1 = 2$ and \\boxed{2}", "\\boxed{2}", "\\boxed{3}"]
    asked = ((f"{i} $+ 1$?", "2", text, None) for i in range(3) for text in texts)
    found = distil.reject(rows(*asked), Reject())
    count = check(pages.write_distillation(tmp_path / "page.html", "teacher", found, (0.0, 1.0)), 500)
    assert not count["wide"] and count["tables"] == 2 and count["details"] == 6 and count["formulas"] >= 6
    headline = json.loads((tmp_path / "page.json").read_text())["headline"]
    assert headline == "6 completions kept, pass rate 0.667"
