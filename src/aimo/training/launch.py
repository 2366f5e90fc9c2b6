"""`aimo launch`: a training stage in several processes, by `accelerate launch` with the configurations that
TRL ships, or as a Slurm job.

Each process runs `stage`, that is, `python -m aimo.training.launch sft --profile tiny`: the notebook without
pictures. Out of scope: several nodes without Slurm, for which `--dry-run` prints each node's command.
"""

import contextlib
import importlib.util
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from jinja2 import Template

from aimo import config, progress, runs
from aimo.config import Profile
from aimo.data import prepare
from aimo.data.prepare import Rows
from aimo.errors import AimoError, StageError, explain_exit
from aimo.evaluation import pass_rates
from aimo.runs import Run
from aimo.stages import STAGES, TRAINED
from aimo.training import arguments, models, preferences, trainers

CONFIGS = {"ddp": "multi_gpu", "fsdp": "fsdp2", "zero2": "zero2", "zero3": "zero3"}
"""Strategies, and TRL's accelerate configurations for them."""
SLURM = Path(__file__).with_name("train.slurm")
SPARE_S = 1800
"""Seconds of a Slurm job beyond the time limit of training: to load, merge and push."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def stage(
    name: str,
    profile: Annotated[str, typer.Option()],
    run_dir: Annotated[str | None, typer.Option()] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set")] = None,
    vllm_server_url: Annotated[str | None, typer.Option()] = None,
    only_sample: bool = False,
) -> None:
    """Train a stage as its notebook does, together with the other processes; the main one saves the model.

    `only_sample` ends before training, with what vLLM samples for the rows in the stage's folder.
    """
    if rank():  # the main process has locked the run's folder for all
        os.environ[runs.LOCKED] = str(runs.run_folder(run_dir, config.load(profile, overrides)))
    run = runs.begin(name, profile, run_dir, overrides)
    grpo = run.profile.grpo if name == "grpo" else None
    if grpo and vllm_server_url:
        grpo.vllm_server_url = vllm_server_url
    start, rows = start_and_rows(run)
    if only_sample:
        return
    model = models.load(start, run.profile, with_vllm=bool(grpo and grpo.generation == "vllm"))
    tokenizer = models.load_tokenizer(start, run.profile)
    more = {"test": prepare.set_aside(run.dir / "data", "sft")} if name == "sft" else {}
    more["probe"] = prepare.set_aside(run.dir / "data", "grpo")
    train = getattr(trainers, name)
    log = train(model, tokenizer, rows, run.profile, run.folder, run.progress, **more)
    if leave():
        trainers.finish(run, tokenizer, log)


def rank() -> int:
    """The number of this process in its job; 0 is the main one."""
    return int(os.environ.get("RANK", 0))


def start_and_rows(run: Run) -> tuple[Path, Rows]:
    """The model that a stage starts from, and the rows it trains on; for GRPO and DPO vLLM may have to sample
    them."""
    start, trains_on = run.start_model(), TRAINED[run.stage].trains_on
    assert trains_on
    rows = prepare.read(run.dir / "data", trains_on)
    if run.stage == "grpo":
        rows, _ = pass_rates.within_pass_rate(start, rows, run)
    if run.stage == "dpo":
        rows = preferences.sample(start, rows, run)
    return start, rows


def leave() -> bool:
    """Leave the process group after training. Returns True in the main process, which continues alone.

    Within the group a merge would be sharded, and the others' wait for it would time out.
    """
    from accelerate import PartialState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()
    unset_hf_deepspeed_config()
    return state.is_main_process


@dataclass(frozen=True)
class Job:
    """A stage, and the processes to train it in."""

    stage: str
    profile: str
    run_dir: str | None
    overrides: list[str]
    strategy: str
    devices: int
    """GPUs of each node, or CPU processes."""
    nodes: int = 1
    cpu: bool = False

    def train(self, rank: str = "0") -> str:
        """The shell command of the node `rank`. Several nodes meet at MASTER_ADDR, the first of them, and
        MASTER_PORT."""
        trl = importlib.util.find_spec("trl")
        assert trl and trl.origin
        processes = self.devices * self.nodes
        name = "single_gpu" if self.strategy == "ddp" and processes == 1 else CONFIGS[self.strategy]
        meet = "--main_process_port 0"  # any that is free
        if self.nodes > 1:
            meet = (
                f'--machine_rank {rank} --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT"'
            )
        return (
            f"{self.python()} -m accelerate.commands.launch"
            f" --config_file {shlex.quote(str(Path(trl.origin).parent / 'accelerate_configs' / name))}.yaml"
            f" --num_processes {processes} --num_machines {self.nodes} {meet}"
            f" --mixed_precision no {self.worker()}"  # model.dtype decides, not TRL's file
        )

    def sample(self) -> str:
        """The shell command to run before, in one process: vLLM samples what the stage trains on."""
        return f"{self.python()} {self.worker()} --only-sample"

    def python(self) -> str:
        """This interpreter; for CPU processes without the GPUs."""
        return ("env CUDA_VISIBLE_DEVICES= " if self.cpu else "") + shlex.quote(sys.executable)

    def worker(self) -> str:
        """The arguments of each process."""
        profile = str(Path(self.profile).absolute()) if self.profile.endswith(".yaml") else self.profile
        arguments = ["-m", "aimo.training.launch", self.stage, "--profile", profile]
        arguments += ["--run-dir", str(Path(self.run_dir).absolute())] if self.run_dir else []
        return shlex.join(arguments + [part for override in self.overrides for part in ("--set", override)])


def launch(job: Job, slurm: bool = False, dry_run: bool = False) -> None:
    """Run a job on this machine, or write its Slurm script. `dry_run` prints the commands or the script, and
    no more.

    AimoError, before anything is written, for what cannot be trained so.
    """
    profile = config.load(job.profile, job.overrides)
    check(job, profile)
    samples = job.stage == "dpo" or (job.stage == "grpo" and profile.grpo and profile.grpo.pass_rate)
    before = [job.sample()] if samples else []
    if slurm:
        folder = runs.run_folder(job.run_dir, profile)
        path, text = folder / "slurm" / f"{job.stage}.slurm", script(job, profile, folder, before)
        if dry_run:
            print(text)
        else:
            runs.begin(job.stage, job.profile, job.run_dir, job.overrides)
            path.parent.mkdir(exist_ok=True)
            runs.write_whole(path, text)
        print(f"sbatch {shlex.quote(str(path))}")
    elif dry_run:
        print("\n".join(before + [job.train(str(node)) for node in range(job.nodes)]))
    else:
        check_machine(job)
        execute(job, [*before, job.train()])


def check(job: Job, profile: Profile) -> None:
    """Check the combination of options, independent of the machine."""
    flag = f"--strategy {job.strategy}"
    if job.stage not in TRAINED:
        raise AimoError(f"stage {job.stage!r} is not launched: use one of {', '.join(TRAINED)}")
    if job.stage not in profile.stages:
        raise AimoError(f"profile {job.profile} has no {job.stage} section; add one")
    if job.strategy not in CONFIGS:
        raise AimoError(f"{flag} is unknown: use one of {', '.join(CONFIGS)}")
    if job.cpu and job.strategy != "ddp":
        raise AimoError(f"{flag}: accelerate shards models on GPUs only; with --cpu take ddp")
    if job.strategy != "ddp" and profile.model.backend == "unsloth":
        raise AimoError(
            f"{flag}: Unsloth does not train sharded models; set model.backend=transformers, or take ddp"
        )
    if job.strategy in ("fsdp", "zero3"):
        if profile.model.load_in_4bit:
            raise AimoError(
                f"{flag}: four-bit weights are not sharded; set model.load_in_4bit=false, "
                "or take ddp or zero2"
            )
        if getattr(profile, job.stage).probe_steps:
            raise AimoError(
                f"{flag}: no process holds a whole model to probe; set {job.stage}.probe_steps=null, "
                "or take ddp or zero2"
            )
    if job.stage == "grpo" and profile.grpo:
        arguments.completions_per_pass(profile.grpo, job.devices * job.nodes)


def gpus() -> int:
    """How many GPUs this machine has."""
    import torch

    return torch.cuda.device_count()


def check_machine(job: Job) -> None:
    """Refuse what this machine cannot run."""
    if job.nodes > 1:
        raise AimoError(
            f"--nodes {job.nodes}: one command starts one node; --dry-run prints each node's, to run where "
            "MASTER_ADDR is the first node's address and MASTER_PORT a free port of it; --slurm writes a "
            "script that does it all"
        )
    if not job.cpu and job.devices > (found := gpus()):
        raise AimoError(
            f"--gpus {job.devices}: this machine has {found}; take fewer, or try it with --cpu {job.devices}"
        )
    if job.strategy.startswith("zero"):
        arguments.require("deepspeed", f"--strategy {job.strategy}")


def execute(job: Job, commands: list[str]) -> None:
    """Run a job's commands here, one after the other.

    Progress goes to the screen, and what the processes write to launch.log in the stage's folder. AimoError
    for what one of them refused; StageError when it failed otherwise.
    """
    run = runs.begin(job.stage, job.profile, job.run_dir, job.overrides)
    if runs.is_finished(run.dir, job.stage):
        print(f"{job.stage}: finished before, kept")
        return
    log = run.folder / "launch.log"
    with progress.Display(run.dir, run.profile) as display, log.open("w") as output:
        display.start(job.stage)
        for command in commands:
            status = follow(command, output)
            if status:
                refused = re.search(r"^aimo: (.*)$", log.read_text(), re.MULTILINE)
                if refused:
                    raise AimoError(refused[1])
                raise StageError(f"stage {job.stage} {explain_exit(status)}; its traceback is in {log}")
        seconds = runs.read_metrics(run.dir)["stages"][job.stage]["seconds"]
        display.finish(job.stage, f"finished in {seconds:.0f} s")


def follow(command: str, output: TextIO) -> int:
    """Run a command to its end; returns its exit status. Ctrl-C ends it and its children, then raises
    AimoError."""
    # In a session of their own, so that Ctrl-C reaches them once, from here.
    process = subprocess.Popen(shlex.split(command), stdout=output, stderr=output, start_new_session=True)
    try:
        while process.poll() is None:  # wait() would sleep through Ctrl-C: polars restarts it
            time.sleep(0.2)
    except KeyboardInterrupt:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise AimoError("interrupted; run the same command again to continue") from None
    return process.returncode


def script(job: Job, profile: Profile, folder: Path, before: list[str]) -> str:
    """The Slurm script of a job, from the template `train.slurm`.

    GRPO with `generation: vllm_server` gets one node more, for the server. `before` are commands to run
    first.
    """
    limit = profile.training.time_limit_s
    serves = profile.grpo and job.stage == "grpo" and profile.grpo.generation == "vllm_server"
    return Template(SLURM.read_text(), trim_blocks=True, keep_trailing_newline=True).render(
        stage=job.stage,
        nodes=job.nodes,
        gpus=job.devices,
        minutes=math.ceil((limit + SPARE_S) / 60) if limit else None,
        here=shlex.quote(str(Path.cwd())),
        logs=shlex.quote(str(folder / "slurm")),
        before=before,
        train=job.train('"$SLURM_PROCID"'),
        server=server(job, profile, folder) if serves else None,
    )


def server(job: Job, profile: Profile, folder: Path) -> dict[str, Any]:
    """The Slurm script's values for the vLLM server: command, model, and the GPUs it is split over."""
    before = profile.trained_before(job.stage)
    base = config.resolve(profile.model.base).absolute()
    model = folder / STAGES[before].product if before else base if base.is_dir() else profile.model.base
    shards = job.devices
    settings = Path(model) / "config.json"
    if settings.exists():  # vLLM splits a model between attention heads
        shards = math.gcd(shards, json.loads(settings.read_text())["num_attention_heads"])
    return {
        "trl": shlex.quote(str(Path(sys.executable).with_name("trl"))),
        "model": shlex.quote(str(model)),
        "shards": shards,
        "max_length": profile.model.max_length,
    }


def main() -> None:
    """One process of a job. Only the main one prints; an AimoError is one line, as in the command line."""
    with contextlib.ExitStack() as stack:
        if rank():
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            app()
        except AimoError as e:
            print(f"aimo: {e}", file=sys.stderr)
            sys.exit(2)


if __name__ == "__main__":
    main()
