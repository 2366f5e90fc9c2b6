"""A run's folder: what lies where, how a stage begins and how it reports.

    RUN/profile.yaml          the resolved profile
    RUN/notebooks/            executed notebooks and their HTML
    RUN/data|sft|grpo|dpo|inference/  what each stage makes: rows, checkpoints and model, evaluation and answers
    RUN/metrics.json, report.html, submission.parquet

A stage is finished when metrics.json holds its seconds; `finish`, the last call of each notebook, writes them. Out of scope:
two runs in one folder at a time.
"""

import json
import logging
import os
import re
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aimo import config
from aimo.config import ROOT, STAGES, Profile, Stage
from aimo.errors import AimoError

NOTEBOOKS: dict[Stage, str] = {
    "data": "01_data_prep",
    "sft": "02_format_sft",
    "grpo": "03_grpo",
    "dpo": "03b_dpo",
    "inference": "04_inference",
}
PRODUCTS: dict[Stage, str] = {
    "data": "data/sft.parquet",
    "sft": "sft/model",
    "grpo": "grpo/model",
    "dpo": "dpo/model",
    "inference": "submission.parquet",
}


@dataclass(frozen=True)
class Run:
    """One stage's view of a run: the profile, the folder, and how to report."""

    profile: Profile
    dir: Path
    stage: Stage
    started: float

    @property
    def folder(self) -> Path:
        """Where this stage keeps what it makes."""
        folder = self.dir / self.stage
        folder.mkdir(exist_ok=True)
        return folder

    def progress(self, step: int, total: int) -> None:
        """Tell the pipeline how far this stage is."""
        write_json(self.dir / "progress.json", {"stage": self.stage, "step": step, "total": total})

    def data_hash(self) -> dict[str, str]:
        """The hash of the data that this run trains on, from its card."""
        found = re.search(r"`([0-9a-f]{64})`", (self.dir / "data/README.md").read_text())
        return {"data_sha256": found[1]} if found else {}

    def finish(self, **metrics: Any) -> None:
        """Record the stage as finished, with its seconds and figures; other stages' figures by their name."""
        stages: dict[str, Any] = {self.stage: {}} | {k: v for k, v in metrics.items() if isinstance(v, dict)}
        stages[self.stage] |= {k: v for k, v in metrics.items() if not isinstance(v, dict)}
        stages[self.stage]["seconds"] = round(time.time() - self.started, 1)
        recorded = read_metrics(self.dir)
        for name, figures in stages.items():
            recorded["stages"].setdefault(name, {}).update(figures)
        write_json(
            self.dir / "metrics.json", {"profile": self.profile.profile, "seed": self.profile.seed} | recorded
        )


def begin(stage: Stage, profile: str, run_dir: str | None = None, overrides: list[str] | None = None) -> Run:
    """The first call of a notebook: quiet the libraries, read the profile, open the run folder, check the stages before.

    `run_dir` is runs/PROFILE when not given.
    """
    quiet()
    started = time.time()
    resolved = config.load(profile, overrides)
    if resolved.training.cache_dir:
        os.environ["HF_HOME"] = resolved.training.cache_dir
    folder = open_folder(run_dir, resolved)
    if stage not in resolved.stages:
        raise AimoError(f"profile {profile} has no {stage} section; add one, or leave this notebook out")
    for earlier in resolved.stages[: resolved.stages.index(stage)]:
        if not (folder / PRODUCTS[earlier]).exists():
            raise AimoError(
                f"stage {stage} needs {folder / PRODUCTS[earlier]}, which stage {earlier} makes: run notebooks/{NOTEBOOKS[earlier]}.ipynb "
                f"first, or everything with `aimo run --profile {profile} --run-dir {folder}`"
            )
    return Run(resolved, folder, stage, started)


def open_folder(run_dir: str | Path | None, profile: Profile, redo: Stage | None = None) -> Path:
    """Create the run's folder, or check that its profile is this one; keys of stages from `redo` on may differ."""
    folder = Path(run_dir) if run_dir else ROOT / "runs" / profile.profile
    saved = folder / "profile.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if saved.exists():
            old = config.load(saved)
            differing = {
                k: v
                for k, v in config.differing_keys(old, profile).items()
                if redo is None or not within(k, redo)
            }
            if differing:
                keys = ", ".join(f"{k} (was {a!r}, now {b!r})" for k, (a, b) in differing.items())
                raise AimoError(
                    f"run folder {folder} was made with another profile: {keys}; take another --run-dir, or redo a stage with --from"
                )
        if not saved.exists() or redo:
            write_whole(saved, config.dump(profile))
        (folder / "notebooks").mkdir(exist_ok=True)
    except OSError as e:
        raise AimoError(
            f"run folder {folder}: {e.strerror or e}; free or unlock it, or take another --run-dir"
        ) from None
    return folder


def within(key: str, redo: Stage) -> bool:
    """Whether a dotted key concerns only stages from `redo` on."""
    section = key.split(".")[0]
    return redo == STAGES[0] or (section in STAGES and STAGES.index(section) >= STAGES.index(redo))  # type: ignore[arg-type]


def read_metrics(folder: Path) -> dict[str, Any]:
    """metrics.json, or an empty one."""
    path = folder / "metrics.json"
    return json.loads(path.read_text()) if path.exists() else {"stages": {}}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_json(path: Path, value: Any) -> None:
    """A JSON file, written whole or not at all."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """A text file, written whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


def quiet() -> None:
    """Silence the libraries' notices and progress bars, so that a notebook shows only what it means to show."""
    os.environ |= {
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "DATASETS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_LOGS": "-all",
        "TQDM_DISABLE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
