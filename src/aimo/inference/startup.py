"""Start a kernel: read weights ahead, install missing wheels, and time each step.

A kernel calls this module before any other, so it imports nothing that a wheel may replace.
"""

import ast
import atexit
import contextlib
import gc
import hashlib
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

from aimo.inference.errors import AimoError, one_line, say

STARTED = time.monotonic()  # a kernel imports this module first, so its time counts from here
INPUTS = Path(os.environ.get("KAGGLE_INPUT", "/kaggle/input"))  # the folder of a kernel's inputs
KAGGLE = "https://www.kaggle.com/"
MANIFEST = "wheels.json"  # beside the attached wheels, with the hash of each
BLOCK = 32 << 20  # bytes of one read
READERS = 8  # threads: one cannot saturate the network behind Kaggle's inputs


def place_of(path: str, inputs: Path = INPUTS) -> tuple[str, str] | None:
    """Return an input's owner ("" if the path names none) and its place NAME/…, or None for another path.

    The path may be /kaggle/input/NAME/…, /kaggle/input/KIND/OWNER/NAME/…, an address at kaggle.com, or
    OWNER/MODEL/FRAMEWORK/VARIATION/VERSION.
    """
    text = re.sub(r"[?#].*|/+$", "", path.strip())
    if re.fullmatch(r"(?!/)(?:[^/:]+/){4}\d+", text):
        text = f"{KAGGLE}models/{text}"
    for root in (f"{inputs}/", "/kaggle/input/", KAGGLE, KAGGLE.replace("www.", "")):
        if text.startswith(root):
            kind, *rest = text.removeprefix(root).split("/")
            if kind in ("competitions", "c"):
                return "", "/".join(rest)
            if kind in ("datasets", "models", "notebooks", "kernels", "code") and len(rest) > 1:
                return rest[0], "/".join(rest[1:])
            return "", "/".join([kind, *rest])
    return None


def find_input(path: Any, inputs: Path = INPUTS) -> Any:
    """Return the path of an attached file or folder in either of Kaggle's layouts; for a list, of each.

    If a path is not attached, return it unchanged and print what is attached. Never raises.
    """
    if isinstance(path, list):
        return [find_input(one, inputs) for one in path]
    if not isinstance(path, str) or os.path.exists(path) or not (named := place_of(path, inputs)):
        return path
    owner, place = named
    kinds = [inputs / kind for kind in ("competitions", "datasets", "models", "notebooks", "kernels")]
    roots = [inputs, kinds[0], *(root for kind in kinds[1:] for root in kind.glob("*"))]
    fitting = [root for root in roots if owner in ("", root.name) or root in (inputs, kinds[0])]
    found = {root / one for root in fitting for one in (place, place.lower()) if (root / one).exists()}
    if len(found) == 1:
        return str(*found)
    attached = {one for root in roots for one in root.glob("*") if one not in kinds}
    there = sorted(map(str, found or attached))
    problem = "is attached more than once" if found else "is not attached"
    say(f"inputs: {path} {problem}; there are: {', '.join(there[:20]) or 'none'}")
    return path


def begun() -> float:
    """Return the session's start on the monotonic clock; in an interactive session, the current time."""
    return time.monotonic() if os.getenv("KAGGLE_KERNEL_RUN_TYPE") == "Interactive" else STARTED


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Print how long the body took, unless it raised."""
    begun = time.monotonic()
    yield
    say(f"{name}: {time.monotonic() - begun:.1f} s")


def collect_less() -> None:
    """Collect garbage less often: collection takes a quarter of vLLM's import time, and 2 s at exit."""
    gc.set_threshold(*gc.get_threshold()[:2], 1000)
    atexit.register(gc.freeze)


def read_ahead(model: str | Path) -> Thread:
    """Read a model folder's weights into the page cache with READERS threads, and print how much was read.

    Stop as soon as the free memory cannot hold all of them. Never raises, because an engine reads them
    anyway. Return a thread that ends with the reading.
    """

    def work() -> None:
        begun, counts, notes = time.monotonic(), [0] * READERS, set()
        try:
            sizes = {file: file.stat().st_size for file in sorted(Path(model).glob("*.safetensors"))}
        except OSError as e:
            return say(f"weights: not read ahead ({one_line(e)})")
        blocks = [(file, begin) for file, size in sizes.items() for begin in range(0, size, BLOCK)]
        total = sum(sizes.values())

        def read(reader: int) -> None:
            try:
                for file, begin in blocks[reader::READERS]:
                    if available_memory() < total:
                        notes.add(f"; the memory does not hold all {total / 1e9:.1f} GB")
                        return
                    with file.open("rb", buffering=0) as opened:
                        opened.seek(begin)
                        counts[reader] += len(opened.read(BLOCK))
            except OSError as e:
                notes.add(f"; {one_line(e)}")

        readers = [Thread(target=read, args=[reader], daemon=True) for reader in range(READERS)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        seconds, note = time.monotonic() - begun, "".join(sorted(notes))
        say(f"weights: {sum(counts) / 1e9:.3g} GB read into the page cache, {seconds:.1f} s{note}")

    thread = Thread(target=work, daemon=True)
    thread.start()
    return thread


def available_memory() -> int:
    """Return the bytes of memory that no process holds, within the container's limit."""
    found = re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())
    available = int(found[1]) * 1024 if found else 0
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        limit = int((group / "memory.max").read_text())
        held = re.search(r"^anon (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
        available = min(available, limit - int(held[1] if held else 0))
    return available


def install_wheels(modules: Collection[str] = (), inputs: Path = INPUTS) -> None:
    """Install the attached wheels whose versions are not installed yet, without the internet.

    `modules` limits this to the wheels that hold them, those that these require, and all without a manifest.
    Print and leave out wheels for another Python and files that differ from their manifest, because pip would
    refuse the whole set. Never raises: `check_modules` reports later what is missing.
    """
    # Describe wheels by their manifests (`wheels.collect`), and the others by their file names.
    found: dict[Path, dict[str, Any]] = {}
    for manifest in sorted(inputs.rglob(MANIFEST)):
        try:
            for wheel in json.loads(manifest.read_text())["wheels"]:
                found[manifest.parent / wheel["file"]] = wheel
        except (ValueError, KeyError, TypeError) as e:
            say(f"wheels: {manifest} is no manifest ({one_line(e)})")
    for path in sorted(inputs.rglob("*.whl")):
        name, _, rest = path.stem.partition("-")
        found.setdefault(path, {"name": name.replace("_", "-").lower(), "version": rest.partition("-")[0]})

    # Keep those for this Python. Another process imports pip: setuptools, which vLLM imports, cannot be
    # imported after it.
    code = "from pip._vendor.packaging.tags import sys_tags; print(*sys_tags())"
    accepted = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    fitting: dict[str, dict[str, Any]] = {}
    foreign = []
    for path, wheel in found.items():
        parts = [part.split(".") for part in path.stem.split("-")[-3:]]  # PYTHON-ABI-PLATFORM
        if {"-".join(tag) for tag in itertools.product(*parts)} & {*accepted}:
            fitting.setdefault(wheel["name"], wheel | {"path": path})
        else:
            foreign.append(wheel)

    # Keep those that hold the modules, and what they require.
    needs = {name: names for wheel in fitting.values() for name, names in wheel.get("requires", {}).items()}
    holds = {name: {*wheel.get("modules", modules)} for name, wheel in fitting.items()}
    todo = [name for name in fitting if not modules or holds[name] & {*modules}]
    wanted: set[str] = set()
    while todo:
        if (name := todo.pop()) not in wanted:
            wanted.add(name)
            todo += needs.get(name, [])
    wheels = [wheel for name, wheel in fitting.items() if name in wanted]

    # Keep those whose version is not installed, and whose file is the manifest's.
    def is_installed(wheel: dict[str, Any]) -> bool:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(wheel["name"]) == wheel["version"]
        return False

    def is_intact(wheel: dict[str, Any]) -> bool:
        with contextlib.suppress(OSError), wheel["path"].open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return wheel.get("sha256", digest) == digest
        return False

    missing = [wheel for wheel in wheels if not is_installed(wheel)]
    with ThreadPoolExecutor() as pool:
        intact = [wheel for wheel, same in zip(missing, pool.map(is_intact, missing), strict=True) if same]
    say(f"wheels: {len(found)} attached, {len(wheels)} needed, {len(missing)} to install")
    changed = [wheel for wheel in missing if wheel not in intact]
    reasons = f"not for Python {platform.python_version()}", "absent, or not the file of the manifest"
    for reason, several in zip(reasons, (foreign, changed), strict=True):
        if several:
            named = ", ".join(sorted(f"{wheel['name']} {wheel['version']}" for wheel in several))
            say(f"wheels: left out, {reason}: {named}")
    if intact:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
        paths = [str(wheel["path"]) for wheel in intact]
        done = subprocess.run([*command, *paths], capture_output=True, text=True)
        importlib.invalidate_caches()
        if done.returncode:
            say(f"wheels: pip installs none of them: {' '.join(done.stderr.split())[:300]}")


def imports(files: Iterable[Path] | None = None) -> list[str]:
    """Return the third-party modules that `files`, by default the whole package, import anywhere."""
    names = set()
    for path in files or Path(__file__).parents[1].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
    return sorted(names - {*sys.stdlib_module_names, "aimo"})


def check_modules(*needed: str, inputs: Path = INPUTS) -> None:
    """Raise an AimoError that names the `needed` modules that are not installed."""
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    if absent:
        raise AimoError(
            f"{' and '.join(absent)} not installed, and no wheel under {inputs} for Python "
            f"{platform.python_version()} installs it; attach the output of the kernel `wheels`, run there"
        )
