"""`aimo launch`: a training stage in several processes, by `accelerate launch` with the configurations that TRL ships, or as a Slurm job.

`stage` is what each process runs, also as `python -m aimo.training.launch sft --profile tiny`: the notebook without its pictures.
Out of scope: several nodes without Slurm, but for printing each node's command.
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
from typing import Annotated

import typer

from aimo import config, hub, progress, runs
from aimo.config import Profile
from aimo.data import prepare
from aimo.data.prepare import Rows
from aimo.errors import AimoError, StageError
from aimo.evaluation import metrics
from aimo.runs import Run
from aimo.stages import TRAINED
from aimo.training import models, preferences, trainers

CONFIGS = {"ddp": "multi_gpu", "fsdp": "fsdp2", "zero2": "zero2", "zero3": "zero3"}
SPARE_S = 1800  # of a Slurm job beyond the time limit of training: to load, merge and push

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
    """Train a stage as its notebook does, in this process and those launched with it; the main one saves the model and finishes.

    `only_sample` ends before training: what vLLM samples for the rows is kept in the stage's folder, and drawn by one process.
    """
    run = runs.begin(name, profile, run_dir, overrides)  # type: ignore[arg-type]
    if vllm_server_url:
        run.profile.grpo.vllm_server_url = vllm_server_url
    start, rows = start_and_rows(run)
    if only_sample:
        return
    model = models.load(
        start, run.profile, with_vllm=name == "grpo" and run.profile.grpo.generation == "vllm"
    )
    tokenizer = models.load_tokenizer(start, run.profile)
    test = {"test": prepare.set_aside(run.dir / "data", "sft")} if name == "sft" else {}
    probe = prepare.set_aside(run.dir / "data", "grpo")
    train = getattr(trainers, name)
    log = train(model, tokenizer, rows, run.profile, run.folder, run.progress, probe=probe, **test)
    if leave():
        figures = trainers.summary(log)
        models.save(
            run.folder / "trained",
            start,
            tokenizer,
            run.profile,
            run.folder / "model",
            figures | run.data_hash(),
        )
        hub.push(run.folder / "model", run.profile)
        run.finish(**figures)


def start_and_rows(run: Run) -> tuple[Path, Rows]:
    """The model that a stage starts from, and what it trains on."""
    folder = run.dir / "data"
    if run.stage == "sft":
        return hub.local_folder(run.profile.model.base), prepare.read(folder, "sft")
    start, rows = (
        run.dir / ("sft/model" if run.stage == "grpo" else "grpo/model"),
        prepare.read(folder, "grpo"),
    )
    return start, metrics.within_pass_rate(start, rows, run)[
        0
    ] if run.stage == "grpo" else preferences.sample(start, rows, run)


def leave() -> bool:
    """Leave the group of processes once all have trained; True in the main one, which goes on alone.

    In the group a merge would be sharded, and the others would lose patience waiting for it.
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
        """What the shell runs on the node of this rank; several nodes meet at MASTER_ADDR, the first of them, and MASTER_PORT."""
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
        """What is run before, in one process: vLLM samples that the stage trains on."""
        return f"{self.python()} {self.worker()} --only-sample"

    def python(self) -> str:
        """This interpreter, blind to GPUs for CPU processes."""
        return ("env CUDA_VISIBLE_DEVICES= " if self.cpu else "") + shlex.quote(sys.executable)

    def worker(self) -> str:
        """What each process runs."""
        profile = str(Path(self.profile).absolute()) if self.profile.endswith(".yaml") else self.profile
        arguments = ["-m", "aimo.training.launch", self.stage, "--profile", profile]
        arguments += ["--run-dir", str(Path(self.run_dir).absolute())] if self.run_dir else []
        return shlex.join(arguments + [part for override in self.overrides for part in ("--set", override)])


def launch(job: Job, slurm: bool = False, dry_run: bool = False) -> None:
    """Run a job on this machine, or write its Slurm script; `dry_run` prints the commands, or the script, and does nothing."""
    profile = config.load(job.profile, job.overrides)
    check(job, profile)
    before = [job.sample()] if job.stage == "dpo" or (job.stage == "grpo" and profile.grpo.pass_rate) else []
    if slurm:
        folder = Path(job.run_dir or config.ROOT / "runs" / profile.profile).absolute()
        path, text = folder / "slurm" / f"{job.stage}.slurm", script(job, profile, folder, before)
        if dry_run:
            print(text)
        else:
            runs.begin(job.stage, job.profile, job.run_dir, job.overrides)
            path.parent.mkdir(exist_ok=True)
            runs.write_whole(path, text)
        print(f"sbatch {shlex.quote(str(path))}")
    elif dry_run:
        print("\n".join(before + [job.train(str(rank)) for rank in range(job.nodes)]))
    else:
        check_machine(job)
        execute(job, [*before, job.train()])


def check(job: Job, profile: Profile) -> None:
    """Refuse what does not go together, wherever it is to run."""
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
                f"{flag}: four-bit weights are not sharded; set model.load_in_4bit=false, or take ddp or zero2"
            )
        if getattr(profile, job.stage).probe_steps:
            raise AimoError(
                f"{flag}: no process holds a whole model to probe; set {job.stage}.probe_steps=null, or take ddp or zero2"
            )
    if job.stage == "grpo":
        trainers.completions_at_once(profile.grpo, job.devices * job.nodes)


def gpus() -> int:
    """How many GPUs this machine has."""
    import torch

    return torch.cuda.device_count()


def check_machine(job: Job) -> None:
    """Refuse what this machine cannot run."""
    if job.nodes > 1:
        raise AimoError(
            f"--nodes {job.nodes}: one command starts one node; --dry-run prints each node's, to run where MASTER_ADDR is the first node's "
            "address and MASTER_PORT a free port of it; --slurm writes a script that does it all"
        )
    if not job.cpu and job.devices > (found := gpus()):
        raise AimoError(
            f"--gpus {job.devices}: this machine has {found}; take fewer, or try it with --cpu {job.devices}"
        )
    if job.strategy.startswith("zero"):
        trainers.require("deepspeed", f"--strategy {job.strategy}")


def execute(job: Job, commands: list[str]) -> None:
    """Run a job's commands here: progress goes to the screen, and all that the processes say to launch.log in the stage's folder."""
    run = runs.begin(job.stage, job.profile, job.run_dir, job.overrides)
    log = run.folder / "launch.log"
    if "seconds" in runs.read_metrics(run.dir)["stages"].get(job.stage, {}):
        print(f"{job.stage}: finished before, kept")
        return
    with progress.Display(run.dir, run.profile) as display, log.open("w") as said:
        display.start(job.stage)
        for command in commands:
            # In a session of their own, so that Ctrl-C reaches them once, from here.
            process = subprocess.Popen(shlex.split(command), stdout=said, stderr=said, start_new_session=True)
            try:
                while process.poll() is None:  # wait() would sleep through Ctrl-C: polars restarts it
                    time.sleep(0.2)
            except KeyboardInterrupt:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                process.wait()
                raise AimoError("interrupted; run the same command again to go on") from None
            if process.returncode:
                told = re.search(r"^aimo: (.*)$", log.read_text(), re.MULTILINE)
                raise (
                    AimoError(told[1])
                    if told
                    else StageError(f"stage {job.stage} failed; its traceback is in {log}")
                )
        seconds = runs.read_metrics(run.dir)["stages"][job.stage]["seconds"]
        display.finish(job.stage, f"finished in {seconds:.0f} s")


def script(job: Job, profile: Profile, folder: Path, before: list[str]) -> str:
    """The Slurm script of a job; GRPO with `generation: vllm_server` gets one node more, for the server."""
    logs = shlex.quote(str(folder / "slurm"))
    serves = job.stage == "grpo" and profile.grpo.generation == "vllm_server"
    limit = profile.training.time_limit_s
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name=aimo-{job.stage}",
        f"#SBATCH --nodes={job.nodes + serves}",
        "#SBATCH --ntasks-per-node=1",
        f"#SBATCH --gpus-per-node={job.devices}",
        "#SBATCH --exclusive",
        "#SBATCH --mem=0",
        *([f"#SBATCH --time={math.ceil((limit + SPARE_S) / 60)}"] if limit else []),
        "#SBATCH --requeue",
        f"#SBATCH --chdir={shlex.quote(str(Path.cwd()))}",
        f"#SBATCH --output={logs}/{job.stage}-%j.log",
        "# Partition and account are your cluster's: give them to sbatch.",
        "set -euo pipefail",
        'nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))',
    ]
    on_one = "srun --nodes=1 --ntasks=1 --cpu-bind=none"
    lines += [f'{on_one} --nodelist="${{nodes[0]}}" {command}' for command in before]
    if serves:
        heads = folder / "sft/model/config.json"
        # vLLM splits a model between attention heads.
        shards = (
            math.gcd(job.devices, json.loads(heads.read_text())["num_attention_heads"])
            if heads.exists()
            else job.devices
        )
        lines += [
            'export SERVER="http://${nodes[-1]}:8000"',
            f'{on_one} --nodelist="${{nodes[-1]}}" --output={logs}/vllm-%j.log \\',
            f"    {shlex.quote(str(Path(sys.executable).with_name('trl')))} vllm-serve --model {shlex.quote(str(folder / 'sft/model'))} \\",
            f"    --tensor_parallel_size {shards} --max_model_len {profile.model.max_length} &",
            'until curl --silent --fail --output /dev/null "$SERVER/health/"; do',
            f'    kill -0 $! || {{ echo "The vLLM server ended: see" {logs}/vllm-"$SLURM_JOB_ID".log; exit 1; }}',
            "    sleep 5",
            "done",
        ]
    lines += [
        'export MASTER_ADDR="${nodes[0]}" MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))',
        "train() {",
        "    " + job.train('"$SLURM_PROCID"') + (' --vllm-server-url "$SERVER"' if serves else ""),
        "}",
        "export -f train",
        f"srun --nodes={job.nodes} --ntasks={job.nodes} --cpu-bind=none --kill-on-bad-exit=1 \\",
        f'    --nodelist="$(IFS=,; echo "${{nodes[*]:0:{job.nodes}}}")" bash -c train',
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """One process of a job. Only the main one prints; a user's mistake is one line, as in the command line."""
    with contextlib.ExitStack() as stack:
        if int(os.environ.get("RANK", 0)):
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            app()
        except AimoError as e:
            print(f"aimo: {e}", file=sys.stderr)
            sys.exit(2)


if __name__ == "__main__":
    main()
