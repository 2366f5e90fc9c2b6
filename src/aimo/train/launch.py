"""`aimo launch`: train a stage in several processes, with `accelerate launch` and the configurations that TRL
ships, or as a Slurm job.

Each process runs, for example, `python -m aimo.train.launch sft --profile tiny`: the notebook without plots.
"""

import atexit
import functools
import importlib.util
import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
import yaml
from jinja2 import Template

from aimo import config
from aimo.config import Profile
from aimo.config.profile import STAGES, TRAINED
from aimo.data import prepare
from aimo.evaluation import scores
from aimo.inference import vllm_process
from aimo.inference.errors import AimoError, StageError, explain_exit, redact
from aimo.inference.storage import write_whole
from aimo.run import machine, progress, runs
from aimo.train import arguments, dpo, models, trainers

# Strategies, and TRL's accelerate configurations for them.
CONFIGS = {"ddp": "multi_gpu", "fsdp": "fsdp2", "zero2": "zero2", "zero3": "zero3"}
SLURM = Path(__file__).with_name("train.slurm")
HOST = "127.0.0.1"  # where GRPO's server answers, if it has no node of its own
SPARE_S = 1800  # seconds of a Slurm job beyond the time limit of training: to load, merge and push

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


# ---- One process


@app.command()
def train_stage(
    name: str,
    profile: Annotated[str, typer.Option()],
    run_dir: Annotated[str | None, typer.Option()] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set")] = None,
    vllm_server_url: Annotated[str | None, typer.Option()] = None,
    only_sample: bool = False,
) -> None:
    """Train a stage as its notebook does, together with the other processes; the main one saves the model.
    `only_sample` ends after vLLM has sampled what the stage trains on."""
    if int(os.environ.get("RANK", 0)):  # the main process has locked the run's folder for all
        os.environ[runs.LOCKED] = str(runs.run_folder(run_dir, config.load(profile, overrides)))
    run = runs.begin(name, profile, run_dir, overrides)
    grpo = run.profile.grpo if name == "grpo" else None
    if grpo and vllm_server_url:
        grpo.vllm_server_url = vllm_server_url
    start, data, trains_on = run.start_model(), run.dir / "data", TRAINED[name].trains_on
    assert trains_on
    rows = prepare.read_set(data, trains_on)
    if name == "grpo":
        rows, _ = scores.within_pass_rate(start, rows, run)
    if name == "dpo":
        rows = dpo.sample_pairs(start, rows, run)
    if only_sample:
        return
    # ZeRO-3 shards the weights while they load, but only if DeepSpeed's configuration exists and is kept.
    sharding = arguments.stage_arguments(run) if arguments.zero_3() else None
    model = models.load_model(start, run.profile, with_vllm=bool(grpo and grpo.generation == "vllm"))
    tokenizer = models.load_tokenizer(start, run.profile)
    more = {"test": prepare.read_set(data, "sft_test")} if name == "sft" else {}
    more["probe"] = prepare.read_set(data, "grpo_test")
    log = models.training_of(name)(model, tokenizer, rows, run, **more)
    del sharding, model  # they hold the process group
    if trainers.leave_group():
        trainers.finish(run, tokenizer, log)


def run_process() -> None:
    """Run one process of a job. Only the main process prints; an AimoError is one line, as in `aimo`."""
    status: Any = 1
    if int(os.environ.get("RANK", 0)):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        app()
    except AimoError as e:
        print(f"aimo: {redact(str(e))}", file=sys.stderr)
        status = 2
    except SystemExit as e:
        status = e.code or 0
    except BaseException:
        traceback.print_exc()
    # Exit without shutting the interpreter down: a library's thread that still runs, such as gloo's, might
    # abort the process ("terminate called without an active exception"), and the job would count as failed.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


# ---- Several processes


@dataclass(frozen=True)
class Job:
    """A stage, and the processes to train it in."""

    stage: str
    profile: str
    run_dir: str | None
    overrides: list[str]
    strategy: str
    devices: int  # GPUs of each node, or CPU processes
    nodes: int = 1
    cpu: bool = False
    offload: str | None = None  # what ZeRO keeps in host memory: `optimizer`, or `all` for parameters too
    accelerate: str | None = None  # an accelerate configuration file, instead of TRL's for the strategy
    serve_gpus: int = 0  # how many of the GPUs serve vLLM instead of training

    @property
    def processes(self) -> int:
        return (self.devices - self.serve_gpus) * self.nodes

    def served_in(self, profile: Profile) -> tuple[int, int]:
        """Return how many shards the server splits the model into, between attention heads, and how many
        copies of the model it holds: one if the model is dense."""
        gpus, described = self.serve_gpus or self.devices, config.locate(profile.model.base) / "config.json"
        if not described.exists():
            return gpus, 1
        settings = json.loads(described.read_text())
        shards = math.gcd(gpus, settings["num_attention_heads"])
        has_experts = {"num_experts", "num_local_experts", "n_routed_experts"} & settings.keys()
        return shards, gpus // shards if has_experts else 1

    def command(
        self, what: str, profile: Profile, folder: Path, rank: str = "0", host: str = HOST, port: str = "8000"
    ) -> str:
        """Return a shell command for the run in `folder`: to `sample` what the stage trains on with vLLM, in
        one process; to `train` it with accelerate on node `rank`; or to `serve` GRPO's policy with TRL.

        The server takes the last `serve_gpus`, or a node of its own. It asks for no key, so it answers only
        at `host`. Several nodes meet at MASTER_ADDR, the address of the first, and MASTER_PORT. `rank`,
        `host` and `port` are shell words, inserted as they are.
        """
        every, trains = self.devices, self.devices - self.serve_gpus
        first, end = {"sample": (0, every), "train": (0, trains), "serve": (trains, every)}[what]
        gpus = "" if self.cpu else ",".join(map(str, range(first, end)))
        begin = f"env CUDA_VISIBLE_DEVICES={gpus} " if self.cpu or self.serve_gpus else ""
        if what == "serve":
            before, named = profile.trained_before(self.stage), profile.model.base
            base = config.locate(named).absolute()
            model = folder / STAGES[before].product if before else base if base.is_dir() else named
            shards, copies = self.served_in(profile)
            return (
                f"{begin}{shlex.quote(str(Path(sys.executable).with_name('trl')))} vllm-serve"
                f" --model {shlex.quote(str(model))} --tensor_parallel_size {shards}"
                f" --data_parallel_size {copies} --max_model_len {profile.model.max_length}"
                f" --host {host} --port {port}"
            )

        named = str(Path(self.profile).absolute()) if self.profile.endswith(".yaml") else self.profile
        words = ["-m", "aimo.train.launch", self.stage, "--profile", named]
        words += ["--run-dir", str(Path(self.run_dir).absolute())] if self.run_dir else []
        worker = shlex.join(words + [part for override in self.overrides for part in ("--set", override)])
        begin += shlex.quote(sys.executable)
        if what == "sample":
            return f"{begin} {worker} --only-sample"
        trl = importlib.util.find_spec("trl")
        assert trl and trl.origin
        name = "single_gpu" if self.strategy == "ddp" and self.processes == 1 else CONFIGS.get(self.strategy)
        trls_own = Path(trl.origin).parent / "accelerate_configs" / f"{name}.yaml"
        configuration = Path(self.accelerate).absolute() if self.accelerate else trls_own
        meet = "--main_process_port 0"  # any free one
        if self.nodes > 1:
            meet = f'--machine_rank {rank} --main_process_ip "$MASTER_ADDR"'
            meet += ' --main_process_port "$MASTER_PORT"'
        meet += " --offload_optimizer_device cpu" if self.offload else ""
        meet += " --offload_param_device cpu" if self.offload == "all" else ""
        return (
            f"{begin} -m accelerate.commands.launch --config_file {shlex.quote(str(configuration))}"
            f" --num_processes {self.processes} --num_machines {self.nodes} {meet}"
            f" --mixed_precision no {worker}"  # model.dtype decides, not the file
        )


def strategy_of(file: str) -> str:
    """Return the strategy that an accelerate configuration file asks for; AimoError if it is no such file."""
    try:
        values = yaml.safe_load(Path(file).read_text())
        kind = values["distributed_type"]
        stage = (values.get("deepspeed_config") or {}).get("zero_stage", 3)
    except (OSError, yaml.YAMLError, KeyError, TypeError) as e:
        raise AimoError(
            f"--accelerate {file}: not a file that `accelerate config` writes ({type(e).__name__})"
        ) from None
    return {"DEEPSPEED": f"zero{stage}", "FSDP": "fsdp"}.get(kind, "ddp")


def check_job(job: Job, profile: Profile) -> None:
    """Refuse combinations of options that no machine can train."""
    if job.stage not in TRAINED:
        raise AimoError(f"stage {job.stage!r} is not launched: use one of {', '.join(TRAINED)}")
    if job.stage not in profile.stages:
        raise AimoError(f"profile {job.profile} has no {job.stage} section; add one")
    section, grpo = getattr(profile, job.stage), profile.grpo if job.stage == "grpo" else None
    ddp, sharded = job.strategy == "ddp", job.strategy in ("fsdp", "zero3")
    unsloth, known = profile.model.backend == "unsloth", job.strategy in CONFIGS or job.accelerate
    how = f"--strategy {job.strategy}"
    refusals: dict[str, Any] = {  # message: whether it applies
        f"{how} is unknown: use one of {', '.join(CONFIGS)}": not known,
        f"{how}: accelerate shards models on GPUs only; with --cpu take ddp": job.cpu and not ddp,
        f"{how}: Unsloth does not train sharded models; set model.backend=transformers, or take ddp": unsloth
        and not ddp,
        f"{how}: four-bit weights are not sharded; "
        "set model.load_in_4bit=false, or take ddp or zero2": profile.model.load_in_4bit and sharded,
        f"{how}: no process holds a whole model to probe; "
        f"set {job.stage}.probe_steps=null, or take ddp or zero2": section.probe_steps and sharded,
    }
    if job.offload:
        how, kind = f"--offload {job.offload}", section.optimizer
        fits = {"optimizer": ("zero2", "zero3"), "all": ("zero3",)}.get(job.offload, ())
        refusals |= {
            f"{how} is unknown: use optimizer or all": not fits,
            f"{how}: only ZeRO offloads; take --strategy zero3": job.strategy not in fits,
            f"{how}: on the host only AdamW in 32 bits runs, not {kind}; "
            f"set {job.stage}.optimizer=adamw_torch": not kind.startswith("adamw_torch"),
        }
    if job.serve_gpus:
        how, used = f"--serve-gpus {job.serve_gpus}", math.prod(job.served_in(profile))
        served = grpo and grpo.generation == "vllm_server"
        refusals |= {
            f"{how}: only GRPO samples from a server; set grpo.generation=vllm_server": not served,
            f"{how} is for one node with GPUs; several nodes keep one for it under --slurm": job.nodes > 1
            or job.cpu,
            f"{how}: none of {job.devices} GPUs is left to train; take fewer": job.serve_gpus >= job.devices,
            f"{how}: vLLM splits this model over {used} GPUs and leaves the others; take {used}": used
            < job.serve_gpus,
        }
    for told, wrong in refusals.items():
        if wrong:
            raise AimoError(told)
    if grpo:
        arguments.completions_per_pass(grpo, job.processes)


def launch_job(job: Job, slurm: bool = False, dry_run: bool = False) -> None:
    """Run a job on this machine, or write its Slurm script. `dry_run` only prints the commands or the script.

    Raise AimoError if the job cannot be trained this way, before anything is written, or if a process refused
    something; StageError if a process failed.
    """
    profile = config.load(job.profile, job.overrides)
    check_job(job, profile)
    folder, grpo = runs.run_folder(job.run_dir, profile), profile.grpo if job.stage == "grpo" else None
    command = functools.partial(job.command, profile=profile, folder=folder)
    before = command("sample") if job.stage == "dpo" or (grpo and grpo.pass_rate) else None
    if slurm:
        path, text = folder / "slurm" / f"{job.stage}.slurm", slurm_script(job, profile, folder, before)
        if dry_run:
            print(text)
        else:
            runs.begin(job.stage, job.profile, job.run_dir, job.overrides)
            path.parent.mkdir(exist_ok=True)
            write_whole(path, text)
        print(f"sbatch {shlex.quote(str(path))}")
        return
    if dry_run:
        server = f"{command('serve')} &" if job.serve_gpus else None
        trains = (command("train", rank=str(node)) for node in range(job.nodes))
        print(*filter(None, [before, server, *trains]), sep="\n")
        return
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
        arguments.require_package("deepspeed", f"--strategy {job.strategy}")

    # The run's folder stays locked until the last process has ended, even if this one is killed.
    run = runs.begin(job.stage, job.profile, job.run_dir, job.overrides)
    if runs.is_finished(run.dir, job.stage):
        print(f"{job.stage}: finished before, kept")
        return
    log, lock = run.folder / "launch.log", runs.held(run.dir)
    with progress.Display(run.dir, run.profile) as display, log.open("w") as output:
        display.start(job.stage)
        try:
            if before:
                follow(job, before, output, lock)
            if job.serve_gpus:
                port = vllm_process.free_port(HOST, 0)
                url, vllm_log = f"http://{HOST}:{port}", run.folder / "vllm.log"
                vllm_log.unlink(missing_ok=True)
                serve, health = shlex.split(command("serve", port=str(port))), f"{url}/health/"
                with vllm_process.answering(serve, health, vllm_log, "the policy", lock) as process:
                    follow(job, f"{command('train')} --vllm-server-url {url}", output, lock, process)
            else:
                follow(job, command("train"), output, lock)
        except KeyboardInterrupt:
            raise AimoError("interrupted; run the same command again to continue") from None
        seconds = runs.read_metrics(run.dir)["stages"][job.stage]["seconds"]
        display.finish(job.stage, f"finished in {seconds:.0f} s")


def gpus() -> int:
    return int(machine.load_torch().cuda.device_count())


def follow(
    job: Job,
    command: str,
    output: TextIO,
    lock: Collection[int],
    server: "subprocess.Popen[bytes] | None" = None,
) -> None:
    """Run a command until it, or the `server` that it needs, ends. If either fails, raise AimoError or
    StageError with the reason. Descriptors of `lock` stay open until the last descendant has ended."""
    with vllm_process.running(shlex.split(command), output, lock) as process:
        while process.poll() is None:  # wait() would sleep through Ctrl-C: polars restarts it
            if server and server.poll() is not None:
                raise StageError(
                    f"the vLLM server {explain_exit(server.returncode)}; see vllm.log beside {output.name}"
                )
            time.sleep(0.2)
    if process.returncode:
        refused = re.search(r"^aimo: (.*)$", Path(output.name).read_text(), re.MULTILINE)
        if refused:
            raise AimoError(refused[1])
        raise StageError(
            f"stage {job.stage} {explain_exit(process.returncode)}; its traceback is in {output.name}"
        )


def slurm_script(job: Job, profile: Profile, folder: Path, sample: str | None) -> str:
    """Return `train.slurm`, filled in. GRPO with `generation: vllm_server` gets one more node for the server,
    unless `serve_gpus` sets GPUs of its own node aside."""
    limit, logs = profile.training.time_limit_s, str(folder / "slurm")
    serves = bool(job.stage == "grpo" and profile.grpo and profile.grpo.generation == "vllm_server")
    train = job.command("train", profile, folder, rank='"$SLURM_PROCID"')
    return Template(SLURM.read_text(), keep_trailing_newline=True).render(
        stage=job.stage,
        nodes=job.nodes + (serves and not job.serve_gpus),
        gpus=job.devices,
        time=f"#SBATCH --time={math.ceil((limit + SPARE_S) / 60)}" if limit else "# no time limit",
        here=shlex.quote(str(runs.run_folder(Path.cwd(), profile))),
        pattern=shlex.quote(logs.replace("%", "%%") + f"/{job.stage}-%j.log"),  # %j is the job's number
        train_nodes=job.nodes,
        samples=int(bool(sample)),
        serves=int(serves),
        logs=shlex.quote(logs),
        sample=sample or "true",
        serve=job.command("serve", profile, folder, host='"$HOST"', port='"$PORT"') if serves else "true",
        train=train + (' --vllm-server-url "$SERVER"' if serves else ""),
    )


if __name__ == "__main__":
    run_process()
