r"""LaTeX as MathML, which browsers set without a script or another file (`latex2mathml` converts it).

What it cannot convert stays as it is written. Out of scope: text commands outside of formulas.
"""

import html
import re
from functools import lru_cache

from IPython.display import HTML
from latex2mathml.converter import convert

FORMULA = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|\$(?!\s)((?:[^$\n\\]|\\.){1,600}?)(?<!\s)\$(?!\d)", re.DOTALL
)


def text(content: str) -> HTML:
    r"""A text whose `$…$`, `$$…$$`, `\(…\)` and `\[…\]` are set as mathematics."""
    parts, end = [], 0
    for found in FORMULA.finditer(content):
        parts += [html.escape(content[end : found.start()]), formula(next(filter(None, found.groups())))]
        end = found.end()
    return HTML("".join([*parts, html.escape(content[end:])]))


def answer(content: str) -> HTML:
    """An answer: a formula if it has LaTeX and no dollars of its own, else a text."""
    return HTML(formula(content)) if re.search(r"[\\^_]", content) and "$" not in content else text(content)


@lru_cache(maxsize=10_000)
def formula(latex: str) -> str:
    """A formula as MathML; escaped LaTeX where it cannot be converted."""
    try:
        # The converter does not escape what stands in \text{…}.
        return convert(latex.replace("<", r"\lt ").replace(">", r"\gt "))
    except Exception:  # the converter raises many kinds
        return f"<code>{html.escape(latex)}</code>"
