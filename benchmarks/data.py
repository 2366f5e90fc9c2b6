"""Data preparation: rows per second and peak memory; decontamination beside Open-R1's algorithm.

    python benchmarks/data.py --gsm8k TRAIN.jsonl --benchmark FILE … [--rows 200000] [--json FILE]

Half of the rows are GSM8K's with other numbers, half are built-in problems; every thousandth ends with a
problem of an evaluation set. A process of its own reads, cleans, decontaminates, formats and saves them.
Open-R1's algorithm (its decontaminate.py: a dictionary of word 8-grams for each evaluation set, in which
the 8-grams of each row are looked up) is repeated here and gets the same rows. Both must give the same
verdicts.
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
from typing import Annotated, Any

import polars as pl
import typer
from rich.console import Console
from rich.table import Table

from aimo import config
from aimo.data import decontaminate, prepare, sources
from aimo.run import hub
from aimo.train import models


def write_rows(gsm8k: Path, exams: list[str], count: int, to: Path) -> None:
    """Write `count` rows as a JSONL file: `problem`, `answer` and `solution`."""
    rng = random.Random(0)
    examples = [json.loads(line) for line in gsm8k.read_text().splitlines()]
    rows: list[dict[str, str]] = []
    for i, drawn in enumerate(sources.generate(count // 2, "train", "benchmark")):
        source = rng.choice(examples)
        question = re.sub(r"\d+", lambda m: str(int(m[0]) + rng.randint(1, 900)), source["question"])
        if i % 500 == 0:
            question += " " + rng.choice(exams)
        rows.append({"problem": question, "answer": source["answer"], "solution": source["answer"]})
        rows.append({"problem": drawn.problem, "answer": str(drawn.answer), "solution": drawn.solution})
    pl.DataFrame(rows).write_ndjson(to)


def prepare_all(rows: Path, benchmarks: list[Path], folder: Path) -> None:
    """Prepare the rows as the SFT set of the tiny profile, and print the figures as JSON."""
    profile = config.load("tiny")
    assert profile.data
    columns = config.Columns(solution="solution")
    profile.data.sft = config.Set(str(rows), columns=columns)
    profile.data.decontaminate = [config.Source(str(path)) for path in benchmarks]
    tokenizer = models.load_tokenizer(hub.local_folder(profile.model.base), profile)
    started = time.perf_counter()
    sets = prepare.clean_sets(prepare.load_sets(profile), profile, tokenizer)
    sets = prepare.decontaminate_sets(sets, profile)
    prepare.write_sets(prepare.format_sets(sets, profile), sets, profile, folder)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    figures = {"rows": sets.read["sft"], "kept": len(sets.rows["sft"]), "seconds": seconds, "peak_gib": peak}
    print(json.dumps(figures))


def open_r1(texts: list[str], benchmarks: dict[str, list[str]]) -> list[bool]:
    """For each text, whether it shares a word 8-gram with any evaluation set, by Open-R1's algorithm."""
    lookups = [{gram for text in exam for gram in word_grams(text)} for exam in benchmarks.values()]
    verdicts = [False] * len(texts)
    for lookup in lookups:
        for i, text in enumerate(texts):
            grams = set(word_grams(text))
            verdicts[i] |= any({gram in lookup for gram in grams})
    return verdicts


def word_grams(text: str) -> list[str]:
    words = " ".join(text.lower().strip().split()).split()
    return [" ".join(words[i : i + 8]) for i in range(len(words) - 7)]


def main(
    gsm8k: Annotated[Path, typer.Option(help="GSM8K's train.jsonl.")],
    benchmark: Annotated[list[Path], typer.Option(help="Repeat for several evaluation sets.")],
    rows: Annotated[int, typer.Option()] = 200_000,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
    child: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure the preparation, and both decontaminations."""
    if child:
        return prepare_all(child / "rows.jsonl", benchmark, child / "data")
    exams = {path.stem: pl.read_ndjson(path)["problem"].to_list() for path in benchmark}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(gsm8k, [text for exam in exams.values() for text in exam], rows, path)
        command = [sys.executable, __file__, "--gsm8k", str(gsm8k), "--child", folder]
        command += [part for b in benchmark for part in ("--benchmark", str(b))]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        preparation = json.loads(done.stdout.splitlines()[-1])
        texts = pl.read_ndjson(path)["problem"]
    preparation["rows_per_second"] = preparation["rows"] / preparation["seconds"]
    results = {"preparation": preparation, "decontamination": compare(texts, exams)}
    print_table(results)
    if to:
        to.write_text(json.dumps(results, indent=2) + "\n")


def compare(texts: pl.Series, exams: dict[str, list[str]]) -> dict[str, Any]:
    """Rows per second of both algorithms on the same texts, and whether their verdicts are the same."""
    started = time.perf_counter()
    found = decontaminate.find_overlaps(texts, exams)
    ours = len(texts) / (time.perf_counter() - started)
    sample = texts.to_list()
    started = time.perf_counter()
    verdicts = open_r1(sample, exams)
    theirs = len(sample) / (time.perf_counter() - started)
    contaminated = set(found["row"].to_list())
    return {
        "rows": len(texts),
        "contaminated": len(contaminated),
        "ours_per_second": ours,
        "open_r1_per_second": theirs,
        "ratio": ours / theirs,
        "same_verdicts": all((i in contaminated) == verdict for i, verdict in enumerate(verdicts)),
    }


def print_table(results: dict[str, Any]) -> None:
    """Print both figures."""
    preparation, found = results["preparation"], results["decontamination"]
    table = Table("", "rows", "rows per second", "ours / theirs", "")
    rate = f"{preparation['rows_per_second']:,.0f}"
    table.add_row(
        "preparation", f"{preparation['rows']:,}", rate, "", f"peak {preparation['peak_gib']:.2f} GiB"
    )
    rows, contaminated = f"{found['rows']:,}", f"{found['contaminated']:,} contaminated"
    table.add_row("decontamination", rows, f"{found['ours_per_second']:,.0f}", "", contaminated)
    verdicts = "the same verdicts" if found["same_verdicts"] else "OTHER VERDICTS"
    theirs = f"{found['open_r1_per_second']:,.0f}"
    table.add_row("Open-R1's decontamination", rows, theirs, f"{found['ratio']:.1f}", verdicts)
    Console(width=110).print(table)


if __name__ == "__main__":
    typer.run(main)
