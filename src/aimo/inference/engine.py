"""Run vLLM's asynchronous engine in this process, with many streams that can be stopped one by one.

`sampling_parameters` passes the sampling settings to vLLM; `Server.stream` passes them to a server.
"""

import asyncio
import contextlib
import itertools
import os
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any
from weakref import WeakSet

from aimo.inference import harmony, prompts, vllm_process, voting
from aimo.inference.chat_format import FolderSampler
from aimo.inference.errors import AimoError, one_line, say
from aimo.inference.model_folder import REMEDY, check_model_folder, identity, tied_embedding
from aimo.inference.prompts import BackgroundLoop, Completion, Sampler, Until, entropy_of, result_of
from aimo.inference.settings import Settings, resolve_settings
from aimo.inference.storage import read_json

CLOSE_S = 30  # time for a failed engine to release its memory
RETRY_S = 2  # between two attempts to load
STARTED: "WeakSet[Engine]" = WeakSet()  # engines of this process; a notebook that is run again closes them
UNKNOWN_MODEL = re.compile("architecture|model type|quantization method", re.IGNORECASE)


class Engine(FolderSampler):
    """A vLLM engine, as a `Sampler`. Use it as a context manager: `close` ends its processes."""

    queue_s = 0.0  # nobody else sends it requests

    def __init__(
        self,
        model: str | Path,
        settings: Settings | None = None,
        *,
        seed: int = 0,
        adapter: str | Path | None = None,
    ):
        """Load a model folder, with an optional LoRA `adapter`, and print what fits into memory.

        `settings` default to the folder's. The context is as long as the settings, the model and the memory
        allow. Loading takes half a minute. AimoError if the folder, the adapter or an engine argument is
        wrong, or vLLM does not start.
        """
        check_model_folder(model)
        settings = settings or resolve_settings(model)
        self.model, self.adapter, self.seed, self.requests = Path(model), adapter, seed, itertools.count()
        self.log, note = None, ""
        if not vllm_process.is_verbose():
            handle, name = tempfile.mkstemp(prefix="vllm-", suffix=".log")
            os.close(handle)
            self.log, note = Path(name), f"; vLLM's own log is {name}"
        say(f"Loading {self.model.name} with vLLM, which takes half a minute or more{note}")
        vllm_process.set_environment()
        with vllm_process.stderr_to(self.log):
            from vllm.lora.request import LoRARequest

            self.arguments = vllm_process.engine_arguments(self.model, settings, seed, adapter)
            self.lora = LoRARequest("adapter", 1, str(adapter)) if adapter else None
            self.read_folder(model, settings)
            self.arguments = vllm_process.tokenizer_argument(self.model, self.tokenizer) | self.arguments
        longest = vllm_process.context_limit(read_json(self.model / "config.json", REMEDY))
        self.max_length = min(settings.max_length or longest, longest)
        prompts.check_length(self.encode("1 + 1?"), self.max_length)
        self.loop = BackgroundLoop()
        self.start()
        STARTED.add(self)
        planned = self.llm.vllm_config
        self.max_length = min(self.max_length, planned.model_config.max_model_len)
        kv_tokens = planned.cache_config.kv_cache_size_tokens * planned.parallel_config.data_parallel_size
        self.streams = voting.count_streams(kv_tokens, self.max_length, settings)
        say(
            f"vLLM: {self.model.name}, context {self.max_length:,} tokens, "
            f"KV cache of {kv_tokens:,}: {self.streams:,} streams at once"
        )

    def start(self) -> None:
        """Start vLLM's processes. AimoError quotes the first error in their log if they fail."""

        async def load() -> Any:
            from vllm import AsyncEngineArgs, AsyncLLMEngine
            from vllm.usage.usage_lib import UsageContext

            arguments = AsyncEngineArgs(**self.arguments | {"model": str(self.model)})
            with vllm_process.ending_with_this_thread():  # the loop's thread lives as long as the engine
                # Otherwise vLLM would default to 128 sequences and 2,048 tokens a step.
                usage = UsageContext.OPENAI_API_SERVER
                return AsyncLLMEngine.from_engine_args(arguments, usage_context=usage)

        try:
            with vllm_process.stderr_to(self.log):
                self.llm = self.loop.run(load())
        except Exception as e:
            self.loop.stop()
            # vLLM's processes write the cause to the log; their error only points to it.
            log = self.log.read_text() if self.log and "root cause" in str(e) else ""
            text = " ".join(next(iter(re.findall(r"\b\w+Error: .+", log)), str(e)).split())
            reason = re.sub(r"^\d+ validation errors? for \w+ Value error, ", "", text)[:200]
            if UNKNOWN_MODEL.search(text):
                reason += "; take a model that this vLLM loads, or a newer vLLM"
            where = f"in {self.log}" if self.log else "above"
            raise AimoError(
                f"vLLM did not start with {self.model}: {reason}; all that it wrote is {where}"
            ) from None

    def close(self) -> None:
        if self.loop.is_running:
            self.loop.cancel_all()
            self.stop()
            self.loop.stop()

    def stop(self) -> None:
        self.llm.shutdown()
        del self.llm  # vLLM's destructor would shut down again while Python exits, and log an error

    @property
    def identity(self) -> str:
        return identity(self.model, self.adapter)

    @property
    def has_died(self) -> bool:
        return self.llm.errored

    @property
    def written(self) -> int:
        states = self.llm.output_processor.request_states.values()  # vLLM 0.31 has no public count
        return sum(state.detokenizer.num_output_tokens() for state in states)

    def respawn(self) -> "Engine":
        return Engine(self.model, self.settings, seed=self.seed, adapter=self.adapter)

    def load_weights(self, model: str | Path) -> None:
        """Load another model of the same architecture; restart vLLM only if a tied embedding changes."""

        async def load() -> None:
            await self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(model)})
            await self.llm.reset_prefix_cache()

        check_model_folder(model)
        before, self.model = self.model, Path(model)
        if tied_embedding(before) == tied_embedding(self.model):
            self.run(load())
        else:  # vLLM 0.31 keeps the old output layer if it is tied to the embedding
            self.stop()
            self.start()

    async def sample(
        self, prompt: list[int], seed: int, settings: Settings, until: Until | None = None
    ) -> Completion:
        """Return one stream's continuation of `prompt`; cancelling it frees its slot at once.

        `until` is called as the stream grows, and ends it by returning true. Rarely, the same seed samples
        a different text: the batch depends on timing and changes the last bits of the logits.
        """
        room, streamed = self.max_length - len(prompt), until is not None
        params = sampling_parameters(settings, seed, room, streamed, self.keeps_special_tokens)
        text, written, request = "", Completion("", [], False), str(next(self.requests))
        outputs = self.llm.generate({"prompt_token_ids": prompt}, params, request, lora_request=self.lora)
        async with contextlib.aclosing(outputs):
            async for output in outputs:
                result = output.outputs[0]
                text += result.text  # a local name: Python extends it in place, without a copy for each token
                written.token_ids += result.token_ids
                for token, likeliest in zip(result.token_ids, result.logprobs or [], strict=False):
                    written.logprobs.append(likeliest[token].logprob)
                    written.entropies.append(entropy_of(entry.logprob for entry in likeliest.values()))
                if until and until(text, written.token_ids):
                    break
            else:
                written.finished = result.finish_reason == "stop"
        written.text = text
        return written

    async def log_probs(self, prompt: list[int], completion: list[int]) -> list[float]:
        """Return the log-probabilities (n,) of a completion's tokens after the prompt."""
        from vllm.sampling_params import SamplingParams

        async def ask(tokens: list[int], **options: Any) -> Any:
            params = SamplingParams(max_tokens=1, detokenize=False, **options)
            request = {"request_id": str(next(self.requests)), "lora_request": self.lora}
            asked = self.llm.generate({"prompt_token_ids": tokens}, params, **request)
            return [output async for output in asked][-1]

        async def one(place: int) -> float:
            token = completion[place]
            output = await ask(prompt + completion[:place], logprobs=0, allowed_token_ids=[token])
            return float(output.outputs[0].logprobs[0][token].logprob)

        if self.lora:  # vLLM 0.31's last layer then takes one token a request, not a whole prompt
            return list(await asyncio.gather(*map(one, range(len(completion)))))
        rows = (await ask(prompt + completion, prompt_logprobs=0)).prompt_logprobs[len(prompt) :]
        return [row[token].logprob for row, token in zip(rows, completion, strict=True)]


def sampling_parameters(
    settings: Settings, seed: int, room: int, streamed: bool = False, keep_special: bool = False
) -> Any:
    """Return vLLM's SamplingParams for a stream of at most `room` tokens."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        min_p=settings.min_p,
        max_tokens=min(settings.max_tokens, room),
        stop=settings.stop,
        include_stop_str_in_output=bool(settings.stop),  # it may be the tag that closes the answer
        seed=seed if settings.seeded else None,
        logprobs=settings.top_logprobs,
        skip_special_tokens=not keep_special,
        stop_token_ids=harmony.STOP if settings.format == "harmony" else None,
        output_kind=RequestOutputKind.DELTA if streamed else RequestOutputKind.FINAL_ONLY,
    )


class Supervisor:
    """Loads an engine in a thread, and replaces it when it fails."""

    def __init__(
        self, load: Callable[[], Sampler], engine: Sampler | None = None, patience_s: float = 0.0
    ) -> None:
        """Start to load an engine, unless one is given, which its owner closes.

        A load that fails is retried for `patience_s` seconds: a model server may come back.
        """
        self.load, self.given, self.patience_s = load, engine, patience_s
        self.loaded: Future[Sampler] = Future()
        if engine:
            self.loaded.set_result(engine)
        else:
            self.start()

    def start(self, failed: Sampler | None = None) -> None:
        """Load an engine in a thread; first give a `failed` one CLOSE_S seconds to release its memory."""
        self.loaded = loaded = Future[Sampler]()

        def work() -> None:
            if failed:
                closing = Thread(target=failed.close, daemon=True)
                closing.start()
                closing.join(CLOSE_S)
            end = time.monotonic() + self.patience_s
            while not loaded.done():
                try:
                    loaded.set_result(self.load())
                except BaseException as e:  # a library may raise SystemExit, or a Rust panic
                    if time.monotonic() >= end:
                        loaded.set_exception(e if isinstance(e, Exception) else RuntimeError(one_line(e)))
                    else:
                        time.sleep(RETRY_S)

        Thread(target=work, daemon=True).start()

    @property
    def has_given_up(self) -> bool:  # the last attempt to load has failed
        return self.loaded.done() and self.loaded.exception() is not None

    def get(self, timeout: float | None = None) -> Sampler:
        """Return the engine; load it again if the last load failed. TimeoutError, or the load's error."""
        if self.has_given_up:
            self.start()
        return result_of(self.loaded, timeout)

    def replace(self, failed: Sampler) -> None:
        """Replace an engine that failed, unless that has been done already."""
        if self.loaded.done() and not self.has_given_up and self.loaded.result() is failed:
            self.start(failed)

    def close(self) -> None:
        if self.loaded.done() and not self.has_given_up and self.loaded.result() is not self.given:
            self.loaded.result().close()
