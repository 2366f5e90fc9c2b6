"""A headless browser for the tests of pages, and JupyterLab in one for the tests of notebooks."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import ROOT, wait_for

from aimo.inference.vllm_process import free_port, is_up

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
FLAGS += " disable-component-update disable-sync enable-logging=stderr"
HEADLESS = [f"--{flag}" for flag in FLAGS.split()]


def browse(path: Path, *options: str) -> tuple[str, list[str]]:
    """A page's DOM after its scripts, and what they wrote to the console. Skips where there is no browser."""
    if BROWSER is None:
        pytest.skip("needs chromium or google-chrome")
    with tempfile.TemporaryDirectory(prefix="browser-") as profile:
        where = [f"--user-data-dir={profile}", "--dump-dom", path.as_uri()]
        command = [BROWSER, *HEADLESS, *options, *where]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=90)
    return done.stdout, re.findall(r".*CONSOLE.*", done.stderr)


def without_policy(page: str) -> str:
    """A page whose browser may load anything: what it holds has to be harmless by itself."""
    found, times = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert times == 1
    return found


class Lab:
    """JupyterLab on a free port, in a browser; `open` gives a notebook. Skips where one is missing."""

    def __init__(self, folder: Path):
        playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
        if BROWSER is None:
            pytest.skip("needs chromium or google-chrome")
        self.port = free_port("127.0.0.1", 0)
        self.folder = folder / "notebooks"
        self.folder.mkdir(parents=True)
        shutil.copy(ROOT / "pyproject.toml", folder)  # which notebooks are pairs
        news = folder / "CONFIG/lab/user-settings/@jupyterlab/apputils-extension"
        news.mkdir(parents=True)  # or each page asks whether it may fetch them
        (news / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
        own = {f"JUPYTER_{name}_DIR": str(folder / name) for name in ("CONFIG", "DATA", "RUNTIME")}
        options = ["--no-browser", "--allow-root", "--IdentityProvider.token=", f"--port={self.port}"]
        options += [f"--ServerApp.root_dir={folder}", "--LabApp.news_url=None"]
        with (folder / "lab.log").open("w") as log:
            command = [sys.executable, "-m", "jupyterlab", *options]
            self.server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | own)
        self.playwright = playwright.sync_playwright().start()
        flags = [flag for flag in HEADLESS if flag != "--headless"]
        self.browser = self.playwright.chromium.launch(executable_path=BROWSER, args=flags)
        wait_for(lambda: is_up(f"http://127.0.0.1:{self.port}/api"), 60)

    def close(self) -> None:
        self.browser.close()
        self.playwright.stop()
        self.server.terminate()  # it ends its kernels
        self.server.wait(30)

    def end_kernels(self) -> None:
        """Shut all kernels down, with what they have in memory."""
        kernels = f"http://127.0.0.1:{self.port}/api/kernels"
        for kernel in requests.get(kernels, timeout=30).json():
            requests.delete(f"{kernels}/{kernel['id']}", timeout=60)

    def open(self, name: str, to: str, **parameters: object) -> "BrowserNotebook":
        """Open a copy of the notebook `name` as `to`, with other parameters."""
        notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())
        cells = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])]
        cells[0]["source"] += ["\n", *(f"{key} = {value!r}\n" for key, value in parameters.items())]
        (self.folder / f"{to}.ipynb").write_text(json.dumps(notebook))
        page = self.browser.new_page(viewport={"width": 1200, "height": 1000})
        page.set_default_timeout(120_000)
        page.goto(f"http://127.0.0.1:{self.port}/lab/workspaces/{to}/tree/notebooks/{to}.ipynb")
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
        return BrowserNotebook(page, [cell["source"] for cell in notebook["cells"] if "outputs" in cell])


class BrowserNotebook:
    """A notebook in JupyterLab, used by mouse and keyboard."""

    def __init__(self, page: Any, codes: list[list[str]]):
        self.page, self.codes = page, codes  # the lines of each code cell
        self.cells = page.locator(".jp-Notebook .jp-CodeCell")

    def find(self, part: str) -> Any:
        """The first code cell that holds a text."""
        return self.cells.filter(has=self.page.locator(".jp-InputArea", has_text=part)).first

    def prompt(self, cell: Any) -> str:
        """`[1]:` of a cell that has run, `[*]:` of one that runs."""
        return cell.locator(".jp-InputArea-prompt").inner_text()

    def start(self, which: Any) -> Any:
        """Run a cell, or the one that holds a text; return it at once."""
        cell = self.find(which) if isinstance(which, str) else which
        before = self.prompt(cell)
        for _ in range(12):  # a page that has just opened may not take keys yet, and ask something first
            for answer in self.page.locator(".jp-Dialog button.jp-mod-accept").all():
                answer.click()
            cell.locator(".jp-InputArea-prompt").click()
            self.page.keyboard.press("Control+Enter")
            with contextlib.suppress(AssertionError):
                wait_for(lambda: self.prompt(cell) != before, 5)
                return cell
        raise AssertionError("the cell does not run")

    def wait(self, cell: Any) -> str:
        """Wait until a cell has ended; return what it shows."""
        wait_for(lambda: re.search(r"\d", self.prompt(cell)), 400)
        self.page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
        return self.shows(cell)

    def run(self, which: Any) -> str:
        """Run a cell, or the one that holds a text, to its end; return what it shows."""
        return self.wait(self.start(which))

    def tells(self, which: str, text: str) -> None:
        """Run a cell, which shows a text; a busy browser draws it later than the cell ends."""
        self.wait(cell := self.start(which))
        wait_for(lambda: text in self.shows(cell), 30)

    def shows(self, cell: Any) -> str:
        return "\n".join(cell.locator(".jp-OutputArea-output").all_inner_texts())

    def plots(self, cell: Any) -> list[str]:
        return cell.locator(".jp-OutputArea-output img").evaluate_all("all => all.map(one => one.src)")

    def write(self, part: str, line: str) -> None:
        """Write a line at the end of the cell that holds a text."""
        self.find(part).locator(".cm-content").click()
        self.page.keyboard.press("Control+End")
        self.page.keyboard.press("Enter")
        self.page.keyboard.insert_text(line)

    def stop(self) -> None:
        """Click on the square."""
        self.page.locator('[data-command="notebook:interrupt-kernel"]').first.click()
