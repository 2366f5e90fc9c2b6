"""Pull the final answer out of a completion, and decide whether it is right.

Integers, which is what AIMO asks for, are compared as integers; anything else goes to math-verify. Left out for now: LaTeX
that has to be computed to become an integer (`2^{10}`); it is no answer rather than a wrong one.
"""

import re
import threading

TAGS = ("<SOLUTION>", "</SOLUTION>")
PHRASE = re.compile(r"(?:####|\bA:|[Tt]he (?:final )?answer is:?|^Answer:)\s*([^\n]+)", re.MULTILINE)
END_OF_THOUGHT = ("</think>", "<end_working_out>")
INTEGER = re.compile(r"[+-]?\d+(?:\.0+)?")


def extract(completion: str, tags: tuple[str, str] = TAGS) -> str | None:
    r"""The final answer of a completion, or None.

    The last of: the answer tags, `<answer>`, `\boxed{…}` (braces balanced); failing those `#### x`, `A: x` or "the answer
    is x". What stands after the thought wins over what stands inside it.
    """
    after = max((completion.rfind(tag) + len(tag) for tag in END_OF_THOUGHT if tag in completion), default=0)
    for text in (completion[after:], completion[:after]):
        found = [*tagged(text, *tags), *tagged(text, "<answer>", "</answer>"), *boxed(text)]
        if found:
            return max(found)[1]
        phrases = PHRASE.findall(text)
        if phrases:
            return phrases[-1].strip().rstrip(".")
    return None


def tagged(text: str, start: str, end: str) -> list[tuple[int, str]]:
    """The last `start…end` of a text as (position, content), if there is one."""
    stop = text.rfind(end)
    begin = text.rfind(start, 0, stop) if stop >= 0 else -1
    return [(begin, text[begin + len(start) : stop].strip())] if begin >= 0 else []


def boxed(text: str) -> list[tuple[int, str]]:
    r"""The last `\boxed{…}` of a text as (position, content), if it is closed."""
    begin = text.rfind(r"\boxed{")
    depth = 0
    for i in range(begin + len(r"\boxed"), len(text) if begin >= 0 else 0):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return [(begin, text[begin + len(r"\boxed{") : i].strip())]
    return []


def to_integer(answer: str | None, low: int | None = None, high: int | None = None) -> int | None:
    r"""An answer as an integer within low…high, or None: `42`, `1{,}024`, `$1,024$`, `42.0`, `x = 5`; never a guess."""
    if answer is None:
        return None
    text = answer.replace("{,}", ",").replace(r"\,", "").strip().strip("$").strip()
    text = re.sub(r"^[A-Za-z]\s*=\s*", "", text)
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.0+)?", text):
        text = text.replace(",", "")
    if not INTEGER.fullmatch(text) or len(text) > 100:
        return None
    value = int(text.split(".")[0])
    return value if (low is None or low <= value) and (high is None or value <= high) else None


def is_correct(completion: str, gold: str | int, tags: tuple[str, str] = TAGS) -> bool | None:
    """Whether a completion's answer equals the gold answer; None when the gold answer cannot be read."""
    answer, gold_integer = extract(completion, tags), to_integer(str(gold))
    if gold_integer is not None:
        value = to_integer(answer)
        if value is not None or answer is None:
            return value == gold_integer
    from math_verify import parse, verify

    # math-verify's time limits work in the main thread only; off it, a parse is not bounded.
    limit = 5 if threading.current_thread() is threading.main_thread() else None
    target = parse(f"${gold}$", parsing_timeout=limit)
    if not target:
        return None
    return answer is not None and bool(verify(target, parse(f"${answer}$", parsing_timeout=limit), timeout_seconds=limit))
