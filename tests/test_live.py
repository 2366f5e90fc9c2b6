"""A notebook by hand: training shows itself, stops with one line, goes on, and can be done again."""

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


class Notebook:
    """A notebook whose code cells are run one by one in a kernel, as a browser does."""

    def __init__(self, name, **parameters):
        cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
        self.cells = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        self.cells[1] += "\n" + "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
        self.manager, self.client = start_new_kernel(cwd=str(ROOT / "notebooks"))

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def run(self, code, stop_when=None):
        """The messages of a cell; `stop_when` sees each, and interrupts the kernel when it says so."""
        sent, found = self.client.execute(code), []
        while True:
            message = self.client.get_iopub_msg(timeout=300)
            if message["parent_header"].get("msg_id") != sent:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                return found
            found.append((kind, content))
            if stop_when and stop_when(kind, content):
                stop_when = None
                self.manager.interrupt_kernel()

    def upto(self, part):
        """Run the cells before the first one that holds `part`; return that one."""
        for cell in self.cells:
            if part in cell:
                return cell
            assert not errors(self.run(cell)), cell
        raise AssertionError(f"no cell holds {part}")


def errors(messages):
    return [content for kind, content in messages if kind == "error"]


def texts(messages):
    """What the updated displays of a cell showed, one after the other."""
    return [c["data"].get("text/html", "") for kind, c in messages if kind == "update_display_data"]


@pytest.mark.train
def test_a_training_cell_shows_itself_stops_in_one_line_goes_on_and_is_done_again(tmp_path):
    folder = str(tmp_path / "run")
    opened = []

    def notebook(name, **more):
        opened.append(Notebook(name, run_dir=folder, overrides=FEW, **more))
        return opened[-1]

    try:
        data = notebook("01_data_prep")
        for cell in data.cells:
            assert not errors(data.run(cell))
        data.close()

        sft = notebook("02_format_sft")
        cell = sft.upto("train_sft(")
        seen = []

        def stop_after_ten(kind, content):
            if kind == "update_display_data" and (found := re.search(r"step (\d+) of 120", str(content))):
                seen.append(int(found[1]))
            if seen and seen[-1] >= 10:
                (tmp_path / "stop").touch()

        sft.run(STOP_IN_A_CALLBACK.format(str(tmp_path / "stop")))
        messages = sft.run(cell, stop_after_ten)
        (error,) = errors(messages)
        assert len(error["traceback"]) == 1 and "\n" not in error["traceback"][0]
        stopped, going_on = map(int, re.findall(r"step (\d+)", error["evalue"]))
        assert 10 <= stopped <= 120 and stopped - 4 <= going_on <= stopped
        assert seen == sorted(seen) and len(set(seen)) > 3, "the bar does not move"

        messages = sft.run(cell)
        assert not errors(messages)
        assert f"Continuing from checkpoint-{going_on}." in str(messages)
        assert "step 120 of 120" in str(texts(messages))
        for rest in sft.cells[sft.cells.index(cell) + 1 :]:
            assert not errors(sft.run(rest))

        # Another learning rate: refused in one line that says what to set here, which does it.
        changed = sft.cells[1] + "\noverrides = [*overrides, 'sft.learning_rate=5e-4']"
        sft.run(changed)
        begin = next(cell for cell in sft.cells if "runs.begin(" in cell)
        (error,) = errors(sft.run(begin))
        assert "redo = True" in error["evalue"] and len(error["traceback"]) == 1
        sft.run("redo = True")
        assert not errors(sft.run(begin))
        assert not (tmp_path / "run" / "sft" / "model").exists()

        (message,) = [c for k, c in sft.run("import time\ntime.sleep(60)", slept()) if k == "stream"]
        assert message["text"].count("\n") == 1 and "Stopped" in message["text"]
    finally:
        for one in opened:
            one.close()


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


def test_sampling_shows_a_bar_with_pass_at_1_so_far_below_the_cell_that_a_person_runs(tmp_path):
    notebook = Notebook("01_data_prep")
    try:
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
        (printed,) = [c for k, c in notebook.run("print(measured.metrics()['pass@1'])") if k == "stream"]
        assert printed["text"] == "0.5\n"
    finally:
        notebook.close()


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


def test_a_notebook_by_hand_says_where_it_works_and_with_what_and_leaves_a_report():
    folder = Path(os.environ["AIMO_RUNS"]) / "live-by-hand"
    notebook = Notebook("01_data_prep")

    def printed(code):
        messages = notebook.run(code)
        assert not errors(messages)
        return "".join(c["text"] for k, c in messages if k == "stream")

    try:
        notebook.run(AGAIN)
        # A relative folder starts at the repository, not at the notebook's own folder.
        begin = f"run = runs.begin('data', 'tiny', {os.path.relpath(folder, ROOT)!r})"
        said = printed(begin)
        assert f"run: {os.path.normpath(folder)}" in said and "heldout: {split: heldout, rows: 200}" in said
        assert "closed" in said, "an engine of this cell, run before, would keep its memory"
        said = printed("run.finish(rows=1)\npages.write_by_hand(run.dir)")
        assert "report.html" in said and (folder / "report.html").is_file()
        assert "live-by-hand/report.html" in (folder.parent / "index.html").read_text()
    finally:
        notebook.close()


def test_a_cell_that_works_in_a_run_keeps_others_out_and_its_end_does_not(tmp_path):
    begin = f"from aimo.run import runs\nrun = runs.begin('data', 'tiny', {str(tmp_path / 'run')!r})"
    one, two = (Notebook("01_data_prep") for _ in range(2))
    try:
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
    finally:
        one.close()
        two.close()


def slept():
    begun = time.monotonic()
    return lambda kind, content: time.monotonic() - begun >= 0
