"""Plan, configure, start, watch and end vLLM's processes.

- `engine_arguments` configures both the engine in this process and the server of `aimo serve`. It needs the
  context that a config.json allows (`context_limit`).
- vLLM 0.31's engine process does not notice that its parent was killed, and keeps the GPU's memory. So
  servers and jobs of `aimo launch` run below a guard (`running`), and the engine starts within
  `ending_with_this_thread`.
- `plan_for_this_machine` estimates what fits before vLLM starts, so that a kernel can print it.
"""

import contextlib
import copy
import difflib
import json
import os
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from math import inf
from multiprocessing import resource_tracker, spawn
from pathlib import Path
from typing import IO, Any

from huggingface_hub.errors import StrictDataclassError

from aimo.inference import process_guard, voting
from aimo.inference.errors import AimoError, EngineError, explain_exit, one_line, redact
from aimo.inference.model_folder import REMEDY, check_model_folder, read_adapter, read_tokenizer
from aimo.inference.settings import Settings
from aimo.inference.storage import read_json

# vLLM's engine arguments that our own settings replace.
OWN_ARGUMENTS = {
    "model": "the model folder",
    "seed": "seed",
    "gpu_memory_utilization": "inference.gpu_memory",
}
# Values of `tokenizer_class` for which Transformers loads tokenizer.json unchanged.
PLAIN_CLASSES = (None, "PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend")
KEPT: list[Any] = []  # temporary folders that live as long as this process
# On a CPU, vLLM starts one more process for `uni`, which costs ten seconds and 600 MB.
ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


def is_verbose() -> bool:  # whether libraries may log freely
    return os.environ.get("AIMO_VERBOSE") == "1"


def set_environment() -> None:
    """Set vLLM's environment variables that the user has not set."""
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # forks escape `ending_with_this_thread`
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_ENGINE_READY_TIMEOUT_S", "3600")  # 65 GB at 100 MB/s take more than 600 s
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.__stderr__")
    if not is_verbose():
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def engine_arguments(
    model: Path, settings: Settings, seed: int, adapter: str | Path | None = None
) -> dict[str, Any]:
    """Return the arguments for vLLM's AsyncEngineArgs; `settings.vllm` overrides ours.

    AimoError if vLLM has no such argument, one of our settings replaces it, or the adapter is wrong.
    """
    from vllm.platforms import current_platform

    check_arguments(settings.vllm)
    config = read_json(model / "config.json", REMEDY)
    text, limit = language_model(config), context_limit(config)
    longer: dict[str, Any] = {}
    if "yarn" in rope_of(text).values() and limit != text.get("max_position_embeddings"):
        # vLLM 0.31 reads this key as the length after YaRN, and would stop at the original length.
        longer = {"max_position_embeddings": limit}
        longer = {"text_config": longer} if "text_config" in config else longer
    float32 = (config.get("dtype") or config.get("torch_dtype")) == "float32"
    on_cpu = current_platform.is_cpu()
    split = any(settings.vllm.get(f"{way}_parallel_size", 1) > 1 for way in ("tensor", "pipeline"))
    ours: dict[str, Any] = {
        "model": str(model),
        "gpu_memory_utilization": settings.gpu_memory,
        "seed": seed,
        "max_model_len": -1,  # as long as fits into memory
        "hf_overrides": longer,
        "dtype": "float32" if float32 else "auto",  # `auto` would round 32-bit weights
        "enforce_eager": on_cpu,  # compiling takes a minute and gains nothing on a CPU
        # On a CPU, vLLM 0.31 dies when a prompt with a seed is prefilled in two parts.
        "enable_chunked_prefill": not on_cpu,
        "max_num_batched_tokens": max(2048, limit) if on_cpu else None,
        "distributed_executor_backend": ONE_PROCESS if on_cpu and not split else None,
        "disable_log_stats": True,
    }
    if not on_cpu and str(settings.vllm.get("kv_cache_dtype")).startswith("fp8"):
        # FlashAttention reads an fp8 cache only on compute capability 9.0. vLLM's next choice, FlashInfer,
        # needs nvcc to compile.
        cuda = os.environ.get("CUDA_HOME", "/usr/local/cuda")
        capability = current_platform.get_device_capability()
        if not (capability == (9, 0) or shutil.which("nvcc") or Path(cuda, "bin", "nvcc").exists()):
            ours["attention_backend"] = "TRITON_ATTN"
    return ours | settings.vllm | (read_adapter(adapter) if adapter else {})


def check_arguments(arguments: dict[str, Any]) -> None:
    """Raise AimoError for an engine argument that vLLM lacks, or that one of our settings replaces."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = [f.name for f in fields(AsyncEngineArgs) if f.name not in OWN_ARGUMENTS]
    for key in arguments.keys() - known:
        if key in OWN_ARGUMENTS:
            raise AimoError(f"inference.vllm: {key} has its own key: set {OWN_ARGUMENTS[key]} instead")
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "remove it"
        raise AimoError(f"inference.vllm: {key} is not an engine argument of vLLM; {hint}")


def tokenizer_argument(model: Path, tokenizer: Any) -> dict[str, str]:
    """Return vLLM's `tokenizer` argument, empty unless vLLM would load the folder's tokenizer differently."""
    path = model / "tokenizer_config.json"
    named = read_json(path, REMEDY).get("tokenizer_class") if path.exists() else None
    if named in PLAIN_CLASSES or type(tokenizer).__name__ not in PLAIN_CLASSES:
        return {}
    KEPT.append(tempfile.TemporaryDirectory(prefix="aimo-tokenizer-"))
    tokenizer.save_pretrained(KEPT[-1].name)
    return {"tokenizer": KEPT[-1].name}


@contextlib.contextmanager
def serving(
    model: Path, settings: Settings, seed: int = 0, *, host: str = "127.0.0.1", port: int = 0, log: Path
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Serve a model with vLLM's OpenAI-compatible server while the block runs.

    Yield its address and process once it answers. `port` 0 takes a free one; vLLM writes to `log`. AimoError
    if the port is taken; EngineError if the server ends before it answers.
    """
    check_model_folder(model)
    port = free_port(host, port)
    set_environment()
    log.unlink(missing_ok=True)
    with stderr_to(log):  # what torch and vLLM print during their import
        command = server_command(model.absolute(), settings, seed, host, port)
    url = f"http://{host}:{port}"
    with answering(command, f"{url}/health", log, str(model)) as process:
        yield url, process


def server_command(model: Path, settings: Settings, seed: int, host: str, port: int) -> list[str]:
    """Return the command that starts a server with the arguments of an engine in this process."""
    from vllm.platforms import current_platform

    tokenizer = read_tokenizer(model, trust_remote_code=settings.vllm.get("trust_remote_code", False))
    arguments = tokenizer_argument(model, tokenizer) | engine_arguments(model, settings, seed)
    arguments |= {"host": host, "port": port, "served_model_name": model.name}
    del arguments["model"], arguments["disable_log_stats"]
    # The CPU build lacks the metadata that `vllm serve` needs: start the server's module there.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={model}"]
    vllm = shutil.which("vllm", path=str(Path(sys.executable).parent))
    if vllm and not current_platform.is_cpu():
        command = [vllm, "serve", str(model)]
    for key, value in arguments.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            command.append(f"--{name}={json.dumps(value) if isinstance(value, dict | list) else value}")
    return command


@contextlib.contextmanager
def answering(
    command: list[str], health: str, log: Path, model: str, keep: Collection[int] = ()
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a model's server for the block, which begins once the address `health` answers.

    The server appends to `log`; `keep` is passed to `running`. EngineError, with the server's first error,
    if it ends before it answers.
    """
    with log.open("a") as output, running(command, output, keep) as process:
        while not is_up(health):
            if process.poll() is not None:
                causes = re.findall(r"\b\w+Error: .+|error: .+", log.read_text(errors="replace"))
                reason = redact(" ".join(causes[0].split())) if causes else explain_exit(process.returncode)
                raise EngineError(f"vLLM did not serve {model}: {reason[:300]}; its log is {log}")
            time.sleep(0.2)
        yield process


def free_port(host: str, port: int) -> int:
    """Return `port` if it is free, or any free one for 0. AimoError if it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as e:
            raise AimoError(f"--port {port} of {host}: {e.strerror}; take another, or 0 for any") from None
        return int(probe.getsockname()[1])


def is_up(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as response:
        return bool(response.status == 200)
    return False


@contextlib.contextmanager
def running(
    command: list[str], output: IO[str], keep: Collection[int] = ()
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command in a new session; every process below it ends with the block.

    They also end with this process, even if it is killed. Their output goes to `output`. `keep` holds
    descriptors, such as a lock's, that stay open until the last of these processes has ended.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", process_guard.__file__, *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        pass_fds=keep,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


# Asks the kernel to kill it with its parent, then replaces itself with the intended Python.
LAUNCHER = """\
#!/bin/sh
exec {python} -I -S -c '
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
os.execv(sys.argv[1], sys.argv[1:])' {python} "$@"
"""


@contextlib.contextmanager
def ending_with_this_thread() -> Iterator[None]:
    """Let the kernel kill what multiprocessing spawns in the block when the spawning thread ends.

    A thread ends with its process at the latest, so a killed process leaves nothing behind.
    """
    resource_tracker.ensure_running()  # it serves the whole process, and ends by itself
    python = os.fsdecode(spawn.get_executable())
    with tempfile.TemporaryDirectory(prefix="aimo-") as folder:
        launcher = Path(folder) / "python"
        launcher.write_text(LAUNCHER.format(python=shlex.quote(python)))
        launcher.chmod(stat.S_IRWXU)
        spawn.set_executable(str(launcher))
        try:
            yield
        finally:
            spawn.set_executable(python)


@contextlib.contextmanager
def stderr_to(path: Path | None) -> Iterator[None]:
    """Append the standard error of this process and those it starts to a file; for None, do nothing.

    A process started in the block keeps writing there: notices stay out of notebooks and can be read later.
    """
    if path is None:
        yield
        return
    with path.open("a") as file:
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stderr(file):
                yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


# Keys of a config.json that may hold the context length.
LENGTHS = [
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length",
    "max_target_positions", "max_sequence_length", "max_seq_length", "seq_len",
]  # fmt: skip
NUMBERS = [
    *LENGTHS, "head_dim", "hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
    "original_max_position_embeddings", "sliding_window",
]  # fmt: skip
# Kinds of rope scaling for which config.json already holds the extended length.
ALREADY_SCALED = ("default", "llama3", "su", "deepseek_yarn", "deepseek_llama_scaling")
RESERVED = 3 << 30  # bytes that vLLM's activations and CUDA graphs take on a GPU, roughly
BATCH = 8192  # tokens of one step: vLLM keeps them before it drops what the sliding window has passed


def language_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the language model's keys of a config.json, with Transformers' defaults for its type.

    AimoError if a value has a wrong type.
    """
    from transformers import AutoConfig

    whole = copy.deepcopy({**config})  # Transformers changes nested values
    nested, kind = whole.get("text_config"), whole.pop("model_type", "")
    text: dict[str, Any] = {**(nested if isinstance(nested, dict) else config)}
    try:
        text |= AutoConfig.for_model(kind, **whole).get_text_config().to_dict()
    except StrictDataclassError as e:
        raise AimoError(f"config.json: {one_line(e.__cause__ or e)}; {REMEDY}") from None
    except Exception:  # vLLM may know a type that Transformers does not
        pass
    for key in NUMBERS:
        if not isinstance(text.get(key), int | float | None):
            raise AimoError(f"config.json: {key} is {text[key]!r} and should be a number; {REMEDY}")
    dtypes = [text.get("dtype"), text.get("torch_dtype"), config.get("dtype"), config.get("torch_dtype")]
    return text | {"dtype": next(filter(None, dtypes), None)}


def rope_of(text: Mapping[str, Any]) -> dict[str, Any]:
    return text.get("rope_parameters") or text.get("rope_scaling") or {}


def context_limit(config: Mapping[str, Any]) -> int:
    """Return the longest context in tokens that a config.json allows, as vLLM 0.31 derives it.

    vLLM reaches it only with the `hf_overrides` of `engine_arguments`. AimoError if a value has a wrong type.
    """
    text, factor = language_model(config), 1.0
    try:
        lengths = [text[key] for key in LENGTHS if text.get(key)]
        limit, rope = text.get("model_max_length") or min(lengths, default=2048), rope_of(text)
        for scaling in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
            kind = scaling.get("rope_type") or scaling.get("type") or "default"
            if kind == "longrope":
                return int(text.get("original_max_position_embeddings") or limit)
            if kind == "yarn":
                original = scaling.get("original_max_position_embeddings") or limit
                limit = max(limit, scaling["factor"] * original)
            elif kind not in ALREADY_SCALED and "gemma3" not in text.get("model_type", ""):
                factor = scaling.get("factor") or 1.0  # the same for all kinds of layers
        return int(limit * factor)
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise AimoError(
            f"config.json: cannot read the length of the context ({one_line(e)}); {REMEDY}"
        ) from None


@dataclass(frozen=True)
class Plan:
    """What fits into memory beside a model's weights."""

    weights: int  # bytes on each GPU
    cache: int  # bytes of KV cache on each GPU
    context: int  # tokens of prompt and completion; 0 if there is no room
    kv_tokens: int  # tokens in the KV caches of all replicas together
    streams: int  # samples that run at the same time

    def __str__(self) -> str:
        weights = f"plan: {self.weights / 1e9:.1f} GB of weights"
        if not self.context:
            remedy = "take a smaller or quantised model, or more GPUs (vllm.tensor_parallel_size)"
            return f"{weights} leave no room for a KV cache on each GPU; {remedy}"
        return (
            f"{weights} and {self.cache / 1e9:.1f} GB of KV cache on each GPU, context {self.context:,} "
            f"tokens, KV cache of {self.kv_tokens:,}: {self.streams:,} streams at once"
        )


def plan_for_this_machine(model: str | Path, settings: Settings) -> Plan:
    """Return what fits into this machine's GPUs or, on a CPU, into vLLM's KV cache there.

    Imports vLLM. AimoError as in `make_plan`.
    """
    from vllm.platforms import current_platform

    config = read_json(Path(model) / "config.json", REMEDY)
    weights = sum(file.stat().st_size for file in Path(model).glob("*.safetensors"))
    if not current_platform.is_cuda():
        cache = int(os.environ["VLLM_CPU_KVCACHE_SPACE"]) << 30
        return make_plan(config, weights, [], settings, cache)
    gpus = range(current_platform.device_count())
    return make_plan(config, weights, [current_platform.get_device_total_memory(i) for i in gpus], settings)


def make_plan(
    config: Mapping[str, Any],
    weights: int,
    memory: Sequence[int],
    settings: Settings,
    cache: int | None = None,
) -> Plan:
    """Return what fits into GPUs of `memory` bytes each for a model of `weights` bytes with this config.json.

    For a CPU, `cache` gives the bytes of its KV cache. AimoError if `settings.vllm` wants more GPUs than
    there are, or the plan does not cover the model's attention.
    """
    arguments, shards, replicas = settings.vllm, 1, 1
    if cache is None:
        sizes = [f"{kind}_parallel_size" for kind in ("tensor", "pipeline", "data")]
        tensor, pipeline, replicas = (arguments.get(size, 1) for size in sizes)
        shards = tensor * pipeline
        if shards * replicas > len(memory):
            need = f"its parallel sizes need {shards * replicas} GPUs and there are {len(memory)}"
            raise AimoError(f"vllm: {need}; lower {', '.join(sizes[:2])} or {sizes[2]}")
        # vLLM pads the width of MXFP4 experts to a multiple of 256: gpt-oss-120b's 60.8 GiB take 64.4.
        if (config.get("quantization_config") or {}).get("quant_method") == "mxfp4":
            width = config["intermediate_size"]
            weights = weights * (-(-width // 256) * 256) // width
        cache = max(0, int(min(memory) * settings.gpu_memory) - weights // shards - RESERVED)

    # Bytes of a token's key and value in one layer.
    text = language_model(config)
    heads = text.get("num_attention_heads")
    if not heads or "kv_lora_rank" in text:
        raise AimoError("plan: none for an architecture without plain attention; vLLM measures it")
    value_bytes = 4 if (arguments.get("dtype") or text.get("dtype")) == "float32" else 2
    if arguments.get("kv_cache_dtype", "auto").startswith("fp8"):
        value_bytes = 1
    head_dim = text.get("head_dim") or text["hidden_size"] // heads
    per_token = 2 * (text.get("num_key_value_heads") or heads) * head_dim * value_bytes

    # How many tokens each layer keeps: those it attends to, and those of one step.
    seen = {"full_attention": inf, "sliding_attention": text.get("sliding_window") or inf}
    kinds = text.get("layer_types") or ["full_attention"] * text["num_hidden_layers"]
    if unknown := sorted(set(kinds) - seen.keys()):
        raise AimoError(f"plan: none for layers of type {', '.join(unknown)}; vLLM measures them")
    kept = [seen[kind] + (arguments.get("max_num_batched_tokens") or BATCH) for kind in kinds]

    def size(length: int) -> float:  # bytes of one stream
        return per_token / shards * sum(min(length, tokens) for tokens in kept)

    limit = context_limit(config)
    if arguments.get("max_model_len", -1) > 0:
        limit = arguments["max_model_len"]
    while size(limit) > cache and limit:
        limit = limit * 15 // 16  # vLLM finds the exact length
    kv_tokens = replicas * int(cache / size(limit) * limit) if limit else 0
    context = min(limit, settings.max_length or limit)
    streams = voting.count_streams(kv_tokens, context, settings) if context else 0
    return Plan(weights // shards, cache, context, kv_tokens, streams)
