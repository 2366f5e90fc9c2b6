"""Pages in a headless browser: no error, plots drawn, links alive, tables sorted, completions unfold."""

import html
import json
import os
import re
from urllib.parse import unquote

import numpy as np
import pytest
from browser import browse, without_policy
from test_compare import make
from test_report import ANSWERED, EMPTY, make_run

from aimo.evaluation import compare
from aimo.report import page, tables
from aimo.report import pages as written

CHECKS = """<pre id="checked"></pre><script>
const count = {}, problems = []
for (const image of document.images) if (!image.complete || !image.naturalWidth) problems.push("a plot")
for (const a of document.querySelectorAll("a[href]")) (count.links ??= []).push(a.getAttribute("href"))
for (const table of document.querySelectorAll("table.aimo")) {
  const head = table.rows[0].cells[0]
  const column = () => [...table.rows].slice(1).map(row => row.cells[0]?.textContent)
  const before = column()
  head.click(); const first = column(); head.click(); const second = column()
  if ([...first].sort().join() != [...before].sort().join()) problems.push("rows lost by sorting")
  if (first.join() != [...second].reverse().join() && new Set(first).size == first.length)
    problems.push("no other order: " + first + " | " + second)
}
for (const details of document.querySelectorAll("details")) {
  details.firstChild.click()
  if (!details.open || !details.lastChild.offsetHeight) problems.push("no unfolding")
}
for (const one of document.querySelectorAll(".question, .question > div"))
  if (one.scrollWidth > one.clientWidth) problems.push("a question is cut at the right")
count.details = document.querySelectorAll("details").length
count.tables = document.querySelectorAll("table.aimo").length
count.formulas = [...document.querySelectorAll("math")].filter(m => m.namespaceURI.endsWith("MathML")).length
count.wide = document.documentElement.scrollWidth > innerWidth
document.getElementById("checked").textContent = JSON.stringify({count, problems})
</script>"""


def check(path, width=1000):
    """What the checks find in a page, as the browser shows it."""
    checked = path.with_name(f"checked-{path.name}")
    checked.write_text(without_policy(path.read_text()).replace("</html>", f"{CHECKS}</html>"))
    dom, said = browse(checked, f"--window-size={width},900")
    assert not said
    found = json.loads(html.unescape(re.search(r'<pre id="checked">(.*?)</pre>', dom)[1]))
    assert found["problems"] == []
    return found["count"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A folder of runs with a run, two evaluations, their comparison and the list."""
    runs = tmp_path_factory.mktemp("runs")
    written.write_run(make_run(runs / "tiny", ["sft", "grpo"], heldout=True, solutions=[ANSWERED, EMPTY]))
    rng = np.random.default_rng(0)
    for name, rate in {"before": 0.3, "after": 0.8}.items():
        make(runs / name, rng.random((12, 4)) < rate)
    compare.compare_folders([runs / "before", runs / "after"], [], runs / "compared")
    written.write_index(runs / "compared", runs)
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny/report", "after/evaluation", "compared/comparison", "index"])
def test_a_page_works_in_a_browser_and_on_a_phone(pages, name):
    path = pages / f"{name}.html"
    found = check(path, width=500)
    assert found["tables"] >= 1 and not found["wide"]
    assert all((path.parent / unquote(link.split("#")[0])).exists() for link in found.get("links", []))
    assert len(found["links"]) == 4 if name == "index" else name == "tiny/report" or found["details"] > 0


@pytest.mark.slow
def test_numbers_are_sorted_as_numbers_and_words_as_words(tmp_path):
    rows = [{"n": n, "word": word} for n, word in (("9.5 (8 to 11)", "b"), ("1,200", "c"), ("10", "a"))]
    path = page.write_page(tmp_path / "x.html", "x", "", [page.Section(tables.table(rows))])
    text = path.read_text()
    click = "<script>document.querySelectorAll('th')[0].click()</script></html>"
    path.write_text(without_policy(text).replace("</html>", click))
    dumped, _ = browse(path)
    assert re.findall(r"<td>([abc])</td>", dumped) == ["c", "a", "b"]


def test_the_list_of_runs_begins_with_the_newest_and_has_their_figures(pages):
    os.utime(pages / "before/evaluation.html", (2e9, 2e9))
    written.write_index(pages / "tiny", pages)
    text = (pages / "index.html").read_text()
    links = re.findall(r"<a href=\"([^\"]+)\"", text)
    others = {"./after/evaluation.html", "./compared/comparison.html", "./tiny/report.html"}
    assert links[0] == "./before/evaluation.html" and set(links[1:]) == others
    assert "grpo 0.500" in text and "better than before" in text and re.search(r"x \d+\.\d %", text)


def test_formulas_are_set_as_mathematics_and_the_rest_is_escaped():
    text = r"Let $x^2 < 4$ and \[ \frac{1}{2} \] cost $5 and $10, <b>now</b>."
    found = page.as_mathematics(text)
    assert found.count("<math") == 2 and "<mfrac>" in found and "<msup>" in found
    assert "cost $5 and $10, &lt;b&gt;now&lt;/b&gt;." in found
    assert page.as_answer(r"\frac{1}{2}").startswith("<math")
    assert page.as_answer("42") == "42"
