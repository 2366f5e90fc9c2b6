# ruff: noqa: RUF001 (answers contain such characters)
r"""Convert an answer, as people and models write it, to canonical text, a value or an integer.

to_latex    `½ + 4²`               → `\frac{1}{2} + 4^{2}`   ASCII LaTeX
canonical   `$\left( 1, 2\right)$` → `(1,2)`                 only what affects the meaning
values      `2\sqrt{2}`            → 2.83 at two points      names take different values at each
number      `m+n=42`               → 42                      an exact fraction
integer     `m+n = 42.0`           → 42                      what a vote counts
"""

import ast
import cmath
import math
import operator
import random
import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from functools import cache, lru_cache, partial
from typing import Any

Number = Fraction | complex
LONGEST = 400  # characters in an answer that is read without math-verify
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBER_WORDS = {word: n for n, word in enumerate(ONES.split())}
NUMBER_WORDS |= {word: 10 * n for n, word in enumerate(TENS.split(), 2)}
TEXT = r"\\(?:text|mathrm|textrm|textbf|mathbf|mbox|textit|operatorname)"
PLAIN = re.compile(r"-?(?:[0-9]{1,18}|[0-9]{1,3}(?:,[0-9]{3}){1,5})(\.[0-9]{1,30})?")

# Notation

SYMBOLS = str.maketrans({
    **dict.fromkeys("−‐‑‒–—―﹣", "-"), **dict.fromkeys("·⋅∙", r"\cdot "), **dict.fromkeys("÷⁄∕", "/"),
    **dict.fromkeys("≤⩽", r"\leq "), **dict.fromkeys("≥⩾", r"\geq "), **dict.fromkeys("°º", r"^\circ "),
    **dict.fromkeys("′’‘", "'"), **dict.fromkeys("“”„", '"'),
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}", "×": r"\times ", "≠": r"\neq ", "≈": r"\approx ", "≡": r"\equiv ",
    "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "∅": r"\emptyset ",
    "…": r"\ldots ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⟨": "(", "⟩": ")",
})  # fmt: skip
GREEK = SYMBOLS | {
    code: f"\\{name.title() if case == 'CAPITAL' else name.lower()} ".replace("amda", "ambda")
    for code in (*range(0x391, 0x3A2), *range(0x3A3, 0x3AA), *range(0x3B1, 0x3CA))
    for _, case, _, name in [unicodedata.name(chr(code)).replace("FINAL ", "").split(" ")[:4]]
}
SIGNS = {r"\div": "/", r"\in": "=", r"\equiv": "≡", r"\approx": "≈", r"\gt": ">", r"\lt": "<"}
SIGNS |= dict.fromkeys((r"\ne", r"\neq"), "≠") | dict.fromkeys((r"\ge", r"\geq", r"\geqslant", ">="), "≥")
SIGNS |= {r"\langle": "(", r"\rangle": ")"} | dict.fromkeys((r"\le", r"\leq", r"\leqslant", "<="), "≤")
ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}


def repeating(found: re.Match[str]) -> str:
    """Return a repeating decimal, (whole, digits, period or None, period), as an exact fraction in LaTeX."""
    whole, digits, *periods = found.groups()
    period = next(filter(None, periods))
    nines = 10 ** len(period) - 1
    value = Fraction(int(whole + digits or "0") * nines + int(period), nines * 10 ** len(digits))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


ESCAPES = {"\x07": "a", "\b": "b", "\t": "t", "\n": "n", "\v": "v", "\f": "f", "\r": "r"}
# Escapes that replaced the start of a command. No word begins like the rest; text has no \a, \b, \v or \f.
EATEN = re.compile(
    "[\x07\b\v\f](?=[A-Za-z]{2})"
    "|\t(?=(?:imes|heta|ext(?:bf|it|rm)?|frac|riangle|ilde|herefore|binom)(?![a-z]))"
    "|\t(?=(?:an|o|au) ?[\\\\({^_])"
    "|\n(?=(?:eq|abla|otin)(?![a-z.]))"
    "|\r(?=(?:ight|ightarrow|ho|angle|floor|ceil)(?![a-z]))"
)
Rewrites = list[tuple[str, str | Callable[[re.Match[str]], str]]]
INNER = r"((?:[^()]|\([^()]*\))*?)"  # what brackets contain, nested at most once
NOTATION: Rewrites = [  # from what people type to LaTeX
    (r"\A\s*\*\*(.*)\*\*\s*\Z", r"\1"),
    (r"(?<=[\w)}])\s*\*\*\s*(\d+|[a-z]|\([^()]*\))", r"^{\1}"),
    (r"\*", r"\\cdot "),
    (r"\\(?:phantom|hspace|vspace|tag|label|(?:text)?color)\*?\{[^{}]*\}", ""),
    (r"\\(?:boldsymbol|bm|math(?:bf|sf|it|tt)|text(?:tt|sf|sc)|emph|underline)\{([^{}]*)\}", r"\1"),
    (
        r"\\(?:tt|bf|rm|it|sf|(?:script)?small|[lL]arge|LARGE|[hH]uge|therefore|blacksquare)(?![A-Za-z])|\\#",
        "",
    ),
    (r"\\(?:(?:text|script)style|qed)(?![A-Za-z])", ""),
    (r"(?<=\d)\\text\{,\}(?=\d{3})", ","),
    (r"\A\s*([\"'`])(.*)\1\s*\Z", r"\2"),
    (rf"{TEXT}\{{\s*([ei])\s*\}}", r"\1"),
    (r"\\c?dots(?![a-z])|\\ldots(?![a-z])|\.{3,}", r"\\ldots "),
    (r"\\[dtc]frac(?![a-z])", r"\\frac"),
    (r"\\[dt]?binom ?(?:(\d) ?(\d)|(?=\{))", lambda m: rf"\binom{{{m[1]}}}{{{m[2]}}}" if m[1] else r"\binom"),
    (r"\{([^{}]*)\\choose(?![a-z])([^{}]*)\}", r"\\binom{\1}{\2}"),
    (r"\\overline\{ ?([A-Z]{2}) ?\}", r"\1"),  # a segment, by its ends
    (r"\\[lr][vV]ert(?![a-z])", "|"),
    (r"\{([^{}]*)\\over(?![a-z])([^{}]*)\}", r"\\frac{\1}{\2}"),
    (r"(?<![a-z\\])(ln|log|sin|cos|tan|cot|sec|csc)(?![a-z])", r"\\\1"),
    (rf"\\?(?<![a-z])sqrt\s*(?:\\left)?\({INNER}(?:\\right)?\)", r"\\sqrt{\1}"),
    (rf"\\?(?<![a-z])exp\s*(?:(?:\\left)?\({INNER}(?:\\right)?\)|\{{([^{{}}]*)\}})", r"e^{\1\2}"),
    # A comma is decimal after 0, or unless exactly three digits follow.
    (r"(?<![\d.])(0|-0)\{,\}(?=\d)|(?<=\d)\{,\}(?=\d{1,2}(?!\d)|\d{4})", r"\1."),
    (r"(\d*)\.(\d*)(?:\\(?:overline|bar|dot)\{(\d+)\}|\((\d+)\))", repeating),
    (r"(?<![\d.])(\d*)\.(\d{0,9}?)(\d{1,9}?)\3{2,}\s*\\ldots", repeating),
    (r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})(?![\w.])", r"\1\\cdot 10^{\2}"),
    (r"(?<=\d) ?x ?(?=10\^)", r"\\times "),
    (r"\A\W*\d{1,3}(?:(?:[ ']\d{3})+|(?:\.\d{3}){2,})(?!\w)", lambda m: re.sub(r"(?<=\d)\D", "", m[0])),
]
REWRITES: Rewrites = [  # from LaTeX to its canonical form
    (r"\\\\", ";"),
    (r"(?<=\d)(?<!\d{4})(?:\{,\}|,\\!)(?:\\[,!]|\s)*(?=\d{3}(?!\d))", ""),
    (r"\\!\s*|\\[,;: ]|~|\\(?:left|right|displaystyle|q?quad)(?![a-z])|\\?[$€£]|\\[()\[\]]", ""),
    (
        r"\\(?:[lr]angle|div|in|equiv|approx|neq?|[gl](?:t|e|eq|eqslant))(?![a-z])|[<>]=",
        lambda m: SIGNS[m[0]],
    ),
    # Braces around a subscript change nothing. Of several digits without braces, LaTeX takes the first.
    # After a numeral (4210_12, 4210_{five}) they are its base; elsewhere they stay unchanged.
    (rf"_(?:\{{\s*{TEXT}\{{\s*(\w+)\s*\}}\s*\}}|{TEXT}\{{\s*(\w+)\s*\}})", r"_{\1\2}"),
    (r"(?<![A-Za-z\d])\((\d[\dA-F]*)\)(?=_)", r"\1"),
    (r"(?<![A-Za-z\d])(\d[\dA-F]*)_(\d+)", r"\1_{\2}"),
    (
        r"(?<![A-Za-z\d])(\d[\dA-F]*)_\{\s*([A-Za-z]+)\s*\}",
        lambda m: f"{m[1]}_{{{base}}}" if (base := NUMBER_WORDS.get(m[2].lower())) else m[0],
    ),
    (r"_([A-Za-z]|\d(?!\d))", r"_{\1}"),
    (r"(?<![A-Za-z\d])(\d+)_\{10\}", r"\1"),
    (  # remove commas between thousands, but not in brackets
        r"(?:[(\[]|\\\{).*|(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])",
        lambda m: m[0].replace(",", "") if m[0][0].isdigit() else m[0],
    ),
    (r"(?:\^ ?(?:\{\s*\\circ\s*\}|\\circ(?![a-z])|o\Z)|\\degrees?(?![a-z])) ?(?:[CF]\Z)?", ""),
    (r"\\(?:cdot|times|ast)(?![a-z])", "*"),
    (r"\\varnothing(?![a-z])|\A\\\{\\\}\Z", r"\\emptyset"),
    (rf"\A\s*(?:{TEXT}\{{\s*)?(?:[Tt]here (?:is|are) )?[Nn]o (?:real )?solutions?[\s.}}]*\Z", r"\\emptyset"),
    (r"\\pi(?![a-z])|(?<![A-Za-z\\])pi(?![A-Za-z])", "π"),
    # Python treats ꝏ as a letter, so it can be part of an expression.
    (r"\+?(?:\\infty(?![a-z])|(?<![A-Za-z\\])inf(?:inity)?(?![A-Za-z]))", "ꝏ"),
    (rf",?\s*(?:{TEXT}\{{\s*(?:and|or)\s*\}}|(?<![A-Za-z])(?:and|or)(?![A-Za-z]))\s*", ","),
    (r"\s+(?!\w)|(?<!\w)\s+|\.\s*\Z", ""),
]
# Compiling the patterns halves the time for a short text.
TO_LATEX, TO_CANONICAL = (
    [(re.compile(pattern, re.DOTALL).sub, replacement) for pattern, replacement in rewrites]
    for rewrites in (NOTATION, REWRITES)
)
compatible = partial(unicodedata.normalize, "NFKC")


def restore_backslashes(text: str) -> str:
    r"""Restore LaTeX backslashes that JSON or Python read as escapes, such as the `\f` of `\frac`."""
    for _ in range(2):  # restoring \theta in \to \theta lets the second pass restore \to
        text = EATEN.sub(lambda found: "\\" + ESCAPES[found[0]], text)
    return text


@lru_cache(maxsize=100_000)
def to_latex(text: str) -> str:
    r"""Return an answer in ASCII LaTeX: `\frac{1}{2}` for `½`, `\frac{1}{3}` for `0.\overline{3}`."""
    if not text.isprintable():
        text = restore_backslashes(text)
    if not text.isascii():
        thousands = r"(?<=\d)[\u00a0\u2002-\u200a\u202f](?=\d{3}(?!\d))"
        text = re.sub(rf"{thousands}|[\u200b-\u200f\u2060\ufeff]", "", text)
        text = re.sub(r"[^\W\D]", lambda m: str(int(m[0])), text)  # digits of any script
        text = re.sub(r"[⁰¹²³⁴-⁹⁺⁻ⁿ]+", lambda m: f"^{{{compatible(m[0])}}}", text)
        text = re.sub(r"[₀-₉]+", lambda m: f"_{{{compatible(m[0])}}}", text)
        vulgar = r"[\u00bc-\u00be\u2150-\u215e]"
        text = re.sub(vulgar, lambda m: r"\frac{{{}}}{{{}}}".format(*compatible(m[0]).split("\u2044")), text)
        text = compatible(text.translate(SYMBOLS)).translate(GREEK)
        radicand = r"([√∛∜])\s*(\d+(?:\.\d+)?|\\?[a-z]+|\{[^{}]*\}|\([^()]*\))"
        text = re.sub(radicand, lambda m: f"{ROOTS[m[1]]}{{{m[2].strip('(){}')}}}", text)
        text = text.rstrip("。 ")
    for substitute, replacement in TO_LATEX:
        text = substitute(replacement, text)
    return text


@lru_cache(maxsize=100_000)
def canonical(text: str) -> str:
    """Return an answer without what does not affect its meaning: spaces, dollars, sizes of brackets."""
    text = to_latex(text)
    for substitute, replacement in TO_CANONICAL:
        text = substitute(replacement, text)
    return text.strip()


def read_choice(text: str) -> tuple[str, str]:
    r"""Return a choice's label and content: ("A", "7") for `(A)\ 7`, ("", text) without a label."""
    text = re.sub(rf"\A{TEXT}\{{([^{{}}]*)\}}\Z", r"\1", text)
    letter = rf"[\s$*]*(?:{TEXT}\{{)?\s*"
    if alone := re.fullmatch(rf"{letter}(?:(?:[Oo]ption|[Cc]hoice) )?\(?([A-J])\)?\s*\}}?[\s$*.]*", text):
        return alone[1], text  # a label alone is also the content
    label = rf"{letter}(?:\(([A-J])\)|([A-J])[.):])\s*\}}?"
    space = r"(?:\\[ ,;:!]|\\q?quad(?![a-z])|~|\s|(?=[-\d$]))+"
    product = r"\\(?:cup|cap|cdot|times|to|in|subset)(?![a-z])|[+*/=^]"
    found = re.fullmatch(rf"{label}{space}(?!{product})(.+)", text, re.DOTALL)
    return (found[1] or found[2], found[3]) if found else ("", text)


def parts(text: str) -> list[str]:
    r"""Split a list at commas outside brackets, and `a \pm b` in two; [] if the brackets do not match."""
    found, depth, begin = [], 0, 0
    for i, character in enumerate(text + ","):
        depth += (character in "([{") - (character in ")]}")
        if not 0 <= depth <= 8:
            return []
        if character == "," and not depth:
            part, begin = text[begin:i].strip(), i + 1
            twofold = part.count(r"\pm") == 1
            found += [part.replace(r"\pm", sign).removeprefix("+") for sign in "+-"] if twofold else [part]
    return [] if depth else found


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
FUNCTION = r"(?:fact|binom|sqrt|root|log|abs|floor|ceil|gcd|lcm)(?=\()"
NOT_ARITHMETIC = re.compile(
    r"[^\w+\-*/()., ]|_|,\)|[A-Za-z]{4}|sin|cos|tan|cot|sec|csc|log|ln|exp|mod|[fghFGHPQ]\(|\w \d|[^\W\d]\d"
    r"|\d{4}-\d?\d-\d"  # a date
)
MODULUS = re.compile(r"(?:,? ?\(? ?\\?(?:b|p)?mod(?:ulo)?(?![a-z]))[ {(]*(\d+)[ })]*\Z")


@lru_cache(maxsize=100_000)
def integer(answer: str) -> int | None:
    """Return the integer that an answer states, or None if that is uncertain."""
    value: Fraction | int | None = None
    if plain := PLAIN.fullmatch(answer.strip()):
        value = (Fraction if plain[1] else int)(plain[0].replace(",", ""))
    elif len(answer) <= LONGEST:
        value = number(canonical(read_choice(answer)[1]))
    is_one = value is not None and value.denominator == 1 and value.numerator.bit_length() < 4096
    return int(value) if is_one else None  # type: ignore[arg-type]


@lru_cache(maxsize=100_000)
def number(text: str) -> Fraction | None:
    r"""Return the number that a canonical answer states: `42`, `m+n=42`, `1042≡42\pmod{1000}`, `50%`.

    The arithmetic sides of an equation must be equal; a side with names may have any value. Several values,
    inequalities and a lone residue outside [0, modulus) give None.
    """
    if len(text) > LONGEST:
        return None
    if only := re.fullmatch(r"(.*=)?\\\{(.+)\\\}", text):
        text = only[2]  # a set with one element
    text = re.sub(rf"\A{TEXT}\{{([^{{}}]*)\}}\Z", r"\1", text.rstrip(";"))
    text = re.sub(rf"\A{TEXT}\{{[^{{}}]*(?:[Aa]nswer|\b(?:is|are)|[:=]) ?\}}", "", text)
    text = re.sub(rf",? ?{TEXT}\{{ ?(?:\(|,|(?:where|since|because|for|if|as)\b)[^{{}}]*\}}.*\Z", "", text)
    text = re.sub(rf"(?:\\?%|(?:{TEXT}\{{)? ?per ?cent(?:age)?\}}?)\Z", "", text)
    text = re.sub(r"(?<=\d) [mgshLNJWV]\Z", "", text)  # a unit; "5x" would be a product
    modulus = MODULUS.search(text)
    stated = text[: modulus.start()] if modulus else text
    if len(parts(stated)) != 1 or re.search("[<>≤≥≠]", stated):
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
    r"""Return a canonical expression's exact value, or None. Roots may cancel: `\sqrt{2}\sqrt{8}` is 4."""
    if not (found := values(text)):
        return None
    if isinstance(found[0], Fraction):
        return found[0]
    a, b = map(complex, found)
    near = round(a.real) if abs(a) < 1e6 else 0
    return Fraction(near) if near and abs(a - near) < 1e-9 and abs(b - near) < 1e-9 else None


@lru_cache(maxsize=100_000)
def values(text: str) -> tuple[Number, ...]:
    """Return a canonical answer's value at each of two points, or () if it is not one plain expression.

    Rational numbers are exact. Irrational roots, names and implicit products make the value complex.
    """
    if len(text) > 200:
        return ()
    if words := re.fullmatch(rf"(?:{TEXT}\{{)?([A-Za-z]+)(?:[- ]([a-z]+))?\}}?", text):
        tens, ones = (NUMBER_WORDS.get((word or "zero").lower()) for word in words.groups())
        if tens is not None and ones is not None and (not words[2] or (tens >= 20 and 1 <= ones <= 9)):
            return Fraction(tens + ones), Fraction(tens + ones)
    # Rewrite it as Python, where `//` stands for exact division and `@` for an implicit product.
    text = re.sub(r"^[A-Za-z](?:_\w|_\{\w+\})?=", "", text)
    if unit := UNIT.search(text):
        if NOT_UNITS.search((unit[1] or unit[2] or "").lower()):
            return ()
        text = text[: unit.start()]
    text = re.sub(rf"(?<![\d)])(?:{TEXT}|\\boxed)\{{([\d.,\-]+)\}}", r"(\1)", text)
    text = re.sub(r"\\frac ?(\d)(?= ?[\da-zπ](?![\da-z])| ?\{)", r"\\frac{\1}", text)
    text = re.sub(r"\\sqrt ?([0-9a-z])(?!\d)", r"\\sqrt{\1}", text)
    if mixed := re.fullmatch(r"(-?)(\d+)(?: ?(\\frac\{(\d+)\}\{(\d+)\})| ((\d+)/(\d+)))", text):
        part, above, below = filter(None, mixed.groups()[2:])
        text = f"{mixed[1]}({mixed[2]}(1)+{part})" if int(above) < int(below) else "mixed"
    if re.search(r"//|\*\*|\d ?\\frac", text):
        return ()
    quotient = r"\\frac\{([^{}]*)\} ?(?:\{([^{}]*)\}|([\da-zπ])(?![\da-z]))"
    logarithm = r"\\log_\{(\w+)\} ?(?:\{([^{}]*)\}|\(([^()]*)\)|(\d+))"
    for _ in range(5):  # commands whose arguments contain no braces, innermost first
        text = re.sub(quotient, lambda m: f"(({m[1]})//({m[2] or m[3]}))", text)
        text = re.sub(r"\\d?binom\{([^{}]*)\}\{([^{}]*)\}", r"binom(\1,\2)", text)
        text = re.sub(r"\\sqrt\[(\d)\]\{([^{}]*)\}", r"root(\2,\1)", text)
        text = re.sub(r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)", text)
        text = re.sub(logarithm, lambda m: f"log({m[2] or m[3] or m[4]},{m[1]})", text)
        text = re.sub(r"\^\{([^{}]*)\}", r"**(\1)", text)
    text = text.replace("^", "**").replace("{", "(").replace("}", ")")
    text = re.sub(r"\|([^|]+)\|", r"abs(\1)", text)
    text = re.sub(r"\\l(floor|ceil) ?((?:(?!\\[lr](?:floor|ceil)).)+)\\r\1", r"\1(\2)", text)
    text = re.sub(rf"(?:\\|{TEXT}\()(gcd|lcm)\)?(?=\()", r"\1", text)
    text = re.sub(r"(?<![\w.)])(\d+)!(?!!)", r"fact(\1)", text)
    # Decimals become exact fractions: a float would round a long one to a wrong integer.
    text = re.sub(r"(\d*)\.(\d+)", lambda m: f"({m[1]}{m[2]}//1{'0' * len(m[2])})", text.removesuffix("."))
    text = re.sub(r"(?<!\d)0+(?=\d)", "", text)
    if NOT_ARITHMETIC.search(re.sub(FUNCTION, "", text)):
        return ()
    products = rf"({FUNCTION}\()|(\d+|[^\W\d]|\)) ?(?=[^\W\d]|\()|(\)) ?(?=\d)"
    source = re.sub(products, lambda m: m[1] or f"{m[2] or m[3]}@", text)
    try:
        tree = ast.parse(source, mode="eval").body
        value = value_at(tree, 0)
        return value, value if isinstance(value, Fraction) else value_at(tree, 1)
    except (ArithmeticError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        return ()


def value_at(node: ast.AST, point: int) -> Number:
    """Return an expression's value at a point. ValueError for other syntax and for large values."""
    match node:
        case ast.Constant(value=int() as whole):
            return Fraction(whole)
        case ast.Name(id=name):
            return value_of(name, point)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            return value_at(operand, point) * (-1 if isinstance(sign, ast.USub) else 1)
        case ast.BinOp(left=ast.BinOp(op=ast.Div()), op=ast.MatMult()):
            raise ValueError("1/2x could be either")
        case ast.BinOp(left=left, op=op, right=right):
            value = OPERATORS[type(op)](value_at(left, point), value_at(right, point))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            value = FUNCTIONS[name](*(value_at(argument, point) for argument in arguments))
        case _:
            raise ValueError("not arithmetic")
    if isinstance(value, complex) and not abs(value) < 1e6:
        raise ValueError("too large to be precise")
    return value


@cache
def value_of(name: str, point: int) -> complex:
    """Return a constant, or a random number: positive at point 0, negative at 1, so that roots differ."""
    seed = f"{name.lower()}{point}"  # math-verify ignores the case of names
    random_value = (1, -1)[point] * random.Random(seed).uniform(0.3, 2)
    return {"π": complex(math.pi), "e": complex(math.e), "i": 1j}.get(name, complex(random_value))


def power(a: Number, b: Number) -> Number:
    if isinstance(b, complex) or b.denominator != 1:
        return complex(a) ** complex(b)
    if isinstance(a, Fraction) and abs(b) * max(a.numerator.bit_length(), a.denominator.bit_length()) > 4096:
        raise ValueError("too large")
    return a ** int(b)


def root(a: Number, n: Number = 2) -> Number:
    if isinstance(a, Fraction) and n == 2 and a >= 0:
        exact = Fraction(math.isqrt(a.numerator), math.isqrt(a.denominator))
        if exact * exact == a:
            return exact
    if n != 2 and complex(a).real < 0:
        raise ValueError("two meanings")  # the real root or the principal one
    return complex(a) ** (1 / complex(n))


def whole(n: Any, most: float = math.inf) -> int:
    if int(n) != n or n > most:
        raise ValueError("not an integer, or too large")
    return int(n)


OPERATORS: dict[type, Callable[..., Number]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.truediv, ast.MatMult: lambda a, b: complex(a * b), ast.Pow: power,
}  # fmt: skip
FUNCTIONS: dict[str, Callable[..., Number]] = {
    # Integer functions raise TypeError for complex numbers: rounding a name's random value means nothing.
    "fact": lambda n: Fraction(math.factorial(whole(n, 3000))),
    "binom": lambda n, k: Fraction(math.comb(whole(n, 3000), whole(k, 3000))),
    "floor": lambda n: Fraction(math.floor(n)),
    "ceil": lambda n: Fraction(math.ceil(n)),
    "gcd": lambda *ns: Fraction(math.gcd(*map(whole, ns))),
    "lcm": lambda *ns: Fraction(math.lcm(*map(whole, ns))),
    "abs": lambda value: Fraction(abs(value)) if isinstance(value, Fraction) else complex(abs(value)),
    "log": lambda value, base: cmath.log(complex(value), complex(base)),
    "sqrt": root,
    "root": root,
}
