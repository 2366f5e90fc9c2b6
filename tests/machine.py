"""A machine of Kaggle's, as a notebook sees it: runs one with papermill from an empty folder.

Inputs are read-only, there is no network but loopback, and nothing of this repository but the virtual
environment (`offline/sitecustomize.py`). A rerun has a gateway in another process, over gRPC.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml
from conftest import ROOT

from aimo.inference.vllm_process import free_port

HERE = Path(__file__).parent
NOTEBOOK = "__notebook__.ipynb"


@dataclass
class Ran:
    """How a notebook's run ended."""

    code: int
    log: list[str]
    seconds: float

    def __bool__(self):
        return self.code == 0


def attach_competition(inputs, competition, test_csv):
    """Put a competition's files among the inputs: its test file and its `kaggle_evaluation`."""
    folder = inputs / competition.slug
    shutil.copytree(
        HERE / "competition" / "kaggle_evaluation",
        folder / "kaggle_evaluation",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.copyfile(test_csv, folder / "test.csv")
    return folder


def run(text, inputs, working, parameters=None, internet=False, timeout=900, **variables):
    """Run a notebook's text in the empty folder `working`; what it leaves there is its output.

    `/kaggle/input` and `/kaggle/working` in the text are `inputs` and `working`.
    """
    working.mkdir(parents=True)
    inputs.mkdir(exist_ok=True)
    fresh = working.with_name(working.name + ".ipynb")
    fresh.write_text(text.replace("/kaggle/input", str(inputs)).replace("/kaggle/working", str(working)))
    subprocess.run(["chmod", "-R", "a-w", inputs], check=True)
    before = listing(inputs)
    values = working.with_name(working.name + ".yaml")
    values.write_text(yaml.safe_dump(parameters or {}))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("KAGGLE_", "AIMO_"))}
    own = {
        "KAGGLE_INPUT": str(inputs),
        "KAGGLE_KERNEL_RUN_TYPE": "Batch",
        "PYTHONPATH": str(HERE / "offline"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "MACHINE_INPUTS": str(inputs),
        "MACHINE_HIDDEN": str(ROOT),
        "MACHINE_OFFLINE": "0" if internet else "1",
    }
    command = [sys.executable, "-m", "papermill", fresh, NOTEBOOK, "-f", values, "-k", "python3"]
    command += ["--log-output", "--no-progress-bar", "--log-level", "INFO"]
    begun = time.monotonic()
    log = working.with_name(working.name + ".log")
    with log.open("w") as file:
        done = subprocess.run(
            list(map(str, command)),
            cwd=working,
            env=kept | own | variables,
            stdout=file,
            stderr=subprocess.STDOUT,
            timeout=timeout,
        )
    assert listing(inputs) == before, "the inputs have changed"
    return Ran(done.returncode, log.read_text().splitlines(), time.monotonic() - begun)


def rerun(text, inputs, working, folder, hidden_csv, out, parameters=None, patience_s=900.0):
    """Run a submission's notebook as a competition does, for the questions of `hidden_csv`.

    The gateway is a process of its own that waits for the server and writes the answers to `out`. Returns the
    run, and the gateway's last line.
    """
    port = free_port("127.0.0.1", 0)
    gateway = subprocess.Popen(
        [sys.executable, "-m", "kaggle_evaluation.gateway", hidden_csv, out, str(port), str(patience_s)],
        cwd=folder,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    more = {"KAGGLE_IS_COMPETITION_RERUN": "1", "KAGGLE_EVALUATION_PORT": str(port)}
    try:
        ran = run(text, inputs, working, parameters, **more)
        said, _ = gateway.communicate(timeout=60)
    finally:
        gateway.kill()
    return ran, said.strip().splitlines()[-1]


def listing(folder):
    """Each file of a folder with its size and time."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in found]


def outputs(working):
    """The files that a run left, by their name."""
    return {
        str(path.relative_to(working)): path
        for path in sorted(working.rglob("*"))
        if path.is_file() and path.name != NOTEBOOK
    }


def printed(working, stream="stdout"):
    """What the cells of an executed notebook printed."""
    cells = json.loads((working / NOTEBOOK).read_text())["cells"]
    outs = [out for cell in cells for out in cell.get("outputs", []) if out.get("name") == stream]
    return "".join("".join(out["text"]) for out in outs)
