from concurrent.futures import ThreadPoolExecutor

import pytest

from aimo import answers
from aimo.answers import are_correct, extract, is_correct, to_integer


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
        (r"cut off at \boxed{42", "42"),
        (r"framed $\fbox{5}$", "5"),
        (r"\boxed 7", "7"),
        (r"<SOLUTION>\boxed{5}</SOLUTION>", "5"),
        (r"\boxed{}", None),
        (r"The final answer is $\frac{3}{4}$.", r"$\frac{3}{4}$"),
        ("Answer: **12**", "12"),
        ("So m + n = 169 + 25 = **194**", "194"),
        ("I do not know.", None),
        ("", None),
    ],
)
def test_the_final_answer_is_found_in_every_form(completion, answer):
    assert extract(completion) == answer


def test_the_tags_of_the_profile_are_honoured():
    assert extract("[[12]]", ("[[", "]]")) == "12"


RIGHT = {
    "42": 42, " $1{,}024$ ": 1024, "12,345": 12345, "1,234,567": 1234567, "42.0": 42,
    "12345678901234567.0": 12345678901234567, "0.5*4": 2, ".5*4": 2, "-7": -7, "\u22123": -3, "x = 5": 5, "x_{1} = 12": 12,
    "007": 7, "2^{10}": 1024, "2^10": 1024, "10^{3}-1": 999, "-2^2": -4, "2^{2^{3}}": 256, r"\frac{84}{2}": 42, r"\dfrac{84}{2}": 42,
    r"\frac{2^{3}}{4}": 2, "7!": 5040, r"\binom{5}{2}": 10, r"\sqrt{49}": 7, r"3 \cdot 4": 12, r"3\times 10^{2}": 300, r"90^\circ": 90,
    r"5\text{ apples}": 5, r"12\text{ cm}^2": 12, r"\text{five}": 5, "five": 5, "twenty-one": 21, r"\text{42}": 42, r"\mathrm{12}": 12,
    "(5)": 5, r"\left(2+3\right)^2": 25, r"\$18": 18, "5.": 5,
}  # fmt: skip
NONE = [
    None, "", "4.5", "1.00000000000000000001", "12345678901234567.5", "1.2.3", "1..2",
    "3/4", "1,02", "1 2", "5x", "5 x", "2(3)", r"1\frac{1}{2}", "101_2", r"\pm 5", "5, 6", "(1,2)", "[0,5]", "5!!", "(3)!",
    r"5\text{ dozen}", r"3\text{ million}", r"5 \text{ or } 6", "ten thousand", "seven five", r"50\%", "1e3", "1/0", "0^{-1}", "1000!",
    "9^{9^{9^9}}", r"\pi", "m+n = 12", "x=5=6", "10 mod 7", r"10 \pmod 7", "1_000", "0x10", "True", "()", "9" * 5000, "(" * 150,
]  # fmt: skip


@pytest.mark.parametrize("answer, value", [*RIGHT.items(), *((answer, None) for answer in NONE)])
def test_an_answer_becomes_the_right_integer_or_none(answer, value):
    assert to_integer(answer) == value


def test_a_modulus_is_applied_before_the_range():
    assert to_integer("1234", 0, 999) is None
    assert to_integer("1234", 0, 999, modulus=1000) == 234
    assert to_integer("-1", 0, 999, modulus=1000) == 999


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
        (r"\boxed{42.5}", "42", False),
        ("no answer", "42", False),
        (r"\boxed{\frac{84}{2}}", "42", True),
        (r"\boxed{10,000}", "10000", True),
        (r"\boxed{12\text{ cm}}", "12", True),
        (r"\boxed{0.5}", r"\frac{1}{2}", True),
        (r"\boxed{50\%}", "0.5", True),
        (r"\boxed{x+1}", r"\frac{1}{2}", False),
        (r"\boxed{\{1,2\}}", r"\{2,1\}", True),
        (r"\boxed{[0,1)}", "[0,1)", True),
        (r"\boxed{(0,1)}", "[0,1)", False),
        (r"\boxed{\sqrt{2}/2}", r"\frac{1}{\sqrt{2}}", True),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", True),
        ("no answer", r"\frac{1}{2}", False),
        (r"\boxed{3}", "", None),
        ("nothing", "", None),
    ],
)
def test_a_completion_is_right_when_its_answer_equals_gold(completion, gold, right):
    assert is_correct(completion, gold) is right


def test_many_at_once_are_judged_as_one_by_one_and_an_unreadable_gold_gives_none():
    completions = [rf"\boxed{{{a}}}" for a in ("1", r"\frac{1}{3}", r"\frac{2}{6}", "x", "7")]
    golds = ["1", r"\frac{1}{3}", r"\frac{1}{3}", r"\frac{1}{3}", ""]
    assert are_correct(completions, golds) == [is_correct(c, g) for c, g in zip(completions, golds, strict=True)]
    assert are_correct(completions, golds) == [True, True, True, False, None]


HOSTILE = [
    r"\boxed{9^{9^{9^{9^9}}}}",
    r"\boxed{\frac{1}{9^{9^{9^9}}}}",
    "(" * 1_000_000,
    r"\boxed{" * 100_000,
    r"\boxed{" + "9^" * 400 + "9}",
]


@pytest.mark.parametrize("thread", [False, True])
def test_a_hostile_completion_costs_its_reward_and_not_the_run_in_any_thread(monkeypatch, thread):
    monkeypatch.setattr(answers, "TIME_LIMIT_S", 1.0)
    answers.verify.cache_clear()
    with ThreadPoolExecutor(1) as pool:
        run = (lambda f: pool.submit(f).result()) if thread else (lambda f: f())
        for gold in ("42", r"\frac{1}{2}"):
            assert run(lambda gold=gold: are_correct(HOSTILE, [gold] * len(HOSTILE))) == [False] * len(HOSTILE)
        assert run(lambda: is_correct(r"\boxed{0.5}", r"\frac{1}{2}")) is True, "the workers did not come back"
