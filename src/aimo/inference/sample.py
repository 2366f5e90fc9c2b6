"""One sample: its turns and programs, when it ends, its forced answer and its record."""

import asyncio
import contextlib
import copy
import io
import math
import time
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, ClassVar

from pydantic import ConfigDict

from aimo.inference import chat_format, prompts, voting
from aimo.inference.answers import AnswerKind, Value
from aimo.inference.errors import one_line
from aimo.inference.prompts import MIN_TOKENS, Completion, Sampler, sample_seed
from aimo.inference.sandbox import Programs

FORCED_ANSWER_TOKENS = 24
CHECK_EVERY = 64  # characters between two checks for a sample's end
COUNT_EVERY = 1024  # characters between two checks for endless counting, which take longer
TAIL = 256  # tokens at the end of a sample whose confidence is recorded separately


class End(StrEnum):
    """Why a sample ended."""

    FINISHED = "finished"  # the model ended it
    ANSWERED = "answered"  # its final answer was complete
    REPETITION = "repetition"  # it degenerated into repetition
    OVERLONG = "overlong"  # it was much longer than the samples that had ended
    TOKENS = "tokens"  # it used up its tokens
    TIME = "time"  # the question's time ran out
    STOPPED = "stopped"  # sampling stopped before it ended; it has no vote
    FAILED = "failed"  # an error ended it; it has no vote


@dataclass
class Sample:
    """A sample that has ended, as journals store it."""

    index: int  # its number among the question's samples, which determines its seed
    text: str
    tokens: int
    end: End
    answer: Value | None = None
    weight: float = 1.0  # of its vote
    begin_s: float = 0.0  # since the question began
    end_s: float = 0.0
    seed: int = 0
    turns: int = 0  # programs that were run
    errors: int = 0  # programs that failed
    printed: list[Value | None] = field(default_factory=list)  # the answer in each program's last line
    malformed: int = 0  # format errors that it survived, such as a call to an unknown tool
    # Mean log-probability and mean entropy in nats, of all tokens and of the last TAIL; None: not measured.
    logprob: float | None = None
    tail_logprob: float | None = None
    entropy: float | None = None
    tail_entropy: float | None = None
    role: str = ""  # in proofs: `prove`, `verify 3`, `refine 3` or `select 3,5`; numbers are samples
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")  # of a journal's lines


@dataclass(frozen=True)
class AskedProblem:
    """A problem and what counts as its answer, shared by all its samples."""

    sampler: Sampler
    text: str
    seed: int
    kind: AnswerKind | None = None  # None: no answer is sought, so that none ends a sample
    rules: str = ""  # the competition's sentence about its answers
    known: list[Value] = field(default_factory=list)  # the first of each group of equal answers
    # The conversations that samples begin with, by prompt variant and whether they have tools.
    begun: dict[tuple[int, bool], chat_format.Conversation] = field(default_factory=dict)
    grouping: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while a slow kind groups an answer

    def begin(self, index: int, with_tools: bool) -> chat_format.Conversation:
        """Return a sample's conversation; a prompt is encoded once for all samples that share it."""
        key = id(prompts.variant(self.sampler.settings, index)), with_tools
        if key not in self.begun:
            self.begun[key] = chat_format.begin_conversation(
                self.sampler, self.text, index, self.rules, with_tools
            )
        return copy.copy(self.begun[key])

    def fault(self) -> str:
        """Return why the problem cannot be asked, or an empty string."""
        if not self.text.strip():
            return "the problem is empty"
        try:
            self.begin(0, with_tools=self.sampler.settings.tools > 0)
            tokens, limit = len(self.begin(0, with_tools=False).ids), self.sampler.max_length
        except BaseException as e:  # a tokenizer or a template rejects this problem, or panics
            return one_line(e)
        if tokens + MIN_TOKENS > limit:
            return f"the problem's {tokens} tokens do not fit the model's {limit}"
        return ""

    def read(self, text: str) -> Any:
        """Return the answer in a text, or None if there is none of the kind."""
        kind = self.kind
        return kind.read(kind.find(text, self.sampler.settings.tags)) if kind else None

    def group(self, answer: Any, known: list[Any]) -> Any:
        """Return the first known answer that equals `answer`, or else add it to `known` and return it."""
        if self.kind is None or self.kind.is_exact or answer is None:
            return answer
        if (first := self.kind.group(answer, known)) is answer:
            known.append(answer)
        return first


class RunningSample:
    """A running sample: `answer` samples it to its end; `record` and `cut` return it as a `Sample`.

    A subclass that overrides `work` and `close` performs another kind of task.
    """

    def __init__(self, problem: AskedProblem, index: int, begin_s: float, with_tools: bool):
        self.problem, self.index, self.begin_s, self.with_tools = problem, index, begin_s, with_tools
        self.sampler, self.settings = problem.sampler, problem.sampler.settings
        self.seed = sample_seed(problem.seed, problem.text, index)
        self.talk = problem.begin(index, with_tools)
        self.prompt = self.turn_prompt = self.talk.ids  # token ids of the first prompt, and this turn's
        self.results: list[Value | None] = []  # the answer in the last line that each program printed
        self.errors = 0  # programs that failed
        self.earlier = Completion("", [], False)  # the turns before this one
        self.message_begin = 0  # where in the text the model's current message begins
        self.thinking = False  # whether that message began inside a thought
        self.limit = math.inf  # tokens beyond which the sample is cut
        self.checked = 0  # characters at the last check for its end
        self.heard = time.monotonic()  # when it last wrote something
        self.waits = self.runs_program = False  # `waits`: for the first token of a turn
        self.end: End | None = None
        self.begin_turn()

    def begin_turn(self) -> None:
        self.turn = Completion("", [], False)  # gets its text when it ends
        self.written = io.StringIO()  # the text until then
        before = self.talk.text[self.message_begin :]
        self.watch = voting.AnswerWatch(self.problem.read, self.settings.tags, self.thinking, before)

    @property
    def text(self) -> str:
        """All that it wrote and read so far, in all turns."""
        return self.talk.text + (self.turn.text or self.written.getvalue())

    @property
    def may_call(self) -> bool:
        return self.with_tools and not self.end and len(self.results) < self.settings.tool_turns

    async def answer(self, cut: float = math.inf, end: float = math.inf) -> Completion:
        """Sample to the end. A sample still running at `cut` has until `end` to close its text."""
        try:
            async with asyncio.timeout(cut - time.monotonic()) as limit:
                return await self.work()
        except TimeoutError:
            if not limit.expired():
                raise
        self.end = End.TIME
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(end - time.monotonic()):
                if self.text:
                    return await self.close()
        self.end = End.TIME
        return replace(self.earlier + self.turn, text=self.text)

    async def work(self) -> Completion:
        """Sample to the end, and force an answer if the model has given none."""
        completion = await self.run()
        if completion.finished:
            self.end = End.FINISHED
        elif self.end is None:
            self.end = End.TOKENS
        may_lack = self.end in (End.FINISHED, End.TOKENS)
        if may_lack and self.problem.read(completion.text) is None:
            return await self.close()
        return completion

    async def run(self) -> Completion:
        """Sample until the model, `update` or the token limit ends it. Each program only ends a turn."""
        with contextlib.closing(Programs(self.settings.tool_seconds)) as programs:
            while True:
                self.turn_prompt = self.talk.ids
                if self.talk.starts_message:
                    self.message_begin, self.thinking = len(self.talk.text), self.talk.thinks()
                self.begin_turn()
                context = self.sampler.max_length - len(self.turn_prompt)
                room = min(self.settings.max_tokens - self.earlier.tokens, context)
                if room >= MIN_TOKENS:
                    limited = replace(self.settings, max_tokens=room)
                    self.waits = True
                    self.turn = await self.sampler.sample(self.turn_prompt, self.seed, limited, self.update)
                call = self.talk.find_call(self.turn)
                if call is None or not self.may_call:
                    # A sample that ends with a call that is not run has not finished.
                    finished = self.turn.finished and call is None
                    return replace(self.earlier + self.turn, text=self.text, finished=finished)
                self.runs_program = True
                result = await asyncio.to_thread(programs.run, call.code)
                self.heard, self.runs_program = time.monotonic(), False
                self.errors += not result.ok
                last_line = (result.shown.splitlines() or [""])[-1]
                self.results.append(self.problem.kind.read(last_line) if self.problem.kind else None)
                self.talk.reply(call, result.shown)
                self.earlier += self.turn

    def update(self, turn: str, ids: list[int]) -> bool:
        """Record what this turn has written so far, and return whether to end it now.

        The cost does not depend on the turn's length: only new text is read, and no reference to `turn` is
        kept, so that the sampler can extend it in place.
        """
        self.heard, self.waits = time.monotonic(), False
        if len(turn) < self.written.tell():  # another server has restarted the turn
            self.begin_turn()
        self.turn.token_ids = ids
        self.written.write(turn[self.written.tell() :])
        length = len(self.talk.text) + len(turn)
        if length - self.checked < CHECK_EVERY and not turn.endswith(("}", ">", "```", "~~~")):
            return False
        due, self.checked = length // COUNT_EVERY > self.checked // COUNT_EVERY, length
        if self.may_call and self.talk.find_call(Completion(turn, ids, False)):
            return True
        window = turn[-voting.WINDOW :]
        if len(window) < voting.WINDOW:
            window = self.talk.text[-voting.WINDOW :] + window
        self.end = None
        if self.earlier.tokens + len(ids) > self.limit:
            self.end = End.OVERLONG
        elif voting.is_repeating(window):
            self.end = End.REPETITION
        elif self.watch.find(turn):
            self.end = End.ANSWERED
        elif due and voting.is_counting(turn):
            self.end = End.REPETITION
        return self.end is not None

    async def close(self) -> Completion:
        """Return what the sample wrote, with the answer that the model is forced to give."""
        self.heard, self.waits = time.monotonic(), True
        text, written = self.text, self.turn.token_ids
        if self.turn.finished:  # by a token that ends the turn
            written = written[:-1]
        ending = self.talk.forced_ending(text[self.message_begin :], self.thinking)
        forced = self.sampler.tokenizer.encode(ending, add_special_tokens=False)
        room = self.sampler.max_length - FORCED_ANSWER_TOKENS - len(forced)
        asked = self.turn_prompt + written
        if len(asked) > room:  # leave out the middle
            asked = self.prompt + asked[len(asked) - room + len(self.prompt) :]
        limited = replace(self.settings, max_tokens=FORCED_ANSWER_TOKENS)
        closing = self.settings.tags.answer_end
        tail = await self.sampler.sample(asked + forced, self.seed, limited, lambda text, _: closing in text)
        return replace(self.earlier + self.turn + tail, text=text + ending + tail.text, finished=False)

    def record(self, completion: Completion, end_s: float) -> Sample:
        """Return the record of a sample that has ended, with its vote and its weight."""
        answer, weight = self.problem.group(self.problem.read(completion.text), self.problem.known), 1.0
        if answer is not None and self.with_tools:
            weight = voting.by_tools(answer, [self.problem.group(one, [answer]) for one in self.results])
        elif answer is None and self.results:
            # Its last program printed an answer that the sample never stated.
            answer = self.problem.group(self.results[-1], self.problem.known)
            weight = 1.0 if answer is None else 0.5
        if answer is not None and self.settings.discount_trivial:
            weight *= voting.by_prior(answer, self.problem.text)

        def mean(values: list[float]) -> float | None:
            return sum(values) / len(values) if values else None

        sample = replace(
            self.cut(self.end or End.TOKENS, end_s, completion),
            answer=answer,
            weight=weight,
            logprob=mean(completion.logprobs),
            tail_logprob=mean(completion.logprobs[-TAIL:]),
            entropy=mean(completion.entropies),
            tail_entropy=mean(completion.entropies[-TAIL:]),
        )
        sample.weight *= voting.weigh(sample, self.settings.weight)
        return sample

    def cut(self, end: End, end_s: float, completion: Completion | None = None) -> Sample:
        """Return the record of a sample that was stopped or failed, without a vote."""
        completion = completion or replace(self.earlier + self.turn, text=self.text)
        return Sample(
            self.index,
            completion.text,
            completion.tokens,
            end,
            weight=0.0,
            begin_s=self.begin_s,
            end_s=end_s,
            seed=self.seed,
            turns=len(self.results),
            errors=self.errors,
            printed=self.results,
            malformed=0 if end is End.FAILED else self.talk.count_malformed(completion.token_ids),
        )
