"""From a problem to a model's completion.

`as_messages` turns a problem into messages, and `check_template` checks that the model's chat template shows
them. A `Sampler` (the engine or servers) continues their token ids to a `Completion`, in a stream on a
`BackgroundLoop`. Every sample has its own seed (`sample_seed`).
"""

import asyncio
import math
import re
import threading
import time
import zlib
from collections.abc import Callable, Collection, Coroutine, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from aimo.inference.errors import AimoError, one_line
from aimo.inference.settings import Prompt, Settings, Variant

T = TypeVar("T")
# Returns whether a stream may end, given its text and token ids so far. It keeps no reference to the text,
# so that Python can extend the string in place: in a long stream, a copy for each token takes 60 µs.
Until = Callable[[str, list[int]], bool]
MIN_TOKENS = 16  # fewer cannot hold an answer
# Templates from training contain MARK or end in PLAIN; they may have no generation prompt.
MARK = "{#- aimo -#}"
PLAIN = (
    "{%- for message in messages -%}"
    "{{ message['content'] + (eos_token if message['role'] != 'user' else '') }}{%- endfor -%}"
)


def apply_template(
    tokenizer: Any, talks: list[tuple[list[dict[str, str]], bool]], what: str, remedy: str, /, **options: Any
) -> list[str]:
    """Return conversations in the chat template, each with or without a generation prompt."""
    try:
        return [
            tokenizer.apply_chat_template(talk, add_generation_prompt=asks, tokenize=False, **options)
            for talk, asks in talks
        ]
    except Exception as e:  # templates and Jinja raise errors of many types
        line = f" in line {e.lineno}" if hasattr(e, "lineno") else ""
        raise AimoError(f"{what} cannot be rendered ({one_line(e)}{line}); {remedy}") from None


def check_template(tokenizer: Any, settings: Settings, model: str | Path) -> None:
    """Raise AimoError if the chat template does not fit the settings."""
    template, remedy = f"model {model}: its chat template", "save another with the model"
    problem = "What is 1 + 1?"
    asked = as_messages(settings, problem)
    changed = f"{remedy}, or change inference.system and inference.chat_template_kwargs"
    prompt, bare = apply_template(
        tokenizer, [(asked, True), (asked, False)], template, changed, **settings.chat_template_kwargs
    )
    if settings.system and asked[0]["content"] not in prompt:
        raise AimoError(f"{template} has no system role; put inference.system's text into inference.user")
    if problem not in prompt:
        raise AimoError(f"{template} leaves the problem out; {remedy}")
    text = tokenizer.get_chat_template()
    if prompt == bare and MARK not in text and not text.endswith(PLAIN):
        raise AimoError(
            f"{template} adds no generation prompt, so nothing tells the model to answer; {remedy}"
        )
    for name in settings.chat_template_kwargs:
        if not re.search(rf"\b{re.escape(name)}\b", text):
            raise AimoError(f"inference.chat_template_kwargs: {template} does not read {name!r}; remove it")


def check_length(prompt: list[int], room: int) -> None:
    """Raise AimoError if a short problem's prompt leaves no room to answer."""
    if len(prompt) + MIN_TOKENS > room:
        raise AimoError(
            f"a prompt takes {len(prompt)} of the context's {room} tokens before the problem; shorten "
            "inference.system and inference.user, or raise inference.max_length"
        )


def as_prompt(problem: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": problem}]


def as_completion(prompt: Prompt, thought: str, answer: int | str) -> list[dict[str, str]]:
    """Return the assistant's turn, in the profile's tags."""
    text = f"{prompt.think_start}{thought}{prompt.think_end}{prompt.answer_start}{answer}{prompt.answer_end}"
    return [{"role": "assistant", "content": text}]


def as_messages(settings: Settings, problem: str, index: int = 0, rules: str = "") -> list[dict[str, str]]:
    """Return the messages that pose `problem` to the `index`-th sample, with a competition's `rules`."""
    asked = variant(settings, index)
    user = asked.user.replace("{rules}", rules).replace("{problem}", problem).strip()
    system = asked.system.replace("{rules}", rules).strip()
    return [{"role": "system", "content": system}] * bool(asked.system) + as_prompt(user)


def variant(settings: Settings, index: int) -> Settings | Variant:
    """Return the settings or the variant whose system and user messages the `index`-th sample uses."""
    end = 0.0
    for other in settings.variants:
        begin, end = end, end + other.share
        # Spread evenly over the samples, like the share of tools.
        if int((index + 1) * end) - int((index + 1) * begin) > int(index * end) - int(index * begin):
            return other
    return settings


def escape_special_tokens(tokenizer: Any, text: str) -> str:
    """Put a zero-width space after the first character of each special token and tag in a text."""
    for token in tokenizer.added_tokens_decoder.values():
        if token.special or token.content.startswith("<"):
            text = text.replace(token.content, f"{token.content[0]}\u200b{token.content[1:]}")
    return text


@dataclass
class Completion:
    """The output of one stream."""

    text: str
    token_ids: list[int]
    finished: bool  # False when it was cut off
    logprobs: list[float] = field(default_factory=list)  # of each token; empty when not measured
    entropies: list[float] = field(default_factory=list)  # in nats, from each token's TOP_LOGPROBS likeliest

    @property
    def tokens(self) -> int:
        return len(self.token_ids)

    def __add__(self, later: "Completion") -> "Completion":
        return Completion(
            self.text + later.text,
            self.token_ids + later.token_ids,
            later.finished,
            self.logprobs + later.logprobs,
            self.entropies + later.entropies,
        )


class Sampler(Protocol):
    """A model that completes prompts, with its sampling settings."""

    model: Any  # its folder, or its name on a server
    settings: Settings
    tokenizer: Any
    tool_parser: Any  # vLLM's parser of the model's own tool calls, or None
    encoding: Any  # openai_harmony's encoding for models in the Harmony format, or None
    max_length: int  # tokens of prompt and completion together
    streams: int  # how many it runs at a time; further ones wait
    queue_s: float  # seconds that a stream may wait for its first token while others are served

    @property
    def identity(self) -> str: ...  # identifies the model by its content
    @property
    def written(self) -> int: ...  # changes whenever a stream grows: a sign of life
    @property
    def has_died(self) -> bool: ...
    def encode(self, problem: str) -> list[int]: ...  # the first sample's prompt, as token ids

    # Continues `prompt` in one stream, until it ends or `until(text, token_ids)` returns True.
    async def sample(
        self, prompt: list[int], seed: int, settings: Settings, until: Until | None = None
    ) -> Completion: ...

    # Runs a coroutine on the sampler's event loop, from any other thread. AimoError if it is closed.
    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T: ...
    def respawn(self) -> "Sampler": ...  # replaces a failed one, with the same model and settings
    def close(self) -> None: ...  # ends all streams and frees its resources


class BackgroundLoop:
    """An event loop in a thread, for callers with their own loop (notebooks) or without one."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        # One thread for each sample that runs a program; asyncio's default is cores + 4, at most 32.
        self.loop.set_default_executor(ThreadPoolExecutor(64))
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    @property
    def is_running(self) -> bool:
        return self.loop.is_running()

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Return a coroutine's result. TimeoutError after `timeout` seconds, AimoError on a stopped loop."""
        if not self.loop.is_running():
            coroutine.close()
            raise AimoError("the engine is closed; start another")
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return result_of(future, timeout)
        except BaseException:
            future.cancel()
            raise

    def cancel_all(self) -> None:
        async def cancel_others() -> None:  # in the loop, which alone knows its tasks
            await cancel(asyncio.all_tasks() - {asyncio.current_task()}, wait_s=1)

        self.run(cancel_others())

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)


async def cancel(tasks: Collection[asyncio.Task[Any]], wait_s: float = 5.0) -> None:
    """Cancel tasks and wait up to `wait_s` until the engine releases them; a dead one never does."""
    for task in tasks:
        task.cancel()
    ended, _ = await asyncio.wait(tasks, timeout=wait_s) if tasks else ((), ())
    for task in ended:
        if not task.cancelled():
            task.exception()  # asyncio would print an exception that nobody retrieves


def result_of(future: "Future[T]", timeout: float | None = None) -> T:
    """Return a future's result, or raise its error. TimeoutError after `timeout` seconds.

    Waits in slices of a second, because a Ctrl-C in another thread does not wake a waiting one.
    """
    end = math.inf if timeout is None else time.monotonic() + timeout
    while not future.done() and (left := end - time.monotonic()) > 0:
        wait([future], min(1.0, left))
    return future.result(0)


def entropy_of(logprobs: Iterable[float]) -> float:
    """Return the entropy of the likeliest tokens in nats, without the share of the others."""
    return -sum(math.exp(p) * p for p in logprobs)


def sample_seed(seed: int, problem: str, i: int) -> int:
    """Return the seed of a problem's i-th sample, independent of what else is sampled."""
    return zlib.crc32(f"{seed} {i} {problem}".encode())
