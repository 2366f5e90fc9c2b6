# ruff: noqa: RUF001 (answers contain such characters)
r"""Decide whether two answers are equal, and so whether a completion is right.

Three steps run in order until one decides. `quick_verdict` compares integers, texts and measures. `same`
compares numbers, roots, tuples, sets, matrices, relations and words in microseconds. math-verify does the
algebra in worker processes with a time limit, so that no completion can stall the run.
"""

import atexit
import json
import os
import queue
import re
import resource
import select
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache, lru_cache, partial
from typing import Any

from aimo.inference import expressions
from aimo.inference.answers import DEFAULT_TAGS, AnswerKind, extract
from aimo.inference.expressions import TEXT, canonical, exact_value, parts, read_choice, values
from aimo.inference.settings import Prompt, Tags

TIME_LIMIT_S = 5.0  # wall time per answer in math-verify
WORKERS = min(4, len(os.sched_getaffinity(0)))


def are_equal(
    answers: Sequence[str | None], golds: Sequence[str | int], kind: AnswerKind | None = None
) -> list[bool | None]:
    """Return whether each of n answers equals its gold answer; None if the gold answer cannot be read.

    A `kind` compares them by its own rule. Pairs that need math-verify run in parallel in WORKERS processes,
    which first take a second to import sympy. A pair that exceeds TIME_LIMIT_S counts as wrong.
    """
    if kind and not kind.is_slow:  # the slow kind is compared by the judge
        told: list[bool | None] = []
        for answer, known in zip(answers, golds, strict=True):
            value, gold = kind.read(answer), kind.gold(str(known))
            told.append(None if gold is None else value is not None and kind.equal(gold, value))
        return told
    pairs = [(answer, str(gold).strip()) for answer, gold in zip(answers, golds, strict=True)]
    verdicts = [quick_verdict(answer, gold) for answer, gold in pairs]
    hard = list({pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict is None})
    # A few pairs do not justify starting another process.
    with ThreadPoolExecutor(min(WORKERS, 1 + len(hard) // 8)) as threads:
        found = dict(zip(hard, threads.map(lambda pair: verify(*pair), hard), strict=True))
    return [found.get(pair, verdict) for pair, verdict in zip(pairs, verdicts, strict=True)]


def are_correct(
    completions: Sequence[str],
    golds: Sequence[str | int],
    tags: Tags = DEFAULT_TAGS,
    kind: AnswerKind | None = None,
) -> list[bool | None]:
    """Return whether each of n completions gives its gold answer; None if that cannot be read."""
    find = kind.find if kind else extract
    return are_equal([find(completion, tags) for completion in completions], golds, kind)


def is_well_formed(prompt: Prompt, completion: str) -> bool:
    """Return whether a completion is exactly one thought, opened by it or by the prompt, and one answer."""
    if completion.startswith(prompt.think_start):
        completion = completion[len(prompt.think_start) :]
    elif not prompt.prefill:
        return False
    if prompt.answer_start == "\\boxed{":  # like R1: the answer is boxed somewhere after the thought
        _, closed, rest = completion.partition(prompt.think_end)
        return bool(closed) and prompt.think_end not in rest and prompt.answer_start in rest
    tags = (prompt.think_end, prompt.answer_start, prompt.answer_end)
    pattern = rf".*?{re.escape(tags[0])}\s*{re.escape(tags[1])}.+?{re.escape(tags[2])}\s*"
    return all(completion.count(tag) == 1 for tag in tags) and bool(re.fullmatch(pattern, completion, re.S))


def quick_verdict(answer: str | None, gold: str) -> bool | None:
    """Return whether an answer equals the gold answer, or None if that takes algebra."""
    if answer is None:
        return False if re.search(r"\w", gold) else None
    if (target := expressions.integer(gold) if expressions.PLAIN.fullmatch(gold) else None) is not None:
        return expressions.integer(answer) == target
    if answer == gold and re.search(r"\w", gold):
        return True
    if len(answer + gold) > 600:
        return None
    (label, rest), (wanted, meant) = read_choice(answer), read_choice(gold)
    if wanted and label:
        return label == wanted
    a, b = canonical(rest), canonical(meant)
    if re.search("[A-Za-z:]", b):  # a time of day, or a measure such as `5km`
        plain = [re.sub(r"\s", "", re.sub(rf"{TEXT}\{{([^{{}}]*)\}}", r"\1", text)) for text in (a, b)]
        if all(clocks := [CLOCK.fullmatch(text) for text in plain]):
            minutes, hours = [], []
            for hour, minute, half in (clock.groups() for clock in clocks if clock):
                minutes.append(int(minute or 0))
                # The hours that may be meant: two if neither am nor pm is given.
                own = 12 * (half.lower() == "p") + int(hour) % 12 if half else int(hour)
                hours.append({own} if half or own > 12 else {own % 24, (own + 12) % 24})
            if any(clock and clock[3] for clock in clocks):
                return bool(hours[0] & hours[1]) and minutes[0] == minutes[1]
            if all(clock and clock[2] for clock in clocks):
                return plain[0] == plain[1]
        sizes = []
        for text in plain:
            if (measure := MEASURE.fullmatch(text)) and (value := exact_value(measure[1])) is not None:
                kind, scale = SCALES[measure[2]]
                sizes.append((kind, value * scale))
        if len(sizes) == 2:
            return sizes[0] == sizes[1]
    if re.fullmatch(r"(?:\w(?:\(\w\))?=)?(?!.*per ?cent)[^=<>≤≥≡≈%]+", b):
        value = expressions.number(b)
        if value is not None and value.denominator == 1:
            return expressions.number(a) == value
    return same(a, b)


# Without algebra

LETTER_UNIT = re.compile(  # in "5 m", m may be a name or metres
    r"[\d} ](?:[cdghlmost]|[cdkm]m|[gk]m|kg|lbs?|ft|hrs?|yrs?|[ap]m)\Z"
)
NUMERAL = re.compile(r"\d[\dA-F]*_\{\d+\}")
RELATION = re.compile("([^=<>≤≥≠]+)([=<>≤≥≠])([^=<>≤≥≠]+)")
BOUNDS = re.compile(r"(?:([^<>≤≥=,]+)([<≤]))??[A-Za-z](?:_\{\w\})?(?:([<≤])([^<>≤≥=,]+))?")
FLIPPED = str.maketrans("<>≤≥", "><≥≤")
INTERVAL = re.compile(r"(?:\w=)?([(\[].*[)\]])")
MATRIX = re.compile(
    r"[(\[]?\\begin\{(?:[bp]?matrix|array)\}(?:\{[lcr|]+\})?(.*)\\end\{(?:[bp]?matrix|array)\}[)\]]?"
)
NAMES = "january february march april may june july august september october november december"
MONTHS = {name: n for n, month in enumerate(NAMES.split(), 1) for name in (month, month[:3])}
UNITS = {  # each unit in metres, grams or seconds
    "length": "m,meter,metre=1 mm,millimeter=0.001 cm,centimeter=0.01 km,kilometer=1000 mi,mile=1609.344 "
    "in,inch,inches=0.0254 ft,foot,feet=0.3048",
    "mass": "g,gram=1 mg,milligram=0.001 kg,kilogram=1000 lb,pound=453.59237 oz,ounce=28.349523125",
    "time": "s,sec,second=1 min,minute=60 h,hr,hour=3600",
}
SCALES = {
    unit: (kind, Fraction(scale))
    for kind, table in UNITS.items()
    for units, scale in (entry.split("=") for entry in table.split())
    for unit in units.split(",")
}
MEASURE = re.compile(rf"(.*[\d)}}])({'|'.join(sorted(SCALES, key=len, reverse=True))})(?:s|\.)?")
CLOCK = re.compile(r"(\d{1,2})(?::(\d\d))?(?:([ap])\.?m\.?)?", re.IGNORECASE)


@lru_cache(maxsize=100_000)
def same(answer: str, gold: str) -> bool | None:
    r"""Return whether two canonical answers are equal, or None if that takes algebra.

    Compares tuples, intervals and matrices element by element, and sets and lists in any order. `\pm` gives
    two elements, and an inequality is read as an interval.
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
        # Compare relations by their right sides. The answer may add any left side; of the gold answer's, it
        # may leave out only a name or `f(x)`.
        a, b = RELATION.fullmatch(answer), RELATION.fullmatch(gold)
        if a and b:
            return same(a[3], b[3]) if a.group(1, 2) == b.group(1, 2) else None
        if a and a[2] == "=" and not RELATION.search(gold):
            return same(a[3], gold)
        is_named = b and re.fullmatch(r"\w(?:_\{\w+\})?(\(\w\))?=|\w+=(?=[(\[])", b[1] + b[2])
        return same(answer, b[3]) if b and is_named and not RELATION.search(answer) else None
    if r"\ldots" in answer + gold:
        return len(xs) > 1 and same_in_order(xs, ys) is True
    if ":" in brackets + others:  # 1:2 and 2:4, or a ratio of two terms and its quotient
        one, other = ([exact_value(text) for text in found] for found in (xs, ys))
        if {len(one), len(other)} == {1, 2}:
            one, other = ([*found, Fraction(1)][:2] for found in (one, other))
        if len(one) != len(other) or None in (*one, *other):
            return same_in_order(xs, ys)
        return all(a * other[0] == b * one[0] for a, b in zip(one, other, strict=True))  # type: ignore[operator]
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
    if len(xs) != len(ys):
        return False
    verdicts = [same(x, y) for x, y in zip(xs, ys, strict=True)]
    return False if False in verdicts else None if None in verdicts else True


def elements(text: str) -> tuple[str, list[str]]:
    r"""Return (brackets, elements) of a tuple, interval, matrix, ratio or union; ("", elements) of a set."""
    if found := MATRIX.fullmatch(text):
        rows = [row.split("&") for row in found[1].removesuffix(";").split(";")]
        return f"matrix {[len(row) for row in rows]}", [entry.strip() for row in rows for entry in row]
    if r"\cup" in text and len(sets := parts(text.replace(r"\cup", ","))) == text.count(r"\cup") + 1:
        return "∪", sets
    if bracketed := re.fullmatch(r"(\\\{|[(\[])(.*)(\\\}|[)\]])", text):
        inner = parts(bracketed[2])
        if inner and bracketed[1] == r"\{":
            return "", inner
        if len(inner) > 1:
            return bracketed[1] + bracketed[3], inner
    if re.fullmatch(r"[^:=]*[\d}a-z](?::[\d\\a-z][^:=]*)+", text):
        return ":", text.split(":")
    return "", parts(text)


def interval(text: str) -> str:
    """Return inequalities of one name as an interval or a union, and other texts unchanged."""
    found = []
    for part in parts(text) or [""]:
        if apart := re.fullmatch(r"[A-Za-z](?:_\{\w\})?≠([^<>≤≥≠]+)", part):
            found += [f"(-ꝏ,{apart[1]})", f"({apart[1]},ꝏ)"]
            continue
        left_to_right = re.fullmatch(r"([^<>≤≥]*[<>≤≥])?[^<>≤≥]+[<>≤≥][^<>≤≥]*", part)
        if left_to_right and not re.search("[<≤]", part):  # reverse "x > 2"
            part = "".join(reversed(re.split("([<>≤≥])", part.translate(FLIPPED))))
        bounds = BOUNDS.fullmatch(part)
        if not bounds or not (bounds[1] or bounds[4]):
            return text
        begin, end = "[" if bounds[2] == "≤" else "(", "]" if bounds[3] == "≤" else ")"
        found.append(f"{begin}{bounds[1] or '-ꝏ'},{bounds[4] or 'ꝏ'}{end}")
    return r"\cup".join(found)


def same_expression(answer: str, gold: str) -> bool | None:
    """Compare two single expressions by value, or else as words."""
    if "%" in (answer[-1:], gold[-1:]):
        numbers_alone = same(answer.rstrip("\\%"), gold.rstrip("\\%"))
        if numbers_alone or answer[-1] == gold[-1]:
            return numbers_alone
        one, other = (exact_value(text.rstrip("\\%")) for text in (answer, gold))
        if one is not None and other is not None:  # 50% and 0.5
            return one == other * 100 if answer.endswith("%") else one * 100 == other
    x, y = values(answer), values(gold)
    if x and y:
        verdicts = {close(a, b, "." in answer + gold) for a, b in zip(x, y, strict=True)}
        if len(verdicts) > 1:  # equal at one of the two points, as \sqrt{x^2} and x are
            return None
        if verdicts == {False} and bool(LETTER_UNIT.search(answer)) != bool(LETTER_UNIT.search(gold)):
            return None
        return verdicts.pop()
    a, b = words_of(answer), words_of(gold)
    if a and b:
        return a == b
    if (a and y) or (b and x):
        return False
    if NUMERAL.fullmatch(answer) and NUMERAL.fullmatch(gold):
        return False  # 40_9 and 40_8: math-verify ignores the base
    if y and isinstance(y[0], Fraction) and "\\" not in answer and not re.search("percent|%", answer):
        numbers = re.findall(r"\d[\d,.]*", answer)
        is_other = len(numbers) == 1 and exact_value(canonical(numbers[0])) != abs(y[0])
        if not numbers or (is_other and re.search("[A-Za-z]{4}", answer)):  # 10 + John's age
            return False
    return None


def close(a: expressions.Number, b: expressions.Number, decimal: bool) -> bool | None:
    """Return whether two values are equal; None for a near miss, which math-verify may round away."""
    if isinstance(a, Fraction) and isinstance(b, Fraction) and (a == b or not decimal):
        return a == b
    try:
        difference, size, other = abs(complex(a) - complex(b)), abs(complex(a)), abs(complex(b))
    except OverflowError:  # one overflows a float
        return False
    if difference <= size / 10**12:
        return True
    largest = max(size, other)
    return False if difference > (max(1, size) if largest > 1e-3 else largest) / 10**5 else None


def words_of(text: str) -> str:
    r"""Return likely words (`\text{even}`, `ellipse`, `(C)`) in lower case without spaces, or ""."""
    found = re.fullmatch(rf"{TEXT}\{{([A-Za-z .()]+)\}}|([A-Za-z .()]+)", text)
    return re.sub("[^a-z]", "", (found[1] or found[2]).lower()) if found else ""


def date(text: str) -> list[str]:
    """Return a date's month, then the day and year that are given, sorted; [] if it is no date."""
    if iso := re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)", text):
        return [str(int(iso[2])), *sorted([iso[1], str(int(iso[3]))])]
    bare = re.sub(rf"{TEXT}|(?<=\d)(?:st|nd|rd|th)\b|\b(?:of|the)\b", " ", text.lower())
    words = re.findall(r"[a-z]+|\d+", bare)
    months = [MONTHS[word] for word in words if word in MONTHS]
    numbers = [str(int(word)) for word in words if word.isdigit()]
    is_date = len(months) == 1 and len(numbers) in (1, 2) and len(words) == 1 + len(numbers)
    return [str(months[0]), *sorted(numbers)] if is_date else []


# With algebra: math-verify in worker processes


@lru_cache(maxsize=100_000)
def verify(answer: str | None, gold: str) -> bool | None:
    """Return math-verify's verdict: False beyond a limit, None if it cannot read the gold answer."""
    if answer is None or len(answer) > 1000:  # no answer is that long, and parsing one is slow
        answer = ""
    asked = [expressions.to_latex(read_choice(text)[1]) for text in (answer, gold)]
    a, b = (re.fullmatch(r"\s*\$*\s*(\\?\w+(?:_\{?\w+\}?)?)\s*=([^=]+)", text) for text in asked)
    if a and b and a[1] == b[1]:  # math-verify finds any two equations of one name equal
        asked = [a[2], b[2]]
    elif any(INTERVAL.fullmatch(canonical(text)) for text in asked):
        for i, text in enumerate(map(canonical, asked)):  # inequalities become intervals
            if (found := interval(text)) != text:
                asked[i] = found.replace("ꝏ", r"\infty ").replace("π", r"\pi ").replace("*", r"\cdot ")
    free = free_workers(os.getpid())
    worker, reply = free.get(), b""
    try:
        if worker is None or worker.poll() is not None:
            # multiprocessing would import the caller's script again.
            command = [sys.executable, "-c", f"from {__name__} import answer_requests; answer_requests()"]
            pipe = subprocess.PIPE
            worker = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
            atexit.register(worker.kill)
            worker.stdout.readline()  # type: ignore[union-attr]  # wait until it has imported sympy
        worker.stdin.write(json.dumps(asked).encode() + b"\n")
        worker.stdin.flush()
        if select.select([worker.stdout], [], [], TIME_LIMIT_S)[0]:
            reply = worker.stdout.readline()
    except BrokenPipeError:  # it has died
        pass
    finally:
        if worker and not reply:
            worker.kill()
            worker.wait()
        free.put(worker)
    return json.loads(reply) if reply else False


@cache
def free_workers(_pid: int) -> "queue.Queue[Any]":
    """Return the free worker processes, None for one not yet started. A forked process has its own queue."""
    free: queue.Queue[Any] = queue.LifoQueue()  # last in, first out: reuses a started worker
    for _ in range(WORKERS):
        free.put(None)
    return free


def answer_requests() -> None:
    """Run a worker's loop: one JSON line [answer, gold] in, one JSON verdict out."""
    import math_verify  # takes half a second with sympy; only workers wait for it
    import sympy

    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    boxed, expression = (
        math_verify.LatexExtractionConfig(boxed_match_priority=0),
        math_verify.ExprExtractionConfig(),
    )
    read = lru_cache(maxsize=10_000)(partial(math_verify.parse, parsing_timeout=None))

    def verdict(answer: str, gold: str) -> bool | None:
        golds = (read(text) for text in (f"${gold}$", gold))  # only strings: it could not parse the text
        target = next((found for found in golds if any(not isinstance(part, str) for part in found)), None)
        if not answer or not target:
            return False if target else None
        found = read(f"\\boxed{{{answer}}}", (boxed, expression))
        if not (found and math_verify.verify(target, found, timeout_seconds=None)):
            return False
        a, b = target[0], found[0]
        if any(not isinstance(x, sympy.Expr) or x.free_symbols or x.atoms(sympy.Float) for x in (a, b)):
            return True
        size = abs(a.evalf(20))  # math-verify rounds, so different tiny numbers look equal to it
        return not (size < 1e-3 and abs((a - b).evalf(20)) > size / 10**15)

    print("ready", flush=True)
    for line in sys.stdin:
        try:
            reply = verdict(*json.loads(line))
        except Exception:  # sympy raises errors of any type
            reply = False
        print(json.dumps(reply), flush=True)
