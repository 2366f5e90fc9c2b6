"""Public reports of the area: notebooks."""

import json
import shutil

import pytest
from conftest import ROOT

from aimo import pipeline
from aimo.inference.errors import AimoError
from aimo.run import runs


def E01(case, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    path = tmp_path / "notebooks" / "01_data_prep.ipynb"
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        cell["metadata"].pop("tags", None)
    path.write_text(json.dumps(notebook))
    monkeypatch.setattr(pipeline, "ROOT", tmp_path)
    with pytest.raises(AimoError, match=r"01_data_prep.ipynb: 0 .*cells have the tag `parameters`"):
        pipeline.run_profile("tiny", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def E03(case):
    override = case["input"].split()[-1]
    run = runs.begin("data", "tiny", "run", override)
    assert run.profile.grpo.max_steps == 5
    runs.unlock(run.dir)


def E02v(case):
    with pytest.raises(AimoError) as e:
        runs.begin("data", "tiny", "run", [5])
    assert "'5'" in str(e.value)
