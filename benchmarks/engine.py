"""The solver's tokens per second beside the bare engine's, and its questions per hour beside a fixed vote's.

    python benchmarks/engine.py [--model FOLDER] [--questions 40] [--samples 16] [--rounds 3] [--json FILE]
    python benchmarks/engine.py --gpu [--model FOLDER] [--streams 8 …] [--tokens 1024] [--json FILE]

The bare engine gets all requests of a question at once and returns whole texts; nothing is read while it
writes, stopped or voted. It is measured without seeds too. The solver gets the same prompts and seeds. All
ways answer one question after another, in turns, and the best round counts.

With `--gpu`, the engine alone with each set of arguments that may make gpt-oss faster on one GPU: its seconds
to start, to a first token, and tokens per second of so many streams at once. Without a model folder it is
gpt-oss-120b's width in two layers of random MXFP4 weights: ratios between the rows carry over, speeds do not.
"""

import asyncio
import json
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import public_models
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from aimo.config import ROOT
from aimo.data import sources
from aimo.inference import vllm_process
from aimo.inference.answers import Integer
from aimo.inference.engine import Engine
from aimo.inference.prompts import sample_seed
from aimo.inference.settings import resolve_settings
from aimo.inference.solver import solve_problem
from aimo.inference.voting import Policy


def bare(engine: Engine, problem: str, samples: int, seeded: bool = True) -> int:
    """All samples of a question at once, as whole texts; returns the tokens generated."""
    settings = replace(engine.settings, seeded=seeded)

    async def gather() -> int:
        prompt = engine.encode(problem)
        streams = (engine.sample(prompt, sample_seed(0, problem, i), settings) for i in range(samples))
        return sum(completion.tokens for completion in await asyncio.gather(*streams))

    return engine.run(gather())


def unseeded(engine: Engine, problem: str, samples: int) -> int:
    return bare(engine, problem, samples, seeded=False)


def streams(engine: Engine, problem: str, samples: int) -> int:
    """The solver with all samples at once and a vote that never ends early; returns the tokens generated."""
    never = Policy(in_flight=samples, max_error=0, futile_error=math.inf, overlong=math.inf)
    found = solve_problem(engine, problem, samples, Integer(0, 99999), policy=never)
    return sum(sample.tokens for sample in found.samples)


def voted(engine: Engine, problem: str, samples: int) -> int:
    """The solver with its own stop rules; returns the tokens generated."""
    return sum(sample.tokens for sample in solve_problem(engine, problem, samples, Integer(0, 99999)).samples)


# Each set of engine arguments is measured in a process of its own, which frees the GPU's memory.
FEW = {"max_num_seqs": 16, "max_cudagraph_capture_size": 32}
VARIANTS: dict[str, dict[str, Any]] = {
    "vLLM's own": {},
    "16 sequences, graphs up to 32": FEW,
    "16 sequences, Marlin experts": FEW | {"moe_backend": "marlin"},
    "16 sequences, interactivity": FEW | {"performance_mode": "interactivity"},
    "16 sequences, Marlin, interactivity": FEW
    | {"moe_backend": "marlin", "performance_mode": "interactivity"},
}


def measure(model: Path, more: dict[str, Any], streams: list[int], tokens: int) -> None:
    """Print, as JSON, an engine's seconds to start and the speed of so many streams of `tokens` tokens."""
    begun = time.perf_counter()
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    vllm_process.set_environment()
    settings = resolve_settings(model)
    arguments = vllm_process.engine_arguments(model, settings, 0) | {"skip_tokenizer_init": True}
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, detokenize=False, temperature=1.0)

    async def stream(llm: Any, name: str) -> float:
        sent, first = time.perf_counter(), 0.0
        prompt = {"prompt_token_ids": list(range(100, 356))}
        async for _ in llm.generate(prompt, params, name):
            first = first or time.perf_counter() - sent
        return first

    async def run() -> dict[str, Any]:
        llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments | {"max_model_len": 8192} | more))
        found: dict[str, Any] = {"start_s": time.perf_counter() - begun, "tokens_per_second": {}}
        await stream(llm, "warm")
        for count in streams:
            sent = time.perf_counter()
            firsts = await asyncio.gather(*(stream(llm, f"{count}-{i}") for i in range(count)))
            found["tokens_per_second"][count] = count * tokens / (time.perf_counter() - sent)
            found["first_token_s"] = max(firsts)
        llm.shutdown()
        return found

    print(json.dumps(asyncio.run(run())))


def compare_arguments(model: Path | None, streams: list[int], tokens: int, to: Path | None) -> None:
    """Measure `VARIANTS` one after the other and print a table."""
    table = Table("engine arguments", "start, s", "first token, s", *(f"tokens/s of {n}" for n in streams))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as made:
        if model is None:
            model = Path(made) / "gpt-oss"
            tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "tiny-base")
            public_models.make_model("openai/gpt-oss-120b", model, tokenizer, wide=True)
        experts = "expert" in (model / "config.json").read_text()
        for name, more in VARIANTS.items():
            if "moe_backend" in more and not experts:
                continue
            asked = ["--model", str(model), "--tokens", str(tokens), "--variant", json.dumps(more)]
            asked += [part for count in streams for part in ("--streams", str(count))]
            done = subprocess.run([sys.executable, __file__, *asked], capture_output=True, text=True)
            lines = (done.stdout or "").strip().splitlines()
            row: dict[str, Any] = {"arguments": name}
            if done.returncode:
                errors = [line for line in done.stderr.splitlines() if "Error" in line] or ["it was killed"]
                row["error"] = errors[-1].strip()[:300]
                table.add_row(name, row["error"])
            else:
                row |= json.loads(lines[-1])
                speeds = [f"{speed:,.0f}" for speed in row["tokens_per_second"].values()]
                table.add_row(name, f"{row['start_s']:.0f}", f"{row['first_token_s']:.2f}", *speeds)
                row["tokens_per_second"] = max(row["tokens_per_second"].values())
            rows.append(row)
    Console(width=110).print(table)
    if to:
        to.write_text(json.dumps({"variants": rows}, indent=2) + "\n")


def main(
    gpu: Annotated[bool, typer.Option(help="Compare engine arguments.")] = False,
    counts: Annotated[list[int] | None, typer.Option("--streams", help="At once; repeat.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Of a stream.")] = 1024,
    variant: Annotated[str | None, typer.Option(hidden=True)] = None,
    model: Annotated[Path | None, typer.Option()] = None,
    questions: Annotated[int, typer.Option(min=1)] = 40,
    samples: Annotated[int, typer.Option(min=1)] = 16,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Measure all three ways in each round, or engine arguments."""
    if variant is not None and model:
        return measure(model, json.loads(variant), counts or [8], tokens)
    if gpu:
        return compare_arguments(model, counts or [8, 12, 16], tokens, to)
    model = model or ROOT / "data" / "tiny-base"
    texts = [p.problem for p in sources.generate(questions, "heldout", 0)]
    ways = {
        "bare engine": bare,
        "without seeds": unseeded,
        "solver's streams": streams,
        "solver's vote": voted,
    }
    best: dict[str, dict[str, Any]] = {}
    with Engine(model) as engine:
        bare(engine, texts[0], samples)  # vLLM compiles during the first requests
        for turn in range(rounds):
            for name, way in list(ways.items())[:: 1 if turn % 2 else -1]:
                begun = time.perf_counter()
                tokens = sum(way(engine, text, samples) for text in texts)
                seconds = time.perf_counter() - begun
                found = {
                    "way": name,
                    "tokens_per_second": tokens / seconds,
                    "questions_per_hour": 3600 * questions / seconds,
                }
                best[name] = max(best.get(name, found), found, key=lambda f: f["questions_per_hour"])
    table = Table("way", "tokens per second", "of bare", "questions per hour", "of fixed vote")
    peer = best["bare engine"]
    for name in ways:
        row = best[name]
        cells = []
        for key in ("tokens_per_second", "questions_per_hour"):
            row[f"{key}_ratio"] = row[key] / peer[key]
            cells += [f"{row[key]:,.0f}", f"{row[f'{key}_ratio']:.2f}"]
        table.add_row(name, *cells)
    Console(width=110).print(table)
    print(f"{questions} questions of {samples} samples, {rounds} rounds, {model.name}.")
    print("The bare engine's whole texts are the fixed vote.")
    if to:
        to.write_text(json.dumps({"ways": [best[name] for name in ways]}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
