import json

import jupytext
import pytest

from aimo.config import ROOT
from aimo.config.profile import STAGES

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_they_are_those_of_the_table_of_stages_in_its_order():
    assert [path.stem for path in NOTEBOOKS] == [stage.notebook for stage in STAGES.values()]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_pair_is_equal(path):
    def cells(notebook):
        return [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in notebook.cells]

    assert cells(jupytext.read(path)) == cells(jupytext.read(path.with_suffix(".py"))), "run `make sync`"


@pytest.mark.parametrize("path", [*NOTEBOOKS, *(ROOT / "kernels").glob("*/*.ipynb")], ids=lambda p: p.stem)
def test_a_committed_notebook_has_no_outputs_and_one_parameters_cell(path):
    cells = json.loads(path.read_text())["cells"]
    assert not any(c.get("outputs") or c.get("execution_count") for c in cells)
    assert sum("parameters" in c["metadata"].get("tags", []) for c in cells) == 1
