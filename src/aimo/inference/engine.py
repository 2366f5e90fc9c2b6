"""vLLM's asynchronous engine in this process: many streams, each of which can be stopped on its own.

`sampling_parameters` hands temperature and the like to vLLM; `Server.stream` hands them to a server.
Out of scope: scheduling and memory, which vLLM manages; engines in other processes (`server`).
"""

import contextlib
import difflib
import itertools
import os
import re
import tempfile
from collections.abc import Coroutine
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from aimo.inference import conversations, harmony, prompts
from aimo.inference.errors import AimoError, say
from aimo.inference.model_folder import (
    REMEDY,
    check_model_folder,
    identity,
    load_tokenizer,
    read_adapter,
    tied_embedding,
)
from aimo.inference.plan import context_limit, language_model, yarn_overrides
from aimo.inference.processes import ending_with_this_thread, is_verbose, stderr_to
from aimo.inference.sampling import BackgroundLoop, Completion, Until, entropy_of
from aimo.inference.settings import Settings, resolve
from aimo.inference.storage import read_json
from aimo.inference.tools import find_tool_parser

T = TypeVar("T")
UNKNOWN_MODEL = re.compile("architecture|model type|quantization method", re.IGNORECASE)
OWN_ARGUMENTS = {
    "model": "the model folder",
    "seed": "seed",
    "gpu_memory_utilization": "inference.gpu_memory",
}
"""vLLM's engine arguments that our own settings replace."""
ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""On a CPU, vLLM's own choice for `uni` is one process more, which costs ten seconds and 600 MB."""


class Engine:
    """One vLLM engine, a `Sampler`. Use it as a context manager: its processes end with `close`."""

    def __init__(
        self,
        model: str | Path,
        settings: Settings | None = None,
        *,
        seed: int = 0,
        adapter: str | Path | None = None,
    ):
        """Load a model folder, with a LoRA `adapter` for it if given, and print what fits into memory.

        `settings`: those of the folder if not given. The context is as long as the settings, the model and
        the memory allow. Takes half a minute. AimoError when the folder, the adapter or an engine argument
        is at fault, or vLLM does not start.
        """
        self.model, self.adapter, self.seed = Path(model), adapter, seed
        check_model_folder(model)
        settings = settings or resolve(model)
        self.log = None if is_verbose() else new_log()
        note = "" if self.log is None else f"; vLLM's own log is {self.log}"
        say(f"Loading {self.model.name} with vLLM, which takes half a minute or more{note}")
        set_environment()
        with stderr_to(self.log):
            from vllm.lora.request import LoRARequest

            self.arguments = engine_arguments(self.model, settings, seed, adapter)
            self.lora = LoRARequest("adapter", 1, str(adapter)) if adapter else None
            self.tokenizer = load_tokenizer(model, settings.vllm.get("trust_remote_code", False))
            self.tool_parser = find_tool_parser(settings.tool_parser, self.tokenizer)
        self.encoding = conversations.prepare(self.tokenizer, settings, model)
        self.keeps_special_tokens = prompts.keeps_special_tokens(self.tokenizer, settings)
        self.settings, self.requests = settings, itertools.count()
        limits = [settings.max_length, position_limit(self.model)]
        prompts.check_length(self.encode("1 + 1?"), min(limit for limit in limits if limit))
        self.loop = BackgroundLoop()
        self.start()
        planned = self.llm.vllm_config
        limits.append(planned.model_config.max_model_len)
        self.max_length = min(limit for limit in limits if limit)
        replicas = planned.parallel_config.data_parallel_size
        kv_tokens = planned.cache_config.kv_cache_size_tokens * replicas
        # Most streams end long before the limit: half of it is planned for each, vLLM makes room for more.
        self.streams = max(1, 2 * kv_tokens // self.max_length)
        say(
            f"vLLM: {self.model.name}, context {self.max_length:,} tokens, "
            f"KV cache of {kv_tokens:,}: {self.streams:,} streams at once"
        )

    def start(self) -> None:
        """Start vLLM's processes. AimoError with the first error in its log when they fail to start."""

        async def load() -> Any:
            # On the loop's thread, which lives as long as the engine does.
            with ending_with_this_thread():
                return AsyncLLM.from_engine_args(
                    AsyncEngineArgs(**self.arguments | {"model": str(self.model)})
                )

        with stderr_to(self.log):
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            try:
                self.llm = self.loop.run(load())
            except Exception as e:
                self.loop.stop()
                raise AimoError(f"vLLM did not start with {self.model}: {self.explain(e)}") from None

    def explain(self, error: Exception) -> str:
        """The cause why vLLM did not start, where to read more, and the remedy for a model that it lacks."""
        # vLLM's processes write the cause into the log; their error only says that there is one.
        log = self.log.read_text() if self.log and "root cause" in str(error) else ""
        causes = re.findall(r"\b\w+Error: .+", log)
        text = " ".join((causes[0] if causes else str(error)).split())
        reason = re.sub(r"^\d+ validation errors? for \w+ Value error, ", "", text)[:200]
        remedy = "; take a model that this vLLM loads, or a newer vLLM" if UNKNOWN_MODEL.search(text) else ""
        return f"{reason}{remedy}; all that it wrote is {f'in {self.log}' if self.log else 'above'}"

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what runs, vLLM's processes and the loop."""
        if self.loop.is_running:
            self.loop.cancel_all()
            self.stop()
            self.loop.stop()

    queue_s = 0.0  # no others ask it

    def stop(self) -> None:
        """End vLLM's processes."""
        self.llm.shutdown()
        del self.llm  # vLLM's destructor would shut down again while Python exits, and log an error

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine on the engine's loop, from any other thread. AimoError when it is closed."""
        return self.loop.run(coroutine, timeout)

    @property
    def identity(self) -> str:
        """The digest of the model's and the adapter's content."""
        return identity(self.model, self.adapter)

    @property
    def has_died(self) -> bool:
        """Whether vLLM's process is gone."""
        return self.llm.errored

    @property
    def written(self) -> int:
        """How many tokens the running streams have."""
        states = self.llm.output_processor.request_states.values()  # vLLM 0.31 has no public count
        return sum(state.detokenizer.num_output_tokens() for state in states)

    def respawn(self) -> "Engine":
        """Another engine with the same model and settings. Close this one first: it may hold the memory."""
        return Engine(self.model, self.settings, seed=self.seed, adapter=self.adapter)

    def load_weights(self, model: str | Path) -> None:
        """Replace the model by another of the same architecture, in a second instead of a restart.

        vLLM 0.31 keeps the old output layer where that is the embedding itself, so a model with another
        embedding restarts vLLM.
        """

        async def load() -> None:
            await self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(model)})
            await self.llm.reset_prefix_cache()

        check_model_folder(model)
        same = tied_embedding(self.model) == tied_embedding(Path(model))
        if same:
            self.run(load())
        self.model = Path(model)
        if not same:
            self.stop()
            self.start()

    def encode(self, problem: str, index: int = 0, rules: str = "") -> list[int]:
        """Token ids of the prompt that the `index`-th sample of `problem` starts from."""
        return conversations.begin(self, problem, index, rules).prompt()

    async def sample(
        self, prompt: list[int], seed: int, settings: Settings, until: Until | None = None
    ) -> Completion:
        """One stream that continues `prompt`; cancelling it frees its slot at once.

        `until` is called with all that was written as the stream grows. The sampled text can differ in rare
        cases for the same seed: the batch it runs in depends on timing and changes the last bits of the
        logits.
        """
        params = sampling_parameters(
            settings, seed, self.max_length - len(prompt), until is not None, self.keeps_special_tokens
        )
        text = ""
        ids: list[int] = []
        logprobs: list[float] = []
        entropies: list[float] = []
        outputs = self.llm.generate(
            {"prompt_token_ids": prompt}, params, str(next(self.requests)), lora_request=self.lora
        )
        async with contextlib.aclosing(outputs):
            async for output in outputs:
                result = output.outputs[0]
                text += result.text
                ids += result.token_ids
                for token, likeliest in zip(result.token_ids, result.logprobs or [], strict=False):
                    logprobs.append(likeliest[token].logprob)
                    entropies.append(entropy_of(entry.logprob for entry in likeliest.values()))
                if until and until(text, ids):
                    return Completion(text, ids, False, logprobs, entropies)
        return Completion(text, ids, result.finish_reason == "stop", logprobs, entropies)


def new_log() -> Path:
    """An empty file for what vLLM writes."""
    handle, name = tempfile.mkstemp(prefix="vllm-", suffix=".log")
    os.close(handle)
    return Path(name)


def set_environment() -> None:
    """Set vLLM's environment variables that the user has not set.

    Its processes are always spawned, never forked: `ending_with_this_thread` works with those only.
    """
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    defaults = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_STREAM": "ext://sys.__stderr__",
        **({} if is_verbose() else {"VLLM_LOGGING_LEVEL": "ERROR"}),
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def position_limit(model: Path) -> int:
    """The longest context in tokens that a model folder's config.json allows."""
    return context_limit(language_model(read_json(model / "config.json", REMEDY)))


def engine_arguments(
    model: Path, settings: Settings, seed: int, adapter: str | Path | None = None
) -> dict[str, Any]:
    """The arguments of vLLM's AsyncEngineArgs, those of `settings.vllm` over ours.

    AimoError when `settings.vllm` holds an unknown one, or the adapter is at fault.
    """
    import torch

    check_arguments(settings.vllm)
    config = read_json(model / "config.json", REMEDY)
    float32 = (config.get("dtype") or config.get("torch_dtype")) == "float32"
    on_cpu = not torch.cuda.is_available()
    split = any(settings.vllm.get(f"{way}_parallel_size", 1) > 1 for way in ("tensor", "pipeline"))
    ours: dict[str, Any] = {
        "model": str(model),
        "gpu_memory_utilization": settings.gpu_memory,
        "seed": seed,
        "max_model_len": -1,  # as long as fits into memory
        "hf_overrides": yarn_overrides(config),
        "dtype": "float32" if float32 else "auto",  # `auto` would round 32-bit weights
        "enforce_eager": on_cpu,  # compiling takes a minute and gains nothing on a CPU
        # On a CPU, vLLM 0.31 dies when a prompt with a seed is prefilled in two parts.
        "enable_chunked_prefill": not on_cpu,
        "max_num_batched_tokens": max(2048, position_limit(model)) if on_cpu else None,
        "distributed_executor_backend": ONE_PROCESS if on_cpu and not split else None,
        "disable_log_stats": True,
    }
    return ours | settings.vllm | (read_adapter(adapter) if adapter else {})


def sampling_parameters(
    settings: Settings, seed: int, room: int, streamed: bool = False, keep_special: bool = False
) -> Any:
    """vLLM's SamplingParams of a stream that may write at most `room` tokens."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        min_p=settings.min_p,
        max_tokens=min(settings.max_tokens, room),
        stop=settings.stop,
        include_stop_str_in_output=bool(settings.stop),  # it may be the tag that closes the answer
        seed=seed,
        logprobs=settings.top_logprobs,
        skip_special_tokens=not keep_special,
        stop_token_ids=harmony.STOP if settings.format == "harmony" else None,
        output_kind=RequestOutputKind.DELTA if streamed else RequestOutputKind.FINAL_ONLY,
    )


def check_arguments(arguments: dict[str, Any]) -> None:
    """Refuse engine arguments that vLLM does not have, or that one of our own settings replaces."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = [f.name for f in fields(AsyncEngineArgs) if f.name not in OWN_ARGUMENTS]
    for key in arguments.keys() - known:
        if key in OWN_ARGUMENTS:
            raise AimoError(f"inference.vllm: {key} has a key of its own: set {OWN_ARGUMENTS[key]} instead")
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "remove it"
        raise AimoError(f"inference.vllm: {key} is not an engine argument of vLLM; {hint}")
