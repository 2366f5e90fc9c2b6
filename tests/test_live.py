"""A notebook in its kernel, by hand: bars, stops and mistakes in one line, locks, the report.

`test_browser` trains in one too, where there is a browser.
"""

import json
import os
import re
import time
from pathlib import Path

import pytest
from conftest import ROOT, wait_for
from jupyter_client.manager import start_new_kernel

FEW = ["data.sft.rows=64", "data.grpo.rows=8", "data.heldout.rows=4", "data.grpo.test_split=0"]
FEW += ["sft.max_steps=120", "sft.save_steps=4", "sft.batch_size=16"]
FEW += ["grpo=null", "model.backend=transformers"]

# A stop while Python collects garbage, where no exception can rise; test_browser presses the button.
STOP_IN_A_CALLBACK = """
import gc, os, pathlib, signal
def stop(phase, info):
    if pathlib.Path({0!r}).exists():
        gc.callbacks.remove(stop)
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
gc.callbacks.append(stop)
"""


class Kernel:
    """A notebook's kernel, which runs one cell after the other."""

    def __init__(self):
        self.manager, self.client = start_new_kernel(cwd=str(ROOT / "notebooks"))

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def run(self, code, stop=False, see=lambda kind, content: None):
        """The messages of a cell, which may be interrupted when it begins; `see` gets each as it comes."""
        sent, found = self.client.execute(code), []
        while True:
            message = self.client.get_iopub_msg(timeout=300)
            if message["parent_header"].get("msg_id") != sent:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                return found
            found.append((kind, content))
            see(kind, content)
            if stop and kind == "execute_input":
                time.sleep(1)
                self.manager.interrupt_kernel()

    def printed(self, code, **how):
        messages = self.run(code, **how)
        assert not errors(messages)
        return "".join(content["text"] for kind, content in messages if kind == "stream")


@pytest.fixture
def start():
    """Start a kernel; each ends with the test."""
    kernels = []
    yield lambda: kernels.append(Kernel()) or kernels[-1]
    for kernel in kernels:
        kernel.close()


def errors(messages):
    return [content for kind, content in messages if kind == "error"]


def texts(messages):
    """What the updated displays of a cell showed, one after the other."""
    return [c["data"].get("text/html", "") for kind, c in messages if kind == "update_display_data"]


@pytest.mark.train
def test_a_training_cell_shows_itself_stops_in_one_line_and_goes_on(start, tmp_path):
    def cells(name):
        found = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
        codes = ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]
        codes[1] += f"\nrun_dir, overrides = {str(tmp_path / 'run')!r}, {FEW}"
        return codes

    data = start()
    for cell in cells("01_data_prep"):
        assert not errors(data.run(cell))
    sft, before, seen = start(), cells("02_format_sft"), []
    place = next(i for i, cell in enumerate(before) if "train_sft(" in cell)
    for cell in before[:place]:
        assert not errors(sft.run(cell))

    def stop_after_ten(kind, content):
        if kind == "update_display_data" and (found := re.search(r"step (\d+) of 120", str(content))):
            seen.append(int(found[1]))
        if seen and seen[-1] >= 10:
            (tmp_path / "stop").touch()

    sft.run(STOP_IN_A_CALLBACK.format(str(tmp_path / "stop")))
    (error,) = errors(sft.run(before[place], see=stop_after_ten))
    assert len(error["traceback"]) == 1 and "\n" not in error["traceback"][0]
    stopped, going_on = map(int, re.findall(r"step (\d+)", error["evalue"]))
    assert 10 <= stopped <= 120 and stopped - 4 <= going_on <= stopped
    assert seen == sorted(seen) and len(set(seen)) > 3, "the bar does not move"
    messages = sft.run(before[place])
    assert not errors(messages) and f"Continuing from checkpoint-{going_on}." in str(messages)
    assert "step 120 of 120" in str(texts(messages))
    sft.run("from aimo.train import live\nlive.COUNT_S = 0")
    assert texts(sft.run(before[place + 1])) == [], "a cell that samples later shows training's bar again"


SAMPLING = """
import asyncio, sys
sys.path.insert(0, TESTS)
from scripted import Scripted
from aimo.evaluation.scores import sample_rows
from aimo.inference.settings import Prompt
from aimo.run import runs

run = runs.begin("data", "tiny", RUN)
rows = [{"prompt": [{"role": "user", "content": f"<b>{i}</b>"}], "answer": str(i % 2)} for i in range(8)]

async def write(number, prompt):
    await asyncio.sleep(0.2 * (number % 16))
    return "<end_working_out><SOLUTION>1</SOLUTION>\x03"

engine = Scripted(write)
engine.encode = engine.tokenizer.encode

def measure():
    return sample_rows(engine, rows, Prompt(), 2, 0, run.progress)
"""


def test_sampling_shows_a_bar_with_pass_at_1_so_far_below_the_cell_that_a_person_runs(start, tmp_path):
    notebook = start()
    begin = SAMPLING.replace("TESTS", repr(str(ROOT / "tests"))).replace("RUN", repr(str(tmp_path / "r")))
    assert not errors(notebook.run(begin))
    for _ in range(2):  # each time below its own cell
        messages = notebook.run("measured = measure()")
        assert not errors(messages)
        shown = texts(messages)
        steps = [int(found[1]) for text in shown if (found := re.search(r"data: (\d+) of 16", text))]
        assert len(steps) >= 3 and steps == sorted(set(steps))
        assert any("left; pass@1 0." in text and " so far</div>" in text for text in shown)
        assert shown[-1] == "", "the bar goes when all is done"
    assert notebook.printed("print(measured.metrics()['pass@1'])") == "0.5\n"


AGAIN = """
from aimo.inference import engine
from aimo.report import pages
from aimo.run import runs

class Fake:
    def close(self):
        print("closed")

old = Fake()
engine.STARTED.add(old)
"""


def test_a_notebook_by_hand_says_where_it_works_and_with_what_and_leaves_a_report(start):
    folder = Path(os.environ["AIMO_RUNS"]) / "live-by-hand"
    notebook = start()
    notebook.run(AGAIN)
    # One line, no frames: a first cell that is refused, a cell whose name none has made; not a function's.
    (error,) = errors(notebook.run("run = runs.begin('data', 'lacking')"))
    assert "lacking" in error["evalue"] and len(error["traceback"]) == 1
    said = notebook.printed("run.folder")
    assert said == "name 'run' is not defined: run this notebook's cells from the first one on.\n"
    # A relative folder starts at the repository, not at the notebook's own folder.
    said = notebook.printed(f"run = runs.begin('data', 'tiny', {os.path.relpath(folder, ROOT)!r})")
    assert f"run: {os.path.normpath(folder)}" in said and "heldout: {split: heldout, rows: 200}" in said
    assert "closed" in said, "an engine of this cell, run before, would keep its memory"
    said = notebook.printed("run.finish(rows=1)\npages.write_by_hand(run.dir)")
    assert "report.html" in said and (folder / "report.html").is_file()
    assert "live-by-hand/report.html" in (folder.parent / "index.html").read_text()

    said = notebook.printed("import time\ntime.sleep(60)", stop=True)
    assert said == "Stopped. Run the cell again; what was saved is kept.\n"
    (error,) = errors(notebook.run("def f():\n    return lacking\nf()"))
    assert len(error["traceback"]) > 1


def test_a_cell_that_works_in_a_run_keeps_others_out_and_its_end_does_not(start, tmp_path):
    begin = f"from aimo.run import runs\nrun = runs.begin('data', 'tiny', {str(tmp_path / 'run')!r})"
    one, two = start(), start()
    assert not errors(one.run(begin)) and not errors(one.run("run.folder")) and not errors(two.run(begin))
    (error,) = errors(one.run("run.folder"))  # the other one may have done its stage again
    assert "has worked in it since; run this notebook's cells again" in error["evalue"]
    assert len(error["traceback"]) == 1
    assert not errors(one.run(begin))
    one.client.execute(f"run.folder\nopen({str(tmp_path / 'x')!r}, 'w')\nimport time\ntime.sleep(60)")
    wait_for((tmp_path / "x").exists)
    (error,) = errors(two.run(begin))
    assert "is working in it; wait for it" in error["evalue"] and len(error["traceback"]) == 1
    one.manager.interrupt_kernel()
    wait_for(lambda: not errors(two.run(begin)), 20)
