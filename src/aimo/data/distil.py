"""Distil a teacher: sample several completions of each problem, and keep the right ones.

`distil` asks OpenAI-compatible servers and writes each sample to a .jsonl file as it ends; a repeated call
continues the file. `reject` judges every completion by its final answer and chooses among the right ones.
"""

import asyncio
import contextlib
import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import yaml
from openai import APIConnectionError, APIStatusError, AsyncOpenAI

from aimo.config import Distil, Reject, Source
from aimo.config.profile import STAGES
from aimo.data import decontaminate, prepare, sources
from aimo.inference import vllm_process
from aimo.inference.answers import AnswerKind
from aimo.inference.competitions import Competition
from aimo.inference.errors import AimoError
from aimo.inference.model_folder import identity
from aimo.inference.prompts import BackgroundLoop, sample_seed
from aimo.inference.server import address, open_client, reason, served_models
from aimo.inference.settings import PUBLIC, Tags, resolve_settings
from aimo.inference.storage import SampleFile, read_json, write_json
from aimo.run import hub
from aimo.run.runs import Run, again

FAILURES = 100  # failed samples in a row that end the run
REPORT_S = 0.5
REST_S = 2.0  # pause for a server that fails, unless its Retry-After sets another
BUSY = (429, 503)
WRONG = (401, 402, 403, 404)  # wrong key, account or address: every request would fail
# The keys that determine a sample.
SAMPLED_BY = ("model", "system", "prompt_template", "temperature", "top_p", "max_tokens")


# ---- the servers of a teacher


class SampleError(Exception):
    """A request got no completion: because of a `busy` server, or because of the sample itself."""

    def __init__(self, fault: str, busy: bool = False, again: bool = True, rest_s: float = 0.0):
        super().__init__(fault)
        self.busy, self.again, self.rest_s = busy, again, rest_s


@dataclass
class TeacherServer:
    """One server of the model."""

    client: AsyncOpenAI
    limit: float  # requests at a time
    in_flight: int = 0
    resumes: float = 0.0  # when it is asked again


class Servers:
    """Servers of one model. A request goes to the one with the fewest in flight, unless it rests.

    A server that has to rest gets a third fewer requests at a time, then one more for every round of answers
    (additive increase, multiplicative decrease, as in TCP).
    """

    def __init__(self, urls: list[str], model: str | None, max_concurrent: int, timeout: float, retries: int):
        self.servers = [TeacherServer(open_client(url, 0), max_concurrent) for url in urls]
        self.model, self.most, self.timeout, self.retries = model, max_concurrent, timeout, retries
        self.answered = time.monotonic()  # when a server last sent a completion

    async def connect(self) -> None:
        """Check that every server answers and has the model; without a name, take the only one."""
        for server in self.servers:
            found = [model.id for model in await served_models(server.client)]
            has = f"server {address(server.client)} has {', '.join(found[:5]) or 'no model'}"
            if self.model is None and len(found) != 1:
                raise AimoError(f"{has}; name one with model")
            self.model = self.model or found[0]
            if self.model not in found:
                raise AimoError(f"{has}, not {self.model!r}; correct model or api_addr")

    async def close(self) -> None:
        for server in self.servers:
            await server.client.close()

    async def ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the reply to a chat request (`post`). SampleError if none came after all retries.

        AimoError if a server refuses every request or serves another model, or if none has answered for
        `timeout` seconds.
        """
        faults = 0
        while True:
            now = time.monotonic()
            ready = [one for one in self.servers if now >= one.resumes and one.in_flight < one.limit]
            if not ready:  # retry at different times, so that not all ask at once
                await asyncio.sleep(random.uniform(0.05, 0.5))
                continue
            server = min(ready, key=lambda server: server.in_flight)
            server.in_flight += 1
            try:
                reply = await self.post(server.client, {"model": self.model, **body})
                self.answered = time.monotonic()
                server.limit = min(self.most, server.limit + 1 / server.limit)
                return reply
            except SampleError as e:
                now = time.monotonic()
                if e.rest_s and now >= server.resumes:  # faults during a rest come from the same overload
                    server.limit = max(1.0, server.limit * 2 / 3)
                server.resumes = max(server.resumes, now + e.rest_s)
                faults += not e.busy
                if not e.again or faults > self.retries:
                    raise
                if e.busy and now - self.answered > self.timeout:
                    fault = f"{e}, and no server has answered for {self.timeout:g} s"
                    remedy = "start it, and run the same command again to continue"
                    raise AimoError(f"server {address(server.client)}: {fault}; {remedy}") from None
            finally:
                server.in_flight -= 1

    async def post(self, client: AsyncOpenAI, body: dict[str, Any]) -> dict[str, Any]:
        """Return `text`, `thought` (which the server may split off), `finish_reason` and the token counts."""
        try:
            async with asyncio.timeout(self.timeout):
                content = await client.post("/chat/completions", cast_to=str, body=body)
        except TimeoutError:
            told = f"no reply within {self.timeout:g} s; raise timeout, or lower max_concurrent"
            raise SampleError(told) from None
        except APIConnectionError as e:
            if type(e.__cause__).__name__ in ("ConnectError", "ConnectTimeout"):  # of httpx or httpx2
                raise SampleError(f"cannot be reached ({reason(e)})", busy=True, rest_s=REST_S) from None
            raise SampleError("the reply was cut off", rest_s=REST_S) from None
        except APIStatusError as e:
            status, told = e.status_code, f"HTTP {e.status_code}: {beginning(e.response.text)}"
            if status in BUSY:
                asked = e.response.headers.get("Retry-After", "")
                rest_s = float(asked) if asked.replace(".", "", 1).isdecimal() else 0.0  # or a date
                raise SampleError(f"HTTP {status}", busy=True, rest_s=rest_s or REST_S) from None
            if status in WRONG:
                remedy = "correct api_addr or model, or set OPENAI_API_KEY"
                raise AimoError(f"server {address(client)} answers {told}; {remedy}") from None
            failed = status >= 500
            raise SampleError(told, again=failed or status == 408, rest_s=REST_S * failed) from None
        try:
            value = json.loads(content)
            choice, usage = value["choices"][0], value.get("usage") or {}
            message, ended = choice["message"], choice["finish_reason"] or ""
            text = message.get("content") or ""
            if isinstance(text, list):  # in parts
                text = "".join(part["text"] for part in text if part.get("type", "text") == "text")
            thought = message.get("reasoning") or message.get("reasoning_content") or ""  # vLLM's, DeepSeek's
            tokens = {key: int(usage.get(key) or 0) for key in ("prompt_tokens", "completion_tokens")}
            model = str(value.get("model") or self.model)
            if not all(isinstance(part, str) for part in (text, thought, ended)):
                raise TypeError("a text of another type")
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
            raise SampleError(f"the reply holds no completion: {beginning(content)}") from None
        if not model.startswith(str(self.model)):  # a date may follow the name
            told = f"answers with the model {model!r}, not {self.model!r}; correct model, or the server"
            raise AimoError(f"server {address(client)} {told}")
        if not ended:
            raise SampleError("the reply ends without a finish_reason")
        if not (text or thought):
            raise SampleError("the completion is empty")
        return {"text": text, "thought": thought, "finish_reason": ended, **tokens}


def beginning(text: str) -> str:
    return " ".join(text[:200].split()) or "nothing"


# ---- distil


@dataclass
class Tally:
    """Progress and cost of a distillation."""

    samples: int  # all that are wanted
    known: int  # those that were in the file before
    prices: tuple[float, float] = (0.0, 0.0)  # of a million tokens of prompts, and of completions
    done: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # samples without a completion, by fault
    failures_in_a_row: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def cost(self) -> float:
        """Return the cost in the currency of the prices."""
        return (self.prices[0] * self.prompt_tokens + self.prices[1] * self.completion_tokens) / 1e6

    @property
    def left(self) -> str:
        """Return the time left at the speed so far."""
        ended = self.done + self.failed.total()
        seconds = (time.monotonic() - self.started) / max(ended, 1) * (self.samples - self.known - ended)
        return f"about {timedelta(seconds=round(seconds))} left" if ended else "time left not known yet"

    def __str__(self) -> str:
        speed = self.completion_tokens / max(time.monotonic() - self.started, 1e-9)
        failed = f", {self.failed.total():,} failed" if self.failed else ""
        cost = f", cost {self.cost:,.2f}" if any(self.prices) else ""
        tokens = f"{self.prompt_tokens + self.completion_tokens:,} tokens, {speed:,.0f} tokens/s"
        return f"{self.known + self.done:,} of {self.samples:,} samples{failed}, {tokens}{cost}"


def distil_in_run(run: Run, so_far: Any) -> Tally:
    """Distil into a run's folder, with its seed, tags and progress.

    `so_far.add` gets problem, answer and completion of each sample with a known answer; the progress bar
    shows `so_far`. If `distil.api_addr` is empty, vLLM serves the teacher here.
    """
    wanted, weights = run.profile.distil, ""
    assert wanted
    with contextlib.ExitStack() as stack:
        if not wanted.api_addr:
            folder = hub.local_folder(wanted.model or run.profile.model.base)
            settings = resolve_settings(folder, run.profile.inference.written)
            print(f"Serving {folder.name} with vLLM, which takes half a minute or more", flush=True)
            log = run.folder / "vllm.log"
            url, _ = stack.enter_context(vllm_process.serving(folder, settings, run.profile.seed, log=log))
            wanted, weights = replace(wanted, api_addr=[url], model=folder.name), identity(folder)

        def report(tally: Tally) -> None:
            note = "; ".join(filter(None, [str(tally), str(so_far)]))
            run.progress(tally.known + tally.done + tally.failed.total(), tally.samples, note)

        seed, tags, rules = run.profile.seed, run.profile.prompt.tags, run.profile.rules
        return distil(wanted, run.folder / "samples.jsonl", seed, report, tags, weights, so_far.add, rules)


def distil(
    wanted: Distil,
    out: Path,
    seed: int,
    report: Callable[[Tally], None],
    tags: Tags = PUBLIC[0],
    weights: str = "",
    heard: Callable[[str, str, str], None] = lambda problem, answer, completion: None,
    rules: Competition | None = None,
) -> Tally:
    """Request every sample that the file lacks, and return the tally.

    `report` is called twice a second. `tags` enclose the thought in `generation`. `weights` identifies a
    teacher that is served here; other teachers are known by name. `heard` gets problem, answer and completion
    of each sample with a known answer. With `rules`, a file may have the layout of that competition's test
    file. A failed sample does not affect the others. AimoError if every sample fails, no server answers any
    more, or the disk is full; what is written stays. Memory grows with the problems, not the samples.
    """
    rows = distilled_problems(wanted, seed, rules)
    limits = wanted.max_concurrent, wanted.timeout, wanted.retries
    loop, servers = BackgroundLoop(), Servers(wanted.api_addr, wanted.model, *limits)
    try:
        loop.run(servers.connect())
        with SampleFile(out, "output_file") as file:
            # The settings that determine the samples are kept beside them; others are refused.
            settings = {key: getattr(wanted, key) for key in SAMPLED_BY} | {"model": servers.model}
            settings |= {"seed": seed, "tags": asdict(tags)} | ({"weights": weights} if weights else {})
            beside = out.with_suffix(".settings.json")
            try:
                if beside.exists() and file.size:
                    file.check(read_json(beside, "restore it, or take another output_file"), settings)
                write_json(beside, settings)
            except OSError as e:
                raise AimoError(f"{beside}: {e.strerror}; take another output_file") from None

            missing = np.ones((len(rows), wanted.num_generations), bool)
            ids = [text.encode(errors="backslashreplace") for text in rows["id"]]
            keys = [hashlib.sha256(text).hexdigest()[:16] for text in ids]
            places, asked = {key: row for row, key in enumerate(keys)}, rows.drop("id")
            for sample in file:
                row, number = places.get(str(sample.get("key"))), sample.get("sample")
                if row is not None and isinstance(number, int) and 0 <= number < wanted.num_generations:
                    missing[row, number] = False
            jobs = ((int(row), int(number)) for row, number in zip(*np.nonzero(missing), strict=True))
            left = int(missing.sum())
            tally = Tally(missing.size, missing.size - left, (wanted.input_price, wanted.output_price))

            async def work() -> None:
                for row, number in jobs:  # one iterator for all workers
                    known = asked.row(row, named=True)
                    try:
                        sample = await sample_of(known["problem"], number, servers, wanted, seed, tags)
                    except SampleError as e:
                        tally.failed[str(e)[:200]] += 1
                        tally.failures_in_a_row += 1
                        if tally.failures_in_a_row >= FAILURES:  # more may fail before they are cancelled
                            fault = f"{FAILURES} samples in a row failed: {e}; look at the servers' logs"
                            raise AimoError(fault) from None
                        continue
                    file.append({"key": keys[row], "sample": number, **known, **sample})
                    if known["answer"]:
                        heard(known["problem"], known["answer"], sample["generation"])
                    tally.done += 1
                    tally.failures_in_a_row = 0
                    tally.prompt_tokens += sample["prompt_tokens"]
                    tally.completion_tokens += sample["completion_tokens"]

            async def watch() -> None:
                while True:
                    report(tally)
                    await asyncio.sleep(REPORT_S)

            async def ask_all() -> None:
                watching = asyncio.create_task(watch())
                try:
                    async with asyncio.TaskGroup() as group:
                        for _ in range(min(wanted.max_concurrent, left)):
                            group.create_task(work())
                except BaseExceptionGroup as e:
                    raise e.exceptions[0] from None
                finally:
                    watching.cancel()

            loop.run(ask_all())
    except KeyboardInterrupt:
        raise AimoError(f"interrupted; {again()} to continue") from None
    finally:
        loop.cancel_all()
        loop.run(servers.close())
        loop.stop()
    report(tally)
    if tally.failed and not tally.done:
        fault = tally.failed.most_common(1)[0][0]
        raise AimoError(f"every sample failed: {fault}; look at the servers' logs")
    return tally


def distilled_problems(wanted: Distil, seed: int, rules: Competition | None = None) -> pl.DataFrame:
    """Return the problems of a source or mixture: one row per `id`, or per text if there is none."""
    rows = sources.load_mixture(wanted, seed, "distil", rules)[0]
    rows = rows.with_columns(id=pl.coalesce("id", "problem")).select("id", "problem", "answer", "source")
    rows = rows.drop_nulls("problem").unique("id", keep="first", maintain_order=True)
    if rows.is_empty():
        raise AimoError(f"distil: {wanted.source} holds no problem; look at its columns")
    return rows


async def sample_of(
    problem: str, number: int, servers: Servers, wanted: Distil, seed: int, tags: Tags
) -> dict[str, Any]:
    """Return one completion of a problem, thought and text in `generation`. SampleError if there is none."""
    prompt = wanted.prompt_template.replace("{prompt}", problem)
    system = [{"role": "system", "content": wanted.system}] if wanted.system else []
    body: dict[str, Any] = {"messages": [*system, {"role": "user", "content": prompt}]}
    body |= {"temperature": wanted.temperature, "top_p": wanted.top_p, "max_tokens": wanted.max_tokens}
    body["seed"] = sample_seed(seed, problem, number)
    reply = await servers.ask(body)
    text, thought = reply.pop("text"), reply.pop("thought").strip("\n")
    if text.strip().startswith(prompt.strip()) and not thought:
        raise SampleError("the completion begins with the prompt; serve a chat model")
    if thought:
        text = f"{tags.think_start}\n{thought}\n{tags.think_end}\n\n{text.lstrip()}"
    elif tags.think_end in text and tags.think_start not in text:  # the prompt ended in the opening tag
        text = tags.think_start + text
    complete = reply["finish_reason"] == "stop"  # otherwise it was cut off
    return {"generation": text, "complete": complete, **reply, "model": servers.model, "seed": body["seed"]}


def push_samples(out: Path, repo: str, wanted: Distil, tally: Tally) -> str:
    """Push the file with a card to a dataset on the hub; return its address."""
    made = read_json(out.with_suffix(".settings.json"), "run `aimo distil` again")
    origins = ", ".join(source.source for source in wanted.mixture or [wanted])
    counts = f"{tally.known + tally.done:,} of {tally.samples:,} samples, {wanted.num_generations} a problem"
    text = (
        f"{counts}; problems from {origins}. Made by `aimo distil`. None is judged: `aimo reject` keeps the "
    )
    text += f"right ones.\n\n```yaml\n{yaml.safe_dump(made, sort_keys=False, allow_unicode=True)}```\n"
    card = f"---\ntags: [aimo, distilled]\n---\n\n# Completions of {made['model']}\n\n{text}"
    return hub.push_dataset(repo, {"README.md": card.encode(), "train.jsonl": out})


# ---- reject


class Rejection(NamedTuple):
    """The completions that are kept, and pass rates of all problems."""

    # `problem`, `answer`, `generation`, `correct`, `pass_rate` and `samples` of each kept completion
    kept: pl.DataFrame
    dropped: Counter[str]  # the other completions, by reason
    problems: pl.DataFrame  # with `pass_rate`, the share of right completions, and `samples`

    def __str__(self) -> str:
        rows = len(self.kept) + self.dropped.total()
        rate: Any = self.problems["pass_rate"].mean()
        lines = [f"{rows:>9,} completions of {len(self.problems):,} problems, mean pass rate {rate:.3f}"]
        lines += [f"{count:>9,} dropped: {reason}" for reason, count in self.dropped.items()]
        lines += [f"{len(self.kept):>9,} kept, of {self.kept['problem'].n_unique():,} problems"]
        return "\n".join(lines)


def reject_in_run(run: Run) -> Rejection:
    """Apply `reject` to the samples of the stage `distil`, and write the stage's product."""
    assert run.profile.distil
    source = Source(str(run.folder / "samples.jsonl"), preset="aimo distil")
    rows, _ = sources.load_source(source, run.profile.seed, "distil")
    found = reject(rows, run.profile.distil.reject, run.profile.prompt.tags, run.profile.answer_kind)
    write_kept(found.kept, run.dir / STAGES["distil"].product)
    return found


def reject(
    rows: pl.DataFrame, wanted: Reject, tags: Tags = PUBLIC[0], kind: AnswerKind | None = None
) -> Rejection:
    """Judge the completions of a source's rows (`aimo.data.sources`), and choose among the right ones.

    A competition's `kind` of answer decides which are right. A completion that a column marks as wrong or
    unfinished is dropped, whatever its answer. AimoError if no row has a gold answer, or if none is kept.
    """
    if rows["answer"].fill_null("").eq("").all():
        raise AimoError("reject: no row has a gold answer to judge by; name its column with --answer-column")
    has_text = pl.col("solution").fill_null("") != ""
    dropped = Counter({"no completion": len(rows.remove(has_text))})
    rows = rows.filter(has_text & pl.col("problem").is_not_null())
    own, right = prepare.judge_solutions(rows, tags, kind=kind)
    right &= rows["correct"].fill_null(True)
    rows = rows.with_columns(key=prepare.key(rows["problem"]), own=own, right=right)
    counted = {"pass_rate": pl.col("right").mean(), "samples": pl.len().cast(pl.Int64)}
    rows = rows.with_columns(value.over("key").alias(name) for name, value in counted.items())
    problems = rows.unique("key", keep="first", maintain_order=True)
    problems = problems.select("problem", "answer", "pass_rate", "samples")

    def drop(where: pl.Expr, reason: str) -> None:
        nonlocal rows
        kept = rows.remove(where)
        dropped[reason] += len(rows) - len(kept)
        rows = kept

    drop(~pl.col("correct").fill_null(True), "unfinished, or marked wrong")
    drop(pl.col("own").is_null(), "no final answer")
    drop(~pl.col("right"), "another answer")
    drop(~pl.col("pass_rate").is_between(*wanted.pass_rate), "pass rate of its problem")
    drop(~pl.struct("key", "solution").is_first_distinct(), "same text")
    if wanted.max_per_problem:  # each completion's place within its problem, from 1
        length = pl.col("solution").str.len_chars()
        order = pl.int_range(pl.len()) if wanted.prefer == "first" else length
        places = order.rank("ordinal").over("key")
        if wanted.prefer == "diverse":
            ranks = [0] * len(rows)
            groups = rows.with_row_index().sort(length).group_by("key", maintain_order=True)
            for indices, texts in groups.agg("index", "solution").select("index", "solution").iter_rows():
                # Take the shortest, then always the one whose nearest predecessor shares the fewest word
                # triples (Jaccard): n² / 2 comparisons.
                triples = [decontaminate.shingles(text) for text in texts]
                left, nearest, chosen = list(range(len(texts))), [0.0] * len(texts), 0
                for place in range(1, len(texts) + 1):
                    ranks[indices[chosen]] = place
                    left.remove(chosen)
                    for i in left:
                        union = triples[i] | triples[chosen]
                        nearest[i] = max(nearest[i], len(triples[i] & triples[chosen]) / max(1, len(union)))
                    chosen = min(left, key=nearest.__getitem__, default=0)
            places = pl.lit(pl.Series(ranks))
        rows = rows.with_columns(place=places)
        drop(pl.col("place") > wanted.max_per_problem, "more than max_per_problem")
    if rows.is_empty():
        counts = ", ".join(f"{n} {reason}" for reason, n in dropped.items() if n)
        raise AimoError(f"reject: no completion is kept ({counts}); look at the teacher and at pass_rate")
    rows = rows.with_columns(generation="solution", correct="right")
    kept = rows.select("problem", "answer", "generation", "correct", "pass_rate", "samples")
    return Rejection(kept, +dropped, problems)


def write_kept(kept: pl.DataFrame, out: Path) -> None:
    """Write the kept rows to a .jsonl or .parquet file, whole or not at all."""
    partial = out.with_suffix(".partial")
    try:
        (kept.write_parquet if out.suffix == ".parquet" else kept.write_ndjson)(partial)
        partial.replace(out)
    except OSError as e:
        raise AimoError(f"--out {out}: {e.strerror or e}; take a file that can be written") from None
