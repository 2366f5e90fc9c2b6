"""Benchmarks: where their problems come from, how models are asked, and what a report adds to the figures.

A file can replace the hub's data set: `NAME.jsonl` or `NAME/SPLIT.jsonl` (or another format that
`aimo.inference.files` reads) in a folder, or a path given instead of a name.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import polars as pl
import yaml

from aimo.config import Columns, Source
from aimo.data import conversations, decontaminate, sources
from aimo.inference import competitions, files
from aimo.inference.competitions import Competition
from aimo.inference.errors import AimoError

# Benchmarks are sampled as DeepSeek-R1 and Open-R1 do (their READMEs).
SAMPLING = {"temperature": 0.6, "top_p": 0.95, "max_tokens": 32768}
# The user message for a model that boxes its answers and has no aimo.json.
BOXED = "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
RULES = "{problem}\n\nPlease reason step by step. {rules}"  # the same, for a competition's questions
LEAKED_WORDS = 8  # as in decontamination


@dataclass(frozen=True)
class Benchmark:
    """One row of BENCHMARKS."""

    source: str  # a data set on the hub, or the name of a competition's file
    samples: int  # completions per problem
    # Columns. An answer may end a text (`#### 42`) or be a list, whose entries are joined by commas.
    problem: str = "problem"
    answer: str = "answer"
    subset: str | None = None
    split: str = "train"
    subject: str | None = None  # columns by which figures are broken down
    level: str | None = None
    task: str | None = None  # lighteval's task; None: we sample, and `aimo.inference.judge` scores


BENCHMARKS = {
    "aime24": Benchmark("HuggingFaceH4/aime_2024", 64),
    "aime25": Benchmark("MathArena/aime_2025", 64),
    "aime26": Benchmark("MathArena/aime_2026", 64),
    "math500": Benchmark("HuggingFaceH4/MATH-500", 4, split="test", subject="subject", level="level"),
    "amc23": Benchmark("math-ai/amc23", 16, problem="question", split="test"),
    "hmmt25": Benchmark("MathArena/hmmt_feb_2025", 16, subject="problem_type"),
    "hmmt_nov25": Benchmark("MathArena/hmmt_nov_2025", 16, subject="problem_type"),
    "hmmt26": Benchmark("MathArena/hmmt_feb_2026", 16, subject="problem_type"),
    "brumo25": Benchmark("MathArena/brumo_2025", 16, subject="problem_type"),
    "smt25": Benchmark("MathArena/smt_2025", 16, subject="problem_type"),
    "cmimc25": Benchmark("MathArena/cmimc_2025", 16, subject="problem_type"),
    "apex25": Benchmark("MathArena/apex_2025", 16),
    "apex_shortlist": Benchmark("MathArena/apex-shortlist", 16),
    "olympiadbench": Benchmark(
        "Hothan/OlympiadBench", 4, "question", "final_answer", "OE_TO_maths_en_COMP", subject="subfield"
    ),
    "gsm8k": Benchmark("openai/gsm8k", 4, "question", "answer", "main", "test"),
    "aimo2": Benchmark("reference.csv", 16, problem="question"),
    "aimo3": Benchmark("reference.csv", 16),
    "proof_pilot": Benchmark("reference.csv", 16),
    "gpqa": Benchmark("Idavidrein/gpqa", 8, task="gpqa:diamond"),
    "lcb": Benchmark("lighteval/code_generation_lite", 16, task="lcb:codegeneration"),
}


@dataclass(frozen=True)
class Question:
    """A problem of a benchmark."""

    id: str
    problem: str
    answer: str  # gold
    subject: str = ""
    level: str = ""


def find_benchmark(name: str) -> Benchmark:
    """Return the benchmark with this name, or one for a file's path. AimoError if there is neither."""
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    if files.kind_of(Path(name)) or Path(name).exists():
        return Benchmark(name, 4, subject="subject", level="level")
    close = difflib.get_close_matches(name, BENCHMARKS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"take one of {', '.join(BENCHMARKS)}, or a file's path"
    raise AimoError(f"--benchmarks: there is no benchmark {name!r}; {hint}")


def read_benchmark(
    name: str, data: Path | None = None, rows: int | None = None, rules: Competition | None = None
) -> list[Question]:
    """Return the first `rows` questions of a benchmark, from a file in the folder `data` or from the hub.
    With a competition's `rules`, `name` is a file in the layout of its test file. AimoError names what is
    missing."""
    if rules:
        competitions.check_scored(rules)
        if name in BENCHMARKS or not Path(name).is_file():
            raise AimoError(f"--benchmarks {name}: --competition takes a file in the layout of its test file")
        posed = competitions.pose(files.read_texts(name, "benchmark "), name, rules)[:rows]
        if "answer" not in posed.columns:
            raise AimoError(f"benchmark {name}: it has no column 'answer'; add the known answers")
        competitions.known_answers(posed, rules)
        return [Question(*row) for row in posed.select("id", rules.inputs.problem, "answer").rows()]

    benchmark, path = find_benchmark(name), None
    if name not in BENCHMARKS:
        path = Path(name)
    elif files.kind_of(Path(benchmark.source)):
        path = (data or Path()) / name / benchmark.source
    elif data:
        ends = [kind + packing for packing in ("", *files.PACKED) for kind in files.KINDS]
        stems = (name, f"{name}/{benchmark.split}")
        path = next((p for stem in stems for end in ends if (p := data / f"{stem}{end}").is_file()), None)
    where = f"benchmark {path or name}"
    if path and not path.exists():
        raise AimoError(f"--benchmarks: {path} does not exist; correct it, or give its folder with --data")
    if path:
        table = files.read_all(path, "benchmark ")
    else:
        try:
            given = sources.from_hub(benchmark.source, benchmark.subset, benchmark.split, where)
        except AimoError as e:
            raise AimoError(f"{e}, or give --data FOLDER with {name}.jsonl") from None
        table = files.from_frame(given.to_polars())
    usual, columns = sources.roles_of(Columns(), table.columns), {}
    for role, column in {"problem": benchmark.problem, "answer": benchmark.answer}.items():
        if column not in table.rows.columns:
            column = usual.get(role) or usual.get("messages", role)
        if column not in table.columns:
            known = files.listed(table.columns)
            raise AimoError(f"{where}: it has no column {role!r} (it has {known}); rename one to {role!r}")
        columns[role] = column
    table = files.pick(table, [*table.rows.columns, *columns.values()])  # keys of objects too
    if columns["answer"] in table.nested:
        raise AimoError(f"{where}: it holds objects in {columns['answer']!r}; write the answers as texts")

    def text(cell: str | list[str | None] | None) -> str:
        return ", ".join(filter(None, cell)) if isinstance(cell, list) else (cell or "").strip()

    found: dict[str, Question] = {}
    for i, row in enumerate(table.rows[:rows].to_dicts()):
        problem, answer = (text(row[columns[role]]) for role in ("problem", "answer"))
        fault = f"{where}: row {i + 1}"
        if conversations.turns(problem) is not None:
            asked = conversations.exchange(problem)
            if asked.fault:
                raise AimoError(f"{fault} holds a {asked.fault}; leave the row out")
            problem = text(asked.problem)
        elif columns["problem"] in table.nested:
            raise AimoError(f"{fault} holds an object in {columns['problem']!r}; write a text there")
        answer = answer.rpartition("####")[2].strip()
        if not problem or not answer:
            raise AimoError(
                f"{fault} has no {'answer' if problem else 'problem'}; add it, or leave the row out"
            )
        id_ = str(row.get("id") or f"{files.stem_of(Path(name))}-{i}")
        if id_ in found:
            raise AimoError(f"{fault} has the same id as another, {id_}; make them different")
        labels = [text(row.get(column or "")) for column in (benchmark.subject, benchmark.level)]
        found[id_] = Question(id_, problem, answer, *labels)
    if not found:
        raise AimoError(f"{where}: it has no rows; get it again")
    return [*found.values()]


def beside_published(
    model: str, measured: Mapping[str, float]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return rows with pass@1 in percent, the model's and published ones, and the numbered sources. Both are
    empty if none of BENCHMARKS was measured."""
    if not measured.keys() & BENCHMARKS.keys():
        return [], []
    entries = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
    known = set(measured).union(*(values for entry in entries for values in entry["values"].values()))
    shown = [name for name in BENCHMARKS if name in known]
    rows: list[dict[str, Any]] = [{"model": model, "kind": "measured"}]
    rows[0] |= {name: measured.get(name, "not run") for name in shown}
    named = []
    for number, entry in enumerate(entries, 1):
        named.append({"number": number, "source": entry["source"], "date": str(entry["date"])})
        for other, values in entry["values"].items():
            figures = {name: values.get(name, "") for name in shown}
            rows.append({"model": other, "kind": "published"} | figures | {"source": number})
    return rows, named


# Leakage: eight-word runs of a question that also occur in the model's training data


def check_leakage(
    model: Path, asked: Mapping[str, list[Question]], download: bool
) -> dict[str, dict[str, Any]]:
    """Return the share of each benchmark's text that is in the model's training data, or `why` it is unknown.

    `found` maps a question's id to its share. Neither paraphrases nor the base model's data are checked."""
    try:
        data, texts = training_texts(model, download)
    except AimoError as e:
        return {name: {"why": str(e)} for name in asked}
    checked = {}
    for name, questions in asked.items():
        shares = decontaminate.shares([question.problem for question in questions], texts, LEAKED_WORDS)
        found = {one.id: round(share, 4) for one, share in zip(questions, shares, strict=True) if share}
        share = sum(shares) / len(shares)
        checked[name] = {"data": data, "texts": len(texts), "share": share, "found": found}
    return checked


def training_texts(model: Path, download: bool) -> tuple[str, pl.Series]:
    """Return the source of a model's training data (its run, or the `datasets` of its card), and the problems
    with their solutions. AimoError if neither names any data, or if a set is not here and may not be
    downloaded."""
    run, card, texts = model.absolute().parent.parent / "data", model / "README.md", []

    def add(rows: pl.DataFrame, *columns: pl.Expr) -> None:
        texts.append(rows.select(pl.concat_str(columns, separator="\n", ignore_nulls=True)).to_series())

    if tables := [path for name in ("grpo", "sft") if (path := run / f"{name}.parquet").is_file()]:
        for rows in map(pl.read_parquet, tables):
            turns = [pl.col(name).list.last() for name in ("prompt", "completion") if name in rows]
            add(rows, *(turn.struct.field("content") for turn in turns))
        return ", ".join(f"{run.parent.name}/data/{path.name}" for path in tables), pl.concat(texts)
    try:
        listed = huggingface_hub.ModelCard.load(card).data.datasets if card.is_file() else None
    except Exception as e:  # yaml raises many exception types
        reason = " ".join(str(e).split())[:100]
        raise AimoError(f"{card}: its header cannot be read ({reason})") from None
    named = [listed] if isinstance(listed, str) else [str(name) for name in listed or ()]
    if not named:
        raise AimoError("neither a run's data beside the model nor `datasets` in its card")
    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:  # without `download`, read only what is here
            place.HF_HUB_OFFLINE = place.HF_HUB_OFFLINE or not download
        for name in named:
            try:
                rows = sources.load_source(Source(name), 0, f"the card of {model.name}")[0]
            except AimoError as e:
                if download or not isinstance(e.__context__, OSError):  # it is here but unusable
                    raise
                raise AimoError(f"{name} of the model's card is not here; --card-data downloads it") from None
            add(rows, pl.col("problem"), pl.col("solution"))
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
    return ", ".join(named), pl.concat(texts)
