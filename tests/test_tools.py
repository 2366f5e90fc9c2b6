"""The programs of samples: which are run, what the model reads of their output, how a sample ends."""

import math
import re
import sys
from types import SimpleNamespace

import pytest
from conftest import TINY
from scripted import Scripted

from aimo.inference import sandbox
from aimo.inference.answers import Integer
from aimo.inference.errors import AimoError
from aimo.inference.model_folder import read_tokenizer
from aimo.inference.sample import End
from aimo.inference.solver import solve_problem
from aimo.inference.tool_calls import find_tool_parser
from aimo.inference.voting import EXACT

PROGRAM = "Let us compute.\n```python\nprint(6 * 7)\n```\n"
ANSWER = "So \\boxed{42}\x03"


def ask(sampler, samples=1):
    """The solution of a question whose answer is asked of all samples."""
    return solve_problem(sampler, "What is 6 x 7?", samples, Integer(0, 999), policy=EXACT)


def then(first, later, read="```output", **settings):
    """A model that writes something, and something else once it has read an output."""
    return Scripted(lambda _, prompt: later if read in prompt else first, **{"tools": 1.0} | settings)


def called(code, form='{{"name": "python", "arguments": {{"code": "{}"}}}}\n'):
    """A call as Qwen writes it, with whatever the model puts into its JSON."""
    return f"<tool_call>\n{form.format(code)}</tool_call>\x03"


PROGRAMS = [
    "```python \t\nprint(6 * 7)\n```",
    "```python\r\nx = 6\r\nprint(x * 7)\r\n```\r\n",
    "~~~Python3\nprint(6 * 7)\n~~~\n",
    "```{.python}\nprint(6 * 7)\n```",
    "```python\nprint(6 * 7)```\n and so on",
    "1. We compute\n   ```python\n   x = 6\n   print(x * 7)\n   ```\n",
    "```python\nprint('```')\nprint(6 * 7)\n```",
    "```python\nprint(6 * 7)\x03",  # ends before the fence does
    called(r"x = 6 * 7\nprint(x)"),
    called("print(len(r'\\alpha \\frac\\d') * 3)"),
    called("import re\\nprint(''.join(re.findall(r'\\d', 'a4b2')))"),
    called('print("4" + "2")'),
    called("print('</tool_call>' and 42)"),
    called("print(6 * 7)").replace("}}", "}"),
    called("print(6 * 7)", '{{"code": "{0}"}}\n{{"code": "print(1)"}}'),
    called("print(6 * 7)", '{{"name": "python", "arguments": "{{\\"code\\": \\"{0}\\"}}"}}'),
    called("print(6 * 7)", "<function=python>\n<parameter=code>\n{0}\n</parameter>\n</function>\n"),
    '{"name": "python", "arguments": {"code": "print(6 * 7)"}}\x03',
    called("print(6 * 7)", "{{'name': 'python', 'arguments': {{'code': '{0}'}}}}"),
    called("print(6 * 7)", '{{"name": "python", "arguments": {{"code": "{0}",}},}}'),
    called("print(6 * 7)", '```json\n{{"name": "python", "arguments": {{"code": "{0}"}}}}\n```\n'),
    called("print(6 * 7)", "```python\n{0}\n```\n"),
    called("print(6 * 7)", '{{"function": {{"name": "python", "arguments": {{"code": "{0}"}}}}}}'),
    called("", "{{'name': python}}{0}"),  # SyntaxError
    called("", '{{"name": "python"}}{0}'),  # TypeError
]


@pytest.mark.parametrize("call", PROGRAMS)
def test_a_program_is_run_however_it_is_written_or_the_model_is_told(call):
    """As blocks, or as calls of a model that was asked for blocks; both end a turn."""
    sampler = then(f"Let us see. {call}", ANSWER)
    solution = ask(sampler)
    assert solution.answer == 42 and solution.samples[0].turns == 1, solution
    output = sampler.prompts[1].split("```output")[1]
    assert "42" in output if "print" in call else re.search("(Syntax|Type)Error", output)


@pytest.mark.parametrize("text", ["```pycon\n>>> 1\n```", "```\nprint(1)\n```", "I could call <tool_call>."])
def test_blocks_that_are_no_programs_are_not_run(text):
    solution = ask(then(f"{text} So \\boxed{{7}}\x03", ""))
    assert solution.answer == 7 and solution.samples[0].turns == 0


@pytest.mark.parametrize("said, end", [("I am done.\x03", End.FINISHED), ("I am " * 9, End.TOKENS)])
def test_a_sample_that_ends_without_an_answer_is_asked_for_it(said, end):
    solution = ask(then(said, "42}", read="\\boxed{", max_tokens=20))
    assert solution.answer == 42 and solution.samples[0].end is end and solution.samples[0].tokens <= 23


def test_a_sample_ends_at_its_last_box_when_it_counts_and_not_before():
    steps = "</think>Step 1: $\\boxed{5}$ " + "and then " * 50 + "in total \\boxed{42}\x03"
    assert ask(then(steps, ""), 4).votes == {42: 4}
    counting = "".join(f"gcd(594,{n})={math.gcd(594, n)}, " for n in range(102, 4000))
    [sample] = ask(then(counting, "", max_tokens=60_000)).samples
    assert sample.end is End.REPETITION and sample.tokens < 20_000 < len(counting)


def test_an_answer_that_its_own_program_contradicts_counts_less():
    turn = iter(range(100))

    def write(_, prompt):
        if "```output" in prompt:
            return "So \\boxed{41}\x03" if "wild" in prompt else ANSWER
        return ("wild guess " if next(turn) else "") + PROGRAM  # three of four: none can be stopped early

    s = ask(Scripted(write, tools=1.0), 4)
    assert {sample.answer: sample.weight for sample in s.ended} == {41: 0.5, 42: 2.0} and s.answer == 42


def test_a_program_that_found_the_answer_is_a_vote_when_the_sample_says_none():
    s = ask(then(PROGRAM, "I am lost.\x03"), 2)
    assert s.answer == 42 and {sample.weight for sample in s.ended} == {0.5}


def test_a_program_that_never_ends_costs_its_turn_only():
    s = ask(then("```python\nwhile True: pass\n```", ANSWER, tool_seconds=1.0))
    assert s.answer == 42 and "time" in s.ended[0].text.split("```output")[1]


def test_no_more_programs_run_than_the_profile_says_in_no_more_samples():
    s = ask(then(PROGRAM, PROGRAM, tool_turns=2))
    assert s.ended[0].turns == s.ended[0].text.count("```output") == 2
    assert "\\boxed{" in s.ended[0].text, "the answer is forced in place of the third"
    s = ask(then(PROGRAM + "\\boxed{1}\x03", ANSWER, tools=0.25), 8)
    assert sum("```output" in sample.text for sample in s.ended) <= 2


def test_without_a_sandbox_samples_continue_without_programs(monkeypatch, capsys):
    sampler = then(PROGRAM, ANSWER)
    assert ask(sampler).answer == 42
    monkeypatch.setattr(sys, "executable", "/there/is/no/python")
    sandbox._server.close()
    s = ask(sampler, 2)
    assert s.answer == 42 and not s.note and "fork server does not start" in s.samples[0].text
    for cached in sandbox.check_limits, sandbox.has_sandbox, sandbox.note_fault:
        cached.cache_clear()
    s = ask(sampler, 2)
    assert "samples go on without tools" in capsys.readouterr().out
    assert all("```output" not in sample.text for sample in s.samples)
    sandbox.has_sandbox.cache_clear()


# ---- A model's own tool calls

HERMES = (
    "{% for tool in tools or [] %}tool: {{ tool['function']['name'] }}\n{% endfor %}"
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}"
    "<tool_call>{{ call['function'] | tojson }}</tool_call>{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CALL = 'I compute.<tool_call>{"name": "python", "arguments": {"code": "x = 6 * 7\\nprint(x)"}}</tool_call>'


def tiny(sampler):
    """Let a scripted model read and write the tokens of the tiny base, with a template that offers tools."""
    sampler.tokenizer = read_tokenizer(TINY)
    sampler.tokenizer.chat_template = HERMES
    sampler.tool_parser = find_tool_parser(sampler.settings.tool_parser, sampler.tokenizer)
    return sampler


@pytest.mark.slow  # it loads vLLM's parsers
def test_a_model_calls_python_in_its_own_format_and_reads_the_output_as_a_turn_of_the_tool():
    sampler = tiny(then(CALL + "\x03", ANSWER, read="<tool>42", tool_parser="hermes"))
    s = ask(sampler, 2)
    assert s.answer == 42 and {sample.weight for sample in s.ended} == {2.0}
    assert all(prompt.startswith("tool: python\n<user>What is 6 x 7?") for prompt in sampler.prompts)
    read = '<assistant>I compute.<tool_call>{"name": "python", "arguments": {"code": '
    assert f'{read}"x = 6 * 7\\nprint(x)"}}}}</tool_call><tool>42<assistant>' in sampler.prompts[-1]
    for arguments in ('{"program": "1"}', '"print(1)"', '{"code": 7}'):
        call = f'<tool_call>{{"name": "python", "arguments": {arguments}}}</tool_call>\x03'
        answered = ask(tiny(then(call, ANSWER, read="<tool>", tool_parser="hermes")))
        assert answered.answer == 42, "a call that is not one of python is answered, and the sample goes on"


@pytest.mark.parametrize("written", [PROGRAM, "```python\nprint('<|endoftext|>' * 3)\n```"])
def test_no_sample_reads_what_another_writes_and_no_program_can_end_the_turn(written):
    sampler = then(written, ANSWER)
    end = SimpleNamespace(content="<|endoftext|>", special=True)
    sampler.tokenizer.added_tokens_decoder = {3: end}
    assert ask(sampler, 3).answer == 42
    first, *read = (prompt.split("```output") for prompt in sorted(sampler.prompts, key=len))
    assert len(first) == 1 and len(read[-1]) == 2, "each sample reads the output of its own program alone"
    assert end.content not in read[-1][1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parser", "template", "told"),
    [
        ("hermess", HERMES, "hermess does not fit the model .* not found.*; did you mean hermes"),
        ("hermes", HERMES.replace("tools or", "offers or"), "offers no tools.*; take its family's parser"),
        ("hermes", HERMES.replace("tool_call>", "call>"), "hermes does not fit the model"),
        ("mistral", HERMES, "mistral does not fit the model"),
    ],
)
def test_a_parser_that_vllm_lacks_or_that_does_not_fit_the_template_is_refused(parser, template, told):
    tokenizer = read_tokenizer(TINY)
    tokenizer.chat_template = template
    with pytest.raises(AimoError, match=told):
        find_tool_parser(parser, tokenizer)
