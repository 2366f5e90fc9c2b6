"""Answer checking beside TRL's and Open-R1's: completions per second and agreement with the labels.

    python benchmarks/answers.py --traces FILE … --golds FILE … [--json FILE]

A trace file has one problem a line: `answer` and `samples`, each with `text` and `correct`. A gold file
has `problem` and `answer`; completions are made for those of its golds that are no integers. All three
checkers judge the same completions in the same run. The first call of each is timed apart: it imports
sympy and starts our workers. Each verdict of ours that differs from the label or from TRL's is printed.
"""

import json
import logging
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import sympy
import typer
from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from rich.console import Console
from rich.table import Table
from trl.rewards import accuracy_reward

from aimo.inference import answers, judge

Checker = Callable[[list[str], list[str]], list[Any]]
Sample = tuple[str, str, bool]  # completion, gold, label


def trl(completions: list[str], golds: list[str]) -> list[Any]:
    return accuracy_reward(
        [[{"role": "assistant", "content": c}] for c in completions], [f"${gold}$" for gold in golds]
    )


def open_r1(completions: list[str], golds: list[str]) -> list[Any]:
    """math-verify with the settings of Open-R1's accuracy reward; None where the gold cannot be read."""
    normalization = NormalizationConfig(
        nits=False, malformed_operators=False, basic_latex=True, boxed="all", units=True
    )
    extraction = LatexExtractionConfig(
        normalization_config=normalization, boxed_match_priority=0, try_extract_without_anchor=False
    )

    def check(completion: str, gold: str) -> bool | None:
        target = parse(f"${gold}$", extraction_mode="first_match")
        if not target:
            return None
        answer = parse(completion, extraction_config=[extraction], extraction_mode="first_match")
        return verify(target, answer)

    return [check(completion, gold) for completion, gold in zip(completions, golds, strict=True)]


CHECKERS: dict[str, Checker] = {"aimo": judge.are_correct, "trl": trl, "open-r1": open_r1}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def labelled(rows: list[dict[str, Any]]) -> list[Sample]:
    return [(s["text"], str(row["answer"]), bool(s["correct"])) for row in rows for s in row["samples"]]


def synthetic(rows: list[dict[str, Any]], seed: int) -> list[Sample]:
    """Eight completions for each gold that is no integer.

    A completion is three to twelve problems of the same file, which have the length and the LaTeX of
    reasoning, and then a box. The box holds the gold (30%), the gold retyped (20%), the gold as sympy
    prints it (10%), or a wrong answer (40%).
    """
    rng = random.Random(seed)
    golds = [str(row["answer"]) for row in rows if answers.to_integer(str(row["answer"])) is None]
    samples = []
    for gold in golds:
        for _ in range(8):
            kind = rng.choices(["gold", "retyped", "printed", "wrong"], [3, 2, 1, 4])[0]
            answer = gold.strip("$")
            if kind == "retyped":
                answer = retyped(answer, rng)
            elif kind == "printed":
                answer = printed(answer)
            elif kind == "wrong":
                answer = wrong(answer, [g for g in golds if g != gold], rng)
            thought = "\n\n".join(row["problem"] for row in rng.sample(rows, rng.randint(3, 12)))
            text = f"{thought}\n\nTherefore, the answer is $\\boxed{{{answer}}}$."
            samples.append((text, gold, kind != "wrong"))
    return samples


def wrong(answer: str, others: list[str], rng: random.Random) -> str:
    """The answer with one digit changed; without a digit, one of the other answers."""
    digits = list(re.finditer(r"\d", answer))
    if not digits:
        return rng.choice(others).strip("$")
    digit = rng.choice(digits)
    return answer[: digit.start()] + rng.choice("123456789".replace(digit[0], "")) + answer[digit.end() :]


def printed(answer: str) -> str:
    """The answer as sympy prints it; unchanged where it has names, units or text."""
    if re.search("[A-Zm$]|text", answer):
        return answer
    parsed = parse(f"${answer}$")[0]
    return (
        sympy.latex(parsed.doit())
        if isinstance(parsed, sympy.Expr | sympy.Set | sympy.MatrixBase)
        else answer
    )


def retyped(answer: str, rng: random.Random) -> str:
    """The same answer in other LaTeX: other fractions, brackets and spaces."""
    answer = answer.replace(r"\frac{", rng.choice([r"\frac{", r"\dfrac{", r"\tfrac{"]))
    if r"\left" not in answer and rng.random() < 0.5:
        answer = re.sub(r"(?<!\\)[(\[]", r"\\left\g<0>", re.sub(r"(?<!\\)[)\]]", r"\\right\g<0>", answer))
    return re.sub(r" ?([+,=-]) ?", rng.choice([r"\1", r" \1 ", r"\1 "]), answer)


def measure(samples: list[Sample]) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
    """Each checker's figures on the same samples, and its verdicts."""
    completions, golds, labels = (list(column) for column in zip(*samples, strict=True))
    figures, verdicts = [], {}
    for name, check in CHECKERS.items():
        started = time.perf_counter()
        verdicts[name] = check(completions, golds)
        rate = len(samples) / (time.perf_counter() - started)
        agreeing = sum(bool(v) == label for v, label in zip(verdicts[name], labels, strict=True))
        figures.append({"checker": name, "per_second": rate, "agreement": agreeing / len(samples)})
    for row in figures:
        row["ratio"] = figures[0]["per_second"] / row["per_second"]
    return figures, verdicts


def print_differences(name: str, samples: list[Sample], verdicts: dict[str, list[Any]]) -> None:
    """Print each verdict of ours that differs from the label or from TRL's."""
    for (text, gold, label), ours, theirs in zip(samples, verdicts["aimo"], verdicts["trl"], strict=True):
        if bool(ours) != label or bool(ours) != bool(theirs):
            verdict = f"label {label}, ours {ours}, TRL {theirs}"
            print(f"{name}: {verdict}: gold {gold!r}, answer {answers.extract(text)!r}, …{text[-60:]!r}")


def main(
    traces: Annotated[list[Path] | None, typer.Option(help="Repeat for several.")] = None,
    golds: Annotated[
        list[Path] | None,
        typer.Option(help="Problems with golds to make completions for; repeat for several."),
    ] = None,
    seed: int = 0,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Measure all three checkers on each file."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it logs each completion that it gives up
    for name, check in CHECKERS.items():
        started = time.perf_counter()
        check([rf"\boxed{{\cot {i}x}}" for i in range(2, 34)], [r"\tan x"] * 32)
        print(f"{name}: {time.perf_counter() - started:.1f} s for the first call")
    files = {path.name: labelled(read(path)) for path in traces or []}
    files |= {path.name: synthetic(read(path), seed) for path in golds or []}
    results = []
    table = Table("file", "completions", "checker", "per second", "ours / theirs", "agreement")
    for file, samples in files.items():
        if not samples:
            raise typer.BadParameter(
                f"{file}: all golds are integers; give it to --traces, or take another file"
            )
        figures, verdicts = measure(samples)
        print_differences(file, samples, verdicts)
        for row in figures:
            results.append({"file": file, "completions": len(samples)} | row)
            rates = f"{row['per_second']:,.0f}", f"{row['ratio']:.1f}", f"{row['agreement']:.5f}"
            table.add_row(file, str(len(samples)), row["checker"], *rates)
    Console(width=110).print(table)
    if to:
        to.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
