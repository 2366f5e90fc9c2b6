"""How much of a benchmark's text stands in the data that a model was trained on.

The data is found by the model: in the run that trained it, or by the `datasets` of its card, which are
downloaded only on request. Runs of eight words are compared, as in decontamination. Out of scope: what the
base model saw; paraphrases.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import polars as pl

from aimo.config import Source
from aimo.data import decontamination, sources
from aimo.errors import AimoError
from aimo.evaluation.benchmarks import Question

WORDS = 8


def check(model: Path, asked: Mapping[str, list[Question]], download: bool) -> dict[str, dict[str, Any]]:
    """The share of each benchmark's text that stands in the model's training data, and the questions it hits.

    `found` maps a question's id to its share. Where no data is known or here, only `why` is given.
    """
    try:
        data, texts = training_texts(model, download)
    except AimoError as e:
        return {name: {"why": str(e)} for name in asked}
    if not len(texts):
        why = "neither a run's data beside the model nor `datasets` in its card"
        return {name: {"why": why} for name in asked}
    checked = {}
    for name, questions in asked.items():
        shares = decontamination.shares([question.problem for question in questions], texts, WORDS)
        pairs = zip(questions, shares, strict=True)
        found = {question.id: round(share, 4) for question, share in pairs if share}
        share = sum(shares) / len(shares)
        checked[name] = {"data": data, "texts": len(texts), "share": share, "found": found}
    return checked


def training_texts(model: Path, download: bool) -> tuple[str, pl.Series]:
    """Where a model's training data is, and its problems with their solutions; none where it is not known.

    AimoError names the sets of its card that are not here, unless they may be downloaded.
    """
    run = model.absolute().parent.parent / "data"
    files = [path for path in sorted(run.glob("*.parquet")) if path.stem in ("sft", "grpo")]
    if files:
        return ", ".join(f"{run.parent.name}/data/{file.name}" for file in files), pl.concat(
            texts_of(pl.read_parquet(file)) for file in files
        )
    named, tables = card_datasets(model / "README.md"), []
    for name in named:
        try:
            with nullcontext() if download else offline():
                tables.append(sources.load_source(Source(name), 0, f"the card of {model.name}")[0])
        except AimoError as e:
            if download or not isinstance(e.__context__, OSError):  # it is here and of no use
                raise
            raise AimoError(
                f"{name}, which the model's card names, is not here; --card-data downloads it"
            ) from None
    return ", ".join(named), pl.concat(
        [joined(table["problem"], table["solution"]) for table in tables] or [empty()]
    )


@contextmanager
def offline() -> Iterator[None]:
    """Let `datasets` read what it has downloaded before, and ask nobody."""
    import datasets
    import huggingface_hub

    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def texts_of(rows: pl.DataFrame) -> pl.Series:
    """The problem and the completion of each prepared row."""
    said = [
        rows[name].list.last().struct.field("content") for name in ("prompt", "completion") if name in rows
    ]
    return joined(*said) if len(said) == 2 else said[0]


def joined(problems: pl.Series, solutions: pl.Series) -> pl.Series:
    """Problems, each followed by its solution, on two lines."""
    return problems.fill_null("") + "\n" + solutions.fill_null("")


def empty() -> pl.Series:
    """No texts."""
    return pl.Series([], dtype=pl.String)


def card_datasets(card: Path) -> list[str]:
    """The data sets that a model card names in its header."""
    from huggingface_hub import ModelCard

    if not card.is_file():
        return []
    try:
        named = ModelCard.load(card).data.datasets or []
    except Exception as e:  # yaml raises many kinds
        raise AimoError(f"{card}: its header cannot be read ({' '.join(str(e).split())[:100]})") from None
    return [named] if isinstance(named, str) else [str(name) for name in named]
