"""Write docs/pictures/: each notebook in JupyterLab, while it works and when it is done (`make pictures`).

Runs all of them on tiny models, with few steps, in about ten minutes. Writes docs/report.png too, where
`make demo` has left its report.
"""

import contextlib
import io
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs/pictures"
sys.path.insert(0, str(ROOT / "tests"))
from browser import BrowserNotebook, Lab  # noqa: E402
from conftest import wait_for  # noqa: E402

DPO = "dpo={learning_rate: 1.0e-4, problems: 60, max_steps: 40, batch_size: 8, probe_steps: 20}"
OPD = "opd={teacher: data/tiny-base, learning_rate: 1.0e-3, batch_size: 8, max_steps: 20, probe_steps: 10, "
OPD += "max_prompt_length: 128, max_completion_length: 80}"
FEW = ["grpo.max_steps=40", "grpo.probe_steps=10", DPO, OPD, "data.heldout.rows=60", "inference.samples=8"]
DISTIL = ["distil.rows=200", "distil.num_generations=4"]
SHOWN = {  # of a notebook: the cell that works, and the one at the top of the picture when all is done
    "00_distil": ("distil_in_run(", "plots.pass_rates("),
    "01_data_prep": ("prepare.load_sets(", "prepare.decontaminate_sets("),
    "02_format_sft": ("sft.train_sft(", "sft.train_sft("),
    "03_grpo": ("grpo.train_grpo(", "grpo.train_grpo("),
    "03b_dpo": ("dpo.train_dpo(", "dpo.train_dpo("),
    "03c_opd": ("opd.train_opd(", "opd.train_opd("),
    "04_inference": ("evaluate.evaluate_models(", "plots.votes("),
}


def keep(notebook: BrowserNotebook, cell: Any, name: str) -> None:
    """Write what a reader sees with a cell at the top."""
    cell.evaluate("cell => cell.scrollIntoView()")
    shown(notebook.page.locator(".jp-NotebookPanel")).save(PICTURES / f"{name}.webp", quality=60, method=6)


def shown(part: Any) -> Image.Image:
    return Image.open(io.BytesIO(part.screenshot())).convert("RGB")


def is_halfway(notebook: BrowserNotebook, cell: Any) -> bool:
    """Return whether a cell's bar says so, or it has ended."""
    found = re.findall(r": (?:step )?(\d[\d,]*) of (\d[\d,]*)", notebook.shows(cell))
    counts = [[int(number.replace(",", "")) for number in pair] for pair in found]
    return "*" not in notebook.prompt(cell) or any(2 * done >= total for done, total in counts)


PICTURES.mkdir(exist_ok=True)
with tempfile.TemporaryDirectory() as folder, contextlib.closing(Lab(Path(folder))) as lab:
    for name, (works, done) in SHOWN.items():
        few, run = (DISTIL, "distil") if name.startswith("00") else (FEW, "run")
        given = {"profile": "tiny-distil"} if run == "distil" else {}
        notebook = lab.open(name, name, run_dir=f"{folder}/{run}", overrides=few, **given)
        notebook.page.keyboard.press("Control+b")
        notebook.page.set_viewport_size({"width": 1200, "height": 1400 if name == "03_grpo" else 950})
        for code in notebook.codes:
            cell = notebook.start(max(code, key=len).strip())
            if works in "".join(code):
                wait_for(lambda notebook=notebook, cell=cell: is_halfway(notebook, cell))
                keep(notebook, cell, f"{name}-works")
            print(f"{name}: {notebook.wait(cell)[-200:]}", flush=True)
        keep(notebook, notebook.find(done), f"{name}-done")
        lab.end_kernels()
    if (report := ROOT / "runs/tiny/report.html").exists():
        page = lab.browser.new_page(viewport={"width": 1050, "height": 1420})
        page.goto(report.as_uri())
        shown(page).quantize(64, Image.Quantize.MAXCOVERAGE).save(ROOT / "docs/report.png", optimize=True)
