"""The sandbox's own processes: a fork server, and the confined processes that it forks to run code.

`aimo.inference.sandbox` starts the server as a subprocess and sends it requests; nothing else imports what
serves them.
"""

import ast
import atexit
import gc
import json
import linecache
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from contextlib import suppress
from typing import Any

from aimo.inference import confinement

ERROR_LINES, ERROR_CHARS = 20, 2000
"""Of a traceback, its last ones are returned."""


def delete(folder: str) -> None:
    """Delete a folder that code has filled; however deep, unlike shutil.rmtree."""
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        pass
    except OSError:
        subprocess.run(["rm", "-rf", "--", folder])


# ---- the fork server ----


def serve(root: str) -> None:
    """Fork a process for each request, until the caller closes the socket at file descriptor 0."""
    import numpy.random
    import sympy  # noqa: F401

    with suppress(ImportError):
        import networkx  # noqa: F401 (takes a second, as the others do)

    numpy.random.seed(0)
    sys.path.pop(0)
    sys.dont_write_bytecode = True
    control = socket.socket(fileno=0)
    children: dict[str, int] = {}
    bpf = confinement.syscall_filter()
    gc.freeze()
    try:
        while (received := socket.recv_fds(control, 4096, 3))[0]:
            request, fds = json.loads(received[0]), received[1]
            if "stop" in request:
                reply: dict[str, Any] = {"status": stop(children.pop(request["stop"], 0))}
            elif "interrupt" in request:
                if pid := children.get(request["interrupt"], 0):
                    os.kill(pid, signal.SIGINT)
                reply = {}
            else:
                scratch = tempfile.mkdtemp(dir=root)
                pid = os.fork()
                if pid == 0:
                    work(fds, scratch, request, bpf)
                for fd in fds:
                    os.close(fd)
                children[scratch] = pid
                reply = {"pid": pid, "scratch": scratch}
            control.send(json.dumps(reply | {"number": request["number"]}).encode())
    finally:
        for pid in children.values():
            stop(pid)
        delete(root)


def stop(pid: int) -> int:
    """Kill a process (0: none) and what it started, where it could; its exit code, negative for a signal."""
    if not pid:
        return 0
    os.kill(pid, signal.SIGKILL)  # leaves the exit code of a process that has ended already
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---- the confined process ----


def work(fds: list[int], scratch: str, request: dict[str, Any], bpf: bytes) -> None:
    """Run each program received on the channel, and reply with its number, its error and a zero byte.

    Never returns. `fds`: the channel, standard input and output. `request`: `memory_mb`, `file_mb`, and
    whether it is a `script`. `bpf`: the filter of system calls.
    """
    number, script = 1, request["script"]
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        for fd, target in zip((*fds, null if script else fds[2]), (3, 0, 1, 2), strict=True):
            os.dup2(fd, target)  # the channel has the lowest number of the three, so 3 is none of the others
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        confinement.confine(scratch, request["memory_mb"], request["file_mb"], bpf)
        channel = socket.socket(fileno=3)
        sys.argv = ["-c"]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        random.seed(0)  # a fork reseeds it
        for number, line in enumerate(channel.makefile(), 1):
            error = execute(json.loads(line), main.__dict__, f"<code {number}>", script)
            reply = f"{number} {error}".replace("\0", "")
            channel.sendall(reply.encode(errors="backslashreplace") + b"\0")
    except BaseException:
        error = traceback.format_exc()[-ERROR_CHARS:]
        os.write(3, f"{number} {error}\0".encode(errors="backslashreplace"))
    finally:
        os._exit(1)


_running = False
"""Whether a program of a session runs, which an interrupt ends."""


def interrupt(*_: object) -> None:
    """End the program that runs; one that has ended just now is left alone."""
    if _running:
        raise KeyboardInterrupt


def run(code: types.CodeType, namespace: dict[str, Any]) -> None:
    """Run compiled code, which an interrupt ends."""
    global _running
    signal.signal(signal.SIGINT, interrupt)  # again, as earlier code may have set another handler
    _running = True
    try:
        exec(code, namespace)
    finally:
        _running = False


def execute(code: str, namespace: dict[str, Any], name: str, script: bool) -> str:
    """Run code; the last lines of its traceback, or nothing."""
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", -1 if script else 1, "utf-8", "strict", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, "utf-8", "replace", closefd=False)  # noqa: SIM115
    stdout, error = sys.stdout, ""
    linecache.cache[name] = (len(code), None, code.splitlines(True), name)  # tracebacks show its lines
    try:
        tree = ast.parse(code, name)
        shows_last = not script and tree.body and isinstance(tree.body[-1], ast.Expr)
        last = [tree.body.pop()] if shows_last else []
        run(compile(tree, name, "exec"), namespace)
        run(compile(ast.Interactive(last), name, "single"), namespace)  # prints its value
    except SystemExit as e:
        error = f"exit code {e.code}" if e.code else ""
    except BaseException as e:
        trace = e.__traceback__
        while trace and not trace.tb_frame.f_code.co_filename.startswith("<code "):
            trace = trace.tb_next
        lines = "".join(traceback.format_exception(type(e), e, trace)).splitlines()
        error = "\n".join(lines[-ERROR_LINES:])[-ERROR_CHARS:]
    if script:  # what the interpreter does at its end
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, stdout):
        with suppress(AttributeError, OSError, ValueError):  # the code may have closed or replaced it
            stream.flush()
    return error
