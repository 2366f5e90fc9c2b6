# ruff: noqa: RUF001 (answers hold such signs)
r"""Decide whether two answers are equal, and which integer an answer is.

`plain` writes an answer in ASCII LaTeX, `canonical` drops what does not change its meaning, `values` computes
it, `integer` reads it. `same` compares plain values in microseconds: numbers, fractions, roots, tuples, sets,
matrices, relations, measures, words. What takes algebra goes to math-verify in worker processes, each answer
with a hard time limit, so that a completion can lose its reward but cannot stop the run. Out of scope:
finding the answer (`aimo.inference.answers`); grading proofs.
"""

import ast
import atexit
import cmath
import json
import math
import operator
import os
import queue
import random
import re
import select
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache, lru_cache, partial
from typing import Any

Number = Fraction | complex

TIME_LIMIT_S = 5.0
"""Wall time of one answer in math-verify."""
WORKERS = min(4, len(os.sched_getaffinity(0)))
LONGEST = 400  # characters of an answer that is read without math-verify

NUMBER_WORDS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
    "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15,
    "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40,
    "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
TEXT = r"\\(?:text|mathrm|textrm|textbf|mathbf|mbox|textit|operatorname)"


def are_equal(answers: Sequence[str | None], golds: Sequence[str | int]) -> list[bool | None]:
    """Whether each of n answers equals its gold answer; False for no answer.

    None where the gold answer cannot be read. Pairs that need math-verify run side by side in WORKERS
    processes, TIME_LIMIT_S each; a pair that exceeds the time or the memory is wrong. The first such pair
    costs a second, in which the workers import sympy.
    """
    pairs = [(answer, str(gold).strip()) for answer, gold in zip(answers, golds, strict=True)]
    verdicts: list[bool | None] = [None] * len(pairs)
    hard: dict[tuple[str, str], list[int]] = {}
    for i, (answer, gold) in enumerate(pairs):
        verdicts[i] = quick_verdict(answer, gold)
        if verdicts[i] is None:
            hard.setdefault((answer or "", gold), []).append(i)
    if hard:
        # A few pairs are not worth starting another process for.
        with ThreadPoolExecutor(min(WORKERS, 1 + len(hard) // 8)) as threads:
            found = threads.map(lambda pair: verify(*pair), hard)
            for places, verdict in zip(hard.values(), found, strict=True):
                for i in places:
                    verdicts[i] = verdict
    return verdicts


def quick_verdict(answer: str | None, gold: str) -> bool | None:
    """Whether an answer equals the gold answer, where that takes no algebra; None otherwise."""
    if answer is None:
        return False if re.search(r"\w", gold) else None
    if (target := integer(gold) if PLAIN.fullmatch(gold) else None) is not None:
        return integer(answer) == target
    if answer == gold and re.search(r"\w", gold):
        return True
    if len(answer + gold) > 600:
        return None
    (label, rest), (wanted, meant) = choice(answer), choice(gold)
    if wanted and label:
        return label == wanted
    if wanted and not meant:
        return None if re.fullmatch(r"\W*[A-Ja-j]\W*", answer) else False
    a, b = canonical(rest), canonical(meant)
    verdict = same_measure(a, b)
    if verdict is None and re.fullmatch(r"(?:\w(?:\(\w\))?=)?(?!.*per ?cent)[^=<>≤≥≡≈%]+", b):
        value = number(b)
        if value is not None and value.denominator == 1:
            return number(a) == value
    return same(a, b) if verdict is None else verdict


# Notation

PLAIN = re.compile(r"-?(?:[0-9]{1,18}|[0-9]{1,3}(?:,[0-9]{3}){1,5})(\.[0-9]{1,30})?")
SYMBOLS = str.maketrans({
    **dict.fromkeys("−‐‑‒–—―﹣", "-"), **dict.fromkeys("·⋅∙", r"\cdot "), **dict.fromkeys("÷⁄∕", "/"),
    **dict.fromkeys("≤⩽", r"\leq "), **dict.fromkeys("≥⩾", r"\geq "), **dict.fromkeys("°º", r"^\circ "),
    **dict.fromkeys("′’", "'"), "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}", "×": r"\times ", "≠": r"\neq ", "≈": r"\approx ", "≡": r"\equiv ",
    "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "∅": r"\emptyset ",
    "…": r"\ldots ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⟨": "(", "⟩": ")",
})  # fmt: skip
Rewrite = str | Callable[[re.Match[str]], str]


def compiled(*rewrites: tuple[str, Rewrite]) -> list[tuple[re.Pattern[str], Rewrite]]:
    """Rewrites with their patterns compiled, which halves the time of a short text."""
    return [(re.compile(pattern, re.DOTALL), replacement) for pattern, replacement in rewrites]


INNER = r"((?:[^()]|\([^()]*\))*?)"  # brackets that hold at most one more pair
NOTATION = compiled(
    (r"\A\s*\*\*(.*)\*\*\s*\Z", r"\1"),
    (r"(?<=[\w)}])\s*\*\*\s*(\d+|[a-z]|\([^()]*\))", r"^{\1}"),
    (r"\*", r"\\cdot "),
    (r"\\(?:phantom|hspace|vspace|tag|label|(?:text)?color)\*?\{[^{}]*\}", ""),
    (r"\\(?:boldsymbol|bm|mathbf|mathsf|mathit)\{([^{}]*)\}", r"\1"),
    (rf"{TEXT}\{{\s*([ei])\s*\}}", r"\1"),
    (r"\\c?dots(?![a-z])|\\ldots(?![a-z])|\.{3,}", r"\\ldots "),
    (r"\\[dtc]frac(?![a-z])", r"\\frac"),
    (r"\{([^{}]*)\\over(?![a-z])([^{}]*)\}", r"\\frac{\1}{\2}"),
    (r"(?<![a-z\\])(ln|log|sin|cos|tan|cot|sec|csc)(?![a-z])", r"\\\1"),
    (rf"\\?(?<![a-z])sqrt\s*(?:\\left)?\({INNER}(?:\\right)?\)", r"\\sqrt{\1}"),
    (rf"\\?(?<![a-z])exp\s*(?:(?:\\left)?\({INNER}(?:\\right)?\)|\{{([^{{}}]*)\}})", r"e^{\1\2}"),
    # A decimal comma: behind 0, or before any but three digits.
    (r"(?<![\d.])(0|-0)\{,\}(?=\d)|(?<=\d)\{,\}(?=\d{1,2}(?!\d)|\d{4})", r"\1."),
    (r"(\d*)\.(\d*)(?:\\(?:overline|bar|dot)\{(\d+)\}|\((\d+)\))", lambda m: fraction(*m.groups())),
    (r"(?<![\d.])(\d*)\.(\d{0,9}?)(\d{1,9}?)\3{2,}\s*\\ldots", lambda m: fraction(*m.groups())),
    (r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})(?![\w.])", r"\1\\cdot 10^{\2}"),
    (r"(?<=\d) ?x ?(?=10\^)", r"\\times "),
    (r"\A\W*\d{1,3}(?:(?:[ ']\d{3})+|(?:\.\d{3}){2,})(?!\w)", lambda m: re.sub(r"(?<=\d)\D", "", m[0])),
)  # fmt: skip


@lru_cache(maxsize=100_000)
def plain(text: str) -> str:
    r"""An answer in ASCII LaTeX: `½` is `\frac{1}{2}`, `√3` `\sqrt{3}`, `0.\overline{3}` `\frac{1}{3}`."""
    if not text.isascii():
        thousands = r"(?<=\d)[\u00a0\u2002-\u200a\u202f](?=\d{3}(?!\d))"
        text = re.sub(rf"{thousands}|[\u200b-\u200f\u2060\ufeff]", "", text)
        text = re.sub(r"[⁰¹²³⁴-⁹⁺⁻ⁿ]+", lambda found: f"^{{{compatible(found[0])}}}", text)
        text = re.sub(r"[₀-₉]+", lambda found: f"_{{{compatible(found[0])}}}", text)
        text = re.sub(
            r"[\u00bc-\u00be\u2150-\u215e]",
            lambda found: r"\frac{{{}}}{{{}}}".format(*compatible(found[0]).split("\u2044")),
            text,
        )
        text = compatible(text.translate(SYMBOLS)).translate(SYMBOLS)
        text = re.sub(r"[α-ωΑ-ΡΣ-Ω]", greek, text)
        text = re.sub(r"([√∛∜])\s*(\d+(?:\.\d+)?|\\?[a-z]+|\{[^{}]*\}|\([^()]*\))", radical, text)
        text = text.rstrip("。 ")
    for pattern, replacement in NOTATION:
        text = pattern.sub(replacement, text)
    return text


compatible = partial(unicodedata.normalize, "NFKC")


def greek(found: re.Match[str]) -> str:
    """A Greek letter as a command."""
    _, case, _, name = unicodedata.name(found[0]).replace("FINAL ", "").split(" ")[:4]
    name = name.lower().replace("lamda", "lambda")
    return f"\\{name.title() if case == 'CAPITAL' else name} "


def radical(found: re.Match[str]) -> str:
    """A root sign as a command."""
    return {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}[found[1]] + "{" + found[2].strip("(){}") + "}"


def fraction(whole: str, digits: str, marked: str, bracketed: str = "") -> str:
    """A repeating decimal as an exact fraction."""
    period = marked or bracketed
    nines = 10 ** len(period) - 1
    value = Fraction(int(whole + digits or "0") * nines + int(period), nines * 10 ** len(digits))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def base_in_digits(found: re.Match[str]) -> str:
    """A numeral with its base in digits: `4210_{5}` for `4210_{five}`; unchanged where it names none."""
    base = NUMBER_WORDS.get(found[2].lower())
    return f"{found[1]}_{{{base}}}" if base else found[0]


def without_group_commas(found: re.Match[str]) -> str:
    """A number without the commas between its thousands; what is in brackets unchanged."""
    return found[0].replace(",", "") if found[0][0].isdigit() else found[0]


REWRITES = compiled(
    (r"\\\\", ";"),
    (r"(?<=\d)(?<!\d{4})(?:\{,\}|,\\!)(?:\\[,!]|\s)*(?=\d{3}(?!\d))", ""),
    (r"\\!\s*|\\[,;: ]|~|\\(?:left|right|displaystyle|q?quad)(?![a-z])|\\?[$€£]|\\[()\[\]]", ""),
    (r"\\langle(?![a-z])", "("),
    (r"\\rangle(?![a-z])", ")"),
    # A subscript is the same with and without braces. Of several digits without braces, LaTeX takes the
    # first; behind a numeral (4210_12) they are its base, and elsewhere they are left as they are.
    (rf"_(?:\{{\s*{TEXT}\{{\s*(\w+)\s*\}}\s*\}}|{TEXT}\{{\s*(\w+)\s*\}})", r"_{\1\2}"),
    (r"(?<![A-Za-z\d])\((\d[\dA-F]*)\)(?=_)", r"\1"),
    (r"(?<![A-Za-z\d])(\d[\dA-F]*)_(\d+)", r"\1_{\2}"),
    (r"(?<![A-Za-z\d])(\d[\dA-F]*)_\{\s*([A-Za-z]+)\s*\}", base_in_digits),
    (r"_([A-Za-z]|\d(?!\d))", r"_{\1}"),
    (r"(?:[(\[]|\\\{).*|(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])", without_group_commas),
    (r"(?:\^ ?(?:\{\s*\\circ\s*\}|\\circ(?![a-z])|o\Z)|\\degrees?(?![a-z])) ?(?:[CF]\Z)?", ""),
    (r"\*\*", "^"),
    (r"\\(?:cdot|times|ast)(?![a-z])", "*"),
    (r"\\div(?![a-z])", "/"),
    (r"\\pi(?![a-z])|(?<![A-Za-z\\])pi(?![A-Za-z])", "π"),
    (r"\+?(?:\\infty(?![a-z])|infinity)", "ꝏ"),  # a letter to Python, so it can be part of an expression
    (r"\\in(?![a-z])", "="),
    (r"\\equiv(?![a-z])", "≡"),
    (r"\\approx(?![a-z])", "≈"),
    (r"\\ge(?:qslant|q)?(?![a-z])|>=", "≥"),
    (r"\\le(?:qslant|q)?(?![a-z])|<=", "≤"),
    (r"\\gt(?![a-z])", ">"),
    (r"\\lt(?![a-z])", "<"),
    (rf",?\s*(?:{TEXT}\{{\s*(?:and|or)\s*\}}|(?<![A-Za-z])(?:and|or)(?![A-Za-z]))\s*", ","),
    (r"\s+(?!\w)|(?<!\w)\s+|\.\s*\Z", ""),
)


@lru_cache(maxsize=100_000)
def canonical(text: str) -> str:
    """An answer without what does not change its meaning: spaces, dollars, sizes of brackets, degrees."""
    text = plain(text)
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    return text.strip()


def choice(text: str) -> tuple[str, str]:
    r"""The label of a choice and its content: ("A", "7") for `(A)\ 7`; ("", text) where there is no label.

    A label alone is its own content.
    """
    text = re.sub(rf"\A{TEXT}\{{([^{{}}]*)\}}\Z", r"\1", text)
    letter = rf"[\s$*]*(?:{TEXT}\{{)?\s*"
    if alone := re.fullmatch(rf"{letter}(?:(?:[Oo]ption|[Cc]hoice) )?\(?([A-J])\)?\s*\}}?[\s$*.]*", text):
        return alone[1], text
    label = rf"{letter}(?:\(([A-J])\)|([A-J])[.):])\s*\}}?"
    space = r"(?:\\[ ,;:!]|\\q?quad(?![a-z])|~|\s|(?=[-\d$]))+"
    product = r"\\(?:cup|cap|cdot|times|to|in|subset)(?![a-z])|[+*/=^]"
    found = re.fullmatch(rf"{label}{space}(?!{product})(.+)", text, re.DOTALL)
    return (found[1] or found[2], found[3]) if found else ("", text)


# Values

# After a number these words change its value, so they are not units.
NOT_UNITS = re.compile(
    r"\b(dozens?|scores?|grand|tens|(?:hundred|thousand|[mb]illion|trillion)s?|per ?cent\w*"
    r"|mod|modulo|base|choose|factorial|squared|cubed"
    r"|pi|or|and|to|of|than|times|plus|minus|point|over|under|above|below|negative|more|less|fewer"
    r"|twice|double|triple|half|halves"
    r"|(?:quarter|third|fourth|fifth|sixth|seventh|eighth|ninth|eleventh|twelfth|\w*tenth"
    r"|\w+(?:teen|tie|d|lion)th)s?"
    r"|(?:arc)?(?:sin|cos|tan|cot|sec|csc|log|exp|sqrt)[a-z]?|" + "|".join(NUMBER_WORDS) + r")\b"
)
UNIT = re.compile(
    rf"(?<=[\w)}}!]) ?{TEXT}\{{([A-Za-z .²³^23/]*)\}}(?:\^\{{?[23]\}}?)?\Z"
    r"|(?<=\d) ((?:(?:an?|per) )?(?:[A-Za-z][a-z]{3,}|[ckm]m|k?m/[hs]|kg|lbs?|ft|mph|min|sec|day"
    r"|cup|egg|men|USD|EUR)\b[A-Za-z .]*)(?:\^\{?[23]\}?)?\Z"
)
FUNCTION = r"(?:fact|binom|sqrt|root|log)(?=\()"
NOT_ARITHMETIC = re.compile(
    r"[^\w+\-*/()., ]|_|,\)|[A-Za-z]{4}|sin|cos|tan|cot|sec|csc|log|ln|exp|mod|[fghFGHPQ]\(|\w \d|[^\W\d]\d"
    r"|\d{4}-\d?\d-\d"  # a date
)
MODULUS = re.compile(r"(?:,? ?\(? ?\\?(?:b|p)?mod(?:ulo)?(?![a-z]))[ {(]*(\d+)[ })]*\Z")


def compute(answer: str) -> Fraction | int | None:
    """The value of an answer in LaTeX or plain arithmetic; None where it is not exact, or too large."""
    text = answer.strip()
    if exact := PLAIN.fullmatch(text):
        text = text.replace(",", "")
        return Fraction(text) if exact[1] else int(text)
    found = values(canonical(text)) if len(text) <= 200 else ()
    return found[0] if found and isinstance(found[0], Fraction) else None


@lru_cache(maxsize=100_000)
def integer(answer: str) -> int | None:
    """The integer that an answer states, or None when it is not certain to be one.

    `integer` is what a vote counts and what an integer gold answer is compared with.
    """
    value = compute(answer)
    if value is None and len(answer) <= LONGEST:
        value = number(canonical(choice(answer)[1]))
    is_one = value is not None and value.denominator == 1 and value.numerator.bit_length() < 4096
    return int(value) if is_one else None  # type: ignore[arg-type]


@lru_cache(maxsize=100_000)
def number(text: str) -> Fraction | None:
    r"""The number that a canonical answer states: `42`, `m+n=42`, `2^{10}=1024`, `1042≡42\pmod{1000}`, `50%`.

    Sides of an equation that are arithmetic must be equal; a side with names may be any. None for several
    values, for inequalities, and for a residue that is not the smallest.
    """
    if len(text) > LONGEST:
        return None
    if only := re.fullmatch(r"(.*=)?\\\{(.+)\\\}", text):
        text = only[2]  # a set of one
    text = re.sub(rf"\A{TEXT}\{{([^{{}}]*)\}}\Z", r"\1", text.rstrip(";"))
    text = re.sub(rf"\A{TEXT}\{{[^{{}}]*(?:answer is|[:=]) ?\}}", "", text)
    text = re.sub(rf",? ?{TEXT}\{{ ?(?:\(|,|(?:where|since|because|for|if|as)\b)[^{{}}]*\}}.*\Z", "", text)
    text = re.sub(rf"(?:\\?%|(?:{TEXT}\{{)? ?per ?cent(?:age)?\}}?)\Z", "", text)
    text = re.sub(r"(?<=\d) [mgshLNJWV]\Z", "", text)  # a unit, where "5x" would be a product
    modulus = MODULUS.search(text)
    stated = text[: modulus.start()] if modulus else text
    if len(split(stated)) != 1 or re.search("[<>≤≥]|\\\\neq", stated):
        return None
    sides = re.split("[=≡≈]", stated)
    found = [exact_value(side) for side in sides]
    known = [value for value in found if value is not None]
    if not known or (found[-1] is None and len(known) < len(sides) - 1):
        return None
    if known[-1] == 0 and re.search("[-+]", sides[0]) and found[0] is None:
        return None  # "3x - 42 = 0" states no number
    if modulus:
        n = int(modulus[1])
        if not n or any((value - known[-1]) % n for value in known):
            return None
        return known[-1] if len(sides) > 1 or 0 <= known[-1] < n else None
    return known[-1] if "≈" in stated or len(set(known)) == 1 else None


def exact_value(text: str) -> Fraction | None:
    """The exact value of a canonical expression, or None."""
    found = values(text) if len(text) <= 200 else ()
    if not found or isinstance(found[0], Fraction):
        return found[0] if found else None  # type: ignore[return-value]
    a, b = map(complex, found)
    near = round(a.real) if abs(a) < 1e6 else 0
    return Fraction(near) if near and abs(a - near) < 1e-9 and abs(b - near) < 1e-9 else None


@lru_cache(maxsize=100_000)
def values(text: str) -> tuple[Number, ...]:
    """A canonical answer's value at each of two points (`value_of`); () when it is not one plain expression.

    Rational numbers are exact. An expression with another root, a name, or a product without a sign has
    complex values.
    """
    if (number := number_in_words(text)) is not None:
        return number, number
    source = python_of(text) if len(text) <= 200 else None
    if source is None:
        return ()
    try:
        tree = ast.parse(source, mode="eval").body
        value = evaluate(tree, 0)
        return value, value if isinstance(value, Fraction) else evaluate(tree, 1)
    except (ArithmeticError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        return ()


def number_in_words(text: str) -> Fraction | None:
    r"""The value of `five`, `twenty-one` or `\text{five}`; None for anything else."""
    words = re.fullmatch(rf"(?:{TEXT}\{{)?([A-Za-z]+)(?:[- ]([a-z]+))?\}}?", text)
    if not words:
        return None
    first, second = (NUMBER_WORDS.get((word or "zero").lower()) for word in words.groups())
    if first is None or second is None:
        return None
    is_number = not words[2] or (first >= 20 and 1 <= second <= 9)
    return Fraction(first + second) if is_number else None


def python_of(text: str) -> str | None:
    """LaTeX arithmetic as a Python expression, or None where it is something else.

    `//` stands for an exact division and `@` for a product without a sign.
    """
    text = re.sub(r"^[A-Za-z](?:_\w|_\{\w+\})?=", "", text)
    if unit := UNIT.search(text):
        if NOT_UNITS.search((unit[1] or unit[2] or "").lower()):
            return None
        text = text[: unit.start()]
    text = re.sub(rf"(?<![\d)])(?:{TEXT}|\\boxed)\{{([\d.,\-]+)\}}", r"(\1)", text)
    text = re.sub(r"\\frac ?(\d)(?= ?[\da-zπ](?![\da-z])| ?\{)", r"\\frac{\1}", text)
    text = re.sub(r"\\sqrt ?([0-9a-z])(?!\d)", r"\\sqrt{\1}", text)
    if mixed := re.fullmatch(r"(-?)(\d+)(?: ?(\\frac\{(\d+)\}\{(\d+)\})| ((\d+)/(\d+)))", text):
        part, above, below = filter(None, mixed.groups()[2:])
        text = f"{mixed[1]}({mixed[2]}(1)+{part})" if int(above) < int(below) else "mixed"
    if re.search(r"//|\*\*|\d ?\\frac", text):
        return None
    for _ in range(5):  # innermost first
        text = without_innermost_commands(text)
    text = text.replace("^", "**").replace("{", "(").replace("}", ")")
    text = re.sub(r"(?<![\w.)])(\d+)!(?!!)", r"fact(\1)", text)
    # Decimals become exact fractions: a float would round a long one to an integer that it is not.
    text = re.sub(r"(\d*)\.(\d+)", lambda m: f"({m[1]}{m[2]}//1{'0' * len(m[2])})", text.removesuffix("."))
    text = re.sub(r"(?<!\d)0+(?=\d)", "", text)
    if NOT_ARITHMETIC.search(re.sub(FUNCTION, "", text)):
        return None
    products = rf"({FUNCTION}\()|(\d+|[^\W\d]|\)) ?(?=[^\W\d]|\()|(\)) ?(?=\d)"
    return re.sub(products, lambda m: m[1] or f"{m[2] or m[3]}@", text)


def without_innermost_commands(text: str) -> str:
    """Fractions, binomials, roots and powers whose arguments hold no braces, in Python's notation."""
    fraction = r"\\frac\{([^{}]*)\} ?(?:\{([^{}]*)\}|([\da-zπ])(?![\da-z]))"
    text = re.sub(fraction, lambda m: f"(({m[1]})//({m[2] or m[3]}))", text)
    text = re.sub(r"\\d?binom\{([^{}]*)\}\{([^{}]*)\}", r"binom(\1,\2)", text)
    text = re.sub(r"\\sqrt\[(\d)\]\{([^{}]*)\}", r"root(\2,\1)", text)
    text = re.sub(r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)", text)
    argument = r"(?:\{([^{}]*)\}|\(([^()]*)\)|(\d+))"
    text = re.sub(rf"\\log_\{{(\w+)\}} ?{argument}", lambda m: f"log({m[2] or m[3] or m[4]},{m[1]})", text)
    return re.sub(r"\^\{([^{}]*)\}", r"**(\1)", text)


def evaluate(node: ast.AST, point: int) -> Number:
    """An expression's value, its names taken at a point; ValueError for other syntax and for large values."""
    value: Number
    match node:
        case ast.Constant(value=int() as number):
            return Fraction(number)
        case ast.Name(id=name):
            return value_of(name, point)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            return evaluate(operand, point) * (-1 if isinstance(sign, ast.USub) else 1)
        case ast.BinOp(left=ast.BinOp(op=ast.Div()), op=ast.MatMult()):
            raise ValueError("1/2x could be either")
        case ast.BinOp(left=left, op=op, right=right):
            value = OPERATORS[type(op)](evaluate(left, point), evaluate(right, point))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            value = FUNCTIONS[name](*(evaluate(argument, point) for argument in arguments))
        case _:
            raise ValueError("not arithmetic")
    if isinstance(value, complex) and not abs(value) < 1e6:
        raise ValueError("too large to be precise")
    return value


@cache
def value_of(name: str, point: int) -> complex:
    """A constant, or a random number: positive at point 0, negative at point 1, as roots differ there.

    A capital has the value of its small letter, as math-verify reads them.
    """
    if name in CONSTANTS:
        return CONSTANTS[name]
    return complex((1, -1)[point] * random.Random(f"{name.lower()}{point}").uniform(0.3, 2))


def power(a: Number, b: Number) -> Number:
    """a^b, exact for rational a and whole b; ValueError past 4096 bits."""
    if isinstance(b, complex) or b.denominator != 1:
        return complex(a) ** complex(b)
    if isinstance(a, Fraction) and abs(b) * max(a.numerator.bit_length(), a.denominator.bit_length()) > 4096:
        raise ValueError("too large")
    return a ** int(b)


def root(a: Number, n: Number = 2) -> Number:
    """The n-th root, exact for a fraction of squares; ValueError where another, real root may be meant."""
    if isinstance(a, Fraction) and n == 2 and a >= 0:
        exact = Fraction(math.isqrt(a.numerator), math.isqrt(a.denominator))
        if exact * exact == a:
            return exact
    if n != 2 and complex(a).real < 0:
        raise ValueError("two meanings")
    return complex(a) ** (1 / complex(n))


def of_natural_numbers(function: Callable[..., int]) -> Callable[..., Fraction]:
    """A function of natural numbers up to 3000; ValueError for other arguments."""

    def bounded(*numbers: Number) -> Fraction:
        if not all(isinstance(n, Fraction) and n.denominator == 1 and 0 <= n <= 3000 for n in numbers):
            raise ValueError("not a small natural number")
        return Fraction(function(*(int(n.real) for n in numbers)))

    return bounded


CONSTANTS = {"π": complex(math.pi), "e": complex(math.e), "i": 1j}
OPERATORS: dict[type, Callable[..., Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.MatMult: lambda a, b: complex(a * b),
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.truediv,
    ast.Pow: power,
}
FUNCTIONS: dict[str, Callable[..., Number]] = {
    "fact": of_natural_numbers(math.factorial),
    "binom": of_natural_numbers(math.comb),
    "sqrt": root,
    "root": root,
    "log": lambda number, base: cmath.log(complex(number), complex(base)),
}


# Without algebra

LETTER_UNIT = re.compile(  # in "5 m", m may be a name or metres
    r"[\d} ](?:[cdghlmost]|[cdkm]m|[gk]m|kg|lbs?|ft|hrs?|yrs?|[ap]m)\Z"
)
NUMERAL = re.compile(r"\d[\dA-F]*_\{\d+\}")
RELATION = re.compile("([^=<>≤≥≠]+)([=<>≤≥≠])([^=<>≤≥≠]+)")
BOUNDS = re.compile(r"(?:([^<>≤≥=,]+)([<≤]))?[A-Za-z](?:_\{\w\})?([<≤])([^<>≤≥=,]+)")
FLIPPED = str.maketrans("<>≤≥", "><≥≤")
INTERVAL = re.compile(r"(?:\w=)?([(\[].*[)\]])")
UNITS = {  # what one is in metres, grams or seconds
    "length": {
        "m": "1", "mm": "1/1000", "cm": "1/100", "km": "1000", "in": "127/5000", "ft": "381/1250",
        "mi": "201168/125",
    },
    "mass": {"g": "1", "mg": "1/1000", "kg": "1000", "lb": "45359237/100000", "oz": "45359237/1600000"},
    "time": {"s": "1", "min": "60", "h": "3600"},
}  # fmt: skip
UNIT_NAMES = {
    "meter": "m", "metre": "m", "millimeter": "mm", "centimeter": "cm", "kilometer": "km", "inch": "in",
    "inches": "in", "foot": "ft", "feet": "ft", "mile": "mi", "gram": "g", "milligram": "mg",
    "kilogram": "kg", "pound": "lb", "ounce": "oz", "sec": "s", "second": "s", "minute": "min", "hour": "h",
    "hr": "h",
}  # fmt: skip
SCALES = {unit: (kind, Fraction(scale)) for kind, units in UNITS.items() for unit, scale in units.items()}
SCALES |= {name: SCALES[unit] for name, unit in UNIT_NAMES.items()}
MEASURE = re.compile(rf"(.*[\d)}}])({'|'.join(sorted(SCALES, key=len, reverse=True))})(?:s|\.)?")
CLOCK = re.compile(r"(\d{1,2})(?::(\d\d))?(?:([ap])\.?m\.?)?", re.IGNORECASE)
MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october",
    "november", "december",
)  # fmt: skip


@lru_cache(maxsize=100_000)
def same(answer: str, gold: str) -> bool | None:
    r"""Whether two canonical answers are certainly equal or certainly not; None where that takes algebra.

    Tuples, intervals and matrices are compared by element, sequences with an ellipsis too, and ratios by
    what they are to each other; sets and lists in any order, with both values of \pm; an inequality as the
    interval that it states.
    """
    if answer == gold:
        return answer != "" or None
    dated = [date(text) for text in (answer, gold)]
    if all(dated):
        return dated[0] == dated[1]
    if (INTERVAL.fullmatch(answer) is None) != (INTERVAL.fullmatch(gold) is None):
        answer, gold = interval(answer), interval(gold)
        if answer == gold:
            return True
    (brackets, xs), (others, ys) = elements(answer), elements(gold)
    if any([text] == found and RELATION.search(text) for text, found in ((answer, xs), (gold, ys))):
        return same_right_sides(answer, gold)
    if r"\ldots" in answer + gold:
        return len(xs) > 1 and same_in_order(xs, ys) is True
    if ":" in brackets + others:
        return same_ratio(xs, ys)
    if ([answer], [gold]) == (xs, ys):
        return same_expression(answer, gold)
    if not xs or not ys or len(xs) * len(ys) > 400:
        return None
    if brackets and brackets == others != "∪":
        return same_in_order(xs, ys)
    table = [[same(x, y) for y in ys] for x in xs]
    lines = [*table, *map(list, zip(*table, strict=True))]
    if any(set(line) == {False} for line in lines):
        return False  # one has an element that the other lacks
    return True if brackets == others and all(line.count(True) == 1 for line in lines) else None


def same_in_order(xs: list[str], ys: list[str]) -> bool | None:
    """`same` for two collections whose order counts."""
    if len(xs) != len(ys):
        return False
    verdicts = [same(x, y) for x, y in zip(xs, ys, strict=True)]
    if False in verdicts:
        return False
    return None if None in verdicts else True


def same_ratio(xs: list[str], ys: list[str]) -> bool | None:
    """`same` for two ratios such as 1:2 and 2:4, or for one of two terms and its quotient."""
    one, other = ([exact_value(text) for text in found] for found in (xs, ys))
    if {len(one), len(other)} == {1, 2}:
        one, other = ([*found, Fraction(1)][:2] for found in (one, other))
    if len(one) != len(other):
        return False
    if None in (*one, *other):
        return same_in_order(xs, ys)
    return all(a * other[0] == b * one[0] for a, b in zip(one, other, strict=True))  # type: ignore[operator]


def elements(text: str) -> tuple[str, list[str]]:
    r"""A tuple, interval, matrix, ratio or union as (brackets, elements); a set, list or value as ("", …)."""
    matrix = re.fullmatch(
        r"[(\[]?\\begin\{(?:[bp]?matrix|array)\}(?:\{[lcr|]+\})?(.*)\\end\{(?:[bp]?matrix|array)\}[)\]]?",
        text,
    )
    if matrix:
        rows = [row.split("&") for row in matrix[1].removesuffix(";").split(";")]
        return f"matrix {[len(row) for row in rows]}", [entry.strip() for row in rows for entry in row]
    if r"\cup" in text and len(parts := split(text.replace(r"\cup", ","))) == text.count(r"\cup") + 1:
        return "∪", parts
    if bracketed := re.fullmatch(r"(\\\{|[(\[])(.*)(\\\}|[)\]])", text):
        inner = split(bracketed[2])
        if inner and bracketed[1] == r"\{":
            return "", inner
        if len(inner) > 1:
            return bracketed[1] + bracketed[3], inner
    if re.fullmatch(r"[^:=]*[\d}a-z](?::[\d\\a-z][^:=]*)+", text):
        return ":", text.split(":")
    return "", split(text)


def split(text: str) -> list[str]:
    r"""A list at its commas outside brackets, `a \pm b` as two elements; [] when brackets do not match."""
    found, depth, begin = [], 0, 0
    for i, character in enumerate(text + ","):
        depth += (character in "([{") - (character in ")]}")
        if not 0 <= depth <= 8:
            return []
        if character == "," and not depth:
            found.append(text[begin:i].strip())
            begin = i + 1
    return [] if depth else [value for element in found for value in both_signs(element)]


def both_signs(element: str) -> list[str]:
    r"""`a + b` and `a - b` for `a \pm b`; other elements unchanged."""
    if element.count(r"\pm") != 1:
        return [element]
    return [element.replace(r"\pm", sign).removeprefix("+") for sign in "+-"]


def interval(text: str) -> str:
    """The interval or union that inequalities of one name state; other texts unchanged."""
    parts = []
    for part in split(text) or [""]:
        left_to_right = re.fullmatch(r"([^<>≤≥]*[<>≤≥])?[^<>≤≥]+[<>≤≥][^<>≤≥]*", part)
        if left_to_right and not re.search("[<≤]", part):  # turn "x > 2" round
            part = "".join(reversed(re.split("([<>≤≥])", part.translate(FLIPPED))))
        bounds = BOUNDS.fullmatch(part)
        if bounds:
            low, closed, upper, high = bounds.groups()
            begin, end = "[" if closed == "≤" else "(", "]" if upper == "≤" else ")"
        elif bounds := re.fullmatch(r"([^<>≤≥=,]+)([<≤])[A-Za-z](?:_\{\w\})?", part):
            (low, closed), high, end = bounds.groups(), "ꝏ", ")"
            begin = "[" if closed == "≤" else "("
        else:
            return text
        parts.append(f"{begin}{low or '-ꝏ'},{high}{end}")
    return r"\cup".join(parts)


def same_right_sides(answer: str, gold: str) -> bool | None:
    """`same` where one is a relation: a bare value is compared with the other's right side.

    A gold answer's left side must then be a name or `f(x)`; an answer's may be any.
    """
    a, b = RELATION.fullmatch(answer), RELATION.fullmatch(gold)
    if a and b:
        return same(a[3], b[3]) if a.group(1, 2) == b.group(1, 2) else None
    if a and a[2] == "=" and not RELATION.search(gold):
        return same(a[3], gold)
    if (
        b
        and re.fullmatch(r"\w(?:_\{\w+\})?(\(\w\))?=|\w+=(?=[(\[])", b[1] + b[2])
        and not RELATION.search(answer)
    ):
        return same(answer, b[3])
    return None


def same_expression(answer: str, gold: str) -> bool | None:
    """`same` for what is no collection: by value, else as words."""
    if answer.endswith("%") or gold.endswith("%"):
        numbers_alone = same(answer.rstrip("\\%"), gold.rstrip("\\%"))
        if numbers_alone or answer[-1] == gold[-1]:
            return numbers_alone
    x, y = values(answer), values(gold)
    if x and y:
        return same_values(x, y, answer, gold)
    a, b = words_of(answer), words_of(gold)
    if a and b:
        return a == b
    if (a and y) or (b and x):
        return False
    if NUMERAL.fullmatch(answer) and NUMERAL.fullmatch(gold):
        return False  # 40_9 and 40_8: math-verify does not see the base
    if y and isinstance(y[0], Fraction) and "\\" not in answer and not re.search("percent|%", answer):
        numbers = re.findall(r"\d[\d,.]*", answer)  # one, in "10 + John's age"
        if not numbers:
            return False
        if len(numbers) == 1 and compute(numbers[0]) != abs(y[0]) and re.search("[A-Za-z]{4}", answer):
            return False
    return None


def same_values(x: tuple[Number, ...], y: tuple[Number, ...], answer: str, gold: str) -> bool | None:
    """`same` by the values at both points; None where the points disagree, or a letter may be a unit."""
    verdicts = {close(a, b, "." in answer + gold) for a, b in zip(x, y, strict=True)}
    if len(verdicts) > 1:
        return None
    if verdicts == {False} and bool(LETTER_UNIT.search(answer)) != bool(LETTER_UNIT.search(gold)):
        return None
    return verdicts.pop()


def close(a: Number, b: Number, decimal: bool) -> bool | None:
    """Whether two values are equal; None for a near miss.

    math-verify rounds decimals to six places, which no two tiny values survive.
    """
    if isinstance(a, Fraction) and isinstance(b, Fraction) and (a == b or not decimal):
        return a == b
    try:
        difference, size = abs(complex(a) - complex(b)), abs(complex(a))
    except OverflowError:  # one overflows a float
        return False
    if difference <= size / 10**12:
        return True
    tiny = max(size, abs(complex(b)))
    return False if difference > (max(1, size) if tiny > 1e-3 else tiny) / 10**5 else None


def words_of(text: str) -> str:
    r"""What may be no formula (`\text{even}`, `ellipse`, `(C)`), without case and spaces; "" for others."""
    found = re.fullmatch(rf"{TEXT}\{{([A-Za-z .()]+)\}}|([A-Za-z .()]+)", text)
    return re.sub("[^a-z]", "", (found[1] or found[2]).lower()) if found else ""


def date(text: str) -> list[str]:
    """A date's year, month and day, as far as given; [] for what is none."""
    parts = re.findall(
        r"[a-z]+|\d+", re.sub(rf"{TEXT}|(?<=\d)(?:st|nd|rd|th)\b|\b(?:of|the)\b", " ", text.lower())
    )
    months = [i for i, part in enumerate(parts) for month in MONTHS if part in (month, month[:3])]
    if len(months) == 1 and 2 <= len(parts) <= 3:
        parts[months[0]] = str(MONTHS.index(next(m for m in MONTHS if m.startswith(parts[months[0]]))) + 1)
        month, *others = parts.pop(months[0]), *parts
        return [month, *sorted(map(str, map(int, others)))] if all(map(str.isdigit, others)) else []
    iso = re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)", text)
    return [str(int(iso[2])), *sorted([iso[1], str(int(iso[3]))])] if iso else []


def same_measure(answer: str, gold: str) -> bool | None:
    """Whether two times of day are equal, or two measures such as `5km` and `5000m`.

    None where neither has a.m. or p.m., or one has no unit or no value.
    """
    if not re.search("[A-Za-z:]", gold):
        return None
    a, b = (re.sub(r"\s", "", re.sub(rf"{TEXT}\{{([^{{}}]*)\}}", r"\1", text)) for text in (answer, gold))
    clocks = [match for text in (a, b) if (match := CLOCK.fullmatch(text))]
    if len(clocks) == 2:
        if any(match[3] for match in clocks):
            one, other = (possible_hours(int(match[1]), match[3]) for match in clocks)
            return bool(one & other) and int(clocks[0][2] or 0) == int(clocks[1][2] or 0)
        if all(match[2] for match in clocks):
            return a == b
    sizes = []
    for text in (a, b):
        match = MEASURE.fullmatch(text)
        value = compute(match[1]) if match else None
        if match is None or value is None:
            return None
        kind, scale = SCALES[match[2]]
        sizes.append((kind, value * scale))
    return sizes[0] == sizes[1]


def possible_hours(hour: int, half: str | None) -> set[int]:
    """The hours of a day that a clock's hour may be: two of them where the half of the day is not given."""
    if half:
        return {hour % 12 + 12 * (half.lower() == "p")}
    return {hour % 24, (hour + 12) % 24} if hour <= 12 else {hour}


# With algebra: math-verify in worker processes


@lru_cache(maxsize=100_000)
def verify(answer: str, gold: str) -> bool | None:
    """math-verify's verdict from a worker: False past the limits, None for a gold answer it cannot read."""
    if len(answer) > 1000:  # no answer is that long, and parsing one is slow
        answer = ""
    asked = [plain(choice(text)[1]) for text in (answer, gold)]
    a, b = (re.fullmatch(r"\s*\$*\s*(\\?\w+(?:_\{?\w+\}?)?)\s*=([^=]+)", text) for text in asked)
    if a and b and a[1] == b[1]:  # math-verify finds any two equations of one name equal
        asked = [a[2], b[2]]
    elif any(INTERVAL.fullmatch(canonical(text)) for text in asked):
        asked = [latex(text) for text in asked]
    workers = free_workers(os.getpid())
    worker = workers.get()
    try:
        return worker.ask(asked)
    finally:
        workers.put(worker)


def latex(text: str) -> str:
    """Inequalities as the interval that they state, in LaTeX; other texts unchanged."""
    before = canonical(text)
    found = interval(before)
    return (
        text
        if found == before
        else found.replace("ꝏ", r"\infty ").replace("π", r"\pi ").replace("*", r"\cdot ")
    )


@cache
def free_workers(_pid: int) -> "queue.Queue[Worker]":
    """The worker processes that are free; a forked process has its own."""
    free: queue.Queue[Worker] = queue.LifoQueue()  # a started worker is reused
    for _ in range(WORKERS):
        free.put(Worker())
    return free


class Worker:
    """One process that runs math-verify; killed and started again when it exceeds its time.

    A plain subprocess, because multiprocessing would import the caller's script again.
    """

    process: subprocess.Popen[bytes] | None = None

    def ask(self, request: list[str]) -> bool | None:
        """The verdict on [answer, gold]; False when the process dies or exceeds TIME_LIMIT_S."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        assert self.process is not None and self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            ready, _, _ = select.select([self.process.stdout], [], [], TIME_LIMIT_S)
            reply = self.process.stdout.readline() if ready else b""
        except OSError:
            reply = b""
        if not reply:
            self.process.kill()
            self.process.wait()
            return False
        return json.loads(reply)

    def start(self) -> None:
        """Start the process and wait until it has imported what it needs."""
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        atexit.register(self.process.kill)
        assert self.process.stdout
        self.process.stdout.readline()


def serve() -> None:
    """A worker's loop: one JSON line [answer, gold] in, one JSON verdict out."""
    import resource

    import sympy
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse
    from math_verify import verify as equal

    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    configs = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]

    @lru_cache(maxsize=10_000)
    def read_gold(gold: str) -> list[Any]:
        for text in (f"${gold}$", gold):
            found = parse(text, parsing_timeout=None)
            if any(not isinstance(part, str) for part in found):  # text alone is what it falls back to
                return found
        return []

    def judge(answer: str, gold: str) -> bool | None:
        target = read_gold(gold)
        if not target:
            return None
        if not answer:
            return False
        found = parse(f"\\boxed{{{answer}}}", extraction_config=configs, parsing_timeout=None)
        return bool(found and equal(target, found, timeout_seconds=None)) and not differ(target[0], found[0])

    def differ(a: Any, b: Any) -> bool:
        """Whether two tiny numbers differ, which math-verify rounds away."""
        if any(not isinstance(x, sympy.Expr) or x.free_symbols or x.atoms(sympy.Float) for x in (a, b)):
            return False
        size = abs(a.evalf(20))
        return bool(size < 1e-3 and abs((a - b).evalf(20)) > size / 10**15)

    print("ready", flush=True)
    for line in sys.stdin:
        try:
            verdict = judge(*json.loads(line))
        except Exception:  # sympy raises any kind
            verdict = False
        print(json.dumps(verdict), flush=True)
