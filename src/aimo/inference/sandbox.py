"""Run a model's Python in confined processes: fresh scripts for the code rewards, stateful sessions for the solver.

A fork server imports numpy and sympy once and forks a process for each script or session, in milliseconds. That process
gives up what it could do harm with before it sees any code: rlimits bound its memory and files, Landlock leaves it a scratch
folder and the installed libraries, seccomp no sockets, no processes and no signals, and root turns into a user that
owns nothing (`confinement`). The caller's side keeps the time and kills. What the machine lacks of this is left out;
`enforced` finds out by trying, and docs/sandbox.md has the table.

Out of scope: a bound on the total size of a scratch folder; systems other than Linux. A remote sandbox takes this one's place by
having a `Session` with `run` and `close`.
"""

import ast
import atexit
import gc
import json
import linecache
import math
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aimo.inference import confinement
from aimo.inference.errors import AimoError

FLOOD = 16 << 20  # bytes of output at which a call is stopped, because reading them costs the caller too
ERROR_LINES, ERROR_CHARS = 20, 2000


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
    """Longer output loses its middle, with a note of how much."""


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
    """Run scripts, each (code, stdin), `workers` at a time (None: one a core). Results come in the scripts' order."""
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda script: run(script[0], script[1], limits), scripts))


class Session:
    """Runs one piece of code after another like a notebook: variables live on, a trailing expression's value is shown.

    Any number may run side by side, each in a thread of its caller's (`asyncio.to_thread`). After a timeout, a crash or
    threads that outlive their call, a session goes on with a new process and no variables.
    """

    def __init__(self, limits: Limits = DEFAULT):
        self._limits, self._lock, self._closed = limits, threading.Lock(), False
        self._process = _Process(limits)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, code: str) -> Result:
        """Run code after that of earlier calls."""
        result = self._process.call(code)
        if result.restarted:
            with self._lock:
                self._process.end()
                if not self._closed:
                    self._process = _Process(self._limits)
        return result

    def close(self) -> None:
        """End the process and delete its folder; from another thread, it also ends a running call."""
        with self._lock:
            self._closed = True
            self._process.end()


def enforced() -> dict[str, bool]:
    """What this machine enforces, found by trying it from inside. For start-up: later calls find the fork server running."""
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

    def start(self) -> None:
        if sys.platform != "linux":
            raise AimoError(f"sandbox: needs Linux, not {sys.platform}; use a container")
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.root = tempfile.mkdtemp(prefix="aimo-sandbox-")
        os.chmod(self.root, 0o711)
        package = str(Path(__file__).parents[2])
        code = f"import sys; sys.path.insert(0, {package!r}); from aimo.inference import sandbox; sandbox._serve({self.root!r})"
        # The whole environment, for the caller's may hold tokens.
        env = {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "MPLBACKEND": "Agg"}
        env |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-s", "-P", "-c", code]
        with theirs:
            self.process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=env,
                cwd="/",
                start_new_session=True,
            )

    def ask(self, request: dict[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        with self.lock:
            self.requests += 1
            message = json.dumps(request | {"number": self.requests}).encode()
            for _ in range(2):  # it may have been killed since the last request
                with suppress(OSError):
                    if not self.process:
                        self.start()
                    socket.send_fds(self.control, [message], fds)
                    while reply := self.control.recv(4096):
                        if (answer := json.loads(reply))[
                            "number"
                        ] == self.requests:  # else to one that Ctrl-C interrupted
                            return answer
                self.close()
        raise AimoError(
            f"sandbox: its fork server does not start; see whether `{sys.executable} -s -P -c 'import numpy, sympy'` runs"
        )

    def close(self) -> None:
        if self.process:
            with suppress(OSError):
                self.control.shutdown(
                    socket.SHUT_RDWR
                )  # ends it even where a fork of this process holds the socket too
            self.control.close()
            self.process.wait()
            self.process = None
            _delete(self.root)  # which it has done, unless it was killed


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
            reply = _server.ask(
                {"limits": asdict(limits), "script": self.script},
                [channel.fileno(), given.fileno(), out.fileno()],
            )
        self.pid, self.scratch = reply["pid"], reply["scratch"]

    def call(self, code: str) -> Result:
        with self.calling:
            if self.killed:
                return Result("", "the session is closed", restarted=True)
            self.calls += 1
            output, reply = bytearray(), bytearray()
            stopped = self.exchange(code, output, reply)
            timed_out = stopped.startswith("timed out")
            number, _, error = reply[:-1].decode(errors="replace").partition(" ")
            if not stopped:
                if number != str(self.calls):
                    stopped = "stopped because it wrote to the sandbox's own channel"
                elif error.rpartition("\n")[2].startswith("SystemError"):
                    stopped = error  # the interpreter itself is broken
                elif not self.script and self.has_threads():
                    stopped = "threads still ran when the code ended, and were stopped"
            if stopped:
                self.kill()
            if stopped == "ended":
                stopped = f"exit code {self.status}" if self.status or not self.script else ""
                if self.status < 0:
                    stopped = f"killed by signal {-self.status} ({signal.strsignal(-self.status)})"
            while len(output) <= FLOOD and (data := _read(self.output)):
                output += data
        restarted = bool(stopped) and not self.script
        error = stopped or error[-ERROR_CHARS:]
        if restarted:
            error += "; the session's variables are lost"
        return Result(
            _cut(output.decode(errors="replace"), self.limits.output_chars), error, timed_out, restarted
        )

    def exchange(self, code: str, output: bytearray, reply: bytearray) -> str:
        """Send the code and gather what comes back. Empty once the reply is whole, else why there will be none."""
        deadline = time.monotonic() + self.limits.seconds
        with suppress(OSError):  # where the process has died, reading tells
            self.channel.settimeout(self.limits.seconds)
            self.channel.sendall(json.dumps(code).encode() + b"\n")
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
            if len(output) + len(reply) > FLOOD:
                return f"stopped after {FLOOD >> 20} MB of output"
        return ""

    def has_threads(self) -> bool:
        """Whether threads go on. One that was joined may take the kernel a moment to end."""
        for _ in range(40):
            if len(list(Path(f"/proc/{self.pid}/task").glob("*"))) < 2:
                return False
            time.sleep(0.005)
        return True

    def kill(self) -> None:
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
                _delete(self.scratch)


def _read(fd: int) -> bytes:
    """What there is; nothing at the end of the file, or where there is none yet."""
    try:
        return os.read(fd, 1 << 16)
    except (BlockingIOError, ConnectionResetError):
        return b""


def _cut(text: str, limit: int) -> str:
    """At most `limit` characters of the text, and a note in the place of the others."""
    if (left_out := len(text) - limit) <= 0:
        return text
    return f"{text[: limit // 2]}\n[… {left_out:,} characters left out …]\n{text[limit // 2 + left_out :]}"


def _delete(folder: str) -> None:
    """Delete a folder that code has filled; however deep, unlike shutil.rmtree."""
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        pass
    except OSError:
        subprocess.run(["rm", "-rf", "--", folder])


# ---- the fork server ----


def _serve(root: str) -> None:
    """Fork a process for each request, until the caller closes the socket at file descriptor 0."""
    import numpy.random
    import sympy  # noqa: F401

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
                reply: dict[str, Any] = {"status": _stop(children.pop(request["stop"], 0))}
            else:
                scratch = tempfile.mkdtemp(dir=root)
                pid = os.fork()
                if pid == 0:
                    _work(fds, scratch, Limits(**request["limits"]), request["script"], bpf)
                for fd in fds:
                    os.close(fd)
                children[scratch] = pid
                reply = {"pid": pid, "scratch": scratch}
            control.send(json.dumps(reply | {"number": request["number"]}).encode())
    finally:
        for pid in children.values():
            _stop(pid)
        _delete(root)


def _stop(pid: int) -> int:
    """Kill a process (0: none) and what it started, where it could; its exit code, negative for a signal."""
    if not pid:
        return 0
    os.kill(pid, signal.SIGKILL)  # leaves the exit code of a process that has ended already
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---- inside ----


def _work(fds: list[int], scratch: str, limits: Limits, script: bool, bpf: bytes) -> None:
    """Run each piece of code that comes down the channel; answer with its number, its error and a zero byte. Never returns."""
    number = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        for fd, target in zip((*fds, null if script else fds[2]), (3, 0, 1, 2), strict=True):
            os.dup2(fd, target)  # the channel has the lowest number of the three, so 3 is none of the others
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        confinement.confine(scratch, limits.memory_mb, limits.file_mb, bpf)
        channel = socket.socket(fileno=3)
        sys.argv = ["-c"]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        random.seed(0)  # a fork reseeds it
        for number, line in enumerate(channel.makefile(), 1):
            error = _execute(json.loads(line), main.__dict__, f"<code {number}>", script)
            channel.sendall(f"{number} {error}".replace("\0", "").encode(errors="backslashreplace") + b"\0")
    except BaseException:
        os.write(3, f"{number} {traceback.format_exc()[-ERROR_CHARS:]}\0".encode(errors="backslashreplace"))
    finally:
        os._exit(1)


def _execute(code: str, namespace: dict[str, Any], name: str, script: bool) -> str:
    """Run code; the last lines of its traceback, or nothing."""
    sys.stdin, sys.stdout, sys.stderr = (
        open(fd, mode, buffering, "utf-8", errors, closefd=False)  # noqa: SIM115
        for fd, mode, buffering, errors in (
            (0, "r", -1, "replace"),
            (1, "w", -1 if script else 1, "strict"),
            (2, "w", 1, "replace"),
        )
    )
    stdout, error = sys.stdout, ""
    linecache.cache[name] = (
        len(code),
        None,
        code.splitlines(True),
        name,
    )  # where tracebacks find the code's lines
    try:
        tree = ast.parse(code, name)
        last = [tree.body.pop()] if not script and tree.body and isinstance(tree.body[-1], ast.Expr) else []
        exec(compile(tree, name, "exec"), namespace)
        exec(compile(ast.Interactive(last), name, "single"), namespace)  # shows its value
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
