"""Build the Kaggle kernel: one self-contained notebook with the modules it needs inside, and its metadata.

Out of scope: pushing, which the kaggle client does (`make push`).
"""

import json
from pathlib import Path
from typing import Any

import nbformat

from aimo.config import ROOT

MODULES = [
    "__init__",
    "errors",
    "settings",
    "answers",
    "voting",
    "timebank",
    "confinement",
    "sandbox",
    "engine",
    "tools",
    "solver",
    "gateway",
]

INTRODUCTION = """\
# AIMO submission: many samples, one vote

Answers each question with a majority vote over many vLLM samples, behind Kaggle's inference server. In a competition
rerun the server starts at once and the model loads while it waits. Elsewhere the questions of `test_csv` are answered
through a local gateway that makes the same calls and the same checks, and `submission.parquet` is written.

Attach as inputs: the competition, a model folder that `aimo run` made, and a dataset of wheels with vLLM. The cells below
are the package's own modules, written here by `aimo kernel build submission`; change them there, not here."""

PARAMETERS = """\
competition = "aimo3"  # aimo2 or aimo3
model = "/kaggle/input/aimo-model/transformers/default/1"  # a folder with weights, tokenizer and chat template
test_csv = "/kaggle/input/ai-mathematical-olympiad-progress-prize-3/test.csv"
samples = 16  # streams a question
time_limit_s = 17400  # of the whole session: 4 h 50 min of the 5 h with a GPU
adapter = None  # a folder with a LoRA adapter for the model
vllm = {}  # engine arguments, such as {"tensor_parallel_size": 2} for 2 x T4"""

PACKAGE = """\
from pathlib import Path

Path("aimo/inference").mkdir(parents=True, exist_ok=True)
Path("aimo/__init__.py").touch()"""

SERVE = """\
from aimo.inference import gateway

solutions = gateway.serve(competition, model, test_csv, samples, time_limit_s, adapter, vllm)"""


def build(name: str, out: Path | None = None) -> Path:
    """Write the kernel's notebook to kernels/NAME (or `out`) and return its path; the same sources give the same bytes."""
    cells: list[Any] = [
        nbformat.v4.new_markdown_cell(INTRODUCTION),
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_markdown_cell("## The package"),
        nbformat.v4.new_code_cell(PACKAGE),
        *(
            nbformat.v4.new_code_cell(f"%%writefile aimo/inference/{module}.py\n{source(module)}")
            for module in MODULES
        ),
        nbformat.v4.new_markdown_cell("## Answer"),
        nbformat.v4.new_code_cell(SERVE),
    ]
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    notebook = nbformat.v4.new_notebook(
        cells=cells,
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    folder = out or ROOT / "kernels" / name
    code_file = json.loads((ROOT / "kernels" / name / "kernel-metadata.json").read_text())["code_file"]
    path = folder / code_file
    nbformat.write(notebook, path)
    return path


def source(module: str) -> str:
    """A module's text."""
    return (ROOT / "src/aimo/inference" / f"{module}.py").read_text().rstrip()
