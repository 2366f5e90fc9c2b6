import json

import jupytext
import pytest

from aimo.config import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_they_stand_in_the_order_of_the_road():
    assert [p.stem for p in NOTEBOOKS] == [
        "01_data_prep",
        "02_format_sft",
        "03_grpo",
        "03b_dpo",
        "04_inference",
    ]


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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_opens_with_prose_and_holds_no_logic(path):
    cells = jupytext.read(path).cells
    assert cells[0].cell_type == "markdown" and len(cells[0].source) > 300
    for cell in cells:
        if cell.cell_type == "code":
            assert not any(
                line.startswith(("def ", "for ", "while ", "if ", "class ", "try:", "!"))
                for line in cell.source.split("\n")
            )
