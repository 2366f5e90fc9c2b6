"""Rewards of programs: test cases (`code`), and problems of IOI and Codeforces (`ioi_code`, `cf_code`).

Names, options and columns are Open-R1's. Programs of `code` run in the sandbox here, or at E2B or MorphCloud.
Programs for contests run here, or on a Piston server that is asked as Open-R1 asks it
(https://github.com/huggingface/open-r1, slurm/piston). Here, g++ compiles C++ into a library that a confined
process loads. The compiler is confined as well, since a source may include any file or ask for any memory.
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
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl
import requests

from aimo.errors import AimoError
from aimo.inference import sandbox
from aimo.rewards.math import Column, Completions, Rewards, text_of

TIME_LIMIT_S = 5.0  # wall time of a test case of `code`, as in Open-R1
Jobs = list[tuple[str, str]]  # programs, each with its standard input
Test = tuple[str, str]  # a test's input and expected output


def extract_code(completion: str, language: str = "python") -> str:
    """Return the last fenced block of `language`; empty without one."""
    return (re.findall(rf"```{re.escape(language)}\n(.*?)```", completion, re.DOTALL) or [""])[-1]


# ---- test cases ----


def code_reward(
    completions: Completions,
    verification_info: Column = None,
    num_parallel: int = 2,
    provider_type: Any = "local",
    **_: Any,
) -> Rewards:
    """The share of a row's test cases that the completion's last Python block passes.

    None for a row without Python test cases. A case passes when the program ends well and prints the
    expected lines, spaces around them aside. A program close to its time limit may fail on a busy machine.

    `verification_info`: n dicts or their JSON, each
    `{"language": "python", "test_cases": [{"input", "output", "type": "stdin_stdout"}]}`.
    `provider_type`: local (`aimo.inference.sandbox`), e2b, morph, or a function `run(jobs, num_parallel)` of
    m pairs (program, input) that returns m texts, what each program printed, or None for a failure.
    """
    if verification_info is None:
        raise AimoError("rewards: code needs a column `verification_info` with the rows' test cases")
    rows = []
    for completion, info in zip(completions, verification_info, strict=True):
        rows.append((extract_code(text_of(completion)), read_test_cases(info)))
    jobs: Jobs = [(program, given) for program, cases in rows if program for given, _ in cases]
    if callable(provider_type):
        outputs = iter(provider_type(jobs, num_parallel))
    elif provider_type == "local":
        limits = sandbox.Limits(seconds=TIME_LIMIT_S, output_chars=1_000_000)
        results = sandbox.run_many(jobs, limits, num_parallel)
        outputs = iter([result.stdout if result.ok else None for result in results])
    elif provider_type in SERVICES:
        run = SERVICES[provider_type]()
        with ThreadPoolExecutor(num_parallel) as pool:
            outputs = iter(list(pool.map(lambda job: run(*job), jobs)))
    else:
        known = ", ".join(["local", *SERVICES])
        raise AimoError(f"rewards: code has no provider_type {provider_type!r}; use {known} or a function")

    def passes(output: str | None, expected: str) -> bool:
        lines = [[line.strip() for line in text.strip().split("\n")] for text in (output or "", expected)]
        return output is not None and lines[0] == lines[1]

    rewards: Rewards = []
    for program, cases in rows:
        passed = sum(passes(next(outputs), expected) for _, expected in cases) if program else 0
        rewards.append(passed / len(cases) if cases else None)
    return rewards


def binary_code_reward(completions: Completions, **columns: Any) -> Rewards:
    """1 where `code_reward` finds that all test cases pass, else 0."""
    return [None if share is None else float(share == 1.0) for share in code_reward(completions, **columns)]


def read_test_cases(info: Any) -> list[Test]:
    """Return a row's Python test cases; none for another language or type, or where they are unreadable."""
    try:
        info = json.loads(info) if isinstance(info, str) else info
        cases = info["test_cases"]
        if info["language"] != "python" or any(c.get("type") not in (None, "stdin_stdout") for c in cases):
            return []
        return [(str(case["input"]), str(case["output"])) for case in cases]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []


Run = Callable[[str, str], str | None]  # a program and its input to what it prints, None for a failure


def in_e2b() -> Run:
    """Return what runs a program in a sandbox of E2B's cloud; it needs its client and E2B_API_KEY."""
    try:
        from e2b_code_interpreter import CommandExitException, Sandbox, TimeoutException
    except ImportError:
        raise AimoError(
            "rewards: provider_type e2b needs its client: pip install e2b-code-interpreter; or use local"
        ) from None

    def run(program: str, given: str) -> str | None:
        with Sandbox.create() as box:
            box.files.write("program.py", program)
            box.files.write("input", given)
            try:
                printed: str = box.commands.run("python3 program.py < input", timeout=TIME_LIMIT_S).stdout
                return printed
            except (CommandExitException, TimeoutException):
                return None

    return run


MORPH_SCRIPT = """import json, subprocess
try:
    command = ["python3", "-c", {code!r}]
    done = subprocess.run(command, input={given!r}, capture_output=True, text=True, timeout={limit})
    print(json.dumps(None if done.returncode else done.stdout))
except subprocess.TimeoutExpired:
    print("null")"""


def in_morph() -> Run:
    """Return what runs a program in a sandbox of MorphCloud; it needs its client and MORPH_API_KEY."""
    try:
        from morphcloud.api import MorphCloudClient
        from morphcloud.sandbox import Sandbox
    except ImportError:  # later versions have no sandbox
        raise AimoError(
            "rewards: provider_type morph needs its client: pip install morphcloud==0.1.67; or use local"
        ) from None
    try:
        client = MorphCloudClient()
    except ValueError as e:
        raise AimoError(f"rewards: provider_type morph: {e}; set MORPH_API_KEY, or use local") from None

    def run(program: str, given: str) -> str | None:
        box = Sandbox.new(client=client, ttl_seconds=90)
        try:
            script = MORPH_SCRIPT.format(code=program, given=given, limit=TIME_LIMIT_S)
            printed = (box.run_code(script, language="python").stdout or "null").strip()
            result: str | None = json.loads(printed.splitlines()[-1])
            return result
        finally:
            box.close()
            box.shutdown()

    return run


SERVICES = {"e2b": in_e2b, "morph": in_morph}

# ---- contests ----

AT_ONCE = 16  # completions that are scored at a time; PISTON_ENDPOINTS says what a server takes
NO_CODE, DOES_NOT_COMPILE = -1.0, -0.1  # of `cf_code`


class DoesNotCompile(Exception):
    """The compiler refuses a submission."""


class Submission(NamedTuple):
    """A program for a problem of a contest."""

    row: Mapping[str, Any]  # the problem, with the columns of open-r1/ioi or open-r1/codeforces
    files: dict[str, str]  # by name: the program, and for IOI the graders that it is compiled with
    language: str  # cpp or python
    is_ioi: bool


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
        names, cases = row.get("test_names") or [], row.get("test_cases")
        if cases is None:
            of_year = tests_of_year(row["year"])
            cases = [of_year[row["id"], name] for name in names]
        elif isinstance(cases, dict):
            cases = [cases[name] for name in names]
        tests = [(given, expected) for given, expected in cases]
        graders = {name: content for name, content in row["grader_files"] if content}
        more = [name for name, _ in row["grader_files"] if "checker" in name or "manager" in name]
        code = extract_code(text, "cpp")
        if not tests or (more and provider_type == "local"):
            return None
        if not code.strip():
            return 0.0
        program = {f"graders/{row['id'].lower()}.cpp": with_header(code, row["id"])}
        submission = Submission(row, program | graders, "cpp", is_ioi=True)
        lowest = 1.0
        try:
            for scores in judged(submission, tests, test_batch_size, provider_type):
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
        cases = list(row["official_tests"] or [])
        if folder := os.environ.get("CF_TESTS_FOLDER"):
            cases += generated_tests(folder, row["id"])
        tests = [(case["input"], case["output"]) for case in cases]
        if not tests or language not in ("python", "cpp"):
            return None
        code = extract_code(text, language)
        if not code.strip():
            return NO_CODE
        code = with_header(code) if patch_code and language == "cpp" else code
        submission = Submission(row, {f"main.{language}": code}, language, is_ioi=False)
        passed = 0
        try:
            for scores in judged(submission, tests, test_batch_size, provider_type):
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
    """Score each completion with its row; None for a row that lacks a needed column, AimoError if all do.

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


def with_header(code: str, problem: str = "") -> str:
    """Return C++ with the standard headers, an IOI problem's header, and `std` where nothing names it."""
    header = "#include <bits/stdc++.h>\n"
    if problem and f'#include "{problem}.h"' not in code:
        header += f'#include "{problem}.h"\n'
    return header + ("" if re.search(r"\bstd\b", code) else "using namespace std;\n") + code


@functools.cache
def tests_of_year(year: int) -> dict[tuple[str, str], Test]:
    """Return all tests of a year's IOI, by problem and name, from open-r1/ioi-test-cases on the hub."""
    from datasets import load_dataset

    rows: Any = load_dataset("open-r1/ioi-test-cases", name=str(year), split="train")
    return {(r["problem_id"], r["test_name"]): (r["test_input"], r["test_output"]) for r in rows}


@functools.lru_cache(maxsize=32)
def generated_tests(folder: str, problem: str) -> list[dict[str, str]]:
    """Return a problem's tests in the files of open-r1/codeforces, one a contest."""
    if not Path(folder).is_dir():
        raise AimoError(f"CF_TESTS_FOLDER: there is no folder {folder}; download the tests, or unset it")
    path = Path(folder, f"test_cases_{int(problem.split('/')[0]):04d}.parquet")
    if not path.exists():
        return []
    rows = pl.read_parquet(path).filter(pl.col("problem_id") == problem)
    return rows.select("input", "output").to_dicts()


def judged(
    submission: Submission, tests: list[Test], batch_size: int, provider: str
) -> Iterator[list[float]]:
    """Yield the scores of one batch of tests after another; of all at once where the size is -1."""
    judge = {"piston": in_piston, "local": here}[provider]
    size = batch_size if batch_size > 0 else len(tests)
    with ThreadPoolExecutor(min(size, AT_ONCE)) as pool:
        for begin in range(0, len(tests), size):
            yield list(pool.map(lambda test: judge(submission, *test), tests[begin : begin + size]))


# ---- a contest's programs on a Piston server ----

TRIES, PAUSE_S = 5, 1.0  # of a request, each time at the next server, and the first pause between


def in_piston(submission: Submission, given: str, expected: str) -> float:
    """Return a submission's score on a test, 0 to 1, by Piston. Raises DoesNotCompile."""
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
    """Return a server's reply. AimoError when none runs the request."""
    reason = ""
    for attempt in range(TRIES):
        time.sleep(PAUSE_S * attempt)
        server = servers().get()
        try:
            timeout = request["run_timeout"] / 1000 + 60
            reply = dict(requests.post(f"{server}/execute", json=request, timeout=timeout).json())
            is_busy = "Resource temporarily unavailable" in reply.get("run", {}).get("stderr", "")
            if "compile" in reply or ("run" in reply and not is_busy):
                return reply
            reason = f"{server}: {reply.get('message', reply)}"
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
    """Return the servers of PISTON_ENDPOINTS, each as often as it takes requests at a time."""
    listed = os.environ.get("PISTON_ENDPOINTS", "").split(",")
    addresses = [address.strip().rstrip("/") for address in listed if address.strip()]
    if not addresses:
        raise AimoError(
            "rewards: provider_type piston needs PISTON_ENDPOINTS, such as http://host:2000/api/v2; set it, "
            "or set provider_type to local"
        )
    found: queue.Queue[str] = queue.Queue()
    for address in addresses * int(os.environ.get("PISTON_MAX_REQUESTS_PER_ENDPOINT", "1")):
        found.put(address)
    return found


# ---- a contest's programs here ----

COMPILING = sandbox.Limits(seconds=30, memory_mb=1024, output_chars=2**24, programs=True)
LOADING_S = 1.0  # added to a program's limit of wall time, in which Python starts and loads it
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


def here(submission: Submission, given: str, expected: str) -> float:
    """Return a submission's score on a test, 0 or 1, from a confined process. Raises DoesNotCompile.

    The problem's checker decides; without one, the words of the output are compared.
    """
    row = submission.row
    megabytes = row["memory_limit"] / 2**20 if submission.is_ioi else row["memory_limit"]
    limits = sandbox.Limits(row["time_limit"] + LOADING_S, max(64, round(megabytes)), output_chars=2**24)
    if submission.language == "cpp":
        library = {"program.so": compiled(tuple(submission.files.items()))}
        result = sandbox.run(LOAD, given, limits, library)
    else:
        result = sandbox.run(submission.files["main.python"], given, limits)
    if not result.ok:
        return 0.0
    if not (checker := row.get("generated_checker")):
        return float(result.stdout.split() == expected.split())
    texts = {"input.txt": given, "correct_output.txt": expected, "output.txt": result.stdout}
    return float(sandbox.run(CHECK, files=texts | {"checker.py": checker}).stdout.strip() == "1")


@functools.lru_cache(maxsize=64)
def compiled(files: tuple[tuple[str, str], ...]) -> bytes:
    """Return the library that g++ makes of files. Raises DoesNotCompile; AimoError without g++."""
    result = compile_here(files)
    if result.ok:
        return base64.b64decode(result.stdout)
    if reason := broken_compiler():
        raise AimoError(f"rewards: provider_type local needs g++ for C++; {reason}, or set up piston")
    raise DoesNotCompile


def compile_here(files: tuple[tuple[str, str], ...]) -> sandbox.Result:
    """Run g++ in the sandbox; it prints the library in base64."""
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
