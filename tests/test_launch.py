"""A stage in two processes gives what it gives in one; Slurm is played by two small scripts that start its
tasks here."""

import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import AIMO, SMALL, TINY, aimo, here, left_of, settings, wait_for

from aimo import config
from aimo.data import prepare
from aimo.inference.errors import AimoError, StageError
from aimo.inference.storage import read_lines
from aimo.run import runs
from aimo.train import launch, models
from aimo.train.launch import Job, launch_job, strategy_of

FEW = """
model.backend=transformers data.sft.test_split=0.1 data.grpo.test_split=0.1
sft.batch_size=4 sft.eval_steps=4 sft.max_steps=10 sft.save_steps=1
grpo.max_steps=2 grpo.prompts_per_step=2 grpo.max_completion_length=24 grpo.sample_steps=1 grpo.max_resample=3
"""
QUICK = [*SMALL, *FEW.split()]
SERVED = "grpo.generation=vllm_server"
OPD = f"opd={{teacher: {TINY}, learning_rate: 1.0e-3, probe_steps: 2}}"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """What the data stage leaves; each run has a copy."""

    p = config.load("tiny", QUICK)
    run = runs.Run(p, tmp_path_factory.mktemp("data"), "data", time.time())
    sets = prepare.clean_sets(prepare.load_sets(p), p, models.load_tokenizer(TINY, p))
    prepare.write_sets(prepare.format_sets(sets, p), sets, p, run.folder)
    return run.folder


@pytest.fixture
def prepared(data, tmp_path) -> Path:
    return shutil.copytree(data, tmp_path / "run/data").parent


def losses(folder: Path) -> dict[int, float]:
    records = read_lines(folder / "sft/log.jsonl")
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def asked(stage: str, folder: Path, *arguments: str, overrides: list[str] = QUICK) -> list[str]:
    return ["launch", stage, "--profile", "tiny", "--run-dir", str(folder), *arguments, *settings(overrides)]


def process_of(stage: str, folder: Path, overrides: list[str], code: str = "") -> Any:
    """A process of a job that is started by hand, alone, to its end; or this code with its arguments."""
    command = [sys.executable, *(["-c", code] if code else ["-m", "aimo.train.launch"])]
    command += [stage, "--profile", "tiny", "--run-dir", str(folder), *settings(overrides)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def one(data, tmp_path_factory) -> dict[int, float]:
    """The losses of SFT in one process, by step."""
    folder = shutil.copytree(data, tmp_path_factory.mktemp("one") / "run/data").parent
    process_of("sft", folder, [*QUICK, "sft.batch_size=8"])
    assert (folder / "sft/model/aimo.json").exists()
    return losses(folder)


@pytest.mark.train
def test_two_processes_stopped_by_ctrl_c_and_started_again_have_the_losses_of_one_with_twice_the_batch(
    one, prepared
):
    command = asked("sft", prepared, "--cpu", "2")
    process = subprocess.Popen([str(AIMO), *command], stderr=subprocess.PIPE, text=True)
    saved = "sft/checkpoint-*/trainer_state.json"
    wait_for(lambda: list(prepared.glob(saved)) or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert stderr == "aimo: interrupted; run the same command again to continue\n"
    left = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True).stdout
    assert str(prepared) not in left, "a process is left"
    done = aimo(*command)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.startswith("sft: started\n") and "sft: finished in" in done.stdout
    # The main process alone prints and writes, and rows are tokenized once.
    log = (prepared / "sft/launch.log").read_text()
    assert log.count("Continuing from checkpoint-") == log.count("Training in float32") == 1
    assert "Tokenizing" not in log and len(list(prepared.glob("sft/tokens/*"))) == 2
    assert "Aborted" not in log and "terminate called" not in log
    # Each step has the same rows, and the loss is a mean over the tokens of both processes; rounding differs.
    assert losses(prepared) == pytest.approx(one, rel=1e-4) and list(one) == list(range(1, 11))

    # GRPO splits the completions between them.
    command = asked("grpo", prepared, "--cpu", "2")
    done = aimo(*command)
    assert done.returncode == 0, done.stderr
    records = read_lines(prepared / "grpo/log.jsonl")
    assert [r["step"] for r in records if "probe/accuracy" in r] == [0, 2]
    assert [2 <= r["groups/tried"] <= 6 for r in records if "loss" in r] == [True, True]
    state = json.loads((prepared / "grpo/checkpoint-2/trainer_state.json").read_text())
    assert state["train_batch_size"] == 2 * 4 / 2
    assert here(*command).stdout == "grpo: finished before, kept\n"
    runs.unlock(prepared)


@pytest.mark.slow  # two processes of a job, up to their training
def test_a_killed_launch_leaves_no_rank_and_the_folder_stays_locked_until_the_last_has_ended(
    prepared, tmp_path
):
    with (tmp_path / "out").open("w") as output:
        command = [str(AIMO), *asked("sft", prepared, "--cpu", "2")]
        process = psutil.Popen(command, stdout=output, stderr=output)

    def can_lock() -> bool:
        with (prepared / "lock").open("a") as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    # aimo's guard, accelerate and two ranks
    wait_for(lambda: process.poll() is not None or len(process.children(recursive=True)) >= 4)
    below = process.children(recursive=True)
    assert process.poll() is None and not can_lock()
    process.terminate()
    process.wait(10)
    wait_for(can_lock, 60)
    assert left_of(below) == [], (prepared / "sft/launch.log").read_text()[-2000:]


# ---- GRPO with vLLM, on a CPU


SKIPPING = """
import runpy, torch
from aimo.train import compat

synchronize, calls = compat.ExactGeneration.sync_weights, []

def all_but_the_fifth(self):
    calls.append(1)
    if len(calls) != 5:
        before = [parameter.clone() for parameter in self.model.parameters()]
        synchronize(self)
        assert all(map(torch.equal, before, self.model.parameters())), "a weight was rounded"

compat.ExactGeneration.sync_weights = all_but_the_fifth
runpy.run_module("aimo.train.launch", run_name="__main__")
"""
WITH_VLLM = """
sft=null grpo.generation=vllm grpo.probe_steps=null grpo.learning_rate=0.005 grpo.max_steps=6
grpo.save_steps=2 grpo.trl.save_total_limit=9 grpo.prompts_per_step=4
"""


# Another run takes the port that TRL has found free.
TAKEN = """
import socket
from trl.trainer import utils

taken = socket.create_server(("", 0))
utils._find_free_port = lambda: taken.getsockname()[1]
"""


@pytest.mark.engine
@pytest.mark.train
def test_vllm_samples_with_the_weights_of_the_step_before_and_one_that_it_did_not_get_is_flagged(prepared):
    """vLLM's log-probabilities of the tokens that it sampled are the trainer's. They differ by 0.001 to 0.004
    on average; by 0.12, 0.16 and 0.36 at steps 2 to 4 when vLLM keeps the weights of the start."""
    measured, overrides = "sampling/sampling_logp_difference", [*QUICK, *WITH_VLLM.split()]

    def steps(code: str = "") -> tuple[list[dict[str, Any]], list[int], str]:
        done = process_of("grpo", prepared, overrides, code)
        log = [record for record in read_lines(prepared / "grpo/log.jsonl") if "loss" in record]
        assert [record["step"] for record in log] == [1, 2, 3, 4, 5, 6]
        assert all(0 < record["sampling/importance_sampling_ratio/mean"] < 2 for record in log)
        above = [r["step"] for r in log if r[f"{measured}/mean"] > r[f"{measured}/bound"]]
        return log, above, done.stdout

    whole, above, told = steps(TAKEN + SKIPPING)
    assert above == [5], [record[f"{measured}/mean"] for record in whole]
    assert told.count("the weights of an earlier step") == 1 and "Step 5: " in told
    for left in ("checkpoint-4", "checkpoint-6", "model", "trained"):
        shutil.rmtree(prepared / "grpo" / left)
    again, above, _ = steps()
    assert not above and max(record[f"{measured}/mean"] for record in again) < 0.02
    for step in (2, 3):  # it continued from the second
        assert again[step]["reward"] == whole[step]["reward"]
        assert again[step]["loss"] == pytest.approx(whole[step]["loss"], abs=1e-3)  # vLLM rounds


# ---- Slurm


def programs(folder: Path, **texts: str) -> str:
    """A PATH that begins with these shell scripts."""
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


TASKS = """while [[ $1 == --* ]]; do [[ $1 == --ntasks=* ]] && tasks=${1#*=}; shift; done
for ((i = 0; i < tasks; i++)); do SLURM_PROCID=$i "$@" & done
wait
"""


@pytest.mark.train
def test_the_slurm_script_trains_on_two_nodes_what_one_process_trains(one, prepared, tmp_path):
    done = here(*asked("sft", prepared, "--gpus", "1", "--nodes", "2", "--slurm"))
    runs.unlock(prepared)
    script = prepared / "slurm/sft.slurm"
    assert done.stdout == f"sbatch {script}\n"
    slurm = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "two",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",  # both nodes are this machine; srun runs a task for each
        "PATH": programs(tmp_path / "bin", scontrol="echo 127.0.0.1\necho 127.0.0.1\n", srun=TASKS),
    }
    command = ["timeout", "180", "bash", str(script)]  # nodes that do not meet would wait half an hour
    subprocess.run(command, check=True, capture_output=True, env=os.environ | slurm)
    assert losses(prepared) == pytest.approx(one, rel=1e-4) and (prepared / "sft/model").exists()


def job(stage="grpo", overrides=(), strategy="ddp", devices=8, nodes=1, cpu=False, run_dir="run", **more):
    every = ["model.backend=transformers", *overrides]
    return Job(stage, "tiny", run_dir, every, strategy, devices, nodes, cpu, **more)


def printed(capsys, **more) -> list[str]:
    """The commands of a dry run."""
    launch_job(job(**more), dry_run=True)
    return capsys.readouterr().out.splitlines()


def written(capsys, tmp_path, **more) -> str:
    """The Slurm script of a dry run, which bash can read."""
    launch_job(job(run_dir=str(tmp_path / "a run"), **more), slurm=True, dry_run=True)
    text = capsys.readouterr().out
    script = text.rsplit("sbatch ", 1)[0]
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
    assert "{{" not in script and "{%" not in script, "a part of the template was not filled in"
    assert list(tmp_path.iterdir()) == []
    return text


def test_the_slurm_job_has_the_nodes_the_time_and_the_server_that_the_profile_needs(tmp_path, capsys):
    plain = written(capsys, tmp_path, nodes=2)
    assert "--nodes=2\n" in plain and "--gpus-per-node=8\n" in plain
    assert "--time" not in plain and "vllm-serve" not in plain
    keys = [SERVED, "training.time_limit_s=36000", "grpo.pass_rate=[0.1, 0.9]"]
    serving = written(capsys, tmp_path, nodes=2, overrides=keys)
    assert "--nodes=3\n" in serving and "--time=630\n" in serving and "trl vllm-serve" in serving
    assert f"--model '{tmp_path}/a run/sft/model'" in serving
    assert serving.count("--only-sample") == 1 and '--vllm-server-url "$SERVER"' in serving
    assert "--num_processes 16 --num_machines 2" in serving, "the server's node trains too"
    first, second = printed(capsys, nodes=2)
    assert "--machine_rank 0 " in first and first.replace("--machine_rank 0", "--machine_rank 1") == second


@pytest.mark.parametrize(
    "base, serve_gpus, told",
    [  # attention heads split evenly; of a mixture of experts, the GPUs that are left hold more copies
        (TINY, 0, f"--model {TINY} --tensor_parallel_size 2 --data_parallel_size 1 "),  # 6 heads
        ("Qwen/Qwen3-4B", 0, "--model Qwen/Qwen3-4B --tensor_parallel_size 8 --data_parallel_size 1 "),
        ("experts", 4, "--tensor_parallel_size 2 --data_parallel_size 2 "),
    ],
)
def test_the_server_of_grpo_without_sft_has_the_base_on_the_gpus_that_it_can_use(
    tmp_path, base, serve_gpus, told
):
    if base == "experts":
        (base := tmp_path / base).mkdir()
        (base / "config.json").write_text('{"num_attention_heads": 6, "num_local_experts": 32}')
    overrides = ["sft=null", SERVED, f"model.base={base}"]
    asked = job(overrides=overrides, serve_gpus=serve_gpus)
    assert told in asked.command("serve", config.load("tiny", asked.overrides), tmp_path)


def test_grpos_server_keeps_its_gpus_and_answers_at_one_address_alone(tmp_path, capsys):
    """It asks for no key."""
    apart = written(capsys, tmp_path, overrides=[SERVED])
    beside = written(capsys, tmp_path, overrides=[SERVED], serve_gpus=2, devices=4)
    for script, nodes in ((apart, 2), (beside, 1)):
        assert '--host "$HOST" --port "$PORT"' in script and f"\nNODES={nodes} TRAIN_NODES=1 " in script
    assert "env CUDA_VISIBLE_DEVICES=2,3 " in beside and "env CUDA_VISIBLE_DEVICES=0,1 " in beside
    keys = [SERVED, "grpo.gradient_accumulation_steps=2"]
    serve, train = printed(capsys, overrides=keys, serve_gpus=2, devices=4)
    assert serve.startswith("env CUDA_VISIBLE_DEVICES=2,3 ") and "vllm-serve" in serve
    assert train.startswith("env CUDA_VISIBLE_DEVICES=0,1 ") and "--num_processes 2 " in train
    assert "--host 127.0.0.1 " in serve and "0.0.0.0" not in apart + beside + serve


def test_a_line_break_in_a_path_is_no_line_of_the_script(tmp_path, monkeypatch):
    name = "a\nb"
    with pytest.raises(AimoError, match="has a control character; take another folder"):
        launch_job(job(run_dir=str(tmp_path / name)), slurm=True, dry_run=True)
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(AimoError, match="has a control character"):
        launch_job(job(run_dir=str(tmp_path / "run")), slurm=True, dry_run=True)


SRUN = r"""printf "%s\n" "$@" > "$SHOWN.$$"
[[ $* == *" bash -c "* ]] && exec bash -c "${@: -1}"
exit 0
"""


@pytest.mark.parametrize("name", ["a b$HOME", "a'b", 'a"b', "a;touch x", "a$(touch x)`touch x`", "50%j"])
def test_a_path_reaches_every_command_as_it_is(tmp_path, capsys, name):
    folder, shown = tmp_path / name / "run", tmp_path / "shown"
    launch_job(
        job(run_dir=str(folder), overrides=[SERVED], serve_gpus=2, devices=4), slurm=True, dry_run=True
    )
    script, _, told = capsys.readouterr().out.rpartition("sbatch ")
    assert shlex.split(told) == [str(folder / "slurm" / "grpo.slurm")]
    outputs = [line for line in script.splitlines() if line.startswith("#SBATCH --output=")]
    assert shlex.split(outputs[0][8:]) == [f"--output={str(folder).replace('%', '%%')}/slurm/grpo-%j.log"]
    for program in (sys.executable, Path(sys.executable).with_name("trl")):
        script = script.replace(f"{shlex.quote(str(program))} ", "srun ")
    path = programs(tmp_path / "bin", srun=SRUN, scontrol="echo 127.0.0.1\n", curl="")
    env = os.environ | {"PATH": path, "SLURM_JOB_ID": "7", "SHOWN": str(shown), "SLURM_JOB_NODELIST": "x"}
    subprocess.run(["bash"], input=f"{script}\nwait", text=True, env=env, cwd=tmp_path, check=True)
    words = "\n".join(path.read_text() for path in tmp_path.glob("shown.*")).split("\n")
    assert words[words.index("--run-dir") + 1] == str(folder)
    assert words[words.index("--host") + 1] == "127.0.0.1", "on the node that trains too, it is its own"
    assert words[words.index("--model") + 1] == str(folder / "sft" / "model")
    assert not list(tmp_path.rglob("x"))


# ---- Commands and refusals


@pytest.mark.parametrize(
    "text, strategy",
    [
        ("distributed_type: MULTI_GPU", "ddp"),
        ("distributed_type: FSDP", "fsdp"),
        ("{distributed_type: DEEPSPEED, deepspeed_config: {zero_stage: 1}}", "zero1"),
        ("{distributed_type: DEEPSPEED, deepspeed_config: {deepspeed_config_file: ds.json}}", "zero3"),
        ("num_processes: 2", None),
        ("a: [", None),
    ],
)
def test_a_file_of_accelerates_takes_the_place_of_trls_and_says_the_strategy(
    tmp_path, capsys, text, strategy
):
    file = tmp_path / "my own.yaml"
    file.write_text(text)
    if not strategy:
        with pytest.raises(AimoError, match="not a file that `accelerate config` writes"):
            strategy_of(str(file))
        return
    assert strategy_of(str(file)) == strategy
    (line,) = printed(capsys, stage="sft", strategy=strategy, accelerate=str(file))
    assert shlex.split(line)[shlex.split(line).index("--config_file") + 1] == str(file)


@pytest.mark.parametrize(
    "strategy, devices, file, offload, on_host",
    [
        ("ddp", 1, "single_gpu", None, None),
        ("ddp", 8, "multi_gpu", None, None),
        ("fsdp", 8, "fsdp2", None, None),
        ("zero2", 8, "zero2", "optimizer", ["cpu", "none"]),
        ("zero3", 8, "zero3", None, ["none", "none"]),
        ("zero3", 8, "zero3", "all", ["cpu", "cpu"]),
    ],
)
def test_accelerate_reads_in_a_dry_runs_command_trls_configuration_and_what_stays_on_the_host(
    capsys, tmp_path, strategy, devices, file, offload, on_host
):
    from accelerate.commands import launch as accelerate
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    overrides = ["grpo.probe_steps=null", "grpo.rewards={accuracy: 1.0}"]
    asked = {"strategy": strategy, "devices": devices, "offload": offload, "overrides": overrides}
    (line,) = printed(capsys, run_dir=str(tmp_path / "run"), **asked)
    assert "--set 'grpo.rewards={accuracy: 1.0}'" in line and not (tmp_path / "run").exists()
    words = shlex.split(line.partition("accelerate.commands.launch ")[2])
    parsed = accelerate.launch_command_parser().parse_args(words)
    assert parsed.config_file.endswith(f"trl/accelerate_configs/{file}.yaml")
    assert parsed.num_processes == devices and Path(parsed.config_file).is_file()
    if on_host:
        parsed, *_ = accelerate._validate_launch_command(parsed)
        parsed.deepspeed_fields_from_accelerate_config = ""  # accelerate fills it in later
        env = prepare_deepspeed_cmd_env(parsed)[1]
        found = [env[f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE"] for what in ("OPTIMIZER", "PARAM")]
        assert found == on_host and env["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == strategy[-1]
        assert env["ACCELERATE_MIXED_PRECISION"] == "no"


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"stage": "inference"}, "use one of sft, grpo, dpo, opd"),
        ({"stage": "dpo"}, "has no dpo section"),
        ({"stage": "opd", "strategy": "fsdp", "overrides": [OPD]}, "set opd.probe_steps=null"),
        ({"strategy": "zero1"}, "use one of ddp, fsdp, zero2, zero3"),
        ({"strategy": "fsdp", "stage": "sft", "overrides": ["model.backend=unsloth"]}, "=transformers"),
        ({"strategy": "fsdp", "stage": "sft", "overrides": ["model.load_in_4bit=true"]}, "_4bit=false"),
        ({"strategy": "fsdp", "stage": "sft", "cpu": True}, "with --cpu take ddp"),
        ({"devices": 3}, "8 x 8 completions a step do not split evenly over 3 processes"),
        ({"devices": 7, "overrides": ["grpo.gradient_accumulation_steps=8"]}, "a multiple of 7"),
        ({"stage": "sft", "strategy": "zero3", "offload": "weights"}, "use optimizer or all"),
        ({"stage": "sft", "strategy": "zero2", "offload": "all"}, "take --strategy zero3"),
        (
            dict(stage="sft", strategy="zero2", offload="optimizer", overrides=["sft.optimizer=adamw_8bit"]),
            "set sft.optimizer=adamw_torch",
        ),
        ({"serve_gpus": 2}, "set grpo.generation=vllm_server"),
        ({"serve_gpus": 8, "overrides": [SERVED]}, "none of 8 GPUs is left to train"),
        ({"serve_gpus": 2, "nodes": 2, "overrides": [SERVED]}, "is for one node"),
        ({"serve_gpus": 4, "overrides": [SERVED]}, "splits this model over 2 GPUs"),
        ({"devices": 1000, "stage": "sft"}, "--gpus 1000: this machine has"),
        ({"nodes": 2}, "--dry-run prints each node's"),
        ({"slurm": True}, "stage grpo needs"),
    ],
)
def test_what_cannot_be_launched_is_refused_in_one_line_with_the_remedy(wrong, told, tmp_path):
    asked = {"run_dir": str(tmp_path / "run")} | wrong
    slurm = asked.pop("slurm", False)
    with pytest.raises(AimoError, match=re.escape(told)):
        launch_job(job(**asked), slurm)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "command, server, kind, told",
    [
        ("sh -c 'echo x; echo aimo: model.base: no; exit 2'", None, AimoError, r"^model.base: no$"),
        ("false", None, StageError, "its traceback is in .*log"),
        ("sleep 1000", "false", StageError, "the vLLM server ended with"),
    ],
)
def test_what_ends_a_job_is_told_a_refusal_in_its_own_line(tmp_path, command, server, kind, told):
    with (tmp_path / "log").open("w") as output, pytest.raises(kind, match=told):
        launch.follow(job(), command, output, [], server and subprocess.Popen([server]))
