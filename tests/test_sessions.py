"""The programs of samples: what the model reads of an output, which blocks are run, how a sample ends."""

import math
import re
import threading
import time

import pytest
from conftest import wait_for
from scripted import Scripted

from aimo.inference.answer_kinds import Integer
from aimo.inference.sample import End
from aimo.inference.sandbox import Programs
from aimo.inference.solver import solve_problem

SECONDS = 30.0  # no program here comes near it


def test_variables_live_on_in_a_sample_and_in_no_other_and_long_output_is_cut_in_the_middle():
    one, other = Programs(SECONDS), Programs(SECONDS)
    one.run("x = 7")
    assert one.run("x").shown == "7"
    failed = other.run("print('before')\nx")
    assert failed.shown.startswith("before") and "NameError" in failed.shown and not failed.ok
    for library in ("numpy", "sympy", "mpmath", "networkx"):  # that the prompt says are installed
        assert one.run(f"import {library}; {library}.__name__").shown == f"'{library}'"
    shown = one.run("print('a' * 5000 + 'b' * 5000)").shown
    assert re.fullmatch(r"a{2000}\n\[… 6,001 characters left out …\]\nb{1999}", shown)
    one.close()
    other.close()


def test_closing_returns_at_once_and_ends_a_running_program():
    sample, outputs = Programs(SECONDS), []
    thread = threading.Thread(target=lambda: outputs.append(sample.run("import time; time.sleep(25)")))
    thread.start()
    wait_for(lambda: sample.session, 10)
    begun = time.monotonic()
    sample.close()
    thread.join(15)
    assert outputs and not outputs[0].ok and time.monotonic() - begun < 15


def called(code, form='{{"name": "python", "arguments": {{"code": "{}"}}}}\n'):
    """A call as Qwen writes it, with whatever the model puts into its JSON."""
    return f"<tool_call>\n{form.format(code)}</tool_call>\x03"


PROGRAMS = {
    "```python\nprint(6 * 7)\n```": "42",
    "```python3\nprint(6 * 7)\n```": "42",
    "```Python\nprint(6 * 7)\n```": "42",
    "```python \t\nprint(6 * 7)\n```": "42",
    "```python\r\nx = 6\r\nprint(x * 7)\r\n```\r\n": "42",
    "~~~python\nprint(6 * 7)\n~~~\n": "42",
    "````py\nprint(6 * 7)\n````": "42",
    "```{.python}\nprint(6 * 7)\n```": "42",
    "```tool_code\nprint(6 * 7)\n```": "42",
    "```python\nprint(6 * 7)```\n and so on": "42",
    "1. We compute\n   ```python\n   x = 6\n   print(x * 7)\n   ```\n": "42",
    "```python\nprint('```')\nprint(6 * 7)\n```": "42",
    "```python\nprint(6 * 7)\x03": "42",  # ends before the fence does
    called("print(6 * 7)"): "42",
    called("x = 6 * 7\nprint(x)"): "42",
    called(r"x = 6 * 7\nprint(x)"): "42",
    called("print(len(r'\\alpha \\frac\\d') * 3)"): "42",
    called("import re\\nprint(''.join(re.findall(r'\\d', 'a4b2')))"): "42",
    called('print("4" + "2")'): "42",
    called("print('</tool_call>' and 42)"): "42",
    called("print(6 * 7)").replace("}}", "}"): "42",
    called("print(6 * 7)", '{{"code": "{0}"}}\n{{"code": "print(1)"}}'): "42",
    called("print(6 * 7)", '{{"name": "python", "arguments": "{{\\"code\\": \\"{0}\\"}}"}}'): "42",
    called("print(6 * 7)", "<function=python>\n<parameter=code>\n{0}\n</parameter>\n</function>\n"): "42",
    '{"name": "python", "arguments": {"code": "print(6 * 7)"}}\x03': "42",
    called("print(6 * 7)", "{{'name': 'python', 'arguments': {{'code': '{0}'}}}}"): "42",
    called("print(6 * 7)", '{{"name": "python", "arguments": {{"code": "{0}",}},}}'): "42",
    called("print(6 * 7)", '```json\n{{"name": "python", "arguments": {{"code": "{0}"}}}}\n```\n'): "42",
    called("print(6 * 7)", "```python\n{0}\n```\n"): "42",
    called("print(6 * 7)", '{{"function": {{"name": "python", "arguments": {{"code": "{0}"}}}}}}'): "42",
    called("", "{{'name': python}}{0}"): "SyntaxError",
    called("", '{{"name": "python"}}{0}'): "TypeError",
    "```python\nprint(len(str(3**20000)))\n```": "9543",
}  # fmt: skip


@pytest.mark.parametrize("call", PROGRAMS)
def test_a_program_is_run_however_it_is_written_or_the_model_is_told(call):
    """As blocks, or as calls of a model that was asked for blocks; both end a turn."""
    prompts = []

    def write(number, prompt):
        prompts.append(prompt)
        return "So \\boxed{42}\x03" if "```output" in prompt else f"Let us see. {call}"

    sampler = Scripted(write, tools=1.0)
    solution = solve_problem(sampler, "6 x 7", 1, Integer(0, 999))
    assert solution.answer == 42 and solution.samples[0].turns == 1, solution
    assert PROGRAMS[call] in prompts[1].split("```output")[1]


def test_blocks_that_are_no_programs_are_not_run():
    for text in (
        "```pycon\n>>> 1\n```",
        "```json\n{}\n```",
        "```\nprint(1)\n```",
        "I could call <tool_call>.",
    ):
        said = f"{text} So \\boxed{{7}}\x03"
        solution = solve_problem(Scripted(lambda *_: said, tools=1.0), "Q", 1, Integer(0, 9))  # noqa: B023
        assert solution.answer == 7 and solution.samples[0].turns == 0


def test_a_finished_sample_without_an_answer_is_asked_for_it():
    write = lambda number, prompt: "42}" if prompt.endswith("\\boxed{") else "I am done.\x03"  # noqa: E731
    solution = solve_problem(Scripted(write), "6 x 7", 1, Integer(0, 999))
    assert solution.answer == 42 and solution.samples[0].end is End.FINISHED


def test_a_sample_ends_at_its_last_box_when_it_counts_and_not_before():
    steps = "</think>Step 1: $\\boxed{5}$ " + "and then " * 50 + "in total \\boxed{42}\x03"
    assert solve_problem(Scripted(lambda *_: steps), "Q", 4, Integer(0, 999)).votes == {42: 4}
    counting = "".join(f"gcd(594,{n})={math.gcd(594, n)}, " for n in range(102, 4000))
    [sample] = solve_problem(
        Scripted(lambda *_: counting, max_tokens=60_000), "Q", 1, Integer(0, 999)
    ).samples
    assert sample.end is End.REPETITION and sample.tokens < 20_000 < len(counting)
