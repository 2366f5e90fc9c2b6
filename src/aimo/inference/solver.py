"""Solve one problem: sample in waves until the vote is settled or its time (`next_budget`) runs out."""

import asyncio
import math
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from aimo.inference import voting
from aimo.inference.answers import AnswerKind, Value
from aimo.inference.errors import EngineError, one_line
from aimo.inference.prompts import Sampler, cancel
from aimo.inference.sample import AskedProblem, End, RunningSample, Sample
from aimo.inference.sandbox import has_sandbox
from aimo.inference.voting import Stop

HEALTH_CHECK_S = 2.0  # between checks of the engine: samples of a dead one may wait for ever
HANG_S = 60.0  # without a token from any sample, after which the engine counts as hung
IN_A_ROW = 4  # failures in a row, with no sample running, mean that the engine failed
FORCED_ANSWER_S = 5.0  # of a budget, or a tenth of it if less, reserved for forced answers
OVERTIME_S = 30.0  # after the budget, until an event loop that has not returned is abandoned

MAX_SHARES = 2.5  # equal shares that one question may take; more gains nothing (docs/solver.md)
MIN_SHARE = 0.6  # of the first equal share, reserved for each later question
MIN_QUESTIONS_LEFT = 2  # to plan for: one more than expected still gets half of the time left
MARGIN_S = 120  # of a Kaggle session, reserved for the gateway to finish


@dataclass
class Solution:
    """A question's voted answer and how it came about."""

    answer: Value = 0  # the kind's fallback if there are no votes
    samples: list[Sample] = field(default_factory=list)  # all that were started
    seconds: float = 0.0
    stop: Stop | None = None  # why sampling ended; None when the question could not be asked
    note: str = ""  # why the answer is the fallback or the vote is incomplete, or empty
    how: str = ""  # how a proof was chosen

    @property
    def ended(self) -> list[Sample]:
        """The samples whose answers are votes."""
        return [sample for sample in self.samples if sample.end not in (End.STOPPED, End.FAILED)]

    @property
    def tally(self) -> list[voting.VoteRow]:
        """The vote, the winner first."""
        return voting.tally((sample.answer, sample.weight) for sample in self.ended)

    @property
    def votes(self) -> Counter[Any]:
        """The number of samples by answer."""
        return voting.count(sample.answer for sample in self.ended)

    @property
    def is_lost(self) -> bool:
        """Whether the engine failed before there was any vote."""
        return self.stop is Stop.FAILED and not self.votes

    def fail(self, reason: str) -> None:
        self.stop, self.note = Stop.FAILED, reason

    def explain(self) -> str:
        ended, rows = self.ended, self.tally
        vote = self.how
        if rows and not ended[0].role:
            vote = f"{rows[0].votes} of {len(ended)} votes, {rows[0].share:.0%} of their weight"
        stopped = len(self.samples) - len(ended)
        parts = [
            vote if rows or vote else "fallback",
            self.stop,
            f"{stopped} stopped early" if stopped else "",
            f"{sum(sample.tokens for sample in self.samples):,} tokens",
            f"{self.seconds:.1f} s",
            self.note,
        ]
        shown = textwrap.shorten(str(self.answer), 60, placeholder=" …")
        return f"{shown} ({', '.join(part for part in parts if part)})"


def solve_problem(
    sampler: Sampler,
    problem: str,
    num_samples: int,
    kind: AnswerKind,
    seed: int = 0,
    budget_s: float | None = None,
    policy: voting.Policy = voting.POLICY,
    solution: Solution | None = None,
    keep: Callable[[Sample], None] = lambda sample: None,
    rules: str = "",
) -> Solution:
    """Return a problem's solution, voted by at most `num_samples` samples within `budget_s` seconds.

    `rules` is the competition's sentence about its answers. An earlier engine's `solution` is continued.
    `keep` receives each sample as it ends or is stopped. When the vote settles depends on timing, except with
    `voting.EXACT`. TimeoutError if the engine does not return within OVERTIME_S after the budget.
    """
    solution = solution or Solution(kind.fallback)
    known = list(dict.fromkeys(sample.answer for sample in solution.ended if sample.answer is not None))
    asked = AskedProblem(sampler, problem, seed, kind, rules, known)
    solver = Solver(asked, solution, keep, num_samples, policy)
    return solver.solve(math.inf if budget_s is None else budget_s)


class Solver:
    """Solves one problem on the sampler's event loop."""

    def __init__(
        self,
        problem: AskedProblem,
        solution: Solution,
        keep: Callable[[Sample], None],
        num_samples: int = 0,
        policy: voting.Policy = voting.POLICY,
    ):
        self.problem, self.sampler = problem, problem.sampler
        self.solution, self.keep = solution, keep
        self.num_samples, self.policy = num_samples, policy
        tools = problem.sampler.settings.tools
        self.tools = tools if tools and has_sandbox() else 0.0  # the share of samples with tools
        self.running: dict[asyncio.Task[Sample], RunningSample] = {}
        # Samples that an error ended. They are recorded at the end; if the engine fails, another asks again.
        self.lost: list[Sample] = []
        self.fault, self.in_a_row = "", 0  # the last error; failures since a sample last ended well
        self.begun, self.earlier = time.monotonic(), solution.seconds

    def solve(self, budget_s: float) -> Solution:
        """Return the solution. TimeoutError if the engine does not return; it is complete even then."""
        try:
            self.sampler.run(self.run(budget_s), None if budget_s == math.inf else budget_s + OVERTIME_S)
        finally:
            self.solution.seconds = self.now()
            self.conclude()
        return self.solution

    async def run(self, budget_s: float) -> None:
        """Take the steps of the solution, and record an error that ends them."""
        solution = self.solution
        solution.stop, solution.note = None, self.problem.fault()
        try:
            if not solution.note:
                await self.take_steps(budget_s)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as e:  # SystemExit would end the loop's thread
            solution.fail(one_line(e))
        finally:
            await cancel(self.running)

    async def take_steps(self, budget_s: float) -> None:
        """Sample until the vote needs no more samples or time runs out."""
        solution = self.solution
        policy = replace(self.policy, in_flight=min(self.policy.in_flight, self.sampler.streams))
        end = self.begun + budget_s
        deadline = end - min(0.1 * budget_s, FORCED_ANSWER_S)
        known = {sample.index for sample in solution.samples}
        todo = [index for index in range(self.num_samples) if index not in known]
        while (step := voting.next_step(self.state(len(todo), deadline), policy)).stop is None:
            for index in todo[: step.start]:  # a wave
                # Spread evenly: every second sample has tools at a share of a half.
                with_tools = int((index + 1) * self.tools) > int(index * self.tools)
                sample = RunningSample(self.problem, index, self.now(), with_tools)
                self.running[asyncio.create_task(self.finish(sample, deadline, end))] = sample
            del todo[: step.start]
            for sample in self.running.values():
                sample.limit = step.limit
            await self.take_ended(deadline)
        solution.stop = step.stop
        if step.stop is Stop.DEADLINE:
            while self.running and time.monotonic() < end:
                await self.take_ended(end)
            if not solution.ended:
                raise EngineError(self.fault or "the engine wrote nothing")
            solution.note = "time ran out"
        for record in [*self.lost, *(s.cut(End.STOPPED, self.now()) for s in self.running.values())]:
            self.add(record)
        if self.lost:
            note = f"{len(self.lost)} samples failed: {self.fault}"
            solution.note = ", ".join(filter(None, [solution.note, note]))

    def conclude(self) -> None:
        """Record the vote, however the samples ended."""
        solution = self.solution
        if rows := solution.tally:
            solution.answer = rows[0].answer
        elif solution.ended or not solution.note:
            reason = f"none of {len(solution.ended)} completions held {self.problem.kind}"
            solution.note = ", ".join(filter(None, [solution.note, reason]))

    def state(self, left: int, deadline: float) -> voting.State:
        """Return the current state, with `left` samples not started yet."""
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

    async def finish(self, sample: RunningSample, cut: float, end: float) -> Sample:
        """Return the record of a sample once it has ended; one that failed has no vote."""
        try:
            completion = await sample.answer(cut, end)
            if not (self.problem.kind and self.problem.kind.is_slow):
                return sample.record(completion, self.now())
            async with self.problem.grouping:
                return await asyncio.to_thread(sample.record, completion, self.now())
        except GeneratorExit:
            raise
        except BaseException as e:  # SystemExit would end the loop's thread
            task = asyncio.current_task()
            if task and task.cancelling():  # by us
                raise
            self.fault = one_line(e)
            return sample.cut(End.FAILED, self.now())

    async def take_ended(self, end: float) -> None:
        """Record the samples that end next, if any do before `end`. EngineError if the engine has failed."""
        wait = max(0.0, min(end - time.monotonic(), HEALTH_CHECK_S))
        ended, _ = await asyncio.wait(self.running, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            del self.running[task]
        for record in sorted((task.result() for task in ended), key=lambda record: record.end_s):
            if record.end is End.FAILED:
                self.in_a_row += 1
                self.lost.append(record)
            elif record.text or record.end is not End.TIME:  # otherwise it may be asked again
                self.in_a_row = 0
                self.add(record)
        if self.sampler.has_died:
            raise EngineError("the engine died")
        in_a_row = min(IN_A_ROW, len(self.lost) + len(self.solution.ended))
        if self.fault and not self.running and self.in_a_row >= in_a_row:
            raise EngineError(self.fault)
        for sample in self.running.values():
            # Servers may queue a request for some time before they write its first token.
            patience = max(HANG_S, self.sampler.queue_s) if sample.waits else HANG_S
            if sample.runs_program or time.monotonic() - sample.heard <= patience:
                return
        if self.running:
            raise EngineError(f"the engine wrote nothing for {HANG_S:.0f} s")

    def add(self, sample: Sample) -> None:
        self.solution.samples.append(sample)
        self.keep(sample)

    def now(self) -> float:
        return self.earlier + time.monotonic() - self.begun


def next_budget(limit_s: float, elapsed_s: float, answered: int, expected: int, known: bool) -> float:
    """Return the seconds, at least 1, for the next question of a notebook that has `limit_s` for all.

    `answered` of the `expected` questions have been asked; `known` says whether `expected` is certain.
    """
    left = max(0.0, limit_s - elapsed_s - (MARGIN_S if limit_s > 10 * MARGIN_S else 0))
    questions = max(1 if known else MIN_QUESTIONS_LEFT, expected - answered)
    reserved = (questions - 1) * (MIN_SHARE * max(0.0, limit_s) / expected)
    # Allow several equal shares, as most questions take less than one, but keep what is reserved for the
    # others. If the time left does not cover that, allow one equal share.
    share = left / questions
    return max(1.0, min(MAX_SHARES * share, max(share, left - reserved)))
