"""`ioi_code` and `cf_code`: with g++ and the sandbox here, and as a Piston server is asked."""

import json
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from conftest import wait_for
from model_server import standing

from aimo.inference import sandbox
from aimo.inference.errors import AimoError
from aimo.rewards import cf_code_reward, code, ioi_code_reward

SUM = "#include <iostream>\nint main() { long a, b; std::cin >> a >> b; std::cout << a + b << '\\n'; }"
PRODUCT = SUM.replace("a + b", "a * b")
CF = {
    "id": "1/A", "language": "cpp", "time_limit": 10.0, "memory_limit": 256.0, "input_mode": "stdio",
    "official_tests": [{"input": f"{n} 2", "output": f"{n + 2}"} for n in (2, 3, 4, 5)],
    "generated_checker": None,
}  # fmt: skip
GRADER = """#include <iostream>
#include "Add.h"
int main() { long a, b; std::cin >> a >> b; std::cout << add(a, b); }"""
IOI = {
    "id": "Add", "year": 2024, "subtask": "01", "score": 20, "score_precision": 2,
    "test_names": ["a", "b"], "test_cases": [["1 2", "3"], ["4 5", "9"]],
    "time_limit": 10.0, "memory_limit": 256 << 20,
    "grader_files": [["graders/Add.h", "long add(long, long);"], ["graders/grader.cpp", GRADER]],
}  # fmt: skip
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def block(code, language="cpp"):
    return [{"role": "assistant", "content": f"So:\n```{language}\n{code}\n```"}]


def columns(row, number=1):
    return {key: [value] * number for key, value in row.items()}


def cf(*codes, language="cpp", options=None, **changes):
    """Rewards of programs for a problem of Codeforces, run here."""
    given = columns(CF | {"language": language} | changes, len(codes))
    asked = {"provider_type": "local"} | (options or {})
    return cf_code_reward([block(code, language) for code in codes], **asked, **given)


# ---- here


@needs_compiler
def test_a_cpp_program_is_worth_what_its_tests_say():
    crash, loop = "int main() { return *(volatile int*)0; }", "int main() { for (;;); }"
    assert cf(SUM, PRODUCT, "int main() { retrun", crash, "") == [1.1, 0.025, -0.1, 0.0, -1.0]
    assert cf(loop, official_tests=CF["official_tests"][:1], time_limit=0.2) == [0.0]


HOSTILE_SOURCES = {
    "a file that the assembler includes": 'asm(".incbin \\"{file}\\"");',
    "a file that is included": '#include "{file}"',
    "a file in a raw directive": 'asm(".include \\"{file}\\"");',
    "the environment": '#include "/proc/self/environ"',
    "an array of 8 GB": "char a[1ull << 33] = {{1}};",
    "8 GB from the assembler": 'asm(".fill 8000000000, 1, 65");',
    "a long assembly": 'asm(".rept 400000000\\n nop\\n .endr");',
}


@needs_compiler
@pytest.mark.parametrize("source", HOSTILE_SOURCES.values(), ids=HOSTILE_SOURCES)
def test_a_source_reads_nothing_of_the_machine_and_takes_little_of_it(source, tmp_path):
    secret = tmp_path / "token"
    secret.write_text("int hunter2;")
    tmp_path.chmod(0o755)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    result = code.compile_here((("main.cpp", source.format(file=secret) + "\nint main() {}"),))
    assert not result.ok and "hunter2" not in result.stdout
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= max(before, 2 << 20)  # KB
    assert cf(SUM, official_tests=CF["official_tests"][:1]) == [1.1]


@pytest.mark.slow  # the compiler works for seconds
@needs_compiler
def test_a_source_that_compiles_for_ever_is_stopped_with_all_that_the_compiler_started(monkeypatch):
    sandbox._server.close()  # with the sessions that other tests keep ready
    monkeypatch.setattr(code, "COMPILING", replace(code.COMPILING, seconds=1))
    endless = (
        "template<int n, long m> struct A { "
        "static const long v = A<n - 1, 2 * m>::v + A<n - 1, 2 * m + 1>::v; };"
        "template<long m> struct A<0, m> { static const long v = m; }; int main() { return A<30, 0>::v; }"
    )
    assert code.compile_here((("main.cpp", endless),)).timed_out
    server = sandbox._server.process.pid
    children = Path(f"/proc/{server}/task/{server}/children")
    wait_for(lambda: sandbox.run_script("").ok and not children.read_text(), 5)


@needs_compiler
def test_a_library_that_a_problem_brings_is_found_and_a_file_outside_its_folder_is_refused():
    graders = [*IOI["grader_files"], ["testlib.h", "inline long twice(long n) { return 2 * n; }"]]
    source = '#include "../testlib.h"\nlong add(long a, long b) { return twice(a) / 2 + b; }'
    given = columns(IOI | {"grader_files": graders})
    assert ioi_code_reward([block(source)], provider_type="local", **given) == [1.0]
    given = columns(IOI | {"grader_files": [["../../x.h", "x"]]})
    with pytest.raises(AimoError, match="leaves its folder"):
        ioi_code_reward([block(source)], provider_type="local", **given)


def test_a_compiler_that_does_not_run_here_is_named_and_no_program_is_to_blame(monkeypatch, tmp_path):
    (tmp_path / "g++").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "g++").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    code.compiled.cache_clear()
    with pytest.raises(AimoError, match=r"needs g\+\+ for C\+\+"):
        cf("int main() { return 5; }")
    code.compiled.cache_clear()


@pytest.mark.parametrize(("mode", "half"), [("pass_fail", 0.0), ("partial", 0.25), ("weighted_sum", 0.025)])
def test_a_scoring_mode_says_what_a_part_is_worth_however_many_tests_run_at_a_time(mode, half):
    for size in (1, 3, -1):  # the first test fails, the second passes
        options = {"scoring_mode": mode, "test_batch_size": size}
        assert cf("print(5)", language="python", options=options) == [half]
    assert cf("print(5)", language="rust") == cf("print(5)", official_tests=[]) == [None]


def test_a_checker_decides_where_a_problem_has_one():
    checker = "import sys\nprint(int(sorted(open(sys.argv[2]).read()) == sorted(open(sys.argv[3]).read())))"
    tests = [{"input": "", "output": "1 2\n"}]
    given = {"language": "python", "official_tests": tests, "generated_checker": checker}
    assert cf("print(2, 1)", "print(1, 1)", **given) == [1.1, 0.0]


@pytest.mark.slow  # compiles with a large header
@needs_compiler
def test_includes_are_added_where_the_profile_says_and_a_task_of_ioi_is_scored_by_its_worst_test():
    bare = "int main() { long a, b; cin >> a >> b; cout << a + b; }"
    assert [cf(bare, options={"patch_code": patch})[0] for patch in (False, True)] == [-0.1, 1.1]
    codes = ["long add(long a, long b) { return a + b; }", "long add(long, long) { return 3; }", ""]
    given = columns(IOI, len(codes))
    assert ioi_code_reward([block(c) for c in codes], provider_type="local", **given) == [1.0, 0.0, 0.0]
    managed = IOI | {"grader_files": [*IOI["grader_files"], ["checker/checker.cpp", "int main() {}"]]}
    assert ioi_code_reward([block(codes[0])], provider_type="local", **columns(managed)) == [None]
    untested = IOI | {"test_names": None, "test_cases": None}
    assert ioi_code_reward([block(codes[0])], provider_type="local", **columns(untested)) == [None]


def test_generated_tests_are_added_where_they_are_here(tmp_path, monkeypatch):
    table = pl.DataFrame({"problem_id": ["1/A", "1/B"], "input": ["9 2", "0 0"], "output": ["11", "x"]})
    table.write_parquet(tmp_path / "test_cases_0001.parquet")
    monkeypatch.setenv("CF_TESTS_FOLDER", str(tmp_path))
    partial = {"scoring_mode": "partial"}
    assert cf("print(4)", language="python", options=partial) == [0.2]
    assert cf("print(4)", language="python", options=partial, id="2/A") == [0.25]
    monkeypatch.setenv("CF_TESTS_FOLDER", str(tmp_path / "none"))
    with pytest.raises(AimoError, match="there is no folder"):
        cf("print(4)", language="python")


# ---- Piston


@pytest.fixture
def piston(monkeypatch):
    """A stand-in for Piston's servers: keeps what it is asked, and answers `reply(request)`."""
    monkeypatch.setattr(code, "PAUSE_S", 0.01)
    with standing(lambda request, _: stand.reply(request)) as stand:
        stand.reply = lambda request: {"run": {"code": 0, "stdout": "1\n"}}
        stand.url += "/api/v2"
        monkeypatch.setenv("PISTON_ENDPOINTS", stand.url)
        code.servers.cache_clear()
        yield stand
        code.servers.cache_clear()


def files(request):
    return {file["name"]: file["content"] for file in request["files"]}


def test_codeforces_is_asked_as_open_r1_asks(piston):
    given = columns(CF | {"generated_checker": "print(1)", "official_tests": CF["official_tests"][:1]})
    assert cf_code_reward([block(SUM)], **given) == [1.1]
    (asked,) = piston.bodies
    assert piston.paths == ["/api/v2/execute"]
    config = "TIME_LIMIT=10.0\nMEMORY_LIMIT=256.0\nINPUT_MODE=stdio"
    sent = {"main.cpp": f"{SUM}\n", "checker.py": "print(1)", "input.txt": "2 2", "correct_output.txt": "4"}
    assert files(asked) == sent | {"grader_config": config}
    assert (asked["language"], asked["version"], asked["run_timeout"]) == ("c++17", "*", 20000)
    cf_code_reward([block("x", "python")], **given | {"language": ["python"]})
    assert piston.bodies[-1]["language"] == "cf_python3" and "main.python" in files(piston.bodies[-1])


def test_ioi_is_asked_as_open_r1_asks_and_its_score_may_be_a_part(piston):
    piston.reply = lambda request: {"run": {"stdout": "0.333" if "4 5" in str(request) else "1", "code": 0}}
    assert ioi_code_reward([block("long add")], **columns(IOI)) == [0.33]
    asked = piston.bodies[0]
    limits = asked["run_timeout"], asked["run_memory_limit"]
    assert asked["language"] == "cms_ioi" and limits == (13000, 256 << 20)
    sent, graders = files(asked), {f"graders/{name}" for name in ("add.cpp", "Add.h", "grader.cpp")}
    assert sent.keys() == graders | {"input.txt", "correct_output.txt"}
    assert sent["graders/add.cpp"].startswith('#include <bits/stdc++.h>\n#include "Add.h"\n')


@pytest.mark.parametrize(("size", "requests"), [(1, 2), (2, 2), (3, 3), (-1, 4)])
def test_after_a_failed_batch_no_more_tests_run(piston, size, requests):
    piston.reply = lambda request: {"run": {"code": 0, "stdout": "0" if "3 2" in str(request) else "1"}}
    options = {"scoring_mode": "pass_fail", "test_batch_size": size}
    assert cf_code_reward([block(SUM)], **options, **columns(CF)) == [0.0]
    assert len(piston.bodies) == requests


def test_a_program_that_fails_on_the_server_is_worth_what_it_would_be_here(piston):
    failed = {"code": 1, "stdout": "1", "stderr": "MemoryError"}
    killed = {"code": None, "stdout": "", "signal": "SIGKILL"}
    replies = {-0.1: [{"compile": {"code": 1, "stderr": "no"}}], 0.0: [{"run": failed}, {"run": killed}]}
    for reward, reply in ((reward, reply) for reward, several in replies.items() for reply in several):
        piston.reply = lambda _, reply=reply: reply
        assert cf_code_reward([block(SUM)], **columns(CF)) == [reward]


def test_an_overloaded_server_is_asked_again_and_one_that_is_down_is_left_for_another(piston, monkeypatch):
    monkeypatch.setenv("PISTON_ENDPOINTS", f"http://127.0.0.1:1/api/v2, {piston.url}/")
    replies = iter([{"run": {"stdout": "", "code": 1, "stderr": "fork: Resource temporarily unavailable"}}])
    piston.reply = lambda request: next(replies, {"run": {"code": 0, "stdout": "1"}})
    given = columns(CF | {"official_tests": CF["official_tests"][:1]})
    assert cf_code_reward([block(SUM)], **given) == [1.1]


@pytest.mark.parametrize("addresses", ["", "http://127.0.0.1:1/api/v2", None])
def test_without_a_server_that_runs_it_one_line_says_what_to_do(piston, monkeypatch, addresses):
    piston.reply = lambda request: {"message": "c++17-* runtime is unknown"}
    if addresses is not None:
        monkeypatch.setenv("PISTON_ENDPOINTS", addresses)
    with pytest.raises(AimoError, match=r"rewards: .*iston.* provider_type to local") as e:
        cf_code_reward([block(SUM)], **columns(CF))
    assert "\n" not in str(e.value) and (addresses is not None or "runtime is unknown" in str(e.value))


def test_a_row_may_be_in_the_column_that_the_data_stage_keeps_and_one_of_another_kind_is_not_scored(piston):
    odd = [CF | {"official_tests": tests} for tests in (5, [{"input": "1"}], ["x"])]
    empty = json.dumps({"language": "python", "test_cases": []})
    info = [json.dumps(CF), CF, empty, None, "{", "[5]", 5, *odd]
    rewards = cf_code_reward([block(SUM)] * len(info), verification_info=info)
    assert rewards == [1.1, 1.1] + [None] * 8
    with pytest.raises(AimoError, match="cf_code needs a column `official_tests`"):
        cf_code_reward([block(SUM)], language=["cpp"])
