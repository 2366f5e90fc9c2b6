"""The report of a run: one HTML page that needs no other file, made from what lies in the run's folder.

What a run has not made is left out. Out of scope: comparing runs.
"""

import html
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from IPython.display import HTML

from aimo import machine
from aimo.report import plots, tables
from aimo.runs import read_lines, read_metrics
from aimo.stages import STAGES, TRAINED

STYLE = """<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #223; max-width: 66em; margin: 2em auto; padding: 0 1em }
h1 { margin-bottom: 0 }
h2 { margin: 1.6em 0 .2em }
p { margin: .2em 0 .6em; color: #556 }
pre { background: #f6f7f9; padding: 1em; overflow: auto; font-size: 12px }
</style>"""

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


@dataclass(frozen=True)
class Section:
    """A table or plot of the page; one without a title belongs to the section before it."""

    view: HTML
    title: str = ""
    lead: str = ""

    def html(self) -> str:
        """The section as HTML."""
        title = f"<h2>{html.escape(self.title)}</h2>" if self.title else ""
        lead = f"<p>{html.escape(self.lead)}</p>" if self.lead else ""
        return title + lead + self.view.data


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
    title = html.escape(f"aimo: {metrics['profile']}")
    page = (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{title}</title>{STYLE}<h1>{title}</h1>"
        f"<p>{date.today()}, seed {metrics['seed']}, {html.escape(machine.device())}</p>"
        f"{''.join(section.html() for section in sections)}</html>"
    )
    path = folder / "report.html"
    path.write_text(page)
    return path


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
            yield Section(plots.training(log), f"Training: {name}")


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


def text(content: str) -> HTML:
    """A text as it is."""
    return HTML(f"<pre>{html.escape(content)}</pre>")


def read_json(path: Path) -> Any:
    """The value of a JSON file, or None where there is no file."""
    return json.loads(path.read_text()) if path.exists() else None
