"""The notebooks: those of the table of stages, paired, without outputs, with one cell of parameters."""

import json
import os
import runpy
import shutil
import subprocess
import sys

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
    # As the next commit has it; outside of a checkout, as it is.
    added = git(ROOT, "show", f":{path.relative_to(ROOT)}")
    cells = json.loads(added.stdout if added.returncode == 0 else path.read_text())["cells"]
    assert not any(c.get("outputs") or c.get("execution_count") for c in cells)
    assert sum("parameters" in c["metadata"].get("tags", []) for c in cells) == 1


def git(folder, *arguments):
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_git_sees_no_change_in_a_notebook_that_was_run(tmp_path):
    for name in (".gitattributes", "docs/clean.py", "notebooks/02_format_sft.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    git(tmp_path, "init", "-q")
    setup = [line for line in (ROOT / "Makefile").read_text().splitlines() if "git config filter" in line]
    subprocess.run(["sh", "-c", setup[0].strip().removeprefix("@")], cwd=tmp_path, check=True)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "x")
    path = tmp_path / "notebooks/02_format_sft.ipynb"
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        cell["metadata"] |= {"editable": True, "vscode": {"languageId": "python"}}
        if cell["cell_type"] == "code":
            cell |= {
                "execution_count": 3,
                "outputs": [{"output_type": "stream", "name": "stdout", "text": "x"}],
            }
    notebook["metadata"] |= {"kernelspec": {"display_name": ".venv", "name": "python3"}, "language_info": {}}
    path.write_text(json.dumps(notebook))
    assert git(tmp_path, "add", ".").returncode == 0
    assert git(tmp_path, "status", "--porcelain").stdout == ""
    notebook["cells"][0]["source"] = "# Another title"
    path.write_text(json.dumps(notebook))
    assert git(tmp_path, "diff", "--stat").stdout.count("|") == 1, "a change of the text is one"


def test_every_notebook_begins_with_the_same_cell_for_editors_that_open_it_alone():
    first = {next(c.source for c in jupytext.read(path).cells if c.cell_type == "code") for path in NOTEBOOKS}
    (cell,) = first
    before = set(sys.path)
    exec(cell, {})
    assert set(sys.path) == before, "where aimo is installed, the cell does nothing"
    assert (ROOT / cell.rpartition("aimo-source/")[2].split('"')[0]).is_file()


@pytest.mark.parametrize("origin", ["git@github.com:me/mine.git", "https://github.com/me/mine"])
def test_a_fork_writes_its_address_where_editors_and_badges_need_it(origin, tmp_path):
    texts = [*NOTEBOOKS, *(ROOT / "notebooks").glob("*.py"), ROOT / "docs/notebooks.md"]
    for path in (ROOT / "Makefile", *ROOT.glob("README*.md"), *texts):
        (tmp_path / path.relative_to(ROOT)).parent.mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    git(tmp_path, "init", "-q")
    git(tmp_path, "remote", "add", "origin", origin)
    subprocess.run(["make", "-s", "-C", str(tmp_path), "online"], check=True)
    for text in (tmp_path.joinpath(path.relative_to(ROOT)).read_text() for path in texts):
        assert "OWNER/aimo" not in text and "https://github.com/me/mine" in text


@pytest.mark.parametrize(
    ("gpus", "lock"), [("GPU 0: NVIDIA L4", "requirements.txt"), ("", "requirements-cpu.txt")]
)
def test_an_editors_image_gets_the_locked_packages_for_its_gpu(gpus, lock, tmp_path, monkeypatch, capsys):
    asked = []

    def run(command, **_):
        asked.append(command)
        if command[0] == "nvidia-smi" and not gpus:
            raise FileNotFoundError
        return subprocess.CompletedProcess(command, 0, stdout=gpus)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    runpy.run_path(str(ROOT / "docs/online.py"))
    assert asked[-1][-1] == str(ROOT / lock) and "--no-deps" in asked[-1]
    assert sys.path[0] == os.environ["PYTHONPATH"] == str(ROOT / "src") and os.getcwd() == str(
        ROOT / "notebooks"
    )
    assert lock in capsys.readouterr().out
