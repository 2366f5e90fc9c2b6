"""However the process that started an engine dies, vLLM's processes end with it."""

import contextlib
import itertools
import json
import subprocess

import psutil
import pytest
from conftest import AIMO, TINY, is_alive, left_of, wait_for

pytestmark = pytest.mark.engine


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
    """What is left of each way to start an engine after what started it was killed; both at once."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "test.csv").write_text("id,problem\na,What is 1 + 1?\n")
    alone = {"profile": "alone", "model": {"base": str(TINY)}, "inference": {"test_rows": 1}}
    (folder / "alone.yaml").write_text(json.dumps(alone))
    commands = {
        "aimo solve": f"{AIMO} solve --model {TINY} --test test.csv --out out.csv",
        "aimo run": f"{AIMO} run --profile alone.yaml --run-dir run",
    }
    log, found = (folder / "log").open("w+"), {}
    started = {
        name: subprocess.Popen(command.split(), cwd=folder, stdout=log, stderr=log)
        for name, command in commands.items()
    }

    def are_killed():
        for name in started.keys() - found.keys():
            assert started[name].poll() is None, f"{name}: {(folder / 'log').read_text()[-2000:]}"
            if has_engine(started[name].pid):
                found[name] = tree(started[name].pid)
                started[name].kill()
        return len(found) == len(started)

    try:
        wait_for(are_killed)
        left_of([*itertools.chain(*found.values())], 30)
        return {name: [p for p in processes if is_alive(p)] for name, processes in found.items()}
    finally:
        for process in [*started.values(), *filter(is_alive, itertools.chain(*found.values()))]:
            process.kill()


@pytest.mark.parametrize("name", ["aimo solve", "aimo run"])
def test_a_killed_process_leaves_no_engine_behind(survivors, name):
    """`aimo run` is two steps away from its engine: a notebook's kernel stands between them."""
    assert survivors[name] == []
