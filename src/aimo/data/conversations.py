"""Read a conversation, in any common layout, as a problem and its solution.

Turns have `role` and `content`, or ShareGPT's `from` and `value`; they are a list, its JSON, or columns. A
content may have several parts, and a thought its own field. Rows with several questions, tool calls or images
are dropped and counted by reason.
"""

import ast
import json
from typing import Any, NamedTuple

import polars as pl

from aimo.inference.files import CHUNK

ROLES = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "chatgpt": "assistant", "ai": "assistant",
    "system": "system", "developer": "system",
    "tool": "tool", "function": "tool", "function_call": "tool", "tool_call": "tool", "observation": "tool",
    "function_response": "tool", "tool_response": "tool", "ipython": "tool",
}  # fmt: skip
THOUGHTS = ("reasoning_content", "thinking", "reasoning", "thought")


class Exchange(NamedTuple):
    """A conversation's problem and solution, or the reason to drop it."""

    problem: str | None = None
    solution: str | None = None  # after its thought in <think> tags; None without a reply
    fault: str | None = None


def turns(cell: str | None) -> list[dict[str, Any]] | None:
    """Return the turns in a cell of JSON or a Python literal; None if it holds anything else."""
    text = (cell or "").strip()
    if not text.startswith(("[", "{")):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text)  # as pandas writes lists into a CSV
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    if isinstance(value, dict) and all(isinstance(entry, list) for entry in value.values()):
        value = [dict(zip(value, row, strict=False)) for row in zip(*value.values(), strict=False)]
    if isinstance(value, dict):
        value = next((value[key] for key in ("messages", "conversations") if key in value), [value])
    talk = isinstance(value, list) and all(isinstance(t, dict) and {"role", "from"} & t.keys() for t in value)
    return value if talk else None


def read_conversations(prompts: pl.Series, replies: pl.Series | None = None) -> pl.DataFrame:
    """Return `problem`, `solution` and `fault` of each conversation, whose reply may be a separate cell."""
    parts = []
    for start in range(0, len(prompts) or 1, CHUNK):
        asked = prompts[start : start + CHUNK].to_list()
        answered = [None] * len(asked) if replies is None else replies[start : start + CHUNK].to_list()
        found = [exchange(*pair) for pair in zip(asked, answered, strict=True)]
        parts.append(pl.DataFrame(found, dict.fromkeys(Exchange._fields, pl.String), orient="row"))
    return pl.concat(parts)


def exchange(prompt: str | None, reply: str | None = None) -> Exchange:
    """Return a conversation's only question and its reply, or the reason to drop it."""
    asked, answered = turns(prompt), turns(reply)
    if asked is None:
        if (prompt or "").lstrip().startswith(("[", "{")):
            return Exchange(fault="conversation that cannot be read")
        asked = [{"role": "user", "content": prompt}]
    said = []  # role and text of each turn
    for turn in asked + (answered or []):
        name = str(turn.get("role") or turn.get("from")).lower()
        role = ROLES.get(name)
        if role is None:
            return Exchange(fault=f"conversation with the role {name[:40]!r}")
        if role == "tool" or turn.get("tool_calls") or turn.get("function_call"):
            return Exchange(fault="conversation with calls of tools")
        if role == "system":  # the profile has its own
            continue
        content = next((turn[key] for key in ("content", "value", "text") if turn.get(key) is not None), "")
        parts: list[Any] = content if isinstance(content, list) else [content]
        parts = [part if isinstance(part, dict) else {"text": part} for part in parts]
        for part in parts:
            if part.get("text") is None and part.get("thinking") is None and part.get("type") != "text":
                kind = str(part.get("type"))[:40]
                return Exchange(fault=f"conversation with a part of the type {kind!r}")
        text = "".join(str(part["text"]) for part in parts if part.get("text") is not None)
        thoughts = [str(part["thinking"]) for part in parts if part.get("thinking")]
        thoughts += [turn[key] for key in THOUGHTS if isinstance(turn.get(key), str) and turn[key].strip()]
        if role == "assistant" and thoughts and thoughts[0].strip() not in text:
            text = f"<think>\n{thoughts[0].strip()}\n</think>\n\n{text.lstrip()}"
        said.append((role, text))
    match said:
        case [("user", question)]:
            return Exchange(question, None if answered else reply)
        case [("user", question), ("assistant", text)]:
            return Exchange(question, reply if reply and answered is None else text)
    asks = any(role == "user" for role, _ in said)
    return Exchange(fault=f"conversation {'of several turns' if asks else 'without a question'}")
