"""Figures of kept completions: pass@1, pass@k, maj@k, tokens, and what was cut off, by subject and level.

Everything follows from the completions, so that they can be scored again without a model. Each figure has an
interval over questions (`intervals`). Out of scope: comparing two models (`compare`).
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aimo.errors import AimoError
from aimo.evaluation import intervals
from aimo.evaluation.benchmarks import Question
from aimo.evaluation.completions import Header, Trace
from aimo.evaluation.intervals import Interval
from aimo.inference import answers, judge, voting
from aimo.inference.expressions import canonical
from aimo.inference.settings import Tags

Votes = list[int | None]


@dataclass(frozen=True)
class Scores:
    """n questions with k completions each, and their verdicts."""

    header: Header
    traces: list[list[Trace]]
    """(n, k) the completions."""
    answers: list[list[str | None]]
    """(n, k) their answers, None where there is none."""
    right: NDArray[np.bool_]
    """(n, k) whether each is right."""
    unreadable: list[str]
    """Questions whose gold answer cannot be read; they count as wrong."""

    @property
    def questions(self) -> list[Question]:
        """(n,) the questions."""
        return self.header.questions

    @property
    def samples(self) -> int:
        """k, the completions of a question."""
        return self.right.shape[1]

    def first(self, k: int) -> "Scores":
        """The scores of the first k completions of each question."""
        return Scores(
            self.header,
            [group[:k] for group in self.traces],
            [group[:k] for group in self.answers],
            self.right[:, :k],
            self.unreadable,
        )

    @property
    def tokens(self) -> NDArray[np.float64]:
        """(n,) the mean tokens of each question's completions."""
        return np.array([np.mean([trace.tokens for trace in group]) for group in self.traces])

    def votes(self) -> NDArray[np.float64]:
        """(n,) whether the vote of each question's k completions is right."""
        return self.majority(self.samples)

    def majority(self, k: int) -> NDArray[np.float64]:
        """(n,) the probability that the vote of k of a question's completions is right."""
        rng = random.Random(self.header.seed)
        groups = zip(self.questions, self.answers, self.right, strict=True)
        ballots = [ballot(question.answer, found, right) for question, found, right in groups]
        return np.array([voting.maj_at(votes, gold, k, rng) for gold, votes in ballots])


def score(header: Header, traces: Sequence[Trace]) -> Scores:
    """The verdicts on the completions of a file, k of each question. AimoError when a question has none."""
    by_question: dict[str, list[Trace]] = {question.id: [] for question in header.questions}
    for trace in sorted(traces, key=lambda trace: trace.index):
        by_question[trace.id].append(trace)
    k = min(len(group) for group in by_question.values())
    if not k:
        raise AimoError(
            f"{header.benchmark}: a question has no completion yet; run `aimo evaluate` to its end"
        )
    groups = [group[:k] for group in by_question.values()]
    tags = Tags(**header.settings.get("tags", {}))
    found = [[answers.extract(trace.text, tags) for trace in group] for group in groups]
    golds = [question.answer for question in header.questions for _ in range(k)]
    verdicts = judge.are_equal([answer for group in found for answer in group], golds)
    rows = [verdicts[i : i + k] for i in range(0, len(verdicts), k)]
    unreadable = [question.id for question, row in zip(header.questions, rows, strict=True) if None in row]
    right = np.array([[verdict is True for verdict in row] for row in rows])
    return Scores(header, groups, found, right, unreadable)


def ballot(gold: str, found: Sequence[str | None], right: Sequence[bool]) -> tuple[int, Votes]:
    """The gold answer and a question's answers as numbers: equal answers are equal, None has no vote.

    Where the gold answer is an integer, others than integers have no vote, as in the solver.
    """
    number = answers.to_integer(gold)
    if number is not None:
        return number, [answers.to_integer(answer) for answer in found]
    known: dict[str, int] = {}
    pairs = zip(found, right, strict=True)
    names = [gold if ok else None if answer is None else canonical(answer) for answer, ok in pairs]
    votes = [None if name is None else known.setdefault(name, len(known)) for name in names]
    return known.get(gold, -1), votes


def pass_at(right: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """(n,) the chance that one of k completions is right, unbiased, from (n, m) verdicts (Chen 2021)."""
    m = right.shape[1]
    return np.array([1 - comb(m - c, k) / comb(m, k) for c in range(m + 1)])[right.sum(axis=1)]


def powers(k: int) -> list[int]:
    """1, 2, 4 … and k."""
    return [2**i for i in range(k.bit_length()) if 2**i < k] + [k]


def figures(scores: Scores) -> dict[str, Any]:
    """The figures of a benchmark; those with an interval as [value, low, high]."""
    k, right = scores.samples, scores.right
    flat = [trace for group in scores.traces for trace in group]
    found: dict[str, Any] = {
        "questions": len(right),
        "samples": k,
        "pass@1": spread(right.mean(axis=1)),
        **({f"pass@{k}": spread(pass_at(right, k)), f"maj@{k}": spread(scores.votes())} if k > 1 else {}),
        "mean_tokens": spread(scores.tokens, intervals.mean),
        "seconds": round(max(trace.end_s for trace in flat), 1),
        "cut_off": sum(not trace.finished for trace in flat) / len(flat),
        "no_answer": sum(answer is None for group in scores.answers for answer in group) / len(flat),
        "unreadable": scores.unreadable,
    }
    for name in ("subject", "level"):
        labels = np.array([getattr(question, name) for question in scores.questions])
        if len(set(labels)) > 1:
            found[f"by_{name}"] = by(right.mean(axis=1), labels)
    return found


def by(rates: NDArray[np.float64], labels: NDArray[np.str_]) -> dict[str, dict[str, Any]]:
    """Questions and pass@1 of each subject or level, from (n,) pass rates and labels."""
    groups = {str(label): rates[labels == label] for label in np.unique(labels)}
    return {label: {"questions": len(group), "pass@1": spread(group)} for label, group in groups.items()}


def spread(values: Any, interval: Callable[[Any], Interval] = intervals.share) -> list[float]:
    """The mean of (n,) values and its interval over questions, to four digits after the point."""
    found = interval(values)
    return [round(number, 4) for number in (found.value, found.low, found.high)]
