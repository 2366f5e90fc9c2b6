"""The kernel `wheels` for a lock file, then the kernel `submission` on what it left, without a network.

    python benchmarks/wheels.py --test-csv reference.csv [--out FOLDER] [--lock requirements-cpu.txt]

The submission runs in an environment that has pip and ipykernel only, as on Kaggle: read-only inputs, no
network, nothing of the repository. A second run with the same --out takes the wheels that are there.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from rich.console import Console
from rich.table import Table

from aimo.config import ROOT
from aimo.inference.competitions import COMPETITIONS

sys.path.insert(0, str(ROOT / "tests"))
import machine

STEPS = (
    "collect|manifest|install into a fresh environment, without an index|vocabulary|wheels|imports"
    "|import of vLLM|start of the engine|first answer"
)


def main(
    test_csv: Annotated[Path, typer.Option()],
    out: Annotated[Path | None, typer.Option()] = None,
    lock: Annotated[Path, typer.Option()] = ROOT / "requirements-cpu.txt",
    model: Annotated[Path, typer.Option()] = ROOT / "data" / "tiny-base",
) -> None:
    """Run both kernels and print the time of each step, and the sizes."""
    out = (out or Path(tempfile.mkdtemp(prefix="wheels-"))).absolute()
    logs = []
    if not (out / "collected").exists():
        logs += collect(out, lock.absolute())
    manifest = json.loads((out / "collected" / "wheels.json").read_text())
    print(f"{len(manifest['wheels'])} wheels, {sum(w['bytes'] for w in manifest['wheels']) / 1e9:.2f} GB")
    logs += submit(out, test_csv, model)
    table = Table("step", "seconds")
    for name, seconds in re.findall(rf"({STEPS}): ([\d.]+) s\b", "\n".join(logs)):
        table.add_row(name, seconds)
    Console().print(table)
    site = (
        out / "fresh" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    )
    installed = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    print(f"installed: {len([*site.glob('*.dist-info')])} packages, {installed / 1e9:.2f} GB")
    print("\n".join(line for line in logs if re.search(r"wheels: |questions answered|score: ", line)))


def collect(out: Path, lock: Path) -> list[str]:
    """Run the kernel `wheels`, which leaves its output in `out`/collected."""
    inputs = out / "lock"
    inputs.mkdir(parents=True)
    shutil.copy(lock, inputs)
    ran = machine.run(
        read("wheels"), inputs, out / "collected", {"requirements": str(inputs / lock.name)}, True
    )
    return check(ran, out / "collected")


def submit(out: Path, test_csv: Path, model: Path) -> list[str]:
    """Run the kernel `submission` in a fresh environment, with the collected wheels among its inputs."""
    for name in "inputs", "working", "fresh", "jupyter":
        subprocess.run(["chmod", "-R", "u+w", out / name], capture_output=True)
        shutil.rmtree(out / name, ignore_errors=True)
    inputs = out / "inputs"
    shutil.copytree(out / "collected", inputs / "aimo-wheels", copy_function=os.link)
    shutil.copytree(model, inputs / "model")
    rules = COMPETITIONS["aimo3"]
    machine.attach_competition(inputs, rules, test_csv)
    python = out / "fresh" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", out / "fresh"], check=True)
    wheels: list[str | Path] = ["--no-index", "--find-links", inputs / "aimo-wheels" / "wheels", "ipykernel"]
    subprocess.run([python, "-m", "pip", "-q", "--isolated", "install", *wheels], check=True)
    kernel = out / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "", "language": "python"}))
    parameters = {"model": str(inputs / "model"), "test_csv": str(inputs / rules.slug / "test.csv")}
    jupyter = {"JUPYTER_PATH": str(out / "jupyter")}
    ran = machine.run(read("submission"), inputs, out / "working", parameters, **jupyter)
    assert len(pl.read_parquet(out / "working" / "submission.parquet")) == len(pl.read_csv(test_csv))
    return check(ran, out / "working")


def read(name: str) -> str:
    return (ROOT / "kernels" / name / f"aimo-{name}.ipynb").read_text()


def check(ran: machine.Ran, working: Path) -> list[str]:
    """What a run printed; ends with its log when it failed."""
    if not ran:
        sys.exit("\n".join(ran.log[-30:]))
    print(f"{working.name}: {ran.seconds:.0f} s in all")
    return machine.printed(working).splitlines()


if __name__ == "__main__":
    typer.run(main)
