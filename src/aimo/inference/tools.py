"""Conversations by the chat template: without tools, with fenced Python blocks, with the model's own calls.

A conversation is one sample's: `prompt` gives what the next turn continues, `find_call` finds the program in
a turn, and `reply` adds the call and its output to `text`, all that the sample wrote and read. What the model
wrote stays as it is, token by token, so that vLLM has it cached. Out of scope: running the program
(`programs`), gpt-oss (`harmony`), and tools other than Python.
"""

import contextlib
import difflib
import functools
import json
import logging
import re
import textwrap
from dataclasses import dataclass, field
from typing import Any

from aimo.inference import voting
from aimo.inference.errors import AimoError, one_line
from aimo.inference.prompts import as_prompt, encode, ends_in_thought, escape_special_tokens, messages
from aimo.inference.sampling import Completion, Sampler

NEWLINE = "\n"
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


@dataclass(frozen=True)
class Call:
    """A call of Python that a turn makes."""

    code: str
    turn: str
    """What the turn wrote up to the end of the call."""
    ids: list[int]
    """The token ids of that."""
    message: dict[str, Any] = field(default_factory=dict)
    """The turn as a message of the conversation; of the model's own tool calls only."""
    channel: str = "analysis"
    """The channel of the call; of Harmony only."""


class Chat:
    """A conversation without tools: one message of the model, after the prompt of the chat template."""

    starts_message = True
    """Whether the prompt ends where a message of the model begins, or continues the one before."""

    def __init__(self, sampler: Sampler, problem: str, index: int = 0, rules: str = ""):
        self.tokenizer, self.settings, self.text = sampler.tokenizer, sampler.settings, ""
        self.ids = self.begin(sampler, problem, index, rules)

    def begin(self, sampler: Sampler, problem: str, index: int, rules: str) -> list[int]:
        """Token ids of the first prompt."""
        return encode(self.tokenizer, self.settings, problem, index, rules)

    def prompt(self) -> list[int]:
        """Token ids that the next turn continues."""
        return list(self.ids)

    def thinks(self) -> bool:
        """Whether the prompt ends inside a thought."""
        given = self.settings.thinking
        return ends_in_thought(self.tokenizer, self.ids, self.settings.tags) if given is None else given

    def find_call(self, turn: Completion) -> Call | None:
        """The call of Python that a turn makes; None here."""
        return None

    def reply(self, call: Call, output: str) -> None:
        """Continue after the output of a call."""

    def forced_ending(self, message: str, thinking: bool) -> str:
        """What to append to the present message, so that a few more tokens give an answer."""
        return voting.forced_ending(message, self.settings.tags, thinking)

    def count_malformed(self, ids: list[int]) -> int:
        """How many faults of format the token ids of all turns hold; here those cannot be told."""
        return 0


class FencedBlocks(Chat):
    """Fenced Python blocks, each followed by a block with its output; a stream stops where a block ends."""

    output = "```output\n{}\n```\n"
    """How the output of a call is shown."""

    @property
    def starts_message(self) -> bool:  # type: ignore[override]
        """All turns are one message."""
        return not self.text

    def find_call(self, turn: Completion) -> Call | None:
        """The first complete program of a turn, which may still grow. Tokens after its last are left out."""
        found = self.find_program(turn.text, turn.finished)
        if not found:
            return None
        code, end = found
        ids, text = turn.token_ids, turn.text
        if self.tokenizer.decode(ids, skip_special_tokens=True) != text:  # a server may send other tokens
            text = text[:end]
            return Call(code, text, self.tokenizer.encode(text, add_special_tokens=False))
        while len(shorter := self.tokenizer.decode(ids[:-1], skip_special_tokens=True)) >= end:
            ids, text = ids[:-1], shorter
        return Call(code, text, ids)

    def find_program(self, text: str, finished: bool) -> tuple[str, int] | None:
        """The first program in a text, and where it ends: a block's, or of a call in the form of a model."""
        block = (WHOLE_BLOCK if finished else BLOCK).search(text)
        call = MARK.search(text)
        if call and not (block and block.start() < call.start()):
            closed = re.search(r"\}\s*</tool_call>|</function>", text[call.end() :])
            if finished or closed:
                end = call.end() + closed.end() if closed else len(text)
                return read_call(text[call.end() : end]), end
        return (clean(block["code"]), block.end()) if block else None

    def reply(self, call: Call, output: str) -> None:
        """Continue after the output: the turn's own tokens stay, so that their cache does."""
        shown = escape_special_tokens(self.tokenizer, output)
        result = ("" if call.turn.endswith(NEWLINE) else NEWLINE) + self.output.format(shown)
        self.text += call.turn + result
        self.ids = [*self.ids, *call.ids, *self.tokenizer.encode(result, add_special_tokens=False)]


CALL, OUTPUT = "aimoscallstandshere", "aimosoutputstandshere"
"""Stand for a program and its output in a conversation that is rendered to see what is between them."""
FENCE = (
    r"(?P<fence>`{3,}|~{3,})[ \t]*[{.]*(?:i?python|py|tool_code)[\d.]*\}?(?:[ \t][^\n]*)?\r?\n"
    r"(?P<code>.*?)(?:^[ \t]*(?P=fence)|(?P=fence)"
)
BLOCK = re.compile(FENCE + r"(?=[ \t]*\r?\n))", re.DOTALL | re.IGNORECASE | re.MULTILINE)
"""A block of Python in a text that grows: a fence within a line may be part of the program."""
WHOLE_BLOCK = re.compile(FENCE + r"(?=[ \t]*\r?$)|\Z)", re.DOTALL | re.IGNORECASE | re.MULTILINE)
"""The same in a text that has ended, perhaps before its closing fence."""
MARK = re.compile(
    r"<tool_call>(?=\s*[\[{<]|[^<]*</tool_call>)|\[TOOL_CALLS\]|<\|python_tag\|>|"
    r'(?=<function=|\{\s*"name"\s*:\s*"python")'
)
"""Begins a call in the form of one family of models or another."""


def clean(code: str) -> str:
    """A program without the indentation of its block, and with the line breaks of Python."""
    return textwrap.dedent(code.replace("\r\n", "\n")).rstrip("\n")


def read_call(text: str) -> str:
    """The program in a call that a model wrote, however badly; a program that says so where there is none.

    Raw line breaks in JSON, LaTeX, bare quotes, a missing brace and a second object are survived.
    """
    text = text.lstrip(" \r\n[")
    if parameter := re.search(r"<parameter=\w+>\s*?\n?(.*?)\s*</parameter>", text, re.DOTALL):
        return clean(parameter[1])
    # A backslash that escapes nothing was meant as one: \alpha, \d.
    repaired = re.sub(r'\\(["\\/bfnrt]|u[0-9a-fA-F]{4})?', lambda m: m[0] if m[1] else r"\\", text)
    for attempt in (text, repaired):
        with contextlib.suppress(ValueError, RecursionError):
            return code_of(json.JSONDecoder(strict=False).raw_decode(attempt)[0])
    if found := re.search(r'"code"\s*:\s*"(.*)', repaired, re.DOTALL):
        body = re.sub(r'"?[\s}\]]*(?:</tool_call>\s*)?\Z', "", found[1])
        escaped = re.sub(r'(?<!\\)((?:\\\\)*)"', r'\1\\"', body)
        with contextlib.suppress(ValueError):
            return code_of(json.loads(f'"{escaped}"', strict=False))
    if text[:1] not in ("{", '"'):
        return clean(text.removesuffix("</tool_call>"))
    return 'raise SyntaxError(\'the call is no JSON: {"name": "python", "arguments": {"code": "…"}}\')'


def code_of(value: Any) -> str:
    """The program in the value of a call, or of its arguments."""
    if isinstance(value, dict) and (inner := value.get("arguments", value.get("parameters"))) is not None:
        return read_call(inner) if isinstance(inner, str) and inner.lstrip()[:1] == "{" else code_of(inner)
    if isinstance(value, dict):
        value = value.get("code", "raise TypeError('its argument is named code')")
    # \f and \b of JSON were meant as LaTeX or regular expressions: \frac, \b.
    return str(value).replace("\f", "\\f").replace("\b", "\\b")


OWN_FORMATS: dict[str | None, type[Chat]] = {None: FencedBlocks}
"""The formats of calls that are read here, by `inference.tool_parser`; others are parsers of vLLM's."""


class ToolCalls(Chat):
    """The model's own tool calls: offered by its chat template, read by vLLM's parser of their format."""

    def begin(self, sampler: Sampler, problem: str, index: int, rules: str) -> list[int]:
        """Token ids of the first prompt, which offers the tool."""
        self.parser = sampler.tool_parser
        self.messages = messages(self.tokenizer, self.settings, problem, index, rules)
        return self.tokenizer.encode(self.render(self.messages), add_special_tokens=False)

    def render(self, talk: list[dict[str, Any]], ask: bool = True) -> str:
        """A conversation with the tool, as the chat template shows it."""
        return self.tokenizer.apply_chat_template(
            talk,
            tools=[PYTHON],
            add_generation_prompt=ask,
            tokenize=False,
            **self.settings.chat_template_kwargs,
        )

    def find_call(self, turn: Completion) -> Call | None:
        """As `find_tool_call`."""
        return find_tool_call(self.parser, turn)

    def reply(self, call: Call, output: str) -> None:
        """Add the call and its output to the conversation; what was sampled stays to the token.

        A template may leave out the thoughts of earlier turns: only what it puts after the call is taken.
        """
        function = call.message["tool_calls"][0]["function"]
        marked = {"type": "function", "function": function | {"arguments": {"code": CALL}}}
        asked = [*self.messages, {"role": "assistant", "content": "", "tool_calls": [marked]}]
        result = {"role": "tool", "name": function["name"]}
        content = escape_special_tokens(self.tokenizer, output)
        self.messages = [*self.messages, call.message, result | {"content": content}]
        # What the template writes from the call on, up to its output and with it.
        between, shown = (
            self.render([*asked, result | {"content": text}]).partition(CALL)[2] for text in (OUTPUT, content)
        )
        between = between.partition(OUTPUT)[0]
        added = self.tokenizer.added_tokens_decoder
        special = {
            i: token.content for i, token in added.items() if token.special and token.content in between
        }
        sampled_end = added[call.ids[-1]].special if call.ids and call.ids[-1] in added else False
        end = special.get(call.ids[-1]) if sampled_end else None
        end = end or min(special.values(), key=between.index, default=None)
        if end:
            rest = shown[between.index(end) + (len(end) if sampled_end else 0) :]
            self.ids = [*self.ids, *call.ids, *self.tokenizer.encode(rest, add_special_tokens=False)]
        else:  # nothing tells where the turn ends
            self.ids = self.tokenizer.encode(self.render(self.messages), add_special_tokens=False)
        self.text += f"{call.turn}\n```output\n{output}\n```\n"


def find_tool_call(parser: Any, turn: Completion) -> Call | None:
    """The first call of a turn that has ended, be it malformed; without a program, one that says so."""
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


@functools.cache
def offer() -> Any:
    """The request in which vLLM's parsers look up the tool; they do not read its messages."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    return ChatCompletionRequest.model_validate({"messages": as_prompt(""), "tools": [PYTHON]})


def find_tool_parser(name: str | None, tokenizer: Any) -> Any:
    """vLLM's parser of tool calls of that name, None for a format that is read here.

    AimoError when vLLM has no such parser, the chat template offers no tools, or writes calls that the parser
    does not read.
    """
    if name is None or name in OWN_FORMATS:
        return None
    from vllm.tool_parsers import ToolParserManager

    # A call that cannot be read is the model's fault, and no error worth a traceback.
    logging.getLogger("vllm.tool_parsers").setLevel(logging.CRITICAL)
    parsers = ToolParserManager.list_registered()
    if name not in parsers:
        close = difflib.get_close_matches(name, parsers, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "set it to null to run fenced blocks"
        raise AimoError(f"inference.tool_parser: vLLM has no parser {name!r}; {hint}")
    if "tools" not in tokenizer.get_chat_template(tools=[PYTHON]):
        raise AimoError(
            f"inference.tool_parser: {name} needs a chat template that offers tools, "
            "and the model's does not; set it to null"
        )
    try:
        parser = ToolParserManager.get_tool_parser(name)(tokenizer)
        reason = "it finds no call in one that the chat template writes"
        if reads_template(parser, tokenizer):
            return parser
    except Exception as e:  # parsers and templates raise errors of many kinds
        reason = one_line(e)
    raise AimoError(
        f"inference.tool_parser: {name} does not fit the model ({reason}); "
        "take its family's parser, or null to run fenced blocks"
    )


def reads_template(parser: Any, tokenizer: Any) -> bool:
    """Whether a parser finds the call in a turn that the chat template renders."""
    function = {"name": "python", "arguments": {"code": "print(1)"}}
    called = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    asked = as_prompt("1 + 1?")
    prompt, whole = (
        tokenizer.apply_chat_template(talk, tools=[PYTHON], tokenize=False)
        for talk in (asked, [*asked, called])
    )
    turn = whole.removeprefix(prompt).rstrip().removesuffix(tokenizer.eos_token or "")
    found = parser.extract_tool_calls(turn, offer()).tool_calls
    return any("print(1)" in call.function.arguments for call in found)
