"""Draft a competition's file of rules from what Kaggle says of it: its pages, and the heads of its files.

What Kaggle does not say for certain ends in `# ?`, and a person looks at it (`aimo competition check` lists
these lines).
"""

import contextlib
import functools
import hashlib
import re
import statistics
import tempfile
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from math import atanh, sqrt, tanh
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import polars as pl
import yaml
from kagglesdk.competitions.types import competition_api_service as of_competitions
from kagglesdk.competitions.types.competition_api_service import (
    ApiDownloadDataFileRequest,
    ApiGetCompetitionRequest,
    ApiListCompetitionPagesRequest,
    ApiListDataFilesRequest,
)

from aimo import config
from aimo.config import ROOT, RUNS
from aimo.inference import files
from aimo.inference.competitions import HOUR_S, UNSURE, parse_competition
from aimo.inference.errors import AimoError
from aimo.inference.storage import load_yaml, read_json, read_lines, write_json
from aimo.kaggle import client, versions
from aimo.kaggle.check import slug_of
from aimo.kaggle.client import Api, find_record
from aimo.report import page, pages, tables
from aimo.report.page import Section
from aimo.run.runs import read_metrics

LARGEST = 200e6  # bytes of a file that is downloaded to see its columns
PROBLEMS, ANSWERS = ("problem", "question", "prompt", "query"), ("answer", "label", "target")
OPTION = re.compile(r"(?:option|choice|answer)?[ _]?([a-z]|[1-9])", re.IGNORECASE)
REAL = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?", re.IGNORECASE)
# Kaggle's name of a machine, by how pages call its GPU.
MACHINES = {
    "NvidiaRtxPro6000": r"RTX\s*(?:PRO)?\s*6000",
    "NvidiaH100": "H100",
    "NvidiaL4": r"\bL4",
    "NvidiaTeslaT4": r"\bT4",
}


def draft_competition(api: Api, competition: str) -> str:
    """Return the text of a competition's file, by its slug or address.

    It is valid. AimoError where Kaggle has no such competition, or its rules are not accepted.
    """
    slug = slug_of(competition)
    about = api.ask(ApiGetCompetitionRequest, competition_name=slug)
    answer = api.ask(ApiListCompetitionPagesRequest, competition_name=slug)
    listed = api.pages(ApiListDataFilesRequest, competition_name=slug)
    sizes = {file.name: file.total_bytes for page in listed for file in page.files}
    api.end_dry_run()
    metric = about.evaluation_metric or ""
    pages = " ".join(re.sub(r"<[^>]+>|[*_`]", " ", page.content) for page in answer.pages)
    pages = " ".join([metric, *pages.split()])

    def shortest(pattern: str) -> str:
        found = [name for name in sizes if re.search(pattern, name, re.IGNORECASE)]
        return min(found, key=len, default="")

    test, sample = shortest(r"test[^/]*\.(csv|parquet)$"), shortest(r"submission[^/]*\.(csv|parquet)$")
    train, server = shortest(r"(train|reference)[^/]*\.(csv|parquet)$"), shortest(r"\w_inference_server\.py$")
    with tempfile.TemporaryDirectory() as folder:

        def download(name: str) -> Path:
            path = Path(folder, Path(name).name)
            asked = functools.partial(api.ask, ApiDownloadDataFileRequest, competition_name=slug)
            client.save_download(functools.partial(asked, file_name=name), path)
            if zipfile.is_zipfile(path):  # as Kaggle sends a large one
                with zipfile.ZipFile(path) as archive:
                    path.write_bytes(archive.read(archive.namelist()[0]))
            return path

        small = [name for name in (test, sample, train) if name and sizes[name] <= LARGEST]
        tables = {name: files.read_texts(download(name), "data file ") for name in small}
        code = download(server).read_text() if server else ""
    asked, given = (tables.get(name, pl.DataFrame()) for name in (test, sample))
    inputs, unused = inputs_of(asked, given.columns)
    inputs |= {"test": name} if (name := Path(test).name) not in ("", "test.csv") else {}
    if server:  # which sends the problem alone
        inputs.pop("options", None)
    known = tables.get(train, given)
    named = [name for name in (*given.columns[1:2], *ANSWERS) if name in known.columns]
    values = [value.strip() for value in known[named[0]] if value.strip()] if named else []
    kind, scoring, rules = guess_answer(values, len(inputs.get("options", ())), pages)

    called = re.search(r"class (\w+InferenceServer)", code)
    id_, value = given.columns[:2] if len(given.columns) > 1 else ("id", "answer")
    artefact: dict[str, Any] = {"kind": Path(sample or "x.csv").suffix[1:], "id": id_, "answer": value}
    if len(given.columns) > 2 and len(given):
        artefact["others"] = given[0, 2:].to_dicts()[0]
    if server:
        name = called[1] if called else "Server"
        artefact = {"kind": "server", "server": f"{Path(server).stem}.{name}"}
    is_sure = bool(called) if server else len(given.columns) == 2
    machines = [name for name, pattern in MACHINES.items() if re.search(pattern, pages)]
    hours = r"(\d+(?:\.\d+)?)[\s-]*hours?"
    gpu = re.search(rf"GPU\D{{0,40}}?{hours}", pages, re.IGNORECASE) or re.search(hours, pages)
    deadline = f"{about.deadline:%Y-%m-%d %H:%M} UTC" if about.deadline else "unknown"
    seen = ", ".join(values[:3]) or "no answer"
    submitted = f"sample submission: {', '.join(given.columns) or 'none'}"
    keys = {  # each with its value, and what makes that uncertain
        "inputs": (inputs, f"not used: {unused}" if unused else "" if test else "no test file"),
        "answer": (kind, f"seen: {seen}"),
        "rules": (rules, "the sentence for prompts"),
        "artefact": (artefact, "" if is_sure else submitted),
        "scoring": (scoring, f"metric: {metric or 'not named'}"),
        "accelerators": (machines, "those that the pages name"),
        "questions": (len(asked) or 50, "rows of the public test file"),
        "session_s": (round(float(gpu[1] if gpu else 9) * HOUR_S), "" if gpu else "no hours are named"),
    }
    lines = [f"# {' '.join(about.title.split())}, drafted from its pages and data: see to each question mark"]
    lines.append(f"# Deadline {deadline}; {about.max_daily_submissions} submissions a day")
    for name, size in sorted(sizes.items())[:20]:
        table = tables.get(name)
        rows = f", {len(table):,} rows of {', '.join(table.columns)}" if table is not None else ""
        lines.append(f"# {name}: {size:,} bytes{rows}")
    text = "\n".join([*lines, f"slug: {slug}", *(line(key, *of) for key, of in keys.items())])
    try:
        parse_competition(load_yaml(text), f"the draft of {slug}")
    except AimoError as e:
        raise AimoError(f"{e}; write the file by hand, as docs/competitions.md says") from None
    return f"{text}\n"


def line(key: str, value: Any, unsure: str) -> str:
    """Return a line of YAML, marked where it is `unsure`."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    text = f"{key}: {text.removesuffix('...' + chr(10)).strip()}"
    return text + (f"  {UNSURE} {' '.join(unsure.split())}" if unsure else "")


def inputs_of(asked: pl.DataFrame, submitted: list[str]) -> tuple[dict[str, Any], str]:
    """Return the test file's columns by role, and those without one."""
    names = asked.columns or ["id", "problem"]
    id_ = next((name for name in submitted if name in names), names[0])
    others = [name for name in names if name != id_]
    options = [name for name in others if OPTION.fullmatch(name)]
    options = options if len(options) > 1 else []
    texts = [name for name in others if name not in options] or ["problem"]
    usual = [name for name in texts if name.lower() in PROBLEMS]
    lengths = {name: asked[name].str.len_chars().mean() or 0.0 for name in texts if name in asked.columns}
    problem = (usual or sorted(lengths, key=lambda name: -lengths[name]) or texts)[0]  # type: ignore[operator]
    inputs: dict[str, Any] = {"id": id_, "problem": problem}
    unused = [name for name in texts if name != problem]
    return inputs | ({"options": options} if options else {}), ", ".join(unused)


def guess_answer(values: list[str], options: int, said: str) -> tuple[dict[str, Any], str, str]:
    """Return the kind of answers, the scoring and the sentence for prompts, from known answers and pages."""
    letters = sorted({value.upper() for value in values if re.fullmatch("[A-Za-z]", value)})
    if options or (letters and len(letters) == len({value.upper() for value in values})):
        last = max([*letters, chr(64 + max(2, options))])
        alphabet = "".join(map(chr, range(65, ord(last) + 1)))
        told = f"Put the letter of one option, {', '.join(alphabet[:-1])} or {last}, in \\boxed{{}}."
        return {"kind": "choice", "letters": alphabet}, "accuracy", told
    near = re.search(
        r"(?:toleran\w+|within|relative error)\D{0,30}?(\d+(?:\.\d+)?(?:e-?\d+)?)\s*(%|percent)?", said
    )
    if values and not near and all(re.fullmatch(r"-?\d{1,15}", value) for value in values):
        low, high = min(0, *map(int, values)), max(99999, *map(int, values))
        told = f"The answer is an integer from {low} to {high}. Put this one integer in \\boxed{{}}."
        return {"kind": "integer", "low": low, "high": high}, "points", told
    if values and all(map(REAL.fullmatch, values)):
        relative = float(near[1]) / (100 if near[2] else 1) if near else 0.0
        told = "The answer is a number. Put this one number in \\boxed{}."
        return {"kind": "number", "relative": relative}, "tolerance", told
    return {"kind": "text", "case": False}, "accuracy", "Put the answer alone in \\boxed{}."


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
