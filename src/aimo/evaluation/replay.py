"""Replay rules of voting, stopping and time on recorded samples, for accuracy, tokens and time without a GPU.

Each question is replayed in random orders of its samples, the same for every rule. At most 16 samples run at
a time. When a rule stops, the running samples end, and the tokens that they have written count. Wall time
runs from the first start to the stop. All figures are means over questions and orders.

`forecast_score` forecasts the score of a competition day from such replays.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from functools import reduce
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from aimo.evaluation import scores
from aimo.evaluation.scores import FOUND, SIGNIFICANCE, Interval
from aimo.evaluation.traces import RecordedQuestion, RecordedSample, Traces, Vote
from aimo.inference import voting
from aimo.inference.errors import AimoError
from aimo.inference.voting import State, Step, Stop
from aimo.report import plots

OURS = "ours"
# In this order: ours, no stop, AIMO 3's best public notebook, the same with our 16 samples, AIMO 2's second
# place, NVIDIA.
STOPS = (OURS, "all", "4 of 8", "4 of 16", "5 of 15", "10 ended of 12")
WEIGHTS = ("programs", "length", "logprob", "tail_logprob", "entropy", "tail_entropy", "ties")
SHOWN = 5  # flipped questions that are printed


@dataclass(frozen=True)
class Rule:
    """When to stop, how many samples to start, and what a vote weighs."""

    name: str
    next_step: Callable[[State], Step]
    samples: int | None = None  # at most per question; None: all
    weight: str = "equal"
    is_ours: bool = False  # whether samples end and ties break as in the solver


def parse_rule(name: str) -> Rule:
    """Return the rule for a name such as `ours`, `ours max_error=0.1`, `4 of 8` or `all:entropy`."""
    stop, _, weight = (part.strip() for part in name.partition(":"))
    is_ours, *changes = stop.split() or [""]
    found = re.fullmatch(r"all|(\d+)( ended)? of (\d+)", stop)
    if weight not in ("", "equal", *WEIGHTS) or not (found or is_ours == OURS):
        raise AimoError(
            f"--policy {name!r}: a rule is STOP or STOP:WEIGHT; STOP is ours, ours KEY=VALUE …, all, N of K, "
            f"or N ended of K; WEIGHT is equal, {', '.join(WEIGHTS)}"
        )
    if not found:
        types = {field.name: type(getattr(voting.POLICY, field.name)) for field in fields(voting.Policy)}
        try:
            pairs = dict(change.split("=") for change in changes)
            policy = replace(voting.POLICY, **{key: types[key](value) for key, value in pairs.items()})
        except (ValueError, KeyError):
            told = f"ours has the keys {', '.join(types)}, each with a number"
            raise AimoError(f"--policy {name!r}: {told}") from None
        # The solver always weighs votes by what programs printed.
        return Rule(name, lambda state: voting.next_step(state, policy), None, weight or "programs", True)
    needed, samples = (int(number) if number else None for number in (found[1], found[3]))

    def next_step(state: State) -> Step:
        """Fill the free slots with samples until enough have ended or agree, or none is left."""
        if state.time_left <= 0:
            return Step(Stop.DEADLINE)
        reached = state.ended if found[2] else max(state.votes.values(), default=0)
        if (needed and reached >= needed) or not state.running + state.left:
            return Step(Stop.EXHAUSTED)
        return Step(start=min(state.left, voting.POLICY.in_flight - state.running))

    return Rule(name, next_step, samples, weight or "equal")


def play(
    samples: Sequence[RecordedSample], rule: Rule, budget: float = math.inf
) -> tuple[Vote, float, float]:
    """Replay samples, given in starting order, for at most `budget` units of wall time. Return the rule's
    answer, the number of tokens written, and the wall time."""
    running: dict[int, float] = {}  # start time by sample
    ends: dict[int, float] = {}  # end time by sample, unless it is cut
    over: dict[int, Vote] = {}  # answer by sample, in order of ending
    votes: Counter[Any] = Counter()  # peers vote for texts too
    weights: dict[Any, float] = {}
    each: list[float] = []
    programs = rule.weight == "programs"
    max_weight = 2.0 if programs and any(sample.printed for sample in samples) else 1.0
    now = tokens = longest = 0.0
    fresh = 0
    while True:
        scale = 1.0 if rule.weight in ("equal", "programs") else voting.mean_one(each)
        scaled = {answer: weight * scale for answer, weight in weights.items()}
        counts = len(over), len(running), len(samples) - fresh
        step = rule.next_step(
            State(votes, *counts, longest, budget - now, weights=scaled, max_weight=max_weight * scale)
        )
        if step.stop:
            tokens += sum((now - start) * samples[i].pace for i, start in running.items())
            # The most weight wins, then the most votes. On a tie, ours takes the smallest answer, and a
            # peer the first to end or, if it waits for all samples, the first to start.
            if rule.is_ours:
                return voting.leader(weights, votes), tokens, now
            order = sorted(over) if rule.samples is None else over
            candidates = [over[i] for i in order if over[i] is not None]
            best = max(candidates, key=lambda answer: (weights[answer], votes[answer]), default=None)
            return best, tokens, now
        for i in range(fresh, fresh + step.start):
            running[i], ends[i] = now, now + samples[i].tokens / samples[i].pace
        fresh += step.start
        due = ends
        if step.limit < math.inf:
            due = {i: max(now, min(e, running[i] + step.limit / samples[i].pace)) for i, e in ends.items()}
        i = min(due, key=due.__getitem__)
        if due[i] > budget:
            now = budget
            continue
        now, sample = due[i], samples[i]
        del ends[i]
        wrote = (now - running.pop(i)) * sample.pace
        tokens += wrote
        cut = wrote < sample.tokens - 1e-6
        answer = over[i] = None if cut else sample.answer
        if answer is not None:
            votes[answer] += 1
            # In the solver, an answer that a program printed but the sample did not state weighs a half. Here
            # it weighs 2, because records do not distinguish the two.
            weight = (
                voting.by_tools(answer, sample.printed) if programs else voting.weigh(sample, rule.weight)
            )
            each.append(weight)
            weights[answer] = weights.get(answer, 0.0) + weight
        longest = longest if cut else max(longest, wrote)


def replay_order(
    question: RecordedQuestion, order: Sequence[int], rule: Rule, budget: float = math.inf
) -> tuple[bool, float, float]:
    """Replay a rule on one order of a question's samples; return whether it is right, tokens and time."""
    samples = question.ours if rule.is_ours else question.peer
    answer, tokens, wall = play([samples[i] for i in order[: rule.samples]], rule, budget)
    return answer is not None and question.kind.equal(question.gold, answer), tokens, wall


def measure(
    questions: Sequence[RecordedQuestion],
    rules: Sequence[Rule],
    draws: int = 300,
    seed: int = 0,
    samples: int | None = None,
    budget: float = math.inf,
) -> np.ndarray:
    """Return each rule's accuracy, tokens and wall time on n questions (rules, 3, n), as means over `draws`
    random orders of all samples, or of `samples` of them. Takes a second for 120,000 samples."""
    rng = random.Random(seed)
    figures = np.zeros((len(rules), 3, len(questions)))
    for n, question in enumerate(questions):
        available = range(len(question.ours))
        count = min(len(available), samples or len(available))
        orders = Counter(tuple(rng.sample(available, count)) for _ in range(draws))  # each is replayed once
        for order, times in orders.items():
            for r, rule in enumerate(rules):
                figures[r, :, n] += times * np.array(replay_order(question, order, rule, budget))
    return figures / draws


@dataclass(frozen=True)
class Figures:
    """A rule's figures on one file, compared with our default."""

    file: str
    unit: str  # of wall time
    rule: str
    accuracy: float
    tokens: float
    wall: float
    difference: Interval  # its accuracy minus ours
    tokens_ratio: Interval  # our tokens divided by its
    wall_ratio: Interval
    # Questions that only one of the two rules answers right in most orders, with the shares of orders that
    # ours and this rule answer right.
    flipped: dict[str, tuple[float, float]]
    p: float = 1.0  # of the difference in accuracy, by random signs
    corrected: float = 1.0  # for all rules of the file (Benjamini-Hochberg)


def compare_rules(
    traces: Traces,
    rules: Sequence[Rule] = (),
    draws: int = 300,
    seed: int = 0,
    samples: int | None = None,
    budget: float = math.inf,
) -> list[Figures]:
    """Measure our default and other rules on one file. Without `rules`, these are every stop rule, and every
    recorded weight with all samples and with our stop rule."""
    recorded = ["equal", "length"]
    for weight in WEIGHTS:
        name = {"programs": "printed", "ties": "entropy"}.get(weight, weight)
        each = (sample for question in traces.questions for sample in question.ours)
        if any(getattr(sample, name, None) not in (None, ()) for sample in each):
            recorded.append(weight)
    for rule in rules:
        if ":" in rule.name and rule.weight not in recorded:
            remedy = "record it with inference.confidence=true" if rule.weight != "programs" else "use tools"
            raise AimoError(f"--policy {rule.name!r}: {traces.name} has no {rule.weight} recorded; {remedy}")
    weights = [weight for weight in WEIGHTS if weight in recorded]
    names = [*STOPS, *(f"all:{weight}" for weight in weights)]
    names += [f"ours:{'equal' if weight == 'programs' else weight}" for weight in weights]
    compared = [parse_rule(OURS)]
    compared += [rule for rule in rules or map(parse_rule, names) if rule.name != OURS]
    measured = measure(traces.questions, compared, draws, seed, samples, budget)
    ours, found = measured[0], []
    chances = [scores.sign_flip(accuracy - ours[0], seed) for accuracy, _, _ in measured[1:]]
    corrected = [1.0, *scores.benjamini_hochberg(chances)]
    for rule, one, p, q in zip(compared, measured, [1.0, *chances], corrected, strict=True):
        accuracy, tokens, wall = (float(values.mean()) for values in one)
        difference = scores.mean_interval(one[0] - ours[0], seed)
        tokens_ratio, wall_ratio = (scores.ratio_interval(ours[i], one[i], seed) for i in (1, 2))
        flips = {
            traces.questions[i].id: (float(ours[0, i]), float(one[0, i]))
            for i in np.flatnonzero((one[0] > 0.5) != (ours[0] > 0.5))
        }
        means = rule.name, accuracy, tokens, wall, difference, tokens_ratio, wall_ratio
        found.append(Figures(traces.name, traces.unit, *means, flips, p, q))
    return found


def plot_rules(figures: Sequence[Figures], to: Path) -> None:
    """Plot accuracy against tokens, one panel per file."""
    files = list(dict.fromkeys(figure.file for figure in figures))
    canvas, grid = plots.panels(len(files), columns=3, width=7, height=5)
    for panel, file in zip(grid, files, strict=True):
        names: dict[tuple[float, float], list[str]] = {}  # rules at the same point share a label
        for figure in (f for f in figures if f.file == file):
            names.setdefault((round(figure.tokens), round(figure.accuracy, 3)), []).append(figure.rule)
        middle = (max(names)[0] + min(names)[0]) / 2
        for place, rules in names.items():
            is_ours, left = OURS in rules, place[0] > middle  # its label stays within the panel
            panel.scatter(*place, s=40, color="tab:red" if is_ours else "tab:gray")
            offset = (-6 if left else 6, 8 if is_ours else 0)
            align = {"ha": "right" if left else "left", "va": "center"}
            text = "\n".join(map(plots.label, rules))
            panel.annotate(text, place, offset, textcoords="offset points", fontsize=8, **align)
        panel.set(title=plots.label(file), xlabel="tokens a question", ylabel="accuracy")
        panel.margins(0.15)
    plots.save(canvas, to, dpi=110)


def show_rules(traces: Traces, figures: Sequence[Figures]) -> None:
    """Print the table, the rules that differ from ours by more than luck, and the questions that flipped."""

    def text(interval: Interval, form: str) -> str:  # + 0 turns -0.0 into 0.0
        value, low, high = (f"{round(x, 3) + 0:{form}}" for x in astuple(interval))
        return f"{value} ({low} to {high})"

    title = f"{traces.name}: {len(traces.questions)} questions, 95 % intervals over questions"
    table = Table("rule", "accuracy", "minus ours", "tokens", "ours / its", "wall", "ours / its", title=title)
    for row in figures:
        tokens = f"{row.tokens:,.0f}", text(row.tokens_ratio, ".2f")
        wall = f"{row.wall:,.{0 if row.wall >= 100 else 2}f}", text(row.wall_ratio, ".2f")
        table.add_row(row.rule, f"{row.accuracy:.3f}", text(row.difference, "+.3f"), *tokens, *wall)
    Console(width=120).print(table)
    print(f"wall in {traces.unit}")

    real = [one.rule for one in figures if one.corrected < SIGNIFICANCE]
    lost = [one.rule for one in figures if one.p < SIGNIFICANCE <= one.corrected]
    differ = f"{', '.join(real) or 'no rule'} {'differ' if len(real) > 1 else 'differs'} from ours"
    told = f"in accuracy by more than luck among {len(figures) - 1} (Benjamini-Hochberg)"
    print(f"{differ} {told}" + (f"; alone {', '.join(lost)} would" if lost else ""))
    if traces.stopped:
        print(f"{traces.stopped} samples were stopped early: without a vote, and no longer than they ran")
    for row in figures:
        for verb, gained in ("wins", True), ("loses", False):
            turned = {name: pair for name, pair in row.flipped.items() if (pair[1] > pair[0]) == gained}
            listed = [f"{name} ({pair[0]:.2f} → {pair[1]:.2f})" for name, pair in turned.items()]
            more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
            if listed:
                print(f"{row.rule} {verb} {', '.join(listed[:SHOWN])}{more}")


# ---- The score of a day
#
# A day asks each of `questions` questions `runs` times; a question's score is its share of right runs.
# docs/voting.md lists the assumptions.

LEAST_SHOWN = 0.001  # scores with a smaller chance are not printed
FIELD_DEVIATION = 1.7  # standard deviation of 21 runs of the AIMO 3 winners' baseline (mean 39.3 of 50)


@dataclass(frozen=True)
class Forecast:
    """The distribution of a score in steps of 1 / runs."""

    scores: np.ndarray  # 0, 1 / runs, 2 / runs …
    chances: np.ndarray  # of each score
    at_least: np.ndarray  # the chance of each score or a higher one
    mean: float
    deviation: float
    luck: float  # standard deviation of one run's score on the same questions


def chances_of(
    questions: Sequence[RecordedQuestion], rule: Rule, samples: int = 16, draws: int = 300, seed: int = 0
) -> list[float]:
    """Return the chance p_q (n,) that one run of a rule is right on each question: the share of right
    replays among `draws`, each of `samples` samples drawn with replacement from the recorded ones."""
    rng = random.Random(seed)
    found = []
    for question in questions:
        recorded = range(len(question.ours))
        right = [replay_order(question, rng.choices(recorded, k=samples), rule)[0] for _ in range(draws)]
        found.append(sum(right) / draws)
    return found


def forecast_score(rates: Sequence[float], runs: int, questions: int) -> Forecast:
    """Forecast a day of `questions` questions from the chances `rates` (m,) of the recorded ones. If m is
    another number, draw the questions from them. Exact: it convolves the questions' distributions."""
    rights = range(runs + 1)  # right runs of a question, binomial: given p_q, runs are independent
    each = np.array([[comb(runs, k) * p**k * (1 - p) ** (runs - k) for k in rights] for p in rates])
    chances = reduce(np.convolve, each if len(rates) == questions else [each.mean(axis=0)] * questions)
    points = np.arange(len(chances)) / runs
    mean = float(points @ chances)
    deviation = float(np.sqrt((points - mean) ** 2 @ chances))
    luck = float(np.sqrt(np.mean([rate * (1 - rate) for rate in rates]) * questions))
    return Forecast(points, chances, chances[::-1].cumsum()[::-1], mean, deviation, luck)


def runs_to_tell(deviation: float, gain: float = 1.0) -> int:
    """Return the runs that each of two settings needs: n = 2 ((z(0.975) + z(0.8)) deviation / gain)^2. With
    these, a two-sided test of two means at the 0.05 level finds a gain of `gain` points with probability
    0.8."""
    return max(1, int(np.ceil(2 * (FOUND * deviation / gain) ** 2)))


def show_forecast(found: Forecast) -> None:
    table = Table("score", "chance", "at least")
    for score, chance, more in zip(found.scores, found.chances, found.at_least, strict=True):
        if chance >= LEAST_SHOWN:
            table.add_row(f"{score:g}", f"{chance:.1%}", f"{more:.1%}")
    Console().print(table)
    print(f"mean {found.mean:.2f}, deviation {found.deviation:.2f}")
    for whose, deviation in ("this one's", found.luck), ("AIMO 3's baseline's", FIELD_DEVIATION):
        needed = f"a gain of one point needs {runs_to_tell(deviation)} runs of each setting"
        print(f"one run on the same questions, {whose} deviation {deviation:.2f}: {needed}")
