"""The completions of a model on a benchmark: sampled, and kept as they end in one file that needs no other.

JSON lines: first what was asked (`Header`), then a completion a line (`Trace`). A run that was interrupted
goes on sample by sample, and a file can be scored again without a model. Out of scope: figures (`scores`).
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aimo.errors import AimoError, EngineError
from aimo.evaluation.benchmarks import Question
from aimo.inference import ask, solver
from aimo.inference.errors import one_line
from aimo.inference.programs import has_sandbox
from aimo.inference.sampling import Completion, Sampler, sample_seed
from aimo.inference.settings import Settings
from aimo.inference.solver import cancel
from aimo.inference.stream import Stream

IN_FLIGHT = 512  # completions at a time; a client of servers gives up on more that wait
ASKED = (
    "format", "system", "user", "variants", "chat_template_kwargs", "temperature", "top_p", "min_p", "top_k",
    "stop", "max_tokens", "tags", "thinking", "tools", "tool_turns", "tool_seconds", "tool_parser",
)  # fmt: skip
"""The settings that decide what a completion says."""


@dataclass(frozen=True)
class Header:
    """What was asked, and how."""

    model: str
    weights: str
    """Tells changed weights under the same name."""
    benchmark: str
    seed: int
    settings: dict[str, Any]
    """Those of ASKED."""
    context: int
    """Tokens of prompt and completion that the engine allows; 0 before there is one."""
    questions: list[Question]

    def differs(self, other: "Header") -> str:
        """Say in what another header differs from this one; empty when it does not."""
        mine, theirs = (asdict(header) | header.settings for header in (self, other))
        for key in ("benchmark", "weights", "seed", *ASKED, "context"):
            if mine[key] != theirs[key] and (key != "context" or other.context):
                return f"{key} was {mine[key]!r} and is now {theirs[key]!r}"
        return "" if self.questions == other.questions else "its questions are others"


@dataclass(frozen=True)
class Trace:
    """One completion."""

    id: str
    """Of its question."""
    index: int
    """Its number among the question's completions."""
    seed: int
    text: str
    tokens: int
    finished: bool
    """False when it was cut off."""
    begin_s: float
    end_s: float
    """Seconds of sampling until it began and ended, all starts together."""


def header_of(
    model: str, folder: Path, benchmark: str, questions: list[Question], settings: Settings, seed: int
) -> Header:
    """What the model in `folder` is asked."""
    values = json.loads(settings.to_json())
    asked = {key: values[key] for key in ASKED}
    return Header(model, fingerprint(folder), benchmark, seed, asked, 0, questions)


def fingerprint(folder: Path) -> str:
    """A digest of a model's weights: the size and the megabyte in the middle of each file."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        with path.open("rb") as file:
            size = path.stat().st_size
            file.seek(size // 2)
            digest.update(f"{path.name} {size}".encode() + file.read(1 << 20))
    return digest.hexdigest()[:16]


class File:
    """A file of completions, open for more of them."""

    def __init__(self, path: Path, header: Header):
        """Read what is there, or begin the file. A last line that was cut off is removed.

        AimoError when the file was made otherwise than `header` says, or cannot be written.
        """
        self.path = path
        self.traces: dict[tuple[str, int], Trace] = {}
        """By question and number."""
        if not path.exists():
            self.header = header
            self.append({"evaluation": asdict(header)})
            return
        self.header, found, whole = read_lines(path)
        self.check(header)
        if whole < path.stat().st_size:
            with path.open("r+b") as file:
                file.truncate(whole)
        self.traces = {(trace.id, trace.index): trace for trace in found}

    def check(self, header: Header) -> None:
        """Refuse to go on where the file was made otherwise than `header` says."""
        if difference := self.header.differs(header):
            raise AimoError(f"{self.path} was made otherwise: {difference}; take another --run-dir")

    def missing(self, num_samples: int) -> list[tuple[str, int]]:
        """What is not there yet of `num_samples` completions for each question, first ones first."""
        wanted = [(question.id, n) for n in range(num_samples) for question in self.header.questions]
        return [which for which in wanted if which not in self.traces]

    @property
    def seconds(self) -> float:
        """Seconds of sampling so far."""
        return max((trace.end_s for trace in self.traces.values()), default=0.0)

    def add(self, trace: Trace) -> None:
        """Keep a completion."""
        self.append(asdict(trace))
        self.traces[trace.id, trace.index] = trace

    def append(self, value: dict[str, Any]) -> None:
        """Write a line. AimoError when the disk is full or the folder cannot be written."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(value, ensure_ascii=False) + "\n")
        except OSError as e:
            raise AimoError(
                f"{self.path}: {e.strerror}; {len(self.traces):,} completions are kept: make room "
                "or unlock the folder, and run the same command again"
            ) from None


def read(path: Path) -> tuple[Header, list[Trace]]:
    """What was asked and all completions, without a last line that was cut off."""
    header, traces, _ = read_lines(path)
    return header, traces


def read_lines(path: Path) -> tuple[Header, list[Trace], int]:
    """`read`, and the bytes of the file until the end of its last whole line."""
    whole = 0
    traces = []
    header = None
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                value = json.loads(line)
                if header is None:
                    asked = value["evaluation"]
                    header = Header(**asked | {"questions": [Question(**q) for q in asked["questions"]]})
                else:
                    traces.append(Trace(**value))
            except (ValueError, TypeError, KeyError):
                remedy = "remove the line" if header else "give a file that `aimo evaluate` wrote"
                raise AimoError(
                    f"{path}, line {number}: it is no completion of `aimo evaluate`; {remedy}"
                ) from None
            whole += len(line)
    if header is None:
        raise AimoError(f"{path}: it is empty or cut off in its first line; remove it and evaluate again")
    return header, traces, whole


def sample(sampler: Sampler, file: File, num_samples: int, step: Callable[[], None]) -> None:
    """Sample what is missing of `num_samples` completions for each question; `step` is called after each.

    A completion depends on seed, problem and its number alone, as in `aimo.evaluation.metrics`, but for rare
    last bits of the logits. AimoError when every server is down, EngineError when the engine fails; what has
    ended by then is kept.
    """
    header, settings = file.header, sampler.settings
    problems = {q.id: ask.Question(sampler, q.problem, header.seed, 0, 0) for q in header.questions}
    too_long = {id_ for id_, problem in problems.items() if problem.fault()}
    begun, before = time.monotonic(), file.seconds
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def one(id_: str, index: int) -> None:
        async with slots:
            began = time.monotonic()
            completion = Completion("", [], False)
            if id_ not in too_long:
                completion = await complete(problems[id_], index, settings)
            times = [round(before + moment - begun, 3) for moment in (began, time.monotonic())]
            seed = sample_seed(header.seed, problems[id_].text, index)
            file.add(Trace(id_, index, seed, completion.text, completion.tokens, completion.finished, *times))
            step()

    async def all_of_them() -> None:
        tasks = {asyncio.create_task(one(*which)) for which in file.missing(num_samples)}
        patience = max(solver.HANG_S, sampler.queue_s) + (settings.tool_seconds if settings.tools else 0)
        sign, heard = (0, 0), time.monotonic()
        try:
            while tasks:
                ended, tasks = await asyncio.wait(
                    tasks, timeout=solver.HEALTH_CHECK_S, return_when=asyncio.FIRST_EXCEPTION
                )
                for error in [task.exception() for task in ended]:
                    if error:
                        raise error
                if (now := (sampler.written, len(file.traces))) != sign:
                    sign, heard = now, time.monotonic()
                elif time.monotonic() - heard > patience:
                    raise TimeoutError(f"it wrote nothing for {patience:.0f} s")
        finally:
            await cancel(tasks)

    try:
        sampler.run(all_of_them())
    except AimoError as e:
        kept = f"{len(file.traces):,} completions are kept in {file.path}"
        raise AimoError(f"{e}; {kept}: run the same command again to go on") from None
    except Exception as e:  # the engine's own kinds
        raise EngineError(f"the engine failed: {one_line(e)}; run the same command again to go on") from None


async def complete(problem: ask.Question, index: int, settings: Settings) -> Completion:
    """One completion; the share of the settings' `tools` runs its programs."""
    tools = settings.tools if settings.tools and has_sandbox() else 0.0
    if int((index + 1) * tools) > int(index * tools):  # spread evenly, as in the solver
        return await Stream(problem, index, 0.0, True).run()
    prompt = problem.begin(index, with_tools=False).prompt()
    return await problem.sampler.sample(prompt, sample_seed(problem.seed, problem.text, index), settings)
