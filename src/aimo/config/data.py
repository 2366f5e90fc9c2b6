"""The `data` section of a profile: sources, columns, and which rows are kept."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from aimo.inference.settings import Positive, Rate, Share, strict


@dataclass(config=strict)
class Columns:
    """Which columns of a source hold what."""

    problem: str = "problem"
    answer: str | None = "answer"
    """The gold answer, alone or at the end of a text (`#### 42`, `\\boxed{42}`); null takes the solution's own answer."""
    solution: str | None = None
    """A worked solution, which format SFT imitates; or a list of them, the traces of several samples."""
    correct: str | None = None
    """Whether the solution is right: a boolean, or one for each of its traces. Only right ones stay."""
    complete: str | None = None
    """Whether the solution came to its end: a boolean, or one for each of its traces."""
    messages: str | None = None
    """A conversation of `role` and `content`: its question and last reply stand in for problem and solution."""
    kind: str | None = None
    """The question's type, in which `MCQ` and `proof` are known."""
    pass_rate: str | None = None
    """The share of a model's samples that were right."""
    verification_info: str | None = None
    """Test cases of a programming problem, for the code rewards; such a row needs no answer."""


@dataclass(config=strict)
class Source:
    """Where rows come from: `builtin`, a .csv, .jsonl or .parquet file, a folder of one of these, a dataset folder, or a hub id."""

    source: str = "builtin"
    preset: str | None = None
    """The hub id of the set that a local copy was made from; its columns are known (`aimo.data.sources.PRESETS`)."""
    subset: str | None = None
    """The configuration of a hub dataset."""
    split: str | None = None
    """`train` (the default) or `heldout` for built-in problems; a split's name for a dataset."""
    rows: Positive | None = None
    """Keep at most this many rows; needed for built-in problems."""
    weight: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Keep this share of the rows (Open-R1's mixtures)."""
    columns: Columns | None = None
    corrupt_lines: Literal["refuse", "skip"] = "refuse"
    """What to do with a line of a .jsonl file that is not a JSON object; skipped ones are counted."""

    @model_validator(mode="after")
    def check_source(self) -> "Source":
        """Refuse what the types alone allow."""
        if self.source == "builtin" and not getattr(self, "mixture", None):
            if self.rows is None:
                raise ValueError("rows: built-in problems are endless; say how many")
            if self.split not in (None, "train", "heldout"):
                raise ValueError(f"split: built-in problems have train and heldout, not {self.split!r}")
        return self


@dataclass(config=strict)
class Set(Source):
    """One of the three sets: a source or a mixture of several, and which of its rows are kept."""

    mixture: list[Source] = field(default_factory=list)
    """Several sources in place of one, shuffled together."""
    test_split: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Set this share of the problems aside, to evaluate on during training."""
    integer_answers: bool = True
    """Drop rows whose answer is not an integer, as the olympiad's are."""
    answer_range: tuple[int, int] | None = None
    """Drop rows whose answer lies outside, such as [0, 99999]."""
    max_tokens: Positive | None = None
    """Drop rows whose prompt and solution are longer."""
    token_quantile: Annotated[float, Field(gt=0, le=1)] | None = None
    """Drop rows longer than this quantile of the set (Unsloth's recipe keeps 0.9)."""
    language: str | None = None
    """Keep problems in this language (`en`); those too short to tell stay."""
    drop: list[Literal["multiple_choice", "proof"]] = field(default_factory=list)
    near_duplicates: Rate | None = None
    """Drop problems that share this part of another's word triples (Jaccard) and all its numbers."""
    pass_rate: tuple[float, float] | None = None
    """Keep problems whose pass rate lies within: neither hopeless nor solved already."""
    traces: Literal["first", "shortest", "all"] = "first"
    """Which solution to keep where a problem has several right ones."""
    verbatim: bool = False
    """SFT only: a solution is a whole completion, tags and answer included, as distilled traces are."""
    empty_thoughts: Share = 0.0
    """Format SFT only: this share of the rows answers at once, so that working a problem out is GRPO's to discover."""

    @model_validator(mode="after")
    def check_set(self) -> "Set":
        """Refuse what the types alone allow."""
        if self.mixture and (self.source != "builtin" or self.columns):
            raise ValueError(
                "mixture: a set has either a source or a mixture; put the source into the mixture"
            )
        for name in ("answer_range", "pass_rate"):
            bounds = getattr(self, name)
            if bounds and bounds[0] > bounds[1]:
                raise ValueError(f"{name}: {bounds[0]} is above {bounds[1]}; write the smaller one first")
        return self


@dataclass(config=strict)
class Data:
    """The three sets of a run, and what they must not contain."""

    sft: Set | None = None
    """Problems with a worked solution, for supervised fine-tuning."""
    grpo: Set | None = None
    """Problems with their answer, for GRPO, DPO and probes."""
    heldout: Set | None = None
    """Problems that no stage trains on: they measure every model. Training rows that share a text with them are dropped."""
    benchmarks: list[Source] = field(default_factory=list)
    """Evaluation sets: training rows that share words with them are dropped, as with a held-out set that is not built in."""
    ngram: Positive = 8
    """How many words in a row make a row contaminated."""
    near_ngrams: bool = False
    """Compare words without LaTeX markup and punctuation, and problems shorter than `ngram` as a whole."""
