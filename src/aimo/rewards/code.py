"""Rewards for programs: test cases (`code`), and problems of IOI and Codeforces (`ioi_code`, `cf_code`).

Names, options and columns are Open-R1's. Programs of `code` run in the sandbox here, or at E2B or MorphCloud.
Programs for contests run here, or on a Piston server set up for Open-R1
(https://github.com/huggingface/open-r1, slurm/piston). Here, g++ compiles C++ into a library that a confined
process loads. The compiler is confined too, because a source may include any file or use up the memory.
"""

import base64
import contextlib
import functools
import json
import os
import queue
import re
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import polars as pl
import requests

from aimo.inference import sandbox
from aimo.inference.errors import AimoError
from aimo.rewards.math import Column, Rewards, Texts, text_of

TIME_LIMIT_S = 5.0  # wall time of a test case of `code`, as in Open-R1
# Services that run `code`, with their clients' packages; MorphCloud's later versions have no sandbox.
SERVICES = {"e2b": "e2b-code-interpreter", "morph": "morphcloud==0.1.67"}
# A service runs this: the program on its input, within the limit. The last line holds the program's output.
SCRIPT = """import json, subprocess
try:
    command = ["python3", "-c", {program!r}]
    done = subprocess.run(command, input={given!r}, capture_output=True, text=True, timeout={limit})
    print(json.dumps(None if done.returncode else done.stdout))
except subprocess.TimeoutExpired:
    print("null")"""


def extract_code(completion: str, language: str = "python") -> str:
    """Return the last fenced block of `language`, or an empty string."""
    return (re.findall(rf"```{re.escape(language)}\n(.*?)```", completion, re.DOTALL) or [""])[-1]


def mapping_of(info: Any) -> Mapping[str, Any]:
    """Return a row's `verification_info`, a mapping or its JSON; an empty mapping if it is neither."""
    with contextlib.suppress(ValueError, RecursionError):
        info = json.loads(info) if isinstance(info, str) else info
    return info if isinstance(info, Mapping) else {}


# ---- test cases ----


def code_reward(
    completions: Texts,
    verification_info: Column = None,
    num_parallel: int = 2,
    provider_type: Any = "local",
    **_: Any,
) -> Rewards:
    """Return the share of a row's test cases that the completion's last Python block passes.

    None for a row without Python test cases. A case passes if the program ends without an error and prints
    the expected lines, ignoring spaces around them. A program near its time limit may fail on a busy machine.

    `verification_info`: n dicts or their JSON, each
    `{"language": "python", "test_cases": [{"input", "output", "type": "stdin_stdout"}]}`.
    `provider_type`: local (the sandbox), one of SERVICES, or a function `run(jobs, num_parallel)` that takes
    m pairs (program, input) and returns m texts: each program's output, or None if it failed.
    """
    if verification_info is None:
        raise AimoError("rewards: code needs a column `verification_info` with the rows' test cases")
    rows = []
    for completion, info in zip(completions, verification_info, strict=True):
        try:
            info = mapping_of(info)
            kinds = {case.get("type", "stdin_stdout") or "stdin_stdout" for case in info["test_cases"]}
            is_python = info["language"] == "python" and kinds <= {"stdin_stdout"}
            cases = [(str(case["input"]), str(case["output"])) for case in info["test_cases"] if is_python]
        except (TypeError, KeyError, AttributeError):
            cases = []  # test cases of another kind
        rows.append((extract_code(text_of(completion)), cases))

    jobs = [(program, given) for program, cases in rows if program for given, _ in cases]
    if callable(provider_type):
        printed = provider_type(jobs, num_parallel)
    elif provider_type in ("local", *SERVICES):
        with ThreadPoolExecutor(num_parallel) as pool:
            printed = list(pool.map(lambda job: printed_by(provider_type, *job), jobs))
    else:
        known = ", ".join(["local", *SERVICES])
        raise AimoError(f"rewards: code has no provider_type {provider_type!r}; use {known} or a function")

    def lines(text: str | None) -> list[str] | None:
        return None if text is None else [line.strip() for line in text.strip().split("\n")]

    outputs, rewards = iter(printed), list[float | None]()
    for program, cases in rows:
        passed = sum(lines(next(outputs)) == lines(expected) for _, expected in cases) if program else 0
        rewards.append(passed / len(cases) if cases else None)
    return rewards


def printed_by(name: str, program: str, given: str) -> str | None:
    """Return a program's output in the sandbox or in a service, or None if it fails."""
    if name == "local":
        limits = sandbox.Limits(seconds=TIME_LIMIT_S, output_chars=1_000_000)
        result = sandbox.run_script(program, given, limits)
        return result.stdout if result.ok else None
    script = SCRIPT.format(program=program, given=given, limit=TIME_LIMIT_S)
    try:
        if name == "e2b":
            from e2b_code_interpreter import Sandbox  # only if it is chosen

            with Sandbox.create() as e2b:
                printed = "".join(e2b.run_code(script).logs.stdout)
        else:
            from morphcloud import api  # only if it is chosen
            from morphcloud import sandbox as morph

            box = morph.Sandbox.new(client=api.MorphCloudClient(), ttl_seconds=90)
            try:
                printed = str(box.run_code(script, language="python").stdout or "")
            finally:
                box.close()
                box.shutdown()
    except (ImportError, ValueError) as e:  # ValueError: Morph's client has no key
        remedy = f"pip install {SERVICES[name]}, set {name.upper()}_API_KEY, or use local"
        raise AimoError(f"rewards: provider_type {name}: {e}; {remedy}") from None
    last: str | None = json.loads((printed.strip() or "null").splitlines()[-1])
    return last


def binary_code_reward(completions: Texts, **columns: Any) -> Rewards:
    """Return 1 if all test cases pass, otherwise 0; None as in `code_reward`."""
    return [None if share is None else float(share == 1.0) for share in code_reward(completions, **columns)]


# ---- contests ----

AT_ONCE = 16  # completions scored at a time; PISTON_MAX_REQUESTS_PER_ENDPOINT limits each server
NO_CODE, DOES_NOT_COMPILE = -1.0, -0.1  # of `cf_code`
IOI, CPP, PYTHON = "cms_ioi", "c++17", "cf_python3"  # Piston's names for what runs a submission
Judge = Literal["piston", "local"]
Test = tuple[str, str]  # a test's input and expected output
# A problem with the columns of open-r1/ioi or open-r1/codeforces; a program's files by name, for IOI with the
# graders; and what runs it.
Submission = tuple[Mapping[str, Any], dict[str, str], str]


class DoesNotCompile(Exception):
    """The compiler refuses a submission."""


def ioi_code_reward(
    completions: Texts, test_batch_size: int = 1, provider_type: Judge = "piston", **columns: Any
) -> Rewards:
    """Return the last C++ block's lowest score, 0 to 1, on a subtask's tests, as IOI scores a subtask.

    0 without a block. Columns: `id`, `test_names`, `time_limit` (s), `memory_limit` (bytes), `grader_files`
    and `score_precision`. The tests are `test_cases` (pairs), or those of the hub's open-r1/ioi-test-cases
    for `year`. None for a row without tests and, with provider `local`, for a task with a checker or manager.
    """

    def score(row: dict[str, Any], text: str) -> float | None:
        names, cases = row.get("test_names") or [], row.get("test_cases")
        if cases is None:
            of_year = tests_of_year(row["year"]) if names else {}
            cases = [of_year[row["id"], name] for name in names]
        try:
            tests = [(given, expected) for given, expected in cases]
            graders = {name: content for name, content in row["grader_files"] if content}
        except (TypeError, ValueError):
            return None  # of another shape
        more = [name for name, _ in row["grader_files"] if "checker" in name or "manager" in name]
        if not tests or (more and provider_type == "local"):
            return None
        if not (code := extract_code(text, "cpp")).strip():
            return 0.0
        files = {f"graders/{row['id'].lower()}.cpp": with_header(code, row["id"])} | graders
        scores = judged((row, files, IOI), tests, test_batch_size, provider_type, to_the_end=False)
        return round(min(scores), row.get("score_precision", 2)) if scores else 0.0

    return each(score, completions, columns, ("id", "time_limit", "memory_limit", "grader_files"), "ioi_code")


def cf_code_reward(
    completions: Texts,
    test_batch_size: int = 1,
    patch_code: bool = False,
    scoring_mode: Literal["pass_fail", "partial", "weighted_sum"] = "weighted_sum",
    provider_type: Judge = "piston",
    **columns: Any,
) -> Rewards:
    """Return the score of the last block in the row's `language` (python or cpp) on a problem's tests.

    `pass_fail`: 1 if it passes all, or 0. `partial`: the share that it passes. `weighted_sum`: the first
    plus a tenth of the second. -0.1 for a program that does not compile, -1 without one, None without tests.
    `patch_code` adds the includes that C++ lacks. Columns: `id`, `official_tests`, `time_limit` (s),
    `memory_limit` (MB), `input_mode`, `generated_checker` and `language`. If CF_TESTS_FOLDER is set, its
    files add more tests.
    """

    def score(row: dict[str, Any], text: str) -> float | None:
        language = row.get("language") or ""
        more = generated_tests(folder, row["id"]) if (folder := os.environ.get("CF_TESTS_FOLDER")) else []
        try:
            tests = [(case["input"], case["output"]) for case in [*row["official_tests"], *more]]
        except (TypeError, KeyError):
            return None  # of another shape
        if not tests or language not in ("python", "cpp"):
            return None
        if not (code := extract_code(text, language)).strip():
            return NO_CODE
        code = with_header(code) if patch_code and language == "cpp" else code
        submission = row, {f"main.{language}": code}, CPP if language == "cpp" else PYTHON
        scores = judged(submission, tests, test_batch_size, provider_type, scoring_mode != "pass_fail")
        if scores is None:
            return DOES_NOT_COMPILE
        all_pass, share = float(scores.count(1.0) == len(tests)), scores.count(1.0) / len(tests)
        return {"pass_fail": all_pass, "partial": share, "weighted_sum": all_pass + 0.1 * share}[scoring_mode]

    return each(score, completions, columns, ("official_tests", "time_limit", "memory_limit"), "cf_code")


def each(
    score: Callable[[dict[str, Any], str], float | None],
    completions: Texts,
    columns: dict[str, Column],
    needed: tuple[str, ...],
    name: str,
) -> Rewards:
    """Score each completion with its row. None for a row that lacks a needed column, AimoError if all do.

    A row's columns may be in `verification_info`, a mapping or its JSON, which the data stage keeps.
    """
    by_row = {key: values for key, values in columns.items() if isinstance(values, (list, tuple))}
    rows = [{key: values[i] for key, values in by_row.items()} for i in range(len(completions))]
    for row in rows:
        row |= mapping_of(row.pop("verification_info", None))
    whole = [all(row.get(column) is not None for column in needed) for row in rows]
    if rows and not any(whole):
        missing = next(column for column in needed if rows[0].get(column) is None)
        raise AimoError(f"rewards: {name} needs a column `{missing}`; see docs/rewards.md for the rows")
    texts = map(text_of, completions)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda has, *case: score(*case) if has else None, whole, rows, texts))


def with_header(code: str, problem: str = "") -> str:
    """Return C++ with the standard headers, an IOI problem's header and `std`, unless the code names it."""
    header = "#include <bits/stdc++.h>\n"
    if problem and f'#include "{problem}.h"' not in code:
        header += f'#include "{problem}.h"\n'
    return header + ("" if re.search(r"\bstd\b", code) else "using namespace std;\n") + code


@functools.cache
def tests_of_year(year: int) -> dict[tuple[str, str], Test]:
    from datasets import load_dataset  # loads pandas

    rows: Any = load_dataset("open-r1/ioi-test-cases", name=str(year), split="train")
    return {(r["problem_id"], r["test_name"]): (r["test_input"], r["test_output"]) for r in rows}


@functools.lru_cache(maxsize=32)
def generated_tests(folder: str, problem: str) -> list[dict[str, str]]:
    if not Path(folder).is_dir():
        raise AimoError(f"CF_TESTS_FOLDER: there is no folder {folder}; download the tests, or unset it")
    # open-r1/codeforces has one file per contest.
    path = Path(folder, f"test_cases_{int(problem.split('/')[0]):04d}.parquet")
    if not path.exists():
        return []
    rows = pl.read_parquet(path).filter(pl.col("problem_id") == problem)
    return rows.select("input", "output").to_dicts()


def judged(
    submission: Submission, tests: list[Test], batch_size: int, provider: Judge, to_the_end: bool
) -> list[float] | None:
    """Return the scores, 0 to 1, on tests that run `batch_size` at a time, or all at once for -1.

    Stop after a batch with a 0, unless `to_the_end`. Return None if the program does not compile.
    """
    judge = {"piston": in_piston, "local": here}[provider]
    scores: list[float] = []
    size = batch_size if batch_size > 0 else len(tests)
    with ThreadPoolExecutor(min(size, AT_ONCE)) as pool:
        for begin in range(0, len(tests), size):
            try:
                scores += pool.map(lambda test: judge(*submission, *test), tests[begin : begin + size])
            except DoesNotCompile:
                return None
            if 0 in scores and not to_the_end:
                break
    return scores


# ---- a contest's programs on a Piston server ----

TRIES, PAUSE_S = 5, 1.0  # attempts at a request, each on the next server, and the first pause between


@functools.cache
def servers() -> "queue.Queue[str]":
    """Return the servers of PISTON_ENDPOINTS, one entry for each request that a server takes at a time."""
    found: queue.Queue[str] = queue.Queue()
    at_a_time = int(os.environ.get("PISTON_MAX_REQUESTS_PER_ENDPOINT", "1"))
    for address in os.environ.get("PISTON_ENDPOINTS", "").split(",") * at_a_time:
        if address.strip():
            found.put(address.strip().rstrip("/"))
    if found.empty():
        example = "PISTON_ENDPOINTS (http://host:2000/api/v2)"
        raise AimoError(f"rewards: piston needs {example}; set it, or set provider_type to local")
    return found


def in_piston(
    row: Mapping[str, Any], files: dict[str, str], runs_in: str, given: str, expected: str
) -> float:
    is_ioi = runs_in == IOI
    files = files | {"input.txt": given, "correct_output.txt": expected}
    timeout = row["time_limit"] + (3 if is_ioi else 10)  # Piston's scripts enforce the problem's own limit
    request = {"language": runs_in, "version": "*", "run_timeout": round(timeout * 1000)}
    if is_ioi:
        request["run_memory_limit"] = row["memory_limit"]
    else:
        keys = {"TIME_LIMIT": "time_limit", "MEMORY_LIMIT": "memory_limit", "INPUT_MODE": "input_mode"}
        files["grader_config"] = "\n".join(f"{name}={row[key]}" for name, key in keys.items())
        if row.get("generated_checker"):
            files["checker.py"] = row["generated_checker"]
    request["files"] = [{"name": name, "content": content} for name, content in files.items()]

    for attempt in range(TRIES):
        time.sleep(PAUSE_S * attempt)
        server = servers().get()
        try:
            answer = requests.post(f"{server}/execute", json=request, timeout=round(timeout) + 60)
            reply: dict[str, Any] = dict(answer.json())
            is_busy = "Resource temporarily unavailable" in reply.get("run", {}).get("stderr", "")
            if "compile" in reply or ("run" in reply and not is_busy):
                break
            fault = f"{server}: {reply.get('message', reply)}"
        except (requests.RequestException, ValueError, TypeError) as e:
            fault = f"{server}: {e}"
        finally:
            servers().put(server)
    else:
        said = f"no Piston server runs {runs_in} ({' '.join(fault.split())[:200]})"
        remedy = "start one (Open-R1's slurm/piston), or set provider_type to local"
        raise AimoError(f"rewards: {said}; {remedy}")

    if reply.get("compile", {}).get("code"):
        raise DoesNotCompile
    try:
        score = float(reply["run"]["stdout"])  # for IOI, a share of the points
    except ValueError:
        return 0.0
    return score if is_ioi else float(reply["run"]["code"] == 0 and score == 1)


# ---- a contest's programs here ----

COMPILING = sandbox.Limits(seconds=30, memory_mb=1024, output_chars=2**24, programs=True)
TRIVIAL = (("main.cpp", "int main() {}"),)  # every working g++ compiles it
LOADING_S = 1.0  # added to a program's wall time limit, for Python to start and load it
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


def here(row: Mapping[str, Any], files: dict[str, str], runs_in: str, given: str, expected: str) -> float:
    megabytes = row["memory_limit"] / (2**20 if runs_in == IOI else 1)
    limits = sandbox.Limits(row["time_limit"] + LOADING_S, max(64, round(megabytes)), output_chars=2**24)
    if runs_in == PYTHON:
        result = sandbox.run_script(files["main.python"], given, limits)
    else:
        result = sandbox.run_script(LOAD, given, limits, {"program.so": compiled(tuple(files.items()))})
    if not result.ok:
        return 0.0
    if not (checker := row.get("generated_checker")):
        return float(result.stdout.split() == expected.split())
    texts = {"input.txt": given, "correct_output.txt": expected, "output.txt": result.stdout}
    return float(sandbox.run_script(CHECK, files=texts | {"checker.py": checker}).stdout.strip() == "1")


@functools.lru_cache(maxsize=64)
def compiled(files: tuple[tuple[str, str], ...]) -> bytes:
    """Return the library that g++ makes from `files` (name, text). DoesNotCompile; AimoError without g++."""
    result = compile_here(files)
    if result.ok:
        return base64.b64decode(result.stdout)
    if files == TRIVIAL:
        said = " ".join((result.stdout + result.error).split())
        raise AimoError(f"rewards: local needs g++ for C++, which fails in the sandbox ({said}); install it")
    compiled(TRIVIAL)
    raise DoesNotCompile


def compile_here(files: tuple[tuple[str, str], ...]) -> sandbox.Result:
    sources = [name for name, _ in files if name.endswith(".cpp")]
    options = ["-O2", "-std=c++17", "-shared", "-fPIC", "-fmax-errors=9", "-Igraders"]
    command = [shutil.which("g++") or "g++", *options, *sources, "-o", "program.so"]
    return sandbox.run_script(COMPILE.format(command=command), "", COMPILING, dict(files))
