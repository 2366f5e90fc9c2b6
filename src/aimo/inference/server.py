"""Clients of OpenAI-compatible servers (`vllm serve`) that run elsewhere.

`Server` is a `Sampler`: it streams completions of token ids for the solver. Settings and tokenizer come from
the model's folder here. `Servers` asks for whole chat completions, for distillation, and gives way when
servers are busy.
"""

import asyncio
import contextlib
import email.utils
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from openai import (
    DEFAULT_CONNECTION_LIMITS,
    APIConnectionError,
    APIStatusError,
    AsyncOpenAI,
    DefaultAsyncHttpxClient,
    OpenAIError,
    Timeout,
)

from aimo.inference import harmony, prompts
from aimo.inference.chat_format import FolderSampler
from aimo.inference.errors import AimoError
from aimo.inference.model_folder import check_model_folder, identity
from aimo.inference.sampling import BackgroundLoop, Completion, Until, entropy_of
from aimo.inference.settings import Settings, resolve

CONNECT_S = 10.0
TIMEOUT = Timeout(60.0, connect=CONNECT_S, read=None)  # a server may queue a stream for long
LATER = (408, 409, 425, 429)  # statuses of a request that may be taken later
RETRIES = 2  # of a request that is refused as too early or too many, after the server's Retry-After
TRIES = 3  # at a stream that breaks off or is none, each at the next server
FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 60.0
BUSY = (429, 503)
WRONG = (401, 402, 403, 404)  # every other request would get them too: the key, the money, the address


def open_client(url: str, retries: int) -> AsyncOpenAI:
    """Return a client of a server at HOST:PORT or a whole address. It sends the key OPENAI_API_KEY."""
    whole = url if "://" in url else f"http://{url}"
    return AsyncOpenAI(
        base_url=whole.rstrip("/").removesuffix("/chat/completions").removesuffix("/v1") + "/v1",
        api_key=os.environ.get("OPENAI_API_KEY", "").strip() or "none",
        max_retries=retries,
        timeout=TIMEOUT,
        http_client=DefaultAsyncHttpxClient(limits=type(DEFAULT_CONNECTION_LIMITS)()),  # none
    )


async def served_models(client: AsyncOpenAI) -> list[Any]:
    """Return the models that a server has. AimoError when it does not answer."""
    try:
        models = (await client.with_options(max_retries=0).models.list(timeout=CONNECT_S)).data
        if not all(isinstance(model.id, str) for model in models):
            raise ValueError("its list of models has none with a name")
        return models
    except (OpenAIError, AttributeError, TypeError, ValueError) as e:
        raise AimoError(
            f"server {address(client)} does not answer like `vllm serve`: {reason(e)}; "
            "start it, correct the address (api_addr), or set OPENAI_API_KEY"
        ) from None


def address(client: AsyncOpenAI) -> str:
    """Return the base of a server's paths, such as http://HOST:PORT/v1."""
    return str(client.base_url).rstrip("/")


def reason(error: BaseException) -> str:
    """Return an error's cause on one line, or its name where it says nothing."""
    error = error.__cause__ or error
    return " ".join(str(error).split())[:200] or type(error).__name__


# ---- Streams, for the solver


class StreamError(Exception):
    """A reply that is no whole stream."""


class Server(FolderSampler):
    """Servers of one model, a `Sampler`: streams go to them in turn, and to the next if one is down."""

    has_died = False  # `sample` raises when every server is down
    queue_s = 600.0
    streams = sys.maxsize  # the servers queue what they cannot hold
    written = 0

    def __init__(
        self, urls: list[str], model: str | Path, settings: Settings | None = None, *, need_all: bool = True
    ):
        """Connect to servers such as http://127.0.0.1:8000, which serve the model of the folder `model`.

        `settings`: those of the folder if not given. `need_all`: whether every server must answer, or one.
        AimoError when a server that must answer does not.
        """
        check_model_folder(model)
        self.urls, self.folder, self.requests = urls, model, itertools.count()
        self.read_folder(model, settings or resolve(model))
        self.loop = BackgroundLoop()
        self.clients = [open_client(url, RETRIES) for url in urls]
        try:
            names, limits, faults = set(), [self.settings.max_length or sys.maxsize], []
            for client in self.clients:
                try:
                    served = self.run(served_models(client))[0]
                    names.add(served.id)
                    limits.append(getattr(served, "max_model_len", None) or 4096)
                except AimoError as e:
                    faults.append(e)
                except IndexError:
                    faults.append(AimoError(f"server {address(client)} has no model; start it with one"))
            if faults and (need_all or not names):
                raise faults[0]
            if len(names) > 1:
                raise AimoError(
                    f"the servers serve different models: {', '.join(sorted(names))}; give those of one"
                )
            self.model, self.max_length = names.pop(), min(limits)
            prompts.check_length(self.encode("1 + 1?"), self.max_length)
        except AimoError:
            self.close()
            raise

    def close(self) -> None:
        """End the streams that run, and disconnect; the servers stay."""
        if self.loop.is_running:
            self.loop.cancel_all()
            for client in self.clients:
                self.run(client.close())
            self.loop.stop()

    @property
    def identity(self) -> str:
        """The digest of the folder's content, and the servers' name of what they serve."""
        return f"{identity(self.folder)}@{self.model}"

    def respawn(self) -> "Server":
        """Connect again to the servers that answer. AimoError when none does."""
        return Server(self.urls, self.folder, self.settings, need_all=False)

    async def sample(
        self, prompt: list[int], seed: int, settings: Settings, until: Until | None = None
    ) -> Completion:
        """Return one stream's continuation of `prompt`; leaving it makes the server stop it.

        Where a server is down or breaks off, the stream starts again at the next. AimoError when all are
        down, one refuses the request, or TRIES replies were no whole stream.
        """
        turn = next(self.requests)
        faults, down = [], set()
        for i in range(max(TRIES, len(self.clients))):
            client = self.clients[(turn + i) % len(self.clients)]
            try:
                return await self.stream(client, prompt, seed, settings, until)
            except (OpenAIError, ValueError, StreamError) as e:
                faults.append(f"server {address(client)}: {reason(e)}")
                if isinstance(e, APIConnectionError):
                    down.add(client)
                status = e.status_code if isinstance(e, APIStatusError) else 500
                if len(down) == len(self.clients) or (status < 500 and status not in LATER):
                    break  # the others would refuse it too
        raise AimoError(f"{'; '.join(faults)}; look at the servers' logs")

    async def stream(
        self, client: AsyncOpenAI, prompt: list[int], seed: int, settings: Settings, until: Until | None
    ) -> Completion:
        """Return one stream of one server. The engine's counterpart is `engine.sampling_parameters`."""
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
        done, ending = Completion("", [], False), None
        async with events:
            async for event in events:
                self.written += 1
                for choice in event.choices or []:
                    done.text += choice.text or ""
                    done.token_ids += getattr(choice, "token_ids", None) or []  # vLLM's own field
                    if done.text and not done.token_ids:
                        raise AimoError("the server sends no token ids; serve with vLLM 0.11 or later")
                    ending = choice.finish_reason or ending
                    if choice.logprobs:
                        done.logprobs += [p for p in choice.logprobs.token_logprobs or [] if p is not None]
                        likeliest = choice.logprobs.top_logprobs or []
                        done.entropies += [entropy_of(token.values()) for token in likeliest if token]
                    if until and until(done.text, done.token_ids):
                        return done
        if ending is None:
            raise StreamError("the reply broke off" if done.text else "the reply holds no completion")
        done.finished = ending == "stop"
        return done


# ---- Whole chat completions, for distillation


class SampleError(Exception):
    """A request that got no completion, whether its server should rest, and whether it is asked again."""

    def __init__(self, fault: str, *, rest: bool = False, again: bool = True):
        super().__init__(fault)
        self.rest, self.again = rest, again


class BusyError(Exception):
    """A server cannot take a request now: not the sample's fault. Arguments: the fault, seconds to wait."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A completion as a server sent it."""

    text: str
    reasoning: str  # the thought, where the server's reasoning parser has taken it out of the text
    finish_reason: str  # `stop` when it came to its end, `length` when it was cut off
    prompt_tokens: int
    completion_tokens: int


@dataclass
class ServerLoad:
    """One server, and how much it can take.

    A server that answers 429 or 503, fails or cannot be reached rests: for as long as its Retry-After says,
    else twice as long each time. It then gets a third fewer requests at a time, and one more for every round
    of answers (additive increase, multiplicative decrease, as in TCP).
    """

    client: AsyncOpenAI
    most: int
    limit: float  # requests at a time, at most `most`
    in_flight: int = 0
    pause: float = 0.0
    resumes: float = 0.0
    down_since: float | None = None  # when the faults began that no answer has ended
    fault: str = ""

    def rest(self, fault: str, seconds: float = 0.0) -> None:
        """Send nothing for a while. Faults that come during a pause are of the same overload."""
        now = time.monotonic()
        self.fault, self.down_since = fault, self.down_since or now
        if now >= self.resumes:
            self.pause = min(LAST_PAUSE_S, 2 * self.pause or FIRST_PAUSE_S)
            self.limit = max(1.0, self.limit * 2 / 3)
            self.resumes = now + self.pause * random.uniform(0.5, 1)
        self.resumes = max(self.resumes, now + seconds)


class Servers:
    """Servers of one model, an asynchronous context manager. Which server answers depends on timing."""

    def __init__(self, urls: list[str], model: str | None, max_concurrent: int, timeout: float, retries: int):
        self.loads = [ServerLoad(open_client(url, 0), max_concurrent, max_concurrent) for url in urls]
        self.model, self.timeout, self.retries = model, timeout, retries

    async def __aenter__(self) -> Self:
        """Connect. AimoError when a server does not answer, or not all have the model (the only one)."""
        try:
            names = set()
            for load in self.loads:
                found = [model.id for model in await served_models(load.client)]
                has = f"server {address(load.client)} has {', '.join(found[:5]) or 'no model'}"
                if self.model and self.model not in found:
                    raise AimoError(f"{has}, not {self.model!r}; correct model or api_addr")
                if not self.model and len(found) != 1:
                    raise AimoError(f"{has}; name one with model")
                names.add(self.model or found[0])
            if len(names) > 1:
                raise AimoError(
                    f"the servers have different models: {', '.join(sorted(names))}; give those of one"
                )
            self.model = names.pop()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for load in self.loads:
            await load.client.close()

    async def ask(self, body: Mapping[str, Any]) -> Reply:
        """Return the completion of a chat request. SampleError when none came after all retries.

        AimoError when a server refuses every request, is of another model, or none has answered for `timeout`
        seconds.
        """
        faults = 0
        while True:
            now = time.monotonic()
            ready = [load for load in self.loads if now >= load.resumes and load.in_flight < load.limit]
            if not ready:
                await asyncio.sleep(
                    random.uniform(0.05, 0.5)
                )  # spread: of many that wait, one is always near
                continue
            load = min(ready, key=lambda load: load.in_flight)
            load.in_flight += 1
            try:
                reply = await self.post(load.client, {"model": self.model, **body})
                load.pause, load.down_since = 0.0, None
                load.limit = min(load.most, load.limit + 1 / load.limit)
                return reply
            except BusyError as e:
                load.rest(*e.args)
                now, first = time.monotonic(), self.loads[0]
                if all(s.down_since is not None and now - s.down_since > self.timeout for s in self.loads):
                    raise AimoError(
                        f"server {address(first.client)}: {first.fault}, and no server has answered for "
                        f"{self.timeout:g} s; start it, and run the same command again to continue"
                    ) from None
            except SampleError as e:
                if e.rest:
                    load.rest(str(e))
                faults += 1
                if not e.again or faults > self.retries:
                    raise
            finally:
                load.in_flight -= 1

    async def post(self, client: AsyncOpenAI, body: dict[str, Any]) -> Reply:
        """Send a request, and read its reply."""
        try:
            async with asyncio.timeout(self.timeout):
                content = await client.post("/chat/completions", cast_to=str, body=body)
        except TimeoutError:
            raise SampleError(
                f"no reply within {self.timeout:g} s; raise timeout, or lower max_concurrent"
            ) from None
        except APIConnectionError as e:
            if type(e.__cause__).__name__ in ("ConnectError", "ConnectTimeout"):  # of httpx or httpx2
                raise BusyError(f"cannot be reached ({reason(e)})", 0.0) from None
            raise SampleError("the reply was cut off", rest=True) from None
        except APIStatusError as e:
            status, shown = e.status_code, beginning(e.response.text)
            if status in BUSY:
                seconds = retry_after(e.response.headers.get("Retry-After"))
                raise BusyError(f"HTTP {status}", seconds) from None
            if status in WRONG:
                raise AimoError(
                    f"server {address(client)} answers HTTP {status}: {shown}; correct api_addr or model, or "
                    "set OPENAI_API_KEY"
                ) from None
            later = status >= 500 or status == 408
            raise SampleError(f"HTTP {status}: {shown}", rest=status >= 500, again=later) from None
        try:
            value = json.loads(content)
            choice = value["choices"][0]
            message, usage = choice["message"], value.get("usage") or {}
            text = message.get("content") or ""
            if isinstance(text, list):  # of parts
                text = "".join(part["text"] for part in text if part.get("type", "text") == "text")
            reply = Reply(
                text,
                message.get("reasoning") or message.get("reasoning_content") or "",  # vLLM's, DeepSeek's name
                choice["finish_reason"] or "",
                int(usage.get("prompt_tokens") or 0),
                int(usage.get("completion_tokens") or 0),
            )
            model = str(value.get("model") or self.model)
            if not all(isinstance(part, str) for part in (reply.text, reply.reasoning, reply.finish_reason)):
                raise TypeError("a text of another type")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise SampleError(f"the reply holds no completion: {beginning(content)}") from None
        if not model.startswith(str(self.model)):  # a date may follow the name
            raise AimoError(
                f"server {address(client)} answers with the model {model!r}, not {self.model!r}; correct "
                "model, or the server; no completion of it was kept"
            )
        if not reply.finish_reason:
            raise SampleError("the reply ends without a finish_reason")
        if not (reply.text or reply.reasoning):
            raise SampleError("the completion is empty")
        return reply


def retry_after(header: str | None) -> float:
    """Return the seconds of a Retry-After header, a number or a date; 0 for anything else."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(header or 0))
    with contextlib.suppress(ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(str(header)).timestamp() - time.time())
    return 0.0


def beginning(text: str) -> str:
    """Return the beginning of a reply, on one line."""
    return " ".join(text[:200].split()) or "nothing"
