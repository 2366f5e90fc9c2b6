"""The `data` and `distil` sections of a profile: sources, columns, filters, and a teacher."""

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
    """The column of a source for each role; `reward_model.ground_truth` names a key inside an object."""

    problem: str = "problem"  # The problem; if it is missing, `question`, `prompt`, `query` or a conversation
    # The gold answer, or a text that ends with it (`#### 42`); null takes the end of the solution
    answer: str | None = "answer"
    solution: str | None = None  # The solution that SFT imitates, or a list with one per sample
    correct: str | None = None  # Whether it is right, one boolean or one per trace; only right ones are kept
    complete: str | None = None  # Whether it is finished, one boolean or one per trace
    messages: str | None = None  # A conversation (`role` and `content`, ShareGPT's form, or JSON)
    kind: str | None = None  # The question's type; `MCQ` and `proof` are recognised
    pass_rate: str | None = None  # The share of a model's samples that were right
    verification_info: str | None = None  # Test cases for the code rewards; a row with them needs no answer
    id: str | None = None  # Identifies a problem in distillation; null uses its text


@dataclass(config=strict)
class Source:
    """Where rows come from: `builtin`, a file of rows, a folder of such files, or a hub id."""

    source: str = "builtin"  # `builtin`, a file, a folder, a hub id; for SFT also `distil`, that stage's rows
    preset: str | None = None  # The hub id that a local copy comes from, which defines its columns
    subset: str | None = None  # The dataset's configuration, on the hub or in a folder; null: the default
    split: str | None = None  # The split; null takes `train`. Built-in problems also have `heldout`.
    revision: str | None = None  # The branch, tag or commit of a dataset on the hub; null takes the newest
    rows: Positive | None = None  # Keep at most this many rows; required for built-in problems
    weight: Part = 1.0  # Keep this share of the rows (Open-R1's mixtures)
    columns: Columns | None = None  # The columns, if no preset defines them
    # What to do with a line that is not a JSON object or a CSV row; skipped lines are counted
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

    mixture: list[Source] = field(default_factory=list)  # Several sources instead of one, shuffled together


@dataclass(config=strict)
class Set(Mixture):
    """One of the three sets: a source or a mixture, and which of its rows are kept."""

    test_split: BelowOne = 0.0  # Set this share aside to evaluate on during training
    # Drop rows whose answer is not an integer (the olympiad's are); a `competition` decides instead
    integer_answers: bool = True
    answer_range: Integers | None = None  # Drop rows whose answer is outside this range, such as [0, 99999]
    max_tokens: Positive | None = None  # Drop rows with more prompt tokens; SFT counts the completion too
    # SFT only: drop rows longer than `model.max_length`, or keep them for the trainer to cut
    overlong: Literal["drop", "truncate"] = "drop"
    token_quantile: Part | None = None  # Drop rows longer than this quantile (Unsloth's recipe keeps 0.9)
    language: str | None = None  # Keep problems in this language (`en`), and texts too short to tell
    # Drop questions of these types, recognised by `columns.kind` or by their text
    drop: list[Literal["multiple_choice", "proof"]] = field(default_factory=list)
    # Drop a problem with the numbers of an earlier one and this Jaccard similarity of word triples, or more
    near_duplicates: Rate | None = None
    pass_rate: PassRates | None = None  # Keep problems whose `columns.pass_rate` is within these bounds
    # SFT only: which solution to keep if a problem has several right ones
    traces: Literal["first", "shortest", "all"] = "first"
    verbatim: bool = False  # SFT only: each solution is a whole completion, with tags and answer
    empty_thoughts: Share = 0.0  # SFT only: empty the thought of this share of rows; GRPO finds its own
    # SFT only: drop solutions with a token whose log-probability under the model that SFT starts from is
    # below this, in nats; -0.69 is a probability of one half
    min_logprob: Annotated[float, Field(le=0)] | None = None


@dataclass(config=strict)
class Data:
    """The three sets of a run, and what they must not contain."""

    sft: Set | None = None  # Problems with a worked solution, for supervised fine-tuning
    grpo: Set | None = None  # Problems with their answers, for GRPO, DPO, OPD and probes
    heldout: Set | None = None  # Problems to measure every model. Training rows with equal texts are dropped.
    # Evaluation sets. Training rows that share words with one of them, or with a held-out set that is not
    # built in, are dropped.
    decontaminate: list[Source] = field(default_factory=list)
    ngram: Positive = 8  # A row that shares this many consecutive words is contaminated
    near_ngrams: bool = False  # Ignore LaTeX and punctuation, and compare short problems as a whole

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
    """Which of the right and finished completions are kept."""

    max_per_problem: Positive | None = None  # Keep at most this many completions per problem
    # Keep the first, the shortest, or (diverse) the shortest and then those that share the fewest word
    # triples with the ones already kept
    prefer: Literal["first", "shorter", "diverse"] = "first"
    # Keep problems whose share of right completions is within these bounds; problems that the teacher always
    # solves teach little
    pass_rate: PassRates = (0.0, 1.0)


@dataclass(config=strict)
class Distil(Mixture):
    """Problems from a source or a mixture, the servers that answer them, and how they are asked."""

    # OpenAI-compatible servers with one model, such as 127.0.0.1:8000 or https://api.deepseek.com. Empty: the
    # stage serves `model` itself, as `aimo serve` does.
    api_addr: list[str] = field(default_factory=list)
    # The teacher's name on the servers, or the model folder or hub id to serve. Null takes the servers' only
    # model, or `model.base`.
    model: str | None = None
    num_generations: Positive = 4  # Completions per problem; a later, larger number continues the same file
    system: str = ""  # The system message; empty sends none
    # The user message; `{prompt}` is replaced by the problem
    prompt_template: Annotated[str, Field(pattern=r"\{prompt\}")] = (
        "You will be given a problem. Please reason step by step, and put your final answer within "
        "\\boxed{}:\n{prompt}"
    )
    temperature: From0 = 0.6  # 0 always takes the likeliest token
    top_p: Part = 0.95  # Sample from the likeliest tokens that together have this probability
    max_tokens: Positive = 16384  # Tokens per completion
    max_concurrent: Positive = 1000  # Requests in flight across all servers
    timeout: Above0 = 3600.0  # Seconds per request; the run ends if no server answers for this long
    retries: NonNegative = 3  # How often a failed sample is requested again
    input_price: From0 = 0.0  # Cost of a million prompt tokens
    output_price: From0 = 0.0  # Cost of a million completion tokens
    reject: Reject = field(default_factory=Reject)  # What is kept, for `data.sft: {source: distil}`
