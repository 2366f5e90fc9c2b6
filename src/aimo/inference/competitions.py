"""Competitions: their rules, test files and scores. Each is a YAML file, from the package or a user.

slug: my-competition            # its name in Kaggle's URLs
inputs: {id: row_id, problem: question, options: [a, b, c, d]}
answer: {kind: choice, letters: ABCD}
rules: Put one letter from A to D in \\boxed{}.
artefact: {kind: csv, id: row_id, answer: prediction}
scoring: accuracy
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from aimo.inference.answers import Choice, Integer, Kind, Latex, Nemotron, Number, Proof, Text
from aimo.inference.errors import AimoError, explain, listed
from aimo.inference.settings import Positive, Tag, strict, validate_settings
from aimo.inference.storage import read_yaml

HOUR_S = 3600.0
UNSURE = "# ?"  # ends a line of a draft that a person must check
FOLDER = Path(__file__).with_suffix("")
Seconds = Annotated[float, Field(gt=0)]
Slug = Annotated[str, Field(pattern="^[a-z0-9]+(-[a-z0-9]+)*$")]


@dataclass(config=strict, frozen=True)
class Inputs:
    """The columns of a test file."""

    id: Tag = "id"
    problem: Tag = "problem"
    options: tuple[Tag, ...] = ()  # the columns of a choice's options, in the order of its letters
    test: Tag = "test.csv"  # the file's name in the competition's data

    def __post_init__(self) -> None:
        if len({self.id, self.problem, *self.options}) < 2 + len(self.options):
            raise ValueError("id, problem, options: each needs a column of its own")


@dataclass(config=strict, frozen=True)
class AdapterRules:
    """The adapter that a host accepts, and how the host serves it."""

    bases: Annotated[tuple[Tag, ...], Field(min_length=1)]  # all names of the base model
    rank: Positive  # the maximum
    targets: tuple[Tag, ...]  # modules that may have weights, by the last part of their names
    dtypes: tuple[Tag, ...] = ("float32", "bfloat16", "float16")  # of the weights
    size_mb: Positive | None = None  # the archive's maximum size; None: the host states none
    serving: dict[str, Any] = field(default_factory=dict)  # the host's values of `inference` settings

    def __post_init__(self) -> None:
        try:
            validate_settings(self.serving, "serving", "correct the value")
        except AimoError as e:
            raise ValueError(str(e)) from None


@dataclass(config=strict, frozen=True)
class Artefact:
    """What is submitted: answers through a server, a file of answers or of texts, or a LoRA adapter."""

    kind: Literal["server", "csv", "parquet", "text", "adapter"]
    server: str | None = None  # module and class in `kaggle_evaluation`
    id: Tag = "id"  # the columns of the file
    answer: Tag = "answer"
    others: dict[Tag, str | int | float] = field(default_factory=dict)  # further columns and their value
    lora: AdapterRules | None = None

    def __post_init__(self) -> None:
        if (self.kind == "server") != (self.server is not None):
            raise ValueError("server: MODULE.CLASS of kaggle_evaluation goes with kind: server alone")
        if (self.kind == "adapter") != (self.lora is not None):
            raise ValueError("lora: what the host takes goes with kind: adapter, and with no other")
        if self.kind == "server" and (self.id, self.answer) != ("id", "answer"):
            raise ValueError("id, answer: a server's rows have the columns id and answer; leave the keys out")
        if self.others and self.kind not in ("csv", "parquet"):
            raise ValueError("others: goes with kind: csv and parquet alone; leave the key out")
        if len({self.id, self.answer, *self.others}) < 2 + len(self.others):
            raise ValueError("id, answer, others: each needs a column of its own")

    @property
    def file(self) -> str:
        suffix = {"csv": "csv", "text": "csv", "adapter": "zip"}.get(self.kind, "parquet")
        return f"submission.{suffix}"


@dataclass(config=strict, frozen=True)
class Competition:
    """The rules of one competition."""

    slug: Slug  # its name in Kaggle's URLs
    answer: Kind
    rules: Tag  # a sentence about its answers; `{rules}` inserts it into prompts
    artefact: Artefact
    inputs: Inputs = field(default_factory=Inputs)
    accelerators: tuple[Tag, ...] = ()  # GPUs that a submission may use, by Kaggle's names; empty: any
    scoring: Literal["points", "accuracy", "tolerance", "nemotron", "marks"] = "points"
    # A question's points by its number of right answers. Each pass over the questions gives one answer.
    points: tuple[float, ...] = (0.0, 1.0)
    questions: Positive = 50  # expected in a rerun
    session_s: Seconds = 5 * HOUR_S  # time limit of a submission's GPU notebook
    # From the notebook's start until its server must answer; without a server it has no effect.
    start_limit_s: Seconds | None = 900.0
    answer_limit_s: Seconds | None = None  # that Kaggle allows per answer

    def __post_init__(self) -> None:
        options, kind = self.inputs.options, self.answer
        if options and not (isinstance(kind, Choice) and len(kind.letters) == len(options)):
            raise ValueError(f"inputs.options: {len(options)} columns need a choice of as many letters")
        if options and self.artefact.server:
            raise ValueError("inputs.options: a server sends id and problem alone; leave the options out")
        if isinstance(kind, Proof) != (self.scoring == "marks"):
            raise ValueError("scoring: marks goes with answer.kind proof, and with no other")
        if self.artefact.kind == "text" and not isinstance(kind, Proof | Text):
            raise ValueError(f"artefact.kind: text does not go with answer.kind {kind.kind}; take csv")
        if (self.scoring, isinstance(kind, Number)) in (("tolerance", False), ("accuracy", True)):
            raise ValueError(f"scoring {self.scoring} does not go with answer.kind {kind.kind}")
        if len(self.points) < 2:
            raise ValueError("points: give those of no and of one right answer, such as [0, 1]")
        if self.points != (0.0, 1.0) and self.scoring != "points":
            raise ValueError(f"points: scoring {self.scoring} does not count them; leave the key out")

    @property
    def passes(self) -> int:  # over the private questions
        return len(self.points) - 1


COMPETITION = TypeAdapter(Competition)
TYPES: tuple[Any, ...] = (Integer, Number, Choice, Text, Latex, Nemotron, Proof)
KINDS = [kind.kind for kind in TYPES]
KEYS = {key.name for one in (Competition, Inputs, Artefact, AdapterRules, *TYPES) for key in fields(one)}


def read_competition(path: Path) -> Competition:
    """Read a competition's file. AimoError names every key that is unknown, missing or impossible."""
    values = read_yaml(path, "competition", "start from docs/competitions.md")
    return parse_competition(values, f"competition {path}")


def parse_competition(values: dict[str, Any], where: str) -> Competition:
    """Return the rules that `values` define. AimoError begins with `where` and names every wrong key."""
    try:
        return COMPETITION.validate_json(json.dumps(values, default=str))
    except ValidationError as e:
        told = []
        for error in e.errors():
            if error["type"].startswith("union_tag"):
                told.append(f"answer.kind: should be one of {', '.join(KINDS)}")
            else:  # the location of an answer's key includes its kind
                place = [part for part in error["loc"] if part not in KINDS]
                told.append(explain({**error, "loc": place}, KEYS))
        raise AimoError(f"{where}: {'; '.join(told)}") from None
    except (TypeError, ValueError) as e:  # a key that is not a string, a list that contains itself
        raise AimoError(f"{where}: {e}; use plain keys and values") from None


COMPETITIONS = {path.stem: read_competition(path) for path in sorted(FOLDER.glob("*.yaml"))}


def find_competition(name: str | Competition, asks: bool = False) -> Competition:
    """Find a competition by name or file. AimoError if it is unknown, or with `asks` if it takes adapters."""
    rules = COMPETITIONS.get(name) if isinstance(name, str) else name
    if rules is None and str(name).endswith((".yaml", ".yml")):
        rules = read_competition(Path(str(name)))
    if rules is None:
        known = ", ".join(COMPETITIONS)
        raise AimoError(f"competition {name!r} is unknown: use one of {known}, or a path to a .yaml file")
    if asks and rules.artefact.kind == "adapter":
        what = "it takes an adapter, no answers; there is nothing to solve"
        raise AimoError(f"competition {name_of(name)}: {what}")
    return rules


def name_of(competition: str | Competition) -> str:
    """Return a competition's name in journals and pages: its own or its file's, or else its slug."""
    if isinstance(competition, str):
        return competition if competition in COMPETITIONS else Path(competition).stem
    return next((name for name, rules in COMPETITIONS.items() if rules == competition), competition.slug)


def pose(table: pl.DataFrame, path: str | Path, competition: str | Competition) -> pl.DataFrame:
    """Return a test file's questions, with their ids as `id` and their options below the problem.

    AimoError if ids, problems or rows are missing, or an id occurs twice.
    """
    rules = find_competition(competition)
    has, inputs = f"test file {path} has", rules.inputs
    wanted = inputs.id, inputs.problem, *inputs.options
    if lacks := [column for column in wanted if column not in table.columns]:
        there = listed(table.columns)
        raise AimoError(f"{has} no column {lacks[0]!r}, only {there}; {name_of(competition)} needs it")
    if table.is_empty():
        raise AimoError(f"{has} no rows; it needs one for each question")
    ids = table[inputs.id]
    if wrong := ids.filter((ids == "") | ids.is_duplicated()).to_list():
        what = f"the id {wrong[0]!r} twice" if wrong[0] else "a row without an id"
        raise AimoError(f"{has} {what}; give every question its own")
    if inputs.id != "id":
        table = table.drop("id", strict=False).rename({inputs.id: "id"})
    return with_options(table, inputs.problem, rules)


def with_options(table: pl.DataFrame, problem: str, rules: Competition) -> pl.DataFrame:
    """Return a table with a choice's options, each after its letter, added below its column `problem`."""
    letters = getattr(rules.answer, "letters", "")
    for i, (name, letter) in enumerate(zip(rules.inputs.options, letters, strict=False)):
        line = pl.lit("\n" if i else "\n\n") + pl.lit(f"{letter}. ") + pl.col(name)
        given = (pl.col(name) != "") & pl.col(name).is_not_null()
        table = table.with_columns(pl.col(problem) + pl.when(given).then(line).otherwise(pl.lit("")))
    return table


def known_answers(table: pl.DataFrame, rules: Competition) -> dict[str, Any]:
    """Return a table's known answers by id, none for proofs. AimoError if one is not of the kind."""
    found: dict[str, Any] = {}
    if rules.scoring == "marks" or "answer" not in table.columns:
        return found
    for question_id, answer in table.select("id", "answer").rows():
        if (gold := rules.answer.gold(answer)) is None:
            raise AimoError(
                f"question {question_id}: its known answer {answer!r} is no {rules.answer.noun}; "
                "correct it, or leave the column `answer` out"
            )
        found[question_id] = gold
    return found


# The score, as the host counts it

Golds = Mapping[str, Any]  # by id
Passes = Sequence[Mapping[str, Any]]


def check_scored(rules: Competition) -> None:
    """Raise AimoError for a competition that no metric scores."""
    if rules.scoring == "marks":
        raise AimoError(f"competition {rules.slug}: people mark its proofs, and nothing here does; read them")


def score_of(rules: Competition, golds: Golds, passes: Passes) -> float:
    """Return the score by the competition's metric: points, as in AIMO, or the share of right answers.

    Each pass answers a question once, and the number of its right answers determines its points. An answer is
    right if its kind finds it equal to the known answer. Under `tolerance`, a number is right within
    `absolute` or within `relative` times the known one, whichever allows more.
    """
    kind: Any = rules.answer
    score = 0.0
    for name, gold in golds.items():
        answers = [given[name] for given in passes]
        if rules.scoring == "tolerance":
            slack = max(kind.absolute, kind.relative * abs(gold))
            right = [abs(answer - gold) <= slack for answer in answers]
        elif rules.scoring == "nemotron":
            right = [Nemotron().equal(str(gold), str(answer)) for answer in answers]
        else:
            right = [kind.equal(gold, answer) for answer in answers]
        score += rules.points[sum(right)]
    return score / (1 if rules.scoring == "points" else len(golds))


def describe_score(rules: Competition, golds: Golds, passes: Passes) -> str:
    found = score_of(rules, golds, passes)
    if rules.scoring == "points":
        return f"{found:g} of {len(golds)}, in {len(passes)} passes"
    return f"{found:.4f}, the {rules.scoring} of {len(golds)} questions"
