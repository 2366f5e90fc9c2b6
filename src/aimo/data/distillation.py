"""Let a teacher answer problems: several completions of each, from model servers into a .jsonl file.

Each sample is written as it ends. Started again, the same call goes on: it asks for what is missing, samples
that failed among it. Out of scope: whether a completion is right (`rejection`).
"""

import asyncio
import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from aimo.config import Distil
from aimo.data import sources
from aimo.errors import AimoError
from aimo.inference import vllm_process
from aimo.inference.model_folder import identity
from aimo.inference.sampling import BackgroundLoop, sample_seed
from aimo.inference.server import Reply, SampleError, Servers
from aimo.inference.settings import PUBLIC, Tags, resolve
from aimo.inference.storage import SampleFile, read_json, write_json
from aimo.run import hub
from aimo.run.runs import Run

FAILURES = 100
"""So many failed samples in a row end the run."""
REPORT_S = 0.5
SAMPLED_BY = ("model", "system", "prompt_template", "temperature", "top_p", "max_tokens")
"""The keys of `distil` that determine a sample."""


@dataclass
class Tally:
    """How far a run is, and what it has cost."""

    samples: int
    """All that are wanted."""
    known: int
    """Those that were in the file before."""
    prices: tuple[float, float] = (0.0, 0.0)
    """What a million tokens of prompts, and of completions, cost."""
    done: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Samples without a completion, by their fault."""
    failures_in_a_row: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def cost(self) -> float:
        """In the currency of the prices."""
        return (self.prices[0] * self.prompt_tokens + self.prices[1] * self.completion_tokens) / 1e6

    @property
    def left(self) -> str:
        """The time that is left, at the speed so far."""
        ended = self.done + self.failed.total()
        seconds = (time.monotonic() - self.started) / max(ended, 1) * (self.samples - self.known - ended)
        return f"about {timedelta(seconds=round(seconds))} left" if ended else "time left not known yet"

    def __str__(self) -> str:
        """One line."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        parts = [f"{self.known + self.done:,} of {self.samples:,} samples"]
        parts += [f"{self.failed.total():,} failed"] * bool(self.failed)
        parts += [f"{self.prompt_tokens + self.completion_tokens:,} tokens"]
        parts += [f"{self.completion_tokens / seconds:,.0f} tokens/s"]
        parts += [f"cost {self.cost:,.2f}"] * any(self.prices)
        return ", ".join(parts)


Report = Callable[[Tally], None]


@contextlib.contextmanager
def teacher(run: Run) -> Iterator[Distil]:
    """The `distil` section of a run's profile with servers: its own, or one that is started here."""
    wanted = run.profile.distil
    assert wanted
    if wanted.api_addr:
        yield wanted
        return
    folder = teachers_folder(run)
    settings = resolve(folder, run.profile.inference.written)
    print(f"Serving {folder.name} with vLLM, which takes half a minute or more", flush=True)
    with vllm_process.serving(folder, settings, run.profile.seed, log=run.folder / "vllm.log") as (url, _):
        yield replace(wanted, api_addr=[url], model=folder.name)


def teachers_folder(run: Run) -> Path:
    """The model folder of the teacher that a run starts."""
    assert run.profile.distil
    return hub.local_folder(run.profile.distil.model or run.profile.model.base)


def problems(wanted: Distil, seed: int) -> pl.DataFrame:
    """The problems of a source or mixture, one row for each different `id`, else text."""
    rows, _ = sources.load(wanted, seed, "distil")
    rows = rows.with_columns(id=pl.coalesce("id", "problem")).select("id", "problem", "answer", "source")
    rows = rows.drop_nulls("problem").unique("id", keep="first", maintain_order=True)
    if rows.is_empty():
        raise AimoError(f"distil: {wanted.source} holds no problem; look at its columns")
    return rows


def distil(
    wanted: Distil, out: Path, seed: int, report: Report, tags: Tags = PUBLIC[0], weights: str = ""
) -> Tally:
    """Ask for every sample that is not in the file yet, and return what was done.

    `report` is called twice a second. `tags` enclose the thought in `generation`. `weights` is the teacher's
    identity where it is served here; another's server is known by its model's name. A sample that fails costs
    itself alone. AimoError when nothing can be done, when no server answers any more, or when the disk is
    full; what is written stays. The memory is that of the problems, whatever the number of samples.
    """
    rows = problems(wanted, seed)
    loop = BackgroundLoop()
    try:
        return loop.run(ask_all(wanted, rows, out, seed, report, tags, weights))
    except KeyboardInterrupt:
        raise AimoError("interrupted; run the same command again to continue") from None
    finally:
        loop.cancel_all()
        loop.stop()


def in_run(wanted: Distil, run: Run) -> Tally:
    """As `distil`, into the run's folder, with the run's seed, tags and progress."""

    def report(tally: Tally) -> None:
        run.progress(tally.known + tally.done + tally.failed.total(), tally.samples)

    own = run.profile.distil
    weights = "" if own and own.api_addr else identity(teachers_folder(run))
    seed, tags = run.profile.seed, run.profile.prompt.tags
    return distil(wanted, run.folder / "samples.jsonl", seed, report, tags, weights)


async def ask_all(
    wanted: Distil, rows: pl.DataFrame, out: Path, seed: int, report: Report, tags: Tags, weights: str
) -> Tally:
    """As `distil`, for problems that are read."""
    limits = (wanted.max_concurrent, wanted.timeout, wanted.retries)
    async with Servers(wanted.api_addr, wanted.model, *limits) as servers:
        asked = replace(wanted, model=servers.model)
        settings = {key: getattr(asked, key) for key in SAMPLED_BY}
        settings |= {"seed": seed, "tags": asdict(tags)} | ({"weights": weights} if weights else {})
        with open_samples(out, settings) as file:
            missing = ~found(file, rows, wanted.num_generations)
            known = int(missing.size - missing.sum())
            tally = Tally(missing.size, known, (wanted.input_price, wanted.output_price))
            jobs = ((int(row), int(i)) for row, i in zip(*np.nonzero(missing), strict=True))
            await Asking(wanted, rows, servers, file, seed, tags, tally).everything(jobs, report)
    report(tally)
    if tally.failed and not tally.done:
        raise AimoError(
            f"every sample failed: {tally.failed.most_common(1)[0][0]}; look at the servers' logs"
        )
    return tally


def push(out: Path, repo: str, wanted: Distil, tally: Tally) -> str:
    """Push the file with its card to a dataset of the hub; returns its address."""
    settings = out.with_suffix(".settings.json")
    made = read_json(settings, "run `aimo distil` again")
    header = {
        "configs": [{"config_name": "default", "data_files": "train.jsonl"}],
        "tags": ["aimo", "distilled"],
    }
    origins = ", ".join(source.source for source in wanted.mixture or [wanted])
    counts = f"{tally.known + tally.done:,} of {tally.samples:,} samples, {wanted.num_generations} a problem"
    card = (
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n# Completions of {made['model']}\n\n"
        f"{counts}; problems from {origins}. Made by `aimo distil`. None is judged: `aimo reject` keeps the "
        "right ones.\n\n"
        f"```yaml\n{yaml.safe_dump(made, sort_keys=False, allow_unicode=True)}```\n"
    )
    return hub.push_dataset(repo, {"README.md": card.encode(), "train.jsonl": out})


def open_samples(path: Path, settings: dict[str, Any]) -> SampleFile:
    """The file of samples, with what determines them beside it. AimoError when it was made with others."""
    file, beside = SampleFile(path, "output_file"), path.with_suffix(".settings.json")
    now = json.loads(json.dumps(settings))
    try:
        if beside.exists() and file.size:
            file.check(read_json(beside, "restore it, or take another output_file"), now)
        write_json(beside, now)
    except BaseException as e:
        file.close()
        if isinstance(e, OSError):
            raise AimoError(f"{beside}: {e.strerror}; take another output_file") from None
        raise
    return file


def key_of(text: str) -> str:
    """What identifies a problem in the file: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]


def found(file: SampleFile, rows: pl.DataFrame, num_generations: int) -> np.ndarray:
    """(n, num_generations) which samples of the problems are in the file."""
    there = np.zeros((len(rows), num_generations), bool)
    places = {key_of(text): row for row, text in enumerate(rows["id"])}
    for sample in file:
        row, number = places.get(str(sample.get("key"))), sample.get("sample")
        if row is not None and isinstance(number, int) and 0 <= number < num_generations:
            there[row, number] = True
    return there


@dataclass
class Asking:
    """One run: what all of its requests share."""

    wanted: Distil
    rows: pl.DataFrame
    servers: Servers
    file: SampleFile
    seed: int
    tags: Tags
    tally: Tally

    async def everything(self, jobs: Iterator[tuple[int, int]], report: Report) -> None:
        """Ask for all samples (row and number), `max_concurrent` at a time."""

        async def worker() -> None:
            for row, number in jobs:
                await self.one(row, number)

        async def watch() -> None:
            while True:
                report(self.tally)
                await asyncio.sleep(REPORT_S)

        watching = asyncio.create_task(watch())
        left = self.tally.samples - self.tally.known
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.wanted.max_concurrent, left)):
                    group.create_task(worker())
        except BaseExceptionGroup as e:
            raise e.exceptions[0] from None
        finally:
            watching.cancel()

    async def one(self, row: int, number: int) -> None:
        """Ask for one sample and write it, or count it as failed."""
        problem, tally = self.rows["problem"][row], self.tally
        prompt = self.wanted.prompt_template.replace("{prompt}", problem)
        system = [{"role": "system", "content": self.wanted.system}] if self.wanted.system else []
        body: dict[str, Any] = {
            "messages": [*system, {"role": "user", "content": prompt}],
            "temperature": self.wanted.temperature,
            "top_p": self.wanted.top_p,
            "max_tokens": self.wanted.max_tokens,
            "seed": sample_seed(self.seed, problem, number),
        }
        try:
            reply = await self.servers.ask(body)
            if reply.text.strip().startswith(prompt.strip()) and not reply.reasoning:
                raise SampleError("the completion begins with the prompt; the server must serve a chat model")
        except SampleError as e:
            tally.failed[str(e)[:200]] += 1
            tally.failures_in_a_row += 1
            if tally.failures_in_a_row >= FAILURES:  # others may fail before they are cancelled
                raise AimoError(
                    f"{FAILURES} samples in a row failed: {e}; look at the servers' logs"
                ) from None
            return
        self.file.append(self.record(row, number, body["seed"], reply))
        tally.done += 1
        tally.failures_in_a_row = 0
        tally.prompt_tokens += reply.prompt_tokens
        tally.completion_tokens += reply.completion_tokens

    def record(self, row: int, number: int, seed: int, reply: Reply) -> dict[str, Any]:
        """A line of the file."""
        known = self.rows.row(row, named=True)
        return {
            "key": key_of(known.pop("id")),
            "sample": number,
            **known,
            "generation": whole(reply, self.tags),
            "complete": reply.finish_reason == "stop",
            "finish_reason": reply.finish_reason,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "model": self.servers.model,
            "seed": seed,
        }


def whole(reply: Reply, tags: Tags) -> str:
    """Thought and text as one completion, which begins with the opening tag where it has a thought."""
    if reply.reasoning:
        thought = reply.reasoning.strip("\n")
        return f"{tags.think_start}\n{thought}\n{tags.think_end}\n\n{reply.text.lstrip()}"
    if tags.think_end in reply.text and tags.think_start not in reply.text:  # the prompt ended in it
        return tags.think_start + reply.text
    return reply.text
