"""LaTeX as MathML, which browsers set without a script or another file (`latex2mathml` converts it).

What it cannot convert stays as it is written, and so do text commands outside of formulas.
"""

import html
import re
from functools import lru_cache
from xml.etree.ElementTree import tostring

from latex2mathml.converter import convert_to_element

from aimo.report.page import Html, join, render

FORMULA = re.compile(
    r"\$\$(.{1,2000}?)\$\$|\\\[(.{1,2000}?)\\\]|\\\((.{1,2000}?)\\\)"
    r"|\$(?!\s)((?:[^$\n\\]|\\.){1,600}?)(?<!\s)\$(?!\d)",
    re.DOTALL,
)
MACROS = re.compile(r"\\(?:re)?new|\\[egx]?def|\\let|\\provide|\\Declare")  # they could expand without end
FOREIGN = {"class", "style", "href", "xmlns"}
# A word of an attribute: a name, a colour, or a length of two digits, which cannot cover the page.
VALUE = re.compile(r"[a-z-]+|#[\da-f]{3,8}|[+-]?\d{0,2}(?:\.\d+)?[a-z]{0,2}", re.IGNORECASE)


def text(content: str) -> Html:
    r"""Return a text whose `$…$`, `$$…$$`, `\(…\)` and `\[…\]` are set as mathematics."""
    parts, end = [], 0
    for found in FORMULA.finditer(content):
        parts += [content[end : found.start()], formula(next(filter(None, found.groups())))]
        end = found.end()
    return join([*parts, content[end:]])


def answer(content: str) -> Html:
    """Return an answer: a formula if it has LaTeX and no dollars of its own, else a text."""
    is_formula = re.search(r"[\\^_]", content) and "$" not in content and len(content) <= 2000
    return formula(content) if is_formula else text(content)


@lru_cache(maxsize=10_000)
def formula(latex: str) -> Html:
    """Return a formula as MathML without links and styles; its LaTeX where it cannot be converted."""
    try:
        if MACROS.search(latex):
            raise ValueError("it defines macros")
        tree = convert_to_element(latex)
        for node in tree.iter():
            node.text = html.unescape(node.text or "")  # the converter writes entities
            for name, value in [*node.attrib.items()]:
                if name in FOREIGN or not all(map(VALUE.fullmatch, value.split())):
                    del node.attrib[name]
        return Html(tostring(tree, encoding="unicode", short_empty_elements=False))
    except Exception:  # the converter raises many kinds
        return render("<code>{{ latex }}</code>", latex=latex)
