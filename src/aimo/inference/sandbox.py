"""Run a model's Python in confined processes: scripts for the code rewards, sessions for the solver.

A fork server imports numpy and sympy once and forks a process for each script or session, in milliseconds
(`sandbox_worker`). Before it reads any code, that process drops its rights (`confinement`): rlimits bound
its memory and files, Landlock leaves it a scratch folder and the installed libraries, seccomp no sockets, no
processes and no signals, and root turns into a user that owns nothing. The caller enforces the time limit by
killing it. Limits that the machine lacks are not enforced; `enforced` tests each, and docs/sandbox.md has
the table.

Out of scope: a bound on the total size of a scratch folder; systems other than Linux. A remote sandbox needs
a `Session` with `run` and `close`.
"""

import atexit
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aimo.inference.errors import AimoError
from aimo.inference.sandbox_worker import ERROR_CHARS, delete

GRACE_S = 0.5
"""Seconds in which an interrupted program must end; its process is killed after that."""
MAX_OUTPUT = 16 << 20
"""Bytes of output at which a call is stopped, as reading them costs the caller too."""


@dataclass(frozen=True)
class Limits:
    """What code may use. It may start threads, but no process."""

    seconds: float = 5
    """Wall time of a call, so whether slow code passes depends on what else the machine does."""
    memory_mb: int = 1024
    """Address space beyond the idle interpreter's."""
    file_mb: int = 64
    """Size of one file."""
    output_chars: int = 20_000
    """The middle of longer output is replaced by a note of its length."""


@dataclass(frozen=True)
class Result:
    """What a call did."""

    stdout: str
    """A session's includes standard error and the value of a trailing expression."""
    error: str = ""
    """The traceback's last lines, or why the code was stopped; empty when it ran to its end."""
    timed_out: bool = False
    restarted: bool = False
    """The session's variables are lost: its next call starts with none."""

    @property
    def ok(self) -> bool:
        """Whether the code ran to its end."""
        return not self.error


DEFAULT = Limits()


def run(code: str, stdin: str = "", limits: Limits = DEFAULT) -> Result:
    """Run a script like `python -c CODE`, in a process of its own. Standard error is dropped.

    Here and in sessions, `random` and `numpy.random` start seeded with 0.
    """
    process = _Process(limits, stdin)
    try:
        return process.call(code)
    finally:
        process.end()


def run_many(
    scripts: Iterable[tuple[str, str]], limits: Limits = DEFAULT, workers: int | None = None
) -> list[Result]:
    """The n results of n scripts (code, stdin), in order; `workers` run at a time (None: one a core)."""
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda script: run(script[0], script[1], limits), scripts))


class Session:
    """Runs one piece of code after another, as a notebook does: variables are kept, a last value is shown.

    Any number may run side by side, each in a thread of its caller's (`asyncio.to_thread`). A timeout
    and too much output interrupt the program and keep the variables. After a program that cannot be
    interrupted, a crash, or threads that outlive their call, a session continues without variables, in a new
    process that is started in the background.
    """

    def __init__(self, limits: Limits = DEFAULT):
        self._limits, self._lock, self._closed = limits, threading.Lock(), False
        self._process = _Process(limits)
        self._replacing: Future[None] | None = None

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, code: str) -> Result:
        """Run code after that of earlier calls."""
        if self._replacing:
            self._replacing.result()
        result = self._process.call(code)
        if result.restarted:
            self._replacing = _server.background.submit(self._replace)
        return result

    def _replace(self) -> None:
        """Put a new process in the place of the one that was stopped."""
        with self._lock:
            self._process.end()
            if not self._closed:
                self._process = _Process(self._limits)

    def close(self) -> None:
        """End the process and delete its folder; from another thread, it also ends a running call."""
        with self._lock:
            self._closed = True
            self._process.end()


def enforced() -> dict[str, bool]:
    """Whether this machine enforces each of seven limits, found by trying to exceed it from inside.

    The first call also starts the fork server. AimoError when no process can be confined.
    """
    if error := run("").error:
        raise AimoError(f"sandbox: no process could be confined: {error}")
    with tempfile.NamedTemporaryFile() as file:
        os.chmod(file.name, 0o644)
        attempts = {
            "no network": "import socket; socket.socket()",
            "no processes": "import os; os.fork() or os._exit(0)",
            "no signals": "import os; os.kill(os.getppid(), 0)",
            "no reading outside": f"open({file.name!r})",
            "no writing outside": f"open({file.name!r}, 'a')",
            "file size": f"open('file', 'wb').write(bytes({DEFAULT.file_mb + 1} << 20))",
            "memory": f"bytearray({DEFAULT.memory_mb} << 20)",
        }
        return {what: not run(attempt).ok for what, attempt in attempts.items()}


# ---- the caller's side ----


class _ForkServer:
    """The process that forks the confined ones. It ends when this process does, and they with it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.requests = 0
        self.background = ThreadPoolExecutor(4)
        """Starts processes that no call waits for yet."""

    def start(self) -> None:
        """Start the process. AimoError on systems other than Linux."""
        if sys.platform != "linux":
            raise AimoError(f"sandbox: needs Linux, not {sys.platform}; use a container")
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.root = tempfile.mkdtemp(prefix="aimo-sandbox-")
        os.chmod(self.root, 0o711)
        package = str(Path(__file__).parents[2])
        code = (
            f"import sys; sys.path.insert(0, {package!r}); "
            f"from aimo.inference.sandbox_worker import serve; serve({self.root!r})"
        )
        # The whole environment, for the caller's may hold tokens.
        env = {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "MPLBACKEND": "Agg"}
        env |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-s", "-P", "-c", code],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=env,
                cwd="/",
                start_new_session=True,
            )

    def ask(self, request: dict[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        """The reply to a request with file descriptors. AimoError when the process does not start."""
        with self.lock:
            self.requests += 1
            message = json.dumps(request | {"number": self.requests}).encode()
            for _ in range(2):  # it may have been killed since the last request
                with suppress(OSError):
                    if not self.process:
                        self.start()
                    socket.send_fds(self.control, [message], fds)
                    while reply := self.control.recv(4096):
                        answer = json.loads(reply)
                        if answer["number"] == self.requests:  # others answer calls that Ctrl-C interrupted
                            return answer
                self.close()
        test = f"{sys.executable} -s -P -c 'import numpy, sympy'"
        raise AimoError(f"sandbox: its fork server does not start; see whether `{test}` runs")

    def close(self) -> None:
        """End the process, and with it all that it forked, and delete its folder."""
        if self.process:
            with suppress(OSError):
                # This ends it even where a fork of this process holds the socket too.
                self.control.shutdown(socket.SHUT_RDWR)
            self.control.close()
            self.process.wait()
            self.process = None
            delete(self.root)  # which it has done, unless it was killed


_server = _ForkServer()


def _forget() -> None:
    """In a fork of this process: the server is the parent's."""
    global _server
    _server = _ForkServer()


os.register_at_fork(after_in_child=_forget)
atexit.register(lambda: _server.close())


class _Process:
    """One confined process: a script's where `stdin` is given, else a session's."""

    def __init__(self, limits: Limits, stdin: str | None = None):
        self.limits, self.script = limits, stdin is not None
        self.calling, self.killing = threading.Lock(), threading.Lock()
        self.killed, self.status, self.calls = False, 0, 0
        self.channel, channel = socket.socketpair()
        self.output, output = os.pipe()
        os.set_blocking(self.output, False)
        with channel, open(output, "wb") as out, open(os.memfd_create("stdin"), "w+b") as given:
            given.write((stdin or "").encode(errors="replace"))
            given.seek(0)
            request = {"memory_mb": limits.memory_mb, "file_mb": limits.file_mb, "script": self.script}
            reply = _server.ask(request, [channel.fileno(), given.fileno(), out.fileno()])
        self.pid, self.scratch = reply["pid"], reply["scratch"]

    def call(self, code: str) -> Result:
        """Run code, and wait for its end or its limits."""
        with self.calling:
            if self.killed:
                return Result("", "the session is closed", restarted=True)
            self.calls += 1
            output, reply = bytearray(), bytearray()
            stopped = self.exchange(code, output, reply)
            timed_out = stopped.startswith("timed out")
            reason = ""
            if stopped not in ("", "ended") and not self.script and self.interrupt(output, reply):
                stopped, reason = "", f"{stopped}; the session's variables are kept"
            number, _, error = reply[:-1].decode(errors="replace").partition(" ")
            stopped = stopped or self.why_stop(number, error)
            error = reason or error
            if stopped == "ended":
                self.kill()
                stopped = self.how_it_ended()
            while len(output) <= MAX_OUTPUT and (data := _read(self.output)):
                output += data
        restarted = bool(stopped) and not self.script
        error = stopped or error[-ERROR_CHARS:]
        if restarted:
            error += "; the session's variables are lost"
        text = _cut(output.decode(errors="replace"), self.limits.output_chars)
        return Result(text, error, timed_out, restarted)

    def why_stop(self, number: str, error: str) -> str:
        """Why a process that has replied cannot go on; empty when it can."""
        if number != str(self.calls):
            return "stopped because it wrote to the sandbox's own channel"
        if error.rpartition("\n")[2].startswith("SystemError"):
            return error  # the interpreter itself is broken
        if not self.script and self.has_threads():
            return "threads still ran when the code ended, and were stopped"
        return ""

    def how_it_ended(self) -> str:
        """The exit code or signal of a process that ended by itself; empty when a script ended well."""
        if self.status < 0:
            return f"killed by signal {-self.status} ({signal.strsignal(-self.status)})"
        return f"exit code {self.status}" if self.status or not self.script else ""

    def exchange(self, code: str, output: bytearray, reply: bytearray) -> str:
        """Send the code, and collect output and reply."""
        with suppress(OSError):  # where the process has died, reading tells
            self.channel.settimeout(self.limits.seconds)
            self.channel.sendall(json.dumps(code).encode() + b"\n")
        return self.collect(output, reply, self.limits.seconds)

    def interrupt(self, output: bytearray, reply: bytearray) -> bool:
        """Interrupt a session's program, as Ctrl-C does. Whether it has ended, and the session goes on."""
        _server.ask({"interrupt": self.scratch})
        late = bytearray()
        ended = not self.collect(late, reply, GRACE_S)
        output += late
        return ended

    def collect(self, output: bytearray, reply: bytearray, seconds: float) -> str:
        """Collect output and reply for at most `seconds`. Empty once the reply is whole, else why not."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self.output, select.POLLIN)
        poll.register(self.channel, select.POLLIN)
        while not reply.endswith(b"\0"):
            if (left := deadline - time.monotonic()) <= 0:
                return f"timed out after {self.limits.seconds:g} s"
            for fd, _ in poll.poll(math.ceil(left * 1000)):
                data = _read(fd)
                if not data and fd != self.output:
                    return "ended"
                if not data:
                    poll.unregister(fd)
                (output if fd == self.output else reply).extend(data)
            if len(output) + len(reply) > MAX_OUTPUT:
                return f"stopped after {MAX_OUTPUT >> 20} MB of output"
        return ""

    def has_threads(self) -> bool:
        """Whether threads go on. One that was joined may take the kernel a moment to end."""
        for _ in range(40):
            if len(list(Path(f"/proc/{self.pid}/task").glob("*"))) < 2:
                return False
            time.sleep(0.005)
        return True

    def kill(self) -> None:
        """Kill the process, once."""
        with self.killing:
            if not self.killed:
                self.status, self.killed = _server.ask({"stop": self.scratch})["status"], True

    def end(self) -> None:
        """Kill the process, which ends a running call, and delete its folder."""
        self.kill()
        with self.calling:
            if self.channel.fileno() >= 0:
                self.channel.close()
                os.close(self.output)
                delete(self.scratch)


def _read(fd: int) -> bytes:
    """Available bytes; empty at the end of the file, or where there are none yet."""
    try:
        return os.read(fd, 1 << 16)
    except (BlockingIOError, ConnectionResetError):
        return b""


def _cut(text: str, limit: int) -> str:
    """At most `limit` characters of the text, and a note in the place of the others."""
    if (left_out := len(text) - limit) <= 0:
        return text
    return f"{text[: limit // 2]}\n[… {left_out:,} characters left out …]\n{text[limit // 2 + left_out :]}"
