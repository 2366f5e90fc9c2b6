"""A competition's gateway without Kaggle: questions in random order, one a call, each row checked, the score.

Out of scope: what answers (`aimo.inference.gateway`); Kaggle's own gateway, which a rerun asks with.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from aimo.inference.competitions import Competition
from aimo.inference.errors import AimoError, say

Predict = Callable[[Any, Any], pl.DataFrame]


def ask_each(
    predict: Predict, table: pl.DataFrame, rules: Competition, seed: int = 0
) -> Iterator[tuple[str, int]]:
    """Ask each question of a table in random order, check the row as Kaggle does, and yield (id, answer)."""
    rows = table.select("id", rules.problem_column).rows()
    random.Random(seed).shuffle(rows)
    for question_id, text in rows:
        reply = predict(pl.Series("id", [question_id]), pl.Series(rules.problem_column, [text]))
        yield check_reply(reply, question_id, rules)


def check_reply(reply: Any, question_id: str, rules: Competition) -> tuple[str, int]:
    """Return a reply of `predict` as (id, answer). Raises AimoError for what Kaggle would not accept."""
    if type(reply).__module__.startswith("pandas"):
        reply = pl.from_pandas(reply)
    if not isinstance(reply, pl.DataFrame) or reply.columns != ["id", "answer"] or len(reply) != 1:
        raise AimoError(
            f"question {question_id}: predict must return one row of id and answer, not {reply!r}"
        )
    found_id, answer = reply.row(0)
    if str(found_id) != question_id or not isinstance(answer, int) or not 0 <= answer <= rules.high:
        raise AimoError(
            f"question {question_id}: predict returned {found_id!r}, {answer!r}; "
            f"an integer from 0 to {rules.high} is valid"
        )
    return question_id, answer


def check_start(rules: Competition, seconds: float, rerun: bool = False) -> None:
    """Print how long the start-up took, of the time that Kaggle's gateway waits for a server.

    Raises AimoError when it took longer; in a rerun the gateway itself decides.
    """
    limit = rules.start_limit_s
    if limit is None:
        return
    said = f"the server is ready {seconds:.0f} s after the start; Kaggle's gateway waits {limit:.0f} s for it"
    if seconds > limit and not rerun:
        raise AimoError(f"{said}: attach fewer wheels, or do in the first question what can wait until then")
    say(said)


def golds(table: pl.DataFrame, rules: Competition) -> dict[str, int]:
    """Return the known answers of a table by id; none without a column `answer`.

    Raises AimoError for one that the competition does not take.
    """
    if "answer" not in table.columns:
        return {}
    found = {}
    for question_id, answer in table.select("id", "answer").rows():
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


def points(rules: Competition, gold: int, answers: Sequence[int]) -> float:
    """Return the points of a question with its answer in each pass."""
    return rules.points[answers.count(gold)]


def score(rules: Competition, golds: Mapping[str, int], passes: Sequence[Mapping[str, int]]) -> float:
    """Return the points of all questions with a known answer, given the answers of each pass by id."""
    return sum(points(rules, gold, [answers[name] for answers in passes]) for name, gold in golds.items())
