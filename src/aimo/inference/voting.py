r"""Votes, weights, and when to stop: pure functions, no I/O.

One question's samples arrive in waves. `next_step` says after every event whether to stop, to start more or to cut ramblers;
`final_answer` and `is_repeating` end a single stream; `tally` explains the vote. docs/voting.md has formulae and measurements.
Out of scope: the clock and the streams (`aimo.inference.solver`), reading an answer (`aimo.inference.answers`).
"""

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

THOUGHTS = (
    ("<think>", "</think>"),
    ("<start_working_out>", "<end_working_out>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
TAGS = ("<SOLUTION>", "</SOLUTION>")
CONCLUSION = 300  # characters at most of the paragraph in which a thought states its answer
BLOCK, REPEATS, WINDOW = 200, 4, 16_000  # characters: the last 200 stand four times in the last 16,000


@dataclass(frozen=True)
class Policy:
    """When to stop; one set of defaults for every model and question."""

    in_flight: int = 16
    """Streams of a question at one time."""
    level: float = 0.05
    """Settled: the doubt in the leader is at most this."""
    hopeless: float = 1.0
    """Hopeless: the doubt would be above this even if all remaining samples voted for the leader."""
    ramble: float = 3.0
    """A rambler is this many times as long as any stream that has ended, when half of them have."""


@dataclass(frozen=True)
class State:
    """What is known of a question between two events."""

    votes: Counter[int]
    ended: int = 0
    """Streams that ended, with an answer or without one; a rambler that was cut is one of them."""
    running: int = 0
    left: int = 0
    """Samples that may still be started."""
    longest: float = 0
    """Tokens of the longest stream that ended, ramblers apart."""
    time_left: float = math.inf
    """Seconds to the deadline."""
    time_each: float = 0
    """Seconds a fresh sample is expected to take."""
    weights: Mapping[int, float] | None = None
    """Each answer's votes by weight; None when every vote weighs one."""
    heaviest: float = 1.0
    """The most that a vote can weigh."""


@dataclass(frozen=True)
class Step:
    """What to do next: stop for a reason, or start streams and cut those longer than `limit` tokens."""

    stop: str = ""
    """decided, settled, hopeless, deadline or exhausted; empty to go on."""
    start: int = 0
    limit: float = math.inf


POLICY = Policy()
EXACT = Policy(level=0, hopeless=math.inf)
"""Stops only when no outcome of the samples left can change the vote."""


def next_step(state: State, policy: Policy = POLICY) -> Step:
    """Whether to stop, and else how many samples to start and how long a stream may be.

    A wave is as large as would settle the vote at the rate at which samples have voted for the leader so far.
    """
    if state.time_left <= 0:
        return Step("deadline")
    left = state.left if state.time_each < state.time_left else 0
    remaining = state.running + left
    weights = state.votes if state.weights is None else state.weights
    if is_decided(weights, remaining * state.heaviest):
        return Step("decided")
    first, rivals = evidence(state.votes, weights)
    if doubt(first, rivals) <= policy.level:
        return Step("settled")
    if not remaining:
        return Step("exhausted")
    if doubt(first + remaining, rivals) > policy.hopeless:
        return Step("hopeless")
    rate = (first + 1) / (state.ended + 3)  # a third before any has ended: some give no answer, some another
    wave = needed(first, rivals, policy.level) / rate - state.running
    start = max(0, math.ceil(min(wave, left, policy.in_flight - state.running)))
    half_ended = state.longest and state.ended >= state.running + start
    return Step(start=start, limit=policy.ramble * state.longest if half_ended else math.inf)


def leader(votes: Mapping[int, float]) -> int | None:
    """The answer with the most votes; of equals the smallest, so that the order of arrival cannot decide."""
    return min(votes, key=lambda answer: (-votes[answer], answer)) if votes else None


def is_decided(votes: Mapping[int, float], remaining: float) -> bool:
    """Whether votes of a weight of `remaining` together can neither change nor tie the leader."""
    first, second, *_ = [*sorted(votes.values(), reverse=True), 0, 0]
    return first > second + remaining


def evidence(votes: Counter[int], weights: Mapping[int, float]) -> tuple[int, list[int]]:
    """Whole votes for the leader by weight, and for each rival: of number and weight what speaks less for the leader.

    A vote that weighs more is still one sample, and one that weighs less is no whole one.
    """
    best = leader(weights)
    if best is None:
        return 0, []
    rivals = [math.ceil(max(votes[answer], weights[answer])) for answer in weights if answer != best]
    return math.floor(min(votes[best], weights[best])), rivals


def doubt(first: int, rivals: Iterable[int]) -> float:
    """An upper bound on the chance that a leader with `first` votes is not the mode: the sum over all rivals, one yet unseen.

    Each term is adaptive-consistency's (Aggarwal et al. 2023, arXiv 2305.11860): P(rival > leader | votes of both), uniform prior.
    """
    return sum(beaten(first, second) for second in (*rivals, 0))


@lru_cache(maxsize=10_000)
def beaten(first: int, second: int) -> float:
    """P(p < 1/2) for p ~ Beta(first + 1, second + 1), in closed form: a binomial tail."""
    n = first + second + 1
    return sum(math.comb(n, k) for k in range(first + 1, n + 1)) / 2**n


def needed(first: int, rivals: Collection[int], level: float) -> float:
    """How many more votes for the leader would settle the vote; no number of them settles it at level 0."""
    if level <= 0:
        return math.inf
    return next(more for more in itertools.count() if doubt(first + more, rivals) <= level)


def final_answer(
    text: str,
    read: Callable[[str], int | None],
    tags: tuple[str, str] = TAGS,
    thoughts: Sequence[tuple[str, str]] = THOUGHTS,
    thinking: bool = False,
) -> tuple[int, int] | None:
    r"""Where the first complete final answer of a growing text ends, in characters, and the answer; None while there is none.

    `read` reads an answer from a text or gives None. A candidate ends with a complete `\boxed{…}`, `</answer>` or the closing answer tag.
    In a thought (opened in the text, or by the prompt: `thinking`) it does not count; what the thought concludes with as it closes does.
    """
    closed = [(place, place + len(end)) for _, end in thoughts if (place := text.find(end)) >= 0]
    begin = 0
    if closed:
        close, begin = min(closed)
        answer = read(conclusion(text[:close]))
        if answer is not None:
            return begin, answer
    elif thinking or text.lstrip().startswith(tuple(start for start, _ in thoughts)):
        return None
    closing = re.escape(
        tags[1] if tags[0].startswith("<") else "</answer>"
    )  # a box is found without its tags
    for candidate in re.finditer(rf"\\f?box(?:ed)?\s*\{{|</answer>|{closing}", text[begin:]):
        end = begin + candidate.end()
        if candidate[0].endswith("{"):
            end = closing_brace(text, end)
        answer = read(text[begin:end]) if end else None
        if answer is not None:
            return end, answer
    return None


def conclusion(thought: str) -> str:
    """The last paragraph of a thought; empty when words follow its box, for they may take it back."""
    paragraph = thought.rstrip()[-CONCLUSION:].rsplit("\n\n", 1)[-1]
    box = paragraph.rfind(r"\boxed{")
    return "" if box >= 0 and re.search(r"\w", paragraph[closing_brace(paragraph, box + 7) :]) else paragraph


def closing_brace(text: str, start: int) -> int:
    """The place after the brace that closes the one opened before `start`; 0 if it is still open."""
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return start + brace.end()
    return 0


def is_repeating(text: str) -> bool:
    """Whether a stream has begun to repeat itself: its last block of text stands there several times, letter by letter."""
    return len(text) > BLOCK and text[-WINDOW:].count(text[-BLOCK:]) >= REPEATS


def forced_ending(text: str, thought_end: str = "</think>", answer_start: str = r"\boxed{") -> str:
    """What to append to a stream out of budget, so that a few more tokens give its answer (budget forcing, s1, arXiv 2501.19393)."""
    closing = "" if thought_end in text else thought_end
    if answer_start.startswith("<"):  # a tag follows the thought at once, as in training
        return closing + answer_start
    return (f"\n{closing}\n" if closing else "") + f"\nThe final answer is {answer_start}"


@dataclass(frozen=True)
class Row:
    """One answer of a vote: its votes, their weight together, and its share of all weight."""

    answer: int
    votes: int
    weight: float
    share: float


def tally(answers: Iterable[tuple[int | None, float]]) -> list[Row]:
    """The vote, explained: a row for each answer from (answer, weight) pairs, the winner first.

    Order: weight, then votes, then the smallest answer. A sample without an answer has no vote.
    """
    votes: Counter[int] = Counter()
    weights: dict[int, list[float]] = {}
    for answer, weight in answers:
        if answer is not None:
            votes[answer] += 1
            weights.setdefault(answer, []).append(weight)
    sums = {
        answer: math.fsum(group) for answer, group in weights.items()
    }  # exact: the order of arrival cannot decide
    total = math.fsum(sums.values()) or 1.0
    rows = [Row(answer, votes[answer], weight, weight / total) for answer, weight in sums.items()]
    return sorted(rows, key=lambda row: (-row.weight, -row.votes, row.answer))


def by_logprob(mean_logprob: float) -> float:
    """Weight of a completion: the geometric mean of its tokens' probabilities (self-consistency, arXiv 2203.11171)."""
    return math.exp(mean_logprob)


def by_entropy(mean_entropy: float) -> float:
    """Weight of a completion from the mean entropy of its tokens in nats: 1 when it never hesitated."""
    return math.exp(-mean_entropy)


def by_tools(answer: int, results: Collection[int | None]) -> float:
    """Weight of a completion: 2 when a program that it ran gave its answer, a half when its programs gave others, else 1."""
    return 2.0 if answer in results else 0.5 if results else 1.0


def by_length(tokens: int) -> float:
    """Weight of a completion: short ones count a little more (after shortest majority vote, arXiv 2502.12215)."""
    return 1 / math.log(tokens + math.e)


def by_prior(answer: int, problem: str) -> float:
    """Weight of an answer: a half when it is trivial, that is 0, 1 or a number of the statement."""
    numbers = re.findall(r"\d+", re.sub(r"(?<=\d)(?:,|\{,\})(?=\d{3})", "", problem))
    return 0.5 if answer in {0, 1, *map(int, numbers)} else 1.0


def maj_at(answers: Sequence[int | None], gold: int, k: int, rng: random.Random, draws: int = 20) -> float:
    """The chance that the vote of `k` of these samples is right, over random draws (all samples when there are only k)."""
    if k >= len(answers):
        return float(leader(count(answers)) == gold)
    return sum(leader(count(rng.sample(answers, k))) == gold for _ in range(draws)) / draws


def count(answers: Sequence[int | None]) -> Counter[int]:
    """Votes of the samples that have an answer."""
    return Counter(answer for answer in answers if answer is not None)
