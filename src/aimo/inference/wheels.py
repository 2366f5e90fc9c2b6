"""Collect the wheels of a lock file for a machine like this one but without the internet."""

import email.parser
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from aimo.inference.errors import AimoError
from aimo.inference.startup import MANIFEST, step
from aimo.inference.storage import write_json

VOCABULARY = "o200k_base.tiktoken"


def collect(requirements: str | Path, out: str | Path = ".") -> dict[str, Any]:
    """Collect a lock file's wheels into `out`/wheels, write the manifest beside them and return it.

    Build the releases that have no wheel. Then install all wheels into a fresh environment, from `out` alone
    and by their hashes. If the lock has oss-harmony, add its vocabulary: from the folder that
    TIKTOKEN_ENCODINGS_BASE names, or as tiktoken downloads it. AimoError if something cannot be collected or
    installed.
    """
    lock, out, version = Path(requirements), Path(out), platform.python_version()
    if not lock.is_file():
        raise AimoError(f"requirements {lock}: no such file; give a lock file such as requirements.txt")
    folder = out / "wheels"
    shutil.rmtree(folder, ignore_errors=True)
    with step("collect"):
        run_pip(["wheel", "--no-deps", "-r", str(lock), "-w", str(folder)], f"requirements {lock}")
    with step("manifest"):
        wheels = [describe_wheel(path) for path in sorted(folder.glob("*.whl"))]
        here = {"python": version, "platform": f"{sys.platform}-{platform.machine()}"}
        manifest = here | {"requirements_sha256": sha256(lock), "wheels": wheels}
        write_json(out / MANIFEST, manifest)
    with tempfile.TemporaryDirectory(prefix="aimo-wheels-") as made:
        with step("install into a fresh environment, without an index"):
            lines = [f"{one['name']}=={one['version']} --hash=sha256:{one['sha256']}\n" for one in wheels]
            hashed, python = Path(made, "wheels.txt"), Path(made, "fresh", "bin", "python")
            hashed.write_text("".join(lines))
            # Not every Python has ensurepip, so this Python's pip installs into the other.
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", f"{made}/fresh"], check=True)
            alone = ["--no-index", "--no-deps", "--no-cache-dir", "--no-compile", "--require-hashes"]
            arguments = ["--isolated", "--python", str(python), "install", *alone]
            run_pip([*arguments, "--find-links", str(folder), "-r", str(hashed)], f"wheels in {folder}")
        if any(wheel["name"] == "oss-harmony" for wheel in wheels):
            with step("vocabulary"):
                add_vocabulary(out, python)
    size = sum(wheel["bytes"] for wheel in wheels) / 1e9
    print(f"{len(wheels)} wheels, {size:.3g} GB, for Python {version}: {out / MANIFEST}")
    return manifest


def run_pip(arguments: list[str], what: str) -> None:
    """Run pip and print what it collects. AimoError with the shortest of its errors."""
    command, lines = [sys.executable, "-m", "pip", *arguments], []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        for line in pip.stdout or ():
            lines.append(line.strip())
            if line.startswith("Collecting "):
                print(line, end="", flush=True)
    if pip.returncode:
        # For a missing release, pip first lists all that exist; its next line is shorter.
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        reason = min(errors or lines[-1:] or ["pip says nothing"], key=len)[:300]
        version = platform.python_version()
        raise AimoError(f"{what}: {reason}, for Python {version}; change the lock file (`make lock`)")


def describe_wheel(path: Path) -> dict[str, Any]:
    """Return a wheel's entry in the manifest.

    `requires` holds what NAME, and each NAME[EXTRA], requires on this Python:
    {"uvicorn": ["h11"], "uvicorn[standard]": ["h11", "httptools"]}
    """
    distribution, version, _, tags = parse_wheel_filename(path.name)
    name = canonicalize_name(distribution)
    with zipfile.ZipFile(path) as file:
        files = file.namelist()
        metadata = next(inner for inner in files if re.fullmatch(r"[^/]+\.dist-info/METADATA", inner))
        headers = email.parser.Parser().parsestr(file.read(metadata).decode(), headersonly=True)
    asked = [Requirement(text) for text in headers.get_all("Requires-Dist", [])]
    requires = {}
    for extra in ["", *headers.get_all("Provides-Extra", [])]:
        holding = [one for one in asked if one.marker is None or one.marker.evaluate({"extra": extra})]
        names = {one.name for one in holding} | {f"{one.name}[{e}]" for one in holding for e in one.extras}
        requires[f"{name}[{extra}]" if extra else name] = sorted(map(canonicalize_name, names))
    inner = [re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", file) for file in files]
    code = [file for file in inner if file.endswith((".py", ".so")) and ".data/" not in file]
    return {
        "name": name,
        "version": str(version),
        "file": f"{path.parent.name}/{path.name}",
        "sha256": sha256(path),
        "tags": sorted(map(str, tags)),
        "bytes": path.stat().st_size,
        "modules": sorted({file.partition("/")[0].partition(".")[0] for file in code}),
        "requires": requires,
    }


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def add_vocabulary(out: Path, python: Path) -> None:
    """Add Harmony's vocabulary to `out`, and let `python` load it there, which checks its hash."""
    given = os.environ.get("TIKTOKEN_ENCODINGS_BASE")
    fetch = "import tiktoken; tiktoken.get_encoding('o200k_base')"
    load = "import openai_harmony as o; o.load_harmony_encoding(o.HarmonyEncodingName.HARMONY_GPT_OSS)"
    how: dict[str, Any] = {"capture_output": True, "text": True, "check": True}
    with tempfile.TemporaryDirectory() as cache:
        try:
            if not given:
                subprocess.run([python, "-c", fetch], env=os.environ | {"TIKTOKEN_CACHE_DIR": cache}, **how)
            file = Path(given, VOCABULARY) if given else next(Path(cache).iterdir())
            shutil.copyfile(file, out / VOCABULARY)
            here = {"TIKTOKEN_ENCODINGS_BASE": str(out.absolute())}
            subprocess.run([python, "-c", load], env=os.environ | here, **how)
        except (OSError, subprocess.CalledProcessError) as e:
            last = (getattr(e, "stderr", None) or str(e)).strip().splitlines()[-1]
            raise AimoError(
                f"vocabulary {VOCABULARY}: {last[:300]}; turn the internet on, or set "
                "TIKTOKEN_ENCODINGS_BASE to a folder that holds it"
            ) from None
