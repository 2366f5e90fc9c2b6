"""Rewards of programs for contests, IOI and Codeforces, with Open-R1's names and options.

Rows have the columns of open-r1/ioi and open-r1/codeforces. Tests are run in batches of `test_batch_size` at
a time (-1: all at once), and no more of them where a failed one decides. A judge gives a program's score on
one test. A Piston server is asked as Open-R1 asks it (https://github.com/huggingface/open-r1, slurm/piston):
the package cms_ioi for IOI, c++17 and cf_python3 for Codeforces. Here, g++ compiles C++ into a library, which
a confined process loads; the compiler is confined as well, for a source may include any file or ask for any
amount of memory. Out of scope: tasks of IOI with a manager, and interactive ones.
"""

import base64
import functools
import json
import os
import queue
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
import requests

from aimo.errors import AimoError
from aimo.inference import sandbox
from aimo.rewards.code import extract_code
from aimo.rewards.inputs import Column, Completions, Rewards, text_of

Test = tuple[str, str]
"""A test's input and expected output."""
NO_CODE, DOES_NOT_COMPILE = -1.0, -0.1
"""What `cf_code` gives a completion without a program, and one whose program does not compile."""
AT_ONCE = 16
"""Completions that are scored at one time. A server takes as many requests as PISTON_ENDPOINTS allows."""


def ioi_code_reward(
    completions: Completions,
    test_batch_size: int = 1,
    provider_type: Literal["piston", "local"] = "piston",
    **columns: Any,
) -> Rewards:
    """The lowest score of the last C++ block on a subtask's tests, 0 to 1, as IOI scores a subtask.

    0 without a block. Columns: `id`, `test_names`, `time_limit` (s), `memory_limit` (bytes), `grader_files`
    and `score_precision`; the tests are `test_cases` (pairs, or a mapping by name), or of the hub's
    open-r1/ioi-test-cases by `year`. None for a row without tests, and with provider `local` for a task with
    a checker or manager.
    """

    def score(row: dict[str, Any], text: str) -> float | None:
        code = extract_code(text, "cpp")
        tests = ioi_tests(row)
        more = [name for name, _ in row["grader_files"] if "checker" in name or "manager" in name]
        if not tests or (more and provider_type == "local"):
            return None
        if not code.strip():
            return 0.0
        judged = run(
            Submission(row, with_header(code, row["id"]), is_ioi=True), tests, test_batch_size, provider_type
        )
        lowest = 1.0
        try:
            for scores in judged:
                lowest = min(lowest, *scores)
                if lowest == 0:
                    break
        except DoesNotCompile:
            return 0.0
        return round(lowest, row.get("score_precision", 2))

    return each(score, completions, columns, ("id", "time_limit", "memory_limit", "grader_files"), "ioi_code")


def cf_code_reward(
    completions: Completions,
    test_batch_size: int = 1,
    patch_code: bool = False,
    scoring_mode: Literal["pass_fail", "partial", "weighted_sum"] = "weighted_sum",
    provider_type: Literal["piston", "local"] = "piston",
    **columns: Any,
) -> Rewards:
    """What the last block in the row's `language` (python or cpp) is worth on a problem's tests.

    `pass_fail`: 1 if it passes all, else 0. `partial`: the share that it passes. `weighted_sum`: the first
    plus a tenth of the second. -0.1 for a program that does not compile, -1 without one, None without tests.
    `patch_code` adds the includes that C++ lacks. Columns: `id`, `official_tests`, `time_limit` (s),
    `memory_limit` (MB), `input_mode`, `generated_checker` and `language`; more tests come from the files of
    CF_TESTS_FOLDER where it is set.
    """

    def score(row: dict[str, Any], text: str) -> float | None:
        language = row.get("language") or ""
        tests = cf_tests(row)
        if not tests or language not in ("python", "cpp"):
            return None
        code = extract_code(text, language)
        if not code.strip():
            return NO_CODE
        code = with_header(code) if patch_code and language == "cpp" else code
        passed = 0
        try:
            for scores in run(Submission(row, code, language), tests, test_batch_size, provider_type):
                passed += scores.count(1.0)
                if scoring_mode == "pass_fail" and min(scores) < 1:
                    break
        except DoesNotCompile:
            return DOES_NOT_COMPILE
        all_pass, share = float(passed == len(tests)), passed / len(tests)
        return {"pass_fail": all_pass, "partial": share, "weighted_sum": all_pass + 0.1 * share}[scoring_mode]

    return each(score, completions, columns, ("official_tests", "time_limit", "memory_limit"), "cf_code")


def each(
    score: Callable[[dict[str, Any], str], float | None],
    completions: Completions,
    columns: dict[str, Column],
    needed: tuple[str, ...],
    name: str,
) -> Rewards:
    """The score of each completion with its row; None for a row that lacks a column, AimoError if all do.

    A row's columns may be in `verification_info`, a mapping or its JSON, which the data stage keeps.
    """
    by_row = {key: values for key, values in columns.items() if isinstance(values, (list, tuple))}
    rows = [{key: values[i] for key, values in by_row.items()} for i in range(len(completions))]
    for row in rows:
        info = row.pop("verification_info", None) or {}
        row |= json.loads(info) if isinstance(info, str) else info
    whole = [all(row.get(column) is not None for column in needed) for row in rows]
    if rows and not any(whole):
        missing = next(column for column in needed if rows[0].get(column) is None)
        raise AimoError(f"rewards: {name} needs a column `{missing}`; see docs/rewards.md for the rows")
    texts = map(text_of, completions)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda has, *case: score(*case) if has else None, whole, rows, texts))


def run(submission: "Submission", tests: list[Test], batch_size: int, provider: str) -> Iterator[list[float]]:
    """The scores of one batch of tests after another."""
    judge = JUDGES[provider]
    size = batch_size if batch_size > 0 else len(tests)
    with ThreadPoolExecutor(min(size, AT_ONCE)) as pool:
        for begin in range(0, len(tests), size):
            yield list(pool.map(lambda test: judge(submission, *test), tests[begin : begin + size]))


def with_header(code: str, problem: str = "") -> str:
    """C++ with the standard headers, an IOI problem's own, and `std` where nothing names it."""
    header = "#include <bits/stdc++.h>\n"
    if problem and f'#include "{problem}.h"' not in code:
        header += f'#include "{problem}.h"\n'
    return header + ("" if re.search(r"\bstd\b", code) else "using namespace std;\n") + code


def ioi_tests(row: dict[str, Any]) -> list[Test]:
    """The tests of a subtask: the row's own, or the hub's."""
    names, cases = row.get("test_names") or [], row.get("test_cases")
    if cases is None:
        cases = tests_of_year(row["year"])
        return [cases[row["id"], name] for name in names]
    found = [cases[name] for name in names] if isinstance(cases, dict) else cases
    return [(given, expected) for given, expected in found]


@functools.cache
def tests_of_year(year: int) -> dict[tuple[str, str], Test]:
    """All tests of a year's IOI, by problem and name, from open-r1/ioi-test-cases on the hub."""
    from datasets import load_dataset

    rows: Any = load_dataset("open-r1/ioi-test-cases", name=str(year), split="train")
    return {(r["problem_id"], r["test_name"]): (r["test_input"], r["test_output"]) for r in rows}


def cf_tests(row: dict[str, Any]) -> list[Test]:
    """The official tests of a problem, and those that were generated where they are here."""
    tests = list(row["official_tests"] or [])
    if folder := os.environ.get("CF_TESTS_FOLDER"):
        tests += generated_tests(folder, row["id"])
    return [(test["input"], test["output"]) for test in tests]


@functools.lru_cache(maxsize=32)
def generated_tests(folder: str, problem: str) -> list[dict[str, str]]:
    """A problem's tests in the files of open-r1/codeforces, one a contest. AimoError without the folder."""
    if not Path(folder).is_dir():
        raise AimoError(f"CF_TESTS_FOLDER: there is no folder {folder}; download the tests, or unset it")
    path = Path(folder, f"test_cases_{int(problem.split('/')[0]):04d}.parquet")
    if not path.exists():
        return []
    rows = pl.read_parquet(path).filter(pl.col("problem_id") == problem)
    return rows.select("input", "output").to_dicts()


# ---- judges ----

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
