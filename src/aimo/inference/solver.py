"""One question: sampled in waves until the vote is settled or the time is over.

A share of the samples may run Python in the sandbox. Out of scope: dividing the time among questions
(`aimo.inference.timebank`), what happens within a sample (`aimo.inference.stream`).
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from typing import Any

from aimo.inference import voting
from aimo.inference.errors import one_line
from aimo.inference.programs import has_sandbox
from aimo.inference.sampling import Completion, Sampler
from aimo.inference.solution import End, Sample, Solution
from aimo.inference.stream import Problem, Stream
from aimo.inference.voting import Stop

HEALTH_CHECK_S = 2.0  # between two checks of the engine: streams of a dead one may wait for ever
HANG_S = 60.0  # without a token from any stream: the engine hangs
IN_A_ROW = 4  # samples that fail one after the other, until none runs: the engine failed, not the samples
FORCED_ANSWER_S = 5.0  # of a budget, or a tenth of it, reserved for forced answers
OVERTIME_S = 30.0  # after the budget, an event loop that has not returned is abandoned


def solve(
    sampler: Sampler,
    problem: str,
    num_samples: int,
    low: int,
    high: int,
    seed: int = 0,
    budget_s: float | None = None,
    policy: voting.Policy = voting.POLICY,
    solution: Solution | None = None,
    keep: Callable[[Sample], None] = lambda sample: None,
    rules: str = "",
    modulus: int | None = None,
) -> Solution:
    """Answer a problem with an integer within low…high, from at most `num_samples` samples in `budget_s`.

    `rules` is the competition's sentence on its answers, for the prompt; `modulus`, what a result is reduced
    by. Continues and extends a `solution` that an earlier engine left; `keep` is called with each sample as
    it ends or is stopped. Which sample ends first can change when a vote counts as settled; with
    `voting.EXACT` sampling stops only when no outcome of the remaining samples can change the vote, and the
    answer does not depend on timing. Raises TimeoutError when the engine does not return within OVERTIME_S
    after the budget.
    """
    solution = solution or Solution()
    question = Question(Problem(sampler, problem, seed, low, high, rules, modulus), solution, keep)
    budget = math.inf if budget_s is None else budget_s
    timeout = None if budget_s is None else budget_s + OVERTIME_S
    before = solution.seconds
    try:
        sampler.run(question.ask(num_samples, budget, policy), timeout)
    finally:
        solution.seconds = before + time.monotonic() - question.begun
        solution.conclude(low, high)
    return solution


class Question:
    """One question while it is asked, on the sampler's event loop."""

    def __init__(self, problem: Problem, solution: Solution, keep: Callable[[Sample], None]):
        self.problem, self.sampler = problem, problem.sampler
        self.solution, self.keep = solution, keep
        tools = problem.sampler.settings.tools
        self.tools = tools if tools and has_sandbox() else 0.0
        self.running: dict[asyncio.Task[Sample], Stream] = {}
        self.lost: list[Sample] = []
        """Samples that an error ended. Another engine asks them again; this one's are recorded at the end."""
        self.fault, self.in_a_row = "", 0
        """The last error of a sample, and how many have failed since one ended well."""
        self.begun = time.monotonic()
        self.earlier = solution.seconds

    async def ask(self, num_samples: int, budget_s: float, policy: voting.Policy) -> None:
        """Sample until the vote needs no more or the time is over, and record it in the solution."""
        solution = self.solution
        solution.stop = None
        try:
            solution.note = self.problem.fault()
        except BaseException as e:  # a tokenizer or a template does not take this problem, or panics
            solution.note = one_line(e)
        if solution.note:
            return
        policy = replace(policy, in_flight=min(policy.in_flight, self.sampler.streams))
        reserve = min(0.1 * budget_s, FORCED_ANSWER_S)
        deadline = self.begun + budget_s - reserve
        known = {sample.index for sample in solution.samples}
        todo = [index for index in range(num_samples) if index not in known]
        try:
            while (step := voting.next_step(self.state(len(todo), deadline), policy)).stop is None:
                for index in todo[: step.start]:
                    self.start(index)
                del todo[: step.start]
                for stream in self.running.values():
                    stream.limit = step.limit
                await self.advance(min(deadline - time.monotonic(), HEALTH_CHECK_S))
                if failure := self.failure():
                    return solution.fail(failure)
            solution.stop = step.stop
            if step.stop is Stop.DEADLINE:
                if not solution.ended and not any(stream.text for stream in self.running.values()):
                    return solution.fail(self.fault or "the engine wrote nothing")
                solution.note = "time ran out"
                await self.force_answers(reserve)
            for sample in [*self.lost, *(s.cut(End.STOPPED, self.now()) for s in self.running.values())]:
                self.record(sample)
            if self.lost:
                note = f"{len(self.lost)} samples failed: {self.fault}"
                solution.note = ", ".join(filter(None, [solution.note, note]))
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as e:  # the loop's thread would end with SystemExit
            solution.fail(one_line(e))
        finally:
            await cancel(self.running)

    def state(self, left: int, deadline: float) -> voting.State:
        """Return what is known now, with `left` samples not started yet."""
        ended = self.solution.ended
        by_confidence = [voting.weigh(s, self.sampler.settings.weight) for s in ended if s.answer is not None]
        scale = voting.mean_one(by_confidence)
        lengths = [sample.tokens for sample in ended if sample.end not in (End.REPETITION, End.OVERLONG)]
        return voting.State(
            self.solution.votes,
            ended=len(ended),
            running=len(self.running),
            left=left,
            longest=max(lengths, default=0),
            time_left=deadline - time.monotonic(),
            time_each=sum(sample.end_s - sample.begin_s for sample in ended) / (len(ended) or 1),
            weights={row.answer: row.weight * scale for row in self.solution.tally},
            max_weight=(2.0 if self.tools else 1.0) * scale,
        )

    def start(self, index: int) -> None:
        """Start a sample, with tools if it belongs to their share."""
        # Spread evenly: every second sample has tools at a share of a half.
        with_tools = int((index + 1) * self.tools) > int(index * self.tools)
        stream = Stream(self.problem, index, self.now(), with_tools)
        self.running[asyncio.create_task(self.sample(stream, stream.answer()))] = stream

    async def sample(self, stream: Stream, work: Awaitable[Completion]) -> Sample:
        """Return the sample that a stream's work ends in: without a vote where that raises."""
        try:
            return stream.sample(await work, self.now())
        except GeneratorExit:
            raise
        except BaseException as e:  # the loop's thread would end with SystemExit
            task = asyncio.current_task()
            if task and task.cancelling():  # by us
                raise
            self.fault = one_line(e)
            return stream.cut(End.FAILED, self.now())

    async def advance(self, timeout: float) -> None:
        """Wait until a sample ends, at most `timeout` seconds, and record those that have ended."""
        done, _ = await asyncio.wait(
            self.running, timeout=max(0.0, timeout), return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            del self.running[task]
        for sample in sorted((task.result() for task in done), key=lambda sample: sample.end_s):
            self.take(sample)

    def take(self, sample: Sample) -> None:
        """Record a sample that has ended, or set one aside that has failed."""
        if sample.end is End.FAILED:
            self.in_a_row += 1
            self.lost.append(sample)
        else:
            self.in_a_row = 0
            self.record(sample)

    def failure(self) -> str:
        """Return what is wrong with the engine; empty when it works."""
        if self.sampler.has_died:
            return "the engine died"
        if not self.running and self.in_a_row >= min(IN_A_ROW, len(self.lost) + len(self.solution.ended)):
            return self.fault
        if self.running and all(self.is_silent(stream) for stream in self.running.values()):
            return f"the engine wrote nothing for {HANG_S:.0f} s"
        return ""

    def is_silent(self, stream: Stream) -> bool:
        """Whether a stream has written nothing for so long that the engine may hang."""
        limit = max(HANG_S, self.sampler.queue_s) if stream.waits else HANG_S
        return not stream.runs_program and time.monotonic() - stream.heard > limit

    async def force_answers(self, seconds: float) -> None:
        """Stop all samples and record the answer that each gives at once."""
        streams = [stream for stream in self.running.values() if stream.text]
        await cancel(self.running)
        self.running.clear()
        for stream in streams:
            stream.end = End.TIME
        forced = [asyncio.create_task(self.sample(stream, stream.force_answer())) for stream in streams]
        if forced:
            done, late = await asyncio.wait(forced, timeout=seconds)
            await cancel(late)
            for task in done:
                self.take(task.result())

    def record(self, sample: Sample) -> None:
        """Add a sample to the solution, and keep it."""
        self.solution.samples.append(sample)
        self.keep(sample)

    def now(self) -> float:
        """Return the seconds since the question was first asked."""
        return self.earlier + time.monotonic() - self.begun


async def cancel(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel samples and wait until the engine has released them; a dead engine never does."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=FORCED_ANSWER_S)
