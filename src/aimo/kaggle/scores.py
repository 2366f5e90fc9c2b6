"""The competitor's table: each submission beside what its model reached on held-out problems; and a choice.

The hold-out figure is that of the last model of the run that made it: the share of the run's held-out
problems whose vote is right, with Wilson's 95 % interval (1927). A run that measured none, as on Kaggle, has
that of the kernel `evaluate`, where its output was downloaded.
"""

import contextlib
import hashlib
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime
from math import atanh, sqrt, tanh
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from kagglesdk.competitions.types import competition_api_service as of_competitions

from aimo import config
from aimo.config import ROOT, RUNS
from aimo.errors import AimoError
from aimo.inference.storage import read_json, read_lines, write_json
from aimo.kaggle import client, versions
from aimo.kaggle.check import slug_of
from aimo.kaggle.client import Api, find_record
from aimo.report import page, pages, tables
from aimo.report.page import Section
from aimo.run.runs import read_metrics

Z = NormalDist().inv_cdf(0.975)
DRAWS = 20_000
LEAST = 4  # submissions with both scores; fewer say nothing of their correlation


@dataclass(frozen=True)
class HeldOut:
    """What a model reached on n held-out problems."""

    figure: str  # such as maj@16
    share: float
    n: int
    problems: str  # their hash: figures of other problems are not compared

    @property
    def bounds(self) -> tuple[float, float]:
        middle = (self.share + Z**2 / (2 * self.n)) / (1 + Z**2 / self.n)
        half = Z * sqrt(self.share * (1 - self.share) / self.n + Z**2 / (4 * self.n**2)) / (1 + Z**2 / self.n)
        return middle - half, middle + half

    def __str__(self) -> str:
        low, high = self.bounds
        return f"{self.share:.3f} ({low:.3f} to {high:.3f})"


@dataclass(frozen=True)
class Submission:
    """A submission, as Kaggle has it and as it was made here."""

    ref: int
    date: datetime | None
    score: str  # public, or its status
    message: str
    made: dict[str, Any]  # kernel, version, run and profile, where they are recorded
    held: HeldOut | None
    notes: str  # the first line of the run's NOTES.md

    def row(self) -> dict[str, Any]:
        date = f"{self.date:%Y-%m-%d %H:%M}" if self.date else ""
        row: dict[str, Any] = {"date": date, "ref": self.ref, "public score": self.score}
        row |= {"hold-out": str(self.held or ""), "of": self.held.figure if self.held else ""}
        row |= {key: self.made.get(key, "") for key in ("kernel", "version", "run", "profile")}
        return row | {"message": self.message, "notes": self.notes}


def list_submissions(api: Api, slug: str) -> list[Submission]:
    """Return the submissions to a competition, the newest first, with what made them where it is recorded."""
    found = []
    for answer in api.pages(of_competitions.ApiListSubmissionsRequest, competition_name=slug):
        for one in answer.submissions:
            submitted = find_record("submit", ref=one.ref)
            pushed = find_record("push", kernel=submitted.get("kernel"), version=submitted.get("version"))
            models = (find_record("model", model=model) for model in pushed.get("models", []))
            made = next(filter(None, models), {}) | pushed | submitted  # the first known model's run
            folder = ROOT / made["run"] if made.get("run") else None
            score = one.public_score or one.status.name.lower()
            held = (held_out(folder) if folder else None) or evaluated(pushed.get("models", []))
            if folder and made.get("file") == "submission.zip":
                held = forecast_of(folder)
            notes = first_note(folder) if folder else ""
            found.append(Submission(one.ref, one.date, score, one.description, made, held, notes))
    return found


def held_out(folder: Path) -> HeldOut | None:
    """Return the figure of a run's last trained model; None where it measured none."""
    path, problems = folder / "profile.yaml", folder / "data" / "heldout.parquet"
    if not path.is_file() or not problems.is_file():
        return None
    stages, trained = read_metrics(folder)["stages"], config.load(path).trained
    figures = stages.get("inference", {}).get("models", {}).get(trained[-1] if trained else "base", {})
    votes = [name for name in figures if name.startswith("maj@")]
    n = stages.get("data", {}).get("heldout_rows")
    if not votes or not n:
        return None
    return HeldOut(votes[0], figures[votes[0]], n, hashlib.sha256(problems.read_bytes()).hexdigest())


def forecast_of(folder: Path) -> HeldOut | None:
    """Return what `aimo kaggle pack` forecast of a run's last packed adapter, by the host's metric."""
    packed = sorted(folder.glob("*/pack.json"), key=lambda path: path.stat().st_mtime)
    record = read_json(packed[-1], "pack the adapter again") if packed else {}
    if not record.get("forecast") or not record.get("questions"):
        return None
    share, n = record["forecast"]["adapter"][0], record["questions"]
    return HeldOut("forecast", share, n, f"{record['competition']}, {n} questions")


def evaluated(models: list[str]) -> HeldOut | None:
    """Return what the last kernel `evaluate` with one of these models found, if its output is here."""
    for line in reversed(read_lines(client.RECORDS)):
        if line["did"] != "push" or not {*models} & {*line.get("models", [])}:
            continue
        slug, number = str(line["kernel"]).rpartition("/")[2], str(line["version"])
        path = versions.OUTPUT / slug / number / "evaluation.json"
        if path.is_file():
            rows = read_json(path, "download the output again", list)
            n = sum(row["questions"] for row in rows)
            right = sum(statistics.mean(row["right in each pass"]) for row in rows)
            files = ", ".join(f"{row['file']} ({row['questions']})" for row in rows)
            return HeldOut("vote", right / n, n, files) if n else None
    return None


def first_note(folder: Path) -> str:
    notes = folder / "NOTES.md"
    lines = notes.read_text(encoding="utf-8", errors="replace").splitlines() if notes.is_file() else []
    return next((line.strip("# ").strip() for line in lines if line.strip("# ").strip()), "")


def correlation(submissions: list[Submission]) -> str:
    """Say how the hold-out figures and the public scores go together."""
    pairs = []
    for one in submissions:
        with contextlib.suppress(ValueError):  # not scored
            pairs += [(one.held.share, float(one.score))] if one.held else []
    n, (held, public) = len(pairs), (list(zip(*pairs, strict=True)) or [(), ()])
    if n < LEAST or len(set(held)) < 2 or len(set(public)) < 2:
        told = f"a correlation needs {LEAST} different ones"
        return f"{n} submissions have a hold-out and a public score; {told}"
    r = statistics.correlation(held, public)
    z, half = atanh(max(-0.999999, min(r, 0.999999))), Z / sqrt(n - 3)  # Fisher's transformation
    bounds = f"95 % interval {tanh(z - half):.2f} to {tanh(z + half):.2f}"
    return f"hold-out and public score of {n} submissions: correlation {r:.2f} ({bounds})"


def write_table(api: Api, competition: str) -> tuple[list[Submission], list[str]]:
    """Return the submissions to a competition, and what to know beside them; write both as a page.

    It is runs/kaggle-SLUG/scores.html.
    """
    slug = slug_of(competition)
    found = list_submissions(api, slug)
    limits = api.find(of_competitions.ApiGetSubmissionLimitsRequest, competition_name=slug)
    about = api.find(of_competitions.ApiGetCompetitionRequest, competition_name=slug)
    api.end_dry_run()
    left = "unknown" if limits is None else f"{limits.num_allowed_now} ({limits.num_today} made)"
    deadline = "unknown"
    if about and about.deadline:
        days = (about.deadline.replace(tzinfo=UTC) - datetime.now(UTC)).days
        deadline = f"{about.deadline:%Y-%m-%d %H:%M} UTC, " + (
            f"in {days} days" if days >= 0 else "which is over"
        )
    told = [correlation(found), f"submissions left today: {left}; deadline: {deadline}"]
    folder = RUNS / f"kaggle-{slug}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [one.row() for one in found]
    write_json(folder / "scores.json", {"headline": told[0], "submissions": rows})
    view = tables.table(rows) if rows else tables.note("No submissions yet.")
    page.write_page(folder / "scores.html", f"Submissions to {slug}", ". ".join(told), [Section(view)])
    pages.write_index(folder)
    return found, told


def choose_submissions(submissions: list[Submission], count: int) -> list[str]:
    """Return lines that name the `count` submissions with the best hold-out figures, and how sure that is.

    One of each run, the newest. Chances are shares of DRAWS draws of each model's true share, from Beta(right
    + 1, wrong + 1), taken as independent: figures of the same problems are somewhat surer. AimoError when no
    submission has a hold-out figure.
    """
    by_run: dict[str, Submission] = {}
    for one in submissions:
        if one.held and one.score != "error":
            by_run.setdefault(str(one.made.get("run") or one.made.get("models")), one)
    exams = [one.held.problems for one in by_run.values() if one.held]
    if not exams:
        raise AimoError("no submission has a hold-out figure: push the model of a run whose data has heldout")
    exam = statistics.mode(exams)
    ranked = sorted(
        ((one.held, one) for one in by_run.values() if one.held and one.held.problems == exam),
        key=lambda pair: -pair[0].share,
    )
    right = np.array([held.share * held.n for held, _ in ranked])
    wrong = np.array([held.n for held, _ in ranked]) - right
    drawn = np.random.default_rng(0).beta(right + 1, wrong + 1, size=(DRAWS, len(ranked)))
    places = (-drawn).argsort(axis=1).argsort(axis=1)  # of each model in each draw
    chances = (places < count).mean(axis=0)
    lines = []
    for place, ((held, one), chance) in enumerate(zip(ranked, chances, strict=True), 1):
        named = f"{place}. submission {one.ref}" if place <= count else f"not chosen: {one.ref}"
        figure = f"{held.figure} {held} of {held.n} held-out problems, public score {one.score}"
        sure = f"among the best {count} of {len(ranked)} with a chance of {chance:.0%}"
        lines.append(f"{named}, {one.made.get('run', 'no run')}: {figure}; {sure}")
    if left_out := [one for one in by_run.values() if one.held and one.held.problems != exam]:
        named = ", ".join(f"{one.ref} ({one.made.get('run', 'no run')})" for one in left_out)
        lines.append(f"not compared, as they were measured on other problems: {named}")
    return lines
