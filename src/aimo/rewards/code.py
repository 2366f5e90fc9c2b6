"""Rewards of programs that pass their test cases.

Out of scope: programs for contests (`contests`).
"""

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aimo.errors import AimoError
from aimo.inference import sandbox
from aimo.rewards.inputs import Column, Completions, Rewards, text_of

Jobs = list[tuple[str, str]]
"""Programs, each with its standard input."""
TIME_LIMIT_S = 5.0
"""Wall time of one test case, as in Open-R1."""


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
    run: Callable[[Jobs, int], list[str | None]] | None
    run = provider_type if callable(provider_type) else PROVIDERS.get(provider_type)
    if run is None:
        known = ", ".join(PROVIDERS)
        raise AimoError(f"rewards: code has no provider_type {provider_type!r}; use {known} or a function")
    programs = [extract_code(text_of(c)) for c in completions]
    tests = [read_test_cases(info) for info in verification_info]
    rows = list(zip(programs, tests, strict=True))
    jobs = [(program, case["input"]) for program, cases in rows if program for case in cases]
    outputs = iter(run(jobs, num_parallel))
    rewards: Rewards = []
    for program, cases in rows:
        passed = sum(prints(next(outputs), case["output"]) for case in cases) if program else 0
        rewards.append(passed / len(cases) if cases else None)
    return rewards


def binary_code_reward(completions: Completions, **columns: Any) -> Rewards:
    """1 where `code_reward` finds that all test cases pass, else 0."""
    return [None if share is None else float(share == 1.0) for share in code_reward(completions, **columns)]


def extract_code(completion: str, language: str = "python") -> str:
    """The last fenced block of `language`, or nothing."""
    return (re.findall(rf"```{re.escape(language)}\n(.*?)```", completion, re.DOTALL) or [""])[-1]


def read_test_cases(info: Any) -> list[dict[str, str]]:
    """A row's Python test cases; none where they are for another language, of another type, or unreadable."""
    try:
        info = json.loads(info) if isinstance(info, str) else info
        cases = info["test_cases"]
        if info["language"] != "python" or any(c.get("type") not in (None, "stdin_stdout") for c in cases):
            return []
        return [{key: str(case[key]) for key in ("input", "output")} for case in cases]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []


def prints(output: str | None, expected: str) -> bool:
    """Whether a program ended well and printed the expected lines."""
    return output is not None and lines_of(output) == lines_of(expected)


def lines_of(text: str) -> list[str]:
    """Lines without the spaces around them."""
    return [line.strip() for line in text.strip().split("\n")]


def run_here(jobs: Jobs, workers: int) -> list[str | None]:
    """Run m programs in limited processes on this machine; their m outputs, None for a failure."""
    limits = sandbox.Limits(seconds=TIME_LIMIT_S, output_chars=1_000_000)
    return [result.stdout if result.ok else None for result in sandbox.run_many(jobs, limits, workers)]


def run_in_e2b(jobs: Jobs, workers: int) -> list[str | None]:
    """Run m programs in E2B's cloud, a sandbox each; needs e2b-code-interpreter and E2B_API_KEY."""
    try:
        from e2b_code_interpreter import CommandExitException, Sandbox, TimeoutException
    except ImportError:
        raise AimoError(
            "rewards: provider_type e2b needs its client: pip install e2b-code-interpreter; or use local"
        ) from None

    def run(job: tuple[str, str]) -> str | None:
        with Sandbox.create() as box:
            box.files.write("program.py", job[0])
            box.files.write("input", job[1])
            try:
                return box.commands.run("python3 program.py < input", timeout=TIME_LIMIT_S).stdout
            except (CommandExitException, TimeoutException):
                return None

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(run, jobs))


WRAPPER = """import json, subprocess
try:
    command = ["python3", "-c", {code!r}]
    done = subprocess.run(command, input={given!r}, capture_output=True, text=True, timeout={limit})
    print(json.dumps(None if done.returncode else done.stdout))
except subprocess.TimeoutExpired:
    print("null")"""


def run_in_morph(jobs: Jobs, workers: int) -> list[str | None]:
    """Run m programs in MorphCloud, a sandbox each; needs morphcloud and MORPH_API_KEY."""
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

    def run(job: tuple[str, str]) -> str | None:
        box = Sandbox.new(client=client, ttl_seconds=90)
        try:
            script = WRAPPER.format(code=job[0], given=job[1], limit=TIME_LIMIT_S)
            printed = (box.run_code(script, language="python").stdout or "null").strip()
            result: str | None = json.loads(printed.splitlines()[-1])
            return result
        finally:
            box.close()
            box.shutdown()

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(run, jobs))


PROVIDERS = {"local": run_here, "e2b": run_in_e2b, "morph": run_in_morph}
