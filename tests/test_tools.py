"""Tool-integrated reasoning: the real solver and sandbox, with a server that writes what a test needs."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import model_server
import pytest
from conftest import TINY

from aimo.errors import AimoError
from aimo.inference import sandbox
from aimo.inference.answer_kinds import Integer
from aimo.inference.model_folder import read_tokenizer
from aimo.inference.sample import AskedProblem
from aimo.inference.sampling import Completion
from aimo.inference.server import Server
from aimo.inference.solver import solve_problem
from aimo.inference.tool_calls import find_tool_parser
from aimo.inference.voting import EXACT

pytestmark = pytest.mark.slow  # loads transformers and vLLM's parsers, and runs programs
PROGRAM = "Let us compute.\n```python\nprint(6 * 7)\n```\n"


@pytest.fixture
def serving():
    """Start a server whose model is a function from the prompt's text to its completion."""
    with ExitStack() as started:

        def start(model: Callable[[str], str]) -> Server:
            def complete(body):
                text = model(engine.tokenizer.decode(body["prompt"]))
                pieces = [text[i : i + 5] for i in range(0, len(text), 5)]
                choices = [{"text": p, "finish_reason": None, "token_ids": [1]} for p in pieces]
                return [*choices, {"text": "", "finish_reason": "stop"}]

            url = started.enter_context(model_server.serving(complete, 1000))
            engine = Server([url], TINY)
            started.callback(engine.close)
            engine.settings = replace(engine.settings, tools=1.0, max_tokens=400)
            return engine

        yield start


def ask(engine, samples=1):
    """The solution of a question whose answer is asked of all samples."""
    return solve_problem(engine, "What is 6 x 7?", num_samples=samples, kind=Integer(0, 999), policy=EXACT)


def then(first, later, read="```output"):
    """A model that writes something, and something else once it has read an output."""
    return lambda prompt: later if read in prompt else first


def test_an_answer_that_its_own_program_contradicts_counts_less(serving):
    turn = iter(range(100))

    def model(prompt):
        if "```output" in prompt:
            return "<SOLUTION>41</SOLUTION>" if "wild" in prompt else "<SOLUTION>42</SOLUTION>"
        return ("wild guess " if next(turn) else "") + PROGRAM  # three of four: none can be stopped early

    s = ask(serving(model), 4)
    assert {sample.answer: sample.weight for sample in s.ended} == {41: 0.5, 42: 2.0} and s.answer == 42


def test_a_program_that_found_the_answer_is_a_vote_when_the_sample_says_none(serving):
    s = ask(serving(then(PROGRAM, "I am lost.")), 2)
    assert s.answer == 42 and {c.weight for c in s.ended} == {0.5}


def test_a_program_that_never_ends_costs_its_turn_only(serving):
    engine = serving(then("```python\nwhile True: pass\n```", "<SOLUTION>7</SOLUTION>"))
    engine.settings = replace(engine.settings, tool_seconds=1.0)
    s = ask(engine)
    assert s.answer == 7 and "time" in s.ended[0].text.split("```output")[1]


def test_no_more_blocks_run_than_the_profile_says(serving):
    engine = serving(lambda prompt: PROGRAM)
    engine.settings = replace(engine.settings, tool_turns=2)
    s = ask(engine)
    assert s.ended[0].turns == s.ended[0].text.count("```output") == 2
    assert "<SOLUTION>" in s.ended[0].text  # the answer is forced in place of the third


def test_only_the_share_of_samples_has_tools(serving):
    engine = serving(then(PROGRAM + "<SOLUTION>1</SOLUTION>", "<SOLUTION>42</SOLUTION>"))
    engine.settings = replace(engine.settings, tools=0.25)
    assert sum("```output" in c.text for c in ask(engine, 8).ended) <= 2


HERMES = (
    "{% for tool in tools or [] %}tool: {{ tool['function']['name'] }}\n{% endfor %}"
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}"
    "<tool_call>{{ call['function'] | tojson }}</tool_call>{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CALL = 'I compute.<tool_call>{"name": "python", "arguments": {"code": "x = 6 * 7\\nprint(x)"}}</tool_call>'
CALL_AND_OUTPUT = '"x = 6 * 7\\nprint(x)"}}</tool_call><tool>42<assistant>'


def with_calls(engine):
    """An engine whose model has tool calls of its own."""
    engine.tokenizer.chat_template = HERMES
    engine.settings = replace(engine.settings, tool_parser="hermes")
    engine.tool_parser = find_tool_parser("hermes", engine.tokenizer)
    return engine


def test_a_model_calls_python_in_its_own_format_and_reads_the_output_as_a_turn_of_the_tool(serving):
    prompts = []

    def model(prompt):
        prompts.append(prompt)
        return "so it is <SOLUTION>42</SOLUTION>" if "<tool>42" in prompt else CALL

    s = ask(with_calls(serving(model)), 2)
    assert s.answer == 42 and {sample.weight for sample in s.ended} == {2.0}
    assert all(prompt.startswith("tool: python\n<user>What is 6 x 7?") for prompt in prompts)
    assert "<assistant>I compute.<tool_call>" in prompts[-1] and CALL_AND_OUTPUT in prompts[-1]


@pytest.mark.parametrize("parser", ["hermes", None])
def test_the_prompt_of_a_question_is_encoded_once_and_no_sample_changes_that_of_another(
    serving, parser, monkeypatch
):
    engine = with_calls(serving(str))
    engine.settings = replace(engine.settings, tool_parser=parser)
    problem = AskedProblem(engine, "What is 6 x 7?", 0, Integer(0, 999))
    first = problem.begin(0, with_tools=True)
    prompt = first.prompt()
    monkeypatch.setattr(engine.tokenizer, "apply_chat_template", None)
    second = problem.begin(1, with_tools=True)
    monkeypatch.undo()
    turn = CALL if parser else PROGRAM
    first.reply(first.find_call(Completion(turn, engine.tokenizer.encode(turn), True)), "42")
    assert first.prompt()[: len(prompt)] == prompt != first.prompt() and first.text
    assert second.prompt() == prompt == problem.begin(2, with_tools=True).prompt() and not second.text


@pytest.mark.parametrize("arguments", ['{"program": "1"}', '"print(1)"', '{"code": 7}'])
def test_a_call_that_is_not_one_of_python_is_answered_and_the_sample_goes_on(serving, arguments):
    call = f'<tool_call>{{"name": "python", "arguments": {arguments}}}</tool_call>'
    assert ask(with_calls(serving(then(call, "<SOLUTION>7</SOLUTION>", "<tool>")))).answer == 7


def test_what_a_program_prints_cannot_end_the_turn(serving):
    prompts = []

    def model(prompt):
        prompts.append(prompt)
        return then("```python\nprint('<|endoftext|>' * 3)\n```", "<SOLUTION>7</SOLUTION>")(prompt)

    engine = serving(model)
    assert ask(engine).answer == 7 and engine.tokenizer.eos_token == "<|endoftext|>"
    assert "<|endoftext|>" not in prompts[-1].split("```output")[1]


def test_without_a_sandbox_samples_continue_without_programs(serving, monkeypatch, capsys):
    engine = serving(then(PROGRAM, "<SOLUTION>7</SOLUTION>"))
    assert ask(engine).answer == 7
    monkeypatch.setattr(sys, "executable", "/there/is/no/python")
    sandbox._server.close()
    s = ask(engine, 2)
    assert s.answer == 7 and not s.note and "fork server does not start" in s.samples[0].text
    for cached in sandbox.check_limits, sandbox.has_sandbox, sandbox.note_fault:
        cached.cache_clear()
    s = ask(engine, 2)
    assert "samples go on without tools" in capsys.readouterr().out
    assert all("```output" not in sample.text for sample in s.samples)
    sandbox.has_sandbox.cache_clear()


@pytest.mark.parametrize(
    ("parser", "template", "told"),
    [
        ("hermes", "{{ messages[0]['content'] }}", "needs a chat template that offers tools"),
        ("hermess", HERMES, "no parser 'hermess'; did you mean hermes"),
        ("hermes", HERMES.replace("tool_call>", "call>"), ""),
        ("hermes", HERMES.replace("['function'] | tojson", "['function']['arguments']['x']['y']['z']"), ""),
        ("pythonic", HERMES, ""),
        ("mistral", HERMES, ""),
        ("openai", HERMES, ""),
    ],
)
def test_a_parser_that_vllm_lacks_or_that_does_not_fit_the_template_is_refused(parser, template, told):
    tokenizer = read_tokenizer(TINY)
    tokenizer.chat_template = template
    told = told or f"{parser} does not fit the model .*; take its family's parser"
    with pytest.raises(AimoError, match=told) as e:
        find_tool_parser(parser, tokenizer)
    assert "\n" not in str(e.value)
