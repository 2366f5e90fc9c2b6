"""Run a profile's notebooks with papermill. A run that is started again continues where it stopped.

`run_profile` is `aimo run`. `train_in_session` is the kernel `train`, whose sessions end after some hours. A
stage stopped by a session's end still leaves a merged model and a report. The next session finds the run's
folder among its inputs and continues from the last checkpoint.
"""

import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import ClassVar

import nbformat
import papermill
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError

from aimo import config
from aimo.config import ROOT, RUNS, Profile
from aimo.config.profile import STAGES
from aimo.inference import local, startup
from aimo.inference.competitions import COMPETITIONS, find_competition
from aimo.inference.errors import AimoError, StageError, explain_exit, one_line
from aimo.inference.settings import Texts, check_parameters
from aimo.inference.vllm_process import check_arguments, stderr_to
from aimo.report import pages
from aimo.rewards import try_rewards
from aimo.run import runs
from aimo.run.progress import Display
from aimo.run.runs import is_finished, read_metrics
from aimo.train import callbacks, opd

# No stage begins in this last part of a session: it would load a model and train only a step or two.
LAST_PART = 0.1


def run_profile(
    profile: str,
    run_dir: str | None = None,
    overrides: list[str] | None = None,
    *,
    test: str | None = None,
    competition: str | None = None,
    from_stage: str | None = None,
    until: str | None = None,
) -> Path:
    """Execute the stages that are not finished yet, then write the report; return the run's folder.

    `from_stage` repeats this stage and those after it, or continues it from a checkpoint, such as
    `sft/checkpoint-50`. AimoError for faults that the user can fix, StageError for other failures of a stage.
    """
    overrides = list(overrides or [])
    if test is not None:
        overrides.append(f"inference.test={json.dumps(str(Path(test).absolute()), ensure_ascii=False)}")
    if competition is not None:
        find_competition(competition)
        named = competition if competition in COMPETITIONS else str(Path(competition).absolute())
        overrides.append(f"competition={json.dumps(named, ensure_ascii=False)}")
    resolved = config.load(profile, overrides)
    redo, _, checkpoint = (from_stage or "").partition("/")
    folder = runs.run_folder(run_dir, resolved)
    check_run(resolved, folder, from_stage, until)
    runs.open_folder(folder, resolved, redo=redo or None)
    try:
        # Checkpoints and models need 50 MB plus six times the size of the base model.
        base, needed = config.locate(resolved.model.base), 50e6
        if base.is_dir() and resolved.trained:
            needed += 6 * sum(p.stat().st_size for p in base.rglob("*") if p.is_file())
        if (free := shutil.disk_usage(folder).free) < needed:
            told = f"{free / 1e6:.0f} MB free, a run needs {needed / 1e6:.0f} MB"
            raise AimoError(f"run folder {folder}: {told}; free some, or take another --run-dir")
        if redo:
            if checkpoint:
                callbacks.keep_until(folder / redo, checkpoint)
            runs.forget(folder, redo, keep=bool(checkpoint))
        last = resolved.stages.index(until) if until else len(resolved.stages) - 1
        with Display(folder, resolved) as display:
            for stage in resolved.stages[: last + 1]:
                if is_finished(folder, stage):
                    display.finish(stage, "finished before, kept")
                    continue
                display.start(stage)
                execute_stage(stage, folder)
                if not (record := read_metrics(folder)["stages"].get(stage)):
                    raise AimoError(f"stage {stage}: {folder} was removed; run the same command again")
                display.finish(stage, f"finished in {record['seconds']:.0f} s")
                for name, line in record.get("kept", {}).items() if stage == "data" else ():
                    display.tell(f"{name}: {line}")
        pages.write_run(folder)
        pages.write_index(folder)
    finally:
        runs.unlock(folder)
    submission = runs.answers_of(folder)
    if submission and folder.parent == RUNS:
        published = RUNS.parent / "submission" / folder.name
        published.mkdir(parents=True, exist_ok=True)
        shutil.copy(submission, published)
    return folder


def check_run(profile: Profile, folder: Path, from_stage: str | None, until: str | None) -> None:
    """Raise AimoError, before anything is written, for what would fail in a later stage."""
    redo, _, checkpoint = (from_stage or "").partition("/")
    stages = profile.stages
    for option, given, stage in (("--from", from_stage, redo), ("--until", until, until)):
        if given is not None and stage not in stages:
            told = f"is no stage of profile {profile.profile}: use one of {', '.join(stages)}"
            raise AimoError(f"{option} {given!r} {told}")
    if redo and until and stages.index(until) < stages.index(redo):
        raise AimoError(f"--until {until!r} comes before --from {from_stage!r}; take a later stage")
    if checkpoint and checkpoint not in (found := [path.name for path in runs.newest_first(folder / redo)]):
        there = ", ".join(found) or "none"
        raise AimoError(f"--from {from_stage!r}: no such checkpoint in {folder / redo}; there are: {there}")
    done = stages[: stages.index(until) + 1 if until else None]
    for stage in done:  # a training kernel ships only these notebooks
        path = ROOT / "notebooks" / f"{STAGES[stage].notebook}.ipynb"
        try:
            cells = nbformat.read(path, 4).cells
            count = [tag for cell in cells for tag in cell.metadata.get("tags", [])].count("parameters")
        except Exception as e:  # nbformat raises many kinds
            raise AimoError(f"{path}: it is no notebook ({one_line(e, 100)}); restore the file") from None
        if count != 1:  # papermill would run the notebook with its own parameters
            raise AimoError(f"{path}: {count} cells have the tag `parameters`, not one; restore the file")
    # An adapter is measured on held-out problems.
    asks = not profile.rules or profile.rules.artefact.kind != "adapter"
    if profile.inference.test and asks:
        local.read_questions(config.locate(profile.inference.test), profile.rules)
    elif profile.rules and asks and profile.rules.answer.type is not int:
        raise AimoError(f"competition {profile.rules.slug} needs its test file: give --test FILE")
    if profile.grpo:
        try_rewards(profile.grpo.rewards)
    if profile.inference.vllm:
        check_arguments(profile.inference.vllm)
    if "opd" in done and not is_finished(folder, "opd"):
        opd.check_early(profile, folder)


class JupyterKernel(AsyncKernelManager):
    """A Jupyter kernel that keeps its process's exit status."""

    exit_status: ClassVar[int | None] = None  # of the last kernel that died; negative for a signal

    async def is_alive(self) -> bool:  # type: ignore[override]
        alive = await super().is_alive()
        if not alive and self.provisioner:
            JupyterKernel.exit_status = await self.provisioner.poll()
        return alive


def execute_stage(stage: str, folder: Path) -> None:
    """Run a stage's notebook in a fresh kernel. Raise its AimoError again; StageError for other failures."""
    # papermill warns needlessly that it cannot parse a list as a parameter.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    executed = folder / "notebooks" / f"{STAGES[stage].notebook}.ipynb"
    log = executed.with_suffix(".log")
    try:
        with stderr_to(log):
            papermill.execute_notebook(
                ROOT / "notebooks" / executed.name,
                executed,
                parameters={"profile": str(folder / "profile.yaml"), "run_dir": str(folder)},
                kernel_name="python3",
                kernel_manager_class=JupyterKernel,
                progress_bar=False,
                start_timeout=600,
                extra_arguments=["--IPKernelApp.log_level=40"],
            )
    except KeyboardInterrupt:
        # nbclient leaves the cell's task behind; asyncio would print its exception when it is collected.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        raise
    except papermill.PapermillExecutionError as e:
        if e.ename == "AimoError":
            raise AimoError(e.evalue) from None
        if "No space left on device" in e.evalue or "os error 28" in e.evalue:
            told = f"no space left in {folder}; free some and run again, it continues there"
            raise AimoError(f"stage {stage}: {told}") from None
        if not executed.parent.is_dir():
            raise AimoError(f"stage {stage}: {folder} was removed; run the same command again") from None
        told = f"{e.evalue.partition(chr(10))[0]}; its traceback is in {executed}"
        raise StageError(f"stage {stage} failed with {e.ename}: {told}") from None
    except DeadKernelError:
        how = explain_exit(JupyterKernel.exit_status)
        raise StageError(f"stage {stage}: its process {how}. Its last output is in {log}") from None
    except OSError as e:
        told = f"{e.strerror or e} in {folder}; fix that and run again, it continues there"
        raise AimoError(f"stage {stage}: {told}") from None
    pages.write_notebook(executed)


@check_parameters
def train_in_session(
    profile: str,
    overrides: Texts,
    limit_s: float,
    folder: Path = Path("run"),
    inputs: Path = startup.INPUTS,
) -> Path | None:
    """Run a profile's training stages, at most until `limit_s` seconds after the kernel's start.

    Continue the run that an earlier session left among the `inputs`. Return the model folder of the last
    stage done, or None. AimoError for a profile that trains nothing, for two runs, and as in `run_profile`.
    """
    resolved = config.load(profile, list(overrides))
    if not resolved.trained:
        raise AimoError(f"profile {resolved.profile} trains nothing; give one with sft, grpo, dpo or opd")
    end = startup.STARTED + limit_s
    os.environ[runs.SESSION_END] = str(end)
    if not folder.exists():
        found = sorted(path.parent for path in inputs.rglob(f"{folder.name}/profile.yaml"))
        if len(found) > 1:
            told = f"the inputs hold {len(found)} runs: {', '.join(map(str, found))}"
            raise AimoError(f"{told}; attach the output of one version only")
        for path in (path for run in found for path in sorted([run, *run.rglob("*")])):
            to = folder / path.relative_to(found[0])  # without file modes, because inputs are read-only
            to.mkdir(parents=True) if path.is_dir() else shutil.copyfile(path, to)
        how = f"continues {found[0]}" if found else "starts anew, as no run is attached"
        print(f"{resolved.profile}: {how}")
    made = None
    for stage in resolved.stages[: resolved.stages.index(resolved.trained[-1]) + 1]:
        stopped_at = checkpoint_of(folder, stage)
        if stopped_at or not is_finished(folder, stage):
            if (left := end - time.monotonic()) < LAST_PART * limit_s:
                print(f"{stage}: left to the next session, as {max(0, left):.0f} s remain of this one")
                break
            run_profile(profile, str(folder), list(overrides), from_stage=stopped_at, until=stage)
        if stage in resolved.trained:
            made = folder / stage / "model"
        if checkpoint_of(folder, stage):
            print(f"{stage}: stopped before the end of the session; attach this output to the next version")
            break
    return made


def checkpoint_of(folder: Path, stage: str) -> str | None:  # of a stage stopped by a session's end
    if read_metrics(folder)["stages"].get(stage, {}).get("stopped") != runs.SESSION_OVER:
        return None
    return f"{stage}/{runs.newest_first(folder / stage)[0].name}"
