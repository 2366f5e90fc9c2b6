"""The kernel `train`: the training stages of a profile, in sessions that end after some hours.

A stage that the session's end stops is merged and reported as it is, so that there is a model to use. The
next session finds the run's folder among its inputs and goes on from the stage's last checkpoint.
"""

import os
import shutil
import time
from pathlib import Path

from aimo import config, pipeline
from aimo.errors import AimoError
from aimo.inference import startup
from aimo.inference.settings import Texts, check_parameters
from aimo.run.runs import SESSION_END, SESSION_OVER, is_finished, newest_first, read_metrics

# No stage is checkpoint_of in this last part of a session: it would load a model and train a step or two.
LAST_PART = 0.1


@check_parameters
def train(
    profile: str,
    overrides: Texts,
    limit_s: float,
    folder: Path = Path("run"),
    inputs: Path = startup.INPUTS,
) -> Path | None:
    """Do the training stages of a profile, at most until `limit_s` seconds after the kernel's start.

    Goes on from a run's folder among the `inputs`, if there is one, and returns the model folder of the last
    stage done; None without one. Raises AimoError for a profile that trains nothing or is not that of the
    folder, and as `pipeline.run`.
    """
    resolved = config.load(profile, list(overrides))
    if not resolved.trained:
        raise AimoError(f"profile {resolved.profile} trains nothing; give one with sft, grpo or dpo")
    end = startup.STARTED + limit_s
    os.environ[SESSION_END] = str(end)
    bring(folder, resolved.profile, inputs)
    made = None
    for stage in resolved.stages[: resolved.stages.index(resolved.trained[-1]) + 1]:
        if not is_done(folder, stage):
            left = end - time.monotonic()
            if left < LAST_PART * limit_s:
                print(f"{stage}: left to the next session, as {max(0, left):.0f} s remain of this one")
                break
            pipeline.run(
                profile, str(folder), list(overrides), from_stage=checkpoint_of(folder, stage), until=stage
            )
        if stage in resolved.trained:
            made = folder / stage / "model"
        if not is_done(folder, stage):
            print(f"{stage}: stopped before the end of the session; attach this output to the next version")
            break
    return made


def bring(folder: Path, name: str, inputs: Path) -> None:
    """Copy the folder that an earlier session left among the inputs, unless there is one here."""
    if folder.exists():
        return
    found = sorted(path.parent for path in inputs.rglob(f"{folder.name}/profile.yaml"))
    if len(found) > 1:
        listed = ", ".join(map(str, found))
        raise AimoError(f"the inputs hold {len(found)} runs: {listed}; attach the output of one version only")
    if not found:
        print(f"{name}: starts anew, as no run is attached")
        return
    folder.mkdir(parents=True)
    for path in sorted(found[0].rglob("*")):  # without their modes: inputs are read-only
        to = folder / path.relative_to(found[0])
        to.mkdir(parents=True, exist_ok=True) if path.is_dir() else shutil.copyfile(path, to)
    print(f"{name}: goes on with {found[0]}")


def is_done(folder: Path, stage: str) -> bool:
    """Return whether a stage is finished, and was not stopped by the end of a session."""
    return is_finished(folder, stage) and checkpoint_of(folder, stage) is None


def checkpoint_of(folder: Path, stage: str) -> str | None:
    """Return the checkpoint from which a stage that a session's end stopped goes on."""
    if read_metrics(folder)["stages"].get(stage, {}).get("stopped") != SESSION_OVER:
        return None
    return f"{stage}/{newest_first(folder / stage)[0].name}"
