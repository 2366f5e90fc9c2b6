"""The `data` and `distil` sections of a profile: sources, columns, which rows are kept, and a teacher."""

from dataclasses import field, fields
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from aimo.inference.settings import NonNegative, Positive, Rate, Share, strict

From0 = Annotated[float, Field(ge=0)]
Above0 = Annotated[float, Field(gt=0)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Part = Annotated[float, Field(gt=0, le=1)]


def check_bounds(bounds: Any) -> Any:
    if bounds[0] > bounds[1]:
        raise ValueError(f"{bounds[0]} is above {bounds[1]}; write the smaller one first")
    return bounds


Integers = Annotated[tuple[int, int], AfterValidator(check_bounds)]
PassRates = Annotated[tuple[Share, Share], AfterValidator(check_bounds)]


@dataclass(config=strict)
class Columns:
    """Which columns of a source hold what; `reward_model.ground_truth` names a key of an object."""

    problem: str = "problem"  # The problem's text; else `question`, `prompt`, `query`, or a conversation
    # The gold answer, or a text that ends in it (`#### 42`); null: the solution's
    answer: str | None = "answer"
    solution: str | None = None  # A solution, which SFT imitates; or a list of them, one of each sample
    correct: str | None = None  # Whether it is right, a boolean or one for each trace; only right ones stay
    complete: str | None = None  # Whether it came to its end, a boolean or one for each trace
    messages: str | None = None  # A conversation (`role` and `content`, ShareGPT's, or JSON)
    kind: str | None = None  # The question's type, in which `MCQ` and `proof` are known
    pass_rate: str | None = None  # The share of a model's samples that were right
    verification_info: str | None = None  # Test cases, for the code rewards; such a row needs no answer
    id: str | None = None  # What tells problems apart when they are distilled; null takes their text


@dataclass(config=strict)
class Source:
    """Where rows come from: `builtin`, a file of rows, a folder of such files, or a hub id."""

    source: str = "builtin"  # `builtin`, a file, a folder, a hub id; for SFT `distil`, what that stage kept
    preset: str | None = None  # The hub id of a local copy, whose columns are then known
    subset: str | None = None  # The configuration of a dataset, on the hub or a folder; null: its default
    split: str | None = None  # The split; null takes `train`. Built-in problems also have `heldout`.
    revision: str | None = None  # The branch, tag or commit of a dataset on the hub; null takes the newest
    rows: Positive | None = None  # Keep at most this many rows; needed for built-in problems
    weight: Part = 1.0  # Keep this share of the rows (Open-R1's mixtures)
    columns: Columns | None = None  # The columns, where no preset knows them
    # What to do with a line that is no JSON object, or no row of the CSV; skipped ones are counted
    corrupt_lines: Literal["refuse", "skip"] = "refuse"

    @model_validator(mode="after")
    def check_source(self) -> "Source":
        if getattr(self, "mixture", None):
            for key in fields(Source):  # type: ignore[arg-type]
                if getattr(self, key.name) != key.default:
                    raise ValueError(f"{key.name}: a set has a source or a mixture; put it into the mixture")
        elif self.source == "builtin":
            if self.rows is None:
                raise ValueError("rows: built-in problems have no end; set rows")
            if self.split not in (None, "train", "heldout"):
                raise ValueError(f"split: built-in problems have train and heldout, not {self.split!r}")
            for name in ("preset", "subset", "revision", "columns"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: built-in problems have none; leave it out, or name a source")
        return self


@dataclass(config=strict)
class Mixture(Source):
    """One source, or several."""

    mixture: list[Source] = field(default_factory=list)  # Several sources in place of one, shuffled together


@dataclass(config=strict)
class Set(Mixture):
    """One of the three sets: a source or a mixture of several, and which of its rows are kept."""

    test_split: BelowOne = 0.0  # Set this share aside, to evaluate on in training
    # Drop rows whose answer is not an integer, as the olympiad's are; a `competition` decides instead
    integer_answers: bool = True
    answer_range: Integers | None = None  # Drop rows whose answer lies outside, such as [0, 99999]
    max_tokens: Positive | None = None  # Drop rows of more tokens: the prompt's; in SFT with the completion's
    # SFT only: rows longer than `model.max_length` are dropped, or kept for the trainer to cut
    overlong: Literal["drop", "truncate"] = "drop"
    token_quantile: Part | None = None  # Drop rows longer than this quantile (Unsloth's recipe keeps 0.9)
    language: str | None = None  # Keep problems in this language (`en`), and texts too short to tell
    # Drop questions of these types, as `columns.kind` or their text tells them
    drop: list[Literal["multiple_choice", "proof"]] = field(default_factory=list)
    # Drop problems with such a share of another's word triples and its numbers
    near_duplicates: Rate | None = None
    pass_rate: PassRates | None = None  # Keep problems with a `columns.pass_rate` within bounds
    # SFT only: which solution to keep where a problem has several right ones
    traces: Literal["first", "shortest", "all"] = "first"
    verbatim: bool = False  # SFT only: a solution is a whole completion, with tags and answer
    empty_thoughts: Share = 0.0  # SFT only: the share of rows with no thought, so that GRPO finds one
    # SFT only: drop solutions with a token whose log-probability under the model to train is below this, in
    # nats; -0.69 is a probability of a half
    min_logprob: Annotated[float, Field(le=0)] | None = None


@dataclass(config=strict)
class Data:
    """The three sets of a run, and what they must not contain."""

    sft: Set | None = None  # Problems with a worked solution, for supervised fine-tuning
    grpo: Set | None = None  # Problems with their answer, for GRPO, DPO and probes
    heldout: Set | None = None  # Problems to measure every model. Training rows with their texts are dropped.
    # Evaluation sets: training rows that share words with them are dropped. A held-out set that is not built
    # in counts as well.
    decontaminate: list[Source] = field(default_factory=list)
    ngram: Positive = 8  # How many words in a row make a row contaminated
    near_ngrams: bool = False  # Compare words without LaTeX and punctuation, and short problems as a whole

    @model_validator(mode="after")
    def check_sets(self) -> "Data":
        if self.sft and self.sft.verbatim and self.sft.empty_thoughts:
            told = "a verbatim solution brings its thought; leave one of them out"
            raise ValueError(f"sft.empty_thoughts: {told}")
        of_solutions = ["overlong", "traces", "verbatim", "empty_thoughts", "min_logprob"]
        for name, keys in ("grpo", of_solutions), ("heldout", [*of_solutions, "test_split"]):
            chosen = getattr(self, name)
            for key in fields(Set) if chosen else ():  # type: ignore[arg-type]
                if key.name in keys and getattr(chosen, key.name) != key.default:
                    raise ValueError(f"{name}.{key.name}: has no effect on this set; leave the key out")
        return self


@dataclass(config=strict)
class Reject:
    """Which completions are kept: right and finished ones, and of those the ones that these keys allow."""

    max_per_problem: Positive | None = None  # Keep at most so many completions of a problem
    # Which ones: the first, the shortest, or the shortest and then those that share the fewest word triples
    # with the ones already kept
    prefer: Literal["first", "shorter", "diverse"] = "first"
    # Keep problems whose share of right completions lies within these bounds; ones that the teacher always
    # solves teach little
    pass_rate: PassRates = (0.0, 1.0)


@dataclass(config=strict)
class Distil(Mixture):
    """Problems from a source or a mixture, the servers that answer them, and how they are asked."""

    # OpenAI-compatible servers of one model, such as 127.0.0.1:8000 or https://api.deepseek.com. Empty: the
    # stage serves `model` itself, as `aimo serve` does.
    api_addr: list[str] = field(default_factory=list)
    # The teacher's name on the servers, or the model folder or hub id to serve. Null takes the only one that
    # the servers have, or `model.base`.
    model: str | None = None
    num_generations: Positive = 4  # Completions of a problem; more of them later continue the same file
    system: str = ""  # The system message; empty sends none
    # The user message; `{prompt}` is replaced by the problem
    prompt_template: Annotated[str, Field(pattern=r"\{prompt\}")] = (
        "You will be given a problem. Please reason step by step, and put your final answer within "
        "\\boxed{}:\n{prompt}"
    )
    temperature: From0 = 0.6  # 0 always takes the likeliest token
    top_p: Part = 0.95  # Sample from the likeliest tokens that together have this probability
    max_tokens: Positive = 16384  # Tokens of a completion
    max_concurrent: Positive = 1000  # Requests in flight over all servers
    timeout: Above0 = 3600.0  # Seconds of a request; the run ends when no server answers for so long
    retries: NonNegative = 3  # How often a faulty sample is asked for again
    input_price: From0 = 0.0  # What a million tokens of prompts cost
    output_price: From0 = 0.0  # What a million tokens of completions cost
    reject: Reject = field(default_factory=Reject)  # What is kept, for `data.sft: {source: distil}`
