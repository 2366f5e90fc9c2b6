"""How much of a benchmark's text stands in the data that a model was trained on.

The data is found by the model: in the run that trained it, or by the `datasets` of its card. Runs of eight
words are compared, as in decontamination. Out of scope: what the base model saw; paraphrases.
"""

from pathlib import Path
from typing import Any

import polars as pl

from aimo.config import Source
from aimo.data import decontamination, sources
from aimo.errors import AimoError
from aimo.evaluation.benchmarks import Question

WORDS = 8


def check(model: Path, questions: list[Question]) -> dict[str, Any]:
    """The share of the questions' text that stands in the model's training data, and the questions it hits.

    `found` maps a question's id to its share. Where no data is known, only `why` is given.
    """
    try:
        data, texts = training_texts(model)
    except AimoError as e:
        return {"why": str(e)}
    if not len(texts):
        return {"why": "neither a run's data beside the model nor `datasets` in its card"}
    shares = decontamination.shares([question.problem for question in questions], texts, WORDS)
    found = {question.id: round(share, 4) for question, share in zip(questions, shares, strict=True) if share}
    return {"data": data, "texts": len(texts), "share": sum(shares) / len(shares), "found": found}


def training_texts(model: Path) -> tuple[str, pl.Series]:
    """Where a model's training data is, and its problems with their solutions; none where it is not known."""
    run = model.absolute().parent.parent / "data"
    files = [path for path in sorted(run.glob("*.parquet")) if path.stem in ("sft", "grpo")]
    if files:
        return ", ".join(f"{run.parent.name}/data/{file.name}" for file in files), pl.concat(
            texts_of(pl.read_parquet(file)) for file in files
        )
    named = card_datasets(model / "README.md")
    tables = [sources.load_source(Source(name), 0, f"the card of {model.name}")[0] for name in named]
    return ", ".join(named), pl.concat(
        [joined(table["problem"], table["solution"]) for table in tables] or [empty()]
    )


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
    return [named] if isinstance(named, str) else list(named)
