# ruff: noqa: RUF001 (completions contain such characters)
"""Find the final answer in a completion and read its value, for rewards, metrics and votes alike.

`extract` finds the answer's text in tags, a box or a phrase. A competition's kind of answer (`Integer`,
`Number`, …) reads the value of that text, compares values and decides what may be submitted.
"""

import importlib
import json
import math
import re
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from aimo.inference import expressions
from aimo.inference.settings import PUBLIC, NonNegative, Positive, Tags, strict

DEFAULT_TAGS = Tags()
PUBLIC_THINK_ENDS = tuple(tags.think_end for tags in PUBLIC)  # data may use them whatever the profile's tags
BRACE, DIGITS = re.compile(r"[{}]"), re.compile(r"-?\d+")
LONGEST = 5000  # characters in a box
BOX = re.compile(r"(?:\\(?:boxed|fbox|framebox)|(?<![\w\\])boxed(?=\{))(?![A-Za-z])\s*")
EMPTY = re.compile(
    r"(?:\\(?:[lc]?dots|text\w*|math\w+|q?quad|square|Box|phantom)(?![a-z])|\\[ ,;:!]|[\s{}.$?_~…])*"
)
BETWEEN = re.compile(  # between boxes of one list: "x = \boxed{3}, \boxed{5} and y = \boxed{7}"
    r"(?:\s(?!\s*\n)|[$,;&]|\\[()\[\],;: ]|\\q?quad|\\text\{\s*(?:and|or)\s*\}|and|or|[a-zA-Z](?:_\w)? ?=)*"
)
WORDS = (  # literal parts of PHRASE, ten times faster to find than the pattern
    "nswer", "A:", "####", "NSWER", "inal result", "espuesta", "esposta", "isposta", "Antwo", "Cevap",
    "Jawaban", "答", "éponse", "Ответ", "답", "Odpowiedź", "Đáp án", "الجواب", "الإجابة", "उत्तर", "คำตอบ",
)  # fmt: skip
PHRASE = re.compile(
    r"####(?=[ \t]*[^A-Za-z\s#]|[ \t]*[\w.-]+\s*\Z)|^A:"
    r"|(?:\b(?:[Aa]nswers?|ANSWERS?|[Ff]inal result)\b|答案|答え|^答|Ответ|정답|^답|الجواب|الإجابة|उत्तर|คำตอบ"
    r"|[Rr](?:espuesta|éponse|esposta|isposta)(?: finale?| correcta?)?|Antwoo?r[td]|Cevap|Odpowiedź|Jawaban"
    r"|Đáp án)"
    r"(?:[ \t]+(?:to|of|for)\b[^.\n]{0,80}?)?[*_}$ \t]*"
    r"(?:(?<![A-Za-z])(?:is|IS|are|was|es|est|[éè]|ist|lautet|(?:will|must|should|would) be|equals)\b[ \t]*:?"
    r"|[:：=→]|[是为為は]\s*[:：]?"
    r"|[*_ \t]*$)",
    re.MULTILINE,
)
LEAD = re.compile(
    r"[\s*_>:：#}]*(?:(?:therefore|thus|then|hence|simply|just|exactly|indeed|clearly|equal to|given by)\b"
    r"[ ,:]*)*"
)
NO_ANSWER = re.compile(
    r"(?:(?:indeed|also|not|in)\s+)?(?:correct|right|wrong|incorrect|valid|reasonable|consistent|plausible"
    r"|unique|verified|confirmed|as follows|below|above|found|given)\b",
    re.IGNORECASE,
)
DISPLAY = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]", re.DOTALL)
MATHS = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\$([^$\n]+)\$|\\\((.+?)\\\)", re.DOTALL)
CLAUSE = re.compile(
    r"(?<![ap]\.m)[.!?](?=[\s*]|\Z)|[。；]|\s+[—–]\s|\s-\s(?=[a-z]{3})"
    r"|[,;]?\s+(?:because|since|as|so|which|where|hence|thus|therefore|given|due|when|but|obtained|rather|i\.e)\b"
    r"|\s\((?!mod\b)(?=[A-Za-z]{3})"
)
BOLD_END = re.compile(r"\*\*([^*\n]+)\*\*\.?\s*\Z")


def extract(completion: str, tags: Tags = DEFAULT_TAGS) -> str | None:
    r"""Return the final answer of a completion, or None.

    Searches the text after the thought, then the thought. In each it looks for the last non-empty answer
    tags, `<answer>…</answer>` or `\boxed{…}` (boxes in one list form one answer, `3, 5, 7`), then for the
    last `#### x`, `A: x` or "the answer is x", then for bold text at the end.
    """
    if "\x08" in completion or "\x0c" in completion:
        completion = expressions.restore_backslashes(completion)
    after = 0
    for end in (tags.think_end, *PUBLIC_THINK_ENDS):
        if end in completion:
            after = max(after, completion.rfind(end) + len(end))
    for text in (completion[after:], completion[:after]):
        if "box" in text or "</answer>" in text or tags.answer_end in text:
            found = [tagged(text, "<answer>", "</answer>"), boxed(text)]
            if not tags.answer_start.startswith("\\"):  # `boxed` finds boxes, with balanced braces
                found.append(tagged(text, tags.answer_start, tags.answer_end))
            if any(found):
                answer = max(filter(None, found))[1]
                inner = boxed(answer)  # unwrap a box inside the tags
                return inner[1] if inner else phrased(answer) or answer
        if phrase := phrased(text):
            return phrase
        bold = BOLD_END.search(text, max(0, len(text) - 300)) if text.endswith(("*", "*.", "\n")) else None
        if bold and (end := bold[1].rsplit("=", 1)[-1].strip()):
            return end
    return None


def phrased(text: str) -> str | None:
    """Return the answer after the last `####`, `A:` or "answer is": display maths or the first clause."""
    near = max(map(text.rfind, WORDS))
    for begin in (max(0, near - 1), 0) if near >= 0 else ():  # from the last word, then from the start
        for phrase in reversed(list(PHRASE.finditer(text, begin))[-50:]):
            said = text[phrase.end() : phrase.end() + 1000]
            if bare := re.match(r" ?(-?\d+)(?:\n|\Z)", said):
                return bare[1]
            said = said[LEAD.match(said).end() :]  # type: ignore[union-attr]
            if display := DISPLAY.match(said):
                said = (display[1] or display[2]).strip()
            else:
                said = said.split("\n", 1)[0]
                formulas = [found.span() for found in MATHS.finditer(said)]
                for clause in CLAUSE.finditer(said):
                    cut = clause.start()
                    if cut and not any(first <= cut < last for first, last in formulas):
                        said = said[:cut]
                        break
                said = said.strip().strip("*_").strip().removesuffix(",")
            if said and not NO_ANSWER.match(said):
                return said
    return None


def tagged(text: str, start: str, end: str) -> tuple[int, str] | None:
    """Return the last non-empty `start…end` in a text as (position, content)."""
    stop = text.rfind(end)
    while stop >= 0 and (begin := text.rfind(start, 0, stop)) >= 0:
        if content := text[begin + len(start) : stop].strip():
            return begin, content
        stop = text.rfind(end, 0, stop)
    return None


def boxed(text: str) -> tuple[int, str] | None:
    r"""Return the last non-empty `\boxed`, `\fbox` or `\framebox` in a text as (position, content).

    Different boxes of one list are joined by commas. An open box counts only if no box is closed.
    """
    cut_off, last = None, None  # `last`: the list that follows the current box, as (position, contents)
    for box in reversed(list(BOX.finditer(text))[-100:]) if "box" in text else ():
        begin = box.end()
        if not text.startswith("{", begin):  # \boxed 5
            digits = DIGITS.match(text, begin, begin + 20)
            end, content = (digits.end(), digits[0]) if digits else (begin, "")
        elif end := closing_brace(text, begin + 1):
            content = text[begin + 1 : end - 1].strip()
        else:
            content = text[begin + 1 :].strip().rstrip("$").strip() if len(text) - begin <= 200 else ""
        if EMPTY.fullmatch(content):
            continue
        if not end:
            cut_off = cut_off or (box.start(), content)
        elif last is None:
            last = (box.start(), [content])
        elif last[0] - end <= 80 and BETWEEN.fullmatch(text, end, last[0]):
            last = (box.start(), [content, *last[1]])
        else:
            break
    return (last[0], ", ".join(dict.fromkeys(last[1]))) if last else cut_off


def closing_brace(text: str, start: int) -> int:
    """Return the index after the brace that closes the one opened before `start`; 0 if it is still open."""
    depth = 1
    for brace in BRACE.finditer(text, start, start + LONGEST):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return brace.end()
    return 0


def to_integer(answer: str | None) -> int | None:
    r"""Return the integer that an answer states, or None if that is uncertain.

    Reads `1{,}024`, `2^{10}`, `\frac{84}{2}`, `42.0`, `7!`, `m+n = 42`, `5\text{ apples}` and `five`. Several
    values give None.
    """
    return None if answer is None else expressions.integer(answer)


# Kinds of answers

Value = int | float | str
LONGEST_TEXT = 500  # characters in a text answer
FLOAT = re.compile(r"[-+]?(?:\d{1,30}\.?\d{0,30}|\.\d{1,30})(?:[eE][-+]?\d{1,3})?")
Tolerance = Annotated[float, Field(ge=0, lt=1e300)]


class AnswerKind:
    """The base of all kinds. Unless overridden, answers are equal if their values are."""

    type: ClassVar[Any] = str  # of a value
    noun: ClassVar[Any] = "text"  # names a value in messages
    fallback: ClassVar[Any] = ""  # the answer if a question has no votes
    is_exact: ClassVar[bool] = True  # whether only identical values are equal answers
    is_slow: ClassVar[bool] = False  # whether a comparison may take seconds
    modules: ClassVar[tuple[str, ...]] = ()  # inference modules that kernels ship only for this kind

    def __str__(self) -> str:
        return f"{'an' if self.noun[0] in 'aeio' else 'a'} {self.noun}"

    def find(self, completion: str, tags: Tags = DEFAULT_TAGS) -> str | None:
        """Return the text of a completion's final answer, or None."""
        return extract(completion, tags)

    def read(self, text: str | None) -> Any:
        """Return the value that a text states, or None."""
        raise NotImplementedError

    def gold(self, text: str) -> Any:
        """Return the value of a known answer, or None if it is not of this kind."""
        return self.read(text)

    def equal(self, a: Any, b: Any) -> bool:
        return bool(a == b)

    def group(self, value: Any, known: Iterable[Any]) -> Any:
        """Return the first known value that equals `value`, or `value` itself."""
        return value if self.is_exact else next((one for one in known if self.equal(one, value)), value)

    def accepts(self, value: Any) -> bool:
        """Return whether a value may be submitted."""
        return type(value) is self.type


@dataclass(config=strict, frozen=True)
class Integer(AnswerKind):
    """An integer from low to high. If there is a modulus, the answer is reduced by it first."""

    type: ClassVar[Any] = int

    low: int = 0
    high: int = 99999
    modulus: Positive | None = None
    kind: Literal["integer"] = "integer"

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")

    @property
    def noun(self) -> str:
        return f"integer from {self.low} to {self.high}"

    @property
    def fallback(self) -> int:
        return max(self.low, min(0, self.high))

    def read(self, text: str | None) -> int | None:
        number = to_integer(text)
        if number is not None and self.modulus is not None:
            number %= self.modulus
        return number if self.accepts(number) else None

    def gold(self, text: str) -> int | None:
        return int(text) if re.fullmatch("-?[0-9]{1,18}", text) and self.accepts(int(text)) else None

    def accepts(self, value: Any) -> bool:
        return type(value) is int and self.low <= value <= self.high


@dataclass(config=strict, frozen=True)
class Number(AnswerKind):
    """A real number. Two are equal within a relative or an absolute tolerance."""

    type: ClassVar[Any] = float
    noun: ClassVar[Any] = "number"
    fallback: ClassVar[Any] = 0.0
    is_exact: ClassVar[bool] = False

    relative: Tolerance = 0.0
    absolute: Tolerance = 0.0
    decimals: NonNegative | None = None  # to which an answer is rounded
    kind: Literal["number"] = "number"

    def read(self, text: str | None) -> float | None:
        r"""Return the real number that a text states, such as `2.5e-3`, `1{,}024.5` or `\frac{\pi}{2}`."""
        text = (text or "").strip()
        try:
            if FLOAT.fullmatch(text):
                found: Any = float(text)
            else:
                plain = expressions.canonical(text) if len(text) <= LONGEST else ""
                found = expressions.number(plain)
                if found is None and len(both := expressions.values(plain.rpartition("=")[2])) == 2:
                    a, b = map(complex, both)  # at two points, equal if no name is left
                    tiny = 1e-12 * max(1.0, abs(a))
                    found = a.real if abs(a.imag) < tiny and abs(a - b) <= tiny else None
            found = math.nan if found is None else float(found)
        except (ArithmeticError, ValueError):
            return None
        if not math.isfinite(found):
            return None
        return found if self.decimals is None else float(round(found, self.decimals) + 0.0)

    def equal(self, a: Any, b: Any) -> bool:
        return math.isclose(a, b, rel_tol=min(self.relative, 1 - 1e-9), abs_tol=self.absolute)

    def accepts(self, value: Any) -> bool:
        return type(value) is float and math.isfinite(value)


@dataclass(config=strict, frozen=True)
class Choice(AnswerKind):
    """One letter, or several in alphabetical order."""

    letters: Annotated[str, Field(pattern="^[A-Z]{2,26}$")] = "ABCD"
    several: bool = False  # whether an answer may have more than one
    kind: Literal["choice"] = "choice"

    @property
    def noun(self) -> str:
        return f"{'choice of letters' if self.several else 'letter'} of {self.letters}"

    @property
    def fallback(self) -> str:
        return self.letters[0]

    def read(self, text: str | None) -> str | None:
        text = text or ""
        bare = re.sub(rf"{expressions.TEXT}|\\[ ,;:!()\[\]]|[{{}}$*()\[\]]", " ", text)
        joined = re.sub(r"[\s,;&/.、，]+|\band\b|\bor\b|和", "", bare)
        found = expressions.read_choice(text)[0] or (joined.upper() if joined.isascii() else "")
        is_one = found and set(found) <= set(self.letters) and (len(found) == 1 or self.several)
        return "".join(sorted(set(found))) if is_one else None

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) and self.read(value) == value


@dataclass(config=strict, frozen=True)
class Text(AnswerKind):
    """A short text. Settings decide whether spaces and case distinguish two texts."""

    is_exact: ClassVar[bool] = False

    spaces: bool = False  # whether spaces distinguish texts; those at the ends never do
    case: bool = True  # whether case distinguishes texts
    kind: Literal["text"] = "text"

    def read(self, text: str | None) -> str | None:
        plain = (text or "").strip().strip("$").strip()
        while found := re.fullmatch(rf"{expressions.TEXT}\{{([^{{}}]*)\}}[.。]?", plain):
            plain = found[1].strip()
        plain = re.sub(r"\\([_%&#$ ])", r"\1", plain)
        if not self.spaces:
            plain = " ".join(plain.split())
        return plain if 0 < len(plain) <= LONGEST_TEXT else None

    def gold(self, text: str) -> str | None:
        return text.strip() or None

    def equal(self, a: Any, b: Any) -> bool:
        a, b = (text.strip() if self.spaces else " ".join(text.split()) for text in (a, b))
        return bool(a == b if self.case else a.casefold() == b.casefold())


@dataclass(config=strict, frozen=True)
class Latex(AnswerKind):
    """A mathematical answer of any form. The judge decides which are equal."""

    is_exact: ClassVar[bool] = False
    noun: ClassVar[Any] = "answer in LaTeX"
    is_slow: ClassVar[bool] = True
    modules: ClassVar[tuple[str, ...]] = ("judge",)

    kind: Literal["latex"] = "latex"

    def read(self, text: str | None) -> str | None:
        plain = (text or "").strip().strip("$").strip()
        return plain if re.search(r"\w", plain) and len(plain) <= LONGEST_TEXT else None

    def equal(self, a: Any, b: Any) -> bool:
        return self.group(b, [a]) is a

    def group(self, value: Any, known: Iterable[Any]) -> Any:
        firsts = list(known)
        judge = importlib.import_module("aimo.inference.judge")  # one of `modules`: not every kernel has it
        verdicts = zip(firsts, judge.are_equal([value] * len(firsts), firsts), strict=True)
        return next((one for one, same in verdicts if same), value)


@dataclass(config=strict, frozen=True)
class Nemotron(AnswerKind):
    """An answer as the metric of the NVIDIA Nemotron Model Reasoning Challenge reads and compares it."""

    is_exact: ClassVar[bool] = False

    kind: Literal["nemotron"] = "nemotron"

    def find(self, completion: str, tags: Tags = DEFAULT_TAGS) -> str | None:
        r"""Return the text after the last non-empty `\boxed{`, up to the last brace before the next box.

        Without a box, fall back to the last "final answer is", then the last number, then the last line.
        """
        boxes = completion.split("\\boxed{")[1:]
        filled = [part[: part.rfind("}")] if "}" in part else part for part in boxes]
        if boxes:
            return next((text.strip() for text in reversed(filled) if text.strip()), "")
        for phrase in (r"the final answer is:\s*", r"final answer is:\s*", r"final answer\s*[:：]\s*"):
            if said := re.findall(phrase + r"([^\n]+)", completion, re.IGNORECASE):
                return str(said[-1]).strip()
        numbers = re.findall(r"-?\d+(?:\.\d+)?", completion)
        lines = [line.strip() for line in completion.splitlines() if line.strip()]
        return next(iter([*numbers[-1:], *lines[-1:]]), None)

    def read(self, text: str | None) -> str | None:
        return (text or "").strip() or None

    def equal(self, a: Any, b: Any) -> bool:
        """Return whether `b` matches the gold answer `a`. Bit strings must be equal; numbers may be close.

        Follows kaggle.com/code/metric/nvidia-nemotron-metric, version 15.
        """
        a, b = a.strip().lower(), b.strip().lower()
        if not re.fullmatch("[01]+", a):
            try:
                return math.isclose(float(a), float(b), rel_tol=1e-2, abs_tol=1e-5)
            except ValueError:
                pass
        return bool(a == b)


PAGE = 3000  # approximate characters of Markdown on a printed page


@dataclass(config=strict, frozen=True)
class Proof(AnswerKind):
    """A proof in Markdown with LaTeX, with an optional limit on its pages. No question has a known one."""

    modules: ClassVar[tuple[str, ...]] = ("proofs",)
    fallback: ClassVar[Any] = "No proof was found."

    pages: Positive | None = None
    kind: Literal["proof"] = "proof"

    @property
    def noun(self) -> str:
        return f"proof of at most {self.pages} pages" if self.pages else "proof"

    def read(self, text: str | None) -> str | None:
        plain = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", (text or "").replace("\r\n", "\n")).strip()
        return plain or None

    def accepts(self, value: Any) -> bool:
        fits = isinstance(value, str) and (not self.pages or len(value) <= self.pages * PAGE)
        return fits and bool(value.strip())


Kind = Annotated[Integer | Number | Choice | Text | Latex | Nemotron | Proof, Field(discriminator="kind")]
KIND: TypeAdapter[Any] = TypeAdapter(Kind)
INTEGER = Integer()


def write_kind(kind: AnswerKind) -> dict[str, Any]:
    """Return a kind as a file's header stores it."""
    return dict(KIND.dump_python(kind, mode="json"))


def read_kind(written: dict[str, Any]) -> Any:
    """Return the kind stored in a header. ValueError if it is invalid."""
    return KIND.validate_json(json.dumps(written))
