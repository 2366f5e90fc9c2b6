r"""Pull the final answer out of a completion, and decide whether it is right.

Integers, which is what AIMO asks for, are compared as integers, and other answers that are plainly written by value: at once, in
microseconds. What takes algebra goes to math-verify in worker processes, each held to a hard time limit: a completion can cost
its reward, never the run. Out of scope: grading proofs.
"""

import ast
import atexit
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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

TAGS = ("<SOLUTION>", "</SOLUTION>")
END_OF_THOUGHT = ("</think>", "<end_working_out>")
PLAIN = re.compile(r"-?(?:[0-9]{1,18}|[0-9]{1,3}(?:,[0-9]{3}){1,5})(\.[0-9]{1,30})?")
BOLD_END = re.compile(r"\*\*([^*\n]+)\*\*\.?\s*\Z")
PHRASE = re.compile(r"####|^A:|^Answer:|\b[Aa]nswer(?: to [^.\n]{0,80}?)?(?: is|:)(?: ?:)?", re.MULTILINE)
TIME_LIMIT_S = 5.0
WORKERS = min(4, len(os.sched_getaffinity(0)))


def extract(completion: str, tags: tuple[str, str] = TAGS) -> str | None:
    r"""The final answer of a completion, or None.

    The last of: the answer tags, `<answer>…</answer>`, `\boxed{…}` or `\fbox{…}` (braces balanced, or left open at the end);
    failing those `#### x`, `A: x` or "the answer is x". What stands after the thought wins over what stands inside it.
    """
    after = max((completion.rfind(tag) + len(tag) for tag in END_OF_THOUGHT if tag in completion), default=0)
    for text in (completion[after:], completion[:after]):
        own = (
            None if tags[0].startswith("\\") else tagged(text, *tags)
        )  # a box as tags is read with its braces balanced
        found = [f for f in (own, tagged(text, "<answer>", "</answer>"), boxed(text)) if f and f[1]]
        if found:
            answer = max(found)[1]
            inner = boxed(answer)  # a box inside the tags is only a frame
            return inner[1] if inner else answer
        if phrase := phrased(text):
            return phrase
    return None


def phrased(text: str) -> str | None:
    """What follows the last `####`, `A:` or "answer is", or else stands in bold at the very end."""
    # A scan for plain words first: the pattern itself is ten times slower.
    near = max(text.rfind("####"), text.rfind("\nA:"), text.rfind("nswer"))
    if near >= 0 or text.startswith("A:"):
        end = near + 3 if text.startswith("\nA:", near) else near + 4 if text.startswith("####", near) else -1
        if end < 0:
            phrases = list(PHRASE.finditer(text, max(near - 1, 0))) or list(PHRASE.finditer(text))
            end = phrases[-1].end() if phrases else -1
        if end >= 0:
            line = text[end:].lstrip(" *:").split("\n", 1)[0]
            return line.strip().strip("*").removesuffix(".").strip() or None
    bold = BOLD_END.search(text, max(0, len(text) - 300)) if text.endswith(("*", "*.", "\n")) else None
    return bold[1].strip().rsplit("=", 1)[-1].strip() if bold else None


def tagged(text: str, start: str, end: str) -> tuple[int, str] | None:
    """The last `start…end` of a text as (position, content)."""
    stop = text.rfind(end)
    begin = text.rfind(start, 0, stop) if stop >= 0 else -1
    return (begin, text[begin + len(start) : stop].strip()) if begin >= 0 else None


def boxed(text: str) -> tuple[int, str] | None:
    r"""The last `\boxed` or `\fbox` of a text as (position, content)."""
    begin = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    if begin < 0:
        return None
    rest = text[begin + (6 if text.startswith(r"\boxed", begin) else 5) :].lstrip()
    if not rest.startswith("{"):
        digits = re.match(r"-?\d+", rest)  # \boxed 5
        return (begin, digits[0]) if digits else None
    depth = 0
    for i, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return begin, rest[1:i].strip()
    return (begin, rest[1:].strip().rstrip("$").strip()) if len(rest) < 200 else None  # left open: cut off


def to_integer(
    answer: str | None, low: int | None = None, high: int | None = None, modulus: int | None = None
) -> int | None:
    r"""An answer as an integer within low…high, or None when it is not surely one.

    Reads `1{,}024`, `2^{10}`, `\frac{84}{2}`, `42.0`, `7!`, `x = 5`, `5\text{ apples}`, `\text{five}`; computes what is
    exact arithmetic and gives None for anything else. With `modulus`, the value is reduced before the range is checked.
    """
    value = None if answer is None else compute(answer)
    if value is None or value.denominator != 1:
        return None
    number = int(value) if modulus is None else int(value) % modulus
    return number if (low is None or low <= number) and (high is None or number <= high) else None


ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBER_WORDS = {word: i for i, word in enumerate(ONES.split())} | {
    word: 10 * i for i, word in enumerate(TENS.split(), 2)
}
# After a number these change its value, so they are no units.
NOT_UNITS = re.compile(
    r"\b(dozens?|scores?|grand|tens|(?:hundred|thousand|[mb]illion|trillion)s?|per ?cent\w*|mod|modulo|base|choose|factorial|squared|cubed"
    r"|pi|or|and|to|of|than|times|plus|minus|point|over|under|above|below|negative|more|less|fewer|twice|double|triple|half|halves"
    r"|(?:quarter|third|fourth|fifth|sixth|seventh|eighth|ninth|eleventh|twelfth|\w*tenth|\w+(?:teen|tie|d|lion)th)s?"
    r"|(?:arc)?(?:sin|cos|tan|cot|sec|csc|log|exp|sqrt)[a-z]?|" + "|".join(NUMBER_WORDS) + r")\b"
)
TEXT = r"\\(?:text|mathrm|textrm|textbf|mathbf|mbox)"
UNIT = re.compile(
    rf"(?<=[\w)}}!]) ?{TEXT}\{{([A-Za-z .²³^23]*)\}}(?:\^\{{?[23]\}}?)?\Z"
    r"|(?<=\d) ((?:(?:an?|per) )?(?:[A-Za-z][a-z]{3,}|[ckm]m|kg|lbs?|ft|mph|min|sec|day|cup|egg|men)\b[A-Za-z .]*)\Z"
)
LETTER_UNIT = re.compile(
    r"[\d} ](?:[cdghlmost]|[cdkm]m|[gk]m|kg|lbs?|ft|hrs?|yrs?|[ap]m)\Z"
)  # in "5 m" m may be a name or metres
RELATION = re.compile("([^=<>≤≥]+)([=<>≤≥])([^=<>≤≥]+)")
FUNCTION = r"(?:fact|binom|sqrt|root)(?=\()"
REWRITES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"\\\\", ";"),
    (r"(?<=\d)(?<!\d{4})(?:\{,\}|,\\!)(?:\\[,!]|\s)*(?=\d{3}(?!\d))", ""),
    (r"\\!\s*|\\[,;: ]|~|\\(?:left|right|displaystyle|quad)(?![a-z])|\\?[$€£]|\\[()\[\]]", ""),
    ("\u2212", "-"),
    (r"\\[dt]frac(?![a-z])", r"\\frac"),
    (
        r"(?:[(\[]|\\\{).*|(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])",
        lambda m: m[0].replace(",", "") if m[0][0].isdigit() else m[0],
    ),
    (r"\^\{?\\circ\}?|°", ""),
    (r"\*\*", "^"),
    (r"\\(?:cdot|times)(?![a-z])|\u00d7|\u00b7", "*"),
    (r"\\div(?![a-z])", "/"),
    (r"\\pi(?![a-z])|(?<![A-Za-z\\])pi(?![A-Za-z])", "π"),
    (r"\\infty(?![a-z])|infinity|∞", "ꝏ"),  # a letter to Python
    (r"\\in(?![a-z])", "="),
    (r"\\ge(?:qslant|q)?(?![a-z])", "≥"),
    (r"\\le(?:qslant|q)?(?![a-z])", "≤"),
    (r",?\s*\\text\{\s*(?:and|or)\s*\}", ","),
    (r"\s+(?!\w)|(?<!\w)\s+|\.\s*\Z", ""),
]


@lru_cache(maxsize=100_000)
def canonical(text: str) -> str:
    """An answer without what does not change its meaning: spaces, dollars, sizes of brackets and fractions, degrees."""
    for pattern, replacement in REWRITES:
        text = re.sub(pattern, replacement, text)
    return text.strip()


def compute(answer: str) -> Fraction | int | None:
    """The value of an answer in LaTeX or plain arithmetic, if it is exact and small enough to compute at once."""
    text = answer.strip()
    if plain := PLAIN.fullmatch(text):
        text = text.replace(",", "")
        return Fraction(text) if plain[1] else int(text)
    found = values(canonical(text)) if len(text) <= 200 else ()
    return found[0] if found and isinstance(found[0], Fraction) else None


@lru_cache(maxsize=100_000)
def values(text: str) -> tuple[Fraction | complex, ...]:
    """A canonical answer's value at each of two points (`value_of`), or () when it is not plainly one expression.

    Rational numbers are exact; what has another root, a name, or a product without a sign in it is a complex number.
    """
    words = re.fullmatch(rf"(?:{TEXT}\{{)?([A-Za-z]+)(?:[- ]([a-z]+))?\}}?", text)
    if words:
        first, second = (NUMBER_WORDS.get((w or "zero").lower()) for w in words.groups())
        if first is not None and second is not None and (not words[2] or (first >= 20 and 1 <= second <= 9)):
            return (Fraction(first + second),) * 2
    source = python_of(text) if len(text) <= 200 else None
    if source is None:
        return ()
    try:
        tree = ast.parse(source, mode="eval").body
        value = evaluate(tree, 0)
        return value, value if isinstance(value, Fraction) else evaluate(tree, 1)
    except (ArithmeticError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        return ()


def python_of(text: str) -> str | None:
    """LaTeX arithmetic as a Python expression: `//` for exact fractions, `@` for products without a sign; None for all else."""
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
        text = re.sub(
            r"\\frac\{([^{}]*)\} ?(?:\{([^{}]*)\}|(\d)(?!\d))",
            lambda m: f"(({m[1]})//({m[2] or m[3]}))",
            text,
        )
        text = re.sub(r"\\d?binom\{([^{}]*)\}\{([^{}]*)\}", r"binom(\1,\2)", text)
        text = re.sub(r"\\sqrt\[(\d)\]\{([^{}]*)\}", r"root(\2,\1)", text)
        text = re.sub(r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)", text)
        text = re.sub(r"\^\{([^{}]*)\}", r"**(\1)", text)
    text = re.sub(
        r"(?<![\w.)])(\d+)!(?!!)", r"fact(\1)", text.replace("^", "**").replace("{", "(").replace("}", ")")
    )
    # Decimals become exact fractions: a float would round a long one to an integer that it is not.
    text = re.sub(r"(\d*)\.(\d+)", lambda m: f"({m[1]}{m[2]}//1{'0' * len(m[2])})", text.removesuffix("."))
    text = re.sub(r"(?<!\d)0+(?=\d)", "", text)
    bare = re.sub(FUNCTION, "", text)
    if re.search(
        r"[^\w+\-*/()., ]|_|,\)|[A-Za-z]{4}|sin|cos|tan|cot|sec|csc|log|ln|exp|mod|[fghFGHPQ]\(|\w \d|[^\W\d]\d",
        bare,
    ):
        return None
    return re.sub(
        rf"({FUNCTION}\()|(\d+|[^\W\d]|\)) ?(?=[^\W\d]|\()|(\)) ?(?=\d)",
        lambda m: m[1] or f"{m[2] or m[3]}@",
        text,
    )


def evaluate(node: ast.AST, point: int) -> Fraction | complex:
    """An expression's value, its names taken at a point; ValueError for what is no arithmetic, or too large to be an answer."""
    value: Fraction | complex
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
    """A constant, or a random number: positive at point 0, negative at point 1, where roots behave differently.

    Capitals are small letters, as to math-verify.
    """
    if name in CONSTANTS:
        return CONSTANTS[name]
    return complex((1, -1)[point] * random.Random(f"{name.lower()}{point}").uniform(0.3, 2))


def power(a: Fraction | complex, b: Fraction | complex) -> Fraction | complex:
    """a^b, exact for rational a and whole b; ValueError past 4096 bits."""
    if isinstance(b, complex) or b.denominator != 1:
        return complex(a) ** complex(b)
    if isinstance(a, Fraction) and abs(b) * max(a.numerator.bit_length(), a.denominator.bit_length()) > 4096:
        raise ValueError("too large")
    return a ** int(b)


def root(a: Fraction | complex, n: Fraction | complex = 2) -> Fraction | complex:
    """The n-th root, exact for a fraction of squares; ValueError where there may be a real one besides the principal one."""
    if isinstance(a, Fraction) and n == 2 and a >= 0:
        exact = Fraction(math.isqrt(a.numerator), math.isqrt(a.denominator))
        if exact * exact == a:
            return exact
    if n != 2 and complex(a).real < 0:
        raise ValueError("two meanings")
    return complex(a) ** (1 / complex(n))


def small(function: Callable[..., int]) -> Callable[..., Fraction]:
    """A function of natural numbers up to 500; ValueError for others."""

    def bounded(*numbers: Fraction | complex) -> Fraction:
        if not all(isinstance(n, Fraction) and n.denominator == 1 and 0 <= n <= 500 for n in numbers):
            raise ValueError("not a small natural number")
        return Fraction(function(*(int(n.real) for n in numbers)))

    return bounded


CONSTANTS = {"π": complex(math.pi), "e": complex(math.e), "i": 1j}
OPERATORS: dict[type, Callable[..., Fraction | complex]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.MatMult: lambda a, b: complex(a * b),
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.truediv,
    ast.Pow: power,
}
FUNCTIONS = {"fact": small(math.factorial), "binom": small(math.comb), "sqrt": root, "root": root}


@lru_cache(maxsize=100_000)
def same(answer: str, gold: str) -> bool | None:
    r"""Whether two canonical answers are surely equal or surely not; None where that takes algebra.

    Tuples, intervals and matrices are compared by element; sets and lists in any order, with both values of \pm.
    """
    if answer == gold:
        return answer != "" or None
    (brackets, xs), (others, ys) = elements(answer), elements(gold)
    if any([text] == found and RELATION.search(text) for text, found in ((answer, xs), (gold, ys))):
        return same_right_sides(answer, gold)
    if ([answer], [gold]) == (xs, ys):
        return same_expression(answer, gold)
    if not xs or not ys or len(xs) * len(ys) > 400:
        return None
    if brackets and brackets == others:
        verdicts = [same(x, y) for x, y in zip(xs, ys, strict=True)] if len(xs) == len(ys) else [False]
        return False if False in verdicts else None if None in verdicts else True
    table = [[same(x, y) for y in ys] for x in xs]
    lines = [*table, *map(list, zip(*table, strict=True))]
    if any(set(line) == {False} for line in lines):
        return False  # one has an element that the other lacks
    return True if brackets == others and all(line.count(True) == 1 for line in lines) else None


def elements(text: str) -> tuple[str, list[str]]:
    r"""A tuple, interval or matrix as (brackets, elements); a set or list as ("", elements); all else is a list of one."""
    if matrix := re.fullmatch(r"[(\[]?\\begin\{[bp]?matrix\}(.*)\\end\{[bp]?matrix\}[)\]]?", text):
        rows = [row.split("&") for row in matrix[1].removesuffix(";").split(";")]
        return f"matrix {[len(row) for row in rows]}", [entry.strip() for row in rows for entry in row]
    if bracketed := re.fullmatch(r"(\\\{|[(\[])(.*)(\\\}|[)\]])", text):
        inner = split(bracketed[2])
        if inner and bracketed[1] == r"\{":
            return "", inner
        if len(inner) > 1:
            return bracketed[1] + bracketed[3], inner
    return "", split(text)


def split(text: str) -> list[str]:
    r"""A list at its commas outside brackets, `a \pm b` as two elements; [] when the brackets do not match."""
    found, depth, begin = [], 0, 0
    for i, character in enumerate(text + ","):
        depth += (character in "([{") - (character in ")]}")
        if not 0 <= depth <= 8:
            return []
        if depth == 0 and character == ",":
            found.append(text[begin:i].strip())
            begin = i + 1
    if depth:
        return []
    return [
        sign.join(e.split(r"\pm")) for e in found for sign in ("+-" if e.count(r"\pm") == 1 else ["\\pm"])
    ]


def same_right_sides(answer: str, gold: str) -> bool | None:
    """`same` where one is a relation: a bare value is compared with a right side, of `2x + y = 2` only in an answer."""
    a, b = RELATION.fullmatch(answer), RELATION.fullmatch(gold)
    if a and b:
        return same(a[3], b[3]) if a.group(1, 2) == b.group(1, 2) else None
    if a and a[2] == "=" and not RELATION.search(gold):
        return same(a[3], gold)
    if b and re.fullmatch(r"\w(\(\w\))?=", b[1] + b[2]) and not RELATION.search(answer):
        return same(answer, b[3])
    return None


def same_expression(answer: str, gold: str) -> bool | None:
    """`same` for what is no collection: by value, else as words."""
    if answer.endswith("%") and (gold.endswith("%") or re.fullmatch(r"\d+\\?%\d+", answer + gold)):
        return same(answer.rstrip("\\%"), gold.rstrip("\\%"))
    x, y = values(answer), values(gold)
    if x and y:
        verdicts = {close(a, b, "." in answer + gold) for a, b in zip(x, y, strict=True)}
        if len(verdicts) > 1 or (
            verdicts == {False} and bool(LETTER_UNIT.search(answer)) != bool(LETTER_UNIT.search(gold))
        ):
            return None
        return verdicts.pop()
    a, b = word(answer), word(gold)
    if a and b:
        return a == b
    if (a and y) or (b and x) or all(re.fullmatch(r"\d+_\{?\d+\}?", text) for text in (answer, gold)):
        return False  # in 40_9 and 40_8, math-verify does not see the base
    if y and isinstance(y[0], Fraction) and "\\" not in answer and not re.search("percent|%", answer):
        numbers = re.findall(r"\d[\d,.]*", answer)  # one, in "10 + John's age"
        if not numbers or (
            len(numbers) == 1 and compute(numbers[0]) != abs(y[0]) and re.search("[A-Za-z]{4}", answer)
        ):
            return False
    return None


def close(a: Fraction | complex, b: Fraction | complex, decimal: bool) -> bool | None:
    """Whether two values are equal; None for a near miss, as math-verify rounds decimals to six places."""
    if isinstance(a, Fraction) and isinstance(b, Fraction) and (a == b or not decimal):
        return a == b
    try:
        difference, size = abs(complex(a) - complex(b)), abs(complex(a))
    except OverflowError:  # one is past all floats
        return False
    return True if difference <= size / 10**12 else False if difference > max(1, size) / 10**5 else None


def word(text: str) -> str:
    r"""What may be no formula, such as `\text{even}`, `ellipse` or `(C)`, without case and spaces; "" for all else."""
    found = re.fullmatch(rf"{TEXT}\{{([A-Za-z .()]+)\}}|([A-Za-z .()]+)", text)
    return re.sub("[^a-z]", "", (found[1] or found[2]).lower()) if found else ""


def is_correct(completion: str, gold: str | int, tags: tuple[str, str] = TAGS) -> bool | None:
    """Whether a completion's answer equals the gold answer; None when the gold answer cannot be read."""
    return are_correct([completion], [gold], tags)[0]


def are_correct(
    completions: Sequence[str], golds: Sequence[str | int], tags: tuple[str, str] = TAGS
) -> list[bool | None]:
    """`is_correct` for many completions; those that need math-verify run side by side, TIME_LIMIT_S each.

    A completion that runs out of time or memory is wrong.
    """
    verdicts: list[bool | None] = [None] * len(completions)
    hard: dict[tuple[str, str], list[int]] = {}
    for i, (completion, gold) in enumerate(zip(completions, golds, strict=True)):
        answer, target = extract(completion, tags), str(gold).strip()
        number = compute(target)
        value = compute(answer) if number is not None and answer is not None else None
        if number is not None and number.denominator == 1 and value is not None:
            verdicts[i] = value == number
        elif answer is None and re.fullmatch(r".*\w.*", target):
            verdicts[i] = False
        elif (
            answer is not None
            and len(answer + target) <= 600
            and (verdict := same(canonical(answer), canonical(target))) is not None
        ):
            verdicts[i] = verdict
        else:
            hard.setdefault((answer or "", target), []).append(i)
    if hard:
        # A few are not worth starting another process for.
        with ThreadPoolExecutor(min(WORKERS, 1 + len(hard) // 8)) as threads:
            for places, verdict in zip(
                hard.values(), threads.map(lambda pair: verify(*pair), hard), strict=True
            ):
                for i in places:
                    verdicts[i] = verdict
    return verdicts


@lru_cache(maxsize=100_000)
def verify(answer: str, gold: str) -> bool | None:
    """math-verify's verdict from a worker process: False past the limits, None when the gold answer cannot be read."""
    if len(answer) > 1000:  # no answer is that long, and parsing one is slow
        answer = ""
    workers = pool(os.getpid())
    worker = workers.get()
    try:
        return worker.ask([answer, gold])
    finally:
        workers.put(worker)


@cache
def pool(_pid: int) -> "queue.Queue[Worker]":
    """The worker processes that are free; a forked process has its own."""
    free: queue.Queue[Worker] = queue.LifoQueue()  # a worker that has started is taken again
    for _ in range(WORKERS):
        free.put(Worker())
    return free


class Worker:
    """One process that runs math-verify; killed and started again when it takes too long.

    A plain subprocess, because multiprocessing would import the caller's script again.
    """

    process: subprocess.Popen[bytes] | None = None

    def ask(self, request: list[str]) -> bool | None:
        """The verdict on [answer, gold]."""
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
        source = "from aimo.inference.answers import serve; serve()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", source],
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

    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse
    from math_verify import verify as equal

    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))

    @lru_cache(maxsize=10_000)
    def read_gold(gold: str) -> list[Any]:
        for text in (f"${gold}$", gold):
            found = parse(text, parsing_timeout=None)
            if any(not isinstance(part, str) for part in found):  # text alone is what it falls back to
                return found
        return []

    configs = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    print("ready", flush=True)
    for line in sys.stdin:
        answer, gold = json.loads(line)
        try:
            target = read_gold(gold)
            found = (
                parse(f"\\boxed{{{answer}}}", extraction_config=configs, parsing_timeout=None)
                if answer and target
                else []
            )
            verdict: Any = bool(found and equal(target, found, timeout_seconds=None)) if target else None
        except Exception:
            verdict = False
        print(json.dumps(verdict), flush=True)
