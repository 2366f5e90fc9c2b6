"""The public models of the profiles as their config.json describes them, for checks that download nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM


def dense(
    kind: str, layers: int, hidden: int, intermediate: int, heads: int, shared: int, **more: Any
) -> Any:
    """Return the config.json of a Qwen model; `shared` is its number of key-value heads."""
    return {
        "architectures": [{"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[kind]],
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "head_dim": 128,
        "vocab_size": 151936,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    } | more


def gpt_oss(layers: int, experts: int) -> Any:
    """Return the config.json of gpt-oss, whose experts are in MXFP4."""
    unconverted = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    yarn = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "num_hidden_layers": layers,
        "layer_types": ["sliding_attention", "full_attention"] * (layers // 2),
        "sliding_window": 128,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": experts,
        "num_experts_per_tok": 4,
        "experts_per_token": 4,
        "vocab_size": 201088,
        "max_position_embeddings": 131072,
        "initial_context_length": 4096,
        "rope_theta": 150000,
        "rope_scaling": yarn | {"original_max_position_embeddings": 4096},
        "attention_bias": True,
        "hidden_act": "silu",
        "swiglu_limit": 7.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "eos_token_id": 200002,
        "pad_token_id": 199999,
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": unconverted},
    }


SMALL = (28, 1536, 8960, 12, 2)
SEVEN = (28, 3584, 18944, 28, 4)
FOURTEEN = (48, 5120, 13824, 40, 8)
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
EXPERTS = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-1.5B-Instruct": dense(
        "qwen2", *SMALL, max_position_embeddings=32768, tie_word_embeddings=True
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": dense(
        "qwen2", *SMALL, max_position_embeddings=131072, rope_theta=1e4
    ),
    "Qwen/Qwen2.5-Math-7B": dense(
        "qwen2", *SEVEN, max_position_embeddings=4096, rope_theta=1e4, vocab_size=152064
    ),
    "open-r1/Qwen2.5-Math-7B-RoPE-300k": dense(
        "qwen2", *SEVEN, max_position_embeddings=32768, rope_theta=3e5, vocab_size=152064
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": dense(
        "qwen2", *FOURTEEN, max_position_embeddings=131072, vocab_size=152064
    ),
    "casperhansen/deepseek-r1-distill-qwen-14b-awq": dense(
        "qwen2", *FOURTEEN, max_position_embeddings=131072, vocab_size=152064, quantization_config=AWQ
    )
    | {"torch_dtype": "float16"},
    "Qwen/Qwen3-1.7B": dense(
        "qwen3", 28, 2048, 6144, 16, 8, max_position_embeddings=40960, tie_word_embeddings=True
    ),
    "unsloth/Qwen3-1.7B-Base": dense(
        "qwen3", 28, 2048, 6144, 16, 8, max_position_embeddings=32768, tie_word_embeddings=True
    ),
    "Qwen/Qwen3-1.7B-Base": dense(
        "qwen3", 28, 2048, 6144, 16, 8, max_position_embeddings=32768, tie_word_embeddings=True
    ),
    "unsloth/Qwen3-4B-Base": dense(
        "qwen3", 36, 2560, 9728, 32, 8, max_position_embeddings=32768, tie_word_embeddings=True
    ),
    "Qwen/Qwen3-30B-A3B-Thinking-2507": dense(
        "qwen3", 48, 2048, 6144, 32, 4, max_position_embeddings=262144, rope_theta=1e7
    )
    | EXPERTS,
    "openai/gpt-oss-20b": gpt_oss(24, 32),
    "openai/gpt-oss-120b": gpt_oss(36, 128),
}


def make_model(base: str, folder: Path, tokenizer: Any, wide: bool, layers: int = 2) -> None:
    """Write random weights of a public model's architecture into a folder, with a tokenizer.

    `wide` keeps its width and heads; else all are narrow, for a CPU. gpt-oss is in MXFP4 and AWQ
    models in four bits either way.
    """
    config = CONFIGS[base] | {"num_hidden_layers": layers, "eos_token_id": tokenizer.eos_token_id}
    if "quantization_config" not in config:
        config["vocab_size"] = 32768  # still more than the tokenizer has, as in the public models
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:layers]
    if not wide:
        config |= {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
        config |= {"num_key_value_heads": 2, "head_dim": 32, "vocab_size": 1024}
        if "quantization_config" not in config:
            config["torch_dtype"] = "float32"
        config |= {key: 8 for key in ("num_experts", "num_local_experts") if key in config}
        config |= {"moe_intermediate_size": 64} if "num_experts" in config else {}
        if config["model_type"] == "gpt_oss":
            config["vocab_size"] = 201088  # Harmony's token ids
    torch.manual_seed(0)
    if "quantization_config" in config:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        tensors = mxfp4(config) if config["model_type"] == "gpt_oss" else awq(config)
        save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
    else:
        described = AutoConfig.for_model(**config)
        dtype = torch.bfloat16 if wide else torch.float32
        AutoModelForCausalLM.from_config(described, dtype=dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def body(config: dict[str, Any], dtype: torch.dtype, biased: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what quantised models keep unquantised; `biased` names the projections with biases."""
    hidden, vocab, size = config["hidden_size"], config["vocab_size"], config["head_dim"]
    for name in "model.embed_tokens", "lm_head":
        yield f"{name}.weight", torch.randn(vocab, hidden, dtype=dtype) * 0.02
    yield "model.norm.weight", torch.ones(hidden, dtype=dtype)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for name in "input_layernorm", "post_attention_layernorm":
            yield f"{at}.{name}.weight", torch.ones(hidden, dtype=dtype)
        for name in biased:
            heads = config["num_attention_heads" if name == "q" else "num_key_value_heads"]
            width = hidden if name == "o" else heads * size
            yield f"{at}.self_attn.{name}_proj.bias", torch.zeros(width, dtype=dtype)


def mxfp4(config: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a gpt-oss checkpoint: experts as blocks of 32 values, two to a byte, with a scale."""
    hidden, inner, experts = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    heads, shared, size = (config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    dtype = torch.bfloat16
    yield from body(config, dtype, "qkvo")
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for name, rows, columns in (
            ("q", heads * size, hidden),
            ("k", shared * size, hidden),
            ("v", shared * size, hidden),
            ("o", hidden, heads * size),
        ):
            yield f"{at}.self_attn.{name}_proj.weight", torch.randn(rows, columns, dtype=dtype) * 0.02
        yield f"{at}.self_attn.sinks", torch.zeros(heads, dtype=dtype)
        yield f"{at}.mlp.router.weight", torch.randn(experts, hidden, dtype=dtype) * 0.02
        yield f"{at}.mlp.router.bias", torch.zeros(experts, dtype=dtype)
        for name, rows, columns in ("gate_up", 2 * inner, hidden), ("down", hidden, inner):
            scales = torch.full((experts, rows, columns // 32), 121, dtype=torch.uint8)  # 2 ** (121 - 127)
            blocks = torch.randint(0, 256, (*scales.shape, 16), dtype=torch.uint8)
            yield f"{at}.mlp.experts.{name}_proj_blocks", blocks
            yield f"{at}.mlp.experts.{name}_proj_scales", scales
            yield f"{at}.mlp.experts.{name}_proj_bias", torch.zeros(experts, rows, dtype=dtype)


def awq(config: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield an AWQ checkpoint: eight values of four bits to an int32, a scale for 128 inputs."""
    hidden, inner, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    group = config["quantization_config"]["group_size"]
    wide, narrow = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    yield from body(config, torch.float16, "qkv")
    shapes = {
        "self_attn.q": (hidden, wide),
        "self_attn.k": (hidden, narrow),
        "self_attn.v": (hidden, narrow),
        "self_attn.o": (wide, hidden),
        "mlp.gate": (hidden, inner),
        "mlp.up": (hidden, inner),
        "mlp.down": (inner, hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        for name, (rows, columns) in shapes.items():
            at = f"model.layers.{layer}.{name}_proj"
            bits, packed = torch.iinfo(torch.int32), (rows, columns // 8)
            yield f"{at}.qweight", torch.randint(bits.min, bits.max, packed, dtype=torch.int32)
            yield f"{at}.qzeros", torch.full((rows // group, columns // 8), 0x77777777, dtype=torch.int32)
            yield f"{at}.scales", torch.full((rows // group, columns), 0.002, dtype=torch.float16)
