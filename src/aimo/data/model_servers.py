"""Ask OpenAI-compatible servers for chat completions, many at a time, and give way when they are busy."""

import asyncio
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from openai import APIConnectionError, APIStatusError, AsyncOpenAI

from aimo.inference.errors import AimoError
from aimo.inference.server import address, open_client, reason, served_models

FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 60.0
BUSY = (429, 503)
WRONG = (401, 402, 403, 404)  # every other request would get them too: the key, the money, the address


class SampleError(Exception):
    """A request that got no completion: `busy` is not the sample's fault, `rest` tires the server."""

    def __init__(
        self, fault: str, *, busy: bool = False, rest: bool = False, again: bool = True, wait: float = 0
    ):
        super().__init__(fault)
        self.busy, self.rest, self.again, self.wait = busy, rest or busy, again, wait


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

    def rest(self, seconds: float) -> None:
        now = time.monotonic()
        if now >= self.resumes:  # faults that come during a pause are of the same overload
            self.pause = min(LAST_PAUSE_S, 2 * self.pause or FIRST_PAUSE_S)
            self.limit = max(1.0, self.limit * 2 / 3)
            self.resumes = now + self.pause * random.uniform(0.5, 1)
        self.resumes = max(self.resumes, now + seconds)


class Servers:
    """Servers of one model, an asynchronous context manager. Which server answers depends on timing."""

    def __init__(self, urls: list[str], model: str | None, max_concurrent: int, timeout: float, retries: int):
        self.loads = [ServerLoad(open_client(url, 0), max_concurrent, max_concurrent) for url in urls]
        self.model, self.timeout, self.retries = model, timeout, retries
        self.answered = time.monotonic()  # when a server last sent a completion

    async def __aenter__(self) -> Self:
        """Connect. AimoError when a server does not answer, or not all have the model (the only one)."""
        try:
            for load in self.loads:
                found = [model.id for model in await served_models(load.client)]
                has = f"server {address(load.client)} has {', '.join(found[:5]) or 'no model'}"
                if self.model is None and len(found) != 1:
                    raise AimoError(f"{has}; name one with model")
                self.model = self.model or found[0]
                if self.model not in found:
                    raise AimoError(f"{has}, not {self.model!r}; correct model or api_addr")
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
                # At different times, so that of many that wait one is always near.
                await asyncio.sleep(random.uniform(0.05, 0.5))
                continue
            load = min(ready, key=lambda load: load.in_flight)
            load.in_flight += 1
            try:
                reply = await self.post(load.client, {"model": self.model, **body})
                load.pause, self.answered = 0.0, time.monotonic()
                load.limit = min(load.most, load.limit + 1 / load.limit)
                return reply
            except SampleError as e:
                if e.rest:
                    load.rest(e.wait)
                faults += not e.busy
                if not e.again or faults > self.retries:
                    raise
                if e.busy and time.monotonic() - self.answered > self.timeout:
                    fault = f"{e}, and no server has answered for {self.timeout:g} s"
                    remedy = "start it, and run the same command again to continue"
                    raise AimoError(f"server {address(load.client)}: {fault}; {remedy}") from None
            finally:
                load.in_flight -= 1

    async def post(self, client: AsyncOpenAI, body: dict[str, Any]) -> Reply:
        try:
            async with asyncio.timeout(self.timeout):
                content = await client.post("/chat/completions", cast_to=str, body=body)
        except TimeoutError:
            told = f"no reply within {self.timeout:g} s; raise timeout, or lower max_concurrent"
            raise SampleError(told) from None
        except APIConnectionError as e:
            if type(e.__cause__).__name__ in ("ConnectError", "ConnectTimeout"):  # of httpx or httpx2
                raise SampleError(f"cannot be reached ({reason(e)})", busy=True) from None
            raise SampleError("the reply was cut off", rest=True) from None
        except APIStatusError as e:
            status, shown = e.status_code, beginning(e.response.text)
            if status in BUSY:
                asked = e.response.headers.get("Retry-After", "")
                wait = float(asked) if asked.replace(".", "", 1).isdecimal() else 0.0  # a date is left out
                raise SampleError(f"HTTP {status}", busy=True, wait=wait) from None
            if status in WRONG:
                remedy = "correct api_addr or model, or set OPENAI_API_KEY"
                told = f"server {address(client)} answers HTTP {status}: {shown}; {remedy}"
                raise AimoError(told) from None
            later = status >= 500 or status == 408
            raise SampleError(f"HTTP {status}: {shown}", rest=status >= 500, again=later) from None
        try:
            value = json.loads(content)
            choice = value["choices"][0]
            message, usage = choice["message"], value.get("usage") or {}
            text = message.get("content") or ""
            if isinstance(text, list):  # of parts
                text = "".join(part["text"] for part in text if part.get("type", "text") == "text")
            thought = message.get("reasoning") or message.get("reasoning_content") or ""  # vLLM's, DeepSeek's
            tokens = [int(usage.get(key) or 0) for key in ("prompt_tokens", "completion_tokens")]
            reply = Reply(text, thought, choice["finish_reason"] or "", *tokens)
            model = str(value.get("model") or self.model)
            if not all(isinstance(part, str) for part in (text, thought, reply.finish_reason)):
                raise TypeError("a text of another type")
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
            raise SampleError(f"the reply holds no completion: {beginning(content)}") from None
        if not model.startswith(str(self.model)):  # a date may follow the name
            told = f"answers with the model {model!r}, not {self.model!r}; correct model, or the server"
            raise AimoError(f"server {address(client)} {told}")
        if not reply.finish_reason:
            raise SampleError("the reply ends without a finish_reason")
        if not (reply.text or reply.reasoning):
            raise SampleError("the completion is empty")
        return reply


def beginning(text: str) -> str:
    return " ".join(text[:200].split()) or "nothing"
