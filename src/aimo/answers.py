r"""Pull the final answer out of a completion, and decide whether it is right.

Integers, which is what AIMO asks for, are compared as integers, in microseconds. Everything else goes to math-verify in worker
processes, each held to a hard time limit: a completion can cost its reward, never the run. Left out: grading proofs.
"""

import ast
import atexit
import json
import math
import operator
import os
import queue
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
PLAIN = re.compile(r"-?[0-9]{1,18}")
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
        found = [f for f in (tagged(text, *tags), tagged(text, "<answer>", "</answer>"), boxed(text)) if f and f[1]]
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
        begin = max(near - 1, 0)
        phrases = list(PHRASE.finditer(text, begin)) or list(PHRASE.finditer(text))
        if phrases:
            line = text[phrases[-1].end() :].lstrip(" *:").split("\n", 1)[0]
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


def to_integer(answer: str | None, low: int | None = None, high: int | None = None, modulus: int | None = None) -> int | None:
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
NUMBER_WORDS = {word: i for i, word in enumerate(ONES.split())} | {word: 10 * i for i, word in enumerate(TENS.split(), 2)}
# After a number these change its value, so they are no units.
NOT_UNITS = re.compile(
    r"\b(dozen|scores?|hundred|thousand|[mb]illion|trillion|percent|mod|modulo|base|choose|or|and|to|times|plus|minus|squared"
    r"|cubed|pi|per|over|half|halves|thirds?|quarters?|hundredths?|tenths?)\b"
)
REWRITES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"\\[,;:! ]|~|\\(?:left|right|displaystyle)(?![a-z])|\\?\$|\\[()\[\]]", ""),
    ("\u2212", "-"),
    (r"\{,\}", ","),
    (r"\\[dt]frac(?![a-z])", r"\\frac"),
    (r"(?<![\d,.])(\d{1,3}(?:,\d{3})+)(?![\d,])", lambda m: m[1].replace(",", "")),
    (r"\^\{?\\circ\}?|°", ""),
    (r"\\(?:cdot|times)(?![a-z])|\u00d7|\u00b7", "*"),
    (r"\\div(?![a-z])", "/"),
]


def compute(answer: str) -> Fraction | int | None:
    """The value of an answer in LaTeX or plain arithmetic, if it is exact and small enough to compute at once."""
    text = answer.strip()
    if PLAIN.fullmatch(text):
        return int(text)
    return compute_latex(text) if len(text) <= 200 else None


@lru_cache(maxsize=100_000)
def compute_latex(text: str) -> Fraction | None:
    """`compute` for what is more than digits."""
    words = re.fullmatch(r"(?:\\(?:text|mathrm|textbf|mathbf)\{)?\s*([A-Za-z]+)(?:[- ]([a-z]+))?\s*\}?", text)
    if words:
        first, second = (NUMBER_WORDS.get((w or "zero").lower()) for w in words.groups())
        if first is None or second is None or (words[2] and not (first >= 20 and 1 <= second <= 9)):
            return None
        return Fraction(first + second)
    for pattern, replacement in REWRITES:
        text = re.sub(pattern, replacement, text)
    text = re.sub(r"^\s*[A-Za-z](?:_\w|_\{\w+\})?\s*=", "", text)
    unit = re.search(r"(?<=[\d)}!])\s*\\(?:text|mathrm|textrm|mbox)\{([A-Za-z .²³^23]*)\}(?:\^\{?[23]\}?)?\s*$", text)
    if unit:
        if NOT_UNITS.search(unit[1].lower()):
            return None
        text = text[: unit.start()]
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf|boxed)\{([\d.,\-]+)\}", r"\1", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)(?!\d)", r"((\1)/(\2))", text)
    for _ in range(5):  # innermost first
        text = re.sub(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))", text)
        text = re.sub(r"\\d?binom\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"binom(\1,\2)", text)
        text = re.sub(r"\\sqrt\s*\{([^{}]*)\}", r"sqrt(\1)", text)
        text = re.sub(r"\^\s*\{([^{}]*)\}", r"**(\1)", text)
    text = re.sub(r"(?<![\w.)])(\d+)!(?!!)", r"fact(\1)", text.replace("^", "**").replace("{", "(").replace("}", ")"))
    # Decimals become exact fractions: a float would round a long one to an integer that it is not.
    text = re.sub(r"(\d*)\.(\d+)", lambda m: f"({m[1]}{m[2]}/1{'0' * len(m[2])})", text.strip().removesuffix("."))
    text = re.sub(r"(?<!\d)0+(?=\d)", "", text)
    if re.search(r"[^0-9+\-*/()., ]", re.sub(r"\b(?:fact|binom|sqrt)\(", "(", text)) or re.search(r"//|\*\*\s*\*|,\s*\)", text):
        return None
    try:
        return evaluate(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def evaluate(node: ast.AST) -> Fraction:
    """The value of an arithmetic expression; ValueError for anything else, or for numbers too large to be an answer."""
    match node:
        case ast.Constant(value=int() as number):
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            return evaluate(operand) * (-1 if isinstance(sign, ast.USub) else 1)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = evaluate(left), evaluate(right)
            if isinstance(op, ast.Pow):
                if b.denominator != 1 or abs(b) * max(a.numerator.bit_length(), a.denominator.bit_length()) > 4096:
                    raise ValueError("too large")
                return a ** int(b)
            return OPERATORS[type(op)](a, b)
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return Fraction(FUNCTIONS[name](*(whole(evaluate(a)) for a in arguments)))
    raise ValueError("not arithmetic")


def whole(value: Fraction) -> int:
    """A natural number up to 10^12, which is what factorials and the like are computed of; ValueError otherwise."""
    if value.denominator != 1 or not 0 <= value <= 10**12:
        raise ValueError("not a small integer")
    return int(value)


def square_root(n: int) -> int:
    """The root of a square; ValueError for other numbers."""
    root = math.isqrt(n)
    if root * root != n:
        raise ValueError("not a square")
    return root


def small(function: Callable[..., int]) -> Callable[..., int]:
    """A function of numbers up to 500."""

    def bounded(*numbers: int) -> int:
        if max(numbers) > 500:
            raise ValueError("too large")
        return function(*numbers)

    return bounded


OPERATORS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
FUNCTIONS = {"fact": small(math.factorial), "binom": small(math.comb), "sqrt": square_root}


def is_correct(completion: str, gold: str | int, tags: tuple[str, str] = TAGS) -> bool | None:
    """Whether a completion's answer equals the gold answer; None when the gold answer cannot be read."""
    return are_correct([completion], [gold], tags)[0]


def are_correct(completions: Sequence[str], golds: Sequence[str | int], tags: tuple[str, str] = TAGS) -> list[bool | None]:
    """`is_correct` for many completions; those that need math-verify run side by side, TIME_LIMIT_S each.

    A completion that runs out of time or memory is wrong.
    """
    verdicts: list[bool | None] = [None] * len(completions)
    hard: dict[tuple[str, str], list[int]] = {}
    for i, (completion, gold) in enumerate(zip(completions, golds, strict=True)):
        answer, target = extract(completion, tags), str(gold).strip()
        number = compute(target)
        value = compute(answer) if number is not None and answer is not None else None
        if number is not None and (answer is None or value is not None):
            verdicts[i] = value == number  # both exact: no algebra needed
        elif answer == target and known(target):
            verdicts[i] = True
        else:
            hard.setdefault((answer or "", target), []).append(i)
    if hard:
        # A few are not worth starting another process for.
        with ThreadPoolExecutor(min(WORKERS, 1 + len(hard) // 8)) as threads:
            for places, verdict in zip(hard.values(), threads.map(lambda pair: verify(*pair), hard), strict=True):
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


def known(gold: str) -> bool:
    """Whether math-verify can read a gold answer."""
    return verify("", gold) is not None


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
        source = "from aimo.answers import serve; serve()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
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
    read_gold = lru_cache(maxsize=10_000)(lambda gold: parse(f"${gold}$", parsing_timeout=None) or parse(gold, parsing_timeout=None))
    configs = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    print("ready", flush=True)
    for line in sys.stdin:
        answer, gold = json.loads(line)
        try:
            target = read_gold(gold)
            found = parse(f"\\boxed{{{answer}}}", extraction_config=configs, parsing_timeout=None) if answer and target else []
            verdict: Any = bool(found and equal(target, found, timeout_seconds=None)) if target else None
        except Exception:
            verdict = False
        print(json.dumps(verdict), flush=True)
