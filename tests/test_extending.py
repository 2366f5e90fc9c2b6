"""docs/extending.md: each example is run as it stands."""

import re

import polars as pl
import pytest

from aimo.config import ROOT, Profile, reading
from aimo.config.profile import STAGES
from aimo.data.sources import PRESETS
from aimo.evaluation.benchmarks import BENCHMARKS
from aimo.inference.chat_format import OWN_FORMATS
from aimo.inference.competitions import COMPETITIONS
from aimo.rewards import REWARDS
from aimo.run.runs import is_finished, read_metrics

PAGE = (ROOT / "docs" / "extending.md").read_text()
TABLES = (PRESETS, BENCHMARKS, COMPETITIONS, OWN_FORMATS, REWARDS, STAGES)
SECTIONS = {text.partition("\n")[0]: text for text in PAGE.split("\n## ")[1:]}


def examples(section):
    """The Python fences of a section."""
    return re.findall(r"^```python\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder; the tables are put back after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIMO_VERBOSE", "1")  # a run would silence the libraries of this process
    monkeypatch.setattr(reading, "Profile", Profile)
    before = [dict(table) for table in TABLES]
    yield tmp_path
    for table, rows in zip(TABLES, before, strict=True):
        table.clear()
        table.update(rows)


@pytest.mark.parametrize("section", [name for name in SECTIONS if name != "A stage"])
def test_an_example_does_what_it_says(section, elsewhere):
    (example,) = examples(section)
    assert "assert" in example
    exec(example, {"__name__": "example"})


def test_a_stage_is_a_row_a_section_and_a_notebook(elsewhere):
    begin, notebook = examples("A stage")
    exec(begin, {"__name__": "example"})
    folder = elsewhere / "run"
    folder.mkdir()
    pl.DataFrame({"id": ["a", "b"], "answer": [3, 11]}).write_parquet(folder / "submission.parquet")
    parameters = {"profile": "tiny", "run_dir": str(folder)}
    parameters["overrides"] = ["data=null", "sft=null", "grpo=null", "count={largest: 10}"]
    exec(notebook, parameters)
    assert is_finished(folder, "count") and read_metrics(folder)["stages"]["count"]["counted"] == 1
    assert (folder / "count/answers.json").read_text() == '{"counted": 1}'
