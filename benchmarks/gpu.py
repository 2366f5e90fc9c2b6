"""What only a GPU can show, in ten minutes: training, generation, merging, answering, each in a process.

    python benchmarks/gpu.py [--only NAME …] [--minutes 10] [--run-dir FOLDER] [--json FILE]

What most users need comes first: SFT and GRPO on one GPU, the solver, the kernel; profiles and several
processes come last. Nothing is downloaded: profiles run on random weights of their model's architecture, its
width and heads in two layers, with a tiny model's tokenizer. What a machine lacks is a row with the reason; a
setting that it cannot run is replaced and named. Without a GPU the same commands run on narrow models. A
check that failed beside others runs again alone. The page is written whatever happens; exits with 1 when a
check failed.
"""

import contextlib
import functools
import importlib.util
import itertools
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer
from public_models import CONFIGS, make_model
from rich.progress import Progress

from aimo import config
from aimo.config import ROOT, RUNS, Profile
from aimo.config.profile import TRAINED
from aimo.inference import storage
from aimo.inference.answers import Integer
from aimo.run import machine, runs

TINY, TOOLS = ROOT / "data" / "tiny-base", ROOT / "data" / "tiny-tools"
AIMO = str(Path(sys.executable).with_name("aimo"))
PROBLEM = "What area of a 7 by 12 wall is not covered by a 4 by 3 door?"
LEAST_S = 20  # a check that would get less time does not begin
FAIR_S = 120  # one that is cut off with less is not judged
AGAIN_S = 60  # and a failed one with less does not run again
# What the tokenizer of a public model would tell.
PUBLIC_TAGS = (
    "inference.tags={think_start: <think>, think_end: </think>, answer_start: '\\boxed{', answer_end: '}'}"
)
SHORT = [
    "data.sft={source: builtin, rows: 64}",
    "data.grpo={source: builtin, rows: 64, test_split: 0.1}",
    "data.heldout={source: builtin, split: heldout, rows: 8}",
    "data.decontaminate=[]",
    "prompt.eos_token=null",  # the tiny base's tokenizer has its own
    *(f"{stage}.max_steps=3" for stage in ("sft", "grpo", "opd")),
    *(
        f"{stage}.max_{part}"
        for stage in ("grpo", "opd")
        for part in ("prompt_length=700", "completion_length=32")
    ),
]
SMALL = ["model.max_length=1024", "grpo.prompts_per_step=2", "grpo.num_generations=4"]
SMALL += ["sft.batch_size=2", "opd.batch_size=2"]
SMALL += [f"{stage}.gradient_accumulation_steps=1" for stage in ("sft", "grpo", "opd")]
# A checkpoint of all weights in float32 has 12 bytes for each: 8 GB for two layers of a 7B model.
UNSAVED = [f'{stage}.trl.save_strategy="no"' for stage in TRAINED]
# Keys with values that a CPU does not run, or not with all weights, and the value that takes their place.
GPU_ONLY: dict[str, tuple[list[Any], str]] = {
    "model.load_in_4bit": ([True], "false"),
    "model.dtype": (["float16"], "auto"),
    **{f"{s}.optimizer": (["adamw_8bit", "paged_adamw_8bit"], "adamw_torch") for s in ("sft", "grpo")},
    **{f"{s}.generation": (["vllm"], "transformers") for s in ("grpo", "opd")},
}
# Keys with a value that needs a package, and the value that takes its place where that is missing.
PACKAGES = {
    "model.attention": ("flash_attention_2", "flash_attn", "sdpa"),
    "sft.use_liger_kernel": (True, "liger_kernel", "false"),
}


@dataclass(frozen=True)
class Here:
    """The machine: its GPUs, the memory of the smallest in GiB, and the oldest's compute capability."""

    gpus: int
    gib: float = 0.0
    capability: float = 9.0

    @property
    def jobs(self) -> int:
        """How many checks that train run at a time."""
        return (4 if self.gib > 70 else 1) if self.gpus else max(1, len(os.sched_getaffinity(0)) // 2)


@dataclass
class Check:
    """A row of the page."""

    name: str
    commands: list[list[str]]
    lacks: str = ""  # why this machine cannot run it
    base: str = ""  # the public model whose architecture it runs on
    profile: Profile | None = None  # whose rows it trains on
    alone: bool = True  # it measures, or an engine of vLLM watches the GPU's memory
    hint: str = ""  # what to try when it fails
    note: str = ""
    # Returns the figures of what it left; raises where something is missing.
    look: Callable[[], dict[str, Any]] = dict
    state: str = "skipped"
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)


def look() -> Here:
    """Return this machine. Starts no CUDA context, whose memory the checks would lack."""
    if not machine.computes_on_gpu():
        return Here(0)
    asked = machine.nvidia_smi("--query-gpu=memory.total,compute_cap", "--format=csv,noheader,nounits") or ""
    found = [tuple(map(float, line.split(","))) for line in asked.splitlines()]
    return Here(len(found), min(memory for memory, _ in found) / 1024, min(c for _, c in found))


# The checks


def first(work: Path, here: Here) -> Iterator[Check]:
    """SFT and GRPO with Unsloth and with vLLM, the solver, the kernel, and training beside plain TRL."""
    yield train(work, "unsloth-bf16", [*numbers("unsloth", "bf16")], bfloat16(here))
    yield sampled_by_vllm(work, here, "transformers")
    yield sampled_by_vllm(work, here, "unsloth")
    speed = [sys.executable, str(Path(__file__).with_name("engine.py")), "--questions", "10", "--rounds", "1"]
    figures = work / "solver-speed" / "figures.json"
    hint = "run `aimo doctor`; --vllm enforce_eager=true tells whether CUDA graphs are at fault"
    look = functools.partial(rates, figures, "ways", "way")
    yield Check("solver-speed", [[*speed, "--json", str(figures)]], look=look, hint=hint)
    folder = work / "submission-kernel"
    parameters = {"competition": "aimo3", "model": TINY, "test_csv": "test.csv", "time_limit_s": 3000}
    command = [sys.executable, "-m", "papermill", "aimo-submission.ipynb", "out.ipynb"]
    command += ["--cwd", str(folder), "-k", "python3", "--no-progress-bar"]
    command += [part for key, value in parameters.items() for part in ("-p", key, str(value))]
    yield Check(
        "submission-kernel",
        [script("kernel", folder), command],
        look=functools.partial(answers, folder),
        hint="open out.ipynb's last cell in the log; `aimo solve` alone tells whether the engine is at fault",
    )
    base = "unsloth/Qwen3-1.7B-Base" if here.gpus else ""
    settings = [f"model.base={model_folder(work, base) if base else TINY}", "model.dtype=auto"]
    settings += ["sft.max_steps=12", "grpo.max_steps=4"]
    file = work / "beside-plain-trl" / "beside.json"
    command = [sys.executable, str(Path(__file__).with_name("training.py")), "--rounds", "1"]
    command += ["--json", str(file), *options(settings)]
    look = functools.partial(beside, file)
    yield Check("beside-plain-trl", [command], base=base, look=look, hint="--set model.backend=transformers")


def features(work: Path, here: Here) -> Iterator[Check]:
    """An adapter, DPO, OPD, tools, a stage that resumes, a server, an engine that dies; gpt-oss and AWQ."""
    plain = numbers("transformers", "bf16") if here.capability >= 8 else numbers("transformers", "fp16")
    check = train(work, "adapter", [*plain, "grpo=null"])
    adapter = str(work / "adapter" / "sft" / "trained")
    number = "bfloat16" if here.capability >= 8 else "float16"  # the base is stored in float32
    asked = ["--adapter", adapter, "--vllm", f"dtype={number}", PROBLEM]
    check.commands.append([AIMO, "solve", "--model", str(TINY), *asked])
    check.alone, check.hint = True, "serve the merged model instead: `aimo solve --model RUN/sft/model`"
    yield check
    check = train(work, "resume", [*plain, "grpo=null", "sft.save_steps=1"])
    check.commands = [*check.commands, script("forget", work / "resume"), *check.commands]
    yield check
    pairs = "dpo={learning_rate: 1.0e-5, problems: 20, max_steps: 3}"
    yield train(work, "dpo", [*plain, "sft=null", "grpo.max_steps=1", pairs], alone=True)
    taught = f"opd={{teacher: {TINY}, learning_rate: 1.0e-4, max_steps: 3, batch_size: 8}}"
    yield train(work, "opd", [*plain, "sft=null", "grpo=null", taught], alone=True)
    tools = [*options(["inference.tools=1.0", "inference.samples=4"]), "What is 2**30 % 1007?"]
    yield Check(
        "tools", [[AIMO, "solve", "--model", str(TOOLS), *tools]], hint="run `aimo doctor`: its sandbox"
    )
    for name in "serve", "respawn":
        hint = "see vllm.log; nvidia-smi tells whether a process still holds the memory"
        yield Check(name, [script(name, work / name)], hint=hint)
    speed = Path(__file__).with_name("engine.py")
    for name, base in {
        "gpt-oss": "openai/gpt-oss-120b",
        "awq": "casperhansen/deepseek-r1-distill-qwen-14b-awq",
    }.items():
        lacks = "" if here.gpus or name == "awq" else "vLLM has no MXFP4 experts for this CPU"
        model, figures = model_folder(work, base), work / name / "figures.json"
        command = [sys.executable, str(speed), "--gpu", "--model", str(model), "--json", str(figures)]
        command += [] if here.gpus else ["--tokens", "32", "--streams", "2"]
        look = functools.partial(rates, figures, "variants", "arguments")
        hint = "take the next row of the table that started: its arguments go under inference.vllm"
        yield Check(name, [command], lacks, base, look=look, hint=hint)


def backends(work: Path, here: Here) -> Iterator[Check]:
    """SFT and GRPO on the tiny base with each backend in each number type; a merged model."""
    on_gpu = "" if here.gpus else "needs a GPU"
    lacks = {"bf16": bfloat16(here), "fp16": on_gpu, "4bit": on_gpu, "all-weights": ""}
    for backend, number in itertools.product(("transformers", "unsloth"), lacks):
        if (backend, number) != ("unsloth", "bf16"):
            yield train(work, f"{backend}-{number}", numbers(backend, number), lacks[number])
    check = train(
        work, "merge", [*SHORT, *SMALL, "model.backend=unsloth", "model.dtype=float32", "grpo=null"]
    )
    check.commands.append(script("compare", work / "merge"))
    yield check


def profiles(work: Path, here: Here) -> Iterator[Check]:
    """Three steps of each stage of the profiles that train, no checkpoints; an answer with the others."""
    for path in sorted(config.PROFILES.glob("*.yaml")):
        profile, name = config.load(path.stem), f"profile-{path.stem}"
        base = profile.model.base
        settings = [f"model.base={model_folder(work, base)}"]
        if base not in CONFIGS or "quantization_config" in CONFIGS[base]:
            if not base.startswith("data/"):
                why = f"{base}: no tokenizer for its prompts is here; gpt-oss and awq run its kernels"
                yield Check(name, [], why)
        elif profile.trained:
            replaced = list(replacements(profile, here))
            settings += [*SHORT, *UNSAVED, *([] if here.gpus else SMALL), *replaced]
            if profile.opd:  # random weights of its own architecture, with its vocabulary, teach it
                settings.append(f"opd.teacher={model_folder(work, base)}")
            if profile.grpo and here.gpus:  # a step needs that many rows, a tenth of which is for probes
                rows = max(64, 2 * profile.grpo.prompts_per_step)
                settings.append(f"data.grpo={{source: builtin, rows: {rows}, test_split: 0.1}}")
            sampling = [stage.generation for stage in (profile.grpo, profile.opd) if stage]
            with_vllm = bool(here.gpus and "vllm" in sampling)
            check = train(work, name, settings, profile=path.stem, base=base, alone=with_vllm)
            check.note = with_(replaced)
            yield check
        else:
            vllm = [] if here.gpus else ["inference.vllm={}"]
            settings = ["inference.samples=4", "inference.max_tokens=32", "inference.max_length=2048", *vllm]
            model = str(model_folder(work, base))
            asked = [AIMO, "solve", "--model", model, "--profile", path.stem]
            asked += [*options([*settings, PUBLIC_TAGS]), PROBLEM]
            arguments, lacks = profile.inference.vllm or {}, ""
            parallel = arguments.get("tensor_parallel_size", 1)
            fp8 = str(arguments.get("kv_cache_dtype", "")).startswith("fp8")
            if here.gpus and here.gpus < parallel:
                lacks = f"needs {parallel} GPUs"
            elif here.gpus and here.capability < 8.9 and fp8:
                lacks = f"its fp8 cache needs compute capability 8.9, and this GPU has {here.capability}"
            hint = "--set inference.vllm={} tells whether one of the profile's engine arguments is at fault"
            yield Check(name, [asked], lacks, base, note=with_(vllm), hint=hint)


def launches(work: Path, here: Here) -> Iterator[Check]:
    """`aimo launch` in two processes: each strategy, and a vLLM server beside the trainer."""
    ours = [*SHORT, *SMALL, "model.backend=transformers", "model.dtype=auto"]
    two = "" if here.gpus > 1 else "needs two GPUs"
    zero = two or ("" if importlib.util.find_spec("deepspeed") else "needs the package deepspeed")
    lacks = {"ddp": two if here.gpus else "", "fsdp": two, "zero2": zero, "zero3": zero}
    devices = ["--gpus" if here.gpus else "--cpu", "2"]
    for strategy, reason in lacks.items():
        check = train(work, f"launch-{strategy}", [*ours, "grpo=null"], reason, alone=True)
        check.commands = [launch(check, "sft", *devices, "--strategy", strategy)]
        yield check
    served = ["sft=null", "grpo.generation=vllm_server", "grpo.probe_steps=null"]
    check = train(work, "vllm-server", [*ours, *served], two, alone=True)
    check.commands = [launch(check, "grpo", *devices, "--serve-gpus", "1")]
    yield check


def launch(check: Check, stage: str, *more: str) -> list[str]:
    """Return the command of a check's stage as `aimo launch` starts it, with the same settings."""
    (command,) = check.commands
    return [AIMO, "launch", stage, *command[command.index("--profile") :], *more]


def bfloat16(here: Here) -> str:
    return "" if here.capability >= 8 else f"compute capability {here.capability} has no bfloat16"


def numbers(backend: str, number: str) -> list[str]:
    """Return the settings of a backend that computes in a number type."""
    types = {
        "bf16": ["model.dtype=bfloat16"],
        "fp16": ["model.dtype=float16"],
        "4bit": ["model.dtype=auto", "model.load_in_4bit=true"],
        "all-weights": ["model.dtype=auto", "model.lora=null", "sft.learning_rate=3e-4"],
    }
    return [*SHORT, *SMALL, f"model.backend={backend}", *types[number]]


def sampled_by_vllm(work: Path, here: Here, backend: str) -> Check:
    """Return the check of GRPO whose completions vLLM samples beside the trainer."""
    sampled = ["model.dtype=auto", "sft=null", "grpo.generation=vllm", "grpo.probe_steps=null"]
    settings = [*SHORT, *SMALL, f"model.backend={backend}", *sampled]
    hint = "lower grpo.vllm_gpu_memory, or set grpo.generation to transformers"
    return train(work, f"{backend}-vllm", settings, alone=True, hint=hint)


def train(
    work: Path, name: str, settings: list[str], lacks: str = "", profile: str = "tiny", **more: Any
) -> Check:
    """Return the check of each stage of a profile that trains, in a process of its own."""
    own = {key.split("=")[0] for key in settings if key.startswith(("dpo=", "opd="))}
    stages = {*config.load(profile).stages, *own}
    settings = [key for key in settings if re.split(r"[.=]", key)[0] not in {*TRAINED} - stages]
    resolved, folder = config.load(profile, settings), work / name
    given = ["--profile", profile, "--run-dir", str(folder), *options(settings)]
    commands = [[sys.executable, "-m", "aimo.train.launch", stage, *given] for stage in resolved.trained]
    hint = "model.backend=transformers, model.dtype and model.attention=sdpa tell whose fault it is"
    look = functools.partial(trained, folder, resolved)
    usual: dict[str, Any] = {"alone": False, "hint": hint}
    return Check(name, commands, lacks, profile=resolved, look=look, **usual | more)


def replacements(profile: Profile, here: Here) -> Iterator[str]:
    """Yield the settings that take the place of those that this machine cannot run."""

    def value(key: str) -> Any:
        section, name = key.split(".")
        return getattr(getattr(profile, section), name, None)  # a stage may be missing

    for key, (wanted, package, other) in PACKAGES.items():
        if value(key) == wanted and not (here.gpus and importlib.util.find_spec(package)):
            yield f"{key}={other}"
    if "code" in (value("grpo.rewards") or {}):
        yield "grpo.rewards={accuracy: 1.0, format: 0.1}"  # the built-in problems have no test cases
    if not here.gpus:
        yield from (f"{key}={other}" for key, (values, other) in GPU_ONLY.items() if value(key) in values)


def with_(settings: list[str]) -> str:
    return f"with {', '.join(settings)}" if settings else ""


def options(settings: list[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def script(name: str, folder: Path) -> list[str]:
    """Return the command of one of `STEPS`."""
    return [sys.executable, __file__, "--step", name, "--folder", str(folder)]


# What they leave


def trained(folder: Path, profile: Profile) -> dict[str, Any]:
    """Return the speed and memory of each stage, which has finite losses of its steps and a model."""
    found: dict[str, Any] = {}
    for stage in profile.trained:
        steps = [record for record in storage.read_lines(folder / stage / "log.jsonl") if "loss" in record]
        losses, wanted = [record["loss"] for record in steps], getattr(profile, stage).max_steps
        if len(losses) != wanted or not all(map(math.isfinite, losses)):
            raise ValueError(f"{stage}: {wanted} steps left the losses {losses}")
        if not (folder / stage / "model" / "aimo.json").exists():
            raise ValueError(f"{stage}: it left no model")
        speed = {"tokens/s": "tokens_per_second", "GiB": "gpu_memory_gib"}
        found |= {f"{stage} {unit}": steps[-1][key] for unit, key in speed.items() if key in steps[-1]}
    return found


def read_figures(file: Path) -> dict[str, Any]:
    return storage.read_json(file, "look into the log of the check", dict)


def beside(file: Path) -> dict[str, Any]:
    """Return the speed and memory of ours and of plain TRL."""
    found: dict[str, Any] = {}
    for row in read_figures(file)["stages"]:
        for side in ("ours", "plain"):
            found[f"{row['stage']} {row['unit']}/s {side}"] = row[side]["rate"]
            if row[side]["gpu_gib"] is not None:
                found[f"{row['stage']} GiB {side}"] = row[side]["gpu_gib"]
    return found


def answers(folder: Path) -> dict[str, Any]:
    """Return how many answers the kernel gave: one to each question."""
    import polars as pl

    rows = pl.read_parquet(folder / "submission.parquet").rows()
    if len(rows) != 2:
        raise ValueError(f"the answers to 2 questions are {rows}")
    return {"answers": len(rows)}


def rates(file: Path, part: str, name: str) -> dict[str, Any]:
    """Return the tokens per second of each way, or each set of engine arguments that started."""
    rows = read_figures(file)[part]
    found = {row[name]: row["tokens_per_second"] for row in rows if "tokens_per_second" in row}
    if not found:
        raise ValueError(rows[0]["error"])
    return found


# Steps that run in a process of their own


def compare(folder: Path) -> None:
    """Check that a merged model computes what its base computes with the adapter."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def log_probs(model: Any) -> Any:
        with torch.no_grad():
            return model(torch.arange(5, 70)[None]).logits.log_softmax(-1)

    def load(path: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    adapted = log_probs(PeftModel.from_pretrained(load(TINY), str(folder / "sft/trained")))
    moved = (adapted - log_probs(load(TINY))).abs().max().item()
    apart = (adapted - log_probs(load(folder / "sft/model"))).abs().max().item()
    if not apart < 1e-3 < moved:
        raise SystemExit(
            f"ValueError: merging moves log-probabilities by {apart:.5f}, training by {moved:.5f}"
        )


def forget(folder: Path) -> None:
    """Leave of a finished stage what a killed one leaves: all but its last checkpoint, and no model."""
    for name in "checkpoint-3", "trained", "model":
        shutil.rmtree(folder / "sft" / name)
    (folder / "metrics.json").unlink()


def kernel(folder: Path) -> None:
    """Build the submission kernel beside two questions."""
    from aimo.kaggle import kernels

    (folder / "test.csv").write_text(f"id,problem\nfirst,{PROBLEM}\nsecond,What is 3 plus 4?\n")
    kernels.build_kernel("submission", folder, "tiny")


def serve(folder: Path) -> None:
    """Ask a model through `aimo serve`."""
    from aimo.inference import vllm_process
    from aimo.inference.settings import resolve_settings

    with vllm_process.serving(TINY, resolve_settings(TINY), log=folder / "vllm.log") as (url, _):
        asked = [AIMO, "solve", "--model", str(TINY), "--server", f"{url}/v1", PROBLEM]
        raise SystemExit(subprocess.run(asked).returncode)


def respawn(folder: Path) -> None:
    """Kill an engine's process, and ask another one in its place."""
    import psutil

    from aimo.inference.engine import Engine
    from aimo.inference.solver import solve_problem

    engine = Engine(TINY)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    begun = time.monotonic()
    while not engine.has_died:
        if time.monotonic() - begun > 60:
            raise SystemExit("ValueError: vLLM did not notice in a minute that its process was killed")
        time.sleep(0.2)
    engine.close()
    with engine.respawn() as again:
        print(solve_problem(again, PROBLEM, 4, Integer(0, 99999)).answer)


STEPS = {step.__name__: step for step in (compare, forget, kernel, serve, respawn)}


# Running them


def run_all(checks: list[Check], work: Path, logs: Path, here: Here, minutes: float) -> None:
    """Run the checks in order, neighbours that need no GPU for themselves side by side; failed ones again."""
    end = time.monotonic() + 60 * minutes
    with Progress() as progress:
        task = progress.add_task("checks", total=len(checks))
        progress.console.print(f"{machine.device()}: {len(checks)} checks")

        def run_one(check: Check) -> None:
            later = {c.base for c in checks if c is not check and c.state == "skipped"}
            run(check, work, logs, here, end)
            if check.base and check.base not in later:  # disks are small: 7B in two layers is 3 GB
                shutil.rmtree(model_folder(work, check.base), ignore_errors=True)
            progress.console.print(f"{check.name}: {check.state} {check.note}", markup=False, highlight=False)

        for alone, group in itertools.groupby(checks, lambda check: check.alone):
            with ThreadPoolExecutor(1 if alone else here.jobs) as pool:
                for _ in pool.map(run_one, group):
                    progress.advance(task)
        for check in checks:
            was_beside_others = here.jobs > 1 and not check.alone
            if check.state == "failed" and was_beside_others and end - time.monotonic() > AGAIN_S:
                run_one(check)


def run(check: Check, work: Path, logs: Path, here: Here, end: float) -> None:
    """Make what a check needs, run its commands, write down how it went, and remove what it left."""
    begun, folder = time.monotonic(), work / check.name
    if end - begun < LEAST_S:
        check.note = "the time was over: take more --minutes, or --only and the check's name"
        return
    check.state, reason = "failed", ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if check.base and not (model := model_folder(work, check.base)).exists():
            make_model(check.base, model, tokenizer_of(check.base), wide=here.gpus > 0)
        if check.profile:
            make_rows(check.profile, folder)
        for command in check.commands:
            left = min(end - time.monotonic(), 300)
            if reason := error_of(command, logs / f"{check.name}.log", folder, here, left):
                if left < FAIR_S and reason.startswith("not done"):
                    check.state, reason = "skipped", f"{reason}, when the time was over"
                break
        else:
            check.figures, check.state = check.look(), "passed"
    except Exception as e:  # whatever it is, it is this check's and not the page's
        reason = f"{type(e).__name__}: {' '.join(str(e).split())}"[:300]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    again = f"take --only {check.name}" if check.state == "skipped" else f"try: {check.hint}"
    tried = again if reason and check.hint else ""
    check.note = "; ".join(filter(None, [reason, tried, check.note]))
    check.seconds = time.monotonic() - begun


def model_folder(work: Path, base: str) -> Path:
    return work / base.replace("/", "--")


def tokenizer_of(base: str) -> Any:
    """Return a tiny model's tokenizer; for Qwen3 one with a template that has tools and `enable_thinking`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOOLS if base.startswith("Qwen/Qwen3") else TINY)
    if base.startswith("Qwen/Qwen3"):
        tokenizer.chat_template = "{%- set thinks = enable_thinking -%}" + tokenizer.chat_template
    return tokenizer


def make_rows(profile: Profile, folder: Path) -> None:
    """Leave in a run's folder what the data stage leaves, and nothing else."""
    from aimo.data import prepare
    from aimo.train import models

    shutil.rmtree(folder, ignore_errors=True)
    runs.open_folder(folder, profile)
    run = runs.Run(profile, folder, "data", time.time())
    tokenizer = models.load_tokenizer(config.locate(profile.model.base), profile)
    sets = prepare.clean_sets(prepare.load_sets(profile), profile, tokenizer)
    run.finish(sha256=prepare.write_sets(prepare.format_sets(sets, profile), sets, profile, run.folder))


def error_of(command: list[str], log: Path, work: Path, here: Here, limit: float) -> str:
    """Run a command, with its output in a file. Return the last line of its error; nothing without one."""
    env = {
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // here.jobs)),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
        "KAGGLE_INPUT": str(work / "input"),  # nothing is attached
        "UNSLOTH_COMPILE_LOCATION": str(work / f"unsloth-{log.stem}"),  # Unsloth writes and imports modules
    }
    with log.open("a") as output:
        print(f"$ {shlex.join(command)}", file=output, flush=True)
        to: dict[str, Any] = {"stdout": output, "stderr": output, "start_new_session": True}
        process = subprocess.Popen(command, env=os.environ | env, cwd=work, **to)
    try:
        if process.wait(limit) == 0:
            return ""
        return last_error(log.read_text())
    except subprocess.TimeoutExpired:
        return f"not done after {limit:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it started, too
        process.wait()


def last_error(text: str) -> str:
    """Return the last line of an output that names an error; else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"aimo: |([\w.]+\.)?\w*(Error|Exception|Interrupt)\b", line)]
    return (errors or lines)[-1][:300]


# What is shown


def report(checks: list[Check], folder: Path) -> dict[str, Any]:
    """Write the page and its figures: what failed, with the end of its log, what passed, what was skipped."""
    from aimo.report import page, pages, tables

    sections, counts = [], {}
    for state in ("failed", "passed", "skipped"):
        found = [check for check in checks if check.state == state]
        counts[state] = len(found)
        rows = [shown(check, folder) for check in found]
        if state == "skipped":  # many for one reason
            reasons = dict.fromkeys(check.note for check in found)
            named = {why: [check.name for check in found if check.note == why] for why in reasons}
            rows = [{"why": why, "checks": ", ".join(names)} for why, names in named.items()]
        if rows:
            sections.append(page.Section(tables.table(rows), f"{state.capitalize()}: {len(found)}"))
    sections.append(page.Section(tables.pairs(machine.versions(), "package", "version"), "Versions"))
    page.write_page(
        folder / "gpu-check.html", "aimo: GPU check", f"{date.today()}, {machine.device()}", sections
    )
    keys = ("name", "state", "seconds", "figures", "note")
    result = {
        "headline": ", ".join(f"{count} {state}" for state, count in counts.items()),
        "machine": machine.device(),
        "checks": [{key: getattr(check, key) for key in keys} for check in checks],
    }
    storage.write_json(folder / "gpu-check.json", result)
    pages.write_index(folder)
    return result


def shown(check: Check, folder: Path) -> dict[str, Any]:
    from aimo.report import page

    figures = ", ".join(f"{name} {value:.4g}" for name, value in check.figures.items())
    row = {"check": check.name, "seconds": round(check.seconds), "figures": figures}
    row |= {"note": check.note} if check.note else {}
    if check.state == "failed":
        log = folder / "logs" / f"{check.name}.log"
        end = "\n".join(log.read_text().splitlines()[-40:]) if log.exists() else ""
        row["log"] = page.fold("its end", page.verbatim(end))
    return row


MAKERS = (first, features, backends, profiles, launches)


def main(
    only: Annotated[list[str] | None, typer.Option(help="A check, or how its name begins; repeat.")] = None,
    minutes: Annotated[float, typer.Option(help="Checks that would begin later are skipped.")] = 10,
    run_dir: Annotated[Path, typer.Option(help="For the page and the logs.")] = RUNS / "gpu-check",
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
    step: Annotated[str | None, typer.Option(hidden=True)] = None,
    step_folder: Annotated[Path, typer.Option("--folder", hidden=True)] = Path(),
) -> None:
    """Run the checks and write the page."""
    if step:
        return STEPS[step](step_folder)
    runs.quiet()
    here, folder = look(), run_dir.absolute()
    with tempfile.TemporaryDirectory(prefix="aimo-gpu-", ignore_cleanup_errors=True) as made:
        work, logs = Path(made), folder / "logs"
        every = [check for make in MAKERS for check in make(work, here)]
        chosen = [check for check in every if not only or check.name.startswith(tuple(only))]
        if not chosen:
            raise typer.BadParameter(f"--only takes of {', '.join(check.name for check in every)}")
        for check in chosen:
            check.note = check.lacks or check.note
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
        try:
            run_all([check for check in chosen if not check.lacks], work, logs, here, minutes)
        finally:
            try:
                result = report(chosen, folder)
            except OSError as e:
                told = "\n".join(f"{check.name}: {check.state} {check.note}" for check in chosen)
                raise SystemExit(f"{told}\naimo: {folder}: {e}; make room, or take --run-dir") from None
    if to:
        storage.write_json(to, result)
    print(f"{result['headline']}; {folder / 'gpu-check.html'}")
    raise typer.Exit(any(check.state == "failed" for check in chosen))


if __name__ == "__main__":
    typer.run(main)
