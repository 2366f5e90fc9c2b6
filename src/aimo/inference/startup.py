"""A kernel's start: weights read ahead, missing wheels installed, each step timed.

Imports nothing that a wheel may replace, as a kernel calls it before all else. Out of scope: the start of the
server and of the engine (`aimo.inference.gateway`).
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

from aimo.inference.errors import AimoError, one_line

STARTED = time.monotonic()  # a kernel imports this module first
INPUTS = Path(os.environ.get("KAGGLE_INPUT", "/kaggle/input"))  # where what is attached lies
BLOCK = 32 << 20  # bytes of one read
READERS = 8  # threads: one alone does not use up the network that Kaggle's inputs come through


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Print how long the body took, unless it raised."""
    begun = time.monotonic()
    yield
    print(f"{name}: {time.monotonic() - begun:.1f} s", flush=True)


def read_ahead(model: str | Path) -> Thread:
    """Read a model folder's weights into the page cache, in threads, and print how much was read.

    Stops as soon as the memory that processes leave would not hold all of them. Never raises: an engine reads
    them too. Returns the thread that ends with the last one.
    """
    thread = Thread(target=read_weights, args=(sorted(Path(model).glob("*.safetensors")),), daemon=True)
    thread.start()
    return thread


def read_weights(files: list[Path]) -> None:
    """Read files by READERS threads in large blocks, and print how much was read."""
    begun, counts, notes = time.monotonic(), [0] * READERS, set()
    try:
        sizes = {file: file.stat().st_size for file in files}
    except OSError as e:
        print(f"weights: not read ahead ({one_line(e)})", flush=True)
        return
    total = sum(sizes.values())
    blocks = [(file, begin) for file, size in sizes.items() for begin in range(0, size, BLOCK)]

    def work(reader: int) -> None:
        try:
            for file, begin in blocks[reader::READERS]:
                if available_memory() < total:
                    notes.add(f"the memory does not hold all {total / 1e9:.1f} GB")
                    return
                with file.open("rb", buffering=0) as opened:
                    opened.seek(begin)
                    counts[reader] += len(opened.read(BLOCK))
        except OSError as e:
            notes.add(one_line(e))

    readers = [Thread(target=work, args=(reader,), daemon=True) for reader in range(READERS)]
    for thread in readers:
        thread.start()
    for thread in readers:
        thread.join()
    note = "".join(f"; {note}" for note in sorted(notes))
    seconds = time.monotonic() - begun
    print(f"weights: {sum(counts) / 1e9:.3g} GB read into the page cache, {seconds:.1f} s{note}", flush=True)


def available_memory() -> int:
    """Return the bytes of the machine's, and of the container's, memory that no process holds."""
    found = re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())
    available = int(found[1]) * 1024 if found else 0
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        limit = int((group / "memory.max").read_text())
        held = re.search(r"^anon (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
        available = min(available, limit - int(held[1] if held else 0))
    return available


def install_wheels(inputs: Path = INPUTS) -> None:
    """Install the attached wheels that are not installed in their version, without the internet.

    Never raises: `check_modules` tells later whether something is missing. What pip refuses is printed.
    """
    wheels = {path.name: path for path in sorted(inputs.rglob("*.whl"))}
    missing = [path for name, path in wheels.items() if not is_installed(name)]
    print(f"wheels: {len(wheels)} attached, {len(wheels) - len(missing)} of them installed", flush=True)
    if missing:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
        done = subprocess.run([*command, *map(str, missing)], capture_output=True, text=True)
        importlib.invalidate_caches()
        if done.returncode:
            print(f"wheels: pip installs none of them: {' '.join(done.stderr.split())[:300]}", flush=True)


def is_installed(wheel: str) -> bool:
    """Return whether the distribution of a wheel's file name is installed in its version."""
    name, _, rest = wheel.partition("-")
    try:
        return importlib.metadata.version(name) == rest.partition("-")[0]
    except importlib.metadata.PackageNotFoundError:
        return False


def check_modules(*needed: str, inputs: Path = INPUTS) -> None:
    """Raise AimoError that names the modules that are not installed."""
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    if absent:
        raise AimoError(
            f"{' and '.join(absent)} not installed, and no wheel under {inputs} installs it; attach a "
            "dataset of wheels for this Python"
        )
