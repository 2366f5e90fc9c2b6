"""Voting and stopping: accuracy, tokens and wall of our policy beside the rules of public notebooks, on recorded completions.

    python benchmarks/voting.py --traces FILE … [--json FILE] [--plot FILE]

A trace file has one problem a line: `answer` and `samples`, each with `text`. Each problem is replayed in random orders. Samples
stream side by side, a token (3.2 characters) a tick, at most 16 at a time; when a policy stops, running ones are cut and what they
wrote counts. Wall is the ticks from the first start to the stop, waves included; all figures are means over the problems.
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
from rich.console import Console
from rich.table import Table

from aimo.inference import answers, voting
from aimo.inference.voting import State, Step

CHARACTERS = 3.2  # a token
CHECK = 256  # characters between two looks for repetition
Vote = int | str | None


@dataclass(frozen=True)
class Sample:
    """A recorded completion, as it ends under a policy: after `tokens`, with this answer."""

    tokens: float
    answer: Vote


@dataclass(frozen=True)
class Question:
    """A problem's recorded samples, as peers read them and as we do, in the same order."""

    gold: int | None
    peer: list[Sample]
    ours: list[Sample]


def read(text: str) -> int | None:
    """The integer that a text answers with."""
    return answers.to_integer(answers.extract(text))


def as_peers(text: str) -> Sample:
    """A completion read whole: its answer, or the last number in its last 200 characters, as the traces' labels take it."""
    found = answers.extract(text)
    if found is None:
        found = (re.findall(r"-?\d+(?:\.\d+)?", text[-200:]) or [None])[-1]
    number = answers.to_integer(found)
    return Sample(len(text) / CHARACTERS, found if number is None else number)


def as_ours(text: str) -> Sample:
    """A completion that ends at its first complete final answer, or where it is seen to repeat itself."""
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
    return [
        Question(
            answers.to_integer(str(row["answer"])), [as_peers(t) for t in group], [as_ours(t) for t in group]
        )
        for row, group in zip(rows, texts, strict=True)
    ]


def replay(samples: list[Sample], decide: Callable[[State], Step]) -> tuple[dict[int, Vote], float, float]:
    """Samples in the order in which they are started; returns the answers in the order of their arrival, tokens and wall."""
    running: dict[int, float] = {}  # sample: when it started
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
    """Stop when that many agree."""
    return lambda state: max(state.votes.values(), default=0) >= votes


@dataclass(frozen=True)
class Peer:
    """A rule of public notebooks: how many samples, and when to stop."""

    samples: int | None
    stop: Callable[[State], bool]

    def decide(self, state: State) -> Step:
        """Start all at once, as far as 16 can run."""
        if self.stop(state) or not state.running + state.left:
            return Step("peer")
        return Step(start=min(state.left, 16 - state.running))


PEERS = {
    "all samples": Peer(None, lambda state: False),
    "4 agreeing": Peer(16, agreeing(4)),
    "5 of 15": Peer(15, agreeing(5)),
    "10 of 12 ended": Peer(12, lambda state: state.ended >= 10),
}


def first_of_most(ended: dict[int, Vote], everything: bool) -> Vote:
    """A peer's vote: of equals, the one that came first; where all samples are awaited they come in the order asked for."""
    order = sorted(ended) if everything else ended
    votes = Counter(ended[i] for i in order if ended[i] is not None)
    return votes.most_common(1)[0][0] if votes else None


def run(policy: str, question: Question, order: list[int]) -> tuple[bool, float, float]:
    """One policy on one problem in one order: right or wrong, tokens, wall."""
    if policy == "ours":
        ended, tokens, wall = replay([question.ours[i] for i in order], voting.next_step)
        voted: Any = voting.leader(Counter(answer for answer in ended.values() if answer is not None))
    else:
        peer = PEERS[policy]
        ended, tokens, wall = replay([question.peer[i] for i in order[: peer.samples]], peer.decide)
        voted = first_of_most(ended, everything=peer.samples is None)
    return voted == question.gold, tokens, wall


def measure(
    questions: list[Question], draws: int, seed: int, samples: int | None = None
) -> list[dict[str, str | float]]:
    """Every policy's means over the same random orders; `samples` draws that many of each problem's."""
    rng = random.Random(seed)
    orders = [
        (q, rng.sample(range(len(q.ours)), min(len(q.ours), samples or len(q.ours))))
        for q in questions
        for _ in range(draws)
    ]
    figures: list[dict[str, str | float]] = []
    for policy in ["ours", *PEERS]:
        right, tokens, wall = (
            sum(column) / len(orders)
            for column in zip(*(run(policy, *order) for order in orders), strict=True)
        )
        figures.append({"policy": policy, "accuracy": right, "tokens": tokens, "wall": wall})
    return figures


def plot(figures: list[dict[str, str | float]], to: Path) -> None:
    """Accuracy against tokens, a panel for each file."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    files = list(dict.fromkeys(figure["file"] for figure in figures))
    canvas, panels = pyplot.subplots(
        1, len(files), figsize=(6 * len(files), 4), squeeze=False, layout="constrained"
    )
    for panel, file in zip(panels[0], files, strict=True):
        for figure in (f for f in figures if f["file"] == file):
            panel.scatter(
                figure["tokens"],
                figure["accuracy"],
                s=60,
                color="tab:red" if figure["policy"] == "ours" else "tab:gray",
            )
            panel.annotate(
                figure["policy"],
                (figure["tokens"], figure["accuracy"]),
                xytext=(6, 4),
                textcoords="offset points",
            )
        panel.set(title=file, xlabel="tokens a question", ylabel="accuracy")
        panel.margins(0.25)
    canvas.savefig(to, dpi=110)


def main(
    traces: Annotated[list[Path], typer.Option(help="Repeat for several.")],
    draws: Annotated[int, typer.Option(help="Random orders of each problem.")] = 300,
    seed: Annotated[int, typer.Option(help="Of the random orders.")] = 0,
    samples: Annotated[
        int | None, typer.Option(help="Draw only this many of each problem's samples.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
    figure: Annotated[Path | None, typer.Option("--plot", help="Draw accuracy against tokens here.")] = None,
) -> None:
    """Measure all policies on each file."""
    results: list[dict[str, str | float]] = []
    table = Table("file", "policy", "accuracy", "tokens", "ours / theirs", "wall", "ours / theirs")
    for path in traces:
        figures = measure(load(path), draws, seed, samples)
        ours = figures[0]
        for row in figures:
            costs = [
                part
                for key in ("tokens", "wall")
                for part in (f"{row[key]:,.0f}", f"{float(ours[key]) / float(row[key]):.2f}")
            ]
            table.add_row(path.stem, str(row["policy"]), f"{row['accuracy']:.3f}", *costs)
            results.append({"file": path.stem, **row})
    Console(width=110).print(table)
    if to:
        to.write_text(json.dumps({"policies": results}, indent=2) + "\n")
    if figure:
        plot(results, figure)


if __name__ == "__main__":
    typer.run(main)
