"""Run a command, and end every process below it, however the parent of this program ends.

`vllm_process.running` starts this program with `python -I -S`, so it imports nothing from aimo.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

END_S = 30  # seconds that processes have to end before they are killed
DEATH_SIGNAL, SUBREAPER = 1, 36  # prctl's: a signal when the parent dies; orphans become this one's children


def guard(command: list[str]) -> int:
    """Run a command until it ends, the parent ends or SIGTERM arrives; then end every process below.

    Return the exit status, negative for a signal.
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
        while (left := below()) and time.monotonic() < end:
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


def below() -> set[int]:
    """Return all processes below this one."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            parents[int(path.parent.name)] = int(path.read_bytes().rpartition(b")")[2].split()[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


if __name__ == "__main__":
    exit_status = guard(sys.argv[1:])
    if exit_status < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-exit_status, signal.SIG_DFL)
        os.kill(os.getpid(), -exit_status)
    sys.exit(exit_status)
