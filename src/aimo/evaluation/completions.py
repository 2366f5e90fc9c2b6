"""Sample a model's completions on a benchmark, and append each to a file as it ends.

The file holds JSON lines: a header with what was asked, then one completion per line (`Trace`). A restarted
run samples only what is missing, and `scores` can score a file again without a model.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from aimo.evaluation.benchmarks import Question
from aimo.inference import solver
from aimo.inference.answers import Kind, read_kind
from aimo.inference.errors import AimoError, EngineError, one_line
from aimo.inference.model_folder import is_same_model
from aimo.inference.prompts import Completion, Sampler, cancel, sample_seed
from aimo.inference.sample import AskedProblem, RunningSample
from aimo.inference.sandbox import has_sandbox
from aimo.inference.settings import validate_settings
from aimo.inference.storage import AGAIN, SampleFile, iterate_lines

IN_FLIGHT = 512  # completions at a time; with more, a server's client gives up on those that wait
SANDBOXES = 128  # completions at a time that may run programs; each needs a process and file descriptors


@dataclass(frozen=True)
class EvaluationHeader:
    """What was asked, and how."""

    model: str
    weights: str  # the model's identity (`model_folder.identity`); in files of aimo 1.0.1 its `fingerprint`
    benchmark: str
    seed: int
    settings: dict[str, Any]  # `Settings.asked`
    context: int  # the engine's limit for prompt and completion, in tokens; 0 before it starts
    questions: list[Question]
    served: str = ""  # the model's name on its servers; empty for an engine, and before they are asked
    # A competition's kind of answer, as JSON, and its sentence for prompts. None: any answer, compared by the
    # judge.
    answer: dict[str, Any] | None = None
    rules: str = ""

    @property
    def kind(self) -> Kind | None:
        """The kind of the answers. ValueError if `answer` is not one."""
        return None if self.answer is None else read_kind(self.answer)

    def compared(self) -> dict[str, Any]:
        """Return what all completions in one file must share, without what is not known yet."""
        known = {key: value for key in ("context", "served") if (value := getattr(self, key))}
        named = {"benchmark": self.benchmark, "weights": self.weights, "seed": self.seed}
        return named | self.settings | {"answer": self.answer, "rules": self.rules} | known

    def is_of(self, weights: str) -> bool:
        """Return whether the completions come from the model with this identity."""
        told_apart = "-" in self.weights or "+" not in self.model  # 1.0.1 gave an adapter its base's weights
        return told_apart and is_same_model(self.weights, weights)


@dataclass(frozen=True)
class Trace:
    """One completion."""

    id: str  # of its question
    index: int  # among the question's completions
    seed: int
    text: str
    tokens: int
    finished: bool  # False when it was cut off
    begin_s: float  # seconds of sampling until it began and ended, summed over all starts
    end_s: float


HEADER, TRACE = TypeAdapter(EvaluationHeader), TypeAdapter(Trace)


class CompletionFile(SampleFile):
    """A locked file of completions, open for appending; a context manager."""

    def __init__(self, path: Path, header: EvaluationHeader):
        """Read the file, or create it with this header. AimoError if it has another one."""
        super().__init__(path, "--run-dir")
        self.header = header
        found: list[Trace] = []
        try:
            if not self.size:
                self.append({"evaluation": asdict(header)})
            else:
                self.header, found = read_completions(path)
                before = self.header.compared()
                if self.header.is_of(header.weights):
                    before["weights"] = header.weights
                self.check(before, header.compared())
                if self.header.questions != header.questions:
                    raise AimoError(f"{path} was made with other questions; take another --run-dir")
        except BaseException:
            self.close()
            raise
        self.traces = {(trace.id, trace.index): trace for trace in found}  # by question and index

    def missing(self, num_samples: int) -> list[tuple[str, int]]:
        """Return (question id, index) of each completion missing up to `num_samples`, in order of index."""
        wanted = ((question.id, n) for n in range(num_samples) for question in self.header.questions)
        return [which for which in wanted if which not in self.traces]

    def add(self, trace: Trace) -> None:
        self.append(asdict(trace))
        self.traces[trace.id, trace.index] = trace


def read_completions(path: Path) -> tuple[EvaluationHeader, list[Trace]]:
    """Return a file's header and completions. AimoError names a line that is neither."""
    traces = []
    header = None
    for number, value in iterate_lines(path):
        try:
            if isinstance(value, str):
                raise ValueError(value)
            if header is None:
                header = HEADER.validate_python(value["evaluation"])
                _ = header.kind  # raises ValueError if it is not a kind
                validate_settings(header.settings, f"{path}, line {number}", AGAIN)
                if not (known := {question.id for question in header.questions}):
                    raise ValueError("it asks no question")
            else:
                traces.append(TRACE.validate_python(value))
                if traces[-1].id not in known:
                    raise ValueError(f"no question has the id {traces[-1].id!r}")
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            remedy = "remove the line" if number > 1 else "give a file that `aimo evaluate` wrote"
            raise AimoError(
                f"{path}, line {number}: it is no line of `aimo evaluate` ({one_line(e)}); {remedy}"
            ) from None
    if header is None:
        raise AimoError(f"{path}: it is empty or cut off in its first line; remove it and evaluate again")
    return header, traces


def sample_file(sampler: Sampler, file: CompletionFile, num_samples: int, step: Callable[[], None]) -> None:
    """Sample the completions missing up to `num_samples` per question; call `step` after each.

    A completion depends only on seed, problem and index, as in `scores.sample_rows`, except for rare rounding
    differences in the logits. AimoError if every server is down, EngineError if the engine fails; completions
    that have ended are kept.
    """
    header, settings = file.header, sampler.settings
    problems = {
        q.id: AskedProblem(sampler, q.problem, header.seed, rules=header.rules) for q in header.questions
    }
    too_long = {id_ for id_, problem in problems.items() if problem.fault()}
    begun = time.monotonic()
    before = max((trace.end_s for trace in file.traces.values()), default=0.0)
    slots, sandboxes = asyncio.Semaphore(IN_FLIGHT), asyncio.Semaphore(SANDBOXES)
    share = settings.tools if settings.tools and has_sandbox() else 0.0

    async def one(id_: str, index: int) -> None:
        with_tools = int((index + 1) * share) > int(index * share)  # spread evenly, as in the solver
        async with sandboxes if with_tools else contextlib.nullcontext(), slots:
            began = time.monotonic()
            problem, seed = problems[id_], sample_seed(header.seed, problems[id_].text, index)
            if id_ in too_long:
                completion = Completion("", [], False)
            elif with_tools:
                completion = await RunningSample(problem, index, 0.0, True).run()
            else:
                prompt = problem.begin(index, with_tools=False).ids
                completion = await sampler.sample(prompt, seed, settings)
            times = [round(before + moment - begun, 3) for moment in (began, time.monotonic())]
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
                for error in [task.exception() for task in ended]:  # all: asyncio prints those not retrieved
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
        again = "" if AGAIN in str(e) else f": {AGAIN}"
        raise AimoError(f"{e}; {len(file.traces):,} completions are kept in {file.path}{again}") from None
    except Exception as e:  # the engine's own exception types
        raise EngineError(f"the engine failed: {one_line(e)}; {AGAIN}") from None
