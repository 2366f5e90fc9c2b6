"""Distil a teacher: sample several completions of each problem, and keep the right ones.

`distil` writes each sample to a .jsonl file as it ends; the same call continues the file. `reject` judges
every completion by its final answer and chooses among the right ones.
"""

import asyncio
import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import yaml

from aimo.config import Distil, Reject, Source
from aimo.config.profile import STAGES
from aimo.data import decontaminate, prepare, sources
from aimo.data.model_servers import SampleError, Servers
from aimo.inference import vllm_process
from aimo.inference.answers import AnswerKind
from aimo.inference.competitions import Competition
from aimo.inference.errors import AimoError
from aimo.inference.model_folder import identity
from aimo.inference.prompts import BackgroundLoop, sample_seed
from aimo.inference.settings import PUBLIC, Tags, resolve_settings
from aimo.inference.storage import SampleFile, read_json, write_json
from aimo.run import hub
from aimo.run.runs import Run, again

FAILURES = 100  # failed samples in a row that end the run
REPORT_S = 0.5
# The keys of `distil` that determine a sample.
SAMPLED_BY = ("model", "system", "prompt_template", "temperature", "top_p", "max_tokens")


@dataclass
class Tally:
    """How far a run is, and what it has cost."""

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
        """In the currency of the prices."""
        return (self.prices[0] * self.prompt_tokens + self.prices[1] * self.completion_tokens) / 1e6

    @property
    def left(self) -> str:
        """The time that is left, at the speed so far."""
        ended = self.done + self.failed.total()
        seconds = (time.monotonic() - self.started) / max(ended, 1) * (self.samples - self.known - ended)
        return f"about {timedelta(seconds=round(seconds))} left" if ended else "time left not known yet"

    def __str__(self) -> str:
        seconds = max(time.monotonic() - self.started, 1e-9)
        parts = [f"{self.known + self.done:,} of {self.samples:,} samples"]
        parts += [f"{self.failed.total():,} failed"] * bool(self.failed)
        parts += [f"{self.prompt_tokens + self.completion_tokens:,} tokens"]
        parts += [f"{self.completion_tokens / seconds:,.0f} tokens/s"]
        parts += [f"cost {self.cost:,.2f}"] * any(self.prices)
        return ", ".join(parts)


Report = Callable[[Tally], None]
Heard = Callable[[str, str, str], None]


def distil_in_run(run: Run, so_far: Any = None) -> Tally:
    """As `distil`, for a run: into its folder, with its seed, tags and progress.

    `so_far` has `add`, which takes problem, answer and completion of each sample; it is shown with the bar.
    vLLM serves the teacher here where `distil.api_addr` is empty.
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
            note = "; ".join(filter(None, [str(tally), str(so_far or "")]))
            run.progress(tally.known + tally.done + tally.failed.total(), tally.samples, note)

        seed, tags = run.profile.seed, run.profile.prompt.tags
        options: dict[str, Any] = {"heard": so_far.add} if so_far else {}
        given = wanted, run.folder / "samples.jsonl", seed, report, tags, weights
        return distil(*given, rules=run.profile.rules, **options)


def distil(
    wanted: Distil,
    out: Path,
    seed: int,
    report: Report,
    tags: Tags = PUBLIC[0],
    weights: str = "",
    heard: Heard = lambda problem, answer, completion: None,
    rules: Competition | None = None,
) -> Tally:
    """Ask for every sample that the file does not have yet, and return what was done.

    `report` is called twice a second. `tags` enclose the thought in `generation`. `weights` identifies a
    teacher that is served here; other teachers are known by their name. `heard` gets problem, answer and
    completion of each sample whose answer is known. A file may be laid out as the test file of a competition
    with `rules`. One failed sample costs that sample alone. AimoError when
    every sample fails, no server answers any more, or the disk is full; what is written stays. The memory is
    that of the problems, whatever the number of samples.
    """
    rows = distilled_problems(wanted, seed, rules)
    loop = BackgroundLoop()
    try:
        return loop.run(ask_all(wanted, rows, out, seed, report, tags, weights, heard))
    except KeyboardInterrupt:
        raise AimoError(f"interrupted; {again()} to continue") from None
    finally:
        loop.cancel_all()
        loop.stop()


def distilled_problems(wanted: Distil, seed: int, rules: Competition | None = None) -> pl.DataFrame:
    """Return the problems of a source or mixture: one row for each different `id`, or else text."""
    rows, _ = sources.load_mixture(wanted, seed, "distil", rules)
    rows = rows.with_columns(id=pl.coalesce("id", "problem")).select("id", "problem", "answer", "source")
    rows = rows.drop_nulls("problem").unique("id", keep="first", maintain_order=True)
    if rows.is_empty():
        raise AimoError(f"distil: {wanted.source} holds no problem; look at its columns")
    return rows


async def ask_all(
    wanted: Distil,
    rows: pl.DataFrame,
    out: Path,
    seed: int,
    report: Report,
    tags: Tags,
    weights: str,
    heard: Heard,
) -> Tally:
    """Ask for the missing samples, `max_concurrent` at a time, and append each to the file as it ends."""
    limits = (wanted.max_concurrent, wanted.timeout, wanted.retries)
    async with Servers(wanted.api_addr, wanted.model, *limits) as servers:
        with SampleFile(out, "output_file") as file:
            # The settings that determine the samples stand beside them; others are refused.
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
            places = {key: row for row, key in enumerate(keys)}
            for sample in file:
                row, number = places.get(str(sample.get("key"))), sample.get("sample")
                if row is not None and isinstance(number, int) and 0 <= number < wanted.num_generations:
                    missing[row, number] = False
            jobs = ((int(row), int(number)) for row, number in zip(*np.nonzero(missing), strict=True))
            left = int(missing.sum())
            tally = Tally(missing.size, missing.size - left, (wanted.input_price, wanted.output_price))

            async def worker() -> None:
                for row, number in jobs:  # one iterator for all workers
                    known = rows.row(row, named=True)
                    prompt = wanted.prompt_template.replace("{prompt}", known["problem"])
                    system = [{"role": "system", "content": wanted.system}] if wanted.system else []
                    body: dict[str, Any] = {"messages": [*system, {"role": "user", "content": prompt}]}
                    body |= {key: getattr(wanted, key) for key in ("temperature", "top_p", "max_tokens")}
                    body["seed"] = sample_seed(seed, known["problem"], number)
                    try:
                        reply = await servers.ask(body)
                        if reply.text.strip().startswith(prompt.strip()) and not reply.reasoning:
                            raise SampleError("the completion begins with the prompt; serve a chat model")
                    except SampleError as e:
                        tally.failed[str(e)[:200]] += 1
                        tally.failures_in_a_row += 1
                        if tally.failures_in_a_row >= FAILURES:  # others may fail before they are cancelled
                            fault = f"{FAILURES} samples in a row failed: {e}; look at the servers' logs"
                            raise AimoError(fault) from None
                        continue
                    text = reply.text
                    if reply.reasoning:
                        thought = reply.reasoning.strip("\n")
                        text = f"{tags.think_start}\n{thought}\n{tags.think_end}\n\n{text.lstrip()}"
                    elif tags.think_end in text and tags.think_start not in text:  # the prompt ended in it
                        text = tags.think_start + text
                    del known["id"]
                    file.append(
                        {"key": keys[row], "sample": number, **known, "generation": text}
                        | {"complete": reply.finish_reason == "stop", "finish_reason": reply.finish_reason}
                        | {key: getattr(reply, key) for key in ("prompt_tokens", "completion_tokens")}
                        | {"model": servers.model, "seed": body["seed"]}
                    )
                    if known["answer"]:
                        heard(known["problem"], known["answer"], text)
                    tally.done += 1
                    tally.failures_in_a_row = 0
                    tally.prompt_tokens += reply.prompt_tokens
                    tally.completion_tokens += reply.completion_tokens

            async def watch() -> None:
                while True:
                    report(tally)
                    await asyncio.sleep(REPORT_S)

            watching = asyncio.create_task(watch())
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(wanted.max_concurrent, left)):
                        group.create_task(worker())
            except BaseExceptionGroup as e:
                raise e.exceptions[0] from None
            finally:
                watching.cancel()
    report(tally)
    if tally.failed and not tally.done:
        fault = tally.failed.most_common(1)[0][0]
        raise AimoError(f"every sample failed: {fault}; look at the servers' logs")
    return tally


def push_samples(out: Path, repo: str, wanted: Distil, tally: Tally) -> str:
    """Push the file with a card to a dataset of the hub; return its address."""
    made = read_json(out.with_suffix(".settings.json"), "run `aimo distil` again")
    configs = [{"config_name": "default", "data_files": "train.jsonl"}]
    header = yaml.safe_dump({"configs": configs, "tags": ["aimo", "distilled"]}, sort_keys=False)
    origins = ", ".join(source.source for source in wanted.mixture or [wanted])
    counts = f"{tally.known + tally.done:,} of {tally.samples:,} samples, {wanted.num_generations} a problem"
    card = (
        f"---\n{header}---\n\n# Completions of {made['model']}\n\n"
        f"{counts}; problems from {origins}. Made by `aimo distil`. None is judged: `aimo reject` keeps the "
        "right ones.\n\n"
        f"```yaml\n{yaml.safe_dump(made, sort_keys=False, allow_unicode=True)}```\n"
    )
    return hub.push_dataset(repo, {"README.md": card.encode(), "train.jsonl": out})


class Rejection(NamedTuple):
    """What is kept of a set, and what is known of its problems."""

    # `problem`, `answer`, `generation`, `correct`, `pass_rate` and `samples` of each completion to keep
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
    """As `reject`, for what the stage `distil` has sampled; writes the stage's product."""
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

    A competition's `kind` of answers says which are right.
    A completion that a column marks as wrong or unfinished is not kept, whatever its answer. AimoError when
    no row has a gold answer, or none is kept.
    """
    if rows["answer"].fill_null("").eq("").all():
        raise AimoError("reject: no row has a gold answer to judge by; name its column with --answer-column")
    found = rows.select(pl.col("solution").fill_null("") != "").to_series()
    rows = rows.filter(found & rows["problem"].is_not_null())
    own, right = prepare.judge_solutions(rows, tags, kind=kind)
    key = prepare.key(rows["problem"])
    rows = rows.with_columns(key=key, own=own, right=right & rows["correct"].fill_null(True))
    counted = {"pass_rate": pl.col("right").mean(), "samples": pl.len().cast(pl.Int64)}
    rows = rows.with_columns(value.over("key").alias(name) for name, value in counted.items())
    about = ["problem", "answer", "pass_rate", "samples"]
    problems = rows.unique("key", keep="first", maintain_order=True).select(about)
    dropped = Counter({"no completion": int((~found).sum())})

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
    most = wanted.max_per_problem or len(rows)
    rows = rows.with_columns(order=preference_ranks(rows, wanted.prefer))
    drop(pl.col("order") > most, "more than max_per_problem")
    if rows.is_empty():
        counts = ", ".join(f"{n} {reason}" for reason, n in dropped.items() if n)
        raise AimoError(f"reject: no completion is kept ({counts}); look at the teacher and at pass_rate")
    rows = rows.with_columns(generation="solution", correct="right")
    chosen = rows.select("problem", "answer", "generation", "correct", "pass_rate", "samples")
    return Rejection(chosen, +dropped, problems)


def preference_ranks(rows: pl.DataFrame, prefer: str) -> pl.Series:
    """(n,) the place of each completion among those of its problem, from 1, in the order of preference.

    `diverse` takes the shortest text, then always the one that shares the fewest word triples (Jaccard) with
    those before: n² / 2 comparisons for a problem.
    """
    length = pl.col("solution").str.len_chars()
    if prefer != "diverse":
        order = pl.int_range(pl.len()) if prefer == "first" else length
        return rows.select(order.rank("ordinal").over("key").cast(pl.Int64)).to_series()
    places = [0] * len(rows)
    groups = rows.with_row_index().sort(length).group_by("key", maintain_order=True)
    for indices, texts in groups.agg("index", "solution").select("index", "solution").iter_rows():
        triples = [decontaminate.shingles(text) for text in texts]
        left, nearest, next_one = list(range(len(texts))), [0.0] * len(texts), 0
        for place in range(1, len(texts) + 1):
            places[indices[next_one]] = place
            left.remove(next_one)
            for i in left:
                union = triples[i] | triples[next_one]
                nearest[i] = max(nearest[i], len(triples[i] & triples[next_one]) / max(1, len(union)))
            next_one = min(left, key=nearest.__getitem__, default=0)
    return pl.Series(places, dtype=pl.Int64)


def write_kept(kept: pl.DataFrame, out: Path) -> None:
    """Write the kept rows to a .jsonl or .parquet file, whole or not at all."""
    partial = out.with_suffix(".partial")
    try:
        (kept.write_parquet if out.suffix == ".parquet" else kept.write_ndjson)(partial)
        partial.replace(out)
    except OSError as e:
        raise AimoError(f"--out {out}: {e.strerror or e}; take a file that can be written") from None
