# ruff: noqa: RUF001 (answers hold such signs)
"""Finding answers in completions, their exact values, and whether they equal the gold answer."""

import random
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from types import SimpleNamespace

import pytest

from aimo import rewards
from aimo.evaluation import scores
from aimo.evaluation.benchmarks import Question
from aimo.evaluation.completions import EvaluationHeader, Trace
from aimo.inference import judge
from aimo.inference.answers import Integer, extract, to_integer
from aimo.inference.expressions import canonical
from aimo.inference.judge import are_correct, same
from aimo.inference.sample import AskedProblem
from aimo.inference.settings import Settings, Tags


@pytest.mark.parametrize("end", ["[done]", "</think>", "<|end_of_thought|>", "<end_working_out>"])
def test_the_tags_of_the_profile_are_honoured_and_so_are_the_ends_of_thoughts_of_public_models(end):
    tags = Tags(think_end="[done]", answer_start="[[", answer_end="]]")
    assert extract("[[12]]", tags) == "12"
    thought = rf"\boxed{{5}} it is. {end} The answer is 6."  # it holds only a draft
    assert extract(thought, tags) == "6" and are_correct(["draft [[5]]" + thought], ["6"], tags) == [True]
    assert extract(thought) == ("5" if end == "[done]" else "6")


FOUND = [
    ("3 + 4 = 7<end_working_out><SOLUTION>7</SOLUTION>", "7"),
    ("<SOLUTION>1</SOLUTION> no, <SOLUTION> 2 </SOLUTION>", "2"),
    (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"), (r"\boxed{1} or rather \boxed{2^{10}}", "2^{10}"),
    ("<think>is it <answer>3</answer>?</think> It is <answer>4</answer>", "4"),
    (r"<think>\boxed{5}</think> done", "5"), (r"<think>\boxed{5}</think> The answer is 6.", "6"),
    ("A: 18", "18"), (r"cut off at \boxed{42", "42"), (r"framed $\fbox{5}$", "5"), (r"\boxed 7", "7"),
    (r"<SOLUTION>\boxed{5}</SOLUTION>", "5"), (r"\boxed{}", None), ("Answer: **12**", "12"),
    ("So m + n = 169 + 25 = **194**", "194"), ("I do not know.", None), ("", None),
    ("The values are \\boxed{3}, \\boxed{5}, \\boxed{7}", "3, 5, 7"),
    (r"$x = \boxed{3}$ and $y = \boxed{5}$", "3, 5"), (r"It is \boxed{5}, since \boxed{6} is even", "6"),
    ("It is \\boxed{840}.\n\n**Final Answer**\n\\boxed{840}", "840"),
    (r"So \boxed{7}. As asked, it stands in \boxed", "7"),
    (r"So \boxed{7}. Then \boxed{}, \boxed{\text{}} and \boxed{\ldots}", "7"),
    (r"So \boxed{42}. The answer is \boxed{4", "42"), ("<answer>4</answer> <answer></answer>", "4"),
    ("<answer>The answer is 42.</answer>", "42"), ("**Answer:**\n\n42", "42"), ("Answer:\n\\[ 17 \\]", "17"),
    ("Final Answer: The final answer is $16$. I hope it is correct.", "$16$"), ("ANSWER: **A**", "A"),
    ("Answer = 17", "17"), ("答案是 **17**。", "17"), (r"\textbf{Final answer:} 42", "42"),
    ("The answer is therefore 42", "42"), ("The answer is 42 because 6 * 7 = 42.", "42"),
    ("The answer is 42 (see step 3).", "42"), ("The answer is 3:30 p.m. at last.", "3:30 p.m. at last"),
    ("The answer is 42. I am sure that this answer is correct.", "42"),
    ("The answer is $f(x) = x$, where x is real.", "$f(x) = x$"), ("Answer: 42 (mod 100)", "42 (mod 100)"),
    ("Answer: 12\n\n#### Verification\nIt is right.", "12"), ("Give your answer to the nearest ten.", None),
    ("The final result is 42.", "42"), ("Die Antwort lautet 42.", "42"), ("الجواب: 42", "42"),
    ("So \x08oxed{\x0crac{84}{2}}", r"\frac{84}{2}"), ("so boxed{42}", "42"), ("unboxed{41}, #### 42", "42"),
]  # fmt: skip


@pytest.mark.parametrize("completion, answer", FOUND)
def test_an_answer_is_found_as_people_and_models_write_it(completion, answer):
    assert extract(completion) == answer


INTEGERS = {  # what an answer reads as
    r"m+n = 42": 42, r"2^{10} = 1024": 1024, r"42 = m+n": 42, r"1042 \equiv 42 \pmod{1000}": 42,
    r"42 \pmod{1000}": 42, r"(A)\ 7": 7, r"\textbf{(A)}\ 7": 7, r"４２": 42, "٤٢": 42, "10\u202f000": 10000,
    r"1.234.567": 1234567, r"–5": -5, r"√16": 4, r"4²": 16, r"½·84": 42, r"3 × 4": 12, r"1.2e5": 120000,
    r"1.2 \times 10^5": 120000, r"\{42\}": 42, r"\text{The answer is } 42": 42, r"42 m": 42, r"42\%": 42,
    r"n = 42 \text{ (since n is even)}": 42, r"42\text{ m/s}": 42, r"42^\circ": 42, r"42 °C": 42, r"£42": 42,
    r"\textcolor{red}{42}": 42, r"\sqrt(16)": 4, r"\sqrt{2}\sqrt{8}": 4, r"\log_2 8": 3, r"1{,}024": 1024,
    r"\left\lceil\frac{5}{2}\right\rceil": 3, r"\left|-3\right|": 3, r"\gcd(12, 18)": 6, r"\binom52": 10,
    r"{5 \choose 2}": 10, r"\bf 42": 42, '"42"': 42, r"\#42": 42, r"42_{10}": 42, r"42\text{,}000": 42000,
    "\x0crac{84}{2}": 42, "6\times 7": 42, " $1{,}024$ ": 1024, "12,345": 12345, "42.0": 42, "007": 7,
    "12345678901234567.0": 12345678901234567, ".5*4": 2, "x_{1} = 12": 12, "2^10": 1024, "-2^2": -4,
    "2^{2^{3}}": 256, r"\frac{2^{3}}{4}": 2, "7!": 5040, r"12\text{ cm}^2": 12, "twenty-one": 21,
    r"\text{42}": 42, r"\left(2+3\right)^2": 25, r"\$18": 18, "5.": 5, "1,234 dollars": 1234, "2**10": 1024,
    r"11,\! 111,\! 100": 11111100, r"\frac9{3}": 3, r"\sqrt 4": 2, "2(3)": 6, "5 per cent": 5, "i^2": -1,
}  # fmt: skip
NONE = [  # answers that are no integer for certain
    r"1042 \pmod{1000}", r"1043 \equiv 42 \pmod{1000}", r"5 = 6", r"2x - 84 = 0", r"A", r"1.5e0", r"\pm 42",
    r"x > 42", r"42x", r"42_5", r"2024-07-04", r"0{,}5", r"1\frac{1}{2}", r"1\frac{4}{2}", "", "1..2",
    "1.00000000000000000001", "12345678901234567.5", "1,02", "1 2", "5, 6", "(1,2)", "5!!", "(3)!",
    "(1,234)", "5 dozen eggs", r"3\text{ fifths}", "2 log x", r"2\cdot\cdot 3", r"10\text{11}", "sqrt()", "e",
    "1" + ",000" * 2000, r"5 \text{ or } 6", "ten thousand", "seven five", "1/0", "1000!", "9^{9^{9^9}}",
    r"\pi", "x=5=6", r"10 \pmod 7", "1_000", "0x10", "True", "()", "9" * 5000, "(" * 150,
]  # fmt: skip


@pytest.mark.parametrize("answer, value", [*INTEGERS.items(), *((answer, None) for answer in NONE)])
def test_an_answer_becomes_the_right_integer_or_none(answer, value):
    assert to_integer(answer) == value


READ = {  # whole completions
    "Final Answer: The final answer is $16$. I hope it is correct.": 16,
    "The answer is 42, because 6*7 = 42.": 42, "The answer is 42 miles.": 42, "The answer is not 42.": None,
    "Answer: $x=5, y=6$": None, r"\boxed{3}, \boxed{5}": None, r"\boxed{42}, that is \boxed{42}": 42,
    "**42**": 42, "#### 42": 42, "": None,
}  # fmt: skip
READ |= {rf"\boxed{{{answer}}}": value for answer, value in INTEGERS.items()}
READ |= {rf"\boxed{{{answer}}}": None for answer in NONE}


@pytest.mark.parametrize("gold", [42, 7])
def test_reward_figure_and_vote_read_one_answer_alike(gold):
    texts, integers = list(READ), list(READ.values())
    wanted = [integer == gold for integer in integers]
    given = rewards.accuracy_reward(texts, answer=[str(gold)] * len(texts))
    assert [reward == 1 for reward in given] == wanted
    asked = [Question(f"{i}", "?", str(gold)) for i in range(len(texts))]
    header = EvaluationHeader("m", "w", "b", 0, {}, 0, asked)
    found = scores.score(header, [Trace(f"{i}", 0, 0, text, 1, True, 0, 1) for i, text in enumerate(texts)])
    assert found.right[:, 0].tolist() == wanted
    ballots = [scores.ballot(str(gold), *pair)[1][0] for pair in zip(found.answers, found.right, strict=True)]
    problem = AskedProblem(SimpleNamespace(settings=Settings()), "?", 0, Integer(-(10**18), 10**18))
    assert [problem.read(text) for text in texts] == ballots == integers


def expression(rng, depth):
    """A random exact expression as (LaTeX, value)."""
    if depth == 0:
        n = rng.randint(0, 30)
        return rng.choice([(f"{n}", Fraction(n)), (f"{n}.5", n + Fraction(1, 2)), (f"({n})", Fraction(n))])
    (a, x), (b, y) = expression(rng, depth - 1), expression(rng, depth - 1)
    forms = [
        (f"({a}) + {b}", x + y), (rf"{a} - \left({b}\right)", x - y), (rf"({a})\cdot({b})", x * y),
        (f"-({a})", -x), (f"({a})^{{2}}", x**2), (rf"\sqrt{{({a})^2}}", abs(x)),
    ]  # fmt: skip
    quotients = (rf"\frac{{{a}}}{{{b}}}", rf"({a}) / ({b})") if y else ()
    return rng.choice(forms + [(quotient, x / y) for quotient in quotients])


@pytest.mark.parametrize("decoration", ["{}", "x = {}", r"{}\text{{ cm}}", "{} miles"])
def test_exact_arithmetic_gives_the_right_integer_or_none(decoration):
    rng = random.Random(decoration)
    made = [expression(rng, rng.randint(0, 3)) for _ in range(500)]
    read = [(to_integer(decoration.format(latex)), value) for latex, value in made]
    assert all(found in (None, value) for found, value in read)
    assert sum(found is not None for found, _ in read) > 30


def test_a_modulus_is_applied_before_the_range_and_outside_it_there_is_no_answer():
    assert [Integer(0, 999).read(text) for text in (None, "1234", "-1", "999")] == [None, None, None, 999]
    assert [Integer(0, 999, 1000).read(text) for text in ("1234", "-1")] == [234, 999]


JUDGED = [  # answer (None: there is none), gold answer, verdict
    ("42", "42", True), ("42.0", 42, True), ("42.5", "42", False), (None, "42", False),
    (r"\frac{84}{2}", "42", True), (r"12\text{ cm}", "12", True), ("x+1", r"\frac{1}{2}", False),
    ("[0,1)", "[0,1)", True), ("(0,1)", "[0,1)", False), (r"\sqrt{2}/2", r"\frac{1}{\sqrt{2}}", True),
    (None, r"\frac{1}{2}", False), ("3", "", None), (None, "", None),
    ("3:30 PM", r"3\!:\!30\text{ p.m.}", True), ("15:30", "3:30 p.m.", True), ("3:30", "3:30 p.m.", True),
    ("3:30 a.m.", "3:30 p.m.", False), ("3:31 PM", "3:30 PM", False), ("12 p.m.", "12 a.m.", False),
    ("5000 m", r"5\text{ km}", True), ("1 foot", r"12\text{ inches}", True), ("5 kg", "5 km", False),
    (r"\frac{11}{2}\text{ hours}", "330 min", True), ("5 m", r"5\text{ km}", False),
    ("5", r"5\text{ km}", True), ("1:00", "12:00", False), ("-1 + exp(16)", "e^{16} - 1", True),
    (r"\left(-\infty,2\right]\cup [3, \infty)", r"(-\infty,2]\cup[3,\infty)", True),
    (r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", True),
    (r"\begin{pmatrix}1&2&3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", False),
    (r"m > \sqrt{2}", r"[\sqrt{2},\infty)", False), (r"(A)\ 7", "7", True), ("7", r"(A)\ 7", True),
    (r"(A)\ 7", "A", True), (r"\textbf{(B)}\ 7", "A", False), ("C. some text", "C", True),
    (r"e^{-40}", "e^{-41}", False), (r"3\cdot x-1*y+13=0", "3x + 4y + 14=0", False),
    ("-34x-45y+20z-100=0", "34x+45y-20z+100=0", True),
    (r"F_n = \sum_{k=0}^{n-2} F_k", r"F_n = \sum_{k=0}^{n-1} F_k", False),
    (r"\sec^2(y)", r"\tan^2(y)+1", True), (r"x<-2 \text{ or } x>2", r"(-\infty,-2)\cup(2,\infty)", True),
]  # fmt: skip


@pytest.mark.parametrize("answer, gold, right", JUDGED)
def test_an_answer_is_right_when_it_means_the_gold_answer(answer, gold, right):
    assert are_correct(["no answer" if answer is None else rf"\boxed{{{answer}}}"], [gold]) == [right]


EQUAL = [
    (r"\sqrt{8}", r"2\sqrt2"), (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"), ("2pi", r"2\pi"),
    ("(x+1)^2", "x^{2} + 2x + 1"), (r"\frac{n(n+1)}{2}", "(n^2+n)/2"), ("6 - 5 i", "-5i+6"),
    ("(1+i)^2", "2i"), (r"\left\{1, 2\right\}", r"\{2,1\}"), ("(0, 1]", r"\left(0,1\right]"),
    (r"\left(\dfrac{1}{2}, 3\right)", "(0.5,3)"), ("2x+3", "y = 2x + 3"),
    (r"1 \pm \sqrt{2}", r"1+\sqrt{2}, 1-\sqrt{2}"), (r"x \in [-2,7]", "[-2,7]"), (r"\text{(C)}", "C"),
    (r"\begin{bmatrix} 1 \\ -1/3 \end{bmatrix}", r"\begin{pmatrix}1\\-\frac13\end{pmatrix}"),
    ("x=2,x=3", "2,3"), (r"k \geq 2", r"k\geqslant 2"), (r"137\frac{1}{2}", "137.5"), ("20%", "20"),
    (r"12\pi\text{ cm}^2", r"12\pi"), (r"x=1 \text{ or } x=2", "1,2"), ("1A3F_{16}", "1A3F_16"),
    ("$4210_{ 5 }$", "4210_5"), (r"4210_{\text{5}}", "4210_5"), (r"\left(4210\right)_5", "4210_{5}"),
    (r"(4210)_\text{five}", "4210_5"), (r"1A3_{\mathrm{Sixteen}}", "1A3_{16}"), ("4210_{five}", "4210_{5}"),
    ("a_{1}b_2", "a_1b_{2}"), ("x_1 = 4210_5", "4210_{5}"), ("(4_5, 3_5)", "(4_{5}, 3_{5})"),
    ("3+4\\mathrm{i}", "3+4i"), ("sqrt(2)/2", r"\frac{\sqrt{2}}{2}"), ("x**2", "x^2"), ("x²+1", "x^2+1"),
    ("√(x+1)", r"\sqrt{x+1}"), ("2½", "2.5"), ("1 1/4", r"\frac54"), ("0{,}5", "1/2"), ("0.333...", "1/3"),
    (r"0.1\overline{6}", "1/6"), ("0.(3)", "1/3"), ("1.5 × 10⁻³", "0.0015"), ("1.5e-3", "0.0015"),
    (r"m \geq \sqrt{2}", r"m \in [\sqrt{2}, +\infty)"), ("0 < x < 12.5", "(0,12.5)"),
    ("3 ≥ x", r"(-\infty,3]"), ("x>3, x<1", r"(-\infty,1)\cup(3,\infty)"), ("3, 5, and 7", "3,5,7"),
    ("1:2:3", "2:4:6"), ("1:2", r"\frac12"), (r"4\text{ July }1776", "July 4th, 1776"),
    ("1776-07-04", "July 4, 1776"),
    (r"\langle 1,2\rangle", "(1,2)"), ("1,2,...,n", r"1, 2, \ldots, n"), ("α+1", r"\alpha+1"),
    ("(x,y)=(1,2)", "(1,2)"), (r"{1 \over 2}", "1/2"), ("0.125", r"12.5\%"), ("-inf", r"-\infty"),
    (r"x \ne 2", r"(-\infty,2)\cup(2,\infty)"), (r"\text{No solution.}", r"\emptyset"),
    (r"\overline{AB}", "AB"), (r"\lvert x\rvert", "|x|"), (r"{n \choose 2}", r"\binom{n}{2}"),
]  # fmt: skip
DIFFERENT = [
    (r"\sqrt{8}", "2.8"), ("x+1", "x+2"), ("(1,2)", "(2,1)"), ("1,2,3", "1,2"), ("(1,2,3)", "(1,2)"),
    (r"\frac{1}{1997}", r"\frac{1}{1999}"), ("west", r"\text{east}"), ("10^{20}", "10^{20}+1"),
    ("(12,102)", "12102"), ("3", r"\text{even}"), ("10+John's age", "50"), ("no answer", "5"),
    (r"k \geq 2", r"k \geq 7"), ("4210_5", "4210_{6}"), ("4210_{5}", "4211_5"), ("101_1", "101_{12}"),
    (r"4210_{\text{six}}", "4210_5"), (r"1, 3, 5, \ldots, 2n-1", r"1, 2, \ldots, n"),
    (r"1:4:9:\ldots", r"1:2:3:\ldots"), ("2:3", "1:2"), (r"1+2+\cdots+n", r"1+2+\cdots+m"),
    (r"\frac{1}{600!}", r"\frac{1}{601!}"), ("e^{-20}", "e^{-21}"), ("0.0000012", "0.0000014"),
    ("n=1,2,3", "n=2,3,4"), (r"4\sqrt(2)", "4"), ("2021", r"\pm 2021"), ("July 5", "July 4"),
    ("D=(0,1.5)", "D=(0,1)"), (r"20\%", "0.5"), (r"1+\frac{1}{\mathrm{e}}", r"1-\frac{1}{e}"),
    ("0.3", r"0.\overline{3}"),
]  # fmt: skip
UNDECIDED = [
    ("0.333333", r"\frac{1}{3}"), ("3.141593", r"\pi"), ("1/2x", r"\frac{x}{2}"), ("(1,2)", "1,2"),
    ("(1,2)", "[1,2]"), ("5 m", "5"), (r"\sqrt{x^2}", "x"), (r"|x|", "x"),
    (r"\lfloor x\rfloor", r"\lfloor y\rfloor"),
    (r"\sqrt{x}\sqrt{y}", r"\sqrt{xy}"), (r"10^{15}+\sqrt{2}", r"10^{15}+\sqrt{3}"), ("1,2,2", "1,2"),
    ("x=1", "y=1"), ("1 2", "12"), ("f(x+1)", "f(x)+f"), (r"\cot x", r"\frac{1}{\tan x}"), ("52", "52_8"),
    ("", ""), ("5", ""), (r"\log_28", r"\log_{28}"), ("x_12", "x_{12}"), ("a_{n+1}", "a_n+1"),
]  # fmt: skip


@pytest.mark.parametrize("pairs, verdict", [(EQUAL, True), (DIFFERENT, False), (UNDECIDED, None)])
def test_what_is_plainly_written_is_decided_without_algebra_and_nothing_else(pairs, verdict):
    assert [(a, b) for a, b in pairs if same(canonical(a), canonical(b)) is not verdict] == []


def test_many_are_judged_at_once_in_their_order():
    answers, golds, verdicts = zip(*JUDGED, *JUDGED[::-1], strict=True)
    assert judge.are_equal(answers, golds) == [*verdicts]


HOSTILE = [
    r"\boxed{1}" + " " * 1_000_000 + r"\boxed{2}", "answer is correct " * 50_000, r"\boxed{" * 100_000,
    r"\boxed{\frac{1}{9^{9^{9^9}}}}", r"\boxed{" + "9^" * 400 + "9}", r"\boxed{" + "1," * 500_000 + "}",
    r"\boxed{" + r"\{1," * 100 + r"\}" * 100 + "}", r"\boxed{" + "500!^9*" * 20 + "1}",
]  # fmt: skip


@pytest.mark.slow  # each one that is killed costs another import of sympy
def test_a_hostile_completion_gets_no_reward_and_does_not_stop_the_run_in_any_thread(monkeypatch):
    judge.verify.cache_clear()
    with ThreadPoolExecutor(1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(judge, "TIME_LIMIT_S", 0.3)
            in_a_thread = pool.submit(are_correct, HOSTILE, ["42"] * len(HOSTILE))
            assert are_correct(HOSTILE, [r"\frac{1}{2}"] * len(HOSTILE)) == [False] * len(HOSTILE)
            assert in_a_thread.result() == [False] * len(HOSTILE)
        # The workers are there again, for any thread.
        assert are_correct([r"\boxed{\cot x}"], [r"\frac{1}{\tan x}"]) == [True]
        assert pool.submit(are_correct, [r"\boxed{\sec x}"], [r"\frac{1}{\cos x}"]).result() == [True]
