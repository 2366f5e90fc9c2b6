"""vLLM 0.31's own configuration of profiles, as on GPUs that are not there, in JSON.

    python tests/fake_cuda.py PROFILE@GPU …

The platform is a fake; the engine arguments are the package's, and all that is printed is vLLM's choice.
"""

import importlib.machinery
import json
import os
import sys
import tempfile
import types
from pathlib import Path
from unittest import mock

os.environ |= {"VLLM_LOGGING_LEVEL": "CRITICAL", "VLLM_NO_USAGE_STATS": "1", "VLLM_PLUGINS": ""}

ROOT = Path(__file__).parents[1]
GPUS = {  # compute capability, name, bytes
    "H100": ((9, 0), "NVIDIA H100 80GB HBM3", 85_029_158_912),
    "RTX PRO 6000": ((12, 0), "NVIDIA RTX PRO 6000 Blackwell", 102_000_000_000),
    "4 x L4": ((8, 9), "NVIDIA L4", 23_700_000_000),
    "RTX 4090": ((8, 9), "NVIDIA GeForce RTX 4090", 25_300_000_000),
    "A100": ((8, 0), "NVIDIA A100-SXM4-80GB", 84_974_239_744),
    "T4": ((7, 5), "Tesla T4", 15_828_320_256),
}
FLASHINFER = ("decode", "prefill", "utils", "cascade", "autotuner", "comm")
capability = name = memory = None


def pretend() -> type:
    """Give vLLM a CUDA platform, without the compiled modules of its CUDA build."""
    for missing in ("_C_stable_libtorch", "_moe_C_stable_libtorch", "_qutlass_C"):
        sys.modules[f"vllm.{missing}"] = types.ModuleType(missing)
    attention = mock.MagicMock()
    attention.is_fa_version_supported = lambda v: (
        (v == 3 and capability[0] == 9) or (v == 2 and capability[0] >= 8)
    )
    sys.modules["vllm.vllm_flash_attn"] = sys.modules["vllm.vllm_flash_attn.flash_attn_interface"] = attention

    for module in ("flashinfer", *(f"flashinfer.{part}" for part in FLASHINFER)):  # the CUDA build brings it
        sys.modules[module] = mock.MagicMock(__spec__=importlib.machinery.ModuleSpec(module, None))

    import torch
    import vllm.platforms
    import vllm.platforms.cuda
    from vllm.platforms.interface import DeviceCapability

    library = torch.library.Library("_C", "FRAGMENT")
    for operator, least in (
        ("cutlass_scaled_mm_supports_block_fp8", 90),
        ("cutlass_scaled_mm_supports_fp8", 89),
        ("cutlass_group_gemm_supported", 90),
    ):
        library.define(f"{operator}(int capability) -> bool")
        library.impl(operator, lambda value, least=least: value >= least, "CompositeExplicitAutograd")

    class Fake(vllm.platforms.cuda.CudaPlatformBase):
        kept = library  # a library is gone with its last reference
        get_device_capability = classmethod(lambda cls, device_id=0: DeviceCapability(*capability))
        get_device_name = classmethod(lambda cls, device_id=0: name)
        get_device_total_memory = classmethod(lambda cls, device_id=0: memory)
        is_fully_connected = classmethod(lambda cls, ids: False)
        device_count = classmethod(lambda cls: 4)

    vllm.platforms._current_platform = Fake()
    return Fake


def row(profile, config, fake):
    """Return what vLLM would run a profile's inference with."""
    import torch
    import vllm.v1.attention.backends.fa_utils as flash
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms.interface import DeviceCapability
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.attention.selector import AttentionSelectorConfig

    from aimo.inference import vllm_process
    from aimo.inference.settings import resolve_settings

    flash.is_flash_attn_varlen_func_available = lambda: True
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        settings = resolve_settings(folder, profile.inference.written)
        os.environ["CUDA_HOME"] = "/nowhere"
        with mock.patch("shutil.which", return_value=None):  # no nvcc
            arguments = vllm_process.engine_arguments(Path(folder), settings, 0)
        arguments |= {"skip_tokenizer_init": True}
        planned = AsyncEngineArgs(**arguments).create_engine_config(UsageContext.OPENAI_API_SERVER)
    graphs, scheduler = planned.compilation_config, planned.scheduler_config
    backend = planned.attention_config.backend
    if backend is None:
        dtype, heads = planned.model_config.dtype, config["num_attention_heads"]
        wanted = AttentionSelectorConfig(
            head_size=config["head_dim"],
            dtype=dtype if dtype in (torch.float16, torch.bfloat16) else torch.bfloat16,
            kv_cache_dtype=planned.cache_config.cache_dtype,
            block_size=None,
            has_sink=config["model_type"] == "gpt_oss",
        )
        with set_current_vllm_config(planned):
            valid, _ = fake.get_valid_backends(DeviceCapability(*capability), wanted, heads)
        backend = valid[0].backend
    return {
        "sequences": scheduler.max_num_seqs,
        "batch": scheduler.max_num_batched_tokens,
        "graphs": graphs.max_cudagraph_capture_size,
        "backend": backend.name,
        "cache": planned.cache_config.cache_dtype,
        "dtype": str(planned.model_config.dtype).removeprefix("torch."),
        "quantisation": planned.model_config.quantization,
    }


def main() -> None:
    """Print an object for each `profile@machine` of the command line."""
    global capability, name, memory
    sys.path.insert(0, str(ROOT / "benchmarks"))
    out, sys.stdout = sys.stdout, sys.stderr
    fake = pretend()
    from public_models import CONFIGS

    from aimo import config

    found = {}
    for pair in sys.argv[1:]:
        profile, machine = pair.split("@")
        capability, name, memory = GPUS[machine]
        loaded = config.load(profile)
        found[pair] = row(loaded, CONFIGS[loaded.model.base], fake)
    print(json.dumps(found), file=out)


if __name__ == "__main__":
    main()
