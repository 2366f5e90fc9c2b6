r"""Votes, their weights, and when to stop sampling: pure functions without I/O.

`next_step` decides after every event of a question whether to stop, to start more samples, or to cut overlong
ones; `ranked` is the one rule on ties. `AnswerWatch`, `is_repeating` and `is_counting` detect the end of a
single sample. Formulae and measurements: docs/voting.md.
"""

import itertools
import math
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from aimo.inference import answers
from aimo.inference.settings import PUBLIC, Settings, Tags

TIE = 1e-6  # the weight of an entropy relative to a vote
CONCLUSION = 300  # maximum characters of a thought's last paragraph, which may state the answer
AFTER_BOX = 1000  # characters after a box in which another may follow, such as the last step's
OVERLAP = 100  # characters searched again, as a tag or a box may have been split
WINDOW = 16_000  # characters that are searched for a loop
BLOCK, REPEATS = 1000, 3  # a loop: the last BLOCK characters occur REPEATS times in the window
PROMPT = 512  # tokens planned for a prompt if the length of the completion is limited
COUNTING = 0.08  # compressed share of a window with all numbers alike; right completions stay above 0.10


class Stop(StrEnum):
    """Why the sampling of a question ended."""

    DECIDED = "decided"  # no outcome of the remaining samples can change the vote
    SETTLED = "settled"  # the error bound of the leader is low enough
    FUTILE = "futile"  # the bound would stay too high even if all remaining samples voted for the leader
    EXHAUSTED = "exhausted"  # all samples have ended
    DEADLINE = "deadline"  # time ran out
    FAILED = "failed"  # the engine failed
    KNOWN = "known"  # the journal had the answer


@dataclass(frozen=True)
class Policy:
    """When to stop. The defaults suit every model and question."""

    in_flight: int = 16  # maximum samples of a question that run at the same time
    max_error: float = 0.05  # the vote is settled when the leader's error bound is at most this
    futile_error: float = 1.0  # the vote is futile when the remaining samples cannot lower the bound to this
    overlong: float = 3.0  # a sample this many times as long as the longest is cut, once half have ended


@dataclass(frozen=True)
class State:
    """The state of a question between two events."""

    votes: Counter[Any]
    ended: int = 0  # samples that ended, with or without an answer, cut ones included
    running: int = 0
    left: int = 0  # samples that may still be started
    longest: float = 0  # tokens of the longest sample that ended, cut ones excluded
    time_left: float = math.inf  # seconds until the deadline
    time_each: float = 0  # seconds that a new sample is expected to take
    weights: Mapping[Any, float] | None = None  # total weight of each answer's votes; None: 1 per vote
    max_weight: float = 1.0  # the largest weight of a vote


@dataclass(frozen=True)
class Step:
    """What to do next: stop, or start samples and cut those with more than `limit` tokens."""

    stop: Stop | None = None
    start: int = 0
    limit: float = math.inf


POLICY = Policy()
EXACT = Policy(max_error=0, futile_error=math.inf)  # stops only when nothing can change the vote any more


def count_streams(kv_tokens: int, context: int, settings: Settings) -> int:
    """Return how many samples run at the same time in a KV cache of `kv_tokens`."""
    # Most samples end long before their limit, so half of it is planned for each, and vLLM makes room for
    # more. Program output comes on top of `max_tokens`.
    longest = context if settings.tools else min(context, PROMPT + settings.max_tokens)
    return max(1, 2 * kv_tokens // longest)


def next_step(state: State, policy: Policy = POLICY) -> Step:
    """Return whether to stop, or how many samples to start and how many tokens each may have.

    Starts as many as would settle the vote if they voted for the leader as often as the ended samples.
    """
    if state.time_left <= 0:
        return Step(Stop.DEADLINE)
    left = state.left if state.time_each < state.time_left else 0
    remaining = state.running + left
    weights = state.votes if state.weights is None else state.weights
    heaviest, second, *_ = [*sorted(weights.values(), reverse=True), 0, 0]
    if heaviest > second + remaining * state.max_weight:  # the rest can neither change nor tie it
        return Step(Stop.DECIDED)
    first, rivals = evidence(state.votes, weights)
    if error_bound(first, rivals) <= policy.max_error:
        return Step(Stop.SETTLED)
    if not remaining:
        return Step(Stop.EXHAUSTED)
    if error_bound(first + remaining, rivals) > policy.futile_error:
        return Step(Stop.FUTILE)
    lacking = math.inf  # votes for the leader that would settle it
    if policy.max_error > 0:
        settled = (n for n in itertools.count() if error_bound(first + n, rivals) <= policy.max_error)
        lacking = next(settled)
    rate = (first + 1) / (state.ended + 3)  # a third before any has ended: some give no answer, some another
    wanted = lacking / rate - state.running
    start = max(0, math.ceil(min(wanted, left, policy.in_flight - state.running)))
    half_ended = state.longest and state.ended >= state.running + start
    return Step(start=start, limit=policy.overlong * state.longest if half_ended else math.inf)


def mean_one(weights: Sequence[float]) -> float:
    """Return the factor that gives the weights a mean of 1: confidences only compare with each other."""
    return len(weights) / sum(weights) if weights else 1.0


def evidence(votes: Counter[Any], weights: Mapping[Any, float]) -> tuple[int, list[int]]:
    """Return the whole votes for the leader by weight, and for each rival.

    The number or the weight of votes counts, whichever favours the leader less. Tie-breaking weights do not.
    """
    best = leader(weights, votes)
    if best is None:
        return 0, []
    slack = 1000 * TIE
    rivals = [math.ceil(max(votes[answer], weights[answer]) - slack) for answer in weights if answer != best]
    return math.floor(min(votes[best], weights[best]) + slack), rivals


def error_bound(first: int, rivals: Iterable[int]) -> float:
    """Return an upper bound on the probability that the leader is not the model's most likely answer."""
    # Sum over all rivals and one not seen yet: adaptive-consistency (Aggarwal et al. 2023, arXiv 2305.11860).
    return sum(rival_probability(first, second) for second in (*rivals, 0))


@lru_cache(maxsize=10_000)
def rival_probability(first: int, second: int) -> float:
    """Return P(rival more likely than leader | votes of both) under a uniform prior."""
    # P(p < 1/2) for p ~ Beta(first + 1, second + 1), in closed form: a binomial tail.
    n = first + second + 1
    return sum(math.comb(n, k) for k in range(first + 1, n + 1)) / 2**n


@dataclass(frozen=True)
class VoteRow:
    """One answer of a vote: the number of its votes, their total weight, and its share of all weight."""

    answer: Any
    votes: int
    weight: float
    share: float


def ranked(weights: Mapping[Any, float], votes: Mapping[Any, float] = MappingProxyType({})) -> list[Any]:
    """Return the answers, the winner first: by weight, then by votes, then the smallest answer."""
    return sorted(weights, key=lambda answer: (-weights[answer], -votes.get(answer, 0), answer))


def leader(weights: Mapping[Any, float], votes: Mapping[Any, float] = MappingProxyType({})) -> Any:
    """Return the winner, or None without votes."""
    return next(iter(ranked(weights, votes)), None)


def tally(pairs: Iterable[tuple[Any, float]]) -> list[VoteRow]:
    """Count (answer, weight) pairs and return one row for each answer, in the order of `ranked`."""
    weights: dict[Any, list[float]] = {}
    for answer, weight in pairs:
        if answer is not None:
            weights.setdefault(answer, []).append(weight)
    # Exact sums do not depend on the order of arrival.
    sums = {answer: math.fsum(group) for answer, group in weights.items()}
    votes = {answer: len(group) for answer, group in weights.items()}
    total = math.fsum(sums.values()) or 1.0
    return [VoteRow(a, votes[a], sums[a], sums[a] / total) for a in ranked(sums, votes)]


def count(votes: Iterable[Any]) -> Counter[Any]:
    """Return the number of votes for each answer; None is no vote."""
    return Counter(vote for vote in votes if vote is not None)


def maj_at(
    votes: Sequence[Any], rights: Collection[Any], k: int, rng: random.Random, draws: int = 20
) -> float:
    """Return the share of random draws of `k` samples, or all if fewer, that vote for a right answer."""
    if k >= len(votes):
        return float(leader(count(votes)) in rights)
    return sum(leader(count(rng.sample(votes, k))) in rights for _ in range(draws)) / draws


def by_tools(answer: object, results: Collection[Any]) -> float:
    """Weigh an answer: 2 when a program printed it, 0.5 when programs printed others, else 1."""
    return 2.0 if answer in results else 0.5 if results else 1.0


def by_prior(answer: object, problem: str) -> float:
    """Weigh an answer: 0.5 when it is 0, 1 or a number in the problem, else 1."""
    numbers = re.findall(r"\d+", re.sub(r"(?<=\d)(?:,|\{,\})(?=\d{3})", "", problem))
    return 0.5 if answer in {0, 1, *map(int, numbers)} else 1.0


def weigh(sample: Any, weight: str) -> float:
    """Weigh a sample by a value of `inference.weight`; 1 if it was not measured."""
    if weight == "length":  # short ones count more (shortest majority vote, arXiv 2502.12215)
        return 1 / math.log(sample.tokens + math.e)
    if weight == "ties":  # the entropy in nats breaks ties and changes nothing else
        entropy = sample.entropy if sample.tail_entropy is None else sample.tail_entropy
        return 1 - TIE * (1 - math.exp(-(entropy or 0.0)))
    value = None if weight == "equal" else getattr(sample, weight)
    if value is None:
        return 1.0
    # An entropy in nats, or the geometric mean probability (self-consistency, arXiv 2203.11171).
    return math.exp(-value if weight.endswith("entropy") else value)


class AnswerWatch:
    r"""Watches a growing message for its final answer. `find` reads only what is new.

    An answer is final after `</answer>` or the closing answer tag, or in a `\boxed{…}` that no other box
    follows within AFTER_BOX characters. Inside a thought, opened by the text or the prompt (`thinking`), none
    is final. Once the thought is closed, an answer in its last paragraph is final.
    """

    def __init__(
        self,
        read: Callable[[str], Any],  # returns the answer in a text, or None
        tags: Tags = answers.DEFAULT_TAGS,
        thinking: bool = False,
        before: str = "",  # the part of the message that no longer grows
    ):
        self.read, self.tags, self.thinking, self.before = read, tags, thinking, before
        closing = "</answer>" if tags.answer_start.startswith("\\") else tags.answer_end
        self.marks = re.compile(rf"\\f?box(?:ed)?\s*\{{|</answer>|{re.escape(closing)}")
        self.begin = -1  # the end of the closed thought; -1: none is closed
        self.sought = 0  # up to here no thought is closed
        self.settled = self.box = 0  # all marks up to `settled` are known; `box` is the last whole one's end
        self.unread: set[int] = set()  # positions up to which no answer can be read

    def find(self, turn: str) -> tuple[int, Any] | None:
        """Return how many characters lead to the final answer, and the answer; None until there is one.

        `turn` follows `before` and grows with each call.
        """
        length = len(self.before) + len(turn)

        def since(place: int) -> str:
            inside = place - len(self.before)
            return turn[inside:] if inside >= 0 else self.before[place:] + turn

        def answer_at(place: int) -> Any:
            if place in self.unread:
                return None
            answer = self.read(since(max(0, self.begin))[: place - max(0, self.begin)])
            self.unread |= {place} if answer is None else set()
            return answer

        if self.begin < 0:
            thoughts = [self.tags, *PUBLIC]  # a model may think in its base model's tags
            head = (self.before[:1000] + turn[:1000]).lstrip()
            opened = [own.think_end for own in thoughts if head.startswith(own.think_start)]
            opened += [self.tags.think_end] * self.thinking
            ends = opened or [own.think_end for own in thoughts]
            begin = max(0, self.sought - OVERLAP)
            new, self.sought = since(begin), length
            closed = [(begin + at, begin + at + len(end)) for end in ends if (at := new.find(end)) >= 0]
            if opened and not closed:
                return None
            if closed:
                close, self.begin = min(closed)
                self.settled, self.box, self.unread = self.begin, 0, set()
                paragraph = since(0)[:close].rstrip()[-CONCLUSION:].rsplit("\n\n", 1)[-1]
                box = paragraph.rfind(r"\boxed{")
                rest = paragraph[answers.closing_brace(paragraph, box + 7) :] if box >= 0 else ""
                # Words after the box may retract the answer.
                if not re.search(r"\w", rest) and (answer := self.read(paragraph)) is not None:
                    return self.begin, answer
        start, box, is_settled = self.settled, self.box, True
        new = since(start)
        for mark in [*self.marks.finditer(new), None]:
            here = start + mark.start() if mark else length
            if is_settled:  # the next search begins here
                self.settled, self.box = here if mark else max(start, length - OVERLAP), box
            if box and here >= box + AFTER_BOX and (answer := answer_at(box)) is not None:
                return box + AFTER_BOX, answer
            if mark and mark[0].endswith("{"):
                closes = answers.closing_brace(new, mark.end())
                box = start + closes if closes else box
                is_settled &= bool(closes) or len(new) >= mark.end() + answers.LONGEST
            elif mark and (answer := answer_at(end := start + mark.end())) is not None:
                return end, answer
        return None


def is_repeating(text: str) -> bool:
    """Return whether a text has degenerated into a loop: its last block occurs several times."""
    return len(text) > BLOCK and text[-WINDOW:].count(text[-BLOCK:]) >= REPEATS


def is_counting(text: str) -> bool:
    """Return whether a text keeps repeating the same words with different numbers."""
    if len(text) < WINDOW:
        return False
    alike = re.sub(r"\d+", "0", text[-WINDOW:]).encode(errors="replace")
    return len(zlib.compress(alike, 1)) < COUNTING * WINDOW
