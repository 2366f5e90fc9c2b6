"""The protocol between the solver and a model: `Sampler`, which `Engine` and `Server` satisfy."""

import asyncio
import math
import threading
import time
import zlib
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from aimo.inference.errors import AimoError
from aimo.inference.settings import Settings

T = TypeVar("T")
# Whether a stream may end, given its text and its token ids so far. It keeps no reference to the text, so
# that Python extends a local name of it in place: a copy for each token of a long stream takes 60 µs.
Until = Callable[[str, list[int]], bool]
MIN_TOKENS = 16  # fewer cannot hold an answer


@dataclass
class Completion:
    """What one stream wrote: n sampled tokens."""

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
    """A model that completes prompts, with the settings it is sampled with."""

    model: Any  # its folder, or a server's name of it
    settings: Settings
    tokenizer: Any
    tool_parser: Any  # vLLM's parser of the model's own tool calls, or None
    encoding: Any  # openai_harmony's encoding, of models whose format is Harmony, or None
    max_length: int  # tokens of prompt and completion together
    streams: int  # how many it runs at a time; more of them wait
    queue_s: float  # seconds that a stream may wait for its first token because others ask too

    @property
    def identity(self) -> str:
        """What identifies the model by its content."""

    def encode(self, problem: str) -> list[int]:
        """Return the token ids of the prompt that the first sample of `problem` starts from."""

    async def sample(
        self, prompt: list[int], seed: int, settings: Settings, until: Until | None = None
    ) -> Completion:
        """Continue `prompt` in one stream, until it ends or `until(text, token_ids)` returns True."""

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine on the sampler's event loop, from any other thread. AimoError when it is closed."""

    @property
    def written(self) -> int:
        """A number that changes while any stream is written to: a sign of life."""

    @property
    def has_died(self) -> bool:
        """Whether it cannot sample any more."""

    def respawn(self) -> "Sampler":
        """Return another sampler of the same model and settings, in place of this one, which has failed."""

    def close(self) -> None:
        """End what runs and free its resources."""


class BackgroundLoop:
    """An event loop in a thread, for callers with a loop (notebooks) and without one."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        # One thread for each sample whose program runs; asyncio's own number is the cores' and four.
        self.loop.set_default_executor(ThreadPoolExecutor(64))
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    @property
    def is_running(self) -> bool:
        return self.loop.is_running()

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Return a coroutine's result. TimeoutError after `timeout` seconds, AimoError when it is stopped."""
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
        """Cancel what still runs, and wait a second for it to end."""

        async def cancel() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=1)

        self.run(cancel())

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)


def result_of(future: "Future[T]", timeout: float | None = None) -> T:
    """Return a future's result, or raise its error. TimeoutError after `timeout` seconds.

    It waits in slices of a second, because Ctrl-C that reaches another thread does not wake one that waits.
    """
    end = math.inf if timeout is None else time.monotonic() + timeout
    while not future.done() and (left := end - time.monotonic()) > 0:
        wait([future], min(1.0, left))
    return future.result(0)


def entropy_of(logprobs: Iterable[float]) -> float:
    """Return the entropy of the likeliest tokens in nats, without what the others would add."""
    return -sum(math.exp(p) * p for p in logprobs)


def sample_seed(seed: int, problem: str, i: int) -> int:
    """Return the seed of a problem's i-th sample, independent of what is sampled at the same time."""
    return zlib.crc32(f"{seed} {i} {problem}".encode())
