"""Clean, decontaminate, format and save the sets of a run: `sft` and `grpo` to train, `heldout` to measure.

Rows are polars tables with `problem`, `answer` and, for SFT, `solution` (`aimo.data.sources`). Every dropped
row is counted by reason. A profile may have only some of the three sets.
"""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from aimo.config import Profile, Set, changed
from aimo.config.profile import STAGES
from aimo.data import decontaminate, sources
from aimo.inference import prompts
from aimo.inference.answers import AnswerKind, extract, to_integer
from aimo.inference.errors import AimoError
from aimo.inference.files import CHUNK
from aimo.inference.judge import are_equal
from aimo.inference.settings import Tags
from aimo.inference.storage import write_whole

Rows = list[dict[str, Any]]
SETS = ("heldout", "grpo", "sft")  # a text in two sets stays in the first
BATCH = 1000  # rows that are tokenised at a time
BYTES_A_TOKEN = 100  # a text with more per token of the limit is too long; its tokens are not counted

ANY = pl.lit(True)
WORDS_TO_TELL = 8  # fewer words do not identify a language
CHOICES = r"(?s)\(A\).*\(B\).*\(C\)|\n\s*A[.):].*\n\s*B[.):].*\n\s*C[.):]"
# A question whose `kind` says so, or one that lists choices A, B and C.
IS_MULTIPLE_CHOICE = (pl.col("kind") == "MCQ").fill_null(False) | pl.col("problem").str.contains(CHOICES)
# A question whose `kind` or answer says so, or one that asks only for a proof.
IS_PROOF = pl.any_horizontal(pl.col("kind", "answer").str.to_lowercase() == "proof").fill_null(False) | (
    pl.col("problem").str.contains(r"(?i)\b(prove|show) that\b")
    & ~pl.col("problem").str.contains(r"(?i)\b(find|determine|compute|calculate|evaluate|what|how many)\b")
)


@dataclass
class Sets:
    """The sets during preparation, and counts of dropped and repaired rows."""

    rows: dict[str, pl.DataFrame] = field(default_factory=dict)
    read: dict[str, int] = field(default_factory=dict)  # rows in the sources, including corrupt lines
    dropped: dict[str, Counter[str]] = field(default_factory=dict)  # rows of each set, by reason
    # Texts of each set that were changed during reading or are odd, by oddity.
    repaired: dict[str, Counter[str]] = field(default_factory=dict)
    # Set, problem, benchmark and overlap of each row that decontamination dropped.
    contaminated: list[dict[str, str]] = field(default_factory=list)

    def drop(self, name: str, where: pl.Expr | pl.Series, reason: str) -> None:
        before = len(self.rows[name])
        self.rows[name] = self.rows[name].remove(where)
        if before > len(self.rows[name]):
            self.dropped[name][reason] += before - len(self.rows[name])

    def check(self, name: str) -> None:
        if self.rows[name].is_empty():
            counts = ", ".join(f"{n} {reason}" for reason, n in self.dropped[name].items())
            why = counts or "the source is empty"
            raise AimoError(f"data.{name}: no row is left ({why}); look at its columns and max_tokens")


def sets_of(profile: Profile) -> dict[str, Set]:
    """Return the sets that a profile has, by name. AimoError if it has no section `data`."""
    if profile.data is None:
        raise AimoError(f"profile {profile.profile}: has no section data; add one with the sets to prepare")
    return {name: getattr(profile.data, name) for name in SETS if getattr(profile.data, name)}


def load_sets(profile: Profile, run_dir: Path | None = None) -> Sets:
    """Read the sources of all sets, with their columns mapped to `problem`, `answer` and `solution`.

    The source `distil` reads what that stage has kept in the run's folder.
    """
    sets = Sets()
    for name, wanted in sets_of(profile).items():
        if run_dir:
            kept: dict[str, Any] = {
                "source": str(run_dir / STAGES["distil"].product),
                "preset": "aimo reject",
            }
            parts = [replace(part, **kept) if part.source == "distil" else part for part in wanted.mixture]
            wanted = replace(wanted, mixture=parts, **(kept if wanted.source == "distil" else {}))
        sets.rows[name], notes = sources.load_mixture(wanted, profile.seed, f"data.{name}", profile.rules)
        sets.dropped[name], sets.repaired[name] = notes.dropped, notes.repaired
        sets.read[name] = len(sets.rows[name]) + sets.dropped[name].total()
        sets.check(name)
    return sets


def clean_sets(sets: Sets, profile: Profile, tokenizer: Any) -> Sets:
    """Drop rows that cannot be used, and rows that the profile excludes."""
    tags, kind, earlier_sets = profile.prompt, profile.answer_kind, dict[str, Set]()
    for name, wanted in sets_of(profile).items():
        drop = partial(sets.drop, name)

        # The problem: its text, language and kind, and the verdict on its solution.
        problems = sets.rows[name]["problem"].str.strip_chars()
        sets.rows[name] = sets.rows[name].with_columns(problem=problems, key=key(problems))
        drop(pl.col("problem").fill_null("") == "", "no problem text")
        drop(~pl.col("correct").fill_null(True), "solution not right or not complete")
        if wanted.language:
            foreign = in_other_language(sets.rows[name]["problem"], wanted.language)
            drop(foreign, f"language is not {wanted.language}")
        if "multiple_choice" in wanted.drop:
            drop(IS_MULTIPLE_CHOICE, "multiple choice")
        if "proof" in wanted.drop:
            drop(IS_PROOF, "proof")

        # The gold answer, reduced to its final answer, and the pass rate.
        answers = sets.rows[name]["answer"]
        if kind:  # if the solution stands for the answer, take its final one
            solved = (answers == sets.rows[name]["solution"]).fill_null(False)
            stated = answers.filter(solved).map_elements(lambda text: kind.find(text, tags), pl.String)
            answers = answers.scatter(solved.arg_true(), stated)
        sets.rows[name] = sets.rows[name].with_columns(read_answers(answers, tags, kind))
        by_answer = pl.col("verification_info").is_null()  # and not by test cases
        if kind:
            given = pl.col("answer").fill_null("") != ""
            taken = sets.rows[name]["answer"].map_elements(
                lambda text: kind.gold(text) is not None, pl.Boolean
            )
            drop(by_answer & given & ~taken.fill_null(False), f"answer is no {kind.noun}")
        elif wanted.integer_answers:
            drop(by_answer & pl.col("integer").is_null(), "answer is not an integer")
        drop(by_answer & (pl.col("answer").fill_null("") == ""), "no answer")
        bounds = (("integer", "answer", wanted.answer_range), ("pass_rate", "pass rate", wanted.pass_rate))
        for column, what, limits in bounds:
            if limits:
                outside = ~pl.col(column).is_between(*limits).fill_null(False)
                drop(outside, f"{what} is not within {limits[0]} to {limits[1]}")

        for earlier, other in earlier_sets.items():
            # If GRPO takes all of a source that SFT shares, this would leave SFT nothing.
            origins = [(s.source, s.subset, s.split, s.revision) for s in (other, wanted)]
            whole = other.source != "builtin" and not other.mixture and other.rows is None
            if earlier != "grpo" or not whole or other.weight < 1 or origins[0] != origins[1]:
                known = pl.col("key").is_in(sets.rows[earlier]["key"].implode())
                drop(known, f"same text as in {earlier}")
        earlier_sets[name] = wanted

        # The worked solution, which becomes a thought unless it is verbatim.
        if name == "sft":
            unjudged = pl.col("correct").is_null() & (pl.col("answer").fill_null("") != "")
            own, right = judge_solutions(sets.rows[name], tags, unjudged, kind)
            drop(own.is_not_null() & ~right, "solution ends in another answer")
            if not wanted.verbatim:
                solutions = per_chunk(sets.rows[name]["solution"], bare_thoughts)
                sets.rows[name] = sets.rows[name].with_columns(solution=solutions)
            elif tags.prefill:
                begins = pl.col("solution").str.starts_with(tags.think_start).fill_null(False)
                drop(~begins, f"does not start with {tags.think_start.strip()}")
            drop(pl.col("solution").fill_null("") == "", "no worked solution")

        long, limit = too_long(sets.rows[name], name, profile, tokenizer)
        drop(long, f"longer than {limit} tokens")

        # One row per problem, or all with different solutions.
        if wanted.traces == "shortest":
            order = pl.col("solution").str.len_chars().rank("ordinal").over("key")
            drop(order > 1, "a longer solution of the same problem")
        else:
            same = ["key", "solution"] if wanted.traces == "all" else ["key"]
            drop(~pl.struct(same).is_first_distinct(), "duplicate")
        if wanted.near_duplicates:
            problems = sets.rows[name]["problem"]
            near = decontaminate.near_duplicates(problems, wanted.near_duplicates, profile.seed)
            drop(near, "nearly the same text as another")
        sets.check(name)
    return sets


def told(sets: Sets) -> dict[str, str]:
    """Return a line for each set: how many rows were kept of those read, and why others were dropped."""
    found = {}
    for name, rows in sets.rows.items():
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in sets.dropped[name].items() if n)
        kept = f"{len(rows):,} of {sets.read[name]:,} rows kept"
        found[name] = f"{kept}; dropped: {reasons}" if reasons else kept
    return found


def too_long(rows: pl.DataFrame, name: str, profile: Profile, tokenizer: Any) -> tuple[pl.Series, int | None]:
    """Return whether each row (n,) is longer than the set's limit, and the limit in tokens (or None).

    The prompt counts in the chat template; for `sft`, the completion counts too. The limit is the smallest of
    the set's `max_tokens` and `token_quantile`, and of what its stage can take.
    """
    wanted = getattr(profile.data, name)
    limits = [wanted.max_tokens]
    if wanted.overlong == "drop":
        limits.append(profile.model.max_length)
    if name != "sft":
        limits += [stage.max_prompt_length for stage in (profile.grpo, profile.opd) if stage]
    limit: Any = min((tokens for tokens in limits if tokens is not None), default=None)

    def count(rows: pl.DataFrame) -> list[int]:
        talks = [prompts.as_prompt(problem) for problem in rows["problem"]]
        if name == "sft":
            said = zip(talks, rows["solution"].fill_null(""), rows["answer"], strict=True)
            for talk, solution, answer in said:
                whole = [{"role": "assistant", "content": solution}]
                talk += whole if wanted.verbatim else prompts.as_completion(profile.prompt, solution, answer)
        ids = tokenizer.apply_chat_template(talks, add_generation_prompt=name != "sft", return_dict=False)
        return [len(row) for row in ids]

    if wanted.token_quantile is None and limit is None:
        return pl.repeat(False, len(rows), eager=True), None
    # A text has no more tokens than bytes, so most rows are judged by their bytes.
    texts = ["problem", "solution", "answer"] if name == "sft" else ["problem"]
    around = count(pl.DataFrame({"problem": [""], "solution": [""], "answer": [""]}))[0] + 8  # tags, template
    sizes = [pl.col(column).str.len_bytes().fill_null(0).cast(pl.Int64) for column in texts]
    tokens = rows.select(pl.sum_horizontal(around, *sizes)).to_series()
    unknown = tokens > -1
    if wanted.token_quantile is None:
        unknown = (tokens > limit) & (tokens < BYTES_A_TOKEN * limit)
    places = unknown.arg_true()
    for start in range(0, len(places), BATCH):
        part = places[start : start + BATCH]
        tokens = tokens.scatter(part, count(rows[part]))
    if wanted.token_quantile is not None:
        quantile = int(tokens.quantile(wanted.token_quantile, "lower") or 0)
        limit = min(limit or quantile, quantile)
    return tokens > limit, limit


# ---- what cleaning inspects ----


def key(problems: pl.Series) -> pl.Series:
    """Return a 64-bit hash (n,) of each problem, without case and spacing.

    Among a million different problems, two share a hash with a probability below 10^-7.
    """
    return per_chunk(problems, lambda part: part.str.to_lowercase().str.replace_all(r"\s+", " ").hash())


def per_chunk(values: pl.Series, function: Callable[[pl.Series], pl.Series]) -> pl.Series:
    """Return a function of a series (n,), applied to CHUNK rows at a time so that few are in memory twice."""
    starts = range(0, len(values) or 1, CHUNK)
    return pl.concat([function(values[start : start + CHUNK]) for start in starts])


def read_answers(texts: pl.Series, tags: Tags, kind: AnswerKind | None = None) -> list[pl.Series]:
    """Return the final `answer` (n,) of each text, and its `integer` (n,) of at most 18 digits, or null.

    An answer that is such an integer is written as one; other answers are unchanged. With a competition's
    `kind`, a text that is not an answer may end in one.
    """

    def final(text: str) -> str:
        value = kind.gold(text.strip()) if kind and "\\boxed" not in text else None
        if value is None:
            text = extract(text, tags) or text
            value = kind.gold(text.strip()) if kind else None
        return str(value) if kind and kind.is_exact and value is not None else text.strip()

    answers = texts.map_elements(final, pl.String)
    found = [to_integer(answer) if not kind or kind.type is int else None for answer in answers]
    small = [number if number is not None and abs(number) < 10**18 else None for number in found]
    integers = pl.Series("integer", small, pl.Int64)
    return [answers.zip_with(integers.is_null(), integers.cast(pl.String)).alias("answer"), integers]


def judge_solutions(
    rows: pl.DataFrame, tags: Tags, judged: pl.Expr = ANY, kind: AnswerKind | None = None
) -> tuple[pl.Series, pl.Series]:
    """Return the final answer (n,) of each `solution` that is `judged`, and whether it is the gold one (n,).

    A competition's `kind` finds and compares the answers. A solution without a final answer, such as a
    derivation in prose, gets null and is not right.
    """
    find, golds = kind.find if kind else extract, rows["answer"]
    texts = rows.select(pl.when(judged).then(pl.col("solution"))).to_series()
    own = texts.map_elements(lambda text: find(text, tags), return_dtype=pl.String)
    both = (own.fill_null("") != "") & (golds.fill_null("") != "")
    verdicts = are_equal(own.filter(both).to_list(), golds.filter(both).to_list(), kind)
    right = pl.repeat(False, len(rows), eager=True).scatter(both.arg_true(), [v is True for v in verdicts])
    return own, right


def in_other_language(problems: pl.Series, language: str) -> pl.Series:
    """Return whether each problem (n,) is certainly not in a language (langid.py's model), formulas aside."""
    from py3langid import classify  # loads a model

    def differs(problem: str) -> bool:
        words = re.sub(r"\$[^$]*\$|\\\w+|[^\w\s]|\d", " ", problem)
        enough = len(words.split()) >= WORDS_TO_TELL or not words.isascii()
        return enough and classify(words[:1000])[0] != language

    return problems.map_elements(differs, pl.Boolean)


def bare_thoughts(solutions: pl.Series) -> pl.Series:
    """Return solutions (n,) without the answer line, think tags and calculator marks of public sets."""
    text = solutions.str.replace_all(r"<<[^<>]*>>|</?think>", "").str.strip_chars()
    return text.str.replace(r"\n####[^\n]*$", "").str.strip_chars()


# ---- from clean sets to files ----


def decontaminate_sets(sets: Sets, profile: Profile) -> Sets:
    """Drop training rows that share `data.ngram` consecutive words with a set of `data.decontaminate`.

    The held-out set counts too, except its built-in problems: they share their wording by design, and
    `clean_sets` has dropped equal texts.
    """
    data = profile.data
    assert data
    benchmarks: dict[str, list[str]] = {}
    for i, source in enumerate(data.decontaminate):
        rows, _ = sources.load_source(source, profile.seed, f"data.decontaminate.{i}")
        benchmarks.setdefault(source.source, []).extend(rows["problem"].drop_nulls())
    if "heldout" in sets.rows:
        held_out = sets.rows["heldout"].filter(pl.col("source") != "builtin")["problem"]
        if len(held_out):
            benchmarks["heldout"] = held_out.to_list()
    for name in [name for name in sets.rows if name != "heldout"]:
        problems = sets.rows[name]["problem"]
        found = decontaminate.find_overlaps(problems, benchmarks, data.ngram, data.near_ngrams)
        for row, benchmark, overlap in found.iter_rows():
            shared = {"set": name, "problem": problems[row], "benchmark": benchmark, "overlap": overlap}
            sets.contaminated.append(shared)
        bad = pl.int_range(pl.len()).is_in(found["row"].implode())
        sets.drop(name, bad, "shares words with an evaluation set")
        sets.check(name)
    return sets


def format_sets(sets: Sets, profile: Profile) -> dict[str, pl.DataFrame]:
    """Return rows as TRL's trainers read them: `prompt` and `completion` for SFT, or `prompt` and `answer`.

    With `test_split`, that share of a set's problems moves to `sft_test` or `grpo_test`, for evaluation
    during training.
    """

    def turn(role: str, text: pl.Expr) -> pl.Expr:
        return pl.concat_list(pl.struct(pl.lit(role).alias("role"), text.alias("content")))

    ready = {}
    for name, wanted in sets_of(profile).items():
        rows = sets.rows[name]
        prompt = turn("user", pl.col("problem")).alias("prompt")
        if name == "sft":
            completion = pl.col("solution")
            if not wanted.verbatim:  # thought and answer in their tags
                rng = random.Random(profile.seed)
                chances = pl.Series([rng.random() for _ in range(len(rows))], dtype=pl.Float64)
                empty = chances < wanted.empty_thoughts
                work = pl.when(empty).then(pl.lit("")).otherwise(completion)
                layout = prompts.as_completion(profile.prompt, "\0", "\0")[0]["content"]
                before, between, after = map(pl.lit, layout.split("\0"))  # tags may have braces
                completion = pl.concat_str(before, work, between, pl.col("answer"), after)
            ready[name] = rows.select(prompt, turn("assistant", completion).alias("completion"))
        else:
            has_tests = rows["verification_info"].null_count() < len(rows)
            ready[name] = rows.select(prompt, "answer", *["verification_info"] * has_tests)
        if wanted.test_split:
            keys = rows["key"].unique(maintain_order=True)
            chosen = keys.sample(max(1, round(wanted.test_split * len(keys))), seed=profile.seed)
            aside = rows["key"].is_in(chosen.implode())
            ready[f"{name}_test"], ready[name] = ready[name].filter(aside), ready[name].filter(~aside)
    return ready


def write_sets(ready: dict[str, pl.DataFrame], sets: Sets, profile: Profile, folder: Path) -> str:
    """Write one Parquet file per set, then a data card that `datasets` reads; return the data's hash.

    The card holds sources, counts, settings and hash. Files are written whole or not at all; files of sets
    that the profile no longer has are deleted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in [folder / "README.md", *folder.glob("*.parquet")]:
        old.unlink(missing_ok=True)
    digest = hashlib.sha256()
    for name, rows in ready.items():
        unfinished = folder / f"{name}.partial"
        # In slices, because a row group copies whatever its column holds in one piece.
        pl.concat([*rows.iter_slices(CHUNK)] or [rows], rechunk=False).write_parquet(unfinished)
        digest.update(unfinished.read_bytes())
        unfinished.rename(folder / f"{name}.parquet")

    assert profile.data
    lines, settings = ["| set | step | rows |", "| --- | --- | --- |"], dict[str, Any]()
    for name, wanted in sets_of(profile).items():
        origins = ", ".join(source.source for source in wanted.mixture or [wanted])
        lines.append(f"| {name} | read from {origins} | {sets.read[name]:,} |")
        lines += [f"| | texts with {oddity} | {n:,} |" for oddity, n in sets.repaired[name].items()]
        lines += [f"| | dropped: {reason} | {n:,} |" for reason, n in sets.dropped[name].items()]
        lines += [f"| | {part} | {len(ready[part]):,} |" for part in ready if part.split("_")[0] == name]
        settings[name] = changed(wanted)
    settings |= {"ngram": profile.data.ngram, "seed": profile.seed}
    settings["decontaminate"] = [changed(source) for source in profile.data.decontaminate]
    header = {"configs": [{"config_name": name, "data_files": f"{name}.parquet"} for name in ready]}
    table = "\n".join(lines)
    card = (
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n# Data of the profile {profile.profile}\n\n"
        f"{table}\n\nSHA-256 of the files in this order: `{digest.hexdigest()}`\n\n"
        f"```yaml\n{yaml.safe_dump(settings, sort_keys=False)}```\n"
    )
    write_whole(folder / "README.md", card)
    return digest.hexdigest()


def read_set(folder: Path, name: str) -> Rows:
    """Return a saved set, such as `sft` or `sft_test`, or no rows if the profile lacks it."""
    path = folder / f"{name}.parquet"
    return pl.read_parquet(path).to_dicts() if path.exists() else []
