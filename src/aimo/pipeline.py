"""The pipeline: papermill over the notebooks of a profile. Started again, it continues where it stopped.

Out of scope: stages in parallel.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any, ClassVar

import nbformat
from jupyter_client.manager import AsyncKernelManager

from aimo import config
from aimo.config import ROOT, RUNS, Profile
from aimo.config.stages import STAGES
from aimo.errors import AimoError, StageError, explain_exit
from aimo.inference import competitions
from aimo.inference.engine import check_arguments
from aimo.inference.errors import one_line
from aimo.inference.processes import stderr_to
from aimo.inference.storage import write_json
from aimo.report import pages
from aimo.run.progress import Display
from aimo.run.runs import is_finished, open_folder, read_metrics, run_folder, unlock
from aimo.train import checkpoints


def run(
    profile: str,
    run_dir: str | None = None,
    overrides: list[str] | None = None,
    *,
    test: str | None = None,
    from_stage: str | None = None,
    until: str | None = None,
) -> Path:
    """Execute the stages that are not finished yet, then write the report; returns the run's folder.

    `from_stage` does this stage and those after it again; with a checkpoint, such as `sft/checkpoint-50`,
    it continues from there. `until` ends after a stage.

    Raises AimoError for what the user can fix, StageError for any other failure of a stage.
    """
    overrides = list(overrides or [])
    if test is not None:
        overrides.append(f"inference.test={json.dumps(str(Path(test).absolute()), ensure_ascii=False)}")
    resolved = config.load(profile, overrides)
    redo, _, checkpoint = (from_stage or "").partition("/")
    folder = run_folder(run_dir, resolved)
    check(resolved, folder, from_stage, until)
    open_folder(folder, resolved, redo=redo or None)
    try:
        check_room(folder, resolved)
        if redo:
            forget(folder, redo, checkpoint)
        last = resolved.stages.index(until) if until else len(resolved.stages) - 1
        execute_all(resolved.stages[: last + 1], folder, resolved)
        pages.write_run(folder)
        pages.write_index(folder)
    finally:
        unlock(folder)
    submission = folder / STAGES["inference"].product
    if submission.exists() and folder.parent == RUNS:
        published = RUNS.parent / "submission" / folder.name
        published.mkdir(parents=True, exist_ok=True)
        shutil.copy(submission, published)
    return folder


def check(profile: Profile, folder: Path, from_stage: str | None, until: str | None) -> None:
    """Check the arguments before anything is written."""
    redo, _, checkpoint = (from_stage or "").partition("/")
    stages = profile.stages
    for option, given, stage in (("--from", from_stage, redo), ("--until", until, until)):
        if given is not None and stage not in stages:
            raise AimoError(
                f"{option} {given!r} is no stage of profile {profile.profile}: use one of {', '.join(stages)}"
            )
    if redo and until and stages.index(until) < stages.index(redo):
        raise AimoError(f"--until {until!r} comes before --from {from_stage!r}; take a later stage")
    if checkpoint and not (folder / redo / checkpoint).is_dir():
        there = ", ".join(sorted(path.name for path in (folder / redo).glob("checkpoint-*"))) or "none"
        raise AimoError(f"--from {from_stage!r}: no such checkpoint in {folder / redo}; there are: {there}")
    for stage in stages:
        check_notebook(ROOT / "notebooks" / f"{STAGES[stage].notebook}.ipynb")
    if profile.inference.test:
        competitions.read_questions(config.resolve(profile.inference.test))
    if profile.inference.vllm:
        check_arguments(profile.inference.vllm)


def check_notebook(path: Path) -> None:
    """Refuse a notebook that papermill cannot give its parameters, which would run with its own."""
    try:
        cells = nbformat.read(path, 4).cells
        tags = [tag for cell in cells for tag in cell.metadata.get("tags", [])]
    except Exception as e:  # nbformat raises many kinds
        raise AimoError(f"{path}: it is no notebook ({one_line(e, 100)}); restore the file") from None
    if tags.count("parameters") != 1:
        raise AimoError(
            f"{path}: {tags.count('parameters')} of its cells have the tag `parameters`, and one should; "
            "restore the file"
        )


def execute_all(stages: tuple[str, ...], folder: Path, profile: Profile) -> None:
    """Execute each stage that is not finished, and show how far they are."""
    with Display(folder, profile) as display:
        for stage in stages:
            if is_finished(folder, stage):
                display.finish(stage, "finished before, kept")
                continue
            display.start(stage)
            execute(stage, folder)
            if not (record := read_metrics(folder)["stages"].get(stage)):
                raise AimoError(f"stage {stage}: {folder} was removed; run the same command again")
            display.finish(stage, f"finished in {record['seconds']:.0f} s")


class JupyterKernel(AsyncKernelManager):
    """A Jupyter kernel that keeps its process's exit status."""

    exit_status: ClassVar[int | None] = None
    """Of the last kernel that died; negative for a signal."""

    async def is_alive(self) -> bool:  # type: ignore[override]
        """Whether the process runs."""
        alive = await super().is_alive()
        if not alive and self.provisioner:
            JupyterKernel.exit_status = await self.provisioner.poll()
        return alive


def execute(stage: str, folder: Path) -> None:
    """Run one stage's notebook in a fresh kernel; an AimoError raised inside it is raised again."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    # papermill warns that it cannot parse a list as a parameter, and does not have to.
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
        # nbclient leaves the task of the cell behind; asyncio would print its exception when it is collected.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        raise
    except papermill.PapermillExecutionError as e:
        raise explained(e, stage, executed) from None
    except DeadKernelError:
        how = explain_exit(JupyterKernel.exit_status)
        raise StageError(f"stage {stage}: its process {how}. Its last output is in {log}") from None
    except OSError as e:
        raise AimoError(
            f"stage {stage}: {e.strerror or e} in {folder}; fix that and run again, it continues there"
        ) from None
    pages.write_notebook(executed)


def explained(error: Any, stage: str, executed: Path) -> Exception:
    """The exception of a notebook's cell (PapermillExecutionError) as an error for the user."""
    if error.ename == "AimoError":
        return AimoError(error.evalue)
    if "No space left on device" in error.evalue or "os error 28" in error.evalue:
        return AimoError(
            f"stage {stage}: no space left in {executed.parents[1]}; "
            "free some and run again, it continues there"
        )
    if not executed.parent.is_dir():
        return AimoError(f"stage {stage}: {executed.parents[1]} was removed; run the same command again")
    said = error.evalue.partition("\n")[0]
    return StageError(f"stage {stage} failed with {error.ename}: {said}; its traceback is in {executed}")


def check_room(folder: Path, profile: Profile) -> None:
    """Refuse to start where checkpoints and models will not fit: 50 MB, and six times the base model."""
    base = config.resolve(profile.model.base)
    needed = 50e6
    if base.is_dir() and profile.trained:
        needed += 6 * sum(p.stat().st_size for p in base.rglob("*") if p.is_file())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise AimoError(
            f"run folder {folder}: {free / 1e6:.0f} MB free, a run needs {needed / 1e6:.0f} MB; "
            "free some, or take another --run-dir"
        )


def forget(folder: Path, redo: str, checkpoint: str) -> None:
    """Remove what the stages from `redo` on have made, but for checkpoints up to the one that is named."""
    recorded = read_metrics(folder)
    for stage in list(STAGES)[list(STAGES).index(redo) :]:
        if stage == redo and checkpoint:
            checkpoints.keep_until(folder / stage, checkpoint)
        else:
            shutil.rmtree(folder / stage, ignore_errors=True)
        recorded["stages"].pop(stage, None)
    for path in [*folder.glob("submission.*"), folder / "report.html"]:
        path.unlink(missing_ok=True)
    write_json(folder / "metrics.json", recorded)
