"""Notebooks in JupyterLab and a real browser, as a person uses them."""

import contextlib
import json
import re
import shutil
import subprocess

import pytest
from browser import Lab
from conftest import AIMO, settings, wait_for

from aimo.inference.storage import read_lines

FEW = ["data.sft.rows=64", "data.grpo.rows=8", "data.heldout.rows=4", "data.grpo.test_split=0"]
FEW += ["sft.max_steps=24", "sft.save_steps=4", "sft.batch_size=16"]
FEW += ["grpo=null", "model.backend=transformers"]
STEP = re.compile(r"sft: (\d+) of 24")
# Training waits for the browser, however busy the machine is: a file has the steps that it may do, all drawn.
PACE = """
import pathlib, time
from aimo.run import progress
from aimo.train import callbacks
callbacks.LEAST_S, callbacks.SHARE, progress.BAR_S = 0, float("inf"), 0  # each step draws

def wait(self, args, state, control, **_):
    while state.global_step >= int(pathlib.Path(FILE).read_text() or 0):
        time.sleep(0.02)

callbacks.Live.on_step_begin = wait
"""

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose SFT was done by `aimo run`, without a stop."""
    folder = tmp_path_factory.mktemp("unstopped") / "run"
    command = ["run", "--profile", "tiny", "--run-dir", str(folder), "--until", "sft", *settings(FEW)]
    subprocess.run([str(AIMO), *command], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with contextlib.closing(Lab(tmp_path_factory.mktemp("lab"))) as lab:
        yield lab


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run with its data and without its SFT."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("sft", "report.html", "*.ipynb"))
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["stages"]["sft"]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture
def pace(tmp_path):
    """The file that says how many steps training may do."""
    (tmp_path / "pace").write_text("0")
    return tmp_path / "pace"


def load(notebook, pace):
    """Run the cells before the one that trains."""
    notebook.write("sft.worst_tokens(", PACE.replace("FILE", repr(str(pace))))
    for part in ("profile =", "runs.begin(", "models.load_model(", "sft.worst_tokens("):
        assert "Traceback" not in notebook.run(part)


def is_one_line(text):
    return len(text.strip().splitlines()) == 1 and "Traceback" not in text


def test_training_shows_itself_stops_goes_on_and_takes_a_change(lab, run, trained, pace):
    notebook = lab.open("02_format_sft", "story", run_dir=str(run), overrides=FEW)
    load(notebook, pace)

    # The bar and the plots change while the cell runs; the square stops it with one line.
    cell = notebook.start("sft.train_sft(")
    steps, plots = set(), set()

    def has_changed():
        steps.update(map(int, STEP.findall(notebook.shows(cell))))
        plots.add(tuple(notebook.plots(cell)))
        pace.write_text(str(min(20, max(steps, default=0) + 1)))  # of 24
        return len(steps) > 5 and len(plots) > 2  # no plot, one, another

    wait_for(has_changed, 300)
    notebook.stop()
    said = notebook.wait(cell)
    (line,) = [line for line in said.splitlines() if "stopped after step" in line]
    stopped, going_on = map(int, re.findall(r"step (\d+)", line))
    assert max(steps) <= stopped < 24 and stopped - 4 <= going_on <= stopped
    assert "Traceback" not in said and "site-packages" not in said
    assert notebook.plots(cell), "the plots so far are gone"
    pace.write_text("24")

    # Run again, twice, and to the end: the figures are those of a run that nobody stopped.
    notebook.tells("sft.train_sft(", f"Continuing from checkpoint-{going_on}.")
    assert "Traceback" not in notebook.run("sft.train_sft(")
    drawn = notebook.plots(cell)
    assert len({*drawn}) == len(drawn) > 1, "the plots stand there twice"
    for part in ("after = models.complete(", "trainers.finish(", "trainers.finish("):
        assert "Traceback" not in notebook.run(part)
    losses = [[r["loss"] for r in read_lines(x / "sft/log.jsonl") if "loss" in r] for x in (run, trained)]
    assert len(losses[0]) == 24 and losses[0] == losses[1]
    models = [(x / "sft/model/model.safetensors").read_bytes() for x in (run, trained)]
    assert models[0] == models[1]
    assert (run / "report.html").exists()

    # Another value: one line that says what to set here, which does it.
    notebook.write("profile =", "overrides = [*overrides, 'sft.learning_rate=5e-4']")
    notebook.run("profile =")
    said = notebook.run("runs.begin(")
    assert is_one_line(said) and "sft.learning_rate" in said and "redo = True" in said
    notebook.write("profile =", "redo = True")
    notebook.run("profile =")
    notebook.tells("runs.begin(", "learning_rate: 0.0005")
    assert not (run / "sft/model").exists()


def test_two_notebooks_of_a_run_take_turns(lab, run, tmp_path, pace):
    one, two = (lab.open("02_format_sft", name, run_dir=str(run), overrides=FEW) for name in ("one", "two"))
    for notebook in (one, two):  # a notebook whose cells have ended keeps no other out
        notebook.run("profile =")
        notebook.tells("runs.begin(", f"run: {run}")
    said = one.run("sft.train_sft(")
    assert is_one_line(said) and "is not defined: run this notebook's cells from the first one on" in said
    load(one, pace)
    cell = one.start("sft.train_sft(")
    wait_for(lambda: STEP.search(one.shows(cell)), 100)
    said = two.run("runs.begin(")
    assert is_one_line(said) and "is working in it" in said
    one.stop()
    assert "stopped after step" in one.wait(cell)
    two.tells("runs.begin(", f"run: {run}")

    # The other one may have done the stage again meanwhile: what this one has in memory no longer fits.
    said = one.run("sft.train_sft(")
    assert is_one_line(said) and "has worked in it since" in said and "again from the first one" in said
    one.tells("runs.begin(", f"run: {run}")

    two.write("profile =", f"run_dir = {str(tmp_path / 'other')!r}")
    two.run("profile =")
    said = two.run("runs.begin(")
    assert is_one_line(said) and "run notebooks/01_data_prep.ipynb first" in said
