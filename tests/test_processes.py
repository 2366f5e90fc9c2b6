"""However the process that started an engine dies, vLLM's processes end with it."""

import contextlib
import json
import subprocess

import psutil
import pytest
from conftest import AIMO, TINY, left_of, wait_for


@pytest.mark.engine
def test_a_killed_process_leaves_no_engine_behind(tmp_path):
    """`aimo run` is two steps away from its engine: a notebook's kernel stands between them."""
    alone = {"profile": "alone", "model": {"base": str(TINY)}, "inference": {"test_rows": 1}}
    (tmp_path / "alone.yaml").write_text(json.dumps(alone))
    command, quiet = [AIMO, "run", "--profile", "alone.yaml", "--run-dir", "run"], subprocess.DEVNULL
    started, below = subprocess.Popen(command, cwd=tmp_path, stdout=quiet, stderr=quiet), []

    def has_engine():
        assert started.poll() is None, "it has ended"
        with contextlib.suppress(psutil.NoSuchProcess):
            below[:] = psutil.Process(started.pid).children(recursive=True)
            return any("VLLM::EngineCore" in " ".join(one.cmdline()) for one in below)

    try:
        wait_for(has_engine)
        started.kill()
        assert left_of(below, 30) == []
    finally:
        for process in [started, *below]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
