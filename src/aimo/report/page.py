"""The layout of all pages: a single file that works offline, on a phone, in print and in dark mode.

Text from outside stays text. `render` escapes everything but `Html`, and a page's policy lets a browser load
nothing and run only the script in `page.jinja`, which sorts tables.
"""

import base64
import hashlib
import html
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import tostring

from jinja2 import Environment, StrictUndefined
from latex2mathml.converter import convert_to_element

from aimo.inference.errors import AimoError
from aimo.inference.storage import write_whole

PAGE = Path(__file__).with_name("page.jinja").read_text(encoding="utf-8")
TABLE_STYLE = "".join(PAGE.partition("{# tables #}")[2].partition("</style>")[:2])  # notebooks need it too
SCRIPT = PAGE.partition("<script>")[2].partition("</script>")[0]
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    f"script-src 'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'"
)
compiled = lru_cache(
    Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=lambda x: "" if x is None else x,
    ).from_string
)


class Html(str):
    """HTML from `render`, which has escaped all text from outside. Methods of str return a plain str, which
    is escaped again."""

    def __html__(self) -> str:
        return self

    def _repr_html_(self) -> str:
        return f"{TABLE_STYLE}{self}"

    def __repr__(self) -> str:
        return f"<{len(self):,} characters of HTML>"


@dataclass(frozen=True)
class Section:
    """A table or plot of a page; one without a title belongs to the section before it."""

    view: Html | None
    title: str = ""
    lead: str | Html = ""

    @property
    def anchor(self) -> str:
        return "-".join(re.findall(r"\w+", self.title.lower()))


def render(source: str, **values: Any) -> Html:
    """Return one of our templates filled with values; everything but `Html` is escaped."""
    return Html(compiled(source).render(values))


def join(parts: Iterable[str]) -> Html:
    return render("{{ parts | join }}", parts=list(parts))


def verbatim(content: str) -> Html:
    return render("<pre>{{ content }}</pre>", content=content)


def fold(summary: str, content: str) -> Html:
    template = "<details><summary>{{ summary }}</summary><div>{{ content }}</div></details>"
    return render(template, summary=summary, content=content)


def link(label: str, path: str) -> Html:
    """Return a link to a file by its path from the page. No name turns it into a link to an address."""
    return render('<a href="./{{ path }}">{{ label }}</a>', path=quote(os.fsencode(path)), label=label)


def write_page(
    path: Path, title: str, lead: str, sections: Iterable[Section], contents: bool = False
) -> Path:
    """Write a page, with links to its sections if `contents`. Raise AimoError if it cannot be written."""
    itself = quote(path.name) if contents else ""
    page = render(PAGE, title=title, lead=lead, sections=list(sections), policy=POLICY, contents=itself)
    try:
        write_whole(path, page)
    except OSError as e:
        raise AimoError(f"page {path}: {e.strerror}; make room or unlock its folder, and run again") from None
    return path


# ---- LaTeX as MathML, which browsers render without a script or another file
#
# What `latex2mathml` cannot convert stays as written, and so do text commands outside formulas.

FORMULA = re.compile(
    r"\$\$(.{1,2000}?)\$\$|\\\[(.{1,2000}?)\\\]|\\\((.{1,2000}?)\\\)"
    r"|\$(?!\s)((?:[^$\n\\]|\\.){1,600}?)(?<!\s)\$(?!\d)",
    re.DOTALL,
)
MACROS = re.compile(r"\\(?:re)?new|\\[egx]?def|\\let|\\provide|\\Declare")  # they could expand without end
FOREIGN = {"class", "style", "href", "xmlns"}
# A word of an attribute: a name, a colour, or a length of at most two digits, which cannot cover the page.
VALUE = re.compile(r"[a-z-]+|#[\da-f]{3,8}|[+-]?\d{0,2}(?:\.\d+)?[a-z]{0,2}", re.IGNORECASE)


def as_mathematics(content: str) -> Html:
    r"""Return a text whose `$…$`, `$$…$$`, `\(…\)` and `\[…\]` are rendered as mathematics."""
    parts, end = [], 0
    for found in FORMULA.finditer(content):
        parts += [content[end : found.start()], formula(next(filter(None, found.groups())))]
        end = found.end()
    return join([*parts, content[end:]])


def as_answer(content: str) -> Html:
    """Return an answer as a formula if it has LaTeX but no dollar signs, or else as `as_mathematics` does."""
    is_formula = re.search(r"[\\^_]", content) and "$" not in content and len(content) <= 2000
    return formula(content) if is_formula else as_mathematics(content)


@lru_cache(maxsize=10_000)
def formula(latex: str) -> Html:
    """Return a formula as MathML without links and styles, or its LaTeX if it cannot be converted."""
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
