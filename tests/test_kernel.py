"""The submission kernel: built from the package, alone in an empty folder."""

import inspect
import json
import re
from dataclasses import fields

import nbformat
import papermill
import polars as pl
import pytest
from conftest import TINY

from aimo import config
from aimo.config import ROOT
from aimo.errors import AimoError
from aimo.inference import gateway
from aimo.inference.settings import Settings
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


def test_its_parameters_are_those_that_serve_takes():
    cell = next(c for c in nbformat.read(BUILT, 4).cells if "parameters" in c.metadata.get("tags", []))
    names: dict = {}
    exec(cell.source, {}, names)
    assert sorted(names) == sorted(inspect.signature(gateway.serve).parameters) and names["settings"] == {}


@pytest.mark.parametrize("name", ["aimo3-gpt-oss-120b", "aimo2-r1-14b-awq", "tiny"])
def test_a_profiles_settings_stand_in_its_first_cell_each_below_a_comment(tmp_path, name):
    built = kernels.build("submission", tmp_path, name)
    cell = nbformat.read(built, 4).cells[1].source
    names: dict = {}
    exec(cell, {}, names)
    assert names["settings"] == config.load(name).inference.written
    lines = cell.splitlines()
    for key in fields(Settings):
        (place,) = (i for i, line in enumerate(lines) if re.match(rf' +(# )?"{key.name}": ', line))
        assert re.match(r" +# \S", lines[place - 1])


def test_it_holds_every_module_of_the_package_after_those_it_imports():
    written = re.findall(
        r"^%%writefile aimo/inference/(\w+)\.py$",
        "\n".join(c.source for c in nbformat.read(BUILT, 4).cells),
        re.MULTILINE,
    )
    folder = ROOT / "src/aimo/inference"
    assert sorted(written) == sorted(path.stem for path in folder.glob("*.py"))
    for i, name in enumerate(written):
        later = "|".join(written[i + 1 :])
        text = (folder / f"{name}.py").read_text()
        assert not later or not re.search(
            rf"^ *from aimo\.inference(\.| import )({later})\b", text, re.MULTILINE
        )


@pytest.mark.parametrize("name", ["../kernels/submission", "submission/", ".", "", "nothing"])
def test_a_kernel_is_a_folder_of_kernels(name, tmp_path):
    with pytest.raises(AimoError, match="use one of submission"):
        kernels.build(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.engine
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
        "settings": {"samples": 4, "temperature": 0.9},
        "time_limit_s": 300,
    }
    executed = papermill.execute_notebook(
        BUILT, tmp_path / "out.ipynb", parameters, cwd=tmp_path, progress_bar=False, kernel_name="python3"
    )
    table = pl.read_parquet(tmp_path / "submission.parquet")
    assert table.columns == ["id", "answer"] and sorted(table["id"]) == ["empty", "first", "long"]
    assert table["answer"].is_between(0, high).all()
    assert json.loads((tmp_path / "settings.json").read_text())["temperature"] == 0.9
    outputs = [o for c in executed.cells for o in c.get("outputs", []) if o.output_type == "stream"]
    said = "".join(o.text for o in outputs if o.name == "stdout")
    assert "3 questions answered, 2 with the fallback 0" in said and "empty" in said and "do not fit" in said
    assert "temperature: 0.9" in said
    steps = ["wheels", "imports", "import of vLLM", "plan", "start of the engine", "first answer"]
    places = [re.search(rf"^{name}: .*\d", said, re.MULTILINE) for name in steps]
    assert all(places) and places == sorted(places, key=lambda place: place.start())
    assert re.search(r"^weights: 0\.\d+ GB read into the page cache, \d+\.\d s$", said, re.MULTILINE)
    assert not [o.text for o in outputs if o.name == "stderr"]
