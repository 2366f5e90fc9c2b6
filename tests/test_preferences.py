"""Pairs of completions for DPO."""

import pytest

from aimo import config

PROMPT = [{"role": "user", "content": "Q"}]


def pairs(*group, prefill="true"):
    """The pairs of completions given as (text, tokens, right)."""
    from aimo.inference.sampling import Completion
    from aimo.train.dpo import pair_up

    p = config.load("tiny", [f"prompt.prefill={prefill}"])
    completions = [Completion(text, [0] * tokens, finished=True) for text, tokens, _ in group]
    found = pair_up(PROMPT, completions, [right for *_, right in group], p)
    assert all(row["prompt"] == PROMPT for row in found)
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


def test_a_completion_that_was_cut_off_is_not_chosen():
    from aimo.inference.sampling import Completion
    from aimo.train.dpo import pair_up

    group = [Completion("a", [0] * 5, False), Completion("b", [0] * 9, True), Completion("c", [0] * 7, True)]
    (found,) = pair_up(PROMPT, group, [True, True, False], config.load("tiny"))
    assert found["chosen"][0]["content"].endswith("b") and found["rejected"][0]["content"].endswith("c")


def test_a_reply_has_the_opening_tag_that_its_prompt_ends_in():
    assert pairs(("a", 1, True), ("b", 9, True)) == [("long", "<start_working_out>a", "<start_working_out>b")]
