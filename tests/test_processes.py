"""However the process that started an engine dies, vLLM's processes end with it."""

import contextlib
import json
import subprocess

import psutil
import pytest
from conftest import AIMO, TINY, left_of, wait_for

pytestmark = pytest.mark.engine


def engine_below(process):
    """The processes below one, once an engine among them has got so far as to give its process a name."""
    assert process.poll() is None, "it has ended"
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(process.pid).children(recursive=True)
        if any("VLLM::EngineCore" in " ".join(one.cmdline()) for one in found):
            return found
    return []


@pytest.mark.parametrize("command", ["solve", "run"])
def test_a_killed_process_leaves_no_engine_behind(tmp_path, command):
    """`aimo run` is two steps away from its engine: a notebook's kernel stands between them."""
    (tmp_path / "test.csv").write_text("id,problem\na,What is 1 + 1?\n")
    alone = {"profile": "alone", "model": {"base": str(TINY)}, "inference": {"test_rows": 1}}
    (tmp_path / "alone.yaml").write_text(json.dumps(alone))
    arguments = {
        "solve": ["--model", str(TINY), "--test", "test.csv", "--out", "out.csv"],
        "run": ["--profile", "alone.yaml", "--run-dir", "run"],
    }[command]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started, below = subprocess.Popen([AIMO, command, *arguments], cwd=tmp_path, **quiet), []
    try:
        wait_for(lambda: below.extend(engine_below(started)) or below)
        started.kill()
        assert left_of(below, 30) == []
    finally:
        for process in [started, *below]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
