"""Ask OpenAI-compatible servers for completions, many at a time, and give way when they are busy.

A server that answers 429 or 503, fails or cannot be reached rests: for as long as its Retry-After says, and
otherwise twice as long each time. It then gets a third fewer requests at a time, and one more for every round
of answers (additive increase, multiplicative decrease, as in TCP). Which server answers which request depends
on timing. Out of scope: streams (`aimo.inference.server`); a completion is read whole, which costs a tenth.
"""

import asyncio
import email.utils
import json
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from aimo.errors import AimoError

CONNECT_S = 10.0
FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 60.0
BUSY = (429, 503)
WRONG = (401, 402, 403, 404)
"""Statuses that every other request would get as well: the key, the money, the address or the model."""


class BusyError(Exception):
    """A server cannot take a request now: not the sample's fault."""

    def __init__(self, fault: str, seconds: float = 0.0):
        super().__init__(fault)
        self.seconds = seconds


class SampleError(Exception):
    """A request that got no completion."""

    def __init__(self, fault: str, *, rest: bool = False, again: bool = True):
        super().__init__(fault)
        self.rest, self.again = rest, again


@dataclass(frozen=True, slots=True)
class Reply:
    """A completion as a server sent it."""

    text: str
    reasoning: str
    """The thought, where the server's reasoning parser has taken it out of the text; else empty."""
    finish_reason: str
    """`stop` when it came to its end, `length` when it was cut off."""
    prompt_tokens: int
    completion_tokens: int


@dataclass
class Server:
    """One server, and how much it can take."""

    url: str
    most: int
    limit: float
    """Requests at a time, at most `most`."""
    in_flight: int = 0
    pause: float = 0.0
    resumes: float = 0.0
    down_since: float | None = None
    """When the faults began that no answer has ended."""
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

    def answered(self) -> None:
        """Take more at a time."""
        self.pause, self.down_since = 0.0, None
        self.limit = min(self.most, self.limit + 1 / self.limit)


class Servers:
    """Servers of one model; use it as an asynchronous context manager."""

    def __init__(self, urls: list[str], model: str | None, max_concurrent: int, timeout: float, retries: int):
        bases = [address(url) for url in urls]
        self.servers = [Server(url, max_concurrent, max_concurrent) for url in bases]
        self.model, self.timeout, self.retries = model, timeout, retries

    async def __aenter__(self) -> "Servers":
        """Connect. AimoError when a server does not answer, or serves another model."""
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        headers = {"Content-Type": "application/json"}
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self.timeout, sock_connect=CONNECT_S),
            headers=headers | ({"Authorization": f"Bearer {key}"} if key else {}),
        )
        try:
            found = [await self.models(server.url) for server in self.servers]
            self.model = chosen(self.model, {s.url: m for s, m in zip(self.servers, found, strict=True)})
        except BaseException:
            await self.session.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def models(self, url: str) -> list[str]:
        """The models that a server has."""
        try:
            async with self.session.get(
                f"{url}/models", timeout=aiohttp.ClientTimeout(CONNECT_S)
            ) as response:
                response.raise_for_status()
                return [model["id"] for model in json.loads(await response.read())["data"]]
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError) as e:
            raise AimoError(
                f"server {url} does not answer like `vllm serve`: {say(e)}; start it, or correct api_addr"
            ) from None

    async def ask(self, body: Mapping[str, Any]) -> Reply:
        """The completion of a chat request. SampleError when none came after all retries.

        AimoError when a server refuses every request, is of another model, or none has answered for `timeout`
        seconds.
        """
        data = json.dumps({"model": self.model, **body}).encode()
        faults = 0
        while True:
            server = await self.free()
            server.in_flight += 1
            try:
                reply = await self.post(server, data)
                server.answered()
                return reply
            except BusyError as e:
                server.rest(str(e), e.seconds)
                self.check_alive()
            except SampleError as e:
                if e.rest:
                    server.rest(str(e))
                faults += 1
                if not e.again or faults > self.retries:
                    raise
            finally:
                server.in_flight -= 1

    async def free(self) -> Server:
        """Wait for a server that can take a request: the one that has the fewest."""
        while True:
            now = time.monotonic()
            ready = [s for s in self.servers if now >= s.resumes and s.in_flight < s.limit]
            if ready:
                return min(ready, key=lambda server: server.in_flight)
            await asyncio.sleep(random.uniform(0.05, 0.5))  # spread: of many that wait, one is always near

    def check_alive(self) -> None:
        """AimoError when no server has answered for too long."""
        now = time.monotonic()
        if all(s.down_since is not None and now - s.down_since > self.timeout for s in self.servers):
            raise AimoError(
                f"server {self.servers[0].url}: {self.servers[0].fault}, and no server has answered for "
                f"{self.timeout:g} s; start it, and run the same command again to continue"
            )

    async def post(self, server: Server, data: bytes) -> Reply:
        """Send a request, and read its reply."""
        try:
            async with self.session.post(f"{server.url}/chat/completions", data=data) as response:
                status, headers, content = response.status, response.headers, await response.read()
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as e:
            raise BusyError(f"cannot be reached ({say(e)})") from None
        except TimeoutError:
            raise SampleError(
                f"no reply within {self.timeout:g} s; raise timeout, or lower max_concurrent"
            ) from None
        except aiohttp.ClientError:
            raise SampleError("the reply was cut off", rest=True) from None
        if status in BUSY:
            raise BusyError(f"HTTP {status}", retry_after(headers.get("Retry-After")))
        if status in WRONG:
            raise AimoError(
                f"server {server.url} answers HTTP {status}: {shown(content)}; correct api_addr or model, or "
                "set OPENAI_API_KEY"
            )
        if status != 200:
            fault = f"HTTP {status}: {shown(content)}"
            raise SampleError(fault, rest=status >= 500, again=status >= 500 or status == 408)
        return self.read(content, server.url)

    def read(self, content: bytes, url: str) -> Reply:
        """The completion in a reply's JSON."""
        try:
            value = json.loads(content)
            choice = value["choices"][0]
            message, usage = choice["message"], value.get("usage") or {}
            written = message.get("content") or ""
            if isinstance(written, list):  # of parts
                written = "".join(part["text"] for part in written if part.get("type", "text") == "text")
            reply = Reply(
                written,
                message.get("reasoning") or message.get("reasoning_content") or "",  # vLLM's, DeepSeek's name
                choice["finish_reason"] or "",
                int(usage.get("prompt_tokens") or 0),
                int(usage.get("completion_tokens") or 0),
            )
            model = str(value.get("model") or self.model)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise SampleError(f"the reply holds no completion: {shown(content)}") from None
        if not model.startswith(str(self.model)):  # a date may follow the name
            raise AimoError(
                f"server {url} answers with the model {model!r}, not {self.model!r}; correct model, or the "
                "server; no completion of it was kept"
            )
        if not all(isinstance(text, str) for text in (reply.text, reply.reasoning, reply.finish_reason)):
            raise SampleError(f"the reply holds no completion: {shown(content)}")
        if not reply.finish_reason:
            raise SampleError("the reply ends without a finish_reason")
        if not (reply.text or reply.reasoning):
            raise SampleError("the completion is empty")
        return reply


def address(url: str) -> str:
    """The base of a server's paths: `http://HOST:PORT/v1` for HOST:PORT as for a whole address."""
    whole = url if "://" in url else f"http://{url}"
    return whole.rstrip("/").removesuffix("/chat/completions").removesuffix("/v1") + "/v1"


def chosen(wanted: str | None, found: Mapping[str, list[str]]) -> str:
    """The model that all servers have: the wanted one, or the only one. AimoError when there is none."""
    for url, models in found.items():
        has = f"server {url} has {', '.join(models[:5]) or 'no model'}"
        if wanted and wanted not in models:
            raise AimoError(f"{has}, not {wanted!r}; correct model or api_addr")
        if not wanted and len(models) != 1:
            raise AimoError(f"{has}; name one with model")
    names = {wanted or models[0] for models in found.values()}
    if len(names) > 1:
        raise AimoError(f"the servers have different models: {', '.join(sorted(names))}; give those of one")
    return names.pop()


def retry_after(header: str | None) -> float:
    """Seconds of a Retry-After header, which holds a number or a date; 0 where it holds neither."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(str(header)).timestamp() - time.time())
    except ValueError:
        return 0.0


def shown(content: bytes) -> str:
    """The beginning of a reply, on one line."""
    return " ".join(content[:200].decode(errors="replace").split()) or "nothing"


def say(error: BaseException) -> str:
    """An error on one line, or its name where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__
