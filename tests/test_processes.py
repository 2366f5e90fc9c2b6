"""However the process that started an engine dies, vLLM's processes end with it."""

import contextlib
import itertools
import json
import subprocess
import time

import psutil
import pytest
from conftest import AIMO, TINY, is_alive, left_of

pytestmark = pytest.mark.engine
INFERENCE_ALONE = {"profile": "alone", "model": {"base": str(TINY)}, "inference": {"test_rows": 1}}


def tree(pid):
    """The processes below one."""
    return psutil.Process(pid).children(recursive=True)


def has_engine(pid):
    """Whether an engine below a process has got so far as to give its process a name."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return any("VLLM::EngineCore" in " ".join(process.cmdline()) for process in tree(pid))
    return False


@pytest.fixture(scope="module")
def survivors(tmp_path_factory):
    """What is left of each way to start an engine after what started it was killed; all at once."""
    from jupyter_client.manager import KernelManager

    folder = tmp_path_factory.mktemp("killed")
    (folder / "test.csv").write_text("id,problem\na,What is 1 + 1?\n")
    (folder / "alone.yaml").write_text(json.dumps(INFERENCE_ALONE))
    solve = ["solve", "--model", TINY, "--test", folder / "test.csv", "--out", folder / "out.csv"]
    run = ["run", "--profile", folder / "alone.yaml", "--run-dir", folder / "run"]
    log = (folder / "log").open("w+")
    started = [subprocess.Popen([AIMO, *map(str, c)], stdout=log, stderr=log) for c in (solve, run)]
    kernel = KernelManager()
    kernel.start_kernel()
    client = kernel.client()
    client.start_channels()
    client.wait_for_ready(60)
    client.execute(f"from aimo.inference.engine import Engine\nEngine({str(TINY)!r})")
    killed = {"aimo solve": started[0], "aimo run": started[1], "kernel": kernel.provisioner.process}
    found, end = {}, time.time() + 240
    try:
        while len(found) < len(killed):
            for name in killed.keys() - found.keys():
                process = killed[name]
                ended = process.poll() is not None
                assert not ended and time.time() < end, f"{name}: {(folder / 'log').read_text()[-2000:]}"
                if has_engine(process.pid):
                    found[name] = tree(process.pid)
                    process.kill()
            time.sleep(0.2)
        left_of([*itertools.chain(*found.values())], 30)
        return {name: [p for p in processes if is_alive(p)] for name, processes in found.items()}
    finally:
        client.stop_channels()
        for process in killed.values():
            process.kill()
            process.wait()
        for process in filter(is_alive, itertools.chain(*found.values())):
            process.kill()


@pytest.mark.parametrize("name", ["aimo solve", "aimo run", "kernel"])
def test_a_killed_process_leaves_no_engine_behind(survivors, name):
    """`aimo run` is two steps away from its engine: a notebook's kernel stands between them."""
    assert survivors[name] == []
