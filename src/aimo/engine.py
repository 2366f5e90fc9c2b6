"""vLLM's asynchronous engine inside this process: many streams, each of which can be stopped on its own.

The engine runs its event loop in a thread, so that scripts, notebooks (which have a loop of their own) and Kaggle's gRPC
threads call it alike. Left out: everything vLLM already plans for itself.
"""

import asyncio
import contextlib
import itertools
import json
import math
import os
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from aimo.errors import AimoError

T = TypeVar("T")
SETTINGS = "aimo.json"


@dataclass(frozen=True)
class Settings:
    """How a model wants to be sampled; a trained model folder carries it as aimo.json."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 16384
    max_length: int | None = None
    """Tokens of prompt and completion together; None is the model's own limit."""
    answer_tags: tuple[str, str] = ("<SOLUTION>", "</SOLUTION>")
    think_end: str = "</think>"
    thinking: bool = False
    """Whether a prompt ends inside a thought, so that a completion starts there."""
    tools: float = 0.0
    """The share of samples whose Python blocks are run, and their output fed back (tool-integrated reasoning)."""
    tool_turns: int = 4
    """How many blocks of a sample are run."""


@dataclass(frozen=True)
class Completion:
    """What one stream wrote."""

    text: str
    tokens: int
    finished: bool
    """False when it was cut off."""


def check_model_folder(model: Path) -> None:
    """Raise AimoError naming what a model folder lacks."""
    if not model.is_dir():
        raise AimoError(f"model {model}: no such folder; give one that `aimo run` or `save_pretrained` wrote")
    needed = {
        "config.json": ["config.json"],
        "weights (*.safetensors)": ["*.safetensors", "*.bin"],
        "a tokenizer (tokenizer.json)": ["tokenizer.json", "tokenizer.model", "vocab.json"],
    }
    missing = [what for what, patterns in needed.items() if not any(any(model.glob(p)) for p in patterns)]
    if missing:
        raise AimoError(f"model {model}: {' and '.join(missing)} missing; save the model and its tokenizer there")


@contextlib.contextmanager
def stderr_to(path: Path) -> Iterator[None]:
    """Send what this process and those it starts write to standard error to a file.

    A process started inside keeps writing there: notices stay out of notebooks, and can be read when something fails.
    """
    with path.open("w") as file:
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stderr(file):
                yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


class Engine:
    """One vLLM engine. Use as a context manager: its worker processes end with `close`."""

    def __init__(self, model: str | Path, gpu_memory: float = 0.9, seed: int = 0):
        """Load a model folder. `gpu_memory`: the share of GPU memory to take; a CPU takes 1 GiB of KV cache."""
        model = Path(model)
        check_model_folder(model)
        self.settings = read_settings(model)
        config = json.loads((model / "config.json").read_text())
        limit = config.get("max_position_embeddings", 4096)
        self.max_length = min(self.settings.max_length or limit, limit)
        self.requests = itertools.count()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        float32 = (config.get("dtype") or config.get("torch_dtype")) == "float32"
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        log = Path(tempfile.gettempdir()) / f"vllm-{os.getpid()}.log"
        with stderr_to(log):
            import torch
            from transformers import AutoTokenizer
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
            if not self.tokenizer.chat_template:
                raise AimoError(f"model {model}: its tokenizer has no chat template; train it with `aimo run`, or save one")
            self.tokenizer.model_max_length = 10**9  # the solver checks lengths itself, and says so better
            on_cpu = not torch.cuda.is_available()
            args = AsyncEngineArgs(
                model=str(model),
                max_model_len=self.max_length,
                dtype="float32" if float32 else "auto",  # `auto` would round 32-bit weights
                gpu_memory_utilization=gpu_memory,
                seed=seed,
                enforce_eager=on_cpu,  # gains nothing there from a minute of compilation
                # On a CPU, vLLM 0.31 dies when a prompt with a seed is prefilled in two parts.
                enable_chunked_prefill=not on_cpu,
                max_num_batched_tokens=max(2048, self.max_length) if on_cpu else None,
                disable_log_stats=True,
            )

            async def start() -> Any:
                return AsyncLLM.from_engine_args(args)

            try:
                self.llm = self.run(start())
            except Exception as e:
                raise AimoError(f"vLLM did not start with {model}: {e}; what it said is in {log}") from e

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End vLLM's processes and the loop."""
        self.llm.shutdown()
        del self.llm  # vLLM's destructor would shut down again while Python exits, and complain
        self.loop.call_soon_threadsafe(self.loop.stop)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine on the engine's loop, from any other thread."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise

    @property
    def has_died(self) -> bool:
        """Whether vLLM's process is gone."""
        return self.llm.errored

    def load_weights(self, model: str | Path) -> None:
        """Put another model of the same architecture in place of the present one, in a second instead of a restart."""

        async def load() -> None:
            await self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(model)})
            await self.llm.reset_prefix_cache()

        self.run(load())

    def encode(self, problem: str) -> list[int]:
        """Token ids of the prompt that asks `problem`."""
        message = [{"role": "user", "content": problem}]
        return self.tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)

    async def sample(self, prompt: list[int], seed: int, settings: Settings, until: Callable[[str, int], bool] | None = None) -> Completion:
        """One stream. Cancelling it frees its place in the engine at once, as does `until(text, tokens)` when it says so.

        `until` is asked with all text so far as the stream grows. Seeded; the sampled text can still differ in rare cases, because
        the batch it runs in depends on timing and changes the last bits of the logits.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=min(settings.max_tokens, self.max_length - len(prompt)),
            seed=seed,
            output_kind=RequestOutputKind.DELTA if until else RequestOutputKind.FINAL_ONLY,
        )
        text, tokens = "", 0
        outputs = self.llm.generate({"prompt_token_ids": prompt}, params, str(next(self.requests)))
        async with contextlib.aclosing(outputs):
            async for output in outputs:
                result = output.outputs[0]
                text, tokens = text + result.text, tokens + len(result.token_ids)
                if until and until(text, tokens):
                    return Completion(text, tokens, finished=False)
        return Completion(text, tokens, result.finish_reason == "stop")


class Server(Engine):
    """Engines elsewhere: running OpenAI-compatible servers (`vllm serve`) of one model, asked in turns.

    The tokenizer and settings come from the model's folder here. Left out: starting and stopping the servers.
    """

    def __init__(self, urls: list[str], model: str | Path):
        """Connect to servers such as http://127.0.0.1:8000; AimoError when one does not answer."""
        import httpx
        from transformers import AutoTokenizer

        check_model_folder(Path(model))
        self.settings = read_settings(Path(model))
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.requests = itertools.count()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.urls = [url.rstrip("/").removesuffix("/v1") for url in urls]
        self.client = httpx.AsyncClient(timeout=httpx.Timeout(60, read=None), limits=httpx.Limits(max_connections=None))
        limits = []
        for url in self.urls:
            try:
                served = httpx.get(f"{url}/v1/models", timeout=10).raise_for_status().json()["data"][0]
            except (httpx.HTTPError, KeyError, IndexError, ValueError) as e:
                raise AimoError(f"server {url} does not answer like `vllm serve`: {e}; start it, or mend the address") from None
            self.model = served["id"]
            limits.append(served.get("max_model_len") or self.settings.max_length or 4096)
        self.max_length = min([*limits, self.settings.max_length or math.inf])  # type: ignore[type-var]

    has_died = False  # a server that is gone raises

    def close(self) -> None:
        """Leave the servers to themselves."""
        self.run(self.client.aclose())
        self.loop.call_soon_threadsafe(self.loop.stop)

    async def sample(self, prompt: list[int], seed: int, settings: Settings, until: Callable[[str, int], bool] | None = None) -> Completion:
        """As the engine inside; leaving the stream makes the server stop it."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": min(settings.max_tokens, self.max_length - len(prompt)),
            "seed": seed,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        url = self.urls[next(self.requests) % len(self.urls)]
        text, tokens, reason = "", 0, None
        async with self.client.stream("POST", f"{url}/v1/completions", json=body) as response:
            if response.is_error:
                raise AimoError(f"server {url}: {response.status_code} {(await response.aread()).decode()[:200]}")
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                if event["choices"]:
                    text += event["choices"][0]["text"]
                    reason = event["choices"][0]["finish_reason"] or reason
                    if until and until(text, tokens):
                        return Completion(text, tokens, finished=False)
        return Completion(text, tokens, reason == "stop")


def sample_seed(seed: int, problem: str, i: int) -> int:
    """The seed of a problem's i-th sample, its own whatever else is sampled beside it."""
    return zlib.crc32(f"{seed} {i} {problem}".encode())


def read_settings(model: Path) -> Settings:
    """The settings a model folder carries, or the defaults."""
    path = model / SETTINGS
    values = json.loads(path.read_text()) if path.exists() else {}
    if "answer_tags" in values:
        values["answer_tags"] = tuple(values["answer_tags"])
    return Settings(**values)
