"""The kernels: built from the sources; the submission alone in an empty folder."""

import inspect
import json
import re
from dataclasses import fields

import nbformat
import papermill
import polars as pl
import pytest

from aimo import config
from aimo.config import ROOT
from aimo.errors import AimoError
from aimo.inference import gateway
from aimo.inference.competitions import COMPETITIONS
from aimo.inference.settings import Settings
from aimo.kaggle import kernels

BUILT = ROOT / "kernels" / "submission" / "aimo-submission.ipynb"
KERNELS = ["wheels", "train", "submission", "evaluate"]


def parameters(notebook):
    """The text of the cell with the parameters."""
    cells = nbformat.read(notebook, 4).cells
    return next(c.source for c in cells if "parameters" in c.metadata.get("tags", []))


@pytest.mark.parametrize("name", KERNELS)
def test_the_committed_kernel_is_what_the_sources_build(name, tmp_path):
    fresh = kernels.build(name, tmp_path)
    built = kernels.FOLDER / name / fresh.name
    assert fresh.read_bytes() == built.read_bytes(), "run `aimo kernel build`"


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_readable_on_kaggle(name):
    """Contents and settings first, files folded, no path of this machine, and not more than Kaggle takes."""
    path = next((kernels.FOLDER / name).glob("*.ipynb"))
    assert path.stat().st_size <= 1_000_000 and str(ROOT) not in path.read_text()
    first, *cells = nbformat.read(path, 4).cells
    links = re.findall(r"\[([^]]+)\]\(#([^)]+)\)", first.source.splitlines()[-1])
    headings = [c.source.splitlines()[0] for c in cells if c.cell_type == "markdown"]
    assert [f"## {text}" for text, _ in links] == headings and headings[0] == "## Settings"
    assert all(text.replace(" ", "-") == anchor for text, anchor in links)
    shipped = [c for c in cells if re.match("%%writefile (src|notebooks|requirements)", c.source)]
    assert shipped and all(c.metadata["_kg_hide-input"] for c in shipped)
    shown = [
        c for c in cells if c.cell_type == "code" and c not in shipped and "_kg_hide-input" not in c.metadata
    ]
    assert cells.index(shown[0]) < cells.index(shipped[0]) and "parameters" in shown[0].metadata.tags


def test_its_metadata_keeps_to_what_kaggle_accepts():
    meta = json.loads((BUILT.parent / "kernel-metadata.json").read_text())
    assert (BUILT.parent / meta["code_file"]).exists()
    assert len(meta["title"]) >= 5 and len(meta["id"].split("/")[1]) >= 5
    assert meta["title"].lower().replace(" ", "-") == meta["id"].split("/")[1], (
        "Kaggle makes the slug from the title"
    )
    assert meta["enable_internet"] is False and meta["kernel_type"] == "notebook"


def test_its_parameters_are_those_that_serve_takes():
    names: dict = {}
    exec(parameters(BUILT), {}, names)
    assert sorted(names) == sorted(inspect.signature(gateway.serve).parameters) and names["settings"] == {}


@pytest.mark.parametrize("name", ["aimo3-gpt-oss-120b", "aimo2-r1-14b-awq", "tiny"])
def test_a_profiles_settings_stand_in_its_first_cell_each_below_a_comment(tmp_path, name):
    built = kernels.build("submission", tmp_path, name)
    cell = parameters(built)
    names: dict = {}
    exec(cell, {}, names)
    assert names["settings"] == config.load(name).inference.written
    lines = cell.splitlines()
    for key in fields(Settings):
        (place,) = (i for i, line in enumerate(lines) if re.match(rf' +(# )?"{key.name}": ', line))
        assert re.match(r" +# \S", lines[place - 1])


def test_it_holds_every_module_of_the_package_after_those_it_imports():
    written = re.findall(
        r"^%%writefile src/aimo/inference/(\w+)\.py$",
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
    with pytest.raises(AimoError, match="use one of wheels, train, submission, evaluate"):
        kernels.build(name, tmp_path)
    assert not list(tmp_path.iterdir())


SERVER = """
import polars as pl

class AIMO3InferenceServer:
    def __init__(self, predict):
        self.predict = predict

    def serve(self):
        asked = pl.read_csv("hidden.csv").rows()
        rows = [self.predict(pl.Series([id_]), pl.Series([problem])) for id_, problem in asked]
        pl.concat(rows).write_parquet("submission.parquet")
"""


@pytest.mark.engine
@pytest.mark.parametrize("competition, rerun", [("aimo2", False), ("aimo3", True)])
def test_it_answers_with_a_public_model_alone_in_an_empty_folder(
    tmp_path, monkeypatch, public_model, competition, rerun
):
    """In a rerun Kaggle's server asks, else our own gateway; the settings are those of a profile."""
    profile = tmp_path / "public.yaml"
    inference = {"samples": 16, "max_tokens": 96, "temperature": 0.9, "user": "Q: {problem}"}
    profile.write_text(json.dumps({"model": {"base": str(public_model)}, "inference": inference}))
    built = kernels.build("submission", tmp_path, str(profile))
    empty, rules = tmp_path / "empty", COMPETITIONS[competition]
    (empty / "input" / rules.slug / "kaggle_evaluation").mkdir(parents=True)
    (empty / "input" / rules.slug / "kaggle_evaluation/aimo_3_inference_server.py").write_text(SERVER)
    monkeypatch.setenv("KAGGLE_INPUT", str(empty / "input"))
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1" if rerun else "")
    column = rules.problem_column
    questions = [
        {"id": "first", column: "What area of a 7 by 12 wall is not covered by a 4 by 3 door?"},
        {"id": "empty", column: ""},
        {"id": "long", column: "x + " * 2000},
    ]
    pl.DataFrame(questions).write_csv(empty / ("hidden.csv" if rerun else "test.csv"))
    parameters = {
        "competition": competition,
        "model": str(public_model),
        "test_csv": "test.csv",
        "time_limit_s": 3000,
    }
    executed = papermill.execute_notebook(
        built, tmp_path / "out.ipynb", parameters, cwd=empty, progress_bar=False, kernel_name="python3"
    )
    answers = dict(pl.read_parquet(empty / "submission.parquet")["id", "answer"].rows())
    assert answers == {"first": 72, "empty": 0, "long": 0}
    used = json.loads((empty / "settings.json").read_text())
    assert (used["temperature"], used["top_p"], used["user"]) == (0.9, 0.95, "Q: {problem}")
    outputs = [o for c in executed.cells for o in c.get("outputs", []) if o.output_type == "stream"]
    said = "".join(o.text for o in outputs if o.name == "stdout")
    assert "3 questions answered, 2 with the fallback 0" in said and "empty" in said and "do not fit" in said
    assert "temperature: 0.9" in said
    steps = ["wheels", "imports", "import of vLLM", "plan", "start of the engine", "first answer"]
    places = [re.search(rf"^{name}: .*\d", said, re.MULTILINE) for name in steps]
    begins = [place.start() for place in places if place]
    assert len(begins) == len(steps) and begins == sorted(begins)
    assert re.search(r"^weights: 0\.\d+ GB read into the page cache, \d+\.\d s$", said, re.MULTILINE)
    assert not [o.text for o in outputs if o.name == "stderr"]
