"""Answer checking: completions per second and agreement with the labels, ours beside TRL and Open-R1's settings.

    python benchmarks/answers.py --traces FILE … --golds FILE … [--json FILE]

A trace file has one problem a line: `answer` and `samples`, each with `text` and `correct`. A gold file has `problem` and
`answer`; its completions are synthetic, made of those golds that are no integers. All three see the same completions in the
same run, after a first call that needs algebra, which is timed alone: it imports sympy, and starts our workers. Every verdict of
ours that differs from the label or from TRL's is printed.
"""

import json
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

from aimo.inference import answers

Checker = Callable[[list[str], list[str]], list[Any]]
Sample = tuple[str, str, bool]  # completion, gold, label


def trl(completions: list[str], golds: list[str]) -> list[Any]:
    """TRL's reward as it is."""
    return accuracy_reward(
        [[{"role": "assistant", "content": c}] for c in completions], [f"${gold}$" for gold in golds]
    )


def open_r1(completions: list[str], golds: list[str]) -> list[Any]:
    """math-verify with the settings of Open-R1's accuracy reward."""
    normalization = NormalizationConfig(
        nits=False, malformed_operators=False, basic_latex=True, boxed="all", units=True
    )
    config = [
        LatexExtractionConfig(
            normalization_config=normalization, boxed_match_priority=0, try_extract_without_anchor=False
        )
    ]

    def check(completion: str, gold: str) -> float | None:
        target = parse(f"${gold}$", extraction_mode="first_match")
        return (
            float(verify(target, parse(completion, extraction_config=config, extraction_mode="first_match")))
            if target
            else None
        )

    return [check(completion, gold) for completion, gold in zip(completions, golds, strict=True)]


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def labelled(rows: list[dict[str, Any]]) -> list[Sample]:
    """The completions of a trace file."""
    return [(s["text"], str(row["answer"]), bool(s["correct"])) for row in rows for s in row["samples"]]


def synthetic(rows: list[dict[str, Any]], seed: int) -> list[Sample]:
    """Eight completions for each gold that is no integer.

    A completion is three to twelve problems of the same file, which have the length and the LaTeX of reasoning, and then a box:
    the gold itself (30%), in other type (20%), as sympy prints it (10%), or a wrong answer (40%), which is the gold with one digit
    changed, and where it has none another problem's gold.
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
            elif kind == "printed" and not re.search(
                "[A-Zm$]|text", answer
            ):  # which math-verify would not print as they were
                parsed = parse(f"${answer}$")[0]
                answer = (
                    sympy.latex(parsed.doit())
                    if isinstance(parsed, sympy.Expr | sympy.Set | sympy.MatrixBase)
                    else answer
                )
            elif kind == "wrong" and (digits := list(re.finditer(r"\d", answer))):
                digit = rng.choice(digits)
                answer = (
                    answer[: digit.start()]
                    + rng.choice("123456789".replace(digit[0], ""))
                    + answer[digit.end() :]
                )
            elif kind == "wrong":
                answer = rng.choice([g for g in golds if g != gold]).strip("$")
            thought = "\n\n".join(row["problem"] for row in rng.sample(rows, rng.randint(3, 12)))
            samples.append(
                (f"{thought}\n\nTherefore, the answer is $\\boxed{{{answer}}}$.", gold, kind != "wrong")
            )
    return samples


def retyped(answer: str, rng: random.Random) -> str:
    """The same LaTeX as another hand would type it."""
    answer = answer.replace(r"\frac{", rng.choice([r"\frac{", r"\dfrac{", r"\tfrac{"]))
    if r"\left" not in answer and rng.random() < 0.5:
        answer = re.sub(r"(?<!\\)[(\[]", r"\\left\g<0>", re.sub(r"(?<!\\)[)\]]", r"\\right\g<0>", answer))
    return re.sub(r" ?([+,=-]) ?", rng.choice([r"\1", r" \1 ", r"\1 "]), answer)


def main(
    traces: Annotated[list[Path] | None, typer.Option(help="Repeat for several.")] = None,
    golds: Annotated[
        list[Path] | None,
        typer.Option(help="Problems with golds to make completions for; repeat for several."),
    ] = None,
    seed: int = 0,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Measure all three on each file."""
    checkers: dict[str, Checker] = {"aimo": answers.are_correct, "trl": trl, "open-r1": open_r1}
    results = []
    table = Table("file", "completions", "checker", "per second", "ours / theirs", "agreement")
    for name, check in checkers.items():
        started = time.perf_counter()
        check([rf"\boxed{{\cot {i}x}}" for i in range(2, 34)], [r"\tan x"] * 32)
        print(f"{name}: {time.perf_counter() - started:.1f} s for the first call")
    files = {path: labelled(read(path)) for path in traces or []} | {
        path: synthetic(read(path), seed) for path in golds or []
    }
    for path, samples in files.items():
        completions, targets, labels = (list(column) for column in zip(*samples, strict=True))
        verdicts, rates = {}, {}
        for name, check in checkers.items():
            started = time.perf_counter()
            verdicts[name] = check(completions, targets)
            rates[name] = len(samples) / (time.perf_counter() - started)
        for name, rate in rates.items():
            agreement = sum(bool(v) == label for v, label in zip(verdicts[name], labels, strict=True)) / len(
                samples
            )
            results.append(
                {
                    "file": path.name,
                    "checker": name,
                    "per_second": rate,
                    "ratio": rates["aimo"] / rate,
                    "agreement": agreement,
                }
            )
            table.add_row(
                path.name,
                str(len(samples)),
                name,
                f"{rate:,.0f}",
                f"{rates['aimo'] / rate:.1f}",
                f"{agreement:.5f}",
            )
        for (text, gold, label), ours, theirs in zip(samples, verdicts["aimo"], verdicts["trl"], strict=True):
            if bool(ours) != label or bool(ours) != bool(theirs):
                found = answers.extract(text)
                print(
                    f"{path.name}: label {label}, ours {ours}, TRL {theirs}: gold {gold!r}, answer {found!r}, …{text[-60:]!r}"
                )
    Console().print(table)
    if to:
        to.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
