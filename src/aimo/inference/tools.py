"""How a sample calls Python and reads what it printed: in fenced blocks, or in the format of its model's chat template.

Both have `prompt`, the token ids that its next turn continues; `text`, all it wrote and read before; `called`, the program that a
turn asks for; and `reply`. Out of scope: running the program (`aimo.inference.sandbox`), and tools other than Python.
"""

import json
import re
from typing import Any

from aimo.inference.engine import Engine

BLOCK = re.compile(r"```(?:python|py)\n(.*?)```", re.DOTALL)
PYTHON = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Runs Python and returns what it prints. Variables live on from call to call; numpy and sympy are installed.",
        "parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
    },
}


class Blocks:
    """Fenced Python blocks, each followed by a block with its output; the stream is stopped where a block closes."""

    def __init__(self, engine: Engine, problem: str):
        self.engine, self.text = engine, ""
        self.question = engine.encode(problem)

    def prompt(self) -> list[int]:
        """What the next turn continues."""
        return self.question + self.engine.tokenizer.encode(self.text, add_special_tokens=False)

    def called(self, turn: str, finished: bool) -> str | None:
        """The first complete block of a turn, which may still be growing."""
        block = BLOCK.search(turn)
        return block[1] if block else None

    def reply(self, turn: str, output: str) -> None:
        """Go on after the output. What a turn wrote beyond its block, it wrote without knowing that."""
        block = BLOCK.search(turn)
        assert block
        self.text += f"{turn[: block.end()]}\n```output\n{self.engine.inert(output)}\n```\n"


class Calls:
    """The model's own tool calls: offered by its chat template, read by the parser that vLLM has for its format."""

    def __init__(self, engine: Engine, problem: str):
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        self.engine, self.text = engine, ""
        self.talk: list[dict[str, Any]] = [{"role": "user", "content": engine.inert(problem)}]
        self.request = ChatCompletionRequest.model_validate({"messages": self.talk, "tools": [PYTHON]})

    def prompt(self) -> list[int]:
        """What the next turn answers."""
        return self.engine.tokenizer.apply_chat_template(
            self.talk, tools=[PYTHON], add_generation_prompt=True, return_dict=False
        )

    def called(self, turn: str, finished: bool) -> str | None:
        """The program of a turn that has ended."""
        if not finished:
            return None
        found = self.engine.tool_parser.extract_tool_calls(turn, self.request)
        if not found.tool_calls:
            return None
        call, self.said = found.tool_calls[0].function, found.content or ""
        try:
            arguments = json.loads(call.arguments)
        except ValueError:
            arguments = call.arguments
        self.call = {
            "name": call.name,
            "arguments": arguments if isinstance(arguments, dict) else {"code": str(arguments)},
        }
        return str(self.call["arguments"].get("code", "raise TypeError('its argument is named code')"))

    def reply(self, turn: str, output: str) -> None:
        """Put the call and its output into the conversation."""
        self.talk.append(
            {
                "role": "assistant",
                "content": self.said,
                "tool_calls": [{"type": "function", "function": self.call}],
            }
        )
        self.talk.append({"role": "tool", "name": self.call["name"], "content": self.engine.inert(output)})
        self.text += f"{turn}\n```output\n{output}\n```\n"
