"""A headless browser for the tests of pages."""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

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
