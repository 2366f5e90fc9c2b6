"""A run's folder: its files, how a stage begins, and how it reports.

    RUN/profile.yaml          the resolved profile
    RUN/notebooks/            executed notebooks and their HTML
    RUN/STAGE/                what each stage makes: rows, checkpoints and model, evaluation and answers
    RUN/metrics.json          the record of each finished stage
    RUN/submission.parquet    the answers, or submission.csv; their settings in submission.settings.json
    RUN/report.html, RUN/lock

A stage is finished when metrics.json has its record. `Run.finish`, the last call of each notebook, writes it.
"""

import fcntl
import json
import logging
import os
import re
import shlex
import shutil
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from aimo import config
from aimo.config import ROOT, RUNS, Profile
from aimo.config.profile import MODELS, STAGES
from aimo.inference.errors import AimoError
from aimo.inference.settings import Settings, Texts, check_parameters
from aimo.inference.startup import collect_less
from aimo.inference.storage import AGAIN, read_json, write_json, write_whole
from aimo.inference.vllm_process import is_verbose
from aimo.rewards import try_rewards
from aimo.run import hub
from aimo.run.progress import CellBar

# Environment variables: the folders, one per line, that this process or one above it has locked; and the time
# on the monotonic clock before which a stage stops and saves.
LOCKED, SESSION_END = "AIMO_LOCKED", "AIMO_SESSION_END"
SESSION_OVER = "the end of the session"  # in the record of such a stage, which `aimo.pipeline` continues
# The keys of a record whose values are numbers.
FIGURE = re.compile(r"@|^(format|mean_tokens|mean_loss|seconds|steps|total_flos)$|_per_second$")


@dataclass(frozen=True)
class Run:
    """One stage's view of a run: the profile, the folder, and how to report."""

    profile: Profile
    dir: Path
    stage: str
    started: float

    @property
    def folder(self) -> Path:
        """This stage's folder, created if needed.

        If a person runs the notebook, the cell that asks for it holds the run's lock until it ends. AimoError
        if another process works in the run, or has done so since `begin`.
        """
        if by_hand():
            lock(self.dir, again=True)
        folder = self.dir / self.stage
        folder.mkdir(exist_ok=True)
        return folder

    def models(self) -> dict[str, Path]:
        base = hub.local_folder(self.profile.model.base, self.profile.model.revision)
        return {"base": base} | {name: self.dir / STAGES[name].product for name in self.profile.trained}

    def start_model(self) -> Path:
        """Return the model that this stage starts from: the last one trained before it, or the base."""
        earlier = self.profile.trained_before(self.stage)
        return self.dir / STAGES[earlier].product if earlier else self.models()["base"]

    def solver_settings(self) -> Settings:
        return self.profile.solver_settings(self.start_model())

    def progress(self, step: int, total: int, note: str = "") -> None:
        """Report the stage's progress to `aimo run`, and draw a bar if a person runs the notebook."""
        state = {"stage": self.stage, "step": step, "total": total, "note": note}
        write_json(self.dir / "progress.json", state)
        if by_hand():
            cell = shell().execution_count
            if cell not in _bars or step < _bars[cell].done:
                _bars.clear()
                _bars[cell] = CellBar(self.stage, step)
            _bars[cell].show(step, total, note)

    def data_hash(self) -> dict[str, str]:  # from the data's card
        found = re.search(r"`([0-9a-f]{64})`", (self.dir / STAGES["data"].product).read_text())
        return {"data_sha256": found[1]} if found else {}

    def finish(self, **record: Any) -> None:
        recorded = read_metrics(self.dir)
        recorded["stages"][self.stage] = record | {"seconds": round(time.time() - self.started, 1)}
        names = {"profile": self.profile.profile, "seed": self.profile.seed}
        write_json(self.dir / "metrics.json", names | recorded)
        unlock(self.dir)


@check_parameters
def begin(
    stage: str,
    profile: str,
    run_dir: str | Path | None = None,
    overrides: Texts | None = None,
    redo: bool = False,
) -> Run:
    """Begin a stage, as a notebook's first call: read the profile, check earlier stages, open the folder.

    `run_dir` defaults to runs/PROFILE. `redo` repeats the stage from its start, with settings that may have
    changed, and forgets the stages after it. AimoError if an earlier stage has not been done, the folder has
    another profile, or another process works in it.
    """
    quiet()
    if by_hand():
        get_ready_for_cells()
    started = time.time()
    resolved = config.load(profile, overrides)
    if resolved.training.cache_dir:
        os.environ["HF_HOME"] = resolved.training.cache_dir
    # Unsloth would write its compiled modules to the current folder.
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(ROOT / "unsloth_compiled_cache"))
    if stage not in resolved.stages:
        raise AimoError(f"profile {profile} has no {stage} section; add one, or leave this stage out")
    if resolved.grpo and stage in ("data", "grpo"):
        try_rewards(resolved.grpo.rewards)
    folder = run_folder(run_dir, resolved)
    for earlier in resolved.stages[: resolved.stages.index(stage)]:
        product = product_of(folder, earlier)
        if not product.exists():
            command = shlex.join(["aimo", "run", "--profile", profile, "--run-dir", str(folder)])
            raise AimoError(
                f"stage {stage} needs {product}, which stage {earlier} makes: run "
                f"notebooks/{STAGES[earlier].notebook}.ipynb first, or everything with `{command}`"
            )
    open_folder(folder, resolved, stage if redo else None)
    if redo:
        forget(folder, stage)
    if by_hand():
        if engines := sys.modules.get("aimo.inference.engine"):  # from an earlier run of this cell
            for engine in list(engines.STARTED):
                engine.close()
        print(f"run: {folder}\n{config.describe(resolved, stage)}")
    return Run(resolved, folder, stage, started)


def run_folder(run_dir: str | Path | None, profile: Profile) -> Path:
    """Return a run's folder as an absolute path. A relative one starts at the current folder or, in a
    notebook, at the repository."""
    folder = RUNS / profile.profile
    if run_dir:
        folder = Path(os.path.normpath(ROOT / run_dir)) if by_hand() else Path(run_dir).absolute()
    if re.search(r"[\x00-\x1f\x7f]", str(folder)):  # a line break would begin a command in a Slurm script
        raise AimoError(f"{option('run_dir')} {str(folder)!r} has a control character; take another folder")
    return folder


def find_run(run: str) -> tuple[Path, Profile]:
    """Return the folder of a run (a name in runs/, or a path) and its profile. AimoError if there is none."""
    for folder in (Path(run), RUNS / run):
        if (profile := folder / "profile.yaml").is_file():
            return folder, config.load(str(profile))
    told = f"there is no {Path(run) / 'profile.yaml'}; name a folder of runs/, or its path"
    raise AimoError(f"run {run}: {told}")


def open_folder(folder: Path, profile: Profile, redo: str | None = None) -> None:
    """Create the run's folder, or check that its profile is this one, and lock it.

    Keys that change no result, and those of stages from `redo` on, may differ: the folder's are updated.
    """
    saved = folder / "profile.yaml"
    try:
        old = config.load(saved) if saved.exists() else None
        if old and (changed := config.lasting_changes(old, profile, redo)):
            keys = ", ".join(
                f"{key} (its text differs)" if "\n" in f"{a}{b}" else f"{key} (was {a!r}, now {b!r})"
                for key, (a, b) in changed.items()
            )
            stages = reversed(profile.stages)  # the last one whose redo allows these changes
            stage = next(name for name in stages if not config.lasting_changes(old, profile, name))
            points = [stage, *(f"{stage}/{path.name}" for path in newest_first(folder / stage)[:1])]
            again = " or ".join(f"--from {point}" for point in points)
            if by_hand():
                again = f"redo = True in notebooks/{STAGES[stage].notebook}.ipynb"
            told = f"take another {option('run_dir')}, or do it again with {again}"
            raise AimoError(f"run folder {folder} was made with another profile: {keys}; {told}")
        (folder / "notebooks").mkdir(parents=True, exist_ok=True)
        lock(folder)
        if not old or config.differing_keys(old, profile):
            write_whole(saved, config.dump(profile))
    except OSError as e:
        remedy = f"free or unlock it, or take another {option('run_dir')}"
        raise AimoError(f"run folder {folder}: {e.strerror or e}; {remedy}") from None


def forget(folder: Path, redo: str, keep: bool = False) -> None:
    """Remove the results of the stages from `redo` on; `keep` keeps the folder of `redo` itself."""
    recorded, names = read_metrics(folder), list(STAGES)
    for stage in names[names.index(redo) :]:
        if stage != redo or not keep:
            shutil.rmtree(folder / stage, ignore_errors=True)
        recorded["stages"].pop(stage, None)
    for path in [*folder.glob("submission.*"), folder / "report.html"]:
        path.unlink(missing_ok=True)
    write_json(folder / "metrics.json", recorded)


def continue_with(folder: Path, profile: Profile, stage: str, changes: dict[str, Any]) -> str:
    """Return what a user must do to continue a stage of the run in `folder` with `changes` of its keys."""
    sets = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changes.items()]
    values = asdict(profile)  # type: ignore[call-overload]
    for change in sets:
        config.set_key(values, change)
    lasting = config.lasting_changes(profile, config.parse(values, "profile"))
    if not lasting and by_hand():
        return f"put {', '.join(map(json.dumps, sets))} into overrides, restart the kernel and run all cells"
    options = [part for change in sets for part in ("--set", change)]
    if "WORLD_SIZE" in os.environ:
        again = "another run folder and " if lasting else ""
        return f"run the same `aimo launch` again with {again}`{shlex.join(options)}`"
    if lasting:
        options += ["--from", "/".join([stage, *(path.name for path in newest_first(folder / stage)[:1])])]
    command = ["aimo", "run", "--profile", str(folder / "profile.yaml"), "--run-dir", str(folder), *options]
    return f"{'shut this kernel down and ' if by_hand() else ''}run `{shlex.join(command)}`"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def newest_first(folder: Path) -> list[Path]:  # the checkpoints of a stage
    found = [path for path in folder.glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    return sorted(found, key=step_of, reverse=True)


def by_hand() -> bool:
    """Return whether this process is a notebook that a person started, not `aimo`."""
    kernel = sys.modules.get("ipykernel.kernelapp")  # other packages import it too, but start no kernel
    return bool(kernel and kernel.IPKernelApp.initialized()) and not set(held_above()) - {*map(str, _locks)}


def shell() -> Any:
    from IPython import get_ipython  # needed only if a person runs a notebook

    return get_ipython()


def get_ready_for_cells() -> None:
    """Make a cell that is interrupted, or needs one that was not run, report that in one line without frames;
    make each cell release its locks when it ends."""

    def told(cells: Any, kind: Any, error: Any, frames: Any, tb_offset: Any = None) -> list[str]:
        if kind is KeyboardInterrupt:
            print("Stopped. Run the cell again; what was saved is kept.")
        elif frames.tb_next and frames.tb_next.tb_next:  # a function uses an unknown name
            cells.showtraceback((kind, error, frames))
        else:
            print(f"{error}: run this notebook's cells from the first one on.")
        return []

    shell().set_custom_exc((KeyboardInterrupt, NameError), told)
    shell().events.register("post_run_cell", unlock_all)  # once, however often it is registered


def option(name: str) -> str:
    """Return what sets a parameter here: a notebook's variable, or an option of `aimo`."""
    return name if by_hand() else f"--{name.replace('_', '-')}"


def again() -> str:  # how to continue after a stop
    return "run the cell again" if by_hand() else AGAIN


_locks: dict[Path, TextIO] = {}
_bars: dict[int, CellBar] = {}  # of the running cell, by its number


def held_above() -> list[str]:
    return os.environ.get(LOCKED, "").splitlines()  # by this process or one above it


def lock(folder: Path, again: bool = False) -> None:
    """Keep other processes out of a run's folder until `unlock` or this process's end.

    A process may hold several locks, and its children may work in those folders. AimoError names the process
    that holds the lock or, with `again`, the one that has held it since.
    """
    if folder in _locks or str(folder) in held_above():
        return
    try:
        file = (folder / "lock").open("a+")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        told = f"process {file.read().strip()} is working in it; wait for it or end it"
        raise AimoError(f"run folder {folder}: {told}, or take another {option('run_dir')}") from None
    except OSError as e:
        raise AimoError(f"{folder}: {e.strerror}; take another {option('run_dir')}") from None
    file.seek(0)
    if again and (last := file.read().strip()) != str(os.getpid()):
        file.close()
        told = f"process {last} has worked in it since; run this notebook's cells again from the first one"
        raise AimoError(f"run folder {folder}: {told}")
    file.truncate(0)
    print(os.getpid(), file=file, flush=True)
    _locks[folder] = file
    os.environ[LOCKED] = "\n".join([*held_above(), str(folder)])


def held(folder: Path) -> list[int]:
    """Return the descriptor of the folder's lock; a process that inherits the descriptor holds the lock."""
    return [_locks[folder].fileno()] if folder in _locks else []


def unlock(folder: Path) -> None:
    if folder in _locks:
        with _locks.pop(folder) as file:
            fcntl.flock(file, fcntl.LOCK_UN)  # forked processes have the file open too
        os.environ[LOCKED] = "\n".join(name for name in held_above() if name != str(folder))


def unlock_all(_: Any = None) -> None:
    for folder in [*_locks]:
        unlock(folder)


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return metrics.json, or an empty one. AimoError if its values have the wrong types."""
    path, remedy = folder / "metrics.json", "restore it, or remove it to do the run's stages again"
    if not path.exists():
        return {"stages": {}}
    metrics = dict(read_json(path, remedy))
    stages = metrics.get("stages")
    if not isinstance(stages, dict):
        raise AimoError(f"{path}: it has no table of stages; {remedy}")
    measured = stages.get("inference")
    models = measured.get("models", {}) if isinstance(measured, dict) else {}
    measured = models.items() if isinstance(models, dict) else [("models", models)]
    for name, record in [*stages.items(), *measured]:
        if not isinstance(record, dict):
            raise AimoError(f"{path}: {name} is {record!r} and should be a table; {remedy}")
        for key, value in record.items():
            if FIGURE.search(key) and not isinstance(value, int | float):
                raise AimoError(f"{path}: {name}.{key} is {value!r} and should be a number; {remedy}")
    return metrics


def is_finished(folder: Path, stage: str) -> bool:
    return stage in read_metrics(folder)["stages"] and product_of(folder, stage).exists()


def product_of(folder: Path, stage: str) -> Path:
    """Return a stage's last product: for inference the answers, or the record that there are none."""
    record = folder / "inference" / "solutions.json"
    if stage == "inference":
        if record.exists() and record.read_text().strip() == "[]":  # a competition that takes an adapter
            return record
        if answers := answers_of(folder):
            return answers
    return folder / STAGES[stage].product


def answers_of(folder: Path) -> Path | None:
    files = (folder / f"submission{kind}" for kind in (".parquet", ".csv"))
    return next((path for path in files if path.exists()), None)


def figures(folder: Path) -> dict[str, dict[str, Any]]:
    """Return a row for the base and each trained stage: notebook 04's results and the training's record."""
    stages = read_metrics(folder)["stages"]
    measured = stages.get("inference", {}).get("models", {})
    rows = {name: measured.get(name, {}) | stages.get(name, {}) for name in MODELS}
    return {name: row for name, row in rows.items() if row}


# Libraries whose warnings `quiet` silences, and variables that silence their notices and bars. A user's own
# warnings and those of other libraries are shown.
LIBRARIES = (
    "absl accelerate asyncio bitsandbytes compressed_tensors datasets deepspeed dill filelock flash_attn "
    "flashinfer fsspec gguf httpx huggingface_hub jieba jupyter_client kernels matplotlib mlflow "
    "multiprocess nbclient nbconvert nbformat numba papermill peft pkg_resources pydantic ray requests "
    "safetensors setuptools swigvarlink tensorboard tokenizers torch torchao torchvision tqdm traitlets "
    "transformers triton trl unsloth unsloth_zoo urllib3 vllm wandb xformers zmq"
)
SILENT = (
    "TRANSFORMERS_VERBOSITY=error TRANSFORMERS_NO_ADVISORY_WARNINGS=1 DATASETS_VERBOSITY=error "
    "HF_DATASETS_DISABLE_PROGRESS_BARS=1 HF_HUB_DISABLE_PROGRESS_BARS=1 HF_HUB_DISABLE_TELEMETRY=1 "
    "UNSLOTH_DISABLE_STATISTICS=1 TOKENIZERS_PARALLELISM=false TORCH_LOGS=-all TQDM_DISABLE=1 "
    "VLLM_LOGGING_LEVEL=ERROR"
)


def quiet() -> None:
    """Silence the libraries' notices and progress bars, unless AIMO_VERBOSE=1; collect garbage less often."""
    collect_less()
    if is_verbose():
        return
    os.environ |= dict(pair.split("=") for pair in SILENT.split())
    for name in LIBRARIES.split():
        warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")
        logging.getLogger(name).setLevel(logging.ERROR)
