"""Judges of contest programs: a submission's score on one test, from a Piston server or from our sandbox.

Piston is asked as Open-R1 asks it (https://github.com/huggingface/open-r1, slurm/piston): the package cms_ioi
for IOI, c++17 and cf_python3 for Codeforces. Here, g++ compiles C++ into a library, which a confined process
loads; the compiler is confined as well, for a source may include any file or ask for any amount of memory.
Out of scope: tasks of IOI with a manager, and interactive ones.
"""

import base64
import functools
import os
import queue
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import requests

from aimo.errors import AimoError
from aimo.inference import sandbox

TRIES, PAUSE_S = 5, 1.0
"""How often a request is made, each time to another of the servers where there are several, and between."""
COMPILING = sandbox.Limits(seconds=30, memory_mb=1024, output_chars=2**24, programs=True)
LOADING_S = 1.0
"""Added to a program's limit here: wall time, in which Python starts and loads it."""
COMPILE = """import base64, subprocess
done = subprocess.run({command!r}, stderr=-1)
if done.returncode:
    print(done.stderr.decode(errors="replace")[:300])
    exit(1)
print(base64.b64encode(open("program.so", "rb").read()).decode())"""
LOAD = """import ctypes
ctypes.CDLL(None).exit(ctypes.CDLL("./program.so").main(0, None))"""
CHECK = """import sys
sys.argv = ["checker.py", "input.txt", "correct_output.txt", "output.txt"]
exec(compile(open("checker.py").read(), "checker.py", "exec"), {"__name__": "__main__"})"""


class DoesNotCompile(Exception):
    """The compiler refuses a submission."""


@dataclass(frozen=True)
class Submission:
    """A program for a problem of a contest."""

    row: Mapping[str, Any]
    """The problem, with the columns of open-r1/ioi or open-r1/codeforces."""
    code: str
    language: str = "cpp"
    is_ioi: bool = False

    @property
    def files(self) -> dict[str, str]:
        """The program, and for IOI the graders it is compiled with, by name."""
        if not self.is_ioi:
            return {f"main.{self.language}": self.code}
        graders = {name: content for name, content in self.row["grader_files"] if content}
        return {f"graders/{self.row['id'].lower()}.cpp": self.code, **graders}


def in_piston(submission: Submission, given: str, expected: str) -> float:
    """The score, 0 to 1, of a submission on a test, by a Piston server.

    Raises DoesNotCompile, and AimoError when no server answers.
    """
    row, files = submission.row, submission.files | {"input.txt": given, "correct_output.txt": expected}
    request: dict[str, Any] = {"language": "cms_ioi", "version": "*"}
    if submission.is_ioi:
        request["run_timeout"] = round((row["time_limit"] + 3) * 1000)  # its scripts keep the limit itself
        request["run_memory_limit"] = row["memory_limit"]
    else:
        request["language"] = "cf_python3" if submission.language == "python" else "c++17"
        request["run_timeout"] = round((row["time_limit"] + 10) * 1000)
        keys = {"TIME_LIMIT": "time_limit", "MEMORY_LIMIT": "memory_limit", "INPUT_MODE": "input_mode"}
        files["grader_config"] = "\n".join(f"{name}={row[key]}" for name, key in keys.items())
        if row.get("generated_checker"):
            files["checker.py"] = row["generated_checker"]
    request["files"] = [{"name": name, "content": content} for name, content in files.items()]
    reply = ask_piston(request)
    if reply.get("compile", {}).get("code"):
        raise DoesNotCompile
    run = reply["run"]
    try:
        score = float(run["stdout"])  # of IOI, a share of the points
    except ValueError:
        return 0.0
    return score if submission.is_ioi else float(run["code"] == 0 and score == 1)


def ask_piston(request: dict[str, Any]) -> dict[str, Any]:
    """A server's reply. AimoError when none runs the request."""
    reason = ""
    for attempt in range(TRIES):
        time.sleep(PAUSE_S * attempt)
        server = servers().get()
        try:
            reply = requests.post(
                f"{server}/execute", json=request, timeout=request["run_timeout"] / 1000 + 60
            )
            found = reply.json()
            if "run" in found and "Resource temporarily unavailable" not in found["run"].get("stderr", ""):
                return dict(found)
            if "compile" in found:
                return dict(found)
            reason = f"{server}: {found.get('message', found)}"
        except (requests.RequestException, ValueError, TypeError) as e:
            reason = f"{server}: {e}"
        finally:
            servers().put(server)
    raise AimoError(
        f"rewards: no Piston server runs {request['language']} ({' '.join(reason.split())[:200]}); "
        "start one (Open-R1's slurm/piston), or set provider_type to local"
    )


@functools.cache
def servers() -> "queue.Queue[str]":
    """The servers of PISTON_ENDPOINTS, each as often as it takes requests at one time. AimoError without."""
    addresses = [
        a.strip().rstrip("/") for a in os.environ.get("PISTON_ENDPOINTS", "").split(",") if a.strip()
    ]
    if not addresses:
        raise AimoError(
            "rewards: provider_type piston needs PISTON_ENDPOINTS, such as http://host:2000/api/v2; set it, "
            "or set provider_type to local"
        )
    found: queue.Queue[str] = queue.Queue()
    for address in addresses * int(os.environ.get("PISTON_MAX_REQUESTS_PER_ENDPOINT", "1")):
        found.put(address)
    return found


def here(submission: Submission, given: str, expected: str) -> float:
    """The score, 0 or 1 (or the checker's), of a submission on a test, in a confined process here.

    Without a checker, the words of the output are compared. Raises DoesNotCompile, and AimoError without g++.
    """
    row = submission.row
    megabytes = row["memory_limit"] / 2**20 if submission.is_ioi else row["memory_limit"]
    limits = sandbox.Limits(row["time_limit"] + LOADING_S, max(64, round(megabytes)), output_chars=2**24)
    program, files = submission.code, {}
    if submission.language == "cpp":
        program, files = LOAD, {"program.so": compiled(tuple(submission.files.items()))}
    result = sandbox.run(program, given, limits, files)
    if not result.ok:
        return 0.0
    if not (checker := row.get("generated_checker")):
        return float(result.stdout.split() == expected.split())
    texts = {"input.txt": given, "correct_output.txt": expected, "output.txt": result.stdout}
    return float(sandbox.run(CHECK, files=texts | {"checker.py": checker}).stdout.strip() == "1")


@functools.lru_cache(maxsize=64)
def compiled(files: tuple[tuple[str, str], ...]) -> bytes:
    """Return the library that g++ makes of n files. Raises DoesNotCompile; AimoError without g++."""
    result = compile_here(files)
    if result.ok:
        return base64.b64decode(result.stdout)
    if reason := broken_compiler():
        raise AimoError(f"rewards: provider_type local needs g++ for C++; {reason}, or set up piston")
    raise DoesNotCompile


def compile_here(files: tuple[tuple[str, str], ...]) -> sandbox.Result:
    """Run g++ in the sandbox; the library, as base64, is what it prints."""
    sources = [name for name, _ in files if name.endswith(".cpp")]
    options = ["-O2", "-std=c++17", "-shared", "-fPIC", "-fmax-errors=9", "-Igraders"]
    command = [shutil.which("g++") or "g++", *options, *sources, "-o", "program.so"]
    return sandbox.run(COMPILE.format(command=command), "", COMPILING, dict(files))


@functools.cache
def broken_compiler() -> str:
    """Return why g++ compiles nothing here; empty where it does."""
    if not shutil.which("g++"):
        return "install it"
    result = compile_here((("main.cpp", "int main() {}"),))
    said = " ".join((result.stdout + result.error).split())
    return "" if result.ok else f"it fails in the sandbox ({said})"


JUDGES = {"piston": in_piston, "local": here}
