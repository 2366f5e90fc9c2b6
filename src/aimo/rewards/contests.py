"""Rewards of programs for contests, IOI and Codeforces, with Open-R1's names and options.

Rows have the columns of open-r1/ioi and open-r1/codeforces. Tests are run in batches of `test_batch_size` at
a time (-1: all at once), and no more of them where a failed one decides. Out of scope: running a program on a
test, which is `judges`.
"""

import functools
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import polars as pl

from aimo.errors import AimoError
from aimo.rewards.code import extract_code
from aimo.rewards.inputs import Column, Completions, Rewards, text_of
from aimo.rewards.judges import JUDGES, DoesNotCompile, Submission

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


def run(submission: Submission, tests: list[Test], batch_size: int, provider: str) -> Iterator[list[float]]:
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
