"""Run a model's Python in confined processes: scripts for rewards, sessions for the programs of samples.

A fork server (`sandbox_worker`) imports numpy and sympy once and forks a process for each script or session
in milliseconds. That process drops its rights before it reads any code: rlimits bound its memory and files,
Landlock leaves it a scratch folder and the installed libraries, seccomp forbids sockets, processes and
signals, and root becomes a user that owns nothing. The caller kills the process at the time limit.
`enforced` tries to exceed each limit; if one is missing, nothing runs unless AIMO_SANDBOX=open
(docs/sandbox.md). Linux only. Nothing bounds the total size of a scratch folder.
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from aimo.inference.errors import SandboxError, one_line, say
from aimo.inference.sandbox_worker import ERROR_CHARS, TOKEN, delete

GRACE_S = 0.5  # seconds that an interrupted program has to end before its process is killed
MAX_OUTPUT = 16 << 20  # bytes of output at which a call is stopped: reading them costs the caller too
SHOWN_CHARS = 4000  # of a program's output that the model sees
OPEN = "AIMO_SANDBOX"  # the variable: `open` lets programs run if a limit is missing, `strict` does not
SECCOMP, LANDLOCK = "install libseccomp2", "use Linux 5.13 or later with Landlock"
RLIMIT = "use a container that allows setrlimit"
# For each limit: a program that exceeds it, where {file} is the caller's, and the remedy if it succeeds.
ATTEMPTS = {
    "no network": ("import socket; socket.socket()", SECCOMP),
    "no processes": ("import os; os.fork() or os._exit(0)", SECCOMP),
    "no signals": ("import os; os.kill(os.getppid(), 0)", SECCOMP),
    "no reading outside": ("open({file!r})", LANDLOCK),
    "no writing outside": ("open({file!r}, 'a')", LANDLOCK),
    "file size": ("open('file', 'wb').truncate((1 << 20) + 1)", RLIMIT),
    "memory": ("bytearray(128 << 20)", RLIMIT),
}


@dataclass(frozen=True)
class Limits:
    """What code may use. It may always start threads."""

    seconds: float = 5  # wall time of a call, so slow code may fail on a busy machine
    memory_mb: int = 1024  # address space beyond the idle interpreter's
    file_mb: int = 64  # size of one file
    output_chars: int = 20_000  # a note replaces the middle of longer output
    programs: bool = False  # whether it may start installed programs, such as compilers, under these limits


@dataclass(frozen=True)
class Result:
    """The result of a call."""

    stdout: str  # a session's includes standard error and the value of a trailing expression
    error: str = ""  # the traceback's last lines, or why the code was stopped
    timed_out: bool = False
    restarted: bool = False  # the session has lost its variables

    @property
    def ok(self) -> bool:
        return not self.error

    @property
    def shown(self) -> str:  # to the model
        return (self.stdout + self.error).strip()


DEFAULT = Limits()


def run_script(
    code: str, stdin: str = "", limits: Limits = DEFAULT, files: Mapping[str, str | bytes] | None = None
) -> Result:
    """Run a script like `python -c CODE` in its own process, in a folder that holds `files`, by name.

    Standard error is dropped. As in sessions, `random` and `numpy.random` are seeded with 0. SandboxError if
    the machine cannot confine the script.
    """
    check_limits()
    return _run(code, stdin, limits, files or {})


def _run(code: str, stdin: str, limits: Limits, files: Mapping[str, str | bytes]) -> Result:
    process = _Process(limits, stdin)
    try:
        for name, content in files.items():
            path = Path(process.scratch, name)
            if ".." in path.parts or not path.is_relative_to(process.scratch):
                raise SandboxError(f"sandbox: a file is named {name!r}; it leaves its folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode(errors="replace") if isinstance(content, str) else content)
            path.chmod(0o644)  # the process may run as another user
            for folder in path.relative_to(process.scratch).parents[:-1]:
                Path(process.scratch, folder).chmod(0o755)
        return process.call(code)
    finally:
        process.end()


class Session:
    """Run pieces of code in turn, as a notebook does: variables stay, and a trailing value is shown.

    Sessions may run side by side, each in its caller's thread (`asyncio.to_thread`). A timeout and too much
    output interrupt the program and keep the variables. After a program that cannot be interrupted, a crash,
    or threads that outlive their call, the session continues without variables in a new process.
    """

    def __init__(self, limits: Limits = DEFAULT):
        check_limits()
        self._limits, self._lock, self._closed = limits, threading.Lock(), False
        self._process, self._lost = _Process(limits), False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, code: str) -> Result:
        with self._lock:
            if self._lost and not self._closed:
                self._process, self._lost = _Process(self._limits), False
        result = self._process.call(code)
        if result.restarted:
            self._lost = True
            _server.background.submit(self._process.end)
        return result

    def close(self) -> None:
        """End the process and delete its folder; from another thread, also end a running call."""
        with self._lock:
            self._closed = True
            self._process.end()


# ---- what the machine enforces ----


def enforced() -> dict[str, bool]:
    """Try to exceed each limit from inside, and return whether this machine enforces it.

    The first call also starts the fork server. SandboxError if no process can be confined.
    """
    small = Limits(seconds=30, memory_mb=128, file_mb=1)
    if error := _run("bytearray(96 << 20)\nopen('file', 'wb').write(bytes(1 << 20))", "", small, {}).error:
        raise SandboxError(f"sandbox: no process could be confined: {error.splitlines()[-1]}")
    with tempfile.NamedTemporaryFile() as file:
        os.chmod(file.name, 0o644)
        programs = {what: attempt.format(file=file.name) for what, (attempt, _) in ATTEMPTS.items()}
        return {what: not _run(program, "", small, {}).ok for what, program in programs.items()}


def remedy(lacking: Iterable[str]) -> str:
    """Return how to make a machine enforce the missing limits, or how to run programs without them."""
    ways = "; ".join(dict.fromkeys(ATTEMPTS[what][1] for what in lacking))
    return f"{ways}; or set {OPEN}=open to run programs of a model without"


@functools.cache
def check_limits() -> tuple[str, ...]:
    """Return the limits that this machine does not enforce, if the user accepts that.

    AIMO_SANDBOX=open accepts any missing limit, AIMO_SANDBOX=strict none. A Kaggle notebook is itself a
    container: by default, all but the network's may be missing there. SandboxError otherwise.
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


@functools.cache
def has_sandbox() -> bool:
    """Return whether programs of samples can run here; print once what the sandbox enforces."""
    try:
        if not check_limits():  # the first call starts the fork server, which takes seconds
            say("Sandbox: every limit is enforced.")
        return True
    except Exception as e:
        note_fault(one_line(e))
        return False


@functools.cache
def note_fault(fault: str) -> None:  # prints each fault once
    say(f"{fault}; samples go on without tools")


# ---- the programs of samples ----


class Programs:
    """The programs of one sample, for up to `seconds` each; variables stay from one to the next.

    A fault of the sandbox, such as a lack of memory or file descriptors, becomes the program's output. It
    costs the turn, not the sample.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.session: Session | None = None

    def run(self, code: str) -> Result:
        try:
            self.session = self.session or Session(Limits(self.seconds, output_chars=SHOWN_CHARS))
            return self.session.run(code)
        except Exception as e:
            note_fault(one_line(e))
            return Result("", f"{one_line(e)}; continue without programs")

    def close(self) -> None:
        """End the session and any running program, without waiting for the end."""
        if self.session:
            _server.background.submit(self.session.close)


# ---- the caller's side of the processes ----


class _ForkServer:
    """The process that forks the confined ones. They end with it, and it ends with this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.requests = 0
        self.background = ThreadPoolExecutor(4)  # ends processes that nobody waits for

    def start(self) -> None:
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
        # This is the whole environment, because the caller's may hold tokens.
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
        """Send a request with file descriptors and return the reply. SandboxError if it fails."""
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
        """End the process and all that it forked, and delete its folder."""
        if self.process:
            with suppress(OSError):
                self.control.shutdown(socket.SHUT_RDWR)  # a fork of this process may hold the socket too
            self.control.close()
            self.process.wait()
            self.process = None
            delete(self.root)  # a server that was killed has not done so


_server = _ForkServer()


def _forget() -> None:
    """Forget the server in a fork of this process: it belongs to the parent."""
    global _server
    _server = _ForkServer()


os.register_at_fork(after_in_child=_forget)
atexit.register(lambda: _server.close())


class _Process:
    """One confined process: a script's if `stdin` is given, or a session's. It uses one descriptor."""

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

    def call(self, code: str) -> Result:
        """Run code until it ends or exceeds a limit, and return the result."""
        with self.calling:
            if self.killed:
                return Result("", "the session is closed", restarted=True)
            while self.read():
                pass  # drop what was written between the calls
            self.signal(signal.SIGCONT)
            token, output, late = secrets.token_bytes(TOKEN), bytearray(), bytearray()
            data = code.encode(errors="surrogatepass")
            with suppress(OSError):  # if the process has died, `collect` reports it
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
            if stopped == "ended":  # it exited, or was killed
                self.kill()
                ran = self.script and not self.status
                stopped = "" if ran else error if self.script and error else f"exit code {self.status}"
                if self.status < 0:
                    stopped = f"killed by signal {-self.status} ({signal.strsignal(-self.status)})"
            elif not stopped:
                stopped = self.why_unfit(error)
        restarted = bool(stopped) and not self.script
        error = stopped or error[-ERROR_CHARS:]
        if restarted:
            error += "; the session's variables are lost"
        limit = self.limits.output_chars
        if (left_out := len(text) - limit) > 0:
            end = text[limit // 2 + left_out :]
            text = f"{text[: limit // 2]}\n[… {left_out:,} characters left out …]\n{end}"
        return Result(text, error, timed_out, restarted)

    def collect(self, output: bytearray, token: bytes, seconds: float) -> str:
        """Collect output for at most `seconds`. Return "" once the program has ended, or why it has not."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            if not poll.poll(math.ceil(left * 1000)):
                break
            if not (data := self.read()):
                return "ended"
            output += data
            if not self.script and output.endswith(token) and output.count(token) > 1:
                return ""
            if len(output) > MAX_OUTPUT:
                return f"stopped after {MAX_OUTPUT >> 20} MB of output"
        return f"timed out after {self.limits.seconds:g} s"

    def read(self) -> bytes:
        """Return the bytes that wait in the channel, empty at its end or if there are none yet."""
        try:
            return os.read(self.channel.fileno(), 1 << 16)
        except (BlockingIOError, ConnectionResetError):
            return b""

    def why_unfit(self, error: str) -> str:
        """Return why the session cannot continue, or "" if it can; then stop it until its next call."""
        if error == "MemoryError" or error.rpartition("\n")[2].startswith("SystemError"):
            return error  # no memory is left for a traceback, or the interpreter itself is broken
        tasks, left = Path(f"/proc/{self.pid}/task"), "threads"
        for _ in range(40):  # a joined thread may take a moment to end
            with suppress(OSError):
                if len(os.listdir(tasks)) < 2:
                    left = "processes" if Path(tasks, str(self.pid), "children").read_text() else ""
                    break
            time.sleep(0.005)
        if left:
            return f"{left} still ran when the code ended, and were stopped"
        self.signal(signal.SIGSTOP)  # the program's timers and handlers must not run between calls
        return ""

    def signal(self, number: int) -> None:
        """Send a signal to a session's process. Its pid stays valid: only `kill` reaps it."""
        if not self.script:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
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
