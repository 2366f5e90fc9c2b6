"""How many tokens a row takes, and which rows take too many."""

from typing import Any

import polars as pl

from aimo.config import Profile
from aimo.inference import prompts

BATCH = 1000
"""Rows that are tokenised at one time."""
BYTES_A_TOKEN = 100
"""A text with more bytes than this for each token of the limit is too long without a look."""


def too_long(rows: pl.DataFrame, name: str, profile: Profile, tokenizer: Any) -> tuple[pl.Series, int | None]:
    """(n,) whether a row of the set is longer than its limit, and the limit in tokens; None without a limit.

    Counted are the prompt, and for `sft` prompt and completion. The limit is the smallest of the set's
    `max_tokens` and `token_quantile`, and of what its stage can take.
    """
    wanted = getattr(profile.data, name)
    limits = [wanted.max_tokens]
    if wanted.overlong == "drop":
        limits.append(profile.model.max_length)
    if name != "sft" and profile.grpo:
        limits.append(profile.grpo.max_prompt_length)
    limit = min((tokens for tokens in limits if tokens is not None), default=None)
    if wanted.token_quantile is not None and len(rows):
        counts = count_tokens(rows, name, profile, tokenizer)
        quantile = int(counts.quantile(wanted.token_quantile, "lower") or 0)
        limit = quantile if limit is None else min(limit, quantile)
    elif limit is not None:
        counts = count_tokens(rows, name, profile, tokenizer, limit)
    else:
        return pl.repeat(False, len(rows), eager=True), None
    return counts > limit, limit


def count_tokens(
    rows: pl.DataFrame, name: str, profile: Profile, tokenizer: Any, limit: int | None = None
) -> pl.Series:
    """(n,) the tokens of each row; with a limit, exact near it and an upper bound for other rows.

    A text has no more tokens than bytes, so most rows are judged by their bytes.
    """
    texts = ["problem", "solution", "answer"] if name == "sft" else ["problem"]
    empty = pl.DataFrame({"problem": [""], "solution": [""], "answer": [""]})
    around = exact_tokens(empty, name, profile, tokenizer)[0] + 8  # tags and template
    sizes = [rows[column].str.len_bytes().fill_null(0).cast(pl.Int64) for column in texts]
    bound = rows.select(sum(sizes, start=pl.lit(around))).to_series()
    if limit is None:
        unknown = pl.repeat(True, len(rows), eager=True)
    else:
        unknown = (bound > limit) & (bound < BYTES_A_TOKEN * limit)
    places = unknown.arg_true()
    found: list[int] = []
    for start in range(0, len(places), BATCH):
        found += exact_tokens(rows[places[start : start + BATCH]], name, profile, tokenizer)
    return bound.scatter(places, found) if found else bound


def exact_tokens(rows: pl.DataFrame, name: str, profile: Profile, tokenizer: Any) -> list[int]:
    """(n,) the tokens of each row, in the chat template."""
    talks = [prompts.as_prompt(problem) for problem in rows["problem"]]
    if name == "sft":
        replies = zip(rows["solution"].fill_null(""), rows["answer"], strict=True)
        talks = [talk + reply_of(*reply, profile) for talk, reply in zip(talks, replies, strict=True)]
    ids = tokenizer.apply_chat_template(talks, add_generation_prompt=name != "sft", return_dict=False)
    return [len(row) for row in ids]


def reply_of(solution: str, answer: str, profile: Profile) -> list[dict[str, str]]:
    """What a row of `sft` teaches the model to reply."""
    assert profile.data and profile.data.sft
    if profile.data.sft.verbatim:
        return [{"role": "assistant", "content": solution}]
    return prompts.as_completion(profile.prompt, solution, answer)
