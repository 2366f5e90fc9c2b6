"""The two formats in which a sample calls Python: fenced blocks, and the model's own tool calls.

`FencedBlocks` and `ToolCalls` have the same methods: `prompt` gives what the next turn continues, `find_call`
finds the program in a turn, and `reply` adds the call and its output to `text`, all that the sample wrote and
read. Out of scope: running the program (`sandbox`), and tools other than Python.
"""

import difflib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from aimo.inference.errors import AimoError
from aimo.inference.prompts import escape_special_tokens, messages
from aimo.inference.sampling import Sampler

BLOCK = re.compile(r"```(?:python|py)\n(.*?)```", re.DOTALL)
PYTHON = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Runs Python and returns what it prints. Variables are kept between calls; "
        "numpy and sympy are installed.",
        "parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
    },
}


@dataclass(frozen=True)
class Call:
    """A call of Python that a turn makes."""

    code: str
    turn: str
    """What the turn wrote up to the end of the call."""
    message: dict[str, Any] = field(default_factory=dict)
    """The turn as a message of the conversation; of the model's own tool calls only."""


class FencedBlocks:
    """Fenced Python blocks, each followed by a block with its output; a stream stops where a block ends."""

    def __init__(self, sampler: Sampler, problem: str, index: int = 0, rules: str = ""):
        self.tokenizer, self.text = sampler.tokenizer, ""
        self.question = sampler.encode(problem, index, rules)

    @property
    def starts_message(self) -> bool:
        """Whether the prompt ends where a message of the model begins; later turns continue that message."""
        return not self.text

    def prompt(self) -> list[int]:
        """Token ids that the next turn continues."""
        return self.question + self.tokenizer.encode(self.text, add_special_tokens=False)

    def find_call(self, turn: str, finished: bool) -> Call | None:
        """The first complete block of a turn, which may still grow."""
        block = BLOCK.search(turn)
        return Call(block[1], turn[: block.end()]) if block else None

    def reply(self, call: Call, output: str) -> None:
        """Continue after the output. What the turn wrote after its block is dropped."""
        self.text += f"{call.turn}\n```output\n{escape_special_tokens(self.tokenizer, output)}\n```\n"


class ToolCalls:
    """The model's own tool calls: offered by its chat template, read by vLLM's parser of their format."""

    starts_message = True

    def __init__(self, sampler: Sampler, problem: str, index: int = 0, rules: str = ""):
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        self.tokenizer, self.parser, self.text = sampler.tokenizer, sampler.tool_parser, ""
        self.arguments = sampler.settings.chat_template_kwargs
        self.messages = messages(self.tokenizer, sampler.settings, problem, index, rules)
        self.request = ChatCompletionRequest.model_validate({"messages": self.messages, "tools": [PYTHON]})

    def prompt(self) -> list[int]:
        """Token ids that the next turn continues."""
        return self.tokenizer.apply_chat_template(
            self.messages, tools=[PYTHON], add_generation_prompt=True, return_dict=False, **self.arguments
        )

    def find_call(self, turn: str, finished: bool) -> Call | None:
        """The first call of a turn that has ended; without `code`, a program that says so."""
        found = self.parser.extract_tool_calls(turn, self.request) if finished else None
        if not found or not found.tool_calls:
            return None
        function = found.tool_calls[0].function
        try:
            arguments = json.loads(function.arguments)
        except ValueError:
            arguments = function.arguments
        if not isinstance(arguments, dict):
            arguments = {"code": str(arguments)}
        call = {"type": "function", "function": {"name": function.name, "arguments": arguments}}
        message = {"role": "assistant", "content": found.content or "", "tool_calls": [call]}
        code = str(arguments.get("code", "raise TypeError('its argument is named code')"))
        return Call(code, turn, message)

    def reply(self, call: Call, output: str) -> None:
        """Add the call and its output to the conversation."""
        name = call.message["tool_calls"][0]["function"]["name"]
        content = escape_special_tokens(self.tokenizer, output)
        self.messages += [call.message, {"role": "tool", "name": name, "content": content}]
        self.text += f"{call.turn}\n```output\n{output}\n```\n"


def find_tool_parser(name: str | None, tokenizer: Any) -> Any:
    """vLLM's parser of tool calls of that name, None for None.

    AimoError when vLLM has no such parser, or the chat template offers no tools.
    """
    if name is None:
        return None
    from vllm.tool_parsers import ToolParserManager

    if "tools" not in tokenizer.chat_template:
        raise AimoError(
            f"inference.tool_parser: {name} needs a chat template that offers tools, "
            "and the model's does not; set it to null"
        )
    try:
        return ToolParserManager.get_tool_parser(name)(tokenizer)
    except KeyError:
        close = difflib.get_close_matches(name, ToolParserManager.list_registered(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "set it to null to run fenced blocks"
        raise AimoError(f"inference.tool_parser: vLLM has no parser {name!r}; {hint}") from None
