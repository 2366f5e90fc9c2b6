import json

import nbformat
import papermill
import polars as pl
import pytest
from conftest import TINY

from aimo.config import ROOT
from aimo.kaggle import kernels

BUILT = ROOT / "kernels" / "submission" / "aimo-submission.ipynb"


def test_the_committed_kernel_is_what_the_sources_build(tmp_path):
    fresh = kernels.build("submission", tmp_path)
    assert fresh.read_bytes() == BUILT.read_bytes(), "run `make kernels`"


def test_its_metadata_keeps_to_what_kaggle_accepts():
    meta = json.loads((BUILT.parent / "kernel-metadata.json").read_text())
    assert (BUILT.parent / meta["code_file"]).exists()
    assert len(meta["title"]) >= 5 and len(meta["id"].split("/")[1]) >= 5
    assert meta["title"].lower().replace(" ", "-") == meta["id"].split("/")[1], (
        "Kaggle makes the slug from the title"
    )
    assert meta["enable_internet"] is False and meta["kernel_type"] == "notebook"


def test_its_parameters_are_the_five_of_the_road_and_the_engines_two():
    cell = next(c for c in nbformat.read(BUILT, 4).cells if "parameters" in c.metadata.get("tags", []))
    names = [line.split(" = ")[0] for line in cell.source.split("\n")]
    assert names == ["competition", "model", "test_csv", "samples", "time_limit_s", "adapter", "vllm"]


@pytest.mark.parametrize(
    "competition, column, high", [("aimo3", "problem", 99999), ("aimo2", "question", 999)]
)
def test_it_answers_a_test_file_alone_in_an_empty_folder(tmp_path, competition, column, high):
    questions = [
        {"id": "first", column: "What is the mean of 3, 4 and 5?"},
        {"id": "empty", column: ""},
        {"id": "long", column: "x + " * 2000},
    ]
    pl.DataFrame(questions).write_csv(tmp_path / "test.csv")
    parameters = {
        "competition": competition,
        "model": str(TINY),
        "test_csv": "test.csv",
        "samples": 4,
        "time_limit_s": 300,
    }
    executed = papermill.execute_notebook(
        BUILT, tmp_path / "out.ipynb", parameters, cwd=tmp_path, progress_bar=False, kernel_name="python3"
    )
    table = pl.read_parquet(tmp_path / "submission.parquet")
    assert table.columns == ["id", "answer"] and sorted(table["id"]) == ["empty", "first", "long"]
    assert table["answer"].is_between(0, high).all()
    said = "".join(
        o.text
        for c in executed.cells
        for o in c.get("outputs", [])
        if o.output_type == "stream" and o.name == "stdout"
    )
    assert "3 questions answered, 2 with the fallback 0" in said and "empty" in said and "do not fit" in said
    noise = "".join(
        o.text
        for c in executed.cells
        for o in c.get("outputs", [])
        if o.output_type == "stream" and o.name == "stderr"
    )
    assert not noise
