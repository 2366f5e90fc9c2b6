"""The pipeline: papermill over the four notebooks, stage by stage; started again, it goes on where it stopped.

Out of scope: stages side by side.
"""

import json
import logging
import shutil
from pathlib import Path

from aimo import config
from aimo.config import ROOT, Profile
from aimo.errors import AimoError, StageError
from aimo.inference import gateway
from aimo.inference.engine import check_options, stderr_to
from aimo.progress import Display
from aimo.report import page
from aimo.runs import is_finished, open_folder, read_metrics, run_folder, write_json
from aimo.stages import STAGES


def run(
    profile: str,
    run_dir: str | None = None,
    from_stage: str | None = None,
    overrides: list[str] | None = None,
    test: str | None = None,
) -> Path:
    """Execute the stages that are not finished yet, then write the report; returns the run's folder."""
    overrides = list(overrides or [])
    if test is not None:
        overrides.append(f"inference.test={json.dumps(str(Path(test).absolute()))}")
    resolved = config.load(profile, overrides)
    if resolved.inference.test:
        gateway.read_questions(config.resolve(resolved.inference.test))
    if resolved.inference.vllm:
        check_options(resolved.inference.vllm)
    folder = run_folder(run_dir, resolved)
    open_folder(folder, resolved, redo=from_stage)
    check_room(folder, resolved)
    if from_stage:
        forget(folder, from_stage)
    with Display(folder, resolved) as display:
        for stage in resolved.stages:
            if not is_finished(folder, stage):
                display.start(stage)
                execute(stage, folder)
                seconds = read_metrics(folder)["stages"][stage]["seconds"]
                display.finish(stage, f"finished in {seconds:.0f} s")
            else:
                display.finish(stage, "finished before, kept")
    page.write(folder)
    if folder.resolve().parent == ROOT / "runs":
        published = ROOT / "submission" / folder.name
        published.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "submission.parquet", published)
    return folder


def execute(stage: str, folder: Path) -> None:
    """Run one stage's notebook in a fresh kernel; AimoError carries on what went wrong inside it."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    logging.getLogger("papermill").setLevel(
        logging.ERROR
    )  # it cannot parse a list as a parameter, and needs not
    executed = folder / "notebooks" / f"{STAGES[stage].notebook}.ipynb"
    try:
        with stderr_to(executed.with_suffix(".log")):
            papermill.execute_notebook(
                ROOT / "notebooks" / executed.name,
                executed,
                parameters={
                    "profile": str((folder / "profile.yaml").absolute()),
                    "run_dir": str(folder.absolute()),
                },
                kernel_name="python3",
                cwd=ROOT / "notebooks",
                progress_bar=False,
                extra_arguments=["--IPKernelApp.log_level=40"],
            )
    except papermill.PapermillExecutionError as e:
        if e.ename == "AimoError":
            raise AimoError(e.evalue) from None
        if "No space left on device" in e.evalue or "os error 28" in e.evalue:
            raise AimoError(
                f"stage {stage}: no space left in {folder}; free some and run again, it goes on from there"
            ) from None
        raise StageError(
            f"stage {stage} failed with {e.ename}: {e.evalue}; its traceback is in {executed}"
        ) from None
    except DeadKernelError:
        raise StageError(
            f"stage {stage}: its process was killed, perhaps for memory; run again to go on"
        ) from None
    except OSError as e:
        raise AimoError(
            f"stage {stage}: {e.strerror or e} in {folder}; put it right and run again, it goes on from there"
        ) from None
    to_html(executed)


def to_html(notebook: Path) -> None:
    """The executed notebook as a page of its own, beside it."""
    from nbconvert import HTMLExporter

    html, _ = HTMLExporter(exclude_input_prompt=True, exclude_output_prompt=True).from_filename(str(notebook))
    notebook.with_suffix(".html").write_text(html)


def check_room(folder: Path, profile: Profile) -> None:
    """Refuse to start where the checkpoints and models of a run will not fit: six times the base model, and 50 MB."""
    base = config.resolve(profile.model.base)
    needed = (
        50e6 + 6 * sum(p.stat().st_size for p in base.rglob("*") if p.is_file()) if base.is_dir() else 50e6
    )
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise AimoError(
            f"run folder {folder}: {free / 1e6:.0f} MB free, a run needs {needed / 1e6:.0f} MB; free some, or take another --run-dir"
        )


def forget(folder: Path, from_stage: str) -> None:
    """Remove what the stages from `from_stage` on have made."""
    recorded = read_metrics(folder)
    for stage in list(STAGES)[list(STAGES).index(from_stage) :]:
        shutil.rmtree(folder / stage, ignore_errors=True)
        recorded["stages"].pop(stage, None)
    for name in ("submission.parquet", "report.html"):
        (folder / name).unlink(missing_ok=True)
    write_json(folder / "metrics.json", recorded)
