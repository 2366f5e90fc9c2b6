"""What tests share: the tiny base, one engine for the whole session, a small finished run, and real data where there is some."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aimo.config import ROOT
from aimo.inference.engine import Engine

TINY = ROOT / "data" / "tiny-base"
AIMO = Path(sys.executable).with_name("aimo")
# The whole road with few steps: what the demo does, in about a minute.
SMALL = [
    "data.sft.rows=200", "data.grpo.rows=100", "data.heldout.rows=20", "sft.max_steps=8", "sft.save_steps=4", "grpo.max_steps=4",
    "grpo.save_steps=2", "grpo.probe_steps=2", "grpo.num_generations=4", "inference.samples=4", "inference.test_rows=4",
]  # fmt: skip


def settings(values: list[str]) -> list[str]:
    """Values as `--set` arguments."""
    return [part for value in values for part in ("--set", value)]


def aimo(*arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would."""
    return subprocess.run([str(AIMO), *arguments], capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Public data beside the checkout."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the public data sets in {folder.name} beside the repository")
    return folder


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The tiny base in vLLM."""
    with Engine(TINY) as engine:
        yield engine
