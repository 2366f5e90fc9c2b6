"""Builds a Kaggle kernel: one self-contained notebook with the whole of `aimo.inference` inside.

Out of scope: pushing it (`aimo.kaggle.kernel_runs`).
"""

import ast
import itertools
import json
import pprint
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import nbformat

from aimo import config
from aimo.config import ROOT
from aimo.errors import AimoError
from aimo.inference.settings import Settings

PACKAGE = "aimo.inference"
KERNELS = ROOT / "kernels"

INTRODUCTION = """\
# AIMO submission: many samples, one vote

Answers each question with a majority vote over many vLLM samples, behind Kaggle's inference server. In a
competition rerun the server starts at once and the model loads while it waits. Elsewhere the questions of
`test_csv` are answered through a local gateway that makes the same calls and the same checks, and
`submission.parquet` is written.

Attach as inputs: the competition, a model folder that `aimo run` made, and a dataset of wheels with vLLM. The
cells below are the package's own modules, written by `aimo kernel build submission`: change them there."""

PARAMETERS = """\
competition = "aimo3"  # aimo1, aimo2 or aimo3
model = "/kaggle/input/aimo-model/transformers/default/1"  # a model folder
test_csv = "/kaggle/input/ai-mathematical-olympiad-progress-prize-3/test.csv"
time_limit_s = 17400  # of the whole session: 4 h 50 min of the 5 h with a GPU
seed = 0
adapter = None  # a folder with a LoRA adapter for the model
# Over those that the model folder has (aimo.json, generation_config.json). Lines that begin with # show the
# other keys and their defaults.
settings = {
SETTINGS}"""

MAKE_PACKAGE = """\
from pathlib import Path

Path("aimo/inference").mkdir(parents=True, exist_ok=True)
Path("aimo/__init__.py").touch()"""

START = """\
from aimo.inference import startup

startup.read_ahead(model)  # in threads, while the rest goes on
with startup.step("wheels"):
    startup.install_wheels()
with startup.step("imports"):
    from aimo.inference import gateway"""

SERVE = """\
solutions = gateway.serve(competition, model, test_csv, time_limit_s, settings, adapter, seed)"""


def build(name: str, out: Path | None = None, profile: str | None = None) -> Path:
    """Write the notebook of the kernel `name` (a folder of kernels/) there or to `out`, and return its path.

    The `inference` section of a `profile` stands in its first code cell. The same sources give the same
    bytes. Raises AimoError when there is no such kernel, profile or folder.
    """
    written = config.load(profile).inference.written if profile else {}
    known = sorted(path.parent.name for path in KERNELS.glob("*/kernel-metadata.json"))
    if name not in known:
        raise AimoError(
            f"kernel {name!r} does not exist: use one of {', '.join(known)}, the folders of kernels/"
        )
    code_file = json.loads((KERNELS / name / "kernel-metadata.json").read_text())["code_file"]
    path = (out or KERNELS / name) / code_file
    if not path.parent.is_dir():
        raise AimoError(f"--out {out}: no such folder; make it first")
    nbformat.write(notebook(written), path)
    return path


def notebook(written: dict[str, Any]) -> Any:
    """Return the notebook: parameters with the settings that are `written`, the modules, and the call."""
    code = nbformat.v4.new_code_cell
    cells: list[Any] = [
        nbformat.v4.new_markdown_cell(INTRODUCTION),
        code(PARAMETERS.replace("SETTINGS", describe(written)), metadata={"tags": ["parameters"]}),
        nbformat.v4.new_markdown_cell("## The package"),
        code(MAKE_PACKAGE),
        *(code(f"%%writefile aimo/inference/{name}.py\n{text.rstrip()}") for name, text in modules()),
        nbformat.v4.new_markdown_cell("## Start"),
        code(START),
        nbformat.v4.new_markdown_cell("## Answer"),
        code(SERVE),
    ]
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernelspec})


def describe(written: dict[str, Any]) -> str:
    """Return the entries of the settings as Python, each below a comment that says what it is.

    Keys that are not written are comments with their defaults.
    """
    lines: list[str] = []
    defaults = asdict(Settings())
    for key, meaning in meanings().items():
        value = pprint.pformat(written.get(key, defaults[key]), width=96, sort_dicts=False)
        entry = f'"{key}": {value},'
        lines += textwrap.wrap(meaning, 104, initial_indent="# ", subsequent_indent="# ")
        lines += entry.splitlines() if key in written else [f"# {line}" for line in entry.splitlines()]
    return "".join(f"    {line}\n" for line in lines)


def meanings() -> dict[str, str]:
    """Return the docstring of each key of `Settings`, in one line."""
    source = ast.parse((ROOT / "src/aimo/inference/settings.py").read_text())
    (body,) = (
        node.body for node in source.body if isinstance(node, ast.ClassDef) and node.name == "Settings"
    )
    found = {}
    for key, text in itertools.pairwise(body):
        if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name):
            said = text.value if isinstance(text, ast.Expr) else None
            assert isinstance(said, ast.Constant), f"{key.target.id} has no docstring"
            found[key.target.id] = " ".join(str(said.value).split())
    return found


def modules() -> Iterator[tuple[str, str]]:
    """Yield name and text of each module of the package, after those that it imports."""
    folder = ROOT.joinpath("src", *PACKAGE.split("."))
    texts = {path.stem: path.read_text() for path in sorted(folder.glob("*.py"))}
    order = TopologicalSorter({name: sorted(imported(text) & texts.keys()) for name, text in texts.items()})
    for name in order.static_order():
        yield name, texts[name]


def imported(text: str) -> set[str]:
    """Return the names that a module's text imports from the package, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{PACKAGE}."):
            names.add(node.module.split(".")[2])
    return names
