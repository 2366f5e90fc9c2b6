"""The one look of all pages: a file that opens offline, on a phone, in print and in the dark.

Text from outside is only ever text here: `render` fills templates and escapes all but `Html`, and a page's
policy lets a browser load nothing and run no script but the one below, which sorts tables.
"""

import base64
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined, Template

from aimo.errors import AimoError
from aimo.inference.storage import write_whole

TABLE_STYLE = """<style>
table.aimo { border-collapse: collapse; font: 13px/1.45 system-ui, sans-serif; margin: 4px 0 14px }
table.aimo th, table.aimo td { text-align: left !important; vertical-align: top }
table.aimo th { opacity: 0.75; font-weight: 600; border-bottom: 2px solid #8885; padding: 4px 14px 4px 0 }
table.aimo td { white-space: nowrap; border-bottom: 1px solid #8883; padding: 5px 14px 5px 0 }
table.aimo td.text { font-family: ui-monospace, monospace; font-size: 12px; white-space: pre-wrap;
                     min-width: 13em; max-width: 34em; overflow-wrap: anywhere }
table.aimo td.prose { white-space: pre-wrap; min-width: 13em; max-width: 34em; overflow-wrap: anywhere }
table.aimo th { white-space: nowrap }
table.aimo td.number { text-align: right !important; font-variant-numeric: tabular-nums }
div.wide { overflow-x: auto }
</style>"""
STYLE = """<style>
:root { color-scheme: light dark; --text: #223; --faint: #5a6072; --back: #fff; --panel: #f4f5f8 }
@media (prefers-color-scheme: dark) {
  :root { --text: #dfe3ea; --faint: #a2a9b8; --back: #15181e; --panel: #1f242d }
  img { filter: invert(0.91) hue-rotate(180deg); mix-blend-mode: lighten }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
       max-width: 66em; margin: 2em auto; padding: 0 1em }
h1 { margin-bottom: 0; line-height: 1.2; overflow-wrap: anywhere } h2 { margin: 1.6em 0 .2em }
p { margin: .2em 0 .6em; color: var(--faint); overflow-wrap: anywhere } a { color: inherit }
pre, details > div { background: var(--panel); padding: .8em; overflow: auto; font-size: 12px }
details > div { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 30em }
summary, table.aimo th { cursor: pointer } th[aria-sort=ascending]::after { content: " ▲" }
th[aria-sort=descending]::after { content: " ▼" } menclose { border: 1px solid; padding: 0 .2em }
.rendered_html h1 { font-size: 1.5em } .rendered_html p, .rendered_html li { color: var(--text) }
@media screen and (max-width: 40em) {
  body { margin: 1em auto } h1 { font-size: 1.5em } img { min-width: 38em }
}
@media print {
  :root { --text: #000; --faint: #333; --back: #fff; --panel: #fff }
  img { filter: none; mix-blend-mode: normal } body { max-width: none }
  div.wide, pre, details > div { overflow: visible; max-height: none }
  details::details-content { content-visibility: visible; block-size: auto } tr { break-inside: avoid }
}
</style>"""
# A number is what a cell begins with; cells without one come last. A second click turns the order round.
SCRIPT = """
for (const head of document.querySelectorAll("table.aimo th")) head.onclick = () => {
  const [first, ...rows] = head.closest("table").rows, down = head.ariaSort != "descending"
  const text = row => row.cells[head.cellIndex]?.textContent.trim() ?? ""
  const number = row => parseFloat(text(row).replaceAll(",", ""))
  const numeric = rows.some(row => !isNaN(number(row)))
  const order = numeric
    ? (a, b) => isNaN(number(a)) - isNaN(number(b)) || (down ? -1 : 1) * (number(a) - number(b))
    : (a, b) => (down ? 1 : -1) * text(a).localeCompare(text(b))
  for (const cell of first.cells) cell.ariaSort = null
  head.ariaSort = down ? "descending" : "ascending"
  head.closest("tbody").append(first, ...rows.sort(order))
}
"""
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    f"script-src 'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'"
)
"""What a browser may load for a page: what stands in it, and no script but ours."""
PAGE = """\
<!doctype html><html lang="en"><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<title>{{ title }}</title>{{ style }}<h1>{{ title }}</h1><p>{{ lead }}</p>
{% for section in sections %}
{% if section.title %}<h2>{{ section.title }}</h2>{% endif %}
{% if section.lead %}<p>{{ section.lead }}</p>{% endif %}
{{ section.view }}
{% endfor %}
{{ script }}</html>
"""


class Html(str):
    """HTML in which all text from outside is escaped; notebooks show it, and templates take it as it is.

    `render` makes it. Whatever a str's methods make of it is a str again, which is escaped again.
    """

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
    lead: str = ""


_templates = Environment(
    autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=lambda x: "" if x is None else x
)


@lru_cache
def template(source: str) -> Template:
    """Return a template that escapes what it is filled with."""
    return _templates.from_string(source)


def render(source: str, **values: Any) -> Html:
    """Return a template of ours filled with values; all that is not `Html` is escaped."""
    return Html(template(source).render(values))


def join(parts: Iterable[str]) -> Html:
    """Return texts and HTML, one after the other."""
    return render("{{ parts | join }}", parts=list(parts))


def write_page(path: Path, title: str, lead: str, sections: Iterable[Section]) -> Path:
    """Write a page and return its path. AimoError when it cannot be written."""
    script, style = Html(f"<script>{SCRIPT}</script>"), Html(TABLE_STYLE + STYLE)
    page = render(PAGE, title=title, lead=lead, sections=sections, policy=POLICY, style=style, script=script)
    try:
        write_whole(path, page)
    except OSError as e:
        raise AimoError(f"page {path}: {e.strerror}; make room or unlock its folder, and run again") from None
    return path


def text(content: str) -> Html:
    """Return a text as it is, in a panel."""
    return render("<pre>{{ content }}</pre>", content=content)


def fold(summary: str, content: str) -> Html:
    """Return what is shown when its summary is clicked."""
    return render(
        "<details><summary>{{ summary }}</summary><div>{{ content }}</div></details>",
        summary=summary,
        content=content,
    )


def link(label: str, path: str) -> Html:
    """Return a link to a file, by its path from the page: never an address, whatever its name is."""
    return render('<a href="./{{ path }}">{{ label }}</a>', path=quote(os.fsencode(path)), label=label)
