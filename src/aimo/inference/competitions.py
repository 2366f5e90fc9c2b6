"""The AIMO competitions: their rules, their test files, their score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from aimo.inference.errors import AimoError, listed

HOUR_S = 3600.0


@dataclass(frozen=True)
class Competition:
    """The rules of one competition."""

    slug: str  # its name in Kaggle's addresses
    problem_column: str
    high: int  # an answer is an integer from 0 to this
    rules: str  # the sentence on its answers, which prompts may hold as `{rules}`
    accelerators: tuple[str, ...]  # the GPUs that a submission may use, by Kaggle's name
    # Module and class of its inference server in `kaggle_evaluation`; None: it takes a CSV of answers.
    server: str | None = None
    submission: str = "submission.parquet"
    questions: int = 50  # that a rerun is expected to ask
    modulus: int | None = None  # what a result is reduced by where the problem does not say so
    # The points of a question by the number of its right answers, one for each pass over the questions.
    points: tuple[float, ...] = (0.0, 1.0)
    session_s: float = 5 * HOUR_S  # of a submission's notebook with a GPU
    # From the notebook's start, until its server must answer; None: it has no server.
    start_limit_s: float | None = 900.0
    answer_limit_s: float | None = None  # that Kaggle allows for one answer

    @property
    def inputs(self) -> tuple[str, str]:
        """The folders of its files among a notebook's inputs: up to 2025, and since 2026."""
        return self.slug, f"competitions/{self.slug}"

    @property
    def passes(self) -> int:
        """How often its private questions are answered."""
        return len(self.points) - 1


COMPETITIONS = {
    "aimo1": Competition(
        slug="ai-mathematical-olympiad-prize",
        problem_column="problem",
        high=999,
        rules="The answer is an integer from 0 to 999: the result modulo 1000, whether the problem says so "
        "or not. Put this one integer in \\boxed{}.",
        accelerators=("NvidiaTeslaT4",),
        submission="submission.csv",
        modulus=1000,
        session_s=9 * HOUR_S,
        start_limit_s=None,
    ),
    "aimo2": Competition(
        slug="ai-mathematical-olympiad-progress-prize-2",
        problem_column="question",
        high=999,
        rules="The answer is an integer from 0 to 999. If the problem names a modulus, the answer is the "
        "remainder. Put this one integer in \\boxed{}.",
        accelerators=("NvidiaTeslaT4", "NvidiaL4"),
        server="aimo_2_inference_server.AIMO2InferenceServer",
        answer_limit_s=HOUR_S / 2,
    ),
    "aimo3": Competition(
        slug="ai-mathematical-olympiad-progress-prize-3",
        problem_column="problem",
        high=99999,
        rules="The answer is an integer from 0 to 99999. If the problem names a modulus, the answer is the "
        "remainder. Put this one integer in \\boxed{}.",
        accelerators=("NvidiaTeslaT4", "NvidiaL4", "NvidiaH100"),
        server="aimo_3_inference_server.AIMO3InferenceServer",
        points=(0.0, 0.5, 1.0),
    ),
}


def find_competition(name: str) -> Competition:
    """Return a competition by its name. Raises AimoError when there is none."""
    if name not in COMPETITIONS:
        raise AimoError(f"competition {name!r} is unknown: use one of {', '.join(COMPETITIONS)}")
    return COMPETITIONS[name]


def check_questions(table: pl.DataFrame, path: str | Path, competition: str) -> None:
    """Raise AimoError for a test file without ids, problems or rows."""
    has = f"test file {path} has"
    for column in ("id", COMPETITIONS[competition].problem_column):
        if column not in table.columns:
            there = listed(table.columns)
            raise AimoError(f"{has} no column {column!r}, only {there}; {competition} needs it")
    if table.is_empty():
        raise AimoError(f"{has} no rows; it needs one for each question")
    if ((ids := table["id"]) == "").any():
        raise AimoError(f"{has} a row without an id; give every question its own")
    if (twice := ids.filter(ids.is_duplicated())).len():
        raise AimoError(f"{has} the id {twice[0]!r} twice; give every question its own")


def known_answers(table: pl.DataFrame, rules: Competition) -> dict[str, int]:
    """Return the known answers of a table by id. AimoError for one that the competition does not take."""
    found = {}
    for question_id, answer in table.select("id", "answer").rows() if "answer" in table.columns else ():
        if not is_valid(answer, rules):
            raise AimoError(
                f"question {question_id}: its known answer {answer!r} is no integer from 0 to {rules.high}; "
                "correct it, or leave the column `answer` out"
            )
        found[question_id] = int(answer)
    return found


def is_valid(answer: str, rules: Competition) -> bool:
    """Return whether a text is an answer that the competition takes."""
    return answer.isascii() and answer.isdecimal() and int(answer) <= rules.high


def points_of(rules: Competition, golds: Mapping[str, int], passes: Sequence[Mapping[str, int]]) -> float:
    """Return the points of all questions with a known answer, given the answers of each pass by id."""
    return sum(
        rules.points[[answers[name] for answers in passes].count(gold)] for name, gold in golds.items()
    )
