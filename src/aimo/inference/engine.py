"""vLLM's asynchronous engine inside this process: many streams, each of which can be stopped on its own.

The engine runs its event loop in a thread, so that scripts, notebooks (which have a loop of their own) and Kaggle's gRPC
threads call it alike. Out of scope: everything vLLM already plans for itself.
"""

import asyncio
import contextlib
import difflib
import functools
import hashlib
import itertools
import json
import math
import os
import re
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from aimo.inference.errors import AimoError
from aimo.inference.settings import Settings, read_settings

T = TypeVar("T")
TOP_LOGPROBS = 20  # as many as vLLM gives by default
OWN_ARGUMENTS = ("model", "seed", "gpu_memory_utilization")  # of vLLM's, those that the profile has keys for


@dataclass(frozen=True)
class Completion:
    """What one stream wrote."""

    text: str
    tokens: int
    finished: bool
    """False when it was cut off."""
    logprob: float = 0.0
    """Log-probability of all tokens; measured for `weight: logprob` only."""
    entropy: float = 0.0
    """Entropy over all tokens in nats, from the likeliest TOP_LOGPROBS; measured for `weight: entropy` only."""


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
        raise AimoError(
            f"model {model}: {' and '.join(missing)} missing; save the model and its tokenizer there"
        )


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

    def __init__(
        self,
        model: str | Path,
        gpu_memory: float = 0.9,
        seed: int = 0,
        adapter: str | Path | None = None,
        vllm: dict[str, Any] | None = None,
    ):
        """Load a model folder, with a LoRA `adapter` for it if given, and print what fits into memory.

        `gpu_memory`: the share of GPU memory to take; a CPU takes 1 GiB of KV cache. `vllm`: engine arguments over those of the
        model's settings. The context is as long as settings and model allow and memory holds.
        """
        model = Path(model)
        check_model_folder(model)
        self.settings = read_settings(model)
        self.again: Callable[[], Engine] = functools.partial(Engine, model, gpu_memory, seed, adapter, vllm)
        options = self.settings.vllm | (vllm or {}) | lora_options(adapter)
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
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.__stderr__")
        self.log = Path(tempfile.gettempdir()) / f"vllm-{os.getpid()}.log"
        with stderr_to(self.log):
            import torch
            from transformers import AutoTokenizer
            from vllm.lora.request import LoRARequest

            check_options(options)
            self.lora = LoRARequest("adapter", 1, str(adapter)) if adapter else None
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
            if not self.tokenizer.chat_template:
                raise AimoError(
                    f"model {model}: its tokenizer has no chat template; train it with `aimo run`, or save one"
                )
            self.tokenizer.model_max_length = 10**9  # the solver checks lengths itself, and says so better
            self.tool_parser = find_tool_parser(self.settings.tool_parser, self.tokenizer)
            on_cpu = not torch.cuda.is_available()
        self.arguments: dict[str, Any] = {
            "gpu_memory_utilization": gpu_memory,
            "seed": seed,
            "max_model_len": -1,  # as long as fits into memory
            "dtype": "float32" if float32 else "auto",  # `auto` would round 32-bit weights
            "enforce_eager": on_cpu,  # gains nothing there from a minute of compilation
            # On a CPU, vLLM 0.31 dies when a prompt with a seed is prefilled in two parts.
            "enable_chunked_prefill": not on_cpu,
            "max_num_batched_tokens": max(2048, limit) if on_cpu else None,
            "disable_log_stats": True,
        } | options
        self.start(model)
        planned = self.llm.vllm_config
        self.max_length = min(self.max_length, planned.model_config.max_model_len)
        kv_tokens = planned.cache_config.kv_cache_size_tokens * planned.parallel_config.data_parallel_size
        # Most streams end long before the limit: half of it each is planned, and vLLM makes room where that is too little.
        self.streams = max(1, 2 * kv_tokens // self.max_length)
        print(
            f"vLLM: {model.name}, context {self.max_length:,} tokens, KV cache of {kv_tokens:,}: {self.streams:,} streams at once"
        )

    def start(self, model: Path) -> None:
        """Start vLLM's processes."""
        with stderr_to(self.log):
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            async def load() -> Any:
                return AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(model), **self.arguments))

            try:
                self.llm = self.run(load())
            except Exception as e:
                self.loop.call_soon_threadsafe(self.loop.stop)
                told = re.findall(
                    r"\b\w+Error: .+", self.log.read_text()
                )  # its processes tell the cause there, `e` only that there is one
                reason = " ".join((told[0] if told else str(e)).split())[:300]
                raise AimoError(
                    f"vLLM did not start with {model}: {reason}; all that it said is in {self.log}"
                ) from None
        self.model = model

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what waits on the loop, then what it waits for, and the loop."""

        async def cancel() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=1)

        if self.loop.is_running():
            self.run(cancel())
            self.end()
            self.loop.call_soon_threadsafe(self.loop.stop)

    def end(self) -> None:
        """End vLLM's processes."""
        self.llm.shutdown()
        del self.llm  # vLLM's destructor would shut down again while Python exits, and complain

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine on the engine's loop, from any other thread. AimoError when the engine is closed."""
        if not self.loop.is_running():
            coroutine.close()
            raise AimoError("the engine is closed")
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
        """Put another model of the same architecture in place of the present one, in a second instead of a restart.

        vLLM 0.31 keeps the old output layer where that is the embedding itself, so a model with other embeddings does restart it.
        """

        async def load() -> None:
            await self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(model)})
            await self.llm.reset_prefix_cache()

        if embedding(self.model) == embedding(Path(model)):
            self.run(load())
            self.model = Path(model)
        else:
            self.end()
            self.start(Path(model))

    def inert(self, text: str) -> str:
        """Text of others, in which control tokens are mere characters: a zero-width space parts them."""
        for token in self.tokenizer.added_tokens_decoder.values():
            if token.special or token.content.startswith("<"):
                text = text.replace(token.content, f"{token.content[0]}\u200b{token.content[1:]}")
        return text

    def encode(self, problem: str) -> list[int]:
        """Token ids of the prompt that asks `problem`."""
        message = [{"role": "user", "content": self.inert(problem)}]
        return self.tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)

    async def sample(
        self,
        prompt: list[int],
        seed: int,
        settings: Settings,
        until: Callable[[str, int], bool] | None = None,
    ) -> Completion:
        """One stream. Cancelling it frees its place in the engine at once, as does `until(text, tokens)` when it says so.

        `until` is asked with all text so far as the stream grows. Seeded; the sampled text can still differ in rare cases, because
        the batch it runs in depends on timing and changes the last bits of the logits.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            min_p=settings.min_p,
            max_tokens=min(settings.max_tokens, self.max_length - len(prompt)),
            seed=seed,
            logprobs={"logprob": 0, "entropy": TOP_LOGPROBS}.get(settings.weight),
            skip_special_tokens=settings.tool_parser is None,  # a tool call may be made of them
            output_kind=RequestOutputKind.DELTA if until else RequestOutputKind.FINAL_ONLY,
        )
        text, tokens, logprob, entropy = "", 0, 0.0, 0.0
        outputs = self.llm.generate(
            {"prompt_token_ids": prompt}, params, str(next(self.requests)), lora_request=self.lora
        )
        async with contextlib.aclosing(outputs):
            async for output in outputs:
                result = output.outputs[0]
                text, tokens = text + result.text, tokens + len(result.token_ids)
                for token, likeliest in zip(result.token_ids, result.logprobs or [], strict=False):
                    logprob += likeliest[token].logprob
                    entropy += entropy_of(entry.logprob for entry in likeliest.values())
                if until and until(text, tokens):
                    return Completion(text, tokens, False, logprob, entropy)
        return Completion(text, tokens, result.finish_reason == "stop", logprob, entropy)


class Server(Engine):
    """Engines elsewhere: running OpenAI-compatible servers (`vllm serve`) of one model, asked in turns.

    The tokenizer and settings come from the model's folder here. Out of scope: starting and stopping the servers.
    """

    def __init__(self, urls: list[str], model: str | Path):
        """Connect to servers such as http://127.0.0.1:8000; AimoError when one does not answer."""
        import httpx
        from transformers import AutoTokenizer

        check_model_folder(Path(model))
        self.settings = read_settings(Path(model))
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.tool_parser = find_tool_parser(self.settings.tool_parser, self.tokenizer)
        self.requests = itertools.count()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.again = functools.partial(Server, urls, model)
        self.urls = [url.rstrip("/").removesuffix("/v1") for url in urls]
        self.client = httpx.AsyncClient(
            timeout=httpx.Timeout(60, read=None), limits=httpx.Limits(max_connections=None)
        )
        limits = []
        for url in self.urls:
            try:
                served = httpx.get(f"{url}/v1/models", timeout=10).raise_for_status().json()["data"][0]
            except (httpx.HTTPError, KeyError, IndexError, ValueError) as e:
                raise AimoError(
                    f"server {url} does not answer like `vllm serve`: {e}; start it, or mend the address"
                ) from None
            self.model = served["id"]
            limits.append(served.get("max_model_len") or self.settings.max_length or 4096)
        self.max_length = min([*limits, self.settings.max_length or math.inf])  # type: ignore[type-var]
        self.streams = sys.maxsize  # the servers queue what they cannot hold

    has_died = False  # a server that is gone raises

    def end(self) -> None:
        """Leave the servers to themselves."""
        self.run(self.client.aclose())

    async def sample(
        self,
        prompt: list[int],
        seed: int,
        settings: Settings,
        until: Callable[[str, int], bool] | None = None,
    ) -> Completion:
        """As the engine inside; leaving the stream makes the server stop it."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "min_p": settings.min_p,
            "logprobs": {"logprob": 0, "entropy": TOP_LOGPROBS}.get(settings.weight),
            "skip_special_tokens": settings.tool_parser is None,
            "max_tokens": min(settings.max_tokens, self.max_length - len(prompt)),
            "seed": seed,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        url = self.urls[next(self.requests) % len(self.urls)]
        text, tokens, logprob, entropy, reason = "", 0, 0.0, 0.0, None
        async with self.client.stream("POST", f"{url}/v1/completions", json=body) as response:
            if response.is_error:
                raise AimoError(
                    f"server {url}: {response.status_code} {(await response.aread()).decode()[:200]}"
                )
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                for choice in event["choices"]:
                    text += choice["text"]
                    reason = choice["finish_reason"] or reason
                    measured = choice.get("logprobs") or {}
                    logprob += sum(measured.get("token_logprobs") or [])
                    entropy += sum(
                        entropy_of(likeliest.values())
                        for likeliest in measured.get("top_logprobs") or []
                        if likeliest
                    )
                    if until and until(text, tokens):
                        return Completion(text, tokens, False, logprob, entropy)
        return Completion(text, tokens, reason == "stop", logprob, entropy)


def embedding(model: Path) -> bytes | None:
    """A digest of a model's embedding where its output layer is the same weights, else None."""
    from safetensors import safe_open

    if not json.loads((model / "config.json").read_text()).get("tie_word_embeddings"):
        return None
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (the file is no mapping)
                if name.endswith("embed_tokens.weight"):
                    return hashlib.sha256(file.get_tensor(name).float().numpy().tobytes()).digest()
    return None


def entropy_of(logprobs: Iterable[float]) -> float:
    """Entropy in nats of the likeliest tokens; what the others would add is left out."""
    return -sum(math.exp(p) * p for p in logprobs)


def lora_options(adapter: str | Path | None) -> dict[str, Any]:
    """What vLLM must know of an adapter before it starts. AimoError when the folder holds none."""
    if adapter is None:
        return {}
    config = Path(adapter) / "adapter_config.json"
    if not config.is_file():
        raise AimoError(
            f"adapter {adapter}: no adapter_config.json there; give a folder that PEFT wrote, such as a stage's `trained`"
        )
    ranks = (8, 16, 32, 64, 128, 256, 320, 512)  # those vLLM has kernels for
    rank = json.loads(config.read_text())["r"]
    return {"enable_lora": True, "max_lora_rank": next((r for r in ranks if r >= rank), rank), "max_loras": 1}


def check_options(options: dict[str, Any]) -> None:
    """Refuse engine arguments that vLLM does not know, or that have a key of their own."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = [f.name for f in fields(AsyncEngineArgs) if f.name not in OWN_ARGUMENTS]
    for key in options.keys() - known:
        close = difflib.get_close_matches(key, known, n=1)
        why = (
            "has a key of its own in the profile" if key in OWN_ARGUMENTS else "is no engine argument of vLLM"
        )
        raise AimoError(
            f"inference.vllm: {key} {why}"
            + (f"; did you mean {close[0]}?" if close and key not in OWN_ARGUMENTS else "")
        )


def find_tool_parser(name: str | None, tokenizer: Any) -> Any:
    """vLLM's parser of tool calls of that name. AimoError when there is none, or when the chat template has no place for tools."""
    if name is None:
        return None
    from vllm.tool_parsers import ToolParserManager

    if "tools" not in tokenizer.chat_template:
        raise AimoError(
            f"inference.tool_parser: {name} needs a chat template that offers tools, and the model's does not; set it to null"
        )
    try:
        return ToolParserManager.get_tool_parser(name)(tokenizer)
    except KeyError:
        close = difflib.get_close_matches(name, ToolParserManager.list_registered(), n=3)
        raise AimoError(
            f"inference.tool_parser: vLLM has no parser {name!r}"
            + (f"; did you mean {' or '.join(close)}?" if close else "")
        ) from None


def sample_seed(seed: int, problem: str, i: int) -> int:
    """The seed of a problem's i-th sample, its own whatever else is sampled beside it."""
    return zlib.crc32(f"{seed} {i} {problem}".encode())
