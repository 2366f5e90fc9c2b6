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


def git(folder, *arguments):
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def copied(to, *paths):
    """A repository with copies of some of the files."""
    for path in paths:
        (to / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to / path.relative_to(ROOT))
    git(to, "init", "-q")


def test_a_stages_notebook_is_equal_to_its_script_and_begins_with_the_cell_for_editors():
    assert [path.stem for path in NOTEBOOKS] == [stage.notebook for stage in STAGES.values()]
    first = set()
    for path in NOTEBOOKS:
        ours, script = (
            [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in jupytext.read(one).cells]
            for one in (path, path.with_suffix(".py"))
        )
        assert ours == script, "run `make sync`"
        first.add(next(source for kind, source, _ in ours if kind == "code"))
    (cell,) = first
    before = set(sys.path)
    exec(cell, {})
    assert set(sys.path) == before, "where aimo is installed, the cell does nothing"
    assert (ROOT / cell.rpartition("aimo-source/")[2].split('"')[0]).is_file()


@pytest.mark.parametrize("path", [*NOTEBOOKS, *(ROOT / "kernels").glob("*/*.ipynb")], ids=lambda p: p.stem)
def test_a_committed_notebook_has_no_outputs_and_one_parameters_cell(path):
    # As the next commit has it; outside of a checkout, as it is.
    added = git(ROOT, "show", f":{path.relative_to(ROOT)}")
    cells = json.loads(added.stdout if added.returncode == 0 else path.read_text())["cells"]
    assert not any(c.get("outputs") or c.get("execution_count") for c in cells)
    assert sum("parameters" in c["metadata"].get("tags", []) for c in cells) == 1


def test_what_running_a_notebook_changes_is_no_change_for_git(tmp_path):
    path = tmp_path / "notebooks/02_format_sft.ipynb"
    copied(tmp_path, ROOT / ".gitattributes", ROOT / "docs/clean.py", ROOT / path.relative_to(tmp_path))
    setup = [line for line in (ROOT / "Makefile").read_text().splitlines() if "git config filter" in line]
    subprocess.run(["sh", "-c", setup[0].strip().removeprefix("@")], cwd=tmp_path, check=True)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "x")
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        cell["metadata"] |= {"editable": True, "vscode": {"languageId": "python"}}
        if cell["cell_type"] == "code":
            printed = {"output_type": "stream", "name": "stdout", "text": "x"}
            cell |= {"execution_count": 3, "outputs": [printed]}
    notebook["metadata"] |= {"kernelspec": {"display_name": ".venv", "name": "python3"}, "language_info": {}}
    path.write_text(json.dumps(notebook))
    assert git(tmp_path, "add", ".").returncode == 0
    assert git(tmp_path, "status", "--porcelain").stdout == ""
    notebook["cells"][0]["source"] = "# Another title"
    path.write_text(json.dumps(notebook))
    assert git(tmp_path, "diff", "--stat").stdout.count("|") == 1, "a change of the text is one"


def test_a_fork_writes_its_address_where_editors_and_badges_need_it(tmp_path):
    texts = [*NOTEBOOKS, *(ROOT / "notebooks").glob("*.py"), ROOT / "docs/notebooks.md"]
    copied(tmp_path, ROOT / "Makefile", *ROOT.glob("README*.md"), *texts)
    git(tmp_path, "remote", "add", "origin", "git@github.com:me/mine.git")
    subprocess.run(["make", "-s", "-C", str(tmp_path), "online"], check=True)
    for text in (tmp_path.joinpath(path.relative_to(ROOT)).read_text() for path in texts):
        assert "OWNER/aimo" not in text and "https://github.com/me/mine" in text


@pytest.mark.parametrize("gpus", ["GPU 0: NVIDIA L4", ""])
def test_an_editors_image_gets_the_locked_packages_for_its_gpu(gpus, monkeypatch, capsys):
    asked, lock = [], ROOT / ("requirements.txt" if gpus else "requirements-cpu.txt")

    def run(command, **_):
        asked.append(command)
        if command[0] == "nvidia-smi" and not gpus:
            raise FileNotFoundError
        return subprocess.CompletedProcess(command, 0, stdout=gpus)

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    runpy.run_path(str(ROOT / "docs/online.py"))
    assert asked[-1][-1] == str(lock) and "--no-deps" in asked[-1] and lock.name in capsys.readouterr().out
    assert sys.path[0] == os.environ["PYTHONPATH"] == str(ROOT / "src")
    assert os.getcwd() == str(ROOT / "notebooks")
