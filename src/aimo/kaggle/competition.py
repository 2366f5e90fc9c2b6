"""Draft a competition's file of rules from what Kaggle says of it: its pages, and the heads of its files.

What Kaggle does not say for certain ends in `# ?`, and a person looks at it (`aimo competition check` lists
these lines).
"""

import functools
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from kagglesdk.competitions.types.competition_api_service import (
    ApiDownloadDataFileRequest,
    ApiGetCompetitionRequest,
    ApiListCompetitionPagesRequest,
    ApiListDataFilesRequest,
)

from aimo.errors import AimoError
from aimo.inference import files
from aimo.inference.competitions import HOUR_S, UNSURE, parse_competition
from aimo.inference.storage import load_yaml
from aimo.kaggle import transfers
from aimo.kaggle.check import slug_of
from aimo.kaggle.client import Api

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
            transfers.save_download(functools.partial(asked, file_name=name), path)
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
