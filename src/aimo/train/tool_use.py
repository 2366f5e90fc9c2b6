"""GRPO whose completions run Python: the solver's sandbox and format of tool calls, in TRL's rollouts.

A completion is a conversation: the turns that the model writes are trained on, and what its programs print
is outside the loss (TRL's `tool_mask`). Rewards read the last turn; lengths are those of the whole
conversation. TRL runs the programs of a step one after another, each for at most `inference.tool_seconds`;
whether a slow one ends in time depends on the machine. Out of scope: fenced blocks and Harmony, which are no
tool calls to TRL.
"""

import copy
import os
from typing import Any

from aimo.config import Profile
from aimo.errors import AimoError
from aimo.inference.prompts import escape_special_tokens
from aimo.inference.sampling import Completion
from aimo.inference.sandbox import Programs, has_sandbox
from aimo.inference.tool_calls import PYTHON, find_tool_call, find_tool_parser


class ToolSession:
    """The programs of one completion: an environment of TRL's, whose public methods are tools."""

    def __init__(self, tokenizer: Any, seconds: float):
        self._tokenizer, self._seconds, self._programs = tokenizer, seconds, Programs(seconds)

    def reset(self, **row: Any) -> None:
        """Begin a completion of a row, without variables."""
        self._programs.close()
        self._programs = Programs(self._seconds)

    def python(self, code: str) -> str:
        return escape_special_tokens(self._tokenizer, self._programs.run(code).shown)

    python.__doc__ = f"{PYTHON['function']['description']}\n\nArgs:\n    code: The program."
    del python.__annotations__["return"]  # the solver says nothing of it


def trainer_arguments(profile: Profile, model: Any, tokenizer: Any, args: Any) -> dict[str, Any]:
    """Return what TRL's GRPOTrainer takes so that completions run Python; nothing without `grpo.tools`.

    Sets the number of a completion's calls in `args`. AimoError when the parser does not fit the model, or
    nothing can be confined here.
    """
    if not (profile.grpo and profile.grpo.tools):
        return {}
    settings = profile.solver_settings(model.config.name_or_path)
    parser = find_tool_parser(settings.tool_parser, tokenizer)
    if not has_sandbox():
        raise AimoError("grpo.tools: programs cannot be confined on this machine; set it to false")
    own = model.generation_config.eos_token_id
    ends = {
        tokenizer.eos_token_id,
        *(own if isinstance(own, list) else [own]),
    }  # of a turn, as TRL takes them

    def parse_response(ids: list[int], prefix: list[int] | None = None) -> dict[str, Any]:
        """Read a turn as the solver does: its first call, if it has ended."""
        finished = bool(ids) and ids[-1] in ends
        call = find_tool_call(
            parser, Completion(tokenizer.decode(ids[:-1] if finished else ids), ids, finished)
        )
        if call is None:
            return {"role": "assistant", "content": tokenizer.decode(ids, skip_special_tokens=True)}
        function = {"name": "python", "arguments": {"code": call.code}}
        return call.message | {"tool_calls": [{"type": "function", "function": function}]}

    args.max_tool_calling_iterations = settings.tool_turns
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # of environments: TRL is pinned
    asked = copy.copy(tokenizer)  # Transformers would save the template of responses with the model
    asked.response_template, asked.parse_response = {}, parse_response
    return {
        "processing_class": asked,
        "environment_factory": lambda: ToolSession(tokenizer, settings.tool_seconds),
    }


def transcript(messages: list[dict[str, Any]]) -> str:
    """Return a completion for a person to read: its turns, its programs and what they printed."""
    text = ""
    for message in messages:
        if message["role"] == "tool":
            text += f"```output\n{message['content']}\n```\n"
            continue
        text += message["content"]
        for call in message.get("tool_calls", []):
            text += f"\n```python\n{call['function']['arguments']['code']}\n```\n"
    return text
