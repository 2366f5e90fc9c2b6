"""One question: samples as separate streams in waves, each stopped when it has nothing more to say, their answers voted.

A share of the samples may run Python: a fenced block ends the stream, runs in the sandbox, and the stream goes on after its
output. Left out: tool calls in a chat template's own format, and a time bank across questions, which is `timebank`.
"""

import asyncio
import math
import re
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import partial

from aimo import answers, sandbox, voting
from aimo.engine import Completion, Engine, sample_seed

FALLBACK = 0
ROOM = 16  # a completion with fewer tokens than this cannot hold an answer
LAST_WORD_TOKENS = 24  # for the answer that a stream out of budget is made to give
PULSE_S = 2.0  # between two looks whether the engine lives: streams of a dead one may wait for ever
LAST_WORD_S = 5.0  # of a budget, or a tenth of it, that these answers may take
BLOCK = re.compile(r"```(?:python|py)\n(.*?)```", re.DOTALL)
OUTPUT_CHARS = 2000  # of a program's output that its model reads
LOOK_EVERY = 64  # characters that a stream writes between two looks at it


@dataclass
class Stream:
    """One sample while it runs."""

    text: str = ""
    tokens: int = 0
    limit: float = math.inf
    """Tokens beyond which it is cut."""
    looked: int = 0
    started: float = field(default_factory=time.monotonic)
    rambled: bool = False
    before: str = ""
    """What it wrote, and read from its programs, in earlier turns."""
    results: list[int | None] | None = None
    """What its programs printed last, as integers; None for a sample without tools."""


@dataclass
class Solution:
    """A question's voted answer and how it came about."""

    answer: int = FALLBACK
    votes: Counter[int] = field(default_factory=Counter)
    weights: list[tuple[int, float]] = field(default_factory=list)
    """Each vote's answer and weight, from which the answer is taken."""
    completions: list[Completion] = field(default_factory=list)
    samples: int = 0
    """Streams started; those without a completion were stopped early."""
    seconds: float = 0.0
    stop: str = ""
    """Why sampling ended: decided, settled, hopeless, exhausted, deadline, or failed when the engine did."""
    note: str = ""
    """Why the answer is a fallback, or the vote incomplete; empty when neither."""

    def explain(self) -> str:
        """The vote in one line."""
        share = f"{self.votes[self.answer]} of {len(self.completions)} votes" if self.votes else "fallback"
        stopped = self.samples - len(self.completions)
        tokens = sum(c.tokens for c in self.completions)
        parts = [share, self.stop, f"{stopped} stopped early" if stopped else "", f"{tokens:,} tokens", f"{self.seconds:.1f} s", self.note]
        return f"{self.answer} ({', '.join(part for part in parts if part)})"


def solve(
    engine: Engine,
    problem: str,
    samples: int,
    low: int,
    high: int,
    seed: int = 0,
    budget_s: float | None = None,
    policy: voting.Policy = voting.POLICY,
) -> Solution:
    """Answer one problem with an integer within low…high, in at most `budget_s` seconds and `samples` streams.

    Which sample ends first can change when a vote counts as settled; with `voting.EXACT` it stops only when no outcome of the
    samples left can change the vote, and the answer does not depend on timing.
    """
    started = time.monotonic()
    patience = None if budget_s is None else budget_s + 30  # for an engine that hangs
    solution = engine.run(vote(engine, problem, samples, low, high, seed, budget_s or math.inf, policy), patience)
    solution.seconds = time.monotonic() - started
    return solution


async def stop(tasks: Collection[asyncio.Task[Completion]]) -> None:
    """Stop streams, and wait until the engine has let go of them; one that is dead never does."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=LAST_WORD_S)


async def vote(
    engine: Engine, problem: str, samples: int, low: int, high: int, seed: int, budget_s: float, policy: voting.Policy
) -> Solution:
    """Sample, read and count on the engine's loop."""
    if not problem.strip():
        return Solution(note="the problem is empty")
    prompt = engine.encode(problem)
    if len(prompt) + ROOM > engine.max_length:
        return Solution(note=f"the problem's {len(prompt)} tokens do not fit the model's {engine.max_length}")
    settings, solution = engine.settings, Solution()
    reserve = min(0.1 * budget_s, LAST_WORD_S)
    deadline = time.monotonic() + budget_s - reserve if budget_s < math.inf else math.inf
    running: dict[asyncio.Task[Completion], Stream] = {}
    longest, durations = 0, [0.0]

    def read(text: str) -> int | None:
        return answers.to_integer(answers.extract(text, settings.answer_tags), low, high)

    def until(stream: Stream, text: str, tokens: int) -> bool:
        """Whether a stream has said its answer, or has nothing more to say."""
        text = stream.text = stream.before + text
        stream.tokens = tokens
        if len(text) - stream.looked < LOOK_EVERY and not text.endswith(("}", ">", "```")):
            return False
        stream.looked = len(text)
        if stream.results is not None and len(stream.results) < settings.tool_turns and len(BLOCK.findall(text)) > len(stream.results):
            return True
        stream.rambled = tokens > stream.limit or voting.is_repeating(text)
        return stream.rambled or voting.final_answer(text, read, settings.answer_tags, thinking=settings.thinking) is not None

    async def last_word(text: str) -> Completion:
        """What a stream answers when it is made to answer now."""
        opening, closing = settings.answer_tags
        ending = voting.forced_ending(text, settings.think_end, opening)
        said, ids = (engine.tokenizer.encode(part, add_special_tokens=False) for part in (text, ending))
        room = engine.max_length - LAST_WORD_TOKENS - len(prompt) - len(ids)
        brief = replace(settings, max_tokens=LAST_WORD_TOKENS)
        tail = await engine.sample(prompt + said[-room:] + ids, seed, brief, lambda text, _: closing in text)
        return Completion(text + ending + tail.text, len(said) + tail.tokens, finished=False)

    async def with_tools(stream: Stream, own: int) -> Completion:
        """A stream whose programs are run."""
        stream.results = []
        tokens = 0
        with sandbox.Session() as session:
            while True:
                ids = prompt + engine.tokenizer.encode(stream.before, add_special_tokens=False)
                left = min(settings.max_tokens - tokens, engine.max_length - len(ids))
                if left < ROOM:
                    return Completion(stream.before, tokens, finished=False)
                turn = await engine.sample(ids, own, replace(settings, max_tokens=left), partial(until, stream))
                tokens += turn.tokens
                text = stream.before + turn.text
                blocks = list(BLOCK.finditer(text))
                if len(blocks) == len(stream.results) or len(stream.results) == settings.tool_turns:
                    return Completion(text, tokens, turn.finished)
                block = blocks[len(stream.results)]
                result = await asyncio.to_thread(session.run, block[1])
                said = (result.stdout + result.error).strip()
                stream.results.append(answers.to_integer((said.splitlines() or [""])[-1], low, high))
                # What it wrote beyond the block, it wrote without knowing the output.
                stream.before = f"{text[: block.end()]}\n```output\n{said[-OUTPUT_CHARS:]}\n```\n"

    def count(completion: Completion, results: list[int | None] | None = None) -> None:
        solution.completions.append(completion)
        answer = read(completion.text)
        weight = 1.0 if answer is None else voting.by_tools(answer, results or [])
        if answer is None and results and results[-1] is not None:
            answer, weight = results[-1], 0.5  # its program gave an answer that it did not live to say
        if answer is not None:
            solution.votes[answer] += 1
            solution.weights.append((answer, weight))

    try:
        while True:
            state = voting.State(
                solution.votes,
                ended=len(solution.completions),
                running=len(running),
                left=samples - solution.samples,
                longest=longest,
                time_left=deadline - time.monotonic(),
                time_each=sum(durations) / len(durations),
            )
            step = voting.next_step(state, policy)
            if step.stop:
                solution.stop = step.stop
                break
            for _ in range(step.start):
                stream = Stream()
                own = sample_seed(seed, problem, solution.samples)
                # Spread evenly: every second sample has tools at a share of a half.
                has_tools = int((solution.samples + 1) * settings.tools) > int(solution.samples * settings.tools)
                sample = with_tools(stream, own) if has_tools else engine.sample(prompt, own, settings, partial(until, stream))
                running[asyncio.create_task(sample)] = stream
                solution.samples += 1
            for stream in running.values():
                stream.limit = step.limit
            timeout = max(0.0, min(deadline - time.monotonic(), PULSE_S))
            done, _ = await asyncio.wait(running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not done and engine.has_died:
                solution.stop, solution.note = "failed", "the engine died"
                return conclude(solution, low, high)
            for task in done:
                stream = running.pop(task)
                if error := task.exception():  # the engine is gone: answer with the votes so far
                    solution.stop, solution.note = "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                    return conclude(solution, low, high)
                completion = task.result()
                if read(completion.text) is None and not completion.finished and not stream.rambled:
                    completion = await last_word(completion.text)  # it ran out of tokens
                count(completion, stream.results)
                longest = longest if stream.rambled else max(longest, completion.tokens)
                durations.append(time.monotonic() - stream.started)
        if solution.stop == "deadline":
            silent = not solution.completions and not any(stream.tokens for stream in running.values())
            if silent:
                solution.stop = "failed"
            solution.note = "the engine wrote nothing" if silent else "time ran out"
            texts = [stream.text for stream in running.values() if stream.text]
            await stop(running)
            words = [asyncio.create_task(last_word(text)) for text in texts]
            if words:
                done, late = await asyncio.wait(words, timeout=reserve)
                await stop(late)
                for task in done:
                    count(task.result())
    finally:
        await stop(running)
    return conclude(solution, low, high)


def conclude(solution: Solution, low: int, high: int) -> Solution:
    """Take the answer from the votes, or say why there is none."""
    ranking = voting.tally(solution.weights)
    if not ranking:
        reason = f"none of {len(solution.completions)} completions held an answer from {low} to {high}"
        solution.note = ", ".join(filter(None, [solution.note, reason]))
    else:
        solution.answer = ranking[0].answer
    return solution
