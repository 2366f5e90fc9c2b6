"""Convert conversations to tokens, and the tokens that a model writes to calls and text.

Each object is one sample's conversation. `ids` are the tokens that the next turn continues, and `text` is all
that the sample wrote and read. `find_call` finds the program in a turn; `reply` adds the call and its output.
The model's own tokens are never changed, so that they stay in vLLM's cache. `begin_conversation` chooses the
class: `Chat` without tools, `FencedBlocks` and `ToolCalls` with them, and `Harmony` for gpt-oss.
"""

import re
from collections.abc import Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, TypeVar

from aimo.inference import harmony, prompts, sandbox, tool_calls
from aimo.inference.errors import AimoError
from aimo.inference.harmony import Harmony
from aimo.inference.model_folder import read_tokenizer
from aimo.inference.prompts import BackgroundLoop, Completion, Sampler, escape_special_tokens
from aimo.inference.settings import Settings
from aimo.inference.tool_calls import MARK, PYTHON, Call

T = TypeVar("T")
RULES = "Put the final answer in \\boxed{}."  # the sentence about answers outside a competition
TAIL = 32  # tokens at the end of a prompt that may hold an opening tag
# Placeholders for a program and its output, rendered to see what the template writes between them.
CALL, OUTPUT = "aimoscallstandshere", "aimosoutputstandshere"
FENCE = (
    r"(?P<fence>`{3,}|~{3,})[ \t]*[{.]*(?:i?python|py|tool_code)[\d.]*\}?(?:[ \t][^\n]*)?\r?\n"
    r"(?P<code>.*?)(?:^[ \t]*(?P=fence)|(?P=fence)"
)
# A block of Python in a growing text, where a fence within a line may be part of the program.
BLOCK = re.compile(FENCE + r"(?=[ \t]*\r?\n))", re.DOTALL | re.IGNORECASE | re.MULTILINE)
# The same in a text that has ended, perhaps without its closing fence.
WHOLE_BLOCK = re.compile(FENCE + r"(?=[ \t]*\r?$)|\Z)", re.DOTALL | re.IGNORECASE | re.MULTILINE)
# What may begin or end a call in a growing text, and the characters searched again, as either may be split.
OPENING = re.compile(r"[`~]{3,}[ \t]*[{.]*(?:i?py|tool_code)|(?=<tool_call>)|" + MARK.pattern, re.IGNORECASE)
CLOSING, OVERLAP = re.compile("```|~~~|</tool_call>|</function>"), 100


class Chat:
    """A conversation without tools: one message of the model, after the prompt of the chat template."""

    starts_message = True  # whether the next turn begins a message of the model, or continues the last
    tools: list[dict[str, Any]] | None = None  # what the chat template offers

    def __init__(self, sampler: Sampler, problem: str, index: int = 0, rules: str = ""):
        self.sampler, self.tokenizer, self.settings = sampler, sampler.tokenizer, sampler.settings
        self.text = ""
        problem = escape_special_tokens(self.tokenizer, problem)
        self.messages: list[dict[str, Any]] = prompts.as_messages(self.settings, problem, index, rules)
        self.ids = self.encode(self.render(self.messages))

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def render(self, talk: list[dict[str, Any]]) -> str:
        """Return a conversation in the chat template, up to where the model continues."""
        options = {"tools": self.tools, "add_generation_prompt": True, "tokenize": False}
        return self.tokenizer.apply_chat_template(talk, **options | self.settings.chat_template_kwargs)

    def thinks(self) -> bool:
        """Return whether the prompt ends inside a thought, by the setting or by a final opening tag."""
        if self.settings.thinking is not None:
            return self.settings.thinking
        tail = self.tokenizer.decode(self.ids[-TAIL:], skip_special_tokens=False)
        return tail.rstrip().endswith(self.settings.tags.think_start.strip())

    def find_call(self, turn: Completion) -> Call | None:
        """Return a turn's call of Python. A chat without tools has none."""
        return None

    def reply(self, call: Call, output: str) -> None:
        """Continue after the output of a call."""

    def forced_ending(self, message: str, thinking: bool) -> str:
        """Return the text after which a message gives its answer within a few tokens."""
        # Budget forcing (arXiv 2501.19393).
        tags = self.settings.tags
        opened = thinking or tags.think_start in message
        closing = tags.think_end if opened and tags.think_end not in message else ""
        if tags.answer_start.startswith("<"):  # a tag follows the thought directly, as in training
            return closing + tags.answer_start
        return (f"\n{closing}\n" if closing else "") + f"\nThe final answer is {tags.answer_start}"

    def count_malformed(self, ids: list[int]) -> int:
        """Return the number of format errors in the token ids of all turns; here none can be detected."""
        return 0


class FencedBlocks(Chat):
    """Fenced Python blocks, each followed by a block with its output. A stream stops after a block.

    A subclass that overrides `find_program` and `output` is another format.
    """

    output = "```output\n{}\n```\n"
    searched = 0, -1  # characters of the turn without a whole call, and where one may begin, or -1

    @property
    def starts_message(self) -> bool:  # type: ignore[override]
        return not self.text  # all turns are one message

    def find_program(self, text: str, finished: bool) -> tuple[str, int] | None:
        """Return the first program in a text, which may still grow, and the index of its end."""
        begin = 0
        if not finished:  # called again as the text grows: only new text can begin or end a call
            seen, begin = self.searched if self.searched[0] <= len(text) else (0, -1)
            new = max(0, seen - OVERLAP)
            if begin < 0 and (opening := OPENING.search(text, new)):
                begin = opening.start()
            if begin < 0 or not CLOSING.search(text, new):
                self.searched = len(text), begin
                return None
        block, mark = (WHOLE_BLOCK if finished else BLOCK).search(text, begin), MARK.search(text, begin)
        if mark and not (block and block.start() < mark.start()):  # a call in some model's own format
            closed = re.compile(r"\}\s*</tool_call>|</function>").search(text, mark.end())
            if finished or closed:
                end = closed.end() if closed else len(text)
                return tool_calls.read_call(text[mark.end() : end]), end
        if block:
            return tool_calls.dedented(block["code"]), block.end()
        self.searched = len(text), begin
        return None

    def find_call(self, turn: Completion) -> Call | None:
        """Return a turn's first complete program, without the tokens that follow it."""
        found = self.find_program(turn.text, turn.finished)
        if not found:
            return None
        (code, end), ids, text = found, turn.token_ids, turn.text
        if self.tokenizer.decode(ids, skip_special_tokens=True) != text:  # a server may send other tokens
            return Call(code, text[:end], self.encode(text[:end]))
        while len(shorter := self.tokenizer.decode(ids[:-1], skip_special_tokens=True)) >= end:
            ids, text = ids[:-1], shorter
        return Call(code, text, ids)

    def reply(self, call: Call, output: str) -> None:
        shown = escape_special_tokens(self.tokenizer, output)
        result = ("" if call.turn.endswith("\n") else "\n") + self.output.format(shown)
        self.searched = 0, -1
        self.text += call.turn + result
        self.ids = [*self.ids, *call.ids, *self.encode(result)]


# The call formats that this module reads, by `inference.tool_parser`. Other names are vLLM's parsers.
OWN_FORMATS: dict[str | None, type[Chat]] = {None: FencedBlocks}


class ToolCalls(Chat):
    """The model's own tool calls: its chat template offers the tool, and a vLLM parser reads the calls."""

    tools = [PYTHON]  # noqa: RUF012

    def find_call(self, turn: Completion) -> Call | None:
        return tool_calls.find_tool_call(self.sampler.tool_parser, turn)

    def reply(self, call: Call, output: str) -> None:
        """Add the call and its output to the conversation, and keep the sampled tokens.

        A template may leave out the thoughts of earlier turns, so only its text after the call is used.
        """
        function = call.message["tool_calls"][0]["function"]
        marked = {"type": "function", "function": function | {"arguments": {"code": CALL}}}
        asked = [*self.messages, {"role": "assistant", "content": "", "tool_calls": [marked]}]
        result = {"role": "tool", "name": function["name"]}
        content = escape_special_tokens(self.tokenizer, output)
        self.messages = [*self.messages, call.message, result | {"content": content}]
        # The template's text after the call: `between` ends before the output, `shown` includes it.
        between, shown = (
            self.render([*asked, result | {"content": text}]).partition(CALL)[2] for text in (OUTPUT, content)
        )
        between = between.partition(OUTPUT)[0]
        added = self.tokenizer.added_tokens_decoder
        special = {
            i: token.content for i, token in added.items() if token.special and token.content in between
        }
        last = call.ids[-1] if call.ids else -1
        end_sampled = last in added and added[last].special
        if end := special.get(last) or min(special.values(), key=between.index, default=None):
            rest = shown[between.index(end) + (len(end) if end_sampled else 0) :]
            self.ids = [*self.ids, *call.ids, *self.encode(rest)]
        else:  # no token marks the end of the turn
            self.ids = self.encode(self.render(self.messages))
        self.text += f"{call.turn}\n```output\n{output}\n```\n"


Conversation = Chat | Harmony


def begin_conversation(
    sampler: Sampler, problem: str, index: int = 0, rules: str = "", with_tools: bool = False
) -> Conversation:
    """Return the conversation of a problem's `index`-th sample; `rules` is the competition's sentence."""
    settings, rules = sampler.settings, rules or RULES
    if settings.format == "harmony":
        return Harmony(sampler, problem, index, rules, with_tools)
    own = OWN_FORMATS.get(settings.tool_parser, ToolCalls) if with_tools else Chat
    return own(sampler, problem, index, rules)


class FolderSampler(Sampler):
    """The base of `Engine` and `Server`: a model folder's tokenizer and settings, and a loop."""

    loop: BackgroundLoop
    keeps_special_tokens: bool

    def read_folder(self, model: str | Path, settings: Settings) -> None:
        """Load the tokenizer and check that it fits the settings. AimoError if it does not."""
        self.settings = settings
        trusted = settings.vllm.get("trust_remote_code", False)
        self.tokenizer = read_tokenizer(model, trust_remote_code=trusted)
        if not self.tokenizer.chat_template:
            raise AimoError(
                f"model {model}: its tokenizer has no chat template; train it with `aimo run`, or save one"
            )
        # The solver checks lengths and reports which problem is too long.
        self.tokenizer.model_max_length = 10**9
        own = settings.tool_parser in OWN_FORMATS
        self.tool_parser = None if own else tool_calls.find_tool_parser(settings.tool_parser, self.tokenizer)
        if settings.tools:
            sandbox.has_sandbox()  # starts it
        self.encoding = None
        if settings.format == "harmony":
            self.encoding = harmony.load_harmony(model)
        else:
            prompts.check_template(self.tokenizer, settings, model)
        # Tool calls, channels and tags may consist of special tokens, which a text then keeps.
        special = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        tags = {tag.strip() for tag in asdict(settings.tags).values()}
        self.keeps_special_tokens = bool(settings.tool_parser or self.encoding or special & tags)

    def encode(self, problem: str) -> list[int]:
        return begin_conversation(self, problem).ids

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        return self.loop.run(coroutine, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
