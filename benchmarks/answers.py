"""Answer checking: completions per second and agreement with the labels, ours beside TRL and Open-R1's settings.

    python benchmarks/answers.py --traces FILE … [--json FILE]

A trace file has one problem a line: `answer` and `samples`, each with `text` and `correct`. All three see the same
completions in the same run, after one warm-up call each. Every verdict of ours that differs from the label or from TRL's is
printed.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from rich.console import Console
from rich.table import Table
from trl.rewards import accuracy_reward

from aimo import answers

Checker = Callable[[list[str], list[str]], list[Any]]


def trl(completions: list[str], golds: list[str]) -> list[Any]:
    """TRL's reward as it is."""
    return accuracy_reward([[{"role": "assistant", "content": c}] for c in completions], [f"${gold}$" for gold in golds])


def open_r1(completions: list[str], golds: list[str]) -> list[Any]:
    """math-verify with the settings of Open-R1's accuracy reward."""
    normalization = NormalizationConfig(nits=False, malformed_operators=False, basic_latex=True, boxed="all", units=True)
    config = [LatexExtractionConfig(normalization_config=normalization, boxed_match_priority=0, try_extract_without_anchor=False)]

    def check(completion: str, gold: str) -> float | None:
        target = parse(f"${gold}$", extraction_mode="first_match")
        return float(verify(target, parse(completion, extraction_config=config, extraction_mode="first_match"))) if target else None

    return [check(completion, gold) for completion, gold in zip(completions, golds, strict=True)]


def main(
    traces: Annotated[list[Path], typer.Option(help="Repeat for several.")],
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Measure all three on each file."""
    checkers: dict[str, Checker] = {"aimo": answers.are_correct, "trl": trl, "open-r1": open_r1}
    results = []
    table = Table("file", "completions", "checker", "per second", "ours / theirs", "agreement")
    for path in traces:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        samples = [(s["text"], str(row["answer"]), bool(s["correct"])) for row in rows for s in row["samples"]]
        completions, golds, labels = (list(column) for column in zip(*samples, strict=True))
        verdicts, rates = {}, {}
        for name, check in checkers.items():
            check([r"\boxed{\sqrt{3}}"], [r"\sqrt{2}"])
            started = time.perf_counter()
            verdicts[name] = check(completions, golds)
            rates[name] = len(samples) / (time.perf_counter() - started)
        for name, rate in rates.items():
            agreement = sum(bool(v) == label for v, label in zip(verdicts[name], labels, strict=True)) / len(samples)
            results.append({"file": path.name, "checker": name, "per_second": rate, "ratio": rates["aimo"] / rate, "agreement": agreement})
            table.add_row(path.name, str(len(samples)), name, f"{rate:,.0f}", f"{rates['aimo'] / rate:.1f}", f"{agreement:.5f}")
        for (text, gold, label), ours, theirs in zip(samples, verdicts["aimo"], verdicts["trl"], strict=True):
            if bool(ours) != label or bool(ours) != bool(theirs):
                found = answers.extract(text)
                print(f"{path.name}: label {label}, ours {ours}, TRL {theirs}: gold {gold!r}, answer {found!r}, …{text[-60:]!r}")
    Console().print(table)
    if to:
        to.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
