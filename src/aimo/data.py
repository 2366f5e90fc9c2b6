"""Load, map, clean, format and save the three sets of a run: `sft` and `grpo` to train on, `heldout` to measure.

Rows are plain dicts with `problem`, `answer` (an integer) and, for SFT, `solution`. Every dropped row is counted under its
reason. Left out: mixtures, near duplicates and n-gram decontamination; an exact text in two sets is caught here.
"""

import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from aimo import answers, problems, prompts
from aimo.config import Profile, Source, resolve
from aimo.errors import AimoError

Rows = list[dict[str, Any]]
SETS = ("heldout", "grpo", "sft")  # a text in two sets stays in the first


def load(profile: Profile) -> dict[str, Rows]:
    """Read the sources of all three sets, with their columns mapped to `problem`, `answer` and `solution`."""
    return {name: load_source(getattr(profile.data, name), profile.seed, name) for name in SETS}


def load_source(source: Source, seed: int, name: str) -> Rows:
    """Read one source; AimoError names a file or column that is not there."""
    if source.source == "builtin":
        assert source.rows is not None
        drawn = problems.generate(source.rows, source.split, f"{name}-{seed}")  # type: ignore[arg-type]
        return [{"problem": p.problem, "answer": str(p.answer), "solution": p.solution} for p in drawn]
    table = read_table(source, name)
    wanted = {k: v for k, v in vars(source.columns).items() if v}
    for role, column in wanted.items():
        if column not in table.columns:
            have = ", ".join(table.columns)
            raise AimoError(f"data.{name}.columns.{role}: {source.source} has no column {column!r}; it has {have}")
    if source.rows is not None and source.rows < len(table):
        table = table.sample(source.rows, seed=seed)
    return table.select(**{role: pl.col(column) for role, column in wanted.items()}).to_dicts()


def read_table(source: Source, name: str) -> pl.DataFrame:
    """A file, a folder saved by `datasets`, or a hub dataset as one table."""
    path = resolve(source.source)
    readers: dict[str, Callable[[Path], pl.DataFrame]] = {".csv": pl.read_csv, ".jsonl": pl.read_ndjson, ".parquet": pl.read_parquet}
    if path.suffix in readers or path.is_dir():
        if not path.exists():
            raise AimoError(f"data.{name}.source: {path} does not exist")
        try:
            if path.suffix in readers:
                return readers[path.suffix](path)
            import datasets

            saved = datasets.load_from_disk(str(path))
            return (saved[source.split] if isinstance(saved, datasets.DatasetDict) else saved).to_polars()
        except (pl.exceptions.PolarsError, FileNotFoundError, KeyError) as e:
            raise AimoError(f"data.{name}.source: {path} cannot be read: {' '.join(str(e).split())}") from None
    import datasets

    try:
        return datasets.load_dataset(source.source, source.subset, split=source.split).to_polars()
    except Exception as e:  # the hub client raises many kinds
        reason = " ".join(str(e).split())[:200]
        raise AimoError(f"data.{name}.source: {source.source!r} is no file here and no dataset on the hub ({reason})") from None


def clean(rows: dict[str, Rows], profile: Profile, tokenizer: Any) -> tuple[dict[str, Rows], dict[str, Counter[str]]]:
    """Keep rows with a problem, an integer answer, a text of their own and a fitting length; count the rest by reason."""
    kept: dict[str, Rows] = {name: [] for name in SETS}
    dropped: dict[str, Counter[str]] = {name: Counter() for name in SETS}
    owner: dict[str, str] = {}
    for name in SETS:
        for row in rows[name]:
            row, reason = check(row, name, owner, profile, tokenizer)
            if reason:
                dropped[name][reason] += 1
            else:
                owner[row["problem"]] = name
                kept[name].append(row)
        if not kept[name]:
            why = ", ".join(f"{n} {reason}" for reason, n in dropped[name].items()) or "the source is empty"
            raise AimoError(f"data.{name}: no row is left ({why}); look at its columns and max_tokens")
    return kept, dropped


def check(row: dict[str, Any], name: str, owner: dict[str, str], profile: Profile, tokenizer: Any) -> tuple[dict[str, Any], str | None]:
    """One row cleaned, and the reason to drop it, if any."""
    problem = str(row["problem"] or "").strip()
    answer_text = str("" if row["answer"] is None else row["answer"])
    answer = answers.to_integer(answers.extract(answer_text) or answer_text)
    row = {"problem": problem, "answer": answer, "solution": thought(str(row.get("solution") or ""))}
    if not problem:
        return row, "no problem text"
    if answer is None:
        return row, "answer is not an integer"
    if problem in owner:
        return row, "duplicate" if owner[problem] == name else f"same text as in {owner[problem]}"
    if name == "sft" and not row["solution"]:
        return row, "no worked solution"
    limit = min(getattr(profile.data, name).max_tokens or profile.model.max_length, profile.model.max_length)
    if name != "sft":
        limit = min(limit, profile.grpo.max_prompt_length)
    if tokens(row, name, profile, tokenizer) > limit:
        return row, f"longer than {limit} tokens"
    return row, None


def thought(solution: str) -> str:
    """A worked solution without the answer line, think tags and calculator marks of the sets it comes from."""
    solution = re.sub(r"<<[^<>]*>>|</?think>", "", solution)
    return re.sub(r"\n####.*\Z", "", solution.strip()).strip()


def tokens(row: dict[str, Any], name: str, profile: Profile, tokenizer: Any) -> int:
    """Tokens of the prompt, and for SFT of prompt and completion."""
    messages = prompts.as_prompt(row["problem"])
    if name == "sft":
        messages = messages + prompts.as_completion(profile.prompt, row["solution"], row["answer"])
    return len(tokenizer.apply_chat_template(messages, add_generation_prompt=name != "sft", return_dict=False))


def format(rows: dict[str, Rows], profile: Profile) -> dict[str, Rows]:
    """Rows as TRL's trainers read them: `prompt` and `completion` for SFT, `prompt` and `answer` for GRPO."""
    rng = random.Random(profile.seed)
    ready = {
        name: [{"prompt": prompts.as_prompt(row["problem"]), "answer": str(row["answer"])} for row in rows[name]]
        for name in ("grpo", "heldout")
    }
    ready["sft"] = []
    for row in rows["sft"]:
        work = "" if rng.random() < profile.data.sft.empty_thoughts else row["solution"]
        completion = prompts.as_completion(profile.prompt, work, row["answer"])
        ready["sft"].append({"prompt": prompts.as_prompt(row["problem"]), "completion": completion})
    return ready


def save(rows: dict[str, Rows], folder: Path) -> None:
    """One Parquet file a set, written whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in rows.items():
        partial = folder / f"{name}.partial"
        pl.DataFrame(part).write_parquet(partial)
        partial.rename(folder / f"{name}.parquet")


def read(folder: Path, name: str) -> Rows:
    """A saved set."""
    return pl.read_parquet(folder / f"{name}.parquet").to_dicts()
