"""A notebook in its kernel, by hand: bars, stops and mistakes in one line, the report.

`test_browser` trains in one, where there is a browser.
"""

import os
import re
import threading
from pathlib import Path

import pytest
from conftest import ROOT
from jupyter_client.manager import start_new_kernel

pytestmark = pytest.mark.slow  # starts kernels


@pytest.fixture
def cell():
    """Runs a cell in a notebook's kernel, and stops it if asked to; returns its messages."""
    manager, client = start_new_kernel(cwd=str(ROOT / "notebooks"))

    def run(code, stop=False):
        found = []
        if stop:
            threading.Timer(2, manager.interrupt_kernel).start()
        client.execute_interactive(code, timeout=300, output_hook=found.append)
        return [(message["msg_type"], message["content"]) for message in found]

    yield run
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def errors(messages):
    return [content for kind, content in messages if kind == "error"]


def printed(messages):
    assert not errors(messages)
    return "".join(content["text"] for kind, content in messages if kind == "stream")


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
"""


def test_sampling_shows_a_bar_with_pass_at_1_so_far_below_the_cell_that_a_person_runs(cell, tmp_path):
    begin = SAMPLING.replace("TESTS", repr(str(ROOT / "tests"))).replace("RUN", repr(str(tmp_path / "r")))
    assert not errors(cell(begin))
    for _ in range(2):  # each time below its own cell
        messages = cell("print(sample_rows(engine, rows, Prompt(), 2, 0, run.progress).metrics()['pass@1'])")
        assert printed(messages).endswith("0.5\n")
        shown = [c["data"]["text/html"] for kind, c in messages if kind == "update_display_data"]
        steps = [int(found[1]) for text in shown if (found := re.search(r"data: (\d+) of 16", text))]
        assert len(steps) >= 3 and steps == sorted(set(steps))
        assert any("left; pass@1 0." in text and " so far</div>" in text for text in shown)
        assert shown[-1] == "", "the bar goes when all is done"


AGAIN = """
from aimo.inference import engine
from aimo.report import pages
from aimo.run import runs

engine.STARTED.add(old := type("Old", (), {"close": lambda self: print("closed")})())
"""


def test_a_notebook_by_hand_says_where_it_works_and_with_what_and_leaves_a_report(cell):
    folder = Path(os.environ["AIMO_RUNS"]) / "live-by-hand"
    cell(AGAIN)
    # One line, no frames: a first cell that is refused, a cell whose name none has made; not a function's.
    (error,) = errors(cell("run = runs.begin('data', 'lacking')"))
    assert "lacking" in error["evalue"] and len(error["traceback"]) == 1
    said = printed(cell("run.folder"))
    assert said == "name 'run' is not defined: run this notebook's cells from the first one on.\n"
    # A relative folder starts at the repository, not at the notebook's own folder.
    said = printed(cell(f"run = runs.begin('data', 'tiny', {os.path.relpath(folder, ROOT)!r})"))
    assert f"run: {os.path.normpath(folder)}" in said and "heldout: {split: heldout, rows: 200}" in said
    assert "closed" in said, "an engine of this cell, run before, would keep its memory"
    said = printed(cell("run.finish(rows=1)\npages.write_by_hand(run.dir)"))
    assert "report.html" in said and (folder / "report.html").is_file()
    assert "live-by-hand/report.html" in (folder.parent / "index.html").read_text()

    said = printed(cell("import time\ntime.sleep(60)", stop=True))
    assert said == "Stopped. Run the cell again; what was saved is kept.\n"
    (error,) = errors(cell("def f():\n    return lacking\nf()"))
    assert len(error["traceback"]) > 1
