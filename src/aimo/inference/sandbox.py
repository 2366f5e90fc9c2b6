"""Run a model's Python in confined processes: scripts for the code rewards, sessions for the solver.

A fork server imports numpy and sympy once and forks a process for each script or session, in milliseconds
(`sandbox_worker`). Before it reads any code, that process drops its rights: rlimits bound its memory and
files, Landlock leaves it a scratch folder and the installed libraries, seccomp no sockets, no processes and
no signals, and root turns into a user that owns nothing. The caller enforces the time limit by killing it.
`enforced` tests each limit; where one is missing, nothing runs unless AIMO_SANDBOX=open (docs/sandbox.md).

It runs on Linux. Nothing bounds the total size of a scratch folder.
"""

import atexit
import functools
import json
import math
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aimo.inference.errors import SandboxError, say
from aimo.inference.sandbox_worker import ERROR_CHARS, TOKEN, delete

GRACE_S = 0.5  # seconds in which an interrupted program must end; its process is killed after that
MAX_OUTPUT = 16 << 20  # bytes of output at which a call is stopped, as reading them costs the caller too


@dataclass(frozen=True)
class Limits:
    """What code may use. It may start threads."""

    seconds: float = 5
    """Wall time of a call, so whether slow code passes depends on what else the machine does."""
    memory_mb: int = 1024  # address space beyond the idle interpreter's
    file_mb: int = 64  # size of one file
    output_chars: int = 20_000  # the middle of longer output is replaced by a note of its length
    programs: bool = False
    """Whether it may start installed programs, such as compilers, under the same limits."""


@dataclass(frozen=True)
class Result:
    """What a call did."""

    stdout: str  # a session's includes standard error and the value of a trailing expression
    error: str = ""  # the traceback's last lines, or why the code was stopped; empty when it ran to its end
    timed_out: bool = False
    restarted: bool = False  # the session's variables are lost: its next call starts with none

    @property
    def ok(self) -> bool:
        """Whether the code ran to its end."""
        return not self.error


DEFAULT = Limits()


def run(
    code: str, stdin: str = "", limits: Limits = DEFAULT, files: Mapping[str, str | bytes] | None = None
) -> Result:
    """Run a script like `python -c CODE`, in a process of its own, in a folder with `files` by name.

    Standard error is dropped. Here and in sessions, `random` and `numpy.random` start seeded with 0.
    SandboxError where the machine cannot confine it.
    """
    check_limits()
    return _run(code, stdin, limits, files or {})


def _run(code: str, stdin: str, limits: Limits, files: Mapping[str, str | bytes]) -> Result:
    process = _Process(limits, stdin)
    try:
        process.write(files)
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
        check_limits()
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
        with self._lock:
            self._process.end()
            if not self._closed:
                self._process = _Process(self._limits)

    def close(self) -> None:
        """End the process and delete its folder; from another thread, it also ends a running call."""
        with self._lock:
            self._closed = True
            self._process.end()


# What makes a machine enforce each limit.
REMEDIES = {
    **dict.fromkeys(("no network", "no processes", "no signals"), "install libseccomp2"),
    **dict.fromkeys(("no reading outside", "no writing outside"), "use Linux 5.13 or later with Landlock"),
    **dict.fromkeys(("file size", "memory"), "use a container that allows setrlimit"),
}
OPEN = "AIMO_SANDBOX"  # the variable that lets programs run where a limit is missing: `open`, or `strict`


def enforced() -> dict[str, bool]:
    """Return whether this machine enforces each limit, found by trying to exceed it from inside.

    The first call also starts the fork server. SandboxError when no process can be confined.
    """
    small = Limits(seconds=30, memory_mb=128, file_mb=1)
    if error := _run("bytearray(96 << 20)\nopen('file', 'wb').write(bytes(1 << 20))", "", small, {}).error:
        raise SandboxError(f"sandbox: no process could be confined: {error.splitlines()[-1]}")
    with tempfile.NamedTemporaryFile() as file:
        os.chmod(file.name, 0o644)
        attempts = {
            "no network": "import socket; socket.socket()",
            "no processes": "import os; os.fork() or os._exit(0)",
            "no signals": "import os; os.kill(os.getppid(), 0)",
            "no reading outside": f"open({file.name!r})",
            "no writing outside": f"open({file.name!r}, 'a')",
            "file size": "open('file', 'wb').truncate((1 << 20) + 1)",
            "memory": "bytearray(128 << 20)",
        }
        return {what: not _run(attempt, "", small, {}).ok for what, attempt in attempts.items()}


def remedy(lacking: Iterable[str]) -> str:
    """Return what makes a machine enforce the limits that it lacks, or lets programs run without."""
    ways = "; ".join(dict.fromkeys(REMEDIES[what] for what in lacking))
    return f"{ways}; or set {OPEN}=open to run programs of a model without"


@functools.cache
def check_limits() -> tuple[str, ...]:
    """Return the limits that this machine does not enforce and the user accepts to go without.

    AIMO_SANDBOX=open accepts any, AIMO_SANDBOX=strict none. A Kaggle notebook is a container of its own, so
    there all but the network's may be missing unless the variable says `strict`. SandboxError else.
    """
    lacking = tuple(what for what, holds in enforced().items() if not holds)
    on_kaggle = "KAGGLE_KERNEL_RUN_TYPE" in os.environ and "no network" not in lacking
    asked = os.environ.get(OPEN) or ("open" if on_kaggle else "strict")
    if asked not in ("open", "strict"):
        raise SandboxError(f"sandbox: {OPEN} is {asked!r}; set it to open or strict")
    if lacking:
        fault = f"sandbox: not enforced on this machine: {', '.join(lacking)}"
        if asked == "strict":
            raise SandboxError(f"{fault}; {remedy(lacking)}")
        say(f"{fault}; programs run all the same ({OPEN}=strict refuses them)")
    return lacking


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
        """Start the process. SandboxError on systems other than Linux."""
        if sys.platform != "linux":
            raise SandboxError(f"sandbox: needs Linux, not {sys.platform}; use a container")
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.root = tempfile.mkdtemp(prefix="aimo-sandbox-")
        os.chmod(self.root, 0o711)
        package = str(Path(__file__).parents[2])
        code = (
            f"import sys; sys.path.insert(0, {package!r}); "
            f"from aimo.inference.sandbox_worker import serve_forks; serve_forks({self.root!r})"
        )
        # The whole environment, for the caller's may hold tokens.
        env = {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "MPLBACKEND": "Agg"}
        env |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONINTMAXSTRDIGITS": "0"}
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
        """Return the reply to a request with file descriptors. SandboxError when there is none."""
        reason = ""
        with self.lock:
            self.requests += 1
            message = json.dumps(request | {"number": self.requests}).encode()
            for _ in range(2):  # it may have been killed since the last request
                try:
                    if not self.process:
                        self.start()
                    socket.send_fds(self.control, [message], fds)
                    while reply := self.control.recv(4096):
                        answer: dict[str, Any] = json.loads(reply)
                        if answer["number"] != self.requests:
                            continue  # it answers a call that Ctrl-C interrupted
                        if "error" in answer:
                            raise SandboxError(f"sandbox: a process could not be started: {answer['error']}")
                        return answer
                except OSError as e:
                    reason = f" ({e.strerror})"
                self.close()
        test = f"{sys.executable} -s -P -c 'import numpy, sympy'"
        raise SandboxError(f"sandbox: its fork server does not start{reason}; see whether `{test}` runs")

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
    """One confined process: a script's where `stdin` is given, else a session's. It holds one descriptor."""

    def __init__(self, limits: Limits, stdin: str | None = None):
        self.limits, self.script = limits, stdin is not None
        self.calling, self.killing = threading.Lock(), threading.Lock()
        self.killed, self.status = False, 0
        request = {"programs": limits.programs, "memory_mb": limits.memory_mb, "file_mb": limits.file_mb}
        request |= {"script": self.script, "seconds": math.ceil(limits.seconds)}
        try:
            self.channel, channel = socket.socketpair()
            self.channel.setblocking(False)
            with channel, tempfile.TemporaryFile() if stdin else open(os.devnull, "w+b") as given:
                given.write((stdin or "").encode(errors="replace"))
                given.seek(0)
                reply = _server.ask(request, [channel.fileno(), given.fileno()])
        except OSError as e:
            raise SandboxError(f"sandbox: a process could not be started: {e}") from None
        self.pid, self.scratch = reply["pid"], reply["scratch"]

    def write(self, files: Mapping[str, str | bytes]) -> None:
        """Write files into the process's folder, before it has run any code."""
        for name, content in files.items():
            path = Path(self.scratch, name)
            if ".." in path.parts or not path.is_relative_to(self.scratch):
                raise SandboxError(f"sandbox: a file is named {name!r}; it leaves its folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode(errors="replace") if isinstance(content, str) else content)
            path.chmod(0o644)  # the process may be another user's
            for folder in path.relative_to(self.scratch).parents[:-1]:
                Path(self.scratch, folder).chmod(0o755)

    def call(self, code: str) -> Result:
        """Run code, and wait for its end or its limits."""
        with self.calling:
            if self.killed:
                return Result("", "the session is closed", restarted=True)
            while _read(self.channel.fileno()):
                pass  # what was written between the calls
            self.signal(signal.SIGCONT)
            token, output, late = secrets.token_bytes(TOKEN), bytearray(), bytearray()
            data = code.encode(errors="surrogatepass")
            with suppress(OSError):  # where the process has died, reading tells
                self.channel.settimeout(self.limits.seconds)
                self.channel.sendall(len(data).to_bytes(8) + data + token)
            stopped = self.collect(output, token, self.limits.seconds)
            timed_out, reason = stopped.startswith("timed out"), ""
            if stopped not in ("", "ended") and not self.script:
                _server.ask({"interrupt": self.scratch})  # as Ctrl-C does
                if not self.collect(late, token, GRACE_S):
                    stopped, reason = "", f"{stopped}; the session's variables are kept"
            text, _, error = (part.decode(errors="replace") for part in (output + late).partition(token))
            error = reason or error.removesuffix(token.decode(errors="replace"))
            if stopped == "ended":
                self.kill()
                stopped = self.how_it_ended(error)
            elif not stopped:
                stopped = self.why_stop(error)
        restarted = bool(stopped) and not self.script
        error = stopped or error[-ERROR_CHARS:]
        if restarted:
            error += "; the session's variables are lost"
        return Result(_cut(text, self.limits.output_chars), error, timed_out, restarted)

    def why_stop(self, error: str) -> str:
        """Return why a session cannot go on after a program; empty when it can, and now waits stopped."""
        if error == "MemoryError" or error.rpartition("\n")[2].startswith("SystemError"):
            return error  # no memory is left for a traceback, or the interpreter itself is broken
        if left := self.what_still_runs():
            return f"{left} still ran when the code ended, and were stopped"
        self.signal(signal.SIGSTOP)  # timers and handlers of the program do not run between calls
        return ""

    def how_it_ended(self, error: str) -> str:
        """Return the error, exit code or signal of an ended process; empty when a script ended well."""
        if self.status < 0:
            return f"killed by signal {-self.status} ({signal.strsignal(-self.status)})"
        if self.script and not self.status:
            return ""
        return error if self.script and error else f"exit code {self.status}"

    def collect(self, output: bytearray, token: bytes, seconds: float) -> str:
        """Collect a call's output for at most `seconds`; empty once its program has ended, else why not."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            if not poll.poll(math.ceil(left * 1000)):
                break
            if not (data := _read(self.channel.fileno())):
                return "ended"
            output += data
            if not self.script and output.endswith(token) and output.count(token) > 1:
                return ""
            if len(output) > MAX_OUTPUT:
                return f"stopped after {MAX_OUTPUT >> 20} MB of output"
        return f"timed out after {self.limits.seconds:g} s"

    def what_still_runs(self) -> str:
        """Return what goes on: threads, processes or nothing. A joined thread may take a moment to end."""
        tasks = Path(f"/proc/{self.pid}/task")
        for _ in range(40):
            with suppress(OSError):
                if len(os.listdir(tasks)) < 2:
                    return "processes" if Path(tasks, str(self.pid), "children").read_text() else ""
            time.sleep(0.005)
        return "threads"

    def signal(self, number: int) -> None:
        """Send a signal to a session's process. One that has ended is not reaped before `kill`."""
        if not self.script:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process, once."""
        with self.killing:
            if not self.killed:
                self.status, self.killed = _server.ask({"stop": self.scratch})["status"], True

    def end(self) -> None:
        """Kill the process, which ends a running call, and delete its folder."""
        try:
            self.kill()
        finally:
            with self.calling:
                if self.channel.fileno() >= 0:
                    self.channel.close()
                    delete(self.scratch)


def _read(fd: int) -> bytes:
    """Return available bytes; empty at the end of the file, or where there are none yet."""
    try:
        return os.read(fd, 1 << 16)
    except (BlockingIOError, ConnectionResetError):
        return b""


def _cut(text: str, limit: int) -> str:
    """Return at most `limit` characters of a text, and a note in the place of the others."""
    if (left_out := len(text) - limit) <= 0:
        return text
    return f"{text[: limit // 2]}\n[… {left_out:,} characters left out …]\n{text[limit // 2 + left_out :]}"
