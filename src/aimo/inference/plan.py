"""What fits into a GPU, worked out before an engine loads: weights, KV cache, context and streams.

vLLM measures the same once it has loaded; a plan takes a millisecond. There is none for latent and linear
attention (DeepSeek-V3, Qwen3-Next).
"""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from aimo.inference import voting
from aimo.inference.errors import AimoError, one_line
from aimo.inference.model_folder import REMEDY
from aimo.inference.settings import Settings
from aimo.inference.storage import read_json

# Keys in which a config.json says how long the context is.
LENGTHS = [
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length",
    "max_target_positions", "max_sequence_length", "max_seq_length", "seq_len",
]  # fmt: skip
NUMBERS = [
    *LENGTHS, "head_dim", "hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
    "original_max_position_embeddings", "sliding_window",
]  # fmt: skip
# Kinds of rope scaling whose config.json says the extended length.
ALREADY_SCALED = ("default", "llama3", "su", "deepseek_yarn", "deepseek_llama_scaling")
RESERVED = 3 << 30  # bytes of a GPU, about, for vLLM's activations and CUDA graphs
BATCH = 8192  # tokens of one step: vLLM keeps them until it drops what a sliding window has left behind


@dataclass(frozen=True)
class Plan:
    """What fits."""

    weights: int  # bytes on each GPU
    cache: int  # bytes of KV cache on each GPU
    context: int  # tokens of prompt and completion; 0 when there is no room for any
    kv_tokens: int  # tokens in the KV cache, of all replicas together
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
    """Return what fits into this machine's GPUs; on a CPU, into the cache that vLLM takes there.

    Imports vLLM. AimoError as `make_plan`.
    """
    from vllm.platforms import current_platform

    config = read_json(Path(model) / "config.json", REMEDY)
    weights = sum(file.stat().st_size for file in Path(model).glob("*.safetensors"))
    if not current_platform.is_cuda():
        return divide(config, weights, int(os.environ["VLLM_CPU_KVCACHE_SPACE"]) << 30, settings)
    gpus = range(current_platform.device_count())
    return make_plan(config, weights, [current_platform.get_device_total_memory(i) for i in gpus], settings)


def make_plan(config: Mapping[str, Any], weights: int, memory: Sequence[int], settings: Settings) -> Plan:
    """Return what fits into GPUs of `memory` bytes each, of a model of `weights` bytes with this config.json.

    AimoError when there are fewer GPUs than `settings.vllm` wants, or the attention is out of scope.
    """
    sizes = [f"{kind}_parallel_size" for kind in ("tensor", "pipeline", "data")]
    tensor, pipeline, replicas = (settings.vllm.get(size, 1) for size in sizes)
    shards = tensor * pipeline
    if shards * replicas > len(memory):
        need = f"its parallel sizes need {shards * replicas} GPUs and there are {len(memory)}"
        raise AimoError(f"vllm: {need}; lower {', '.join(sizes[:2])} or {sizes[2]}")
    # vLLM pads the width of MXFP4 experts to a multiple of 256: gpt-oss-120b's file of 60.8 GiB takes 64.4.
    if (config.get("quantization_config") or {}).get("quant_method") == "mxfp4":
        weights = weights * (-(-config["intermediate_size"] // 256) * 256) // config["intermediate_size"]
    cache = int(min(memory) * settings.gpu_memory) - weights // shards - RESERVED
    return divide(config, weights, max(0, cache), settings, shards, replicas)


def divide(
    config: Mapping[str, Any],
    weights: int,
    cache: int,
    settings: Settings,
    shards: int = 1,
    replicas: int = 1,
) -> Plan:
    """Return how `cache` bytes of KV cache on each GPU are divided. AimoError as `make_plan`."""
    config, arguments = language_model(config), settings.vllm
    heads = config.get("num_attention_heads")
    if not heads or "kv_lora_rank" in config:
        raise AimoError("plan: none for an architecture without plain attention; vLLM measures it")
    # Bytes of a token's key and value in one layer.
    value_bytes = 4 if (arguments.get("dtype") or config.get("dtype")) == "float32" else 2
    if arguments.get("kv_cache_dtype", "auto").startswith("fp8"):
        value_bytes = 1
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    per_token = 2 * (config.get("num_key_value_heads") or heads) * head_dim * value_bytes
    # How many tokens each layer keeps: those it looks back at, and those of one step.
    seen = {"full_attention": inf, "sliding_attention": config.get("sliding_window") or inf}
    kinds = config.get("layer_types") or ["full_attention"] * config["num_hidden_layers"]
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


def language_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config.json says of the language model, with the defaults of its kind.

    AimoError for a value of the wrong type.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    whole = copy.deepcopy({**config})  # Transformers adds to what is nested
    nested, kind = whole.get("text_config"), whole.pop("model_type", "")
    text: dict[str, Any] = {**(nested if isinstance(nested, dict) else config)}
    try:
        text |= AutoConfig.for_model(kind, **whole).get_text_config().to_dict()
    except StrictDataclassError as e:
        raise AimoError(f"config.json: {one_line(e.__cause__ or e)}; {REMEDY}") from None
    except Exception:  # vLLM may know a kind of model that Transformers does not
        pass
    for key in NUMBERS:
        if not isinstance(text.get(key), int | float | None):
            raise AimoError(f"config.json: {key} is {text[key]!r} and should be a number; {REMEDY}")
    dtypes = [text.get("dtype"), text.get("torch_dtype"), config.get("dtype"), config.get("torch_dtype")]
    return text | {"dtype": next(filter(None, dtypes), None)}


def context_limit(text: Mapping[str, Any]) -> int:
    """Return the longest context in tokens that a `language_model` allows, as vLLM 0.31 derives it.

    vLLM needs `yarn_overrides` for it. AimoError for a rope scaling that says nothing.
    """
    lengths = [text[key] for key in LENGTHS if text.get(key)]
    limit, factor = text.get("model_max_length") or min(lengths, default=2048), 1.0
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    try:
        for scaling in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
            kind = scaling.get("rope_type") or scaling.get("type") or "default"
            if kind == "longrope":
                return int(text.get("original_max_position_embeddings") or limit)
            if kind == "yarn":
                original = scaling.get("original_max_position_embeddings") or limit
                limit = max(limit, scaling["factor"] * original)
            elif kind not in ALREADY_SCALED and "gemma3" not in text.get("model_type", ""):
                factor = scaling.get("factor") or 1.0  # one for all kinds of layers
        return int(limit * factor)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise AimoError(f"config.json: cannot read the rope scaling {rope!r}; {REMEDY}") from None


def position_limit(model: Path) -> int:
    """Return the longest context in tokens that a model folder's config.json allows."""
    return context_limit(language_model(read_json(model / "config.json", REMEDY)))


def yarn_overrides(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return vLLM's `hf_overrides` of a config.json that gives YaRN a factor, and not the length it leads to.

    vLLM 0.31 takes `max_position_embeddings` for that length, and would not go beyond the original one.
    """
    text = language_model(config)
    limit, rope = context_limit(text), text.get("rope_parameters") or text.get("rope_scaling") or {}
    if "yarn" not in rope.values() or limit == text.get("max_position_embeddings"):
        return {}
    longer = {"max_position_embeddings": limit}
    return {"text_config": longer} if "text_config" in config else longer
