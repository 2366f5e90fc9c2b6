"""Harmony, the format of gpt-oss: token ids in, token ids out.

openai_harmony renders prompts and tool results. This module parses the model's own tokens, because gpt-oss
sometimes writes headers on which the library's parser raises. `load_harmony` finds the vocabulary offline.
"""

import base64
import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from aimo.inference import prompts
from aimo.inference.errors import AimoError
from aimo.inference.prompts import Completion, Sampler
from aimo.inference.tool_calls import Call, read_call

START, MESSAGE, CHANNEL = 200006, 200008, 200005
END, RETURN, CALL, END_OF_TEXT = 200007, 200002, 200012, 199999
STOP = [RETURN, CALL, END_OF_TEXT]  # token ids that end a turn of the model
ENDS = {END, *STOP}  # token ids that end a message
TURN = [START, 173781]  # <|start|>assistant, which ends every prompt
TOKENS = 201_088  # rows of gpt-oss's embedding; every smaller id is a token
RANKS = 199_998  # tokens of the vocabulary file; the special tokens follow them
HEADER = re.compile(
    r"<\|start\|>assistant(?: ?to=[\w.\-]+)?"
    r"<\|channel\|>(?:analysis|commentary|final)(?: to=[\w.\-]+)?(?: ?(?:<\|constrain\|>)?\w+)?"
)
FINAL = "<|channel|>final<|message|>"
ANSWER = "The final answer is \\boxed{"
FILE = "o200k_base.tiktoken"
# The published hash of the vocabulary file.
SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
FOLDER = "TIKTOKEN_ENCODINGS_BASE"  # the variable that openai_harmony reads
INPUTS = Path("/kaggle/input")
REMEDY = f"attach gpt-oss's {FILE} and set {FOLDER} to its folder, or copy the model again"
TOOL = (
    "Runs a Python program in a stateful notebook, without internet, and returns what it prints and the "
    "value of its last expression. Variables are kept between calls. numpy, sympy, mpmath and networkx are "
    "installed. A program that runs longer than {seconds:g} seconds is stopped."
)
EFFORTS = ("low", "medium", "high")


class Message(NamedTuple):
    """A message that the model wrote."""

    channel: str | None  # None if the header names no Harmony channel
    recipient: str | None  # the tool that it calls, if any
    content: list[int]  # token ids
    closed_by: int | None  # the token that ended it, if any
    is_well_formed: bool  # whether its header is the assistant's, names one channel, and is whole


class Harmony:
    """The conversation of one gpt-oss sample, with the tool `python` or without tools."""

    starts_message = True

    def __init__(
        self, sampler: Sampler, problem: str, index: int = 0, rules: str = "", with_tools: bool = False
    ):
        """Render the prompt without a date, so that a problem has the same prompt every day."""
        harmony = library()
        self.encoding, self.with_tools, self.text = sampler.encoding, with_tools, ""
        settings, setting = sampler.settings, "inference.chat_template_kwargs"
        for name in settings.chat_template_kwargs.keys() - {"reasoning_effort"}:
            raise AimoError(f"{setting}: Harmony reads reasoning_effort and not {name!r}; remove it")
        effort = settings.chat_template_kwargs.get("reasoning_effort", "medium")
        if effort not in EFFORTS:
            raise AimoError(f"{setting}: reasoning_effort is {effort!r}; give {', '.join(EFFORTS)}")
        system = harmony.SystemContent.new().with_reasoning_effort(harmony.ReasoningEffort[effort.upper()])
        if with_tools:
            described = TOOL.format(seconds=settings.tool_seconds)
            system.with_tools(harmony.ToolNamespaceConfig(name="python", description=described, tools=[]))
        parts = [(harmony.Role.SYSTEM, system)]
        for message in prompts.as_messages(settings, problem, index, rules):
            if message["role"] == "system":
                developer = harmony.DeveloperContent.new().with_instructions(message["content"])
                parts.append((harmony.Role.DEVELOPER, developer))
            else:  # the library encodes special tokens in it as ordinary text
                parts.append((harmony.Role.USER, harmony.TextContent(text=message["content"])))
        talk = [harmony.Message.from_role_and_content(*part) for part in parts]
        whole = harmony.Conversation.from_messages(talk)
        self.ids = self.encoding.render_conversation_for_completion(whole, harmony.Role.ASSISTANT)

    def thinks(self) -> bool:
        return True  # everything outside the final channel is a thought

    def find_call(self, turn: Completion) -> Call | None:
        """Return the call that ends a finished turn: a message to a tool, or one that <|call|> closes."""
        messages = parse_messages(self.encoding, turn.token_ids) if turn.finished else []
        last = messages[-1] if messages else None
        if not last or (not last.recipient and (last.closed_by != CALL or last.channel == "final")):
            return None
        code = decode_ids(self.encoding, last.content)
        # The model sometimes wraps a program in a fence or a JSON object.
        if fenced := re.fullmatch(r"\s*```(?:\w*)[ \t]*\r?\n(.*?)\n?```\s*", code, re.DOTALL):
            code = fenced[1]
        elif re.match(r'\s*\{\s*"(code|name|arguments)"\s*:', code):
            code = read_call(code)
        if not is_python(last.recipient or "python"):
            code = f"raise NameError({f'there is no tool {last.recipient}, only python'!r})"
        return Call(code, turn.text, turn.token_ids, channel=last.channel or "analysis")

    def reply(self, call: Call, output: str) -> None:
        """Continue after the output of a call. The model's own tokens stay unchanged."""
        harmony = library()
        tool = harmony.Author.new(harmony.Role.TOOL, "python")
        result = harmony.Message.from_author_and_content(tool, output or "[no output]")
        shown = self.encoding.render(result.with_channel(call.channel).with_recipient("assistant"))
        written = call.ids[:-1] if call.ids[-1] in ENDS else call.ids
        self.ids = [*self.ids, *written, CALL, *shown, *TURN]
        safe = output.replace("<|", "<\u200b|")  # the text is searched for the final channel
        self.text += f"{call.turn}\n```output\n{safe}\n```\n"

    def forced_ending(self, message: str, thinking: bool) -> str:
        header, opened, content = message.rpartition("<|message|>")
        if f"{header}{opened}".endswith(FINAL) and "<|end|>" not in content:
            return f"\n\n{ANSWER}"
        closing = "<|end|>" if message and not message.endswith("<|end|>") else ""
        return f"{closing}{'<|start|>assistant' if message else ''}{FINAL}{ANSWER}"

    def count_malformed(self, ids: list[int]) -> int:
        """Count the format errors in the token ids of all turns.

        Errors are malformed headers, calls to an unknown tool or without <|call|>, and messages after the
        final answer.
        """
        faults, answered = 0, False
        for message in parse_messages(self.encoding, ids):
            faults += answered + (not message.is_well_formed)
            if message.recipient is not None:
                faults += not (self.with_tools and is_python(message.recipient))
                faults += message.closed_by == END
            answered = message.channel == "final"
        return faults


def parse_messages(encoding: Any, ids: Iterable[int]) -> list[Message]:
    """Return the messages in the token ids of turns, each after <|start|>assistant. Never raises.

    A header runs to <|message|>, and its content to <|end|>, <|return|>, <|call|> or the next header.
    """
    messages: list[Message] = []
    header: list[int] = [*TURN]
    content: list[int] | None = None
    tokens: list[Any] = [*ids, None]  # None ends a message that is still open
    for token in tokens:
        breaks = content is not None and token in (START, CHANNEL)
        if token in ENDS or breaks or (token is None and (content is not None or header not in ([], TURN))):
            text = decode_ids(encoding, header)
            channel = re.search(r"<\|channel\|>\s*(analysis|commentary|final)\b", text)
            recipient = re.search(r"\bto=([\w.\-]+)", text)
            whole = content is not None and not breaks and HEADER.fullmatch(text.rstrip()) is not None
            end = token if token in ENDS else None
            named = channel and channel[1], recipient and recipient[1]
            messages.append(Message(*named, content or [], end, whole))
            header, content = [token] if breaks else [*TURN] if token in STOP else [], None
        elif token == MESSAGE and content is None:
            content = []
        elif token is not None:
            (header if content is None else content).append(token)
    return messages


def is_python(recipient: str) -> bool:
    return re.fullmatch(r"(functions\.)?python(\.\w+)?", recipient) is not None


def decode_ids(encoding: Any, ids: Iterable[int]) -> str:
    """Return the text of token ids. Skips unknown ids and replaces bytes that are not UTF-8."""
    return encoding.decode([token for token in ids if 0 <= token < TOKENS])


def library() -> Any:
    import openai_harmony  # takes a tenth of a second, and only gpt-oss needs it

    return openai_harmony


@functools.cache
def load_harmony(model: str | Path) -> Any:
    """Return openai_harmony's encoding of gpt-oss, offline.

    The vocabulary file comes from the folder in TIKTOKEN_ENCODINGS_BASE or else from the model folder, its
    tokenizer.json or Kaggle's inputs, in that order. AimoError if there is none or its hash is wrong.
    """
    harmony, given = library(), os.environ.get(FOLDER)
    file = Path(given or model) / FILE
    if given and not file.is_file():
        raise AimoError(f"{FOLDER}: {given} holds no {FILE}; {REMEDY}")
    with tempfile.TemporaryDirectory(prefix="aimo-harmony-") as made:
        if not file.is_file():
            content = vocabulary_of(Path(model) / "tokenizer.json")
            if hashlib.sha256(content).hexdigest() == SHA256:
                file = Path(made) / FILE
                file.write_bytes(content)
            elif not (file := next(INPUTS.rglob(FILE), file)).is_file():
                raise AimoError(
                    f"model {model}: no {FILE} there, and its tokenizer.json is not gpt-oss's; {REMEDY}"
                )
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != SHA256:
            raise AimoError(f"{file}: has SHA-256 {found[:16]}…, gpt-oss's has {SHA256[:16]}…; {REMEDY}")
        os.environ[FOLDER] = str(file.parent)
        try:
            return harmony.load_harmony_encoding(harmony.HarmonyEncodingName.HARMONY_GPT_OSS)
        finally:
            del os.environ[FOLDER]
            os.environ |= {FOLDER: given} if given else {}


def vocabulary_of(tokenizer: Path) -> bytes:
    """Return the vocabulary file built from a tokenizer.json; empty for a tokenizer of another kind."""
    # A byte-level tokenizer (GPT-2) maps printable bytes to their own letters, the others to U+0100 and up.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    try:
        vocabulary = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
        tokens = sorted((rank, token) for token, rank in vocabulary.items() if rank < RANKS)
        return b"".join(
            b"%s %d\n" % (base64.b64encode(bytes(letters[letter] for letter in token)), rank)
            for rank, token in tokens
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return b""
