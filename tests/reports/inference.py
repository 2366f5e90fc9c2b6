"""Public reports of the area: inference."""

from math import gcd
from pathlib import Path

from scripted import Scripted

from aimo.inference.answers import Integer
from aimo.inference.sample import End
from aimo.inference.solver import solve_problem


def answered(call, expected):
    """A sample that writes a call reads what it printed, or why it did not run, and goes on to its answer."""
    prompts = []

    def write(number, prompt):
        prompts.append(prompt)
        return "So \\boxed{42}\x03" if "```output" in prompt else call + "\x03"

    solution = solve_problem(Scripted(write, tools=1.0), "6 x 7", 1, Integer(0, 999))
    assert solution.answer == 42 and solution.samples[0].turns == 1
    assert expected in prompts[1].split("```output")[1]


def F01(case):
    answered(case["input"].replace("⏎", "\n"), "42")


def F02v(case):
    answered(case["input"].replace("\\n", "\n"), "alpha")


def F03(case):
    for info in ("```python3\n", "```Python\n", "```python \n", "```python\r\n"):
        answered(f"{info}print(6 * 7)\n```", "42")


def F05v(case):
    answered(f"```python\n{case['input']}\n```", case["expected"])


def F08(case):
    solution = solve_problem(Scripted(lambda *_: case["input"] + "\x03"), "Q", 4, Integer(0, 999))
    assert solution.votes == {int(case["expected"]): 4}


def G01(case):
    def text(count):
        return ", ".join(f"gcd(594,{n})={gcd(594, n)}" for n in range(102, 102 + count))

    sampler = Scripted(lambda *_: text(3500), max_tokens=60_000)
    [runaway] = solve_problem(sampler, "Q", 1, Integer(0, 999)).samples
    assert runaway.end is End.REPETITION and runaway.tokens < 20_000
    honest = solve_problem(Scripted(lambda *_: text(40) + " so \\boxed{6}\x03"), "Q", 1, Integer(0, 999))
    assert honest.answer == 6 and honest.samples[0].end is not End.REPETITION


def G02(case):
    """In place of a stream, and in place of a chat completion, both counted as faults and asked for again."""
    import test_distil
    import test_server_faults
    from conftest import TINY
    from model_server import standing

    from aimo.inference.server import Server

    body = case["input"].split(" in place")[0]
    replies = [body, test_server_faults.WHOLE]
    with standing(lambda _, n: replies[n]) as stand, Server([stand.url], TINY) as client:
        assert test_server_faults.sample(client).text == "42" and len(stand.bodies) == 2
    problems = Path("problems.jsonl")
    problems.write_text('{"problem": "1 + 1?", "answer": "2"}\n')
    asked = []

    def answer(sent, number):
        asked.append(number)
        return test_distil.reply() if len(asked) > 1 else body

    with test_distil.serving(answer) as server:
        tally, rows = test_distil.sampled(problems, server, retries=1)
    assert len(rows) >= 1 and len(asked) > len(rows) and not tally.failed
