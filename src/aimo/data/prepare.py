"""Clean, decontaminate, split, format and save the three sets of a run: `sft` and `grpo` to train on, `heldout` to measure.

Rows are polars tables with `problem`, `answer` and, for SFT, `solution`. Every dropped row is counted under its reason. Left
out: judging a solution's steps; only its final answer is checked.
"""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from aimo.config import Profile, Set, Source
from aimo.data import decontamination, sources
from aimo.errors import AimoError
from aimo.inference import answers, equivalence, prompts

Rows = list[dict[str, Any]]
SETS = ("heldout", "grpo", "sft")  # a text in two sets stays in the first
CHUNK = 50_000  # rows that are Python objects at one time
WORDS_TO_TELL = 8  # a language is not told from fewer


@dataclass
class Sets:
    """The three sets on their way, what every step dropped from them, and what was contaminated."""

    rows: dict[str, pl.DataFrame]
    read: dict[str, int] = field(default_factory=dict)
    """Rows that the sources held, corrupt lines among them."""
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    contaminated: list[dict[str, str]] = field(default_factory=list)
    """Set, problem, benchmark and overlap of each row that decontamination dropped."""

    def drop(self, name: str, where: pl.Expr | pl.Series, reason: str) -> None:
        """Drop the rows of a set `where` true, and count them."""
        before = len(self.rows[name])
        self.rows[name] = self.rows[name].remove(where)
        if before > len(self.rows[name]):
            self.dropped[name][reason] += before - len(self.rows[name])

    def check(self, name: str) -> None:
        """Refuse a set without rows."""
        if self.rows[name].is_empty():
            why = (
                ", ".join(f"{n} {reason}" for reason, n in self.dropped[name].items())
                or "the source is empty"
            )
            raise AimoError(f"data.{name}: no row is left ({why}); look at its columns and max_tokens")


def load(profile: Profile) -> Sets:
    """Read the sources of all three sets, with their columns mapped to `problem`, `answer` and `solution`."""
    sets = Sets({})
    for name in SETS:
        sets.rows[name], sets.dropped[name] = sources.load(
            getattr(profile.data, name), profile.seed, f"data.{name}"
        )
        sets.read[name] = len(sets.rows[name]) + sets.dropped[name].total()
        sets.check(name)
    return sets


def clean(sets: Sets, profile: Profile, tokenizer: Any) -> Sets:
    """Drop the rows that cannot be used, and those that the profile does not want, one step after the other."""
    for i, name in enumerate(SETS):
        wanted: Set = getattr(profile.data, name)
        rows = sets.rows[name].with_columns(pl.col("problem").str.strip_chars())
        sets.rows[name] = rows.with_columns(key=key(rows["problem"]))
        sets.drop(name, pl.col("problem").fill_null("") == "", "no problem text")
        sets.drop(name, ~pl.col("correct").fill_null(True), "solution not right or not complete")
        if wanted.language:
            sets.drop(
                name,
                in_other_language(sets.rows[name]["problem"], wanted.language),
                f"language is not {wanted.language}",
            )
        if "multiple_choice" in wanted.drop:
            sets.drop(name, is_multiple_choice(), "multiple choice")
        if "proof" in wanted.drop:
            sets.drop(name, is_proof(), "proof")
        sets.rows[name] = sets.rows[name].with_columns(read_answers(sets.rows[name]["answer"]))
        judged = pl.col("verification_info").is_null()  # by an answer, not by test cases
        if wanted.integer_answers:
            sets.drop(name, judged & pl.col("integer").is_null(), "answer is not an integer")
        sets.drop(name, judged & (pl.col("answer").fill_null("") == ""), "no answer")
        if wanted.answer_range:
            low, high = wanted.answer_range
            sets.drop(name, ~between(pl.col("integer"), low, high), f"answer is not within {low} to {high}")
        if wanted.pass_rate:
            lowest, highest = wanted.pass_rate
            sets.drop(
                name,
                ~between(pl.col("pass_rate"), lowest, highest),
                f"pass rate is not within {lowest} to {highest}",
            )
        for earlier in SETS[:i]:
            sets.drop(
                name, pl.col("key").is_in(sets.rows[earlier]["key"].implode()), f"same text as in {earlier}"
            )
        if name == "sft":
            if not wanted.verbatim:
                sets.rows[name] = sets.rows[name].with_columns(solution=thought())
            elif profile.prompt.prefill:
                tag = profile.prompt.think_start
                sets.drop(
                    name,
                    ~pl.col("solution").str.starts_with(tag).fill_null(False),
                    f"does not start with {tag.strip()}",
                )
            sets.drop(name, pl.col("solution").fill_null("") == "", "no worked solution")
        drop_long(sets, name, wanted, profile, tokenizer)
        choose_traces(sets, name, wanted)
        if wanted.near_duplicates:
            near = near_duplicates(sets.rows[name]["problem"], wanted.near_duplicates, profile.seed)
            sets.drop(name, near, "nearly the same text as another")
        sets.check(name)
    return sets


def decontaminate(sets: Sets, profile: Profile) -> Sets:
    """Drop training rows that share `data.ngram` words in a row with a benchmark, or with held-out problems that are not built in.

    Built-in problems share their wording by design: of them only equal texts count.
    """
    benchmarks: dict[str, list[str]] = {}
    for i, source in enumerate(profile.data.benchmarks):
        rows, _ = sources.load_source(source, profile.seed, f"data.benchmarks.{i}")
        benchmarks.setdefault(source.source, []).extend(rows["problem"].drop_nulls())
    held_out = sets.rows["heldout"].filter(pl.col("source") != "builtin")["problem"]
    if len(held_out):
        benchmarks["heldout"] = held_out.to_list()
    for name in ("grpo", "sft"):
        problems = sets.rows[name]["problem"]
        found = decontamination.contaminated(
            problems, benchmarks, profile.data.ngram, profile.data.near_ngrams
        )
        sets.contaminated += [
            {"set": name, "problem": problems[row], "benchmark": b, "overlap": o}
            for row, b, o in found.iter_rows()
        ]
        bad = np.zeros(len(problems), bool)
        bad[found["row"].to_numpy()] = True
        sets.drop(name, pl.Series(bad), "shares words with an evaluation set")
        sets.check(name)
    return sets


def key(problems: pl.Series) -> pl.Series:
    """A problem's text without case and spacing, as 64 bits: two that differ have one key once in 10^7 sets of a million."""
    return problems.str.to_lowercase().str.replace_all(r"\s+", " ").hash()


def between(value: pl.Expr, low: float, high: float) -> pl.Expr:
    """Whether a value is there and within low…high."""
    return value.is_between(low, high).fill_null(False)


def mapped(values: pl.Series, function: Callable[[str], Any], kind: Any) -> pl.Series:
    """A Python function of each text, null for null, few of them in memory at a time."""
    parts = [
        pl.Series(
            [None if text is None else function(text) for text in values[start : start + CHUNK]], dtype=kind
        )
        for start in range(0, len(values), CHUNK)
    ]
    return pl.concat(parts) if parts else pl.Series(dtype=kind)


def read_answers(texts: pl.Series) -> list[pl.Series]:
    """The final `answer` of each text, canonical where it is an `integer` (of 18 digits at most), as it stands otherwise."""
    answer = mapped(texts, lambda text: (answers.extract(text) or text).strip(), pl.String)
    integer = mapped(answer, lambda text: small(answers.to_integer(text)), pl.Int64)
    return [
        pl.select(pl.coalesce(integer.cast(pl.String), answer)).to_series().alias("answer"),
        integer.alias("integer"),
    ]


def small(number: int | None) -> int | None:
    """A number that a column of integers can hold."""
    return number if number is not None and abs(number) < 10**18 else None


def in_other_language(problems: pl.Series, language: str) -> pl.Series:
    """Whether a problem is surely not in a language (langid.py's model); formulas are not looked at."""
    from py3langid import classify

    def differs(problem: str) -> bool:
        words = re.sub(r"\$[^$]*\$|\\\w+|[^\w\s]|\d", " ", problem)
        enough = len(words.split()) >= WORDS_TO_TELL or not words.isascii()
        return enough and classify(words[:1000])[0] != language

    return mapped(problems, differs, pl.Boolean)


def is_multiple_choice() -> pl.Expr:
    """A question of that kind, or one that lists choices A, B and C."""
    listed = r"(?s)\(A\).*\(B\).*\(C\)|\n\s*A[.):].*\n\s*B[.):].*\n\s*C[.):]"
    return (pl.col("kind") == "MCQ").fill_null(False) | pl.col("problem").str.contains(listed)


def is_proof() -> pl.Expr:
    """A question of that kind, one whose answer says so, or one that asks to prove and for nothing else."""
    asks = pl.col("problem").str.contains(r"(?i)\b(prove|show) that\b")
    seeks = pl.col("problem").str.contains(
        r"(?i)\b(find|determine|compute|calculate|evaluate|what|how many)\b"
    )
    told = pl.col("kind").str.to_lowercase().str.contains("^proof$") | (
        pl.col("answer").str.to_lowercase() == "proof"
    )
    return told.fill_null(False) | (asks & ~seeks)


def thought() -> pl.Expr:
    """A worked solution without the answer line, think tags and calculator marks of the sets it comes from."""
    text = pl.col("solution").str.replace_all(r"<<[^<>]*>>|</?think>", "").str.strip_chars()
    return text.str.replace(r"\n####[^\n]*$", "").str.strip_chars()


def drop_long(sets: Sets, name: str, wanted: Set, profile: Profile, tokenizer: Any) -> None:
    """Drop rows beyond the limit or the quantile of tokens: of the prompt, and for SFT of prompt and completion."""
    limit = min(wanted.max_tokens or profile.model.max_length, profile.model.max_length)
    if name != "sft":
        limit = min(limit, profile.grpo.max_prompt_length)
    length = tokens(
        sets.rows[name], name, profile, tokenizer, limit if wanted.token_quantile is None else None
    )
    if wanted.token_quantile is not None and len(length):
        limit = min(limit, int(length.quantile(wanted.token_quantile, "lower") or 0))
    sets.drop(name, length > limit, f"longer than {limit} tokens")


def tokens(rows: pl.DataFrame, name: str, profile: Profile, tokenizer: Any, limit: int | None) -> pl.Series:
    """The tokens of each row's prompt, and for SFT of its completion; with a limit, exact only for rows near it.

    A text has no more tokens than bytes, and is not tokenised at all with more than 100 bytes a token.
    """

    def count(problems: list[str], solutions: list[str | None], gold: list[str]) -> list[int]:
        talks = [prompts.as_prompt(problem) for problem in problems]
        if name == "sft" and profile.data.sft.verbatim:
            talks = [
                [*t, {"role": "assistant", "content": s or ""}] for t, s in zip(talks, solutions, strict=True)
            ]
        elif name == "sft":
            talks = [
                t + prompts.as_completion(profile.prompt, s or "", a)
                for t, s, a in zip(talks, solutions, gold, strict=True)
            ]
        ids = tokenizer.apply_chat_template(talks, add_generation_prompt=name != "sft", return_dict=False)
        return [len(i) for i in ids]

    columns = ["problem", "solution", "answer"]
    size = sum(
        (
            rows[c].str.len_bytes().fill_null(0).cast(pl.Int64)
            for c in (columns if name == "sft" else columns[:1])
        ),
        pl.lit(0),
    )
    size = rows.select(size + count([""], [""], [""])[0] + 8).to_series()
    unknown = (size > limit) & (size < 100 * limit) if limit else pl.repeat(True, len(rows), eager=True)
    places = unknown.arg_true()
    found = [
        n
        for start in range(0, len(places), 1000)
        for n in count(*(rows[c][places[start : start + 1000]].to_list() for c in columns))
    ]
    return size.scatter(places, found) if found else size


def choose_traces(sets: Sets, name: str, wanted: Set) -> None:
    """Keep one row a problem, or all with different solutions."""
    if wanted.traces == "shortest" and name == "sft":
        rows = sets.rows[name]
        # Where no column says so, a solution's own answer must be the gold answer.
        own = mapped(rows["solution"], lambda text: answers.extract(text) or "", pl.String)
        unchecked = rows["correct"].is_null() & (own != "")
        verdicts = equivalence.are_correct(
            [f"\\boxed{{{a}}}" for a in own.filter(unchecked)], rows["answer"].filter(unchecked).to_list()
        )
        wrong = pl.repeat(False, len(rows), eager=True).scatter(
            unchecked.arg_true(), [v is not True for v in verdicts]
        )
        sets.drop(name, wrong, "solution ends in another answer")
        order = pl.col("solution").str.len_chars().rank("ordinal").over("key")
        sets.drop(name, order > 1, "a longer solution of the same problem")
    else:
        same = ["key", "solution"] if wanted.traces == "all" and name == "sft" else ["key"]
        sets.drop(name, ~pl.struct(same).is_first_distinct(), "duplicate")


def near_duplicates(problems: pl.Series, threshold: float, seed: int) -> pl.Series:
    """Whether an earlier problem shares `threshold` of the word triples (Jaccard) and all numbers; MinHash finds the candidates.

    Problems that differ in a number are different problems.
    """
    from rensa import RMinHash, RMinHashLSH

    # 64 hashes in 16 bands of 4: a pair at a Jaccard of 0.8 meets in some band with a chance of 0.9998.
    index = RMinHashLSH(threshold, 64, 16)

    def shingles(text: str) -> set[str]:
        words = decontamination.normalise(text, near=True).split()
        return set(decontamination.grams(words, 3)) or {" ".join(words)}

    near = []
    for i, text in enumerate(problems):
        mine, numbers = shingles(text), sorted(re.findall(r"\d+", text))
        sketch = RMinHash(64, seed)
        sketch.update(list(mine))
        candidates = [problems[j] for j in index.query(sketch)]
        near.append(
            any(
                sorted(re.findall(r"\d+", other)) == numbers
                and len(mine & theirs) >= threshold * len(mine | theirs)
                for other in candidates
                if (theirs := shingles(other))
            )
        )
        if not near[-1]:
            index.insert(i, sketch)
    return pl.Series(near, dtype=pl.Boolean)


def format(sets: Sets, profile: Profile) -> dict[str, pl.DataFrame]:
    """Rows as TRL's trainers read them: `prompt` and `completion` for SFT, `prompt` and `answer` for GRPO.

    With `test_split`, that share of a set's problems leaves it as `sft_test` or `grpo_test`, to evaluate on during training.
    """
    rng = random.Random(profile.seed)
    ready = {}
    for name in SETS:
        rows = sets.rows[name]
        prompt = pl.concat_list(turn("user", pl.col("problem"))).alias("prompt")
        if name == "sft":
            empty = pl.Series(
                [rng.random() < profile.data.sft.empty_thoughts for _ in range(len(rows))], dtype=pl.Boolean
            )
            work = pl.when(empty).then(pl.lit("")).otherwise(pl.col("solution"))
            text = pl.col("solution")
            if not profile.data.sft.verbatim:
                text = pl.format(
                    prompts.as_completion(profile.prompt, "{}", "{}")[0]["content"], work, pl.col("answer")
                )
            ready[name] = rows.select(prompt, pl.concat_list(turn("assistant", text)).alias("completion"))
        else:
            tests = ["verification_info"] if rows["verification_info"].null_count() < len(rows) else []
            ready[name] = rows.select(prompt, "answer", *tests)
        share = getattr(profile.data, name).test_split
        if share:
            keys = rows["key"].unique(maintain_order=True)
            aside = rows["key"].is_in(
                keys.sample(max(1, round(share * len(keys))), seed=profile.seed).implode()
            )
            ready[f"{name}_test"], ready[name] = ready[name].filter(aside), ready[name].filter(~aside)
    return ready


def turn(role: str, text: pl.Expr) -> pl.Expr:
    """One message of a conversation."""
    return pl.struct(pl.lit(role).alias("role"), text.alias("content"))


def save(ready: dict[str, pl.DataFrame], sets: Sets, profile: Profile, folder: Path) -> str:
    """One Parquet file a set, written whole or not at all, and a data card that `datasets` reads; returns the data's hash."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    for name, rows in ready.items():
        partial = folder / f"{name}.partial"
        rows.write_parquet(partial)
        digest.update(partial.read_bytes())
        partial.rename(folder / f"{name}.parquet")
    (folder / "README.md").write_text(card(ready, sets, profile, digest.hexdigest()))
    return digest.hexdigest()


def card(ready: dict[str, pl.DataFrame], sets: Sets, profile: Profile, digest: str) -> str:
    """The data card: sources, counts, filters, seed and hash, and the header by which `datasets.load_dataset` finds the sets."""
    header = {"configs": [{"config_name": name, "data_files": f"{name}.parquet"} for name in ready]}
    lines = ["| set | step | rows |", "| --- | --- | --- |"]
    for name in SETS:
        origins = getattr(profile.data, name).mixture or [getattr(profile.data, name)]
        lines.append(f"| {name} | read from {', '.join(s.source for s in origins)} | {sets.read[name]:,} |")
        lines += [f"| | dropped: {reason} | {n:,} |" for reason, n in sets.dropped[name].items()]
        lines += [f"| | {part} | {len(ready[part]):,} |" for part in ready if part.split("_")[0] == name]
    settings: dict[str, Any] = {name: changed(getattr(profile.data, name)) for name in SETS} | {
        "ngram": profile.data.ngram,
        "seed": profile.seed,
    }
    settings["benchmarks"] = [changed(source) for source in profile.data.benchmarks]
    return (
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n# Data of the profile {profile.profile}\n\n"
        + "\n".join(lines)
        + f"\n\nSHA-256 of the files in this order: `{digest}`\n\n```yaml\n{yaml.safe_dump(settings, sort_keys=False)}```\n"
    )


def changed(source: Source) -> dict[str, Any]:
    """The keys of a source that are not at their defaults."""
    plain = type(source)("")
    found = {k: v for k, v in asdict(source).items() if v != getattr(plain, k)}  # type: ignore[call-overload]
    if isinstance(source, Set) and source.mixture:
        found |= {"source": "mixture", "mixture": [changed(part) for part in source.mixture]}
    return found


def read(folder: Path, name: str) -> Rows:
    """A saved set."""
    return pl.read_parquet(folder / f"{name}.parquet").to_dicts()


def set_aside(folder: Path, name: str) -> Rows:
    """The rows that `test_split` set aside of a set; none where the profile has no such key."""
    return read(folder, f"{name}_test") if (folder / f"{name}_test.parquet").exists() else []
