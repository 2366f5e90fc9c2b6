"""Benchmarks that lighteval asks and scores: GPQA Diamond and LiveCodeBench, with our engine's settings.

lighteval is no dependency: it is called as a command. Version 0.13.0 reads the command; no benchmark has been
run with it. Out of scope: intervals, because lighteval gives shares and their standard errors.
"""

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

from aimo.errors import AimoError, EngineError
from aimo.evaluation.benchmarks import Benchmark
from aimo.inference.settings import Settings
from aimo.inference.storage import read_json

TAKES = (
    "dtype", "tensor_parallel_size", "data_parallel_size", "pipeline_parallel_size", "enable_prefix_caching",
    "max_num_seqs", "max_num_batched_tokens", "quantization", "load_format", "trust_remote_code",
)  # fmt: skip
"""vLLM's arguments that lighteval passes on; it refuses others."""


def command(model: Path, benchmark: Benchmark, settings: Settings, folder: Path, seed: int) -> list[str]:
    """lighteval's command for a benchmark, with the settings that an engine of ours would have.

    AimoError for an argument of vLLM that lighteval does not take.
    """
    if others := [key for key in settings.vllm if key not in TAKES]:
        raise AimoError(
            f"inference.vllm.{others[0]}: lighteval, which asks gpqa and lcb, takes only {', '.join(TAKES)}; "
            "leave it out, or leave them out"
        )
    sampled = {
        "max_new_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
    }
    generation = ",".join(f"{key}:{value}" for key, value in sampled.items())
    arguments = {
        "model_name": model,
        "max_model_length": settings.max_length or settings.max_tokens,
        "gpu_memory_utilization": settings.gpu_memory,
        "seed": seed,
        **settings.vllm,
        "generation_parameters": f"{{{generation}}}",
    }
    joined = ",".join(f"{key}={value}" for key, value in arguments.items())
    return ["lighteval", "vllm", joined, str(benchmark.task), "--output-dir", str(folder)]


def require(commands: list[list[str]]) -> None:
    """Refuse to begin where lighteval is missing. The error holds the first command it would run."""
    if commands and not shutil.which("lighteval"):
        raise AimoError(
            "gpqa and lcb need lighteval, which is not installed; install it apart (`uv tool install "
            f"'lighteval[vllm]'`), or leave them out. It would run: {shlex.join(commands[0])}"
        )


def run(command: list[str], folder: Path) -> dict[str, Any]:
    """lighteval's figures of one task. EngineError when it fails or leaves no results."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(command, check=False)
    results = sorted(folder.glob("results/**/results_*.json"), key=lambda path: path.stat().st_mtime)
    if done.returncode or not results:
        raise EngineError(
            f"lighteval ended with {done.returncode}; what it printed is above, its files in {folder}"
        )
    found = read_json(results[-1], "run the same command again")["results"]
    task = command[3]
    named = [figures for name, figures in found.items() if task in name]
    return {"lighteval": dict(*named[:1]), "command": shlex.join(command)}
