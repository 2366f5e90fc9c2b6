"""The one look of all pages: a file that opens offline, on a phone, in print and in the dark.

`write` makes a page of sections. Tables sort by a click on a column's head, `fold` hides what is long until
it is opened, and `aimo.report.mathematics` sets LaTeX. Out of scope: what the pages say (`run_page`,
`evaluation_page`, `comparison_page`, `index`).
"""

import html
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from IPython.display import HTML

from aimo.inference.storage import write_whole
from aimo.report import tables

STYLE = """<style>
:root { color-scheme: light dark; --text: #223; --faint: #5a6072; --back: #fff; --panel: #f4f5f8 }
@media (prefers-color-scheme: dark) {
  :root { --text: #dfe3ea; --faint: #a2a9b8; --back: #15181e; --panel: #1f242d }
  img { filter: invert(0.91) hue-rotate(180deg); mix-blend-mode: lighten }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
       max-width: 66em; margin: 2em auto; padding: 0 1em }
h1 { margin-bottom: 0; line-height: 1.2 } h2 { margin: 1.6em 0 .2em }
p { margin: .2em 0 .6em; color: var(--faint) } a { color: inherit }
pre, details > div { background: var(--panel); padding: .8em; overflow: auto; font-size: 12px }
details > div { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 30em }
summary, table.aimo th { cursor: pointer } th[aria-sort=ascending]::after { content: " ▲" }
th[aria-sort=descending]::after { content: " ▼" } menclose { border: 1px solid; padding: 0 .2em }
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
SCRIPT = """<script>
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
</script>"""


@dataclass(frozen=True)
class Section:
    """A table or plot of a page; one without a title belongs to the section before it."""

    view: HTML
    title: str = ""
    lead: str = ""

    def html(self) -> str:
        """The section as HTML."""
        title = f"<h2>{html.escape(self.title)}</h2>" if self.title else ""
        lead = f"<p>{html.escape(self.lead)}</p>" if self.lead else ""
        return title + lead + self.view.data


def write(path: Path, title: str, lead: str, sections: Iterable[Section]) -> Path:
    """Write a page, whole or not at all, and return its path."""
    write_whole(path, document(title, lead, sections))
    return path


def document(title: str, lead: str, sections: Iterable[Section]) -> str:
    """A page as HTML."""
    heading = html.escape(title)
    body = "".join(section.html() for section in sections).replace(tables.STYLE, "")
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'><link rel='icon' href='data:,'>"
        f"<title>{heading}</title>{tables.STYLE}{STYLE}<h1>{heading}</h1><p>{html.escape(lead)}</p>"
        f"{body}{SCRIPT}</html>"
    )


def text(content: str) -> HTML:
    """A text as it is."""
    return HTML(f"<pre>{html.escape(content)}</pre>")


def fold(summary: str, content: HTML) -> HTML:
    """What is shown when its summary is clicked."""
    return HTML(f"<details><summary>{html.escape(summary)}</summary><div>{content.data}</div></details>")


def link(label: str, address: str) -> HTML:
    """A link to another page or place."""
    return HTML(f"<a href='{html.escape(address)}'>{html.escape(label)}</a>")


def read_json(path: Path) -> Any:
    """The value of a JSON file, or None where there is no file."""
    return json.loads(path.read_text()) if path.exists() else None
