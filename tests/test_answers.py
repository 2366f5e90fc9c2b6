import pytest

from aimo.answers import extract, is_correct, to_integer


@pytest.mark.parametrize(
    "completion, answer",
    [
        ("3 + 4 = 7<end_working_out><SOLUTION>7</SOLUTION>", "7"),
        ("<SOLUTION>1</SOLUTION> no, <SOLUTION> 2 </SOLUTION>", "2"),
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{1} or rather \boxed{2^{10}}", "2^{10}"),
        ("<think>is it <answer>3</answer>?</think> It is <answer>4</answer>", "4"),
        (r"<think>\boxed{5}</think> done", "5"),
        (r"<think>\boxed{5}</think> The answer is 6.", "6"),
        ("Natalia sold 72 clips.\n#### 72", "72"),
        ("A: 18", "18"),
        (r"\boxed{never closed", None),
        ("I do not know.", None),
        ("", None),
    ],
)
def test_the_final_answer_is_found_in_every_form(completion, answer):
    assert extract(completion) == answer


def test_the_tags_of_the_profile_are_honoured():
    assert extract("[[12]]", ("[[", "]]")) == "12"


@pytest.mark.parametrize(
    "answer, value",
    [("42", 42), (" $1{,}024$ ", 1024), ("12,345", 12345), ("42.0", 42), ("-7", -7), ("x = 5", 5), ("007", 7)]
    + [(a, None) for a in ("", None, "4.5", "1,02", "ten", "2^{10}", "5 apples", "1 2", "--3", "9" * 5000)],
)
def test_an_answer_becomes_the_right_integer_or_none(answer, value):
    assert to_integer(answer) == value


def test_an_integer_outside_the_range_is_none():
    assert to_integer("1000", 0, 999) is None
    assert to_integer("-1", 0, 999) is None
    assert to_integer("999", 0, 999) == 999


@pytest.mark.parametrize(
    "completion, gold, right",
    [
        (r"\boxed{42}", "42", True),
        (r"\boxed{42.0}", 42, True),
        (r"\boxed{41}", "42", False),
        ("no answer", "42", False),
        (r"\boxed{\frac{84}{2}}", "42", True),
        (r"\boxed{0.5}", r"\frac{1}{2}", True),
        (r"\boxed{x+1}", r"\frac{1}{2}", False),
    ],
)
def test_a_completion_is_right_when_its_answer_equals_gold(completion, gold, right):
    assert is_correct(completion, gold) is right
