"""The table of benchmarks: where the problems come from, how they are asked, sampled and scored.

A file takes the place of the hub's data set: `NAME.jsonl` or `NAME/SPLIT.jsonl` (or .csv, .parquet) in a
folder, or a path of its own in place of a name. Out of scope: sampling (`completions`), figures (`scores`).
"""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from aimo.config import Source
from aimo.data import sources
from aimo.errors import AimoError

BOXED = "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
"""DeepSeek-R1's advice on prompts for mathematics (its README)."""
TEMPERATURE, TOP_P, MAX_TOKENS = 0.6, 0.95, 32768
"""How DeepSeek-R1 and Open-R1 sample all of these benchmarks (their READMEs)."""


@dataclass(frozen=True)
class Benchmark:
    """One row of the table."""

    title: str
    source: str
    """A data set on the hub; a file where the data set is a competition's."""
    samples: int
    """Completions of each problem."""
    problem: str = "problem"
    answer: str = "answer"
    """Columns; an answer may stand at the end of a text (`#### 42`) or be the only one of a list."""
    subset: str | None = None
    split: str = "train"
    subject: str | None = None
    level: str | None = None
    """Columns that figures are also given by."""
    prompt: str = BOXED
    """The user message for a model that has no settings of its own (aimo.json) and boxes its answers."""
    temperature: float = TEMPERATURE
    top_p: float = TOP_P
    max_tokens: int = MAX_TOKENS
    task: str | None = None
    """lighteval's task, which asks and scores. None: asked here, scored by `aimo.inference.equivalence`."""

    @property
    def sampling(self) -> dict[str, Any]:
        """The solver's settings that it is sampled with."""
        return {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens}


BENCHMARKS = {
    "aime24": Benchmark("AIME 2024", "HuggingFaceH4/aime_2024", 64),
    "aime25": Benchmark("AIME 2025", "MathArena/aime_2025", 64),
    "aime26": Benchmark("AIME 2026", "MathArena/aime_2026", 64),
    "math500": Benchmark(
        "MATH-500", "HuggingFaceH4/MATH-500", 4, split="test", subject="subject", level="level"
    ),
    "amc23": Benchmark("AMC 2023", "math-ai/amc23", 16, problem="question", split="test"),
    "hmmt25": Benchmark("HMMT February 2025", "MathArena/hmmt_feb_2025", 16, subject="problem_type"),
    "olympiadbench": Benchmark(
        "OlympiadBench", "Hothan/OlympiadBench", 4, "question", "final_answer", "OE_TO_maths_en_COMP",
        subject="subfield",
    ),
    "gsm8k": Benchmark("GSM8K", "openai/gsm8k", 4, "question", "answer", "main", "test"),
    "aimo2": Benchmark("AIMO 2 reference problems", "reference.csv", 16, problem="question"),
    "aimo3": Benchmark("AIMO 3 reference problems", "reference.csv", 16),
    "gpqa": Benchmark("GPQA Diamond", "Idavidrein/gpqa", 8, task="gpqa:diamond"),
    "lcb": Benchmark("LiveCodeBench", "lighteval/code_generation_lite", 16, task="lcb:codegeneration"),
}  # fmt: skip
KINDS = (".jsonl", ".csv", ".parquet")
NAMES = {"problem": ("problem", "question", "prompt"), "answer": ("answer", "final_answer")}
"""Columns of a file whose names differ from the data set's on the hub."""


@dataclass(frozen=True)
class Question:
    """A problem of a benchmark."""

    id: str
    problem: str
    answer: str
    """The gold answer."""
    subject: str = ""
    level: str = ""


def named(name: str) -> Benchmark:
    """The benchmark of a name, or of a path to a file. AimoError when there is none."""
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    if Path(name).suffix in KINDS:
        return Benchmark(Path(name).stem, name, 4, subject="subject", level="level")
    close = difflib.get_close_matches(name, BENCHMARKS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"take one of {', '.join(BENCHMARKS)}, or a file's path"
    raise AimoError(f"--benchmarks: there is no benchmark {name!r}; {hint}")


def read(name: str, data: Path | None = None, rows: int | None = None) -> list[Question]:
    """The first `rows` questions of a benchmark, from a file of the folder `data` or from the hub.

    AimoError when it cannot be had, or when a problem or an answer is missing.
    """
    benchmark = named(name)
    path = local_file(name, benchmark, data)
    table = from_file(path, name) if path else from_hub(name, benchmark)
    where = f"benchmark {path or name}"
    columns = {role: column_of(table, role, getattr(benchmark, role), where) for role in NAMES}
    found = []
    for i, row in enumerate(table.head(rows or len(table)).to_dicts()):
        problem = plain(row[columns["problem"]])
        answer = plain(row[columns["answer"]]).rpartition("####")[2].strip()
        if not problem or not answer:
            missing = "answer" if problem else "problem"
            raise AimoError(f"{where}: row {i + 1} has no {missing}; add it, or leave the row out")
        labels = [plain(row.get(column or "")) for column in (benchmark.subject, benchmark.level)]
        found.append(Question(str(row.get("id", f"{Path(name).stem}-{i}")), problem, answer, *labels))
    if not found:
        raise AimoError(f"{where}: it has no rows; get it again")
    if len({question.id for question in found}) < len(found):
        raise AimoError(f"{where}: two rows have the same id; make them different")
    return found


def local_file(name: str, benchmark: Benchmark, data: Path | None) -> Path | None:
    """The file that holds a benchmark, None where the hub does. AimoError when there is no such file."""
    if Path(name).suffix in KINDS:
        path = Path(name)
    elif benchmark.source.endswith(KINDS):
        path = (data or Path()) / name / benchmark.source
    else:
        stems = (name, f"{name}/{benchmark.split}")
        places = [data / f"{stem}{kind}" for stem in stems for kind in KINDS] if data else []
        return next((place for place in places if place.is_file()), None)
    if not path.is_file():
        raise AimoError(
            f"--benchmarks: {path} does not exist; correct the path, or give its folder with --data"
        )
    return path


def from_file(path: Path, name: str) -> pl.DataFrame:
    """A file as a table."""
    try:
        if path.suffix == ".csv":
            return pl.read_csv(path, infer_schema=False)
        return pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_ndjson(path)
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError):
        raise AimoError(f"benchmark {name}: {path} cannot be read as {path.suffix}; get it again") from None


def from_hub(name: str, benchmark: Benchmark) -> pl.DataFrame:
    """A data set of the hub as a table, downloaded if need be."""
    import datasets

    source, subset, split = benchmark.source, benchmark.subset, benchmark.split
    try:
        return datasets.load_dataset(source, subset, split=split).to_polars()
    except Exception as e:  # the hub client and datasets raise many kinds
        reason = sources.why_not(e, Source(source), subset, split)
        raise AimoError(f"benchmark {name}: {reason}, or give --data FOLDER with {name}.jsonl") from None


def column_of(table: pl.DataFrame, role: str, usual: str, where: str) -> str:
    """The column of a problem or an answer. AimoError when there is none."""
    for name in (usual, *NAMES[role]):
        if name in table.columns:
            return name
    known = ", ".join(table.columns) or "none"
    raise AimoError(f"{where}: it has no column {role!r} (it has {known}); rename one to {role!r}")


def plain(value: Any) -> str:
    """A cell as text: the last message of a conversation, or the entries of a list."""
    if isinstance(value, list):
        return ", ".join(plain(entry) for entry in value if not isinstance(entry, dict)) or last_message(
            value
        )
    return "" if value is None else str(value).strip()


def last_message(talk: list[dict[str, Any]]) -> str:
    """What the last message of a conversation says; empty without one."""
    return plain(talk[-1].get("content")) if talk else ""
