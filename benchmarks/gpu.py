"""What only a GPU can show, in ten minutes: training, generation, merging, answering, each in a process.

    python benchmarks/gpu.py [--only NAME …] [--minutes 10] [--run-dir FOLDER] [--json FILE]

Nothing is downloaded. Profiles run on random weights of their model's architecture: its width and heads, two
layers, a tiny model's tokenizer. What a machine lacks is a row with the reason; a setting that it cannot run
is replaced and named. Without a GPU the same commands run on narrow models. Checks that failed beside others
run again alone. Exits with 1 when one fails.
"""

import contextlib
import functools
import importlib.util
import json
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
from rich.progress import Progress

from aimo import config
from aimo.config import ROOT, RUNS, Profile
from aimo.config.profile import TRAINED
from aimo.inference import storage
from aimo.run import machine, runs

TINY = ROOT / "data" / "tiny-base"
AIMO = str(Path(sys.executable).with_name("aimo"))
PROBLEM = "What area of a 7 by 12 wall is not covered by a 4 by 3 door?"
SIZES = {
    "Qwen/Qwen2.5-1.5B-Instruct": ("qwen2", 1536, 8960, 12, 2),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": ("qwen2", 1536, 8960, 12, 2),
    "Qwen/Qwen2.5-Math-7B": ("qwen2", 3584, 18944, 28, 4),
    "open-r1/Qwen2.5-Math-7B-RoPE-300k": ("qwen2", 3584, 18944, 28, 4),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": ("qwen2", 5120, 13824, 40, 8),
    "Qwen/Qwen3-1.7B": ("qwen3", 2048, 6144, 16, 8),
    "unsloth/Qwen3-1.7B-Base": ("qwen3", 2048, 6144, 16, 8),
    "unsloth/Qwen3-4B-Base": ("qwen3", 2560, 9728, 32, 8),
    "Qwen/Qwen3-30B-A3B-Thinking-2507": ("qwen3_moe", 2048, 6144, 32, 4),
}
"""Public models of the profiles, from their config.json: type, hidden and intermediate size, attention heads,
key-value heads. Each head has 128 dimensions, each mixture 128 experts of size 768."""
PUBLIC_TAGS = (
    "inference.tags={think_start: <think>, think_end: </think>, answer_start: '\\boxed{', answer_end: '}'}"
)
"""What the tokenizer of a public model would tell."""
SHORT = [
    "data.sft={source: builtin, rows: 64}",
    "data.grpo={source: builtin, rows: 64, test_split: 0.1}",
    "data.heldout={source: builtin, split: heldout, rows: 8}",
    "data.decontaminate=[]",
    "prompt.eos_token=null",  # the tiny base's tokenizer has its own
    "sft.max_steps=3",
    "grpo.max_steps=3",
    "grpo.max_prompt_length=700",
    "grpo.max_completion_length=32",
]
SMALL = [
    "model.max_length=1024",
    "sft.batch_size=2",
    "sft.gradient_accumulation_steps=1",
    "grpo.prompts_per_step=2",
    "grpo.num_generations=4",
    "grpo.gradient_accumulation_steps=1",
]
GPU_ONLY: dict[str, tuple[list[Any], str]] = {
    "model.load_in_4bit": ([True], "false"),
    "model.dtype": (["float16"], "auto"),
    "sft.optimizer": (["adamw_8bit", "paged_adamw_8bit"], "adamw_torch"),
    "grpo.optimizer": (["adamw_8bit", "paged_adamw_8bit"], "adamw_torch"),
    "grpo.generation": (["vllm"], "transformers"),
}
"""Keys with values that a CPU does not run, or not with all weights, and the value that takes their place."""
PACKAGES = {
    "model.attention": ("flash_attention_2", "flash_attn", "sdpa"),
    "sft.use_liger_kernel": (True, "liger_kernel", "false"),
}
"""Keys with a value that needs a package, and the value that takes its place where that is missing."""


@dataclass(frozen=True)
class Here:
    """The machine: its GPUs, the memory of the smallest in GiB, and whether all compute in bfloat16."""

    gpus: int
    gib: float = 0.0
    bf16: bool = True

    @property
    def jobs(self) -> int:
        """How many checks run at a time."""
        return (4 if self.gib > 70 else 1) if self.gpus else max(1, len(os.sched_getaffinity(0)) // 2)


@dataclass
class Check:
    """A row of the page."""

    name: str
    commands: list[list[str]]
    lacks: str = ""
    """Why this machine cannot run it."""
    base: str = ""
    """The public model whose architecture it runs on."""
    profile: Profile | None = None
    """Whose rows it trains on."""
    alone: bool = False
    """Whether it measures, or takes the whole GPU."""
    note: str = ""
    look: Callable[[], dict[str, Any]] = dict
    """Returns the figures of what the commands left; AssertionError where something is missing."""
    state: str = "skipped"
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)


def look() -> Here:
    """This machine. Starts no CUDA context, whose memory the checks would lack."""
    import torch

    if not machine.computes_on_gpu():
        return Here(0)
    asked = machine.nvidia_smi("--query-gpu=memory.total,compute_cap", "--format=csv,noheader,nounits") or ""
    found = [tuple(map(float, line.split(","))) for line in asked.splitlines()]
    return Here(torch.cuda.device_count(), min(m for m, _ in found) / 1024, all(c >= 8 for _, c in found))


# The checks


def backends(work: Path, here: Here) -> Iterator[Check]:
    """SFT and GRPO on the tiny base with each backend: in each number type, and with vLLM; a merged model."""
    on_gpu = "" if here.gpus else "needs a GPU"
    numbers = {
        "bf16": (["model.dtype=bfloat16"], "" if here.bf16 else "this GPU has no bfloat16"),
        "fp16": (["model.dtype=float16"], on_gpu),
        "4bit": (["model.dtype=auto", "model.load_in_4bit=true"], on_gpu),
        "all-weights": (["model.dtype=auto", "model.lora=null", "sft.learning_rate=3e-4"], ""),
    }
    sampled = ["model.dtype=auto", "sft=null", "grpo.generation=vllm", "grpo.probe_steps=null"]
    sampled += share(here, "grpo.vllm_gpu_memory")
    for backend in ("transformers", "unsloth"):
        ours = [*SHORT, *SMALL, f"model.backend={backend}"]
        for number, (settings, lacks) in numbers.items():
            yield train(work, f"{backend}-{number}", "tiny", [*ours, *settings], lacks)
        yield train(work, f"{backend}-vllm", "tiny", [*ours, *sampled])
    check = train(work, "merge", "tiny", [*ours, "model.dtype=float32", "grpo=null"])
    check.commands.append([sys.executable, __file__, "--compare", str(work / "merge")])
    yield check


def profiles(work: Path, here: Here) -> Iterator[Check]:
    """Three steps of the stages of each trained profile, and an answer with each public model's."""
    for path in sorted(config.PROFILES.glob("*.yaml")):
        profile, name = config.load(path.stem), f"profile-{path.stem}"
        base = profile.model.base
        settings = [f"model.base={model_folder(work, base)}"]
        if base not in SIZES:
            if not base.startswith("data/"):
                yield Check(name, [], f"no random weights of {base} are made here")
        elif profile.trained:
            replaced = list(replacements(profile, here))
            settings += [*SHORT, *([] if here.gpus else SMALL), *replaced]
            yield train(work, name, path.stem, settings, base=base, note=with_(replaced))
        else:
            vllm = [] if here.gpus else ["inference.vllm={}"]
            settings = ["inference.samples=4", "inference.max_tokens=32", "inference.max_length=2048", *vllm]
            settings += [*share(here, "inference.gpu_memory"), PUBLIC_TAGS]
            model = str(model_folder(work, base))
            asked = [AIMO, "solve", "--model", model, "--profile", path.stem, *options(settings), PROBLEM]
            parallel = (profile.inference.vllm or {}).get("tensor_parallel_size", 1)
            lacks = f"needs {parallel} GPUs" if here.gpus and here.gpus < parallel else ""
            yield Check(name, [asked], lacks, base, note=with_(vllm))


def launches(work: Path, here: Here) -> Iterator[Check]:
    """`aimo launch` in two processes: each strategy, and a vLLM server beside the trainer."""
    ours = [*SHORT, *SMALL, "model.backend=transformers", "model.dtype=auto"]
    two = "" if here.gpus > 1 else "needs two GPUs"
    zero = two or ("" if importlib.util.find_spec("deepspeed") else "needs the package deepspeed")
    lacks = {"ddp": two if here.gpus else "", "fsdp": two, "zero2": zero, "zero3": zero}
    devices = ["--gpus" if here.gpus else "--cpu", "2"]
    for strategy, reason in lacks.items():
        check = train(work, f"launch-{strategy}", "tiny", [*ours, "grpo=null"], reason)
        check.commands = [launch(check, "sft", *devices, "--strategy", strategy)]
        yield check
    served = ["sft=null", "grpo.generation=vllm_server", "grpo.probe_steps=null"]
    check = train(work, "vllm-server", "tiny", [*ours, *served], two)
    check.commands = [launch(check, "grpo", *devices, "--serve-gpus", "1")]
    yield check


def launch(check: Check, stage: str, *more: str) -> list[str]:
    """A check's stage as `aimo launch` starts it, with the same settings."""
    (command,) = check.commands
    return [AIMO, "launch", stage, *command[command.index("--profile") :], *more]


def others(work: Path, here: Here) -> Iterator[Check]:
    """The submission kernel in a folder of its own, and training beside plain TRL."""
    folder = work / "kernel"
    parameters = {"competition": "aimo3", "model": TINY, "test_csv": "test.csv", "time_limit_s": 3000}
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(work / "aimo-submission.ipynb"),
        str(work / "out.ipynb"),
    ]
    command += ["--cwd", str(folder), "-k", "python3", "--no-progress-bar"]
    command += [part for key, value in parameters.items() for part in ("-p", key, str(value))]
    yield Check("submission-kernel", [command], alone=True, look=functools.partial(answers, folder))
    base = "unsloth/Qwen3-1.7B-Base" if here.gpus else ""
    settings = [f"model.base={model_folder(work, base) if base else TINY}", "model.dtype=auto"]
    settings += ["sft.max_steps=12", "grpo.max_steps=4"]
    file = work / "beside.json"
    command = [sys.executable, str(Path(__file__).with_name("training.py")), "--rounds", "1"]
    command += ["--json", str(file), *options(settings)]
    yield Check("beside-plain-trl", [command], base=base, alone=True, look=functools.partial(beside, file))


def train(
    work: Path, name: str, profile: str, settings: list[str], lacks: str = "", base: str = "", note: str = ""
) -> Check:
    """Each stage of a profile that trains, in a process of its own, as `aimo launch` starts it."""
    stages = config.load(profile).stages
    settings = [key for key in settings if (section := key.split(".")[0]) not in TRAINED or section in stages]
    resolved, folder = config.load(profile, settings), work / name
    given = ["--profile", profile, "--run-dir", str(folder), *options(settings)]
    commands = [[sys.executable, "-m", "aimo.train.launch", stage, *given] for stage in resolved.trained]
    check = Check(name, commands, lacks, base, resolved, note=note)
    check.look = functools.partial(trained, folder, resolved.trained)
    return check


def replacements(profile: Profile, here: Here) -> Iterator[str]:
    """The settings that take the place of those that this machine cannot run."""

    def value(key: str) -> Any:
        section, name = key.split(".")
        return getattr(getattr(profile, section), name, None)  # a stage may be missing

    for key, (wanted, package, other) in PACKAGES.items():
        if value(key) == wanted and not (here.gpus and importlib.util.find_spec(package)):
            yield f"{key}={other}"
    if "code" in (value("grpo.rewards") or {}):
        yield "grpo.rewards={accuracy: 1.0, format: 0.1}"  # the built-in problems have no test cases
    if value("grpo.generation") == "vllm":
        yield from share(here, "grpo.vllm_gpu_memory")
    if not here.gpus:
        yield from (f"{key}={other}" for key, (values, other) in GPU_ONLY.items() if value(key) in values)


def share(here: Here, key: str) -> list[str]:
    """The setting of vLLM's share of a GPU that other checks use, too."""
    return [f"{key}=0.12"] if here.gpus and here.jobs > 1 else []


def with_(settings: list[str]) -> str:
    """A note of the settings that were replaced."""
    return f"with {', '.join(settings)}" if settings else ""


def options(settings: list[str]) -> list[str]:
    """Settings as `--set` options."""
    return [part for setting in settings for part in ("--set", setting)]


# What they leave


def trained(folder: Path, stages: tuple[str, ...]) -> dict[str, Any]:
    """Speed and memory of each stage, which has three finite losses and a model."""
    found: dict[str, Any] = {}
    for stage in stages:
        steps = [record for record in storage.read_lines(folder / stage / "log.jsonl") if "loss" in record]
        losses = [record["loss"] for record in steps]
        assert len(losses) == 3 and all(map(math.isfinite, losses)), f"{stage}: its losses are {losses}"
        assert (folder / stage / "model" / "aimo.json").exists(), f"{stage}: it left no model"
        found[f"{stage} tokens/s"] = steps[-1]["tokens_per_second"]
        if "gpu_memory_gib" in steps[-1]:
            found[f"{stage} GiB"] = steps[-1]["gpu_memory_gib"]
    return found


def beside(file: Path) -> dict[str, Any]:
    """Speed and memory of ours and of plain TRL."""
    found: dict[str, Any] = {}
    for row in json.loads(file.read_text())["stages"]:
        for side in ("ours", "plain"):
            found[f"{row['stage']} {row['unit']}/s {side}"] = row[side]["rate"]
            if row[side]["gpu_gib"] is not None:
                found[f"{row['stage']} GiB {side}"] = row[side]["gpu_gib"]
    return found


def answers(folder: Path) -> dict[str, Any]:
    """The answers of the kernel, one to each question."""
    import polars as pl

    rows = pl.read_parquet(folder / "submission.parquet").rows()
    assert len(rows) == 2, f"the answers to 2 questions are {rows}"
    return {"answers": len(rows)}


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
    assert apart < 1e-3 < moved, f"merging moves log-probabilities by {apart:.5f}, training by {moved:.5f}"


# Before them


def prepare(checks: list[Check], work: Path, here: Here) -> None:
    """Make the kernel, the random weights and the rows."""
    from aimo.kaggle import kernels

    (work / "kernel").mkdir()
    (work / "kernel" / "test.csv").write_text(f"id,problem\nfirst,{PROBLEM}\nsecond,What is 3 plus 4?\n")
    kernels.build_kernel("submission", work, "tiny")
    for base in {check.base for check in checks if check.base}:
        make_model(base, model_folder(work, base), here)
    for check in checks:
        if check.profile:
            make_rows(check.profile, work / check.name)


def model_folder(work: Path, base: str) -> Path:
    """Where a public model's random weights are."""
    return work / base.replace("/", "--")


def make_model(base: str, folder: Path, here: Here) -> None:
    """Random weights of a public model's architecture, in two layers; without a GPU narrow ones."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    kind, hidden, intermediate, heads, shared = SIZES[base]
    size, experts, expert = 128, 128, 768
    if not here.gpus:
        hidden, intermediate, heads, shared = 128, 256, 2 * heads // shared, 2
        size, experts, expert = 32, 8, 64
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    if base.startswith("Qwen/Qwen3"):  # its own chat template offers tools and reads a switch of thinking
        tokenizer = AutoTokenizer.from_pretrained(TINY.with_name("tiny-tools"))
        tokenizer.chat_template = "{%- set thinks = enable_thinking -%}" + tokenizer.chat_template
    described = AutoConfig.for_model(
        kind,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        head_dim=size,
        num_hidden_layers=2,
        max_position_embeddings=131072,
        vocab_size=32768 if here.gpus else 1024,  # more than the tokenizer has, as in the public models
        eos_token_id=tokenizer.eos_token_id,
        **({"num_experts": experts, "moe_intermediate_size": expert} if kind == "qwen3_moe" else {}),
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(described, dtype=torch.bfloat16 if here.gpus else torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_rows(profile: Profile, folder: Path) -> None:
    """What the data stage leaves in a run's folder, and nothing else."""
    from aimo.data import prepare
    from aimo.train import models

    shutil.rmtree(folder, ignore_errors=True)
    runs.open_folder(folder, profile)
    run = runs.Run(profile, folder, "data", time.time())
    tokenizer = models.load_tokenizer(config.locate(profile.model.base), profile)
    sets = prepare.clean_sets(prepare.load_sets(profile), profile, tokenizer)
    run.finish(sha256=prepare.write_sets(prepare.format_sets(sets, profile), sets, profile, run.folder))


# Running them


def run_all(checks: list[Check], work: Path, logs: Path, here: Here, minutes: float) -> None:
    """Run the checks: those that measure alone, then the others beside each other, and failed ones again."""
    end = time.monotonic() + 60 * minutes
    with Progress() as progress:
        task = progress.add_task("checks", total=len(checks))
        progress.console.print(f"{machine.device()}: {len(checks)} checks")

        def run_one(check: Check) -> None:
            run(check, work, logs, here, end)
            progress.console.print(f"{check.name}: {check.state} {check.note}", markup=False, highlight=False)

        prepare(checks, work, here)
        groups = [c for c in checks if c.alone], [c for c in checks if not c.alone]
        for group, beside in zip(groups, (1, here.jobs), strict=True):
            with ThreadPoolExecutor(beside) as pool:
                for _ in pool.map(run_one, group):
                    progress.advance(task)
        for check in checks:
            if check.state == "failed" and here.jobs > 1 and not check.alone:
                if check.profile:
                    make_rows(check.profile, work / check.name)
                run_one(check)


def run(check: Check, work: Path, logs: Path, here: Here, end: float) -> None:
    """Run the commands of a check, and write down how it went."""
    begun = time.monotonic()
    check.state, reason = "failed", ""
    for command in check.commands:
        left = end - time.monotonic()
        if left < 20:
            check.state, reason = "skipped", f"the time was over: take --only {check.name}, or more --minutes"
            break
        if reason := error_of(command, logs / f"{check.name}.log", work, here, min(left, 300)):
            break
    else:
        try:
            check.figures, check.state = check.look(), "passed"
        except (AssertionError, OSError) as e:
            reason = str(e)
    check.note = "; ".join(filter(None, [reason, check.note]))
    check.seconds = time.monotonic() - begun


def error_of(command: list[str], log: Path, work: Path, here: Here, limit: float) -> str:
    """Run a command, with its output in a file. Returns the last line of its error; nothing without one."""
    env = {
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // here.jobs)),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
        "KAGGLE_INPUT": str(work / "input"),  # nothing is attached
        "UNSLOTH_COMPILE_LOCATION": str(work / f"unsloth-{log.stem}"),  # Unsloth writes and imports modules
    }
    with log.open("w") as output:
        print(f"$ {shlex.join(command)}", file=output, flush=True)
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env=os.environ | env,
            cwd=log.parent,
            start_new_session=True,
        )
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
    """The last line of an output that names an error; else its last line."""
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
        if rows:
            sections.append(page.Section(tables.table(rows), f"{state.capitalize()}: {len(rows)}"))
    versions = [{"package": name, "version": version} for name, version in machine.versions().items()]
    sections.append(page.Section(tables.table(versions), "Versions"))
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
    """A check as a row of the page."""
    from aimo.report import page

    figures = ", ".join(f"{name} {value:.4g}" for name, value in check.figures.items())
    row = {"check": check.name, "seconds": round(check.seconds), "figures": figures, "note": check.note}
    if check.state == "failed":
        log = folder / "logs" / f"{check.name}.log"
        end = "\n".join(log.read_text().splitlines()[-40:]) if log.exists() else ""
        row["log"] = page.fold("its end", page.verbatim(end))
    return row


def main(
    only: Annotated[list[str] | None, typer.Option(help="A check, or how its name begins; repeat.")] = None,
    minutes: Annotated[float, typer.Option(help="Checks that would begin later are skipped.")] = 10,
    run_dir: Annotated[Path, typer.Option(help="For the page and the logs.")] = RUNS / "gpu-check",
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
    compared: Annotated[Path | None, typer.Option("--compare", hidden=True)] = None,
) -> None:
    """Run the checks and write the page."""
    if compared:
        return compare(compared)
    runs.quiet()
    here, folder = look(), run_dir.absolute()
    with tempfile.TemporaryDirectory(prefix="aimo-gpu-") as made:
        work, logs = Path(made), folder / "logs"
        every = [check for make in (others, backends, profiles, launches) for check in make(work, here)]
        chosen = [check for check in every if not only or check.name.startswith(tuple(only))]
        if not chosen:
            raise typer.BadParameter(f"--only takes of {', '.join(check.name for check in every)}")
        for check in chosen:
            check.note = check.lacks or check.note
        logs.mkdir(parents=True, exist_ok=True)
        run_all([check for check in chosen if not check.lacks], work, logs, here, minutes)
    result = report(chosen, folder)
    if to:
        storage.write_json(to, result)
    print(f"{result['headline']}; {folder / 'gpu-check.html'}")
    raise typer.Exit(any(check.state == "failed" for check in chosen))


if __name__ == "__main__":
    typer.run(main)
