"""Score completions: pass@1, pass@k, maj@k and tokens with 95 % intervals over questions, and cut-offs.

All figures follow from the completions, so a file can be scored again without a model. Notebook 04,
`aimo evaluate` and the stages that sample a training set (`sample_rows`) share these verdicts.
"""

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from math import comb
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from numpy.typing import ArrayLike, NDArray

from aimo.evaluation.benchmarks import Question
from aimo.evaluation.completions import EvaluationHeader, Trace
from aimo.evaluation.traces import first_equal
from aimo.inference import answers, judge, voting
from aimo.inference.answers import AnswerKind, write_kind
from aimo.inference.competitions import Competition
from aimo.inference.engine import Engine
from aimo.inference.errors import AimoError
from aimo.inference.expressions import canonical
from aimo.inference.prompts import Completion, Sampler, sample_seed
from aimo.inference.settings import Prompt, Tags
from aimo.inference.storage import read_json, write_json
from aimo.run.progress import counting
from aimo.run.runs import Run, by_hand

LEVEL = 0.95
SIGNIFICANCE, POWER = 0.05, 0.8  # of a test
# A two-sided test finds a difference with this power if it is this many standard errors from 0.
FOUND = NormalDist().inv_cdf(1 - SIGNIFICANCE / 2) + NormalDist().inv_cdf(POWER)
RESAMPLES = 2000
FLIPS = 10_000
LEAST_S = 0.5  # seconds between two progress reports
CLOSING = 300  # characters at the end of a completion that may state its answer in passing


@dataclass(frozen=True)
class Scores:
    """n questions with k completions each, and their verdicts."""

    header: EvaluationHeader
    traces: list[list[Trace]]  # (n, k)
    answers: list[list[str | None]]  # (n, k); None: no answer
    right: NDArray[np.bool_]  # (n, k)
    unreadable: list[str]  # questions whose gold answer the judge cannot read; they count as wrong
    unread: NDArray[np.bool_]  # (n, k) wrong ones that state the gold answer, but none or another was read
    well_formed: float = 0.0  # the share of completions that keep to the format; `sample_rows` sets it

    @property
    def samples(self) -> int:
        return self.right.shape[1]

    @property
    def tokens(self) -> NDArray[np.float64]:
        """Return the mean tokens (n,) of each question's completions."""
        return np.array([np.mean([trace.tokens for trace in group]) for group in self.traces])

    @cached_property
    def ballots(self) -> list[tuple[list[Any], list[Any]]]:
        kind, rows = self.header.kind, zip(self.header.questions, self.answers, self.right, strict=True)
        return [ballot(question.answer, found, right, kind) for question, found, right in rows]

    def first(self, k: int) -> "Scores":
        """Return the scores of the first k completions of each question."""
        traces, found = [group[:k] for group in self.traces], [group[:k] for group in self.answers]
        right, unread = self.right[:, :k], self.unread[:, :k]
        return replace(self, traces=traces, answers=found, right=right, unread=unread)

    def majority(self, k: int, rng: random.Random | None = None) -> NDArray[np.float64]:
        """Return the probability (n,) that a vote among k of a question's completions is right."""
        rng = rng or random.Random(self.header.seed)
        return np.array([voting.maj_at(votes, rights, k, rng) for rights, votes in self.ballots])

    def votes(self) -> NDArray[np.float64]:
        """Return whether the vote of all k completions of each question is right (n,)."""
        return self.majority(self.samples)

    def vote_curve(self) -> dict[int, float]:
        """Return the accuracy of votes among 1, 2, 4 … k completions."""
        rng = random.Random(self.header.seed)
        return {k: float(self.majority(k, rng).mean()) for k in vote_sizes(self.samples)}

    def metrics(self) -> dict[str, float]:
        """Return the figures that notebook 04 shows for a model."""
        return {
            "format": self.well_formed,
            "pass@1": float(self.right.mean()),
            f"maj@{self.samples}": float(self.votes().mean()),
            "mean_tokens": float(np.mean([trace.tokens for group in self.traces for trace in group])),
        }


def score(header: EvaluationHeader, traces: Sequence[Trace]) -> Scores:
    """Judge a file's completions, equally many of each question. AimoError if a question has none."""
    by_question: dict[str, list[Trace]] = {question.id: [] for question in header.questions}
    for trace in sorted(traces, key=lambda trace: trace.index):
        by_question[trace.id].append(trace)
    k = min(len(group) for group in by_question.values())
    if not k:
        raise AimoError(f"{header.benchmark}: a question has no completion; run `aimo evaluate` to its end")
    groups = [group[:k] for group in by_question.values()]
    tags, kind = Tags(**header.settings.get("tags", {})), header.kind
    find = kind.find if kind else answers.extract
    found = [[find(trace.text, tags) for trace in group] for group in groups]
    golds = [[question.answer] * k for question in header.questions]
    verdicts = judge.are_equal([*chain(*found)], [*chain(*golds)], kind)
    rows = [verdicts[i : i + k] for i in range(0, len(verdicts), k)]
    unreadable = [question.id for question, row in zip(header.questions, rows, strict=True) if None in row]
    right = np.array([[verdict is True for verdict in row] for row in rows])
    held = [[*map(holds, *row)] for row in zip(groups, found, golds, strict=True)]
    return Scores(header, groups, found, right, unreadable, ~right & np.array(held))


def holds(trace: Trace, answer: str | None, gold: str) -> bool:
    """Return whether a completion states the gold answer: in the answer that was read, with no other number
    (`42 or so`), or, if none was read, in the last paragraph of a finished completion."""
    alone = re.compile(rf"(?<![\w.\\]){re.escape(gold.strip())}(?!\w|\.\d)")
    if answer is None:
        closing = trace.text.rstrip().rpartition("\n\n")[2][-CLOSING:]
        return bool(trace.finished and gold.strip() and alone.search(closing))
    rest, count = alone.subn("", answer)
    return count > 0 and not re.search(r"\d", rest)


def ballot(
    gold: str, found: Sequence[str | None], right: Sequence[bool], kind: AnswerKind | None = None
) -> tuple[list[Any], list[Any]]:
    """Return the right votes and each answer's vote on a question. Equal answers vote alike, None not at all.

    If the gold answer is an integer, only integers vote, as in the solver. With a `kind`, only answers of it
    vote, and the first of several equal ones stands for all.
    """
    if kind and not kind.is_slow:
        target, votes = kind.gold(gold), [None if one is None else kind.read(one) for one in found]
        known: list[Any] = []
        votes = [first_equal(vote, known, kind) for vote in votes]
        return [one for one in known if target is not None and kind.equal(target, one)], votes
    number = answers.to_integer(gold)
    if number is not None:
        return [number], [answers.to_integer(answer) for answer in found]
    seen: dict[str, int] = {}
    pairs = zip(found, right, strict=True)
    names = [gold if ok else None if answer is None else canonical(answer) for answer, ok in pairs]
    votes = [None if name is None else seen.setdefault(name, len(seen)) for name in names]
    return [seen[gold]] if gold in seen else [], votes


def pass_at(right: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """Return the chance (n,) that one of k is right, unbiased, from verdicts (n, m) (Chen 2021)."""
    m = right.shape[1]
    return np.array([1 - comb(m - c, k) / comb(m, k) for c in range(m + 1)])[right.sum(axis=1)]


def vote_sizes(k: int) -> list[int]:
    """Return 1, 2, 4 … and k."""
    return [2**i for i in range(k.bit_length()) if 2**i < k] + [k]


def figures_of(scores: Scores) -> dict[str, Any]:
    """Return a benchmark's figures for evaluation.json; those with an interval are [value, low, high]."""
    k, rates = scores.samples, scores.right.mean(axis=1)
    flat = [trace for group in scores.traces for trace in group]

    def spread(values: Any, interval: Callable[[Any], Interval] = share_interval) -> list[float]:
        return [round(number, 4) for number in asdict(interval(values)).values()]

    figures: dict[str, Any] = {"questions": len(rates), "samples": k, "pass@1": spread(rates)}
    if k > 1:
        figures |= {f"pass@{k}": spread(pass_at(scores.right, k)), f"maj@{k}": spread(scores.votes())}
    figures |= {
        "mean_tokens": spread(scores.tokens, mean_interval),
        "seconds": round(max(trace.end_s for trace in flat), 1),
        "cut_off": sum(not trace.finished for trace in flat) / len(flat),
        "no_answer": sum(answer is None for group in scores.answers for answer in group) / len(flat),
        "unread": float(scores.unread.mean()),
        "unreadable": scores.unreadable,
    }
    for name in ("subject", "level"):
        labels = np.array([getattr(question, name) for question in scores.header.questions])
        groups = {str(label): rates[labels == label] for label in np.unique(labels)}
        if len(groups) > 1:
            figures[f"by_{name}"] = {
                label: {"questions": len(group), "pass@1": spread(group)} for label, group in groups.items()
            }
    return figures


def disagreements(scores: Scores) -> list[dict[str, Any]]:
    """Return where math-verify and our judge disagree, once for each question, answer and verdict.
    Math-verify reads whole completions, as in lighteval and TRL: up to a tenth of a second each."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it logs each completion that it gives up
    configs = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    found: dict[tuple[str, str | None, bool], dict[str, Any]] = {}
    rows = zip(scores.header.questions, scores.traces, scores.answers, scores.right.tolist(), strict=True)
    with counting("audit", scores.right.size) as step:
        for question, traces, group, right in rows:
            gold = parse(f"${question.answer}$")
            for trace, answer, ours in zip(traces, group, right, strict=True):
                theirs = bool(gold and verify(gold, parse(trace.text, extraction_config=configs)))
                step()
                if theirs != ours:
                    row = {"question": question.id, "gold": question.answer, "answer": answer or "none"}
                    verdicts = {"ours": ours, "math-verify": theirs, "end": trace.text[-120:]}
                    found.setdefault((question.id, answer, ours), row | verdicts)
    return list(found.values())


# Rows of a run's sets: held-out problems, and those that a stage trains on


class SoFar:
    """pass@1 of the completions that have ended, with its interval, for a notebook that a person runs."""

    def __init__(self, tags: Tags, kind: AnswerKind | None = None):
        self.tags, self.kind, self.due, self.line = tags, kind, 0.0, ""
        self.ended: list[tuple[str, str, str]] = []  # problem, gold and completion, not judged yet
        self.right: dict[str, list[bool]] = {}  # by problem

    def add(self, problem: str, gold: str, completion: str) -> None:
        self.ended.append((problem, gold, completion))

    def __str__(self) -> str:
        """Judge what has ended since, at most every half second and for a twentieth of the time."""
        began = time.monotonic()
        if began < self.due or not self.ended or not by_hand():
            return self.line
        problems, golds, completions = zip(*self.ended, strict=True)
        verdicts = judge.are_correct(completions, golds, self.tags, self.kind)
        for problem, right in zip(problems, verdicts, strict=True):
            self.right.setdefault(problem, []).append(right is True)
        self.ended.clear()
        one = share_interval([sum(each) / len(each) for each in self.right.values()])
        self.line = f"pass@1 {one.value:.3f} ({one.low:.3f} to {one.high:.3f}) so far"
        self.due = time.monotonic() + max(LEAST_S, 20 * (time.monotonic() - began))
        return self.line


def sample_rows(
    engine: Sampler,
    rows: list[dict[str, Any]],
    prompt: Prompt,
    num_samples: int,
    seed: int,
    progress: Callable[[int, int, str], None] | None = None,
    rules: Competition | None = None,
) -> Scores:
    """Sample n rows (`prompt`, `answer`) `num_samples` times each, with the engine's current weights.

    `progress` gets the number of completions that have ended, the total, and the text of `SoFar`. The same
    seed gives the same samples in any order of the rows. A competition's `rules` decide what is right.
    """
    if without := sum(row["answer"] in (None, "") for row in rows):
        raise AimoError(f"{without} of {len(rows)} problems have no answer to judge by; leave them out")
    questions = [Question(str(i), r["prompt"][-1]["content"], str(r["answer"])) for i, r in enumerate(rows)]
    kind = rules.answer if rules else None
    total, done, due, so_far = len(rows) * num_samples, 0, 0.0, SoFar(prompt, kind)

    async def sample(row: int, ids: list[int], sample_seed: int) -> Completion:
        nonlocal done, due
        completion = await engine.sample(ids, sample_seed, engine.settings)
        done += 1
        so_far.add(str(row), questions[row].answer, completion.text)
        if progress and (done == total or time.monotonic() > due):
            progress(done, total, str(so_far))
            due = time.monotonic() + LEAST_S
        return completion

    async def sample_all() -> list[Completion]:
        streams = []
        for row, question in enumerate(questions):
            ids = engine.encode(question.problem)
            streams += [sample(row, ids, sample_seed(seed, question.problem, i)) for i in range(num_samples)]
        return await asyncio.gather(*streams)

    asked = {"tags": asdict(prompt.tags)}, 0, questions
    answer = write_kind(rules.answer) if rules else None
    header = EvaluationHeader("", "", "held-out problems", seed, *asked, answer=answer)
    traces = [
        Trace(str(n // num_samples), n % num_samples, 0, one.text, one.tokens, one.finished, 0.0, 0.0)
        for n, one in enumerate(engine.run(sample_all()))
    ]
    well_formed = sum(judge.is_well_formed(prompt, trace.text) for trace in traces) / total
    return replace(score(header, traces), well_formed=well_formed)


def within_pass_rate(
    model: Path, rows: list[dict[str, Any]], run: Run
) -> tuple[list[dict[str, Any]], list[float]]:
    """Return the rows whose pass rate with `model` is within `grpo.pass_rate`, and all rows' pass rates (n,).

    Problems that are always or never solved have no GRPO gradient. Without that key, return every row and no
    rates. The stage's folder keeps the rates for its next start. AimoError if no row is left.
    """
    grpo = run.profile.grpo
    if grpo is None or grpo.pass_rate is None:
        return rows, []
    low, high = grpo.pass_rate
    tried = run.folder / "pass_rates.json"
    if not tried.exists():
        settings, seed = run.profile.solver_settings(model), run.profile.seed
        with Engine(model, settings, seed=seed) as engine:
            asked = rows, run.profile.prompt, grpo.pass_rate_samples, seed
            found = sample_rows(engine, *asked, run.progress, run.profile.rules)
        write_json(tried, found.right.mean(axis=1).tolist())
    rates = read_json(tried, "remove it, and the problems are sampled again", list)
    kept = [row for row, rate in zip(rows, rates, strict=True) if low <= rate <= high]
    if not kept:
        raise AimoError(f"grpo.pass_rate: no problem is solved in a share from {low} to {high}; widen it")
    return kept, rates


# Intervals. The bootstrap resamples questions, each with all its samples, because the samples of one question
# depend on each other. The bounds are percentiles (Efron 1979), moved outwards for few questions
# (Hesterberg 2015).


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def ratio_interval(values: ArrayLike, baseline: ArrayLike, seed: int = 0) -> Interval:
    """Return the ratio of the means of two measurements (n,) of the same questions, resampled together. The
    2,000 resamples of n questions take 0.1 s for n = 1,000."""
    above, below = np.asarray(values, float), np.asarray(baseline, float)
    n = len(above)
    drawn = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    ratios = above[drawn].mean(axis=1) / below[drawn].mean(axis=1)
    # For many questions, each bound cuts off 0.025. For few, such percentiles are too narrow: cut off less,
    # the normal distribution's tail beyond Student's t times the root of n / (n - 1).
    z, freedom = NormalDist().inv_cdf((1 + LEVEL) / 2), max(1, n - 1)
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    tail = NormalDist().cdf(-t * (1 + 1 / freedom) ** 0.5)
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Interval(float(above.mean() / below.mean()), float(low), float(high))


def mean_interval(values: ArrayLike, seed: int = 0) -> Interval:
    """Return the mean of values (n,), one per question: a measurement, or the difference of two."""
    return ratio_interval(values, np.ones_like(values), seed)


def sign_flip(differences: ArrayLike, seed: int = 0) -> float:
    """Return the two-sided p-value of paired differences (n,): how often random signs give as large a mean
    (Fisher's randomisation test with FLIPS draws, which assumes no distribution)."""
    given = np.asarray(differences, float)
    given = given[given != 0]
    rng, as_large = np.random.default_rng(seed), 0
    for _ in range(FLIPS // 1000):  # a thousand draws at a time, to bound the memory
        sums = (rng.integers(2, size=(1000, len(given))) * 2 - 1) @ given
        as_large += int((np.abs(sums) >= abs(given.sum()) - 1e-9).sum())
    return (1 + as_large) / (1 + FLIPS)


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Return the p-values of m tests corrected for their number (Benjamini and Hochberg 1995)."""
    order = sorted(range(len(p)), key=lambda i: -p[i])
    corrected, least = [0.0] * len(p), 1.0
    for rank, i in zip(range(len(p), 0, -1), order, strict=True):
        corrected[i] = least = min(least, p[i] * len(p) / rank)
    return corrected


def share_interval(values: ArrayLike, seed: int = 0) -> Interval:
    """Return the mean of shares (n,), one per question. If all are 0 or all are 1, the bootstrap sees no
    spread: the far bound is then the exact one for n equal outcomes (Clopper and Pearson 1934)."""
    found, spared = mean_interval(values, seed), 1 - ((1 - LEVEL) / 2) ** (1 / len(np.atleast_1d(values)))
    if found.low == found.high == 0:
        return Interval(0.0, 0.0, spared)
    return Interval(1.0, 1 - spared, 1.0) if found.low == found.high == 1 else found
