# ruff: noqa: RUF001 (completions hold such signs)
"""Find the final answer in a completion, and read it as an integer; `judge` says whether it is right.

Rewards, figures and votes all read answers here.
"""

import re

from aimo.inference import expressions
from aimo.inference.settings import PUBLIC, Tags

DEFAULT_TAGS = Tags()
PUBLIC_THINK_ENDS = tuple(tags.think_end for tags in PUBLIC)  # data has them, whatever the profile's tags
BRACE, DIGITS = re.compile(r"[{}]"), re.compile(r"-?\d+")
LONGEST = 5000  # characters of a box
BOX = re.compile(r"(?:\\(?:boxed|fbox|framebox)|(?<![\w\\])boxed(?=\{))(?![A-Za-z])\s*")
EMPTY = re.compile(
    r"(?:\\(?:[lc]?dots|text\w*|math\w+|q?quad|square|Box|phantom)(?![a-z])|\\[ ,;:!]|[\s{}.$?_~…])*"
)
BETWEEN = re.compile(  # boxes of one list: "x = \boxed{3}, \boxed{5} and y = \boxed{7}"
    r"(?:\s(?!\s*\n)|[$,;&]|\\[()\[\],;: ]|\\q?quad|\\text\{\s*(?:and|or)\s*\}|and|or|[a-zA-Z](?:_\w)? ?=)*"
)
ASCII_WORDS = (
    "nswer", "A:", "####", "NSWER", "inal result", "espuesta", "esposta", "isposta", "Antwo", "Cevap",
    "Jawaban",
)  # fmt: skip
WORDS = (
    *ASCII_WORDS, "答", "éponse", "Ответ", "답", "Odpowiedź", "Đáp án", "الجواب", "الإجابة", "उत्तर", "คำตอบ",
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

    The last filled one of: the answer tags, `<answer>…</answer>`, `\boxed{…}` or `\fbox{…}` (balanced braces,
    or cut off); failing those `#### x`, `A: x` or "the answer is x", with what stands on the next line, and
    without a clause that explains it. Boxes in one list are one answer, `3, 5, 7`. Text after the thought
    takes precedence over text inside it.
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
            if not tags.answer_start.startswith("\\"):  # a box as tags is found above, with balanced braces
                found.append(tagged(text, tags.answer_start, tags.answer_end))
            if any(found):
                answer = max(filter(None, found))[1]
                inner = boxed(answer)  # a box inside the tags is unwrapped
                return inner[1] if inner else phrased(answer) or answer
        if phrase := phrased(text):
            return phrase
        # What is in bold at the very end, behind the last equals sign.
        bold = BOLD_END.search(text, max(0, len(text) - 300)) if text.endswith(("*", "*.", "\n")) else None
        if bold and (end := bold[1].rsplit("=", 1)[-1].strip()):
            return end
    return None


def phrased(text: str) -> str | None:
    """Return what the last `####`, `A:` or "answer is" states: display maths, or a line's first clause."""
    # A scan for plain words first, the last of them before all: the pattern itself is ten times slower.
    near = max(map(text.rfind, ASCII_WORDS if text.isascii() else WORDS))
    for begin in (max(0, near - 1), 0) if near >= 0 else ():
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
    """Return the last filled `start…end` of a text as (position, content)."""
    stop = text.rfind(end)
    while stop >= 0 and (begin := text.rfind(start, 0, stop)) >= 0:
        if content := text[begin + len(start) : stop].strip():
            return begin, content
        stop = text.rfind(end, 0, stop)
    return None


def boxed(text: str) -> tuple[int, str] | None:
    r"""Return the last filled `\boxed`, `\fbox` or `\framebox` of a text as (position, content).

    Different boxes of one list are joined by commas. A box that is left open counts where none is closed.
    """
    cut_off, last = None, None  # the box after the one in hand, as (position, contents)
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


def to_integer(
    answer: str | None, low: int | None = None, high: int | None = None, modulus: int | None = None
) -> int | None:
    r"""Return an answer as an integer within low…high, or None when it is not certain to be one.

    Reads `1{,}024`, `2^{10}`, `\frac{84}{2}`, `42.0`, `7!`, `m+n = 42`, `5\text{ apples}`, `five`; gives None
    for several values. With `modulus`, the value is reduced before the range is checked.
    """
    number = None if answer is None else expressions.integer(answer)
    if number is None:
        return None
    if modulus is not None:
        number %= modulus
    return number if (low is None or low <= number) and (high is None or number <= high) else None
