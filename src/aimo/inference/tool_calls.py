"""Find a model's calls of Python with vLLM's parsers, and read even badly written ones."""

import ast
import contextlib
import difflib
import functools
import json
import logging
import re
import textwrap
from dataclasses import dataclass, field
from typing import Any

from aimo.inference.errors import AimoError, one_line
from aimo.inference.prompts import Completion, as_prompt

# The tool's schema, for chat templates and vLLM's parsers.
PYTHON: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Runs Python and returns what it prints and the value of a last expression. "
        "Variables are kept between calls; numpy, sympy, mpmath and networkx are installed.",
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "The program."}},
            "required": ["code"],
        },
    },
}
# The beginning of a call, in the formats of several model families.
MARK = re.compile(
    r"<tool_call>(?=\s*[\[{<]|[^<]*</tool_call>)|\[TOOL_CALLS\]|<\|python_tag\|>|"
    r'(?=<function=|\{\s*"name"\s*:\s*"python")'
)


@dataclass(frozen=True)
class Call:
    """A turn's call of Python."""

    code: str
    turn: str  # what the turn wrote up to the end of the call
    ids: list[int]  # the token ids of `turn`
    message: dict[str, Any] = field(default_factory=dict)  # the turn as a message; for vLLM's formats only
    channel: str = "analysis"  # for Harmony only


def find_tool_call(parser: Any, turn: Completion) -> Call | None:
    """Return a finished turn's first call, if any. One without a program gets code that raises an error."""
    if not turn.finished:
        return None
    found = None
    with contextlib.suppress(Exception):  # parsers raise errors of many kinds
        found = parser.extract_tool_calls(turn.text, offer())
    if found and found.tool_calls:
        function, content = found.tool_calls[0].function, found.content
        name, code = function.name, read_call(function.arguments)
    elif (mark := MARK.search(turn.text)) and re.search(r"python|code", turn.text[mark.end() :]):
        name, content, code = "python", turn.text[: mark.start()], read_call(turn.text[mark.end() :])
    else:
        return None
    call = {"type": "function", "function": {"name": name, "arguments": {"code": code}}}
    message = {"role": "assistant", "content": content or "", "tool_calls": [call]}
    return Call(code, turn.text, turn.token_ids, message)


def read_call(text: str) -> str:
    """Return the program in a model's call; if there is none, a program that raises an error.

    Tolerates a fence, raw line breaks in JSON, LaTeX, bare quotes, Python literals, a missing brace and a
    second object.
    """
    if fenced := re.match(r"\s*(`{3,}|~{3,})[ \w]*\r?\n(.*?)\r?\n?(?:\1|\Z)", text, re.DOTALL):
        text = fenced[2]
    text = text.lstrip(" \r\n[")
    if parameter := re.search(r"<parameter=\w+>\s*?\n?(.*?)\s*</parameter>", text, re.DOTALL):
        return dedented(parameter[1])
    # A backslash that escapes nothing is meant literally: \alpha, \d.
    repaired = re.sub(r'\\(["\\/bfnrt]|u[0-9a-fA-F]{4})?', lambda m: m[0] if m[1] else r"\\", text)
    for attempt in (text, repaired):
        with contextlib.suppress(ValueError, RecursionError):
            return code_of(json.JSONDecoder(strict=False).raw_decode(attempt)[0])
    with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        if isinstance(literal := ast.literal_eval(text.removesuffix("</tool_call>").strip()), dict):
            return code_of(literal)
    if found := re.search(r'"code"\s*:\s*"(.*)', repaired, re.DOTALL):
        body = re.sub(r'"?[\s}\],]*(?:</tool_call>\s*)?\Z', "", found[1])
        escaped = re.sub(r'(?<!\\)((?:\\\\)*)"', r'\1\\"', body)
        with contextlib.suppress(ValueError):
            return code_of(json.loads(f'"{escaped}"', strict=False))
    if text[:1] not in ("{", '"'):
        return dedented(text.removesuffix("</tool_call>"))
    return 'raise SyntaxError(\'the call is no JSON: {"name": "python", "arguments": {"code": "…"}}\')'


def code_of(value: Any) -> str:
    """Return the program in the parsed JSON of a call or of its arguments."""
    if isinstance(value, dict):
        value = value["function"] if isinstance(value.get("function"), dict) else value
        if (inner := value.get("arguments", value.get("parameters"))) is not None:
            return (
                read_call(inner) if isinstance(inner, str) and inner.lstrip()[:1] == "{" else code_of(inner)
            )
        value = value.get("code", "raise TypeError('its argument is named code')")
    # JSON's \f and \b are meant as LaTeX or regular expressions: \frac, \b.
    return str(value).replace("\f", "\\f").replace("\b", "\\b")


def dedented(code: str) -> str:
    """Return a program without the indentation of its block, with Unix line breaks."""
    return textwrap.dedent(code.replace("\r\n", "\n")).rstrip("\n")


@functools.cache
def offer() -> Any:
    """Return the request in which vLLM's parsers look up the tool; they do not read its messages."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    return ChatCompletionRequest.model_validate({"messages": as_prompt(""), "tools": [PYTHON]})


def find_tool_parser(name: str | None, tokenizer: Any) -> Any:
    """Return vLLM's tool parser of that name, or None for null.

    AimoError if vLLM has no such parser, or if it does not read the calls that the chat template writes.
    """
    if name is None:
        return None
    from vllm.tool_parsers import ToolParserManager

    # A call that cannot be read is the model's fault and not worth a traceback.
    logging.getLogger("vllm.tool_parsers").setLevel(logging.CRITICAL)
    function = {"name": "python", "arguments": {"code": "print(1)"}}
    called = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    asked = as_prompt("1 + 1?")
    try:
        parser = ToolParserManager.get_tool_parser(name)(tokenizer)
        prompt, whole = (
            tokenizer.apply_chat_template(talk, tools=[PYTHON], tokenize=False)
            for talk in (asked, [*asked, called])
        )
        turn = whole.removeprefix(prompt).rstrip().removesuffix(tokenizer.eos_token or "")
        found = parser.extract_tool_calls(turn, offer()).tool_calls
        reason = "it finds no call in one that the chat template writes"
        if "tools" not in tokenizer.get_chat_template(tools=[PYTHON]):
            reason = "the chat template offers no tools"
        elif any("print(1)" in call.function.arguments for call in found):
            return parser
    except Exception as e:  # parsers and templates raise errors of many kinds
        reason = one_line(e)
    close = difflib.get_close_matches(name, ToolParserManager.list_registered(), n=3)
    remedy = "take its family's parser, or null to run fenced blocks"
    remedy = remedy if name in close or not close else f"did you mean {' or '.join(close)}?"
    raise AimoError(f"inference.tool_parser: {name} does not fit the model ({reason}); {remedy}")
