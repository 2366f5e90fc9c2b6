"""Voting: accuracy, tokens and wall time of our stop rules beside those of public notebooks.

    python benchmarks/voting.py --traces FILE … [--json FILE] [--plot FILE]

A trace file has one problem a line: `answer` and `samples`, each with `text`. Each problem is replayed in
random orders of its samples. At most 16 samples run at a time, and each writes one token (3.2 characters)
a tick. When a policy stops, the running samples end, and the tokens that they wrote count. Wall is the
number of ticks from the first start to the stop. All figures are means over the problems and orders.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from aimo.inference import answers, voting
from aimo.inference.voting import State, Step, Stop

CHARACTERS = 3.2  # a token
CHECK = 256  # characters between two looks for repetition
Vote = int | str | None


@dataclass(frozen=True)
class Sample:
    """A recorded completion as a policy reads it: the tokens until it ends, and its answer."""

    tokens: float
    answer: Vote


@dataclass(frozen=True)
class Question:
    """A problem's recorded samples in one order, as the peers read them and as we read them."""

    gold: int | None
    peer: list[Sample]
    ours: list[Sample]


def read(text: str) -> int | None:
    """The integer that a text answers with."""
    return answers.to_integer(answers.extract(text))


def as_peers(text: str) -> Sample:
    """A completion read to its end: its answer, else the last number in its last 200 characters.

    The labels of the traces were made in the same way.
    """
    found = answers.extract(text)
    if found is None:
        found = (re.findall(r"-?\d+(?:\.\d+)?", text[-200:]) or [None])[-1]
    number = answers.to_integer(found)
    return Sample(len(text) / CHARACTERS, found if number is None else number)


def as_ours(text: str) -> Sample:
    """A completion that ends at its first complete final answer, or at degenerate repetition."""
    final = voting.final_answer(text, read)
    end, answer = final or (len(text), None)
    for place in range(CHECK, end, CHECK):
        if voting.is_repeating(text[max(0, place - voting.WINDOW) : place]):
            return Sample(place / CHARACTERS, None)
    return Sample(end / CHARACTERS, answer if final else read(text))


def load(path: Path) -> list[Question]:
    """All problems of a trace file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    texts = [[sample["text"] for sample in row["samples"]] for row in rows]
    golds = [answers.to_integer(str(row["answer"])) for row in rows]
    return [
        Question(gold, [as_peers(text) for text in group], [as_ours(text) for text in group])
        for gold, group in zip(golds, texts, strict=True)
    ]


def replay(samples: list[Sample], decide: Callable[[State], Step]) -> tuple[dict[int, Vote], float, float]:
    """Replay samples in the order in which they are started.

    Returns the answers by sample in the order in which they ended, the tokens written, and the wall time
    in ticks.
    """
    running: dict[int, float] = {}  # sample: the tick of its start
    ended: dict[int, Vote] = {}
    votes: Counter[Any] = Counter()  # peers vote for texts too
    now = tokens = longest = 0.0
    fresh = 0
    while True:
        step = decide(State(votes, len(ended), len(running), len(samples) - fresh, longest))
        if step.stop:
            return ended, tokens + sum(now - start for start in running.values()), now
        running |= {i: now for i in range(fresh, fresh + step.start)}
        fresh += step.start
        last = {i: max(now, start + min(samples[i].tokens, step.limit)) for i, start in running.items()}
        i = min(last, key=lambda i: (last[i], i))
        now = last[i]
        wrote = now - running.pop(i)
        tokens += wrote
        cut = wrote < samples[i].tokens - 1e-6
        ended[i] = None if cut else samples[i].answer
        if ended[i] is not None:
            votes[ended[i]] += 1
        longest = longest if cut else max(longest, wrote)


def agreeing(votes: int) -> Callable[[State], bool]:
    """A rule that stops as soon as one answer has that many votes."""
    return lambda state: max(state.votes.values(), default=0) >= votes


@dataclass(frozen=True)
class Peer:
    """A policy of public notebooks: the number of samples (None: all) and the rule that stops."""

    samples: int | None
    stop: Callable[[State], bool]

    def decide(self, state: State) -> Step:
        """Start as many samples as may run at a time, and stop by the rule or when none is left."""
        if self.stop(state) or not state.running + state.left:
            return Step(Stop.EXHAUSTED)
        return Step(start=min(state.left, 16 - state.running))


PEERS = {
    "all samples": Peer(None, lambda state: False),
    "4 agreeing": Peer(16, agreeing(4)),
    "5 of 15": Peer(15, agreeing(5)),
    "10 of 12 ended": Peer(12, lambda state: state.ended >= 10),
}


def first_of_most(ended: dict[int, Vote], everything: bool) -> Vote:
    """A peer's vote; of answers with equal votes, the first.

    The first to end, or with `everything`, where all samples are awaited, the first to be started.
    """
    order = sorted(ended) if everything else ended
    votes = Counter(ended[i] for i in order if ended[i] is not None)
    return votes.most_common(1)[0][0] if votes else None


def run(policy: str, question: Question, order: list[int]) -> tuple[bool, float, float]:
    """One policy on one order of a problem's samples: whether it is right, its tokens, its wall time."""
    if policy == "ours":
        ended, tokens, ticks = replay([question.ours[i] for i in order], voting.next_step)
        voted: Any = voting.leader(Counter(answer for answer in ended.values() if answer is not None))
    else:
        peer = PEERS[policy]
        ended, tokens, ticks = replay([question.peer[i] for i in order[: peer.samples]], peer.decide)
        voted = first_of_most(ended, everything=peer.samples is None)
    return voted == question.gold, tokens, ticks


def measure(
    questions: list[Question], draws: int, seed: int, samples: int | None = None
) -> list[dict[str, Any]]:
    """Each policy's means over the same `draws` random orders of each problem, and ours divided by them.

    `samples` is how many of a problem's samples each order draws; None: all.
    """
    rng = random.Random(seed)
    orders = []
    for question in questions:
        available = len(question.ours)
        count = min(available, samples or available)
        orders += [(question, rng.sample(range(available), count)) for _ in range(draws)]
    figures: list[dict[str, Any]] = []
    for policy in ["ours", *PEERS]:
        columns = zip(*(run(policy, *order) for order in orders), strict=True)
        right, tokens, ticks = (sum(column) / len(orders) for column in columns)
        figures.append({"policy": policy, "accuracy": right, "tokens": tokens, "wall": ticks})
    for row in figures:
        row |= {f"{key}_ratio": figures[0][key] / row[key] for key in ("tokens", "wall")}
    return figures


def plot(figures: list[dict[str, Any]], to: Path) -> None:
    """Accuracy against tokens, a panel for each file."""
    files = list(dict.fromkeys(figure["file"] for figure in figures))
    canvas = Figure(figsize=(6 * len(files), 4), layout="constrained")
    for panel, file in zip(canvas.subplots(1, len(files), squeeze=False)[0], files, strict=True):
        for figure in (f for f in figures if f["file"] == file):
            place = figure["tokens"], figure["accuracy"]
            panel.scatter(*place, s=60, color="tab:red" if figure["policy"] == "ours" else "tab:gray")
            panel.annotate(figure["policy"], place, xytext=(6, 4), textcoords="offset points")
        panel.set(title=file, xlabel="tokens a question", ylabel="accuracy")
        panel.margins(0.25)
    canvas.savefig(to, dpi=110)


def main(
    traces: Annotated[list[Path], typer.Option(help="Repeat for several.")],
    draws: Annotated[int, typer.Option(help="Random orders of each problem.")] = 300,
    seed: Annotated[int, typer.Option(help="Seed of the random orders.")] = 0,
    samples: Annotated[
        int | None, typer.Option(help="Draw only this many of each problem's samples.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
    figure: Annotated[Path | None, typer.Option("--plot", help="Draw accuracy against tokens here.")] = None,
) -> None:
    """Measure all policies on each file."""
    results = [
        {"file": path.stem} | row for path in traces for row in measure(load(path), draws, seed, samples)
    ]
    table = Table("file", "policy", "accuracy", "tokens", "ours / theirs", "wall", "ours / theirs")
    for row in results:
        tokens = f"{row['tokens']:,.0f}", f"{row['tokens_ratio']:.2f}"
        wall = f"{row['wall']:,.0f}", f"{row['wall_ratio']:.2f}"
        table.add_row(row["file"], row["policy"], f"{row['accuracy']:.3f}", *tokens, *wall)
    Console(width=110).print(table)
    if to:
        to.write_text(json.dumps({"policies": results}, indent=2) + "\n")
    if figure:
        plot(results, figure)


if __name__ == "__main__":
    typer.run(main)
