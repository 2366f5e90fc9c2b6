"""The report of a run, made from what lies in the run's folder; what a run has not made is left out.

Out of scope: comparing runs (`comparison_page`).
"""

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from aimo import machine
from aimo.inference.storage import read_lines
from aimo.report import page, plots, tables
from aimo.report.page import Section, read_json, text
from aimo.runs import read_metrics
from aimo.stages import STAGES, TRAINED

RECORD = (
    "seconds",
    "steps",
    "mean_loss",
    "train_seconds",
    "samples_per_second",
    "steps_per_second",
    "total_flos",
)
"""What the page shows of the record of each stage."""


def write(folder: Path) -> Path:
    """Write `report.html` of a run's folder and return its path."""
    metrics = read_metrics(folder)
    stages = metrics["stages"]
    sections = [
        *evaluation(folder, stages),
        *training(folder),
        *inference(folder, stages),
        *record(folder, stages),
    ]
    lead = f"{date.today()}, seed {metrics['seed']}, {machine.device()}"
    return page.write(folder / "report.html", f"aimo: {metrics['profile']}", lead, sections)


def evaluation(folder: Path, stages: dict[str, Any]) -> Iterator[Section]:
    """The held-out figures of each model, and completions of each for the same problems."""
    models = stages.get("inference", {}).get("models")
    if not models:
        return
    figures = {
        name: measured | {"seconds": stages.get(name, {}).get("seconds", "")}
        for name, measured in models.items()
    }
    lead = "Shares of well-formed completions (format), right ones (pass@1) and right votes of k (maj@k)."
    yield Section(tables.evaluation(figures), "Held-out problems", lead)
    if majority := read_json(folder / "inference/majority.json"):
        yield Section(plots.accuracy(models, majority))
    if samples := read_json(folder / "inference/samples.json"):
        view = tables.completions(samples["rows"], **samples["texts"])
        yield Section(view, "Completions", "One completion of each model for the same held-out problems.")


def training(folder: Path) -> Iterator[Section]:
    """The log of each stage that trains, the last stage first."""
    for name in reversed(TRAINED):
        if log := read_lines(folder / name / "log.jsonl"):
            yield Section(plots.training(log), f"Training: {name}", mismatch(log))


def mismatch(log: list[dict[str, Any]]) -> str:
    """The steps at which vLLM may have had other weights than the trainer; "" for none."""
    mean, bound = f"{plots.MISMATCH}/mean", f"{plots.MISMATCH}/bound"
    steps = [str(record["step"]) for record in log if mean in record and record[mean] > record[bound]]
    if not steps:
        return ""
    return (
        f"vLLM may have had the weights of an earlier step at: {', '.join(steps)} (docs/troubleshooting.md)."
    )


def inference(folder: Path, stages: dict[str, Any]) -> Iterator[Section]:
    """The answers to the test file, their votes, and the settings that they were sampled with."""
    solutions = read_json(folder / "inference/solutions.json")
    if not solutions:
        return
    score = stages["inference"]
    known = f"{score['correct']} of {score['known']} known answers right, " if score["known"] else ""
    lead = f"{score['questions']} questions: {known}{score['fallbacks']} answered with the fallback."
    yield Section(plots.votes(solutions), "The test file", lead)
    yield Section(tables.answers(solutions))
    yield Section(plots.timelines(solutions), lead="The samples of each question, with their answers.")
    yield Section(plots.cost(solutions))
    yield Section(tables.closest_votes(solutions), lead="Completions of the closest votes.")
    if settings := read_json(folder / "submission.settings.json"):
        yield Section(text(json.dumps(settings, indent=2, ensure_ascii=False)), "Inference settings")


def record(folder: Path, stages: dict[str, Any]) -> Iterator[Section]:
    """What each stage took, the versions of the packages, and the profile."""
    times = [
        {"stage": name} | {key: stages[name].get(key, "") for key in RECORD}
        for name in STAGES
        if name in stages
    ]
    yield Section(tables.table(times), "Time and training")
    versions = [{"package": name, "version": version} for name, version in machine.versions().items()]
    yield Section(tables.table(versions), "Versions")
    yield Section(text((folder / "profile.yaml").read_text()), "Settings")
