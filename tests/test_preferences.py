import pytest

from aimo import config
from aimo.inference.engine import Completion
from aimo.training.preferences import pair

PROMPT = [{"role": "user", "content": "Q"}]


def pairs(*group, prefill="true"):
    """The pairs of completions given as (text, tokens, right)."""
    p = config.load("tiny", [f"prompt.prefill={prefill}"])
    found = pair(
        PROMPT,
        [Completion(text, tokens, finished=True) for text, tokens, _ in group],
        [right for *_, right in group],
        p,
    )
    return [(row["kind"], row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in found]


@pytest.mark.parametrize(
    "group, expected",
    [
        ([("a", 10, True), ("b", 30, True)], [("long", "a", "b")]),
        ([("a", 10, True), ("b", 12, True)], []),
        ([("a", 10, True), ("b", 30, False), ("c", 20, False)], [("wrong", "a", "b")]),
        ([("a", 10, True), ("b", 30, True), ("c", 5, False)], [("long", "a", "b"), ("wrong", "a", "c")]),
        ([("a", 10, False), ("b", 30, False)], []),
        ([], []),
    ],
)
def test_the_shortest_right_completion_is_preferred_to_a_long_one_and_to_a_wrong_one(group, expected):
    assert pairs(*group, prefill="false") == expected


def test_a_reply_has_the_opening_tag_that_its_prompt_ends_in():
    assert pairs(("a", 1, True), ("b", 9, True)) == [("long", "<start_working_out>a", "<start_working_out>b")]
