"""How processes of vLLM and of training are started: where they log, and that none outlives its starter.

`running` starts a command; what vLLM spawns in this process is started within `ending_with_this_thread`, as
vLLM 0.31's engine process does not notice that its parent was killed, and keeps the GPU's memory.
This file is also a program: the guard that `running` starts, which imports nothing of aimo.
"""

import contextlib
import ctypes
import os
import shlex
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from multiprocessing import resource_tracker, spawn
from pathlib import Path
from typing import IO

END_S = 30
"""Seconds that a process has to end before it is killed."""
DEATH_SIGNAL, SUBREAPER = 1, 36  # of prctl: a signal when the parent dies; orphans below come to this process


@contextlib.contextmanager
def running(
    command: list[str], output: IO[str], keep: Collection[int] = ()
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command in a session of its own; every process below it ends with the block.

    They end too when this process does, however it ends. What they write goes to `output`. `keep` are
    descriptors, such as a lock's, that stay open until the last of them has ended.
    """
    guard = [sys.executable, "-I", "-S", __file__, *command]
    process = subprocess.Popen(
        guard, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, pass_fds=keep
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def guard(command: list[str]) -> int:
    """Run a command until it, this process's parent or SIGTERM ends it, then end all below this process.

    Returns the exit status; negative for a signal.
    """
    parent, libc, stopped, status = os.getppid(), ctypes.CDLL(None), [], None
    libc.prctl(SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        libc.prctl(DEATH_SIGNAL, signal.SIGTERM)
        try:
            os.execvp(command[0], command)
        except OSError as e:
            print(f"error: {command[0]}: {e.strerror}", file=sys.stderr, flush=True)
            os._exit(127)
    while status is None and not stopped and os.getppid() == parent:
        time.sleep(0.05)
        status = reap().get(child)
    for sign in (signal.SIGTERM, signal.SIGKILL):
        told: set[int] = set()
        end = time.monotonic() + END_S
        while (left := below(os.getpid())) and time.monotonic() < end:
            for pid in left - told:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sign)
            told |= left
            time.sleep(0.05)
            reap()
    return -signal.SIGTERM if status is None else status


def reap() -> dict[int, int]:
    """Return the exit status of each child that has ended."""
    found = {}
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            found[ended[0]] = os.waitstatus_to_exitcode(ended[1])
    return found


def below(process: int) -> set[int]:
    """Return all processes below one."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            parents[int(path.parent.name)] = int(path.read_bytes().rpartition(b")")[2].split()[1])
    found = {process}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {process}


# Asks the kernel to be killed with its parent, then replaces itself with the Python that was to start.
LAUNCHER = """\
#!/bin/sh
exec {python} -I -S -c '
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
os.execv(sys.argv[1], sys.argv[1:])' {python} "$@"
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
        launcher.write_text(LAUNCHER.format(python=shlex.quote(python)))
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


if __name__ == "__main__":
    exit_status = guard(sys.argv[1:])
    if exit_status < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-exit_status, signal.SIG_DFL)
        os.kill(os.getpid(), -exit_status)
    sys.exit(exit_status)
