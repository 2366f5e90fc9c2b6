"""How vLLM's processes are started: where they log, and that they end with the process that started them.

vLLM 0.31's engine process does not notice that its parent was killed, and keeps the GPU's memory. Linux kills
a process whose parent has died if that process asked for it (prctl, PR_SET_PDEATHSIG). Out of scope: the
engine process's own workers, which notice its end by a pipe and then end themselves.
"""

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import resource_tracker, spawn
from pathlib import Path

# Asks the kernel to be killed with its parent, then replaces itself with the Python that was to start.
LAUNCHER = """\
#!/bin/sh
exec "{python}" -I -S -c '
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
os.execv(sys.argv[1], sys.argv[1:])' "{python}" "$@"
"""


@contextlib.contextmanager
def ending_with_this_thread() -> Iterator[None]:
    """Processes that multiprocessing spawns inside are killed when the thread that spawns them ends.

    A thread ends with its process at the latest, so a killed process leaves none of them behind.
    """
    resource_tracker.ensure_running()  # it serves the whole process, and ends by itself
    python = os.fsdecode(spawn.get_executable())
    with tempfile.TemporaryDirectory(prefix="aimo-") as folder:
        launcher = Path(folder) / "python"
        launcher.write_text(LAUNCHER.format(python=python))
        launcher.chmod(stat.S_IRWXU)
        spawn.set_executable(str(launcher))
        try:
            yield
        finally:
            spawn.set_executable(python)


def is_verbose() -> bool:
    """Whether libraries may write what they like (AIMO_VERBOSE=1)."""
    return os.environ.get("AIMO_VERBOSE") == "1"


@contextlib.contextmanager
def stderr_to(path: Path | None) -> Iterator[None]:
    """Append what this process and those it starts write to standard error to a file; None leaves it.

    A process started inside keeps writing there: notices stay out of notebooks, and can be read later.
    """
    if path is None:
        yield
        return
    with path.open("a") as file:
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stderr(file):
                yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
