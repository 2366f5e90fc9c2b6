r"""Find the final answer in a completion, and read it as an integer.

Out of scope: whether an answer equals the gold answer (`aimo.inference.equivalence`).
"""

import re

from aimo.inference.arithmetic import compute
from aimo.inference.settings import PUBLIC, Tags

DEFAULT_TAGS = Tags()
PUBLIC_THINK_ENDS = tuple(tags.think_end for tags in PUBLIC)  # data has them, whatever the profile's tags
BOLD_END = re.compile(r"\*\*([^*\n]+)\*\*\.?\s*\Z")
PHRASE = re.compile(r"####|^A:|^Answer:|\b[Aa]nswer(?: to [^.\n]{0,80}?)?(?: is|:)(?: ?:)?", re.MULTILINE)


def extract(completion: str, tags: Tags = DEFAULT_TAGS) -> str | None:
    r"""The final answer of a completion, or None.

    The last of: the answer tags, `<answer>…</answer>`, `\boxed{…}` or `\fbox{…}` (balanced braces, or cut
    off); failing those `#### x`, `A: x` or "the answer is x". Text after the thought takes
    precedence over text inside it.
    """
    ends = (tags.think_end, *PUBLIC_THINK_ENDS)
    after = max((completion.rfind(end) + len(end) for end in ends if end in completion), default=0)
    for text in (completion[after:], completion[:after]):
        found = [tagged(text, "<answer>", "</answer>"), boxed(text)]
        if not tags.answer_start.startswith("\\"):  # a box as tags is found above, with balanced braces
            found.append(tagged(text, tags.answer_start, tags.answer_end))
        if filled := [(position, answer) for position, answer in filter(None, found) if answer]:
            answer = max(filled)[1]
            inner = boxed(answer)  # a box inside the tags is unwrapped
            return inner[1] if inner else answer
        if phrase := phrased(text):
            return phrase
    return None


def phrased(text: str) -> str | None:
    """What follows the last `####`, `A:` or "answer is", or else is in bold at the very end."""
    # A scan for plain words first: the pattern itself is ten times slower.
    near = max(text.rfind("####"), text.rfind("\nA:"), text.rfind("nswer"))
    end = -1
    if text.startswith("\nA:", near):
        end = near + 3
    elif text.startswith("####", near):
        end = near + 4
    elif near >= 0 or text.startswith("A:"):
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
    r"""An answer as an integer within low…high, or None when it is not certain to be one.

    Reads `1{,}024`, `2^{10}`, `\frac{84}{2}`, `42.0`, `7!`, `x = 5`, `5\text{ apples}`, `\text{five}`;
    computes exact arithmetic and gives None for anything else. With `modulus`, the value is reduced before
    the range is checked.
    """
    value = None if answer is None else compute(answer)
    if value is None or value.denominator != 1:
        return None
    number = int(value) if modulus is None else int(value) % modulus
    return number if (low is None or low <= number) and (high is None or number <= high) else None
