"""One question: N samples as separate streams, their answers voted, the rest stopped when the vote is decided.

Left out: weights, waves, tools, and a time bank across questions; a question has a deadline and keeps to it.
"""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

from aimo import answers, voting
from aimo.engine import Completion, Engine, sample_seed

FALLBACK = 0
ROOM = 16  # a completion with fewer tokens than this cannot hold an answer


@dataclass
class Solution:
    """A question's voted answer and how it came about."""

    answer: int = FALLBACK
    votes: Counter[int] = field(default_factory=Counter)
    completions: list[Completion] = field(default_factory=list)
    samples: int = 0
    """Streams started; those without a completion were stopped early."""
    seconds: float = 0.0
    note: str = ""
    """Why the answer is a fallback, or the vote incomplete; empty when neither."""

    def explain(self) -> str:
        """The vote in one line."""
        share = f"{self.votes[self.answer]} of {len(self.completions)} votes" if self.votes else "fallback"
        stopped = self.samples - len(self.completions)
        parts = [share, f"{stopped} stopped early" if stopped else "", f"{self.seconds:.1f} s", self.note]
        return f"{self.answer} ({', '.join(part for part in parts if part)})"


def solve(engine: Engine, problem: str, samples: int, low: int, high: int, seed: int = 0, budget_s: float | None = None) -> Solution:
    """Answer one problem with an integer within low…high, in at most `budget_s` seconds.

    The answer does not depend on which sample ends first: early stopping waits until no outcome can change the vote.
    """
    started = time.monotonic()
    patience = None if budget_s is None else budget_s + 30  # for an engine that hangs
    solution = engine.run(vote(engine, problem, samples, low, high, seed, budget_s), patience)
    solution.seconds = time.monotonic() - started
    return solution


async def vote(engine: Engine, problem: str, samples: int, low: int, high: int, seed: int, budget_s: float | None) -> Solution:
    """Sample, extract and count on the engine's loop."""
    if not problem.strip():
        return Solution(note="the problem is empty")
    prompt = engine.encode(problem)
    if len(prompt) + ROOM > engine.max_length:
        return Solution(note=f"the problem's {len(prompt)} tokens do not fit the model's {engine.max_length}")
    solution = Solution(samples=samples)
    streams = [asyncio.create_task(engine.sample(prompt, sample_seed(seed, problem, i), engine.settings)) for i in range(samples)]
    try:
        for finished in asyncio.as_completed(streams, timeout=budget_s):
            completion = await finished
            solution.completions.append(completion)
            answer = answers.to_integer(answers.extract(completion.text, engine.settings.answer_tags), low, high)
            if answer is not None:
                solution.votes[answer] += 1
            if voting.is_decided(solution.votes, samples - len(solution.completions)):
                break
    except TimeoutError:
        solution.note = "time ran out"
    finally:
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
    voted = voting.leader(solution.votes)
    if voted is None:
        reason = f"none of {len(solution.completions)} completions held an answer from {low} to {high}"
        solution.note = ", ".join(filter(None, [solution.note, reason]))
    else:
        solution.answer = voted
    return solution
