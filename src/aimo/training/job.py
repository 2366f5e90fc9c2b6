"""A job of `aimo launch`: a stage and the processes that train it, their commands, and what cannot run so.

Nothing here asks the machine. Out of scope: running the commands, which is `launch`.
"""

import importlib.util
import json
import math
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from aimo import config
from aimo.config import Profile
from aimo.errors import AimoError
from aimo.stages import STAGES, TRAINED
from aimo.training import arguments

CONFIGS = {"ddp": "multi_gpu", "fsdp": "fsdp2", "zero2": "zero2", "zero3": "zero3"}
"""Strategies, and TRL's accelerate configurations for them."""


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
    offload: str | None = None
    """What ZeRO keeps in the host's memory: `optimizer`, or `all`, the parameters too."""
    accelerate: str | None = None
    """A configuration file of accelerate's in place of TRL's for the strategy."""
    serve_gpus: int = 0
    """How many of the GPUs serve vLLM instead of training."""

    @property
    def processes(self) -> int:
        """How many processes train."""
        return (self.devices - self.serve_gpus) * self.nodes

    def train(self, rank: str = "0") -> str:
        """The shell command of the node `rank`. Several nodes meet at MASTER_ADDR, the first of them, and
        MASTER_PORT."""
        meet = "--main_process_port 0"  # any that is free
        if self.nodes > 1:
            meet = (
                f'--machine_rank {rank} --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT"'
            )
        offload = " --offload_optimizer_device cpu" if self.offload else ""
        if self.offload == "all":
            offload += " --offload_param_device cpu"
        return (
            f"{self.python(self.devices - self.serve_gpus)} -m accelerate.commands.launch"
            f" --config_file {shlex.quote(str(self.configuration()))}"
            f" --num_processes {self.processes} --num_machines {self.nodes} {meet}{offload}"
            f" --mixed_precision no {self.worker()}"  # model.dtype decides, not the file
        )

    def configuration(self) -> Path:
        """The configuration file for accelerate: one's own, or TRL's."""
        if self.accelerate:
            return Path(self.accelerate).absolute()
        trl = importlib.util.find_spec("trl")
        assert trl and trl.origin
        name = "single_gpu" if self.strategy == "ddp" and self.processes == 1 else CONFIGS[self.strategy]
        return Path(trl.origin).parent / "accelerate_configs" / f"{name}.yaml"

    def sample(self) -> str:
        """The shell command to run before, in one process: vLLM samples what the stage trains on."""
        return f"{self.python(self.devices)} {self.worker()} --only-sample"

    def python(self, gpus: int) -> str:
        """This interpreter, with the first `gpus` GPUs."""
        return self.visible(0, gpus) + shlex.quote(sys.executable)

    def visible(self, first: int, end: int) -> str:
        """What a command begins with that may use the GPUs from `first` on, before `end`."""
        if self.cpu:
            return "env CUDA_VISIBLE_DEVICES= "
        shared = ",".join(map(str, range(first, end)))
        return f"env CUDA_VISIBLE_DEVICES={shared} " if self.serve_gpus else ""

    def serve(self, profile: Profile, folder: Path, host: str = "127.0.0.1", port: str = "8000") -> str:
        """The shell command of GRPO's vLLM server: on the last `serve_gpus`, or on a node of its own.

        It asks for no key, so `host` is the one address that it answers at. `host` and `port` are words of
        the shell.
        """
        before = profile.trained_before(self.stage)
        base = config.resolve(profile.model.base).absolute()
        model = folder / STAGES[before].product if before else base if base.is_dir() else profile.model.base
        shards, copies = self.served_in(profile)
        trl = shlex.quote(str(Path(sys.executable).with_name("trl")))
        return (
            f"{self.visible(self.devices - self.serve_gpus, self.devices)}{trl} vllm-serve"
            f" --model {shlex.quote(str(model))} --tensor_parallel_size {shards}"
            f" --data_parallel_size {copies} --max_model_len {profile.model.max_length}"
            f" --host {host} --port {port}"
        )

    def served_in(self, profile: Profile) -> tuple[int, int]:
        """Into how many parts the server splits the model, and how many copies of them it holds.

        vLLM splits between attention heads. GPUs that are left hold more copies of a mixture of experts; of
        a dense model a server holds one, and TRL asks one server.
        """
        gpus, described = self.serve_gpus or self.devices, config.resolve(profile.model.base) / "config.json"
        if not described.exists():
            return gpus, 1
        settings = json.loads(described.read_text())
        shards = math.gcd(gpus, settings["num_attention_heads"])
        has_experts = {"num_experts", "num_local_experts", "n_routed_experts"} & settings.keys()
        return shards, gpus // shards if has_experts else 1

    def worker(self) -> str:
        """The arguments of each process."""
        profile = str(Path(self.profile).absolute()) if self.profile.endswith(".yaml") else self.profile
        arguments = ["-m", "aimo.training.launch", self.stage, "--profile", profile]
        arguments += ["--run-dir", str(Path(self.run_dir).absolute())] if self.run_dir else []
        return shlex.join(arguments + [part for override in self.overrides for part in ("--set", override)])


def strategy_of(file: str) -> str:
    """The strategy that a configuration file of accelerate's asks for."""
    try:
        values = yaml.safe_load(Path(file).read_text())
        kind = values["distributed_type"]
        stage = (values.get("deepspeed_config") or {}).get("zero_stage", 3)
    except (OSError, yaml.YAMLError, KeyError, TypeError) as e:
        raise AimoError(
            f"--accelerate {file}: not a file that `accelerate config` writes ({type(e).__name__})"
        ) from None
    return {"DEEPSPEED": f"zero{stage}", "FSDP": "fsdp"}.get(kind, "ddp")


def check(job: Job, profile: Profile) -> None:
    """Check the combination of options, independent of the machine."""
    flag = f"--strategy {job.strategy}"
    if job.stage not in TRAINED:
        raise AimoError(f"stage {job.stage!r} is not launched: use one of {', '.join(TRAINED)}")
    if job.stage not in profile.stages:
        raise AimoError(f"profile {job.profile} has no {job.stage} section; add one")
    if job.strategy not in CONFIGS and not job.accelerate:
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
    if job.offload:
        check_offload(job, profile)
    if job.serve_gpus:
        check_serving(job, profile)
    if job.stage == "grpo" and profile.grpo:
        arguments.completions_per_pass(profile.grpo, job.processes)


def check_offload(job: Job, profile: Profile) -> None:
    """Check that ZeRO can keep in the host's memory what it shall."""
    flag, fits = f"--offload {job.offload}", {"optimizer": ("zero2", "zero3"), "all": ("zero3",)}
    if job.offload not in fits:
        raise AimoError(f"{flag} is unknown: use optimizer or all")
    if job.strategy not in fits[job.offload]:
        raise AimoError(f"{flag}: only ZeRO offloads; take --strategy {fits[job.offload][-1]}")
    optimizer = getattr(profile, job.stage).optimizer
    if not optimizer.startswith("adamw_torch"):
        raise AimoError(
            f"{flag}: on the host only AdamW in 32 bits runs, not {optimizer}; "
            f"set {job.stage}.optimizer=adamw_torch"
        )


def check_serving(job: Job, profile: Profile) -> None:
    """Check that a job can keep some GPUs for a vLLM server."""
    flag = f"--serve-gpus {job.serve_gpus}"
    if job.stage != "grpo" or not profile.grpo or profile.grpo.generation != "vllm_server":
        raise AimoError(f"{flag}: only GRPO samples from a server; set grpo.generation=vllm_server")
    if job.nodes > 1 or job.cpu:
        raise AimoError(f"{flag} is for one node with GPUs; several nodes keep one for it under --slurm")
    if job.serve_gpus >= job.devices:
        raise AimoError(f"{flag}: none of {job.devices} GPUs is left to train; take fewer")
    used = math.prod(job.served_in(profile))
    if used < job.serve_gpus:
        raise AimoError(f"{flag}: vLLM splits this model over {used} GPUs and leaves the others; take {used}")
