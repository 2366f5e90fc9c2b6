"""Model servers: OpenAI-compatible servers (`vllm serve`) that run elsewhere, as a `Sampler`.

The tokenizer and the default settings come from the model's folder here. Out of scope: starting and stopping
servers, and waiting for one that is down (`supervisor`).
"""

import itertools
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from httpx import HTTPError
from openai import APIConnectionError, APIStatusError, AsyncOpenAI, OpenAIError, Timeout

from aimo.inference import conversations, harmony, prompts
from aimo.inference.errors import AimoError
from aimo.inference.model_folder import check_model_folder, identity, load_tokenizer
from aimo.inference.sampling import BackgroundLoop, Completion, Until, entropy_of
from aimo.inference.settings import Settings, resolve
from aimo.inference.tools import find_tool_parser

T = TypeVar("T")
CONNECT_S = 10.0
TIMEOUT = Timeout(60.0, connect=CONNECT_S, read=None)  # a server may queue a stream for long
LATER = (408, 409, 425, 429)
"""Statuses of a request that may be taken later."""
RETRIES = 2  # of a request that is refused as too early or too many, after the server's Retry-After
TRIES = 3  # at a stream that breaks off or is none, each at the next server


class StreamError(Exception):
    """A reply that is no whole stream."""


class Server:
    """Servers of one model, a `Sampler`: streams go to them in turn, and to the next if one is down."""

    def __init__(
        self, urls: list[str], model: str | Path, settings: Settings | None = None, *, need_all: bool = True
    ):
        """Connect to servers such as http://127.0.0.1:8000, which serve the model of the folder `model`.

        `settings`: those of the folder if not given. `need_all`: whether every server must answer, or one.
        AimoError when a server that must answer does not.
        """
        check_model_folder(model)
        settings = settings or resolve(model)
        self.folder = model
        self.tokenizer = load_tokenizer(model, settings.vllm.get("trust_remote_code", False))
        self.tool_parser = find_tool_parser(settings.tool_parser, self.tokenizer)
        self.encoding = conversations.prepare(self.tokenizer, settings, model)
        self.keeps_special_tokens = prompts.keeps_special_tokens(self.tokenizer, settings)
        self.settings = settings
        self.streams = sys.maxsize  # the servers queue what they cannot hold
        self.written = 0
        self.urls = [url.rstrip("/").removesuffix("/v1") for url in urls]
        self.loop, self.requests = BackgroundLoop(), itertools.count()
        key = os.environ.get("OPENAI_API_KEY", "").strip() or "none"
        self.clients = [
            AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=RETRIES, timeout=TIMEOUT)
            for url in self.urls
        ]
        try:
            self.model, self.max_length = self.connect(need_all)
            prompts.check_length(self.encode("1 + 1?"), self.max_length)
        except AimoError:
            self.close()
            raise

    def connect(self, need_all: bool) -> tuple[str, int]:
        """The servers' name of the model, and the context length that all of them allow."""

        async def ask(client: AsyncOpenAI) -> Any:
            return (await client.with_options(max_retries=0).models.list(timeout=CONNECT_S)).data[0]

        names, limits, faults = set(), [], []
        for url, client in zip(self.urls, self.clients, strict=True):
            try:
                served = self.run(ask(client))
            except (OpenAIError, LookupError, TypeError, ValueError) as e:
                reason = " ".join(str(e.__cause__ or e).split())[:200]
                faults.append(f"server {url} does not answer like `vllm serve`: {reason}")
            else:
                names.add(served.id)
                limits.append(getattr(served, "max_model_len", None) or 4096)
        if faults and (need_all or not names):
            raise AimoError(f"{faults[0]}; start it, correct the address, or set OPENAI_API_KEY")
        if len(names) > 1:
            raise AimoError(
                f"the servers serve different models: {', '.join(sorted(names))}; give those of one"
            )
        return names.pop(), min([*limits, self.settings.max_length or sys.maxsize])

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the streams that run, and disconnect; the servers stay."""
        if self.loop.is_running:
            self.loop.cancel_all()
            for client in self.clients:
                self.run(client.close())
            self.loop.stop()

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine on the server's loop, from any other thread. AimoError when it is closed."""
        return self.loop.run(coroutine, timeout)

    @property
    def identity(self) -> str:
        """The digest of the folder's content, and the servers' name of what they serve."""
        return f"{identity(self.folder)}@{self.model}"

    has_died = False  # `sample` raises when every server is down
    queue_s = 600.0

    def respawn(self) -> "Server":
        """Connect again to the servers that answer. AimoError when none does."""
        return Server(self.urls, self.folder, self.settings, need_all=False)

    def encode(self, problem: str, index: int = 0, rules: str = "") -> list[int]:
        """Token ids of the prompt that the `index`-th sample of `problem` starts from."""
        return conversations.begin(self, problem, index, rules).prompt()

    async def sample(
        self, prompt: list[int], seed: int, settings: Settings, until: Until | None = None
    ) -> Completion:
        """One stream that continues `prompt`; leaving it makes the server stop it.

        Where a server is down or breaks off, the stream starts again at the next. AimoError when all are
        down, one refuses the request, or TRIES replies were no whole stream.
        """
        turn = next(self.requests)
        faults, down = [], set()
        for i in range(max(TRIES, len(self.clients))):
            place = (turn + i) % len(self.clients)
            try:
                return await self.stream(self.clients[place], prompt, seed, settings, until)
            except (OpenAIError, HTTPError, ValueError, StreamError) as e:
                faults.append(f"server {self.urls[place]}: {' '.join(str(e.__cause__ or e).split())[:200]}")
                if isinstance(e, APIConnectionError):
                    down.add(place)
                status = e.status_code if isinstance(e, APIStatusError) else 500
                if len(down) == len(self.clients) or (status < 500 and status not in LATER):
                    break  # the others would refuse it too
        raise AimoError(f"{'; '.join(faults)}; look at the servers' logs")

    async def stream(
        self, client: AsyncOpenAI, prompt: list[int], seed: int, settings: Settings, until: Until | None
    ) -> Completion:
        """One stream of one server. The engine's counterpart is `engine.sampling_parameters`."""
        events = await client.completions.create(
            model=self.model,
            prompt=prompt,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=min(settings.max_tokens, self.max_length - len(prompt)),
            seed=seed,
            stream=True,
            extra_body={
                "min_p": settings.min_p,
                "stop": settings.stop,
                "include_stop_str_in_output": bool(settings.stop),
                "logprobs": settings.top_logprobs,
                "return_token_ids": True,
                "skip_special_tokens": not self.keeps_special_tokens,
                "stop_token_ids": harmony.STOP if settings.format == "harmony" else None,
                # Neutral, as in the engine; a server's defaults are those of generation_config.json.
                "top_k": settings.top_k,
                "repetition_penalty": 1.0,
            },
        )
        text, reason = "", None
        ids: list[int] = []
        logprobs: list[float] = []
        entropies: list[float] = []
        async with events:
            async for event in events:
                self.written += 1
                for choice in event.choices or []:
                    text += choice.text or ""
                    ids += getattr(choice, "token_ids", None) or []  # vLLM's own field
                    if text and not ids:
                        raise AimoError("the server sends no token ids; serve with vLLM 0.11 or later")
                    reason = choice.finish_reason or reason
                    if choice.logprobs:
                        logprobs += [p for p in choice.logprobs.token_logprobs or [] if p is not None]
                        likeliest = choice.logprobs.top_logprobs or []
                        entropies += [entropy_of(token.values()) for token in likeliest if token]
                    if until and until(text, ids):
                        return Completion(text, ids, False, logprobs, entropies)
        if reason is None:
            raise StreamError("the reply broke off" if text else "the reply holds no completion")
        return Completion(text, ids, reason == "stop", logprobs, entropies)
