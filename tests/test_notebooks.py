"""The notebooks: those of the table of stages, paired, without outputs, with one cell of parameters."""

import json

import jupytext
import pytest
from conftest import ROOT

from aimo.config.profile import STAGES

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_a_stages_notebook_is_equal_to_its_script():
    assert [path.stem for path in NOTEBOOKS] == [stage.notebook for stage in STAGES.values()]
    for path in NOTEBOOKS:
        pair = [
            [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in jupytext.read(one).cells]
            for one in (path, path.with_suffix(".py"))
        ]
        assert pair[0] == pair[1], "run `make sync`"


@pytest.mark.parametrize("path", [*NOTEBOOKS, *(ROOT / "kernels").glob("*/*.ipynb")], ids=lambda p: p.stem)
def test_a_committed_notebook_has_no_outputs_and_one_parameters_cell(path):
    cells = json.loads(path.read_text())["cells"]
    assert not any(c.get("outputs") or c.get("execution_count") for c in cells)
    assert sum("parameters" in c["metadata"].get("tags", []) for c in cells) == 1
