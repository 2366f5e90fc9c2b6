"""A client for OpenAI-compatible servers (`vllm serve`) that run elsewhere.

`Server` is a `Sampler`: it streams completions of token ids for the solver. It reads settings and tokenizer
from a local copy of the model's folder. `aimo.data.distil` asks for whole chat completions.
"""

import itertools
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
from openai import AsyncOpenAI, OpenAIError

from aimo.inference import harmony, prompts
from aimo.inference.chat_format import FolderSampler
from aimo.inference.errors import AimoError
from aimo.inference.model_folder import check_model_folder, identity
from aimo.inference.prompts import BackgroundLoop, Completion, Until, entropy_of
from aimo.inference.settings import Settings, resolve_settings

CONNECT_S = 10.0
TIMEOUT = openai.Timeout(60.0, connect=CONNECT_S, read=None)  # streams may queue for a long time
LATER = (408, 409, 425, 429)  # statuses after which the same request may succeed later
RETRIES = 2  # of a request that a server refuses for now, after its Retry-After
TRIES = 3  # attempts at a stream that breaks off or holds no completion, each on the next server


def open_client(url: str, retries: int) -> AsyncOpenAI:
    """Return a client for HOST:PORT or a full URL. It sends OPENAI_API_KEY as its key."""
    whole = url if "://" in url else f"http://{url}"
    return AsyncOpenAI(
        base_url=whole.rstrip("/").removesuffix("/chat/completions").removesuffix("/v1") + "/v1",
        api_key=os.environ.get("OPENAI_API_KEY", "").strip() or "none",
        max_retries=retries,
        timeout=TIMEOUT,
        http_client=openai.DefaultAsyncHttpxClient(limits=type(openai.DEFAULT_CONNECTION_LIMITS)()),  # none
    )


async def served_models(client: AsyncOpenAI) -> list[Any]:
    """Return the models that a server lists. AimoError if it does not answer or lists none."""
    try:
        models = (await client.with_options(max_retries=0).models.list(timeout=CONNECT_S)).data
        if not (models and all(isinstance(model.id, str) for model in models)):
            raise ValueError("its list of models has none with a name")
        return models
    except (OpenAIError, AttributeError, TypeError, ValueError) as e:
        raise AimoError(
            f"server {address(client)} does not answer like `vllm serve`: {reason(e)}; "
            "start it, correct its address, or set OPENAI_API_KEY"
        ) from None


def address(client: AsyncOpenAI) -> str:
    return str(client.base_url).rstrip("/")


def reason(error: BaseException) -> str:
    """Return an error's cause on one line, or the name of its type if it has no text."""
    error = error.__cause__ or error
    return " ".join(str(error).split())[:200] or type(error).__name__


class Server(FolderSampler):
    """Servers of one model, as a `Sampler`. Streams go to them in turn, and skip one that is down."""

    has_died = False  # `sample` raises when every server is down
    queue_s = 600.0
    streams = sys.maxsize  # the servers queue what they cannot hold
    written = 0

    def __init__(
        self, urls: list[str], model: str | Path, settings: Settings | None = None, *, need_all: bool = True
    ):
        """Connect to servers such as http://127.0.0.1:8000 that serve the model in the folder `model`.

        `settings` default to the folder's. `need_all`: every server must answer, not just one. AimoError if
        too few answer, or if they serve different models.
        """
        check_model_folder(model)
        self.urls, self.folder, self.requests = urls, model, itertools.count()
        self.read_folder(model, settings or resolve_settings(model))
        self.loop = BackgroundLoop()
        self.clients = [open_client(url, RETRIES) for url in urls]
        names, limits, faults = set(), [self.settings.max_length or sys.maxsize], []
        try:
            for client in self.clients:
                try:
                    served = self.run(served_models(client))[0]
                    names.add(served.id)
                    limits.append(getattr(served, "max_model_len", None) or 4096)
                except AimoError as e:
                    faults.append(e)
            if faults and (need_all or not names):
                raise faults[0]
            if len(names) > 1:
                told = ", ".join(sorted(names))
                raise AimoError(f"the servers serve different models: {told}; give those of one")
            self.model, self.max_length = names.pop(), min(limits)
            prompts.check_length(self.encode("1 + 1?"), self.max_length)
        except AimoError:
            self.close()
            raise

    def close(self) -> None:  # the servers keep running
        if self.loop.is_running:
            self.loop.cancel_all()
            for client in self.clients:
                self.run(client.close())
            self.loop.stop()

    @property
    def identity(self) -> str:
        return f"{identity(self.folder)}@{self.model}"

    def respawn(self) -> "Server":
        return Server(self.urls, self.folder, self.settings, need_all=False)

    async def sample(
        self, prompt: list[int], seed: int, settings: Settings, until: Until | None = None
    ) -> Completion:
        """Return one stream's continuation of `prompt`. Cancelling it, or `until`, stops it on the server.

        If a server is down or breaks off, the stream restarts on the next one. AimoError if all are down,
        one refuses the request, or TRIES attempts bring no whole stream.
        """
        turn = next(self.requests)
        faults, down = [], set()
        for i in range(max(TRIES, len(self.clients))):
            client = self.clients[(turn + i) % len(self.clients)]
            try:
                return await self.stream(client, prompt, seed, settings, until)
            except (OpenAIError, ValueError) as e:
                faults.append(f"server {address(client)}: {reason(e)}")
                if isinstance(e, openai.APIConnectionError):
                    down.add(client)
                status = e.status_code if isinstance(e, openai.APIStatusError) else 500
                if len(down) == len(self.clients) or (status < 500 and status not in LATER):
                    break  # the others would refuse it too
        raise AimoError(f"{'; '.join(faults)}; look at the servers' logs")

    async def stream(
        self, client: AsyncOpenAI, prompt: list[int], seed: int, settings: Settings, until: Until | None
    ) -> Completion:
        """Return one stream from one server. The engine's counterpart is `engine.sampling_parameters`."""
        events = await client.completions.create(
            model=self.model,
            prompt=prompt,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=min(settings.max_tokens, self.max_length - len(prompt)),
            seed=seed if settings.seeded else None,
            stream=True,
            extra_body={
                "min_p": settings.min_p,
                "stop": settings.stop,
                "include_stop_str_in_output": bool(settings.stop),
                "logprobs": settings.top_logprobs,
                "return_token_ids": True,
                "skip_special_tokens": not self.keeps_special_tokens,
                "stop_token_ids": harmony.STOP if settings.format == "harmony" else None,
                # Neutral, as in the engine; a server would take generation_config.json's values.
                "top_k": settings.top_k,
                "repetition_penalty": 1.0,
            },
        )
        text, done, ending = "", Completion("", [], False), None
        async with events:
            async for event in events:
                self.written += 1
                for choice in event.choices or []:
                    text += choice.text or ""  # a local name, which Python extends in place
                    done.token_ids += getattr(choice, "token_ids", None) or []  # vLLM's own field
                    if text and not done.token_ids:
                        raise AimoError("the server sends no token ids; serve with vLLM 0.11 or later")
                    ending = choice.finish_reason or ending
                    if choice.logprobs:
                        done.logprobs += [p for p in choice.logprobs.token_logprobs or [] if p is not None]
                        likeliest = choice.logprobs.top_logprobs or []
                        done.entropies += [entropy_of(token.values()) for token in likeliest if token]
                    if until and until(text, done.token_ids):
                        return replace(done, text=text)
        if ending is None:
            raise ValueError("the reply broke off" if text else "the reply holds no completion")
        return replace(done, text=text, finished=ending == "stop")
