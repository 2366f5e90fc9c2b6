"""Show progress: a line for each stage of a run, and one line with a count for other long work.

Without a terminal, print a plain line at most every PLAIN_S seconds.
"""

import html
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich import progress as rich
from rich.console import Console

from aimo.config import Profile
from aimo.inference.errors import AimoError
from aimo.inference.storage import read_json

PLAIN_S = 20
BAR_S = 0.5  # between two drawings of a bar in a notebook


def seldom() -> Callable[[str], None]:
    """Return a print function for use without a terminal: it prints a line every PLAIN_S seconds at most."""
    said = time.time()

    def say(line: str) -> None:
        nonlocal said
        if time.time() - said > PLAIN_S:
            said = time.time()
            print(line, flush=True)

    return say


def seconds_left(done: int, total: int, first: int, began: float) -> float:
    """Return the seconds left at the pace since step `first`, which ended at `began` (monotonic clock)."""
    return (time.monotonic() - began) / max(1, done - first) * (total - done)


@contextmanager
def counting(label: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
    """Show a count from `done` to `total` with the time left; yield a function to call after each step."""
    before, began, say = done, time.monotonic(), seldom()
    columns = "{task.description}", rich.BarColumn(), rich.MofNCompleteColumn(), rich.TimeRemainingColumn()

    def step() -> None:
        nonlocal done
        done += 1
        shown.advance(task)
        if shown.disable:
            left = seconds_left(done, total, before, began)
            say(f"{label}: {done:,} of {total:,}, about {left:.0f} s left")

    with rich.Progress(*columns) as shown:
        shown.disable = not shown.console.is_terminal
        task = shown.add_task(label, total=total, completed=done)
        yield step


@contextmanager
def changing_line(first: str) -> Iterator[Callable[[str], None]]:
    console, say = Console(), seldom()
    with console.status(first) as status:
        yield status.update if console.is_terminal else say


class CellBar:
    """A progress bar below a notebook's cell that a person runs; it disappears at the end."""

    def __init__(self, label: str, done: int):
        from IPython.display import HTML, display  # takes a second that other starts save

        self.html, self.handle = HTML, display(HTML(""), display_id=True)
        self.label, self.first, self.done = label, done, done
        self.began, self.drawn = time.monotonic(), 0.0

    def show(self, done: int, total: int, note: str = "") -> None:
        """Draw the bar at most every BAR_S seconds, but always for a new note in one step and at the end."""
        before, self.done, now = self.done, done, time.monotonic()
        if now - self.drawn < BAR_S and before != done < total:
            return
        self.drawn, left = now, ""
        if done > self.first:
            minutes, seconds = divmod(seconds_left(done, total, self.first, self.began), 60)
            left = f", {minutes:.0f} min {seconds:.0f} s left"
        bar = f"<progress max='{total}' value='{done}' style='width:40%;vertical-align:middle'></progress>"
        told = html.escape(f"{self.label}: {done:,} of {total:,}{left}{'; ' * bool(note)}{note}")
        self.handle.update(self.html(f"<div>{bar} {told}</div>" if done < total else ""))


class Display:
    """One line for each stage, with its steps, the time spent and the time left."""

    def __init__(self, folder: Path, profile: Profile):
        self.file = folder / "progress.json"  # notebooks report their steps here
        console = Console()
        self.plain = not console.is_terminal
        columns: list[str | rich.ProgressColumn] = ["{task.description:<10}", rich.BarColumn()]
        columns += ["{task.fields[note]:<24}", rich.TimeElapsedColumn(), "left", rich.TimeRemainingColumn()]
        self.bars = rich.Progress(*columns, console=console, disable=self.plain)
        stages = profile.stages
        self.tasks = {name: self.bars.add_task(name, total=None, start=False, note="") for name in stages}
        self.stopped = threading.Event()
        self.stage: str | None = None
        self.started = time.time()

    def __enter__(self) -> "Display":
        self.bars.start()
        threading.Thread(target=self.watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.bars.stop()

    def start(self, stage: str) -> None:
        self.file.unlink(missing_ok=True)
        self.stage, self.started = stage, time.time()
        self.bars.start_task(self.tasks[stage])
        self.bars.update(self.tasks[stage], note="starting")
        if self.plain:
            self.tell(f"{stage}: started")

    def finish(self, stage: str, note: str) -> None:
        self.stage = None
        self.bars.start_task(self.tasks[stage])
        self.bars.update(self.tasks[stage], total=1, completed=1, note=note)
        self.bars.stop_task(self.tasks[stage])
        if self.plain:
            self.tell(f"{stage}: {note}")

    def tell(self, line: str) -> None:
        self.bars.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def watch(self) -> None:
        first, say = ("", 0, 0.0), seldom()  # the stage, and the step and time of its first report
        while not self.stopped.wait(0.5):
            with suppress(AimoError, KeyError):
                state = read_json(self.file, "")
                stage, step, total, doing = (state[key] for key in ("stage", "step", "total", "note"))
                if stage != self.stage:
                    continue
                note = f"{step} of {total}" + f", {doing}" * bool(doing)
                self.bars.update(self.tasks[stage], completed=step, total=total, note=note)
                if first[0] != stage or step < first[1]:
                    first = stage, step, time.monotonic()
                elif self.plain:
                    left = f", about {seconds_left(step, total, *first[1:]):.0f} s left" * (step > first[1])
                    say(f"{stage}: {note}, {time.time() - self.started:.0f} s so far{left}")
