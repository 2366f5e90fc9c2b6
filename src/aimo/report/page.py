"""The report of a run: one self-contained HTML page to show to a colleague, made from what lies in the run's folder.

Out of scope: comparing runs.
"""

import html
import json
from datetime import date
from pathlib import Path
from typing import Any

from aimo import machine
from aimo.config import STAGES
from aimo.report import views
from aimo.runs import read_lines, read_metrics


def write(folder: Path) -> Path:
    """Write `report.html` of a finished run and return its path."""
    metrics = read_metrics(folder)
    stages = metrics["stages"]
    inference = folder / "inference"
    solutions = load(inference / "solutions.json")
    samples = load(inference / "samples.json")
    known = [s for s in solutions if s["gold"] is not None]
    right = sum(s["answer"] == s["gold"] for s in known)
    fallbacks = sum(not s["votes"] for s in solutions)
    score = f"{right} of {len(known)} known answers right, " if known else ""
    sections = [
        (
            "Held-out problems",
            "Share of well-formed completions, of right completions, and of right votes.",
            views.headline(stages),
        ),
        ("", "", views.accuracy(stages, load(inference / "majority.json"))),
        (
            "GRPO",
            "The reward is the only teacher here: no solution is shown.",
            views.training(read_lines(folder / "grpo/log.jsonl")),
        ),
        ("Format SFT", "", views.training(read_lines(folder / "sft/log.jsonl"))),
        (
            "Before and after",
            "One sample of each model for the same held-out problems.",
            views.completions(samples["rows"], **samples["texts"]),
        ),
        (
            "The test file",
            f"{len(solutions)} questions: {score}{fallbacks} answered with the fallback.",
            views.votes(solutions),
        ),
        ("", "", views.answers(solutions)),
        ("", "The samples of each question, with their answers.", views.timelines(solutions)),
        ("", "", views.effort(solutions)),
        ("", "The closest votes: what the leader and the runner-up say.", views.reasons(solutions)),
        (
            "Time",
            "",
            views.table([{"stage": s, "seconds": stages[s]["seconds"]} for s in STAGES if s in stages]),
        ),
        (
            "Versions",
            "",
            views.table(
                [{"package": name, "version": version} for name, version in machine.versions().items()]
            ),
        ),
    ]
    body = "".join(
        f"{f'<h2>{title}</h2>' if title else ''}{f'<p>{lead}</p>' if lead else ''}{view.data}"
        for title, lead, view in sections
    )
    settings = html.escape((folder / "profile.yaml").read_text())
    page = (
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>aimo: {html.escape(metrics['profile'])}</title><style>body{{font:15px/1.5 system-ui,sans-serif;color:#223;"
        "max-width:62em;margin:2em auto;padding:0 1em}h1{margin-bottom:0}h2{margin:1.6em 0 .2em}p{margin:.2em 0 .6em;color:#556}"
        "pre{background:#f6f7f9;padding:1em;overflow:auto;font-size:12px}</style>"
        f"<h1>aimo: {html.escape(metrics['profile'])}</h1><p>{date.today()}, seed {metrics['seed']}, {machine.device()}</p>"
        f"{body}<h2>Settings</h2><pre>{settings}</pre></html>"
    )
    path = folder / "report.html"
    path.write_text(page)
    return path


def load(path: Path) -> Any:
    """What a stage left as JSON."""
    return json.loads(path.read_text())
