"""A problem's voted answer and how it came about: its samples, why each ended, and the vote."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from aimo.inference import voting
from aimo.inference.voting import Stop

TAIL = 256  # tokens at the end of a sample whose confidence is recorded apart
FALLBACK = 0  # the answer of a question without votes


class End(StrEnum):
    """Why a sample ended."""

    FINISHED = "finished"  # the model ended it
    ANSWERED = "answered"  # its final answer was complete
    REPETITION = "repetition"  # it had degenerated into repetition
    OVERLONG = "overlong"  # it was much longer than the samples that had ended
    TOKENS = "tokens"  # it had used up its tokens
    TIME = "time"  # the time of the question was over
    STOPPED = "stopped"  # sampling stopped before it ended; it has no vote
    FAILED = "failed"  # an error ended it; it has no vote


@dataclass
class Sample:
    """A sample that has ended."""

    index: int  # its number among the question's samples, from which its seed follows
    text: str
    tokens: int
    end: End
    answer: int | None = None
    weight: float = 1.0  # the weight of its vote
    begin_s: float = 0.0  # from the question on
    end_s: float = 0.0
    seed: int = 0  # the seed that it was sampled with
    turns: int = 0  # programs that were run
    errors: int = 0  # programs that failed
    # The answer in the last line that each program printed, None where there is none.
    printed: list[int | None] = field(default_factory=list)
    malformed: int = 0  # faults of format that were survived, such as a call to an unknown tool
    # Mean log-probability and mean entropy in nats, of all tokens and of the last TAIL; None: not measured.
    logprob: float | None = None
    tail_logprob: float | None = None
    entropy: float | None = None
    tail_entropy: float | None = None


@dataclass
class Solution:
    """A question's voted answer and how it came about."""

    answer: int = FALLBACK
    samples: list[Sample] = field(default_factory=list)  # all that were started
    seconds: float = 0.0
    stop: Stop | None = None  # why sampling ended; None when the question could not be asked
    note: str = ""  # why the answer is the fallback or the vote is incomplete; empty when neither

    @property
    def ended(self) -> list[Sample]:
        """The samples that have a vote if they have an answer."""
        return [sample for sample in self.samples if sample.end not in (End.STOPPED, End.FAILED)]

    @property
    def tally(self) -> list[voting.VoteRow]:
        """The vote, the winner first."""
        return voting.tally((sample.answer, sample.weight) for sample in self.ended)

    @property
    def votes(self) -> Counter[int]:
        """The number of samples by answer."""
        return voting.count([sample.answer for sample in self.ended])

    @property
    def is_lost(self) -> bool:
        """Whether the engine failed before there was any vote."""
        return self.stop is Stop.FAILED and not self.votes

    def fail(self, reason: str) -> None:
        """Record that the engine failed; the samples that ended are kept."""
        self.stop, self.note = Stop.FAILED, reason

    def conclude(self, low: int, high: int) -> None:
        """Take the answer from the votes, or note why there is none within low…high."""
        rows = self.tally
        if rows:
            self.answer = rows[0].answer
        elif self.ended or not self.note:
            reason = f"none of {len(self.ended)} completions held an answer from {low} to {high}"
            self.note = ", ".join(filter(None, [self.note, reason]))

    def explain(self) -> str:
        """Describe the vote in one line."""
        ended, rows = self.ended, self.tally
        vote = f"{rows[0].votes} of {len(ended)} votes, {rows[0].share:.0%} of their weight" if rows else ""
        stopped = len(self.samples) - len(ended)
        tokens = sum(sample.tokens for sample in self.samples)
        parts = [
            vote or "fallback",
            self.stop,
            f"{stopped} stopped early" if stopped else "",
            f"{tokens:,} tokens",
            f"{self.seconds:.1f} s",
            self.note,
        ]
        return f"{self.answer} ({', '.join(part for part in parts if part)})"
