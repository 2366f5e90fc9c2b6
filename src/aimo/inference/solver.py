"""One question: samples as separate streams in waves, each stopped when it has nothing more to say, their answers voted.

A share of the samples may run Python in the sandbox and go on after its output. Out of scope: a time bank across questions, which is
`timebank`, and what a sample's call of Python looks like, which is `tools`.
"""

import asyncio
import contextlib
import functools
import math
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from aimo.inference import answers, sandbox, voting
from aimo.inference.engine import Completion, Engine, sample_seed
from aimo.inference.errors import AimoError
from aimo.inference.tools import Blocks, Calls

FALLBACK = 0
ROOM = 16  # a completion with fewer tokens than this cannot hold an answer
LAST_WORD_TOKENS = 24  # for the answer that a stream out of budget is made to give
PULSE_S = 2.0  # between two looks whether the engine lives: streams of a dead one may wait for ever
SILENCE_S = 60.0  # without a token from any stream: the engine hangs
LAST_WORD_S = 5.0  # of a budget, or a tenth of it, that these answers may take
OUTPUT_CHARS = 2000  # of a program's output that its model reads
LOOK_EVERY = 64  # characters that a stream writes between two looks at it


@dataclass
class Sample:
    """One stream of a question that has ended."""

    index: int
    """Its place among the question's samples, from which it has its seed."""
    text: str
    tokens: int
    end: str
    """Why it ended: finished by itself, answered, repeating, rambling, tokens or time ran out, or stopped with the vote."""
    answer: int | None = None
    weight: float = 1.0
    """Of its vote."""
    begin_s: float = 0.0
    end_s: float = 0.0
    """Seconds from the question to the stream's begin and end."""


@dataclass
class Solution:
    """A question's voted answer and how it came about."""

    answer: int = FALLBACK
    samples: list[Sample] = field(default_factory=list)
    """All that were started; those that were stopped with the vote have none."""
    seconds: float = 0.0
    stop: str = ""
    """Why sampling ended: decided, settled, hopeless, exhausted, deadline, or failed when the engine did."""
    note: str = ""
    """Why the answer is a fallback, or the vote incomplete; empty when neither."""

    @property
    def ended(self) -> list[Sample]:
        """The samples whose say counts."""
        return [sample for sample in self.samples if sample.end != "stopped"]

    @property
    def tally(self) -> list[voting.Row]:
        """The vote, the winner first."""
        return voting.tally((sample.answer, sample.weight) for sample in self.ended)

    @property
    def votes(self) -> Counter[int]:
        """How many samples gave which answer."""
        return voting.count([sample.answer for sample in self.ended])

    def explain(self) -> str:
        """The vote in one line."""
        ended, rows = self.ended, self.tally
        share = (
            f"{rows[0].votes} of {len(ended)} votes, {rows[0].share:.0%} of their weight"
            if rows
            else "fallback"
        )
        stopped = len(self.samples) - len(ended)
        tokens = sum(sample.tokens for sample in self.samples)
        parts = [
            share,
            self.stop,
            f"{stopped} stopped early" if stopped else "",
            f"{tokens:,} tokens",
            f"{self.seconds:.1f} s",
            self.note,
        ]
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
    solution: Solution | None = None,
    keep: Callable[[Sample], None] = lambda sample: None,
) -> Solution:
    """Answer one problem with an integer within low…high, in at most `budget_s` seconds and `samples` streams.

    Goes on from a `solution` that an earlier engine left, and adds to it; `keep` is called with each sample as it ends. Which sample
    ends first can change when a vote counts as settled; with `voting.EXACT` it stops only when no outcome of the samples left can
    change the vote, and the answer does not depend on timing.
    """
    solution = solution or Solution()
    question = Question(engine, problem, low, high, seed, solution, keep)
    budget = math.inf if budget_s is None else budget_s
    before = solution.seconds
    try:
        engine.run(
            question.ask(samples, budget, policy), None if budget_s is None else budget + 30
        )  # for a loop that hangs
    finally:
        solution.seconds = before + time.monotonic() - question.begun
        conclude(solution, low, high)
    return solution


@dataclass
class Stream:
    """A sample while it runs."""

    index: int
    begun: float
    text: str = ""
    tokens: int = 0
    """Of the present turn; `spent` of those before."""
    spent: int = 0
    limit: float = math.inf
    """Tokens beyond which it is cut."""
    looked: int = 0
    """Characters at the last look."""
    end: str = ""
    tools: Blocks | Calls | None = None
    results: list[int | None] = field(default_factory=list)
    """What its programs printed last, as integers."""


class Question:
    """One question while it is asked, on the engine's loop."""

    def __init__(
        self,
        engine: Engine,
        problem: str,
        low: int,
        high: int,
        seed: int,
        solution: Solution,
        keep: Callable[[Sample], None],
    ):
        self.engine, self.settings, self.problem, self.seed = engine, engine.settings, problem, seed
        self.low, self.high, self.solution, self.keep = low, high, solution, keep
        self.tools = engine.settings.tools if engine.settings.tools and has_sandbox() else 0.0
        self.running: dict[asyncio.Task[Completion], Stream] = {}
        self.begun = self.heard = time.monotonic()
        self.earlier = solution.seconds

    async def ask(self, samples: int, budget_s: float, policy: voting.Policy) -> None:
        """Sample until the vote needs no more, or the time is over."""
        solution, engine = self.solution, self.engine
        solution.stop = solution.note = ""
        if not self.problem.strip():
            solution.note = "the problem is empty"
            return
        self.prompt = engine.encode(self.problem)
        if len(self.prompt) + ROOM > engine.max_length:
            solution.note = (
                f"the problem's {len(self.prompt)} tokens do not fit the model's {engine.max_length}"
            )
            return
        policy = replace(policy, in_flight=min(policy.in_flight, engine.streams))
        reserve = min(0.1 * budget_s, LAST_WORD_S)
        deadline = self.begun + budget_s - reserve if budget_s < math.inf else math.inf
        known = {sample.index for sample in solution.samples}
        todo = [index for index in range(samples) if index not in known]
        try:
            while True:
                step = voting.next_step(self.state(len(todo), deadline), policy)
                if step.stop:
                    solution.stop = step.stop
                    break
                for index in todo[: step.start]:
                    self.start(index)
                del todo[: step.start]
                for stream in self.running.values():
                    stream.limit = step.limit
                timeout = max(0.0, min(deadline - time.monotonic(), PULSE_S))
                done, _ = await asyncio.wait(
                    self.running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    stream = self.running.pop(task)
                    if error := task.exception():
                        return self.fail(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
                    await self.finish(stream, task.result())
                if engine.has_died:
                    return self.fail("the engine died")
                if self.is_silent():
                    return self.fail(f"the engine wrote nothing for {SILENCE_S:.0f} s")
            if solution.stop == "deadline":
                if not solution.ended and not any(stream.text for stream in self.running.values()):
                    return self.fail("the engine wrote nothing")
                solution.note = "time ran out"
                await self.last_words(reserve)
            self.put_down()
        finally:
            await stop(self.running)

    def state(self, left: int, deadline: float) -> voting.State:
        """What is known now."""
        ended = self.solution.ended
        lengths = [sample.tokens for sample in ended if sample.end not in ("repeating", "rambling")]
        return voting.State(
            self.solution.votes,
            ended=len(ended),
            running=len(self.running),
            left=left,
            longest=max(lengths, default=0),
            time_left=deadline - time.monotonic(),
            time_each=sum(sample.end_s - sample.begin_s for sample in ended) / (len(ended) or 1),
            weights={row.answer: row.weight for row in self.solution.tally},
            heaviest=2.0 if self.tools else 1.0,
        )

    def fail(self, reason: str) -> None:
        """End for the engine's sake; the samples that ended are kept."""
        self.solution.stop, self.solution.note = "failed", reason

    def is_silent(self) -> bool:
        """Whether no stream has written for long, while none waits for its program."""
        return bool(self.running) and time.monotonic() - self.heard > SILENCE_S

    def now(self) -> float:
        """Seconds since the question was first asked."""
        return self.earlier + time.monotonic() - self.begun

    def start(self, index: int) -> None:
        """Start a sample, with tools if it is one of their share."""
        settings, stream = self.settings, Stream(index, self.now())
        seed = sample_seed(self.seed, self.problem, index)
        # Spread evenly: every second sample has tools at a share of a half.
        if int((index + 1) * self.tools) > int(index * self.tools):
            stream.tools = (
                Calls(self.engine, self.problem)
                if settings.tool_parser
                else Blocks(self.engine, self.problem)
            )
            sample = self.with_tools(stream, seed)
        else:
            sample = self.engine.sample(
                self.prompt, seed, settings, lambda text, tokens: self.until(stream, text, tokens)
            )
        self.running[asyncio.create_task(sample)] = stream

    def until(self, stream: Stream, turn: str, tokens: int) -> bool:
        """Whether a stream has said its answer, or has nothing more to say."""
        self.heard = time.monotonic()
        text = stream.text = (stream.tools.text if stream.tools else "") + turn
        stream.tokens = tokens
        if len(text) - stream.looked < LOOK_EVERY and not text.endswith(("}", ">", "```")):
            return False
        stream.looked = len(text)
        if (
            stream.tools
            and len(stream.results) < self.settings.tool_turns
            and stream.tools.called(turn, finished=False) is not None
        ):
            return True
        if stream.spent + tokens > stream.limit:
            stream.end = "rambling"
        elif voting.is_repeating(text):
            stream.end = "repeating"
        elif (
            voting.final_answer(text, self.read, self.settings.answer_tags, thinking=self.settings.thinking)
            is not None
        ):
            stream.end = "answered"
        return bool(stream.end)

    def read(self, text: str) -> int | None:
        """The answer of a text, within the competition's range."""
        return answers.to_integer(answers.extract(text, self.settings.answer_tags), self.low, self.high)

    async def with_tools(self, stream: Stream, seed: int) -> Completion:
        """A stream whose programs are run."""
        tools, settings = stream.tools, self.settings
        assert tools
        logprob = entropy = 0.0
        with contextlib.closing(Programs()) as programs:
            while True:
                prompt = tools.prompt()
                left = min(settings.max_tokens - stream.spent, self.engine.max_length - len(prompt))
                if left < ROOM:
                    return Completion(tools.text, stream.spent, False, logprob, entropy)
                brief = replace(settings, max_tokens=left)
                turn = await self.engine.sample(
                    prompt, seed, brief, lambda text, tokens: self.until(stream, text, tokens)
                )
                stream.spent, stream.tokens = stream.spent + turn.tokens, 0
                logprob, entropy = logprob + turn.logprob, entropy + turn.entropy
                code = (
                    tools.called(turn.text, turn.finished)
                    if len(stream.results) < settings.tool_turns and not stream.end
                    else None
                )
                if code is None:
                    return Completion(tools.text + turn.text, stream.spent, turn.finished, logprob, entropy)
                said = await asyncio.to_thread(programs.run, code)
                self.heard = time.monotonic()
                stream.results.append(
                    answers.to_integer((said.splitlines() or [""])[-1], self.low, self.high)
                )
                tools.reply(turn.text, said[-OUTPUT_CHARS:])

    async def finish(self, stream: Stream, completion: Completion) -> None:
        """Count a stream that ended; one that ran out of tokens is made to answer."""
        end = "finished" if completion.finished else stream.end or "tokens ran out"
        if end == "tokens ran out" and self.read(completion.text) is None:
            completion = await self.last_word(completion.text)
        self.count(stream, completion, end)

    async def last_word(self, text: str) -> Completion:
        """What a stream answers when it is made to answer now."""
        opening, closing = self.settings.answer_tags
        ending = voting.forced_ending(text, self.settings.think_end, opening)
        said, ids = (self.engine.tokenizer.encode(part, add_special_tokens=False) for part in (text, ending))
        room = self.engine.max_length - LAST_WORD_TOKENS - len(self.prompt) - len(ids)
        brief = replace(self.settings, max_tokens=LAST_WORD_TOKENS)
        tail = await self.engine.sample(
            self.prompt + said[-room:] + ids, self.seed, brief, lambda text, _: closing in text
        )
        return Completion(
            text + ending + tail.text, len(said) + tail.tokens, False, tail.logprob, tail.entropy
        )

    async def last_words(self, seconds: float) -> None:
        """Stop all streams, and take what each answers at once."""
        streams = [stream for stream in self.running.values() if stream.text]
        await stop(self.running)
        self.running.clear()
        words = {asyncio.create_task(self.last_word(stream.text)): stream for stream in streams}
        if words:
            done, late = await asyncio.wait(words, timeout=seconds)
            await stop(late)
            for task in done:
                self.count(words[task], task.result(), "time ran out")

    def count(self, stream: Stream, completion: Completion, end: str) -> None:
        """Add a sample, and keep it."""
        answer, weight = self.read(completion.text), 1.0
        if answer is not None and stream.tools:
            weight = voting.by_tools(answer, stream.results)
        elif answer is None and stream.results and stream.results[-1] is not None:
            answer, weight = stream.results[-1], 0.5  # its program gave an answer that it did not live to say
        if answer is not None:
            weight *= self.own_weight(completion)
            if self.settings.discount_trivial:
                weight *= voting.by_prior(answer, self.problem)
        sample = Sample(
            stream.index, completion.text, completion.tokens, end, answer, weight, stream.begun, self.now()
        )
        self.solution.samples.append(sample)
        self.keep(sample)

    def own_weight(self, completion: Completion) -> float:
        """A completion's weight by the settings."""
        each = max(1, completion.tokens)
        match self.settings.weight:
            case "logprob":
                return voting.by_logprob(completion.logprob / each)
            case "entropy":
                return voting.by_entropy(completion.entropy / each)
            case "length":
                return voting.by_length(completion.tokens)
        return 1.0

    def put_down(self) -> None:
        """Note the streams that the vote did not wait for."""
        for stream in self.running.values():
            tokens = stream.spent + stream.tokens
            self.solution.samples.append(
                Sample(stream.index, stream.text, tokens, "stopped", None, 0.0, stream.begun, self.now())
            )


class Programs:
    """A sample's programs, whose variables live on from one to the next; a sandbox that fails is told to the model, and goes no further."""

    session: sandbox.Session | None = None

    def run(self, code: str) -> str:
        """What a program prints, and its error."""
        try:
            self.session = self.session or sandbox.Session()
            result = self.session.run(code)
        except AimoError as e:
            return str(e)
        return (result.stdout + result.error).strip()

    def close(self) -> None:
        """End them."""
        if self.session:
            self.session.close()


@functools.cache
def has_sandbox() -> bool:
    """Whether programs can be run here; says, once, what of their confinement this machine does not enforce."""
    try:
        lacking = [what for what, holds in sandbox.enforced().items() if not holds]
    except AimoError as e:
        print(f"{e}; samples go on without tools")
        return False
    print(f"Sandbox: {'not enforced here: ' + ', '.join(lacking) if lacking else 'every limit is enforced'}.")
    return True


async def stop(tasks: Collection[asyncio.Task[Completion]]) -> None:
    """Stop streams, and wait until the engine has let go of them; one that is dead never does."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=LAST_WORD_S)


def conclude(solution: Solution, low: int, high: int) -> None:
    """Take the answer from the votes, or say why there is none."""
    rows = solution.tally
    if rows:
        solution.answer = rows[0].answer
    elif solution.ended or not solution.note:
        reason = f"none of {len(solution.ended)} completions held an answer from {low} to {high}"
        solution.note = ", ".join(filter(None, [solution.note, reason]))
