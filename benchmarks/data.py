"""Data preparation: rows per second and peak memory of the whole of it, and decontamination beside Open-R1's algorithm.

    python benchmarks/data.py --gsm8k TRAIN.jsonl --benchmark FILE … [--rows 200000] [--json FILE]

The rows are GSM8K's with their numbers changed, and the built-in problems, half and half, with a planted evaluation problem in
every thousandth. The preparation reads, cleans, decontaminates, formats and saves them in a process of its own. Open-R1's
algorithm (its decontaminate.py: a dictionary of word 8-grams for each evaluation set, every row's 8-grams looked up in each) is
written down again here and sees the same rows; the verdicts must be equal.
"""

import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from rich.console import Console
from rich.table import Table

from aimo import config, hub
from aimo.data import builtin, decontamination, prepare
from aimo.training import models


def write_rows(gsm8k: Path, exams: list[str], count: int, to: Path) -> None:
    """The benchmark's rows as a JSONL file."""
    rng = random.Random(0)
    sources = [json.loads(line) for line in gsm8k.read_text().splitlines()]
    with to.open("w") as file:
        for i, drawn in enumerate(builtin.generate(count // 2, "train", "benchmark")):
            row = rng.choice(sources)
            question = re.sub(r"\d+", lambda m: str(int(m[0]) + rng.randint(1, 900)), row["question"])
            if i % 500 == 0:
                question += " " + rng.choice(exams)
            file.write(
                json.dumps({"problem": question, "answer": row["answer"], "solution": row["answer"]}) + "\n"
            )
            file.write(
                json.dumps(
                    {"problem": drawn.problem, "answer": str(drawn.answer), "solution": drawn.solution}
                )
                + "\n"
            )


def prepare_all(rows: Path, benchmarks: list[Path], folder: Path) -> None:
    """The whole preparation of the rows as the SFT set; prints its figures."""
    profile = config.load("tiny")
    columns = config.Columns(solution="solution")
    profile.data.sft = config.Set(str(rows), columns=columns)
    profile.data.benchmarks = [config.Source(str(path)) for path in benchmarks]
    tokenizer = models.load_tokenizer(hub.local_folder(profile.model.base), profile)
    started = time.perf_counter()
    sets = prepare.decontaminate(prepare.clean(prepare.load(profile), profile, tokenizer), profile)
    prepare.save(prepare.format(sets, profile), sets, profile, folder)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        json.dumps(
            {"rows": sets.read["sft"], "kept": len(sets.rows["sft"]), "seconds": seconds, "peak_gib": peak}
        )
    )


def open_r1(texts: list[str], benchmarks: dict[str, list[str]]) -> list[bool]:
    """Whether each text shares a word 8-gram with any benchmark, as Open-R1 finds it."""
    lookups = [{gram for text in exam for gram in word_grams(text)} for exam in benchmarks.values()]
    verdicts = [False] * len(texts)
    for lookup in lookups:
        for i, text in enumerate(texts):
            grams = set(word_grams(text))
            verdicts[i] |= any({gram in lookup for gram in grams})
    return verdicts


def word_grams(text: str) -> list[str]:
    """The word 8-grams of a lower-case text."""
    words = " ".join(text.lower().strip().split()).split()
    return [" ".join(words[i : i + 8]) for i in range(len(words) - 7)]


def main(
    gsm8k: Annotated[Path, typer.Option(help="GSM8K's train.jsonl.")],
    benchmark: Annotated[list[Path], typer.Option(help="Repeat for several evaluation sets.")],
    rows: Annotated[int, typer.Option()] = 200_000,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
    child: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure both."""
    if child:
        return prepare_all(child / "rows.jsonl", benchmark, child / "data")
    exams = {path.stem: pl.read_ndjson(path)["problem"].to_list() for path in benchmark}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(gsm8k, [text for exam in exams.values() for text in exam], rows, path)
        again = [sys.executable, __file__, "--gsm8k", str(gsm8k), "--child", folder]
        again += [part for b in benchmark for part in ("--benchmark", str(b))]
        whole = json.loads(
            subprocess.run(again, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        )
        texts = pl.read_ndjson(path)["problem"]
    started = time.perf_counter()
    found = decontamination.contaminated(texts, exams)
    ours = len(texts) / (time.perf_counter() - started)
    sample = texts.to_list()
    started = time.perf_counter()
    verdicts = open_r1(sample, exams)
    theirs = len(sample) / (time.perf_counter() - started)
    mine = set(found["row"].to_list())
    equal = all((i in mine) == verdict for i, verdict in enumerate(verdicts))
    results = {
        "preparation": whole | {"rows_per_second": whole["rows"] / whole["seconds"]},
        "decontamination": {
            "rows": len(texts),
            "contaminated": len(found),
            "ours_per_second": ours,
            "open_r1_per_second": theirs,
            "ratio": ours / theirs,
            "same_verdicts": equal,
        },
    }
    table = Table("", "rows", "rows per second", "")
    table.add_row(
        "preparation",
        f"{whole['rows']:,}",
        f"{whole['rows'] / whole['seconds']:,.0f}",
        f"peak {whole['peak_gib']:.2f} GiB",
    )
    table.add_row("decontamination", f"{len(texts):,}", f"{ours:,.0f}", f"{len(found):,} contaminated")
    table.add_row(
        "Open-R1's",
        f"{len(sample):,}",
        f"{theirs:,.0f}",
        f"{ours / theirs:.1f} times slower, {'same' if equal else 'OTHER'} verdicts",
    )
    Console().print(table)
    if to:
        to.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
