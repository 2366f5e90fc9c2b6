"""The sessions in which samples run their programs, ready before a sample asks for one."""

import functools
import queue
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from aimo.inference import sandbox
from aimo.inference.errors import one_line, say

READY = 16  # sessions kept ready: as many as samples run at a time by default
OUTPUT_CHARS = 4000  # of a program's output that the model reads; the middle of longer output is left out


@dataclass(frozen=True)
class Output:
    """What a program did."""

    shown: str  # what it printed, followed by its error if it raised one
    ok: bool  # whether it ran to its end


class Pool:
    """Sessions that are ready. They are started and ended in the background."""

    def __init__(self, limits: sandbox.Limits):
        self.limits = limits
        self.ready: queue.SimpleQueue[sandbox.Session] = queue.SimpleQueue()
        self.background = ThreadPoolExecutor(4)

    def fill(self) -> None:
        """Start sessions in the background until READY are ready."""
        for _ in range(READY - self.ready.qsize()):
            self.background.submit(self.add)

    def add(self) -> None:
        self.ready.put(sandbox.Session(self.limits))

    def take(self) -> sandbox.Session:
        """Return a session without variables. AimoError when no process can be confined."""
        try:
            session = self.ready.get_nowait()
        except queue.Empty:
            session = sandbox.Session(self.limits)
        self.background.submit(self.add)
        return session


@functools.cache
def pool(seconds: float) -> Pool:
    """Return the sessions whose programs may take so many seconds."""
    return Pool(sandbox.Limits(seconds=seconds, output_chars=OUTPUT_CHARS))


class Programs:
    """The programs of one sample; variables are kept from one to the next.

    A sandbox that fails, without memory or file descriptors too, becomes the program's output: it costs
    the turn and not the sample.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds  # that a program may take
        self.session: sandbox.Session | None = None

    def run(self, code: str) -> Output:
        try:
            self.session = self.session or pool(self.seconds).take()
            result = self.session.run(code)
        except Exception as e:
            note_fault(one_line(e))
            return Output(f"{one_line(e)}; continue without programs", ok=False)
        return Output((result.stdout + result.error).strip(), result.ok)

    def close(self) -> None:
        """End the session, and a program that runs; returns at once."""
        if self.session:
            pool(self.seconds).background.submit(self.session.close)


def warm(seconds: float) -> None:
    """Have sessions ready for the first question; returns at once, and does nothing without a sandbox."""
    if has_sandbox():
        pool(seconds).fill()


@functools.cache
def has_sandbox() -> bool:
    """Return whether programs can run here; print once what the sandbox enforces."""
    try:
        lacking = sandbox.check_limits()
    except Exception as e:
        note_fault(one_line(e))
        return False
    if not lacking:
        say("Sandbox: every limit is enforced.")
    return True


@functools.cache
def note_fault(fault: str) -> None:
    """Print what is wrong with the sandbox, each fault once."""
    say(f"{fault}; samples go on without tools")
