"""The table of benchmarks: where the problems come from, how they are asked, sampled and scored.

A file takes the place of the hub's data set: `NAME.jsonl` or `NAME/SPLIT.jsonl` (or another kind of
`aimo.inference.files`) in a folder, or a path of its own in place of a name. Out of scope: sampling
(`completions`), figures (`scores`).
"""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from aimo.config import Columns, Source
from aimo.data import conversations, sources
from aimo.errors import AimoError
from aimo.inference import files

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
    """lighteval's task, which asks and scores. None: asked here, scored by `aimo.inference.judge`."""

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
    if files.kind_of(Path(name)) or Path(name).is_dir():
        return Benchmark(files.stem_of(Path(name)), name, 4, subject="subject", level="level")
    close = difflib.get_close_matches(name, BENCHMARKS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"take one of {', '.join(BENCHMARKS)}, or a file's path"
    raise AimoError(f"--benchmarks: there is no benchmark {name!r}; {hint}")


def read(name: str, data: Path | None = None, rows: int | None = None) -> list[Question]:
    """The first `rows` questions of a benchmark, from a file of the folder `data` or from the hub.

    AimoError when it cannot be had, or when a problem or an answer is missing.
    """
    benchmark = named(name)
    path = local_file(name, benchmark, data)
    where = f"benchmark {path or name}"
    table = files.read_all(path, "benchmark ") if path else files.from_frame(from_hub(name, benchmark))
    columns = columns_of(benchmark, table, where)
    table = files.pick(table, [*table.rows.columns, *columns.values()])  # keys of objects too
    if columns["answer"] in table.nested:
        raise AimoError(f"{where}: it holds objects in {columns['answer']!r}; write the answers as texts")
    found = []
    for i, row in enumerate(table.rows.head(rows or len(table.rows)).to_dicts()):
        problem, answer = (plain(row[columns[role]]) for role in ("problem", "answer"))
        if conversations.turns(problem) is not None:
            asked = conversations.exchange(problem)
            if asked.fault:
                raise AimoError(f"{where}: row {i + 1} holds a {asked.fault}; leave the row out")
            problem = plain(asked.problem)
        elif columns["problem"] in table.nested:
            raise AimoError(
                f"{where}: row {i + 1} holds an object in {columns['problem']!r}; write a text there"
            )
        answer = answer.rpartition("####")[2].strip()
        if not problem or not answer:
            missing = "answer" if problem else "problem"
            raise AimoError(f"{where}: row {i + 1} has no {missing}; add it, or leave the row out")
        labels = [plain(row.get(column or "")) for column in (benchmark.subject, benchmark.level)]
        stem = files.stem_of(Path(name))
        found.append(Question(str(row.get("id") or f"{stem}-{i}"), problem, answer, *labels))
    if not found:
        raise AimoError(f"{where}: it has no rows; get it again")
    if len({question.id for question in found}) < len(found):
        raise AimoError(f"{where}: two rows have the same id; make them different")
    return found


def local_file(name: str, benchmark: Benchmark, data: Path | None) -> Path | None:
    """The file that holds a benchmark, None where the hub does. AimoError when there is no such file."""
    if name not in BENCHMARKS:
        path = Path(name)
    elif files.kind_of(Path(benchmark.source)):
        path = (data or Path()) / name / benchmark.source
    else:
        ends = [kind + packing for packing in ("", *files.PACKED) for kind in files.KINDS]
        stems = (name, f"{name}/{benchmark.split}")
        places = [data / f"{stem}{end}" for stem in stems for end in ends] if data else []
        return next((place for place in places if place.is_file()), None)
    if not path.exists():
        raise AimoError(
            f"--benchmarks: {path} does not exist; correct the path, or give its folder with --data"
        )
    return path


def from_hub(name: str, benchmark: Benchmark) -> pl.DataFrame:
    """A data set of the hub as a table, downloaded if need be."""
    import datasets

    source, subset, split = benchmark.source, benchmark.subset, benchmark.split
    try:
        return datasets.load_dataset(source, subset, split=split).to_polars()
    except Exception as e:  # the hub client and datasets raise many kinds
        reason = sources.why_not(e, Source(source), subset, split)
        raise AimoError(f"benchmark {name}: {reason}, or give --data FOLDER with {name}.jsonl") from None


def columns_of(benchmark: Benchmark, table: files.Table, where: str) -> dict[str, str]:
    """The columns of problem and answer. AimoError when there is none."""
    usual = sources.roles_of(Columns(), table.columns)
    found = {}
    for role, column in {"problem": benchmark.problem, "answer": benchmark.answer}.items():
        name = column if column in table.rows.columns else usual.get(role) or usual.get("messages", role)
        if name not in table.columns:
            known = files.listed(table.columns)
            raise AimoError(f"{where}: it has no column {role!r} (it has {known}); rename one to {role!r}")
        found[role] = name
    return found


def plain(cell: str | list[str | None] | None) -> str:
    """A cell as text: itself, or the entries of a list."""
    return ", ".join(filter(None, cell)) if isinstance(cell, list) else (cell or "").strip()
