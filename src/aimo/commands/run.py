"""`aimo …`: arguments to one call of the package. A user's mistake is one line on standard error."""

import importlib.metadata
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from aimo import pipeline
from aimo.commands import data, kaggle, measure, options
from aimo.commands.options import arg, opt
from aimo.config.profile import STAGES
from aimo.inference import vllm_process
from aimo.inference.errors import AimoError, EngineError, StageError, redact
from aimo.inference.local import answer_file, ask, journal_beside, read_questions
from aimo.inference.settings import resolve_settings
from aimo.inference.storage import KEPT, NO_ROOM, SampleFile
from aimo.kaggle import kernels
from aimo.run import hub, machine
from aimo.run.runs import answers_of, figures
from aimo.train import launch

HELP = """From a base model to an AI Mathematical Olympiad submission: data, SFT, GRPO, DPO, voted inference.

Start with `aimo run --profile tiny`, which takes minutes on a CPU.
`aimo COMMAND --help` lists the options of a command.
Exit codes: 0 done, 1 a stage or the engine failed, 2 something that you can fix, explained in one line.
"""
AGAIN = f"Repeat this stage ({', '.join(STAGES)}) and those after it, or continue from sft/checkpoint-50."
# Short heads of columns that would otherwise not fit in 80 characters.
HEADS = {"mean_tokens": "tokens", "samples_per_second": "samples/s", "mean_loss": "loss"}
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
kernel = typer.Typer(no_args_is_help=True, help="Build Kaggle kernels.")
data_commands = typer.Typer(no_args_is_help=True, help="Prepare data before training.")
app.add_typer(kernel, name="kernel")
app.add_typer(data_commands, name="data")
app.add_typer(kaggle.app, name="kaggle")
app.add_typer(kaggle.competition_app, name="competition")


@app.callback(help=HELP, invoke_without_command=True)
def common(version: Annotated[bool, opt("Print the version.", "--version")] = False) -> None:
    if version:
        print(f"aimo {importlib.metadata.version('aimo')}")
        raise typer.Exit


@app.command("run")
def run_command(
    profile: options.Profile,
    run_dir: options.RunDir = None,
    from_: Annotated[str | None, opt(AGAIN, "--from")] = None,
    until: Annotated[str | None, opt("Stop after this stage.")] = None,
    set_: options.Key = None,
    test: options.Test = None,
    competition: options.Competition = None,
) -> None:
    """Run the stages of a profile that are not finished yet, and write the report."""
    try:
        asked = {"test": test, "competition": competition}
        folder = pipeline.run_profile(profile, run_dir, set_, from_stage=from_, until=until, **asked)
    except KeyboardInterrupt:
        raise AimoError("interrupted; run the same command again to continue") from None
    if rows := figures(folder):  # each model's figures, and what its training took
        columns = [key for key, value in rows.get("base", {}).items() if isinstance(value, float)]
        training = ("seconds", "samples_per_second", "mean_loss")
        columns += [key for key in training if any(key in row for row in rows.values())]
        table = []
        for name, row in rows.items():
            cells = {HEADS.get(key, key): f"{row[key]:.3g}" if key in row else "" for key in columns}
            table.append({"": name} | cells)
        options.show_rows(table)
    if submission := answers_of(folder):
        print(f"submission: {submission}")
    print(f"report:     {folder / 'report.html'}")


@app.command("launch")
def launch_command(
    stage: Annotated[str, arg("sft, grpo, dpo or opd.")],
    profile: options.Profile,
    gpus: Annotated[int | None, opt("GPUs per node; all of this machine if not given.", min=1)] = None,
    cpu: Annotated[int | None, opt("CPU processes to use instead of GPUs, to try it.", min=1)] = None,
    nodes: Annotated[int, typer.Option(min=1)] = 1,
    strategy: Annotated[str, opt("ddp, fsdp, zero2 or zero3.")] = "ddp",
    offload: Annotated[str | None, opt("What ZeRO keeps on the host: optimizer or all.")] = None,
    accelerate: Annotated[str | None, opt("An accelerate file, instead of --strategy.")] = None,
    serve_gpus: Annotated[int, opt("GPUs for GRPO's vLLM server.", min=0)] = 0,
    slurm: Annotated[bool, opt("Write the Slurm script to the run's folder instead.", "--slurm")] = False,
    dry_run: Annotated[bool, opt("Print the commands without running them.", "--dry-run")] = False,
    run_dir: options.RunDir = None,
    set_: options.Key = None,
) -> None:
    """Train a stage in several processes, under `accelerate launch` or in a Slurm job."""
    if cpu and (gpus or slurm):
        raise AimoError("--cpu goes with neither --gpus nor --slurm: it tries a stage on this machine")
    devices = cpu or gpus or (0 if slurm else launch.gpus())
    if not devices and (slurm or dry_run):
        raise AimoError("--gpus is needed, the GPUs of each node")
    if not devices:
        raise AimoError("there is no GPU here; try it with --cpu 2")
    if accelerate:
        strategy = launch.strategy_of(accelerate)
    how = (strategy, devices, nodes, cpu is not None, offload, accelerate, serve_gpus)
    launch.launch_job(launch.Job(stage, profile, run_dir, set_ or [], *how), slurm, dry_run)


@app.command()
def solve(
    model: Annotated[str, opt("A model folder.")],
    problem: Annotated[str | None, arg("One problem; its answer is printed as it is written.")] = None,
    test: options.Test = None,
    out: Annotated[Path | None, opt("A .csv or .parquet file for the answers.")] = None,
    competition: options.Competition = None,
    profile: options.Over = None,
    set_: options.Setting = None,
    samples: options.Samples = None,
    seed: options.Seed = 0,
    server: options.Servers = None,
    adapter: options.Adapter = None,
    vllm: options.EngineArguments = None,
) -> None:
    """Answer one PROBLEM, or the questions of a CSV, with a majority vote."""
    # Check everything before the model is loaded.
    if (problem is None) == (test is None):
        raise AimoError("give either a problem in quotes or a CSV of problems with --test")
    if (test is None) != (out is None):
        raise AimoError("--test and --out go together: a CSV of problems, and where their answers go")
    if competition and test is None:
        raise AimoError("--competition goes with --test: a single problem may have any answer")
    if test and out:
        if out.suffix not in (".csv", ".parquet") or out.is_dir():
            raise AimoError(f"--out {out}: the answers go to a .csv or a .parquet file, no folder")
        read_questions(test, competition)
        if out.exists() and out.samefile(test):
            raise AimoError(f"--out {out}: it is the file of --test; take another")
        SampleFile(journal_beside(out), "--out").close()  # fails if it is locked or cannot be written
    of_profile, of_command = options.solver_settings(profile, set_, samples, vllm, server, adapter)
    layers = [of_profile, {} if test else {"samples": 1}, of_command]
    try:
        with options.start(model, layers, seed, server, adapter) as sampler:
            if test and out:
                answer_file(sampler, test, out, seed, competition)
                print(f"answers: {out}")
            elif problem is not None:
                print(ask(sampler, problem, seed))
    except KeyboardInterrupt:
        raise AimoError("interrupted") from None


@app.command()
def serve(
    model: Annotated[str, arg("A model folder, or a hub id.")],
    profile: options.Over = None,
    set_: options.Setting = None,
    vllm: options.EngineArguments = None,
    host: Annotated[str, opt("0.0.0.0 lets others in: set VLLM_API_KEY.")] = "127.0.0.1",
    port: Annotated[int, opt("The port; 0 takes a free one.", min=0, max=65535)] = 8000,
    seed: options.Seed = 0,
    log: Annotated[Path, opt("The file for vLLM's log.")] = Path("vllm.log"),
) -> None:
    """Serve a model with vLLM's OpenAI-compatible server, until Ctrl-C."""
    options.check_folder("--log", log)
    if log.is_dir():
        raise AimoError(f"--log {log} is a folder; name a file in it")
    folder = hub.local_folder(model)
    settings = resolve_settings(folder, *options.solver_settings(profile, set_, None, vllm))
    print(f"Loading {folder.name} with vLLM, which takes half a minute or more; its log is {log}", flush=True)
    try:
        with vllm_process.serving(folder, settings, seed, host=host, port=port, log=log) as (url, process):
            print(f"{folder.name} is ready at {url}/v1; Ctrl-C ends it", flush=True)
            if host not in ("127.0.0.1", "::1", "localhost") and not os.environ.get("VLLM_API_KEY"):
                print(f"it asks for no key: whoever reaches {host} can use it; set VLLM_API_KEY", flush=True)
            while process.poll() is None:  # wait() would sleep through Ctrl-C: polars restarts it
                time.sleep(0.2)
        raise EngineError(f"vLLM ended with exit status {process.returncode}; all that it wrote is in {log}")
    except KeyboardInterrupt:
        print("ended")


app.command("init")(data.init_command)
data_commands.command("pack")(data.pack_set_command)
app.command("distil")(data.distil_command)
app.command("reject")(data.reject_command)
app.command("replay")(measure.replay_command)
app.command("forecast")(measure.forecast_command)
app.command("evaluate")(measure.evaluate_command)
app.command("compare")(measure.compare_command)


@kernel.command()
def build(
    names: Annotated[list[str] | None, arg("Folders of kernels/; all if none is given.")] = None,
    profile: Annotated[str | None, opt("A profile that provides the kernels' settings.")] = None,
    out: Annotated[Path | None, opt("Another folder for the notebooks.")] = None,
    competition: options.Competition = None,
) -> None:
    """Build the self-contained notebooks of kernels from the sources."""
    for name in names or kernels.kernels_of(profile, competition):
        print(kernels.build_kernel(name, out, profile, competition))


@kernel.command("check")
def check_command(name: Annotated[str, arg("A folder of kernels/, or a path.")]) -> None:
    """Find what Kaggle would refuse in a kernel, or what would fail an hour after the push."""
    if faults := kernels.check_kernel(name):
        raise AimoError(f"kernel {name}: {'; '.join(faults)}")
    print(f"kernel {name}: no fault found")


@app.command()
def doctor() -> None:
    """Print what is installed, the device, and the remedy for each missing or mismatched piece."""
    rows = machine.diagnose()
    options.show_rows(rows)
    if any(row["remedy"] for row in rows):
        raise typer.Exit(1)


def main() -> None:
    """The console script. SIGTERM ends a command as Ctrl-C does: finished work is kept."""
    own = os.getpid()

    def interrupt(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        if os.getpid() != own:  # a forked process ends by the signal
            os.kill(os.getpid(), number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        app()
    except (AimoError, StageError) as e:
        print(f"aimo: {redact(str(e))}", file=sys.stderr)
        sys.exit(1 if isinstance(e, StageError | EngineError) else 2)
    except OSError as e:  # from any file that is written
        if e.errno not in NO_ROOM:
            raise
        print(f"aimo: {e.filename or 'a file'}: {e.strerror}; {KEPT}", file=sys.stderr)
        sys.exit(2)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
