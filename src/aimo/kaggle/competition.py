"""A competition on Kaggle: its rules, drafted from its pages and files, and the table of submissions to it.

A draft marks what Kaggle does not say for certain with `# ?`, for a person to check (`aimo competition check`
lists these lines). The table shows each submission beside its model's held-out figure.
"""

import contextlib
import hashlib
import re
import statistics
import tempfile
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

from aimo import config
from aimo.config import ROOT, RUNS
from aimo.inference import files
from aimo.inference.competitions import HOUR_S, UNSURE, parse_competition
from aimo.inference.errors import AimoError
from aimo.inference.storage import load_yaml, read_json, read_lines, write_json
from aimo.kaggle import client, versions
from aimo.kaggle.client import Api, find_record
from aimo.kaggle.kernels import slug_of
from aimo.report import page, pages, tables
from aimo.report.page import Section
from aimo.run.runs import read_metrics

LARGEST = 200e6  # bytes of the largest file that is downloaded for its columns
PROBLEMS, ANSWERS = ("problem", "question", "prompt", "query"), ("answer", "label", "target")
OPTION = re.compile(r"(?:option|choice|answer)?[ _]?([a-z]|[1-9])", re.IGNORECASE)
REAL = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?", re.IGNORECASE)
NEAR = re.compile(r"(?:toleran\w+|within|relative error)\D{0,30}?(\d+(?:\.\d+)?(?:e-?\d+)?)\s*(%|percent)?")
# Kaggle's names for machines, and how pages write their GPU.
MACHINES = {
    "NvidiaRtxPro6000": r"RTX\s*(?:PRO)?\s*6000",
    "NvidiaH100": "H100",
    "NvidiaL4": r"\bL4",
    "NvidiaTeslaT4": r"\bT4",
}


def draft_competition(api: Api, competition: str) -> str:
    """Return the text of a valid rules file for a competition, given by slug or address."""
    slug = slug_of(competition)
    about = api.ask(of_competitions.ApiGetCompetitionRequest, competition_name=slug)
    answer = api.ask(of_competitions.ApiListCompetitionPagesRequest, competition_name=slug)
    listed = api.pages(of_competitions.ApiListDataFilesRequest, competition_name=slug)
    sizes = {file.name: file.total_bytes for page in listed for file in page.files}
    api.end_dry_run()
    metric = about.evaluation_metric or ""
    said = " ".join(re.sub(r"<[^>]+>|[*_`]", " ", page.content) for page in answer.pages)
    said = " ".join([metric, *said.split()])

    # Read the files. If several fit a kind, take the one with the shortest name.
    kinds = {"test": r"test[^/]*\.(csv|parquet)$", "sample": r"submission[^/]*\.(csv|parquet)$"}
    kinds |= {"train": r"(train|reference)[^/]*\.(csv|parquet)$", "server": r"\w_inference_server\.py$"}
    fitting = {kind: [name for name in sizes if re.search(form, name, re.I)] for kind, form in kinds.items()}
    named = {kind: min(names, key=len, default="") for kind, names in fitting.items()}
    heads, code, server = {}, "", named["server"]
    with tempfile.TemporaryDirectory() as folder:
        for name in filter(None, {*named.values()}):
            if sizes[name] <= LARGEST:
                api.competition_download_file(slug, name, folder, force=True, quiet=True, unzip=True)
                path = Path(folder, name)
                if name == server:
                    code = path.read_text()
                else:
                    heads[name] = files.read_texts(path, "data file ")
    asked, given = (heads.get(named[kind], pl.DataFrame()) for kind in ("test", "sample"))

    inputs, unused = inputs_of(asked, given.columns)
    inputs |= {"test": name} if (name := Path(named["test"]).name) not in ("", "test.csv") else {}
    if server:  # it sends only the problem
        inputs.pop("options", None)

    # Known answers, from the train file or else the sample submission, show their kind.
    known = heads.get(named["train"], given)
    column = next((name for name in (*given.columns[1:2], *ANSWERS) if name in known.columns), None)
    values = [value.strip() for value in known[column] if value.strip()] if column else []
    kind, scoring, rules = guess_answer(values, len(inputs.get("options", ())), said)
    id_, value = given.columns[:2] if len(given.columns) > 1 else ("id", "answer")
    artefact: dict[str, Any] = {"kind": Path(named["sample"] or "x.csv").suffix[1:]}
    artefact |= {"id": id_, "answer": value}
    if len(given.columns) > 2 and len(given):
        artefact["others"] = given[0, 2:].to_dicts()[0]
    called = re.search(r"class (\w+InferenceServer)", code)
    if server:
        artefact = {"kind": "server", "server": f"{Path(server).stem}.{called[1] if called else 'Server'}"}
    is_sure = bool(called) if server else len(given.columns) == 2
    machines = [name for name, pattern in MACHINES.items() if re.search(pattern, said)]
    hours = r"(\d+(?:\.\d+)?)[\s-]*hours?"
    gpu = re.search(rf"GPU\D{{0,40}}?{hours}", said, re.IGNORECASE) or re.search(hours, said)
    keys = {  # each with its value, and why that is uncertain
        "slug": (slug, ""),
        "inputs": (inputs, f"not used: {unused}" if unused else "" if named["test"] else "no test file"),
        "answer": (kind, f"seen: {', '.join(values[:3]) or 'no answer'}"),
        "rules": (rules, "the sentence for prompts"),
        "artefact": (artefact, "" if is_sure else f"sample submission: {', '.join(given.columns) or 'none'}"),
        "scoring": (scoring, f"metric: {metric or 'not named'}"),
        "accelerators": (machines, "those that the pages name"),
        "questions": (len(asked) or 50, "rows of the public test file"),
        "session_s": (round(float(gpu[1] if gpu else 9) * HOUR_S), "" if gpu else "no hours are named"),
    }
    deadline = f"{about.deadline:%Y-%m-%d %H:%M} UTC" if about.deadline else "unknown"
    lines = [f"# {' '.join(about.title.split())}, drafted from its pages and data: see to each question mark"]
    lines.append(f"# Deadline {deadline}; {about.max_daily_submissions} submissions a day")
    for name, size in sorted(sizes.items())[:20]:
        head = heads.get(name)
        rows = f", {len(head):,} rows of {', '.join(head.columns)}" if head is not None else ""
        lines.append(f"# {name}: {size:,} bytes{rows}")
    flow: dict[str, Any] = {"default_flow_style": True, "allow_unicode": True, "sort_keys": False}
    for key, (content, unsure) in keys.items():
        shown = yaml.safe_dump(content, width=10**6, **flow).removesuffix("...\n").strip()
        lines.append(f"{key}: {shown}" + (f"  {UNSURE} {' '.join(unsure.split())}" if unsure else ""))
    parse_competition(load_yaml("\n".join(lines)), f"the draft of {slug}")  # AimoError if it is not valid
    return "\n".join([*lines, ""])


def inputs_of(asked: pl.DataFrame, submitted: list[str]) -> tuple[dict[str, Any], str]:
    """Return the test file's columns by role, and those without one."""
    names = asked.columns or ["id", "problem"]
    id_ = next((name for name in submitted if name in names), names[0])
    options = [name for name in names if name != id_ and OPTION.fullmatch(name)]
    options = options if len(options) > 1 else []
    texts = [name for name in names if name not in (id_, *options)] or ["problem"]
    lengths = {name: asked[name].str.len_chars().mean() or 0.0 for name in texts if name in asked.columns}
    usual = [name for name in texts if name.lower() in PROBLEMS]
    problem = (usual or sorted(lengths, key=lambda name: -lengths[name]) or texts)[0]  # type: ignore[operator]
    inputs = {"id": id_, "problem": problem} | ({"options": options} if options else {})
    return inputs, ", ".join(name for name in texts if name != problem)


def guess_answer(values: list[str], options: int, said: str) -> tuple[dict[str, Any], str, str]:
    """Guess the kind of answer, the scoring and the sentence for prompts from known answers and pages."""
    letters = sorted({value.upper() for value in values if re.fullmatch("[A-Za-z]", value)})
    if options or (letters and len(letters) == len({value.upper() for value in values})):
        last = max([*letters, chr(64 + max(2, options))])
        alphabet = "".join(map(chr, range(65, ord(last) + 1)))
        told = f"Put the letter of one option, {', '.join(alphabet[:-1])} or {last}, in \\boxed{{}}."
        return {"kind": "choice", "letters": alphabet}, "accuracy", told
    near = NEAR.search(said)
    if values and not near and all(re.fullmatch(r"-?\d{1,15}", value) for value in values):
        low, high = min(0, *map(int, values)), max(99999, *map(int, values))
        told = f"The answer is an integer from {low} to {high}. Put this one integer in \\boxed{{}}."
        return {"kind": "integer", "low": low, "high": high}, "points", told
    if values and all(map(REAL.fullmatch, values)):
        relative = float(near[1]) / (100 if near[2] else 1) if near else 0.0
        told = "The answer is a number. Put this one number in \\boxed{}."
        return {"kind": "number", "relative": relative}, "tolerance", told
    return {"kind": "text", "case": False}, "accuracy", "Put the answer alone in \\boxed{}."


# ---- The table of submissions

Z = NormalDist().inv_cdf(0.975)
DRAWS = 20_000
LEAST = 4  # submissions with both scores; fewer say nothing about their correlation


@dataclass(frozen=True)
class HeldOut:
    """A model's figure on n held-out problems."""

    figure: str  # such as maj@16
    share: float
    n: int
    problems: str  # identifies them: figures on different problems are not compared

    def __str__(self) -> str:
        middle = (self.share + Z**2 / (2 * self.n)) / (1 + Z**2 / self.n)  # Wilson's interval
        half = Z * sqrt(self.share * (1 - self.share) / self.n + Z**2 / (4 * self.n**2)) / (1 + Z**2 / self.n)
        return f"{self.share:.3f} ({middle - half:.3f} to {middle + half:.3f})"


@dataclass(frozen=True)
class Submission:
    """A submission, as Kaggle has it and as it was made here."""

    ref: int
    score: str  # public, or its status
    made: dict[str, Any]  # kernel, version, run and profile, as far as recorded
    held: HeldOut | None
    row: dict[str, Any]  # of the table


def list_submissions(api: Api, slug: str) -> list[Submission]:
    """Return a competition's submissions, newest first, with the records of what made them."""
    found = []
    for answer in api.pages(of_competitions.ApiListSubmissionsRequest, competition_name=slug):
        for one in answer.submissions:
            submitted = find_record("submit", ref=one.ref)
            pushed = find_record("push", kernel=submitted.get("kernel"), version=submitted.get("version"))
            models = pushed.get("models", [])
            of_model = next(filter(None, (find_record("model", model=model) for model in models)), {})
            made = of_model | pushed | submitted  # the first known model's run
            folder = ROOT / made["run"] if made.get("run") else None
            held = held_out(folder, made) or evaluated(models)
            notes = folder / "NOTES.md" if folder else None
            text = notes.read_text("utf-8", errors="replace") if notes and notes.is_file() else ""
            row = {
                "date": f"{one.date:%Y-%m-%d %H:%M}" if one.date else "",
                "ref": one.ref,
                "public score": one.public_score or one.status.name.lower(),
                "hold-out": str(held or ""),
                "of": held.figure if held else "",
                **{key: made.get(key, "") for key in ("kernel", "version", "run", "profile")},
                "message": one.description,
                "notes": next(filter(None, (line.strip("# ").strip() for line in text.splitlines())), ""),
            }
            found.append(Submission(one.ref, row["public score"], made, held, row))
    return found


def held_out(folder: Path | None, made: dict[str, Any]) -> HeldOut | None:
    """Return the figure of a run's last trained model or, for an adapter, what `aimo kaggle pack` forecast by
    the host's metric; None if the run measured none."""
    if folder is None:
        return None
    if made.get("file") == "submission.zip":
        packed = sorted(folder.glob("*/pack.json"), key=lambda path: path.stat().st_mtime)
        record = read_json(packed[-1], "pack the adapter again") if packed else {}
        if not record.get("forecast") or not record.get("questions"):
            return None
        share, n = record["forecast"]["adapter"][0], record["questions"]
        return HeldOut("forecast", share, n, f"{record['competition']}, {n} questions")
    path, problems = folder / "profile.yaml", folder / "data" / "heldout.parquet"
    if not path.is_file() or not problems.is_file():
        return None
    stages, trained = read_metrics(folder)["stages"], config.load(path).trained
    figures = stages.get("inference", {}).get("models", {}).get(trained[-1] if trained else "base", {})
    vote = next((name for name in figures if name.startswith("maj@")), "")
    n = stages.get("data", {}).get("heldout_rows")
    if not vote or not n:
        return None
    return HeldOut(vote, figures[vote], n, hashlib.sha256(problems.read_bytes()).hexdigest())


def evaluated(models: list[str]) -> HeldOut | None:
    """Return the result of the last kernel `evaluate` with one of these models, if its output is here."""
    for line in reversed(read_lines(client.RECORDS)):
        if line["did"] != "push" or not {*models} & {*line.get("models", [])}:
            continue
        slug, number = str(line["kernel"]).rpartition("/")[2], str(line["version"])
        path = versions.OUTPUT / slug / number / "evaluation.json"
        if path.is_file():
            rows = read_json(path, "download the output again", list)
            n = sum(row["questions"] for row in rows)
            right = sum(statistics.mean(row["right in each pass"]) for row in rows)
            exam = ", ".join(f"{row['file']} ({row['questions']})" for row in rows)
            return HeldOut("vote", right / n, n, exam) if n else None
    return None


def write_table(api: Api, competition: str) -> tuple[list[Submission], list[str]]:
    """Return a competition's submissions, and lines on their correlation and limits; write both to
    runs/kaggle-SLUG/scores.html."""
    slug = slug_of(competition)
    found = list_submissions(api, slug)
    limits = api.find(of_competitions.ApiGetSubmissionLimitsRequest, competition_name=slug)
    about = api.find(of_competitions.ApiGetCompetitionRequest, competition_name=slug)
    api.end_dry_run()

    pairs = []  # of hold-out and public score
    for one in found:
        with contextlib.suppress(ValueError):  # not scored
            pairs += [(one.held.share, float(one.score))] if one.held else []
    n, (held, public) = len(pairs), (list(zip(*pairs, strict=True)) or [(), ()])
    if n < LEAST or len(set(held)) < 2 or len(set(public)) < 2:
        different = f"a correlation needs {LEAST} different ones"
        told = [f"{n} submissions have a hold-out and a public score; {different}"]
    else:
        r = statistics.correlation(held, public)
        z, half = atanh(max(-0.999999, min(r, 0.999999))), Z / sqrt(n - 3)  # Fisher's transformation
        bounds = f"95 % interval {tanh(z - half):.2f} to {tanh(z + half):.2f}"
        told = [f"hold-out and public score of {n} submissions: correlation {r:.2f} ({bounds})"]
    left = "unknown" if limits is None else f"{limits.num_allowed_now} ({limits.num_today} made)"
    deadline = "unknown"
    if about and about.deadline:
        days = (about.deadline.replace(tzinfo=UTC) - datetime.now(UTC)).days
        when = f"in {days} days" if days >= 0 else "which is over"
        deadline = f"{about.deadline:%Y-%m-%d %H:%M} UTC, {when}"
    told.append(f"submissions left today: {left}; deadline: {deadline}")

    folder = RUNS / f"kaggle-{slug}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [one.row for one in found]
    write_json(folder / "scores.json", {"headline": told[0], "submissions": rows})
    view = tables.table(rows) if rows else tables.note("No submissions yet.")
    page.write_page(folder / "scores.html", f"Submissions to {slug}", ". ".join(told), [Section(view)])
    pages.write_index(folder)
    return found, told


def choose_submissions(submissions: list[Submission], count: int) -> list[str]:
    """Return lines that name the `count` submissions with the best hold-out figures, and how sure that is.

    Only the newest of each run counts. Chances come from DRAWS draws of each model's true share, from
    Beta(right + 1, wrong + 1), taken as independent: figures on the same problems are somewhat surer.
    AimoError if no submission has a hold-out figure.
    """
    by_run: dict[str, tuple[HeldOut, Submission]] = {}
    for one in submissions:
        if one.held and one.score != "error":
            by_run.setdefault(str(one.made.get("run") or one.made.get("models")), (one.held, one))
    if not by_run:
        raise AimoError("no submission has a hold-out figure: push the model of a run whose data has heldout")
    exam = statistics.mode(held.problems for held, _ in by_run.values())
    ranked = [pair for pair in by_run.values() if pair[0].problems == exam]
    ranked.sort(key=lambda pair: -pair[0].share)
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
    others = [one for held, one in by_run.values() if held.problems != exam]
    if named := ", ".join(f"{one.ref} ({one.made.get('run', 'no run')})" for one in others):
        lines.append(f"not compared, as they were measured on other problems: {named}")
    return lines
