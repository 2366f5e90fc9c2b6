r"""Exact values of answers written as LaTeX or plain arithmetic, in microseconds and without sympy.

`compute` gives the value of an answer such as `1{,}024`, `2^{10}`, `\frac{84}{2}`, `7!` or `5\text{ apples}`
as an integer or a Fraction. `values` also covers roots, constants and names, as complex numbers at two
points. `canonical` removes notation that does not change an answer's meaning. What could be read in two ways
has no value here. Out of scope: simplification, equations and everything else that takes algebra
(`aimo.inference.equivalence`).
"""

import ast
import math
import operator
import random
import re
from collections.abc import Callable
from fractions import Fraction
from functools import cache, lru_cache

Number = Fraction | complex

PLAIN = re.compile(r"-?(?:[0-9]{1,18}|[0-9]{1,3}(?:,[0-9]{3}){1,5})(\.[0-9]{1,30})?")
NUMBER_WORDS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
    "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15,
    "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40,
    "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
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
TEXT = r"\\(?:text|mathrm|textrm|textbf|mathbf|mbox)"
UNIT = re.compile(
    rf"(?<=[\w)}}!]) ?{TEXT}\{{([A-Za-z .²³^23]*)\}}(?:\^\{{?[23]\}}?)?\Z"
    r"|(?<=\d) ((?:(?:an?|per) )?(?:[A-Za-z][a-z]{3,}|[ckm]m|kg|lbs?|ft|mph|min|sec|day|cup|egg|men)\b"
    r"[A-Za-z .]*)\Z"
)
FUNCTION = r"(?:fact|binom|sqrt|root)(?=\()"
NOT_ARITHMETIC = re.compile(
    r"[^\w+\-*/()., ]|_|,\)|[A-Za-z]{4}|sin|cos|tan|cot|sec|csc|log|ln|exp|mod|[fghFGHPQ]\(|\w \d|[^\W\d]\d"
)


def base_in_digits(found: re.Match[str]) -> str:
    """A numeral with its base in digits: `4210_{5}` for `4210_{five}`; unchanged where it names none."""
    base = NUMBER_WORDS.get(found[2].lower())
    return f"{found[1]}_{{{base}}}" if base else found[0]


def without_group_commas(found: re.Match[str]) -> str:
    """A number without the commas between its thousands; what is in brackets unchanged."""
    return found[0].replace(",", "") if found[0][0].isdigit() else found[0]


REWRITES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"\\\\", ";"),
    (r"(?<=\d)(?<!\d{4})(?:\{,\}|,\\!)(?:\\[,!]|\s)*(?=\d{3}(?!\d))", ""),
    (r"\\!\s*|\\[,;: ]|~|\\(?:left|right|displaystyle|quad)(?![a-z])|\\?[$€£]|\\[()\[\]]", ""),
    ("\u2212", "-"),
    (r"\\[dt]frac(?![a-z])", r"\\frac"),
    # A subscript is the same with and without braces. Of several digits without braces, LaTeX takes the
    # first; behind a numeral (4210_12) they are its base, and elsewhere they are left as they are.
    (rf"_(?:\{{\s*{TEXT}\{{\s*(\w+)\s*\}}\s*\}}|{TEXT}\{{\s*(\w+)\s*\}})", r"_{\1\2}"),
    (r"(?<![A-Za-z\d])\((\d[\dA-F]*)\)(?=_)", r"\1"),
    (r"(?<![A-Za-z\d])(\d[\dA-F]*)_(\d+)", r"\1_{\2}"),
    (r"(?<![A-Za-z\d])(\d[\dA-F]*)_\{\s*([A-Za-z]+)\s*\}", base_in_digits),
    (r"_([A-Za-z]|\d(?!\d))", r"_{\1}"),
    (r"(?:[(\[]|\\\{).*|(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])", without_group_commas),
    (r"\^\{?\\circ\}?|°", ""),
    (r"\*\*", "^"),
    (r"\\(?:cdot|times)(?![a-z])|\u00d7|\u00b7", "*"),
    (r"\\div(?![a-z])", "/"),
    (r"\\pi(?![a-z])|(?<![A-Za-z\\])pi(?![A-Za-z])", "π"),
    (r"\\infty(?![a-z])|infinity|∞", "ꝏ"),  # a letter to Python, so it can be part of an expression
    (r"\\in(?![a-z])", "="),
    (r"\\ge(?:qslant|q)?(?![a-z])", "≥"),
    (r"\\le(?:qslant|q)?(?![a-z])", "≤"),
    (r",?\s*\\text\{\s*(?:and|or)\s*\}", ","),
    (r"\s+(?!\w)|(?<!\w)\s+|\.\s*\Z", ""),
]


@lru_cache(maxsize=100_000)
def canonical(text: str) -> str:
    """An answer without what does not change its meaning: spaces, dollars, sizes of brackets, degrees."""
    for pattern, replacement in REWRITES:
        text = re.sub(pattern, replacement, text)
    return text.strip()


def compute(answer: str) -> Fraction | int | None:
    """The value of an answer in LaTeX or plain arithmetic; None where it is not exact, or too large."""
    text = answer.strip()
    if plain := PLAIN.fullmatch(text):
        text = text.replace(",", "")
        return Fraction(text) if plain[1] else int(text)
    found = values(canonical(text)) if len(text) <= 200 else ()
    return found[0] if found and isinstance(found[0], Fraction) else None


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
    text = re.sub(rf"(?:{TEXT}|\\boxed)\{{([\d.,\-]+)\}}", r"(\1)", text)
    text = re.sub(r"\\frac ?(\d)(?= ?\d(?!\d)| ?\{)", r"\\frac{\1}", text)
    text = re.sub(r"\\sqrt ?([0-9a-z])(?!\d)", r"\\sqrt{\1}", text)
    text = re.sub(r"^(-?)(\d+) ?(\\frac\{\d+\}\{\d+\})$", r"\1(\2(1)+\3)", text)  # a mixed number
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
    fraction = r"\\frac\{([^{}]*)\} ?(?:\{([^{}]*)\}|(\d)(?!\d))"
    text = re.sub(fraction, lambda m: f"(({m[1]})//({m[2] or m[3]}))", text)
    text = re.sub(r"\\d?binom\{([^{}]*)\}\{([^{}]*)\}", r"binom(\1,\2)", text)
    text = re.sub(r"\\sqrt\[(\d)\]\{([^{}]*)\}", r"root(\2,\1)", text)
    text = re.sub(r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)", text)
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
            value = FUNCTIONS[name](*(evaluate(a, point) for a in arguments))
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
    """A function of natural numbers up to 500; ValueError for other arguments."""

    def bounded(*numbers: Number) -> Fraction:
        if not all(isinstance(n, Fraction) and n.denominator == 1 and 0 <= n <= 500 for n in numbers):
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
FUNCTIONS = {
    "fact": of_natural_numbers(math.factorial),
    "binom": of_natural_numbers(math.comb),
    "sqrt": root,
    "root": root,
}
