"""Texts from outside on every page: none reads a file, makes a request, runs a script or ends the run."""

import json
import os
import re
from functools import cache
from html.parser import HTMLParser
from itertools import cycle
from types import SimpleNamespace

import nbformat
import polars as pl
import pytest
from browser import browse, without_policy
from model_server import Handler, on_loopback
from nbformat import v4
from test_report import ANSWERED, EMPTY, make_run

from aimo.report import page, pages, tables

SECRET = "the-canary-of-a-token-file"
OWNED = "document.documentElement.dataset.owned=1"
FETCH = f"{OWNED};fetch('URL/fetched');new Image().src='URL/image'"
HOSTILE = [
    # What IPython's HTML() takes for a file or an address.
    *("FILE", "file://FILE", ".", "/", "~", "", "URL/page.html", "URL/a.html and more text"),
    *("http", "https://", "http://[broken"),
    # Elements, attributes and ends of what a page writes around a text.
    f"<script>{FETCH}</script>",
    f"<script src=URL/script.js></script><img src=x onerror={OWNED}><img src=URL/image.png>",
    f"<svg onload={OWNED}><use href=URL/use.svg#x></svg><iframe src=file://FILE></iframe>",
    "<link rel=stylesheet href=URL/style.css><p style='background:url(URL/inline)'>x",
    "<meta http-equiv=refresh content='0;url=URL/refreshed'><base href=URL/>",
    f"\"><script>{OWNED}</script>'><script>{OWNED}</script>--><script>{OWNED}</script>]]>",
    f"</pre></div></details></td></table></title></style><script>{FETCH}</script>",
    f"\" onmouseover=\"{OWNED}\" x=\"' onfocus='{OWNED}' autofocus='",
    f"<math><mtext><img src=x onerror={OWNED}></mtext></math><xmp><script>{OWNED}</script>",
    f"<scr\0ipt>{OWNED}</script><\nscript>{OWNED}</script>&lt;script&gt;{OWNED}&lt;/script&gt;",
    f'<noscript><p title="</noscript><img src=x onerror={OWNED}>">',
    f"javascript:{OWNED}",
    f"data:text/html,<script>{OWNED}</script>",
    "![x](URL/markdown.png) [y](javascript:alert) <URL/autolink>",
    # Templates.
    "{{ 7 * 7 }} {% include 'FILE' %} {{ ''.__class__.__mro__ }} %s %(x)s {0} {x!r} $x ${x} `x`",
    # LaTeX.
    rf"$\href{{javascript:{OWNED}}}{{x}}$ $\href{{URL/href}}{{x}}$",
    r"$\style{background:url(URL/style)}{x}$ \[\style{position:fixed;width:100%}{x}\]",
    r"$\class{number}{x}$ \(\class{x y}{z}\) $\id{checked}{x}$",
    rf"$\text{{<script>{OWNED}</script>}}$ $\text{{&lt;script&gt;{OWNED}&lt;/script&gt;}}$",
    rf"$\mbox{{<img src=x onerror={OWNED}>}}$ $\operatorname{{<img src=x onerror={OWNED}>}}$",
    rf"$\unicode{{x3c}}img src=x onerror={OWNED}\unicode{{x3e}}$",
    rf"$\fcolorbox{{x\" onmouseover=\"{OWNED}}}{{red\" style=\"x}}{{y}}$ $\color{{url(URL/colour)}}{{x}}$",
    r"$\rule{99999em}{99999em}$ $\hspace{-99999em} x$ $\tag{</math><script>}$",
    rf"\begin{{array}}{{c|<script>}}1&2\end{{array}} $\verb|<script>{OWNED}</script>|$",
    r"$ $$ \[ \( $x_{ $\frac{ ^_ $\begin{matrix}$ \ $\left$ $x^$ $\sqrt[$ \frac{\text{<b>}}{x^{2}}",
    # Texts that break a plot, a terminal or a file.
    *("$", "a $b_{c$ d", r"$\unknown$ $\$", "_hidden", "数学题 🧮 √² ½ ∑", "long " * 3000, "W" * 20000),
    "x\ny\r\n\tz\x00\x07\x1b[31m\x7f \u202egnp.exe \u2028 \u2029 \u0085 \ufeff",
    "\ud800 lone \udfff",
]
TAGS = re.compile(
    "html|meta|link|title|style|h1|h2|p|pre|div|table|tr|t[hd]|img|details|summary|span|a|code|script"
)
MATHML = re.compile("math|m[a-z]+")
FOREIGN = re.compile("on|class|style|href|src|id")  # attributes that no formula has
ATTRIBUTES = re.compile("charset|class|content|href|http-equiv|id|lang|name|rel|src|style|title")


class Harmless(HTMLParser):
    """Asserts that a page holds no elements and attributes but those that we write."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.policies = [], []
        self.feed(text)
        assert self.tags.count("script") == 1 and f">{page.SCRIPT}</script>" in text
        assert self.policies == ["Content-Security-Policy"] and SECRET not in text

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if TAGS.fullmatch(tag):
            assert all(map(ATTRIBUTES.fullmatch, given)), (tag, given)
        else:
            assert MATHML.fullmatch(tag) and not any(map(FOREIGN.match, given)), (tag, given)
        assert given.get("href", "./").startswith(("./", "data:,")), given
        assert given.get("src", "data:").startswith("data:image/png;base64,") or tag != "img"
        assert "url(" not in given.get("style", "") and "fixed" not in given.get("style", "")
        self.tags.append(tag)
        self.policies += [given["http-equiv"]] if "http-equiv" in given else []


@pytest.fixture(scope="module")
def canary(tmp_path_factory):
    """A server on loopback that counts the requests it gets; the texts with its address and a file's."""
    requests = []

    class Canary(Handler):
        def do_GET(self):
            requests.append(self.path)
            self.reply(f"{OWNED};")

    secret = tmp_path_factory.mktemp("secret") / "token"
    secret.write_text(SECRET)
    with on_loopback(Canary) as url:
        texts = [text.replace("URL", url).replace("FILE", str(secret)) for text in HOSTILE]
        yield SimpleNamespace(requests=requests, texts=texts)


def run_pages(folder, texts):
    """The page of a run, with the texts as problems, answers, notes, completions, names and settings."""
    solutions = [
        solution
        | dict.fromkeys(("id", "problem", "note", "gold", "stop", "answer"), text)
        | {"texts": dict.fromkeys(solution["texts"], text)}
        for solution, text in zip(cycle((ANSWERED, EMPTY)), texts)
    ]  # fmt: skip
    run = make_run(folder, heldout=True, solutions=[ANSWERED])
    (run / "inference/solutions.json").write_text(json.dumps(solutions))
    sides = [{text: asked(text), "b": asked(text)} for text in texts]
    rows = [asked(text) | {"sides": side, "flipped": text} for text, side in zip(texts, sides, strict=True)]
    (run / "inference/samples.json").write_text(json.dumps({"questions": rows, "of": texts[11]}))
    (run / "grpo").mkdir()
    (run / "grpo/log.jsonl").write_text(json.dumps({"step": 1, "loss": 0.5}) + "\n")
    probed = [asked(text) | {"answer": text, "text": text, "step": text} for text in texts]
    (run / "grpo/probes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in probed))
    (run / "submission.settings.json").write_text(json.dumps({text: text for text in texts}))
    (run / "profile.yaml").write_bytes("\n".join(texts).encode("utf-8", "surrogatepass"))
    metrics = json.loads((run / "metrics.json").read_text())
    metrics |= {"profile": texts[11], "seed": texts[12]}
    for figures in metrics["stages"]["inference"]["models"].values():
        figures |= {text: text for text in texts}
    (run / "metrics.json").write_text(json.dumps(metrics))
    return pages.write_run(run)


def asked(text):
    """A question with two completions that are all the same text."""
    completions = [{"right": ok, "answer": text, "text": text} for ok in (True, False)]
    named = dict.fromkeys(("id", "problem", "gold"), text)
    return named | {"right": 0.5, "vote": True, "tokens": 3.0, "completions": completions}


def evaluation_page(folder, texts):
    """The page of an evaluation, with the texts as benchmarks, subjects, models, sources and all else."""
    figures = {"questions": 2, "samples": 2, "pass@1": [0.5, 0.4, 0.6], "mean_tokens": [3.0, 2.0, 4.0]}
    by = {text: {"questions": 1, "pass@1": [0.5, 0.4, 0.6]} for text in texts}
    published = [{"model": text, "kind": "published", text: 3.0} for text in texts]
    found = {
        "model": texts[11],
        "benchmarks": {text: figures | {"by_subject": by, "by_level": by} for text in texts[:12]},
        "leakage": {text: {"why": text} for text in texts}
        | {"x": {"data": texts[0], "texts": 1, "share": 0.5, "found": {text: 0.5 for text in texts}}},
        "audit": {text: [{"question": text, "gold": text, "answer": text, "end": text}] for text in texts},
        "published": (published, [{"source": text} for text in texts]),
        "questions": {text: [asked(text)] for text in texts},
        "settings": {text: text for text in texts},
        "curves": {text: {"pass@k": {1: 0.5, 2: 0.6}} for text in texts[11::16]},
        "unread": {text: [{text: text}] for text in texts[:12]},
        "since": {text: (text, [False]) for text in texts},
    }
    return pages.write_evaluation(folder, found)


def comparison_page(folder, texts):
    flips = {text: [{**asked(text), "sides": {text: asked(text), "b": asked(text)}}] for text in texts}
    found = {"title": texts[11], "verdicts": texts, "differences": [{t: t} for t in texts], "flips": flips}
    return pages.write_comparison(folder, found)


def distillation_page(folder, texts):
    readable = [text.encode("utf-8", "replace").decode() for text in texts]
    problems = {"problem": readable, "answer": readable, "pass_rate": 0.5, "samples": 2}
    kept = pl.DataFrame({"problem": readable, "generation": readable})
    dropped = dict.fromkeys(readable, 1)
    found = SimpleNamespace(problems=pl.DataFrame(problems), kept=kept, dropped=dropped)
    return pages.write_distillation(folder / "distillation.html", texts[11], found, (0.0, 1.0))


def notebook_page(folder, texts):
    """An executed notebook, with the texts in tables, prints, values and a traceback."""
    view = page.join([tables.table([{text: text} for text in texts]), *map(page.as_mathematics, texts)])
    safe = [text.encode("utf-8", "replace").decode() for text in texts]
    shown = view._repr_html_().encode("utf-8", "replace").decode()
    outputs = [v4.new_output("execute_result", {"text/html": shown})]
    for text in safe:
        outputs.append(v4.new_output("stream", text=text))
        outputs.append(v4.new_output("execute_result", {"text/plain": text}))
        both = {"text/latex": text, "application/javascript": text}
        outputs.append(v4.new_output("display_data", both))
        outputs.append(v4.new_output("error", ename=text, evalue=text, traceback=[text]))
    cells = [v4.new_markdown_cell("# A stage\n`$x$`"), v4.new_code_cell("\n".join(safe), outputs=outputs)]
    (folder / "notebooks").mkdir(parents=True)
    executed = folder / "notebooks/02_format_sft.ipynb"
    nbformat.write(v4.new_notebook(cells=cells), executed)
    return pages.write_notebook(executed)


def list_page(folder, texts):
    for number, text in enumerate(texts):
        name = re.sub("[/\0]", "_", text)[:60].encode("utf-8", "replace")
        inner = folder / (os.fsdecode(name) if name not in (b"", b".") else f"run-{number}")
        inner.mkdir(parents=True, exist_ok=True)
        (inner / "evaluation.html").write_text("")
        (inner / "evaluation.json").write_text(json.dumps({"headline": text}))
    pages.write_index(folder / "x", folder)
    return folder / "index.html"


DRAWN = [run_pages, notebook_page]  # plots and nbconvert take seconds
BUILDERS = [*DRAWN, evaluation_page, comparison_page, distillation_page, list_page]


@pytest.fixture(scope="module")
def build(canary, tmp_path_factory):
    """Make a page, when it is first asked for; its path."""

    @cache
    def build(make):
        folder = tmp_path_factory.mktemp("pages") / "a page"
        folder.mkdir()
        return make(folder, canary.texts)

    return build


@pytest.mark.parametrize(
    "make", [pytest.param(make, marks=[pytest.mark.slow] if make in DRAWN else []) for make in BUILDERS]
)
def test_a_page_holds_texts_from_outside_as_text(build, make, canary):
    Harmless(build(make).read_text())
    assert canary.requests == []


@pytest.mark.slow
@pytest.mark.parametrize("make", BUILDERS)
def test_in_a_browser_a_page_reads_nothing_asks_nobody_and_runs_no_script(build, make, canary):
    """As it is, and without the policy that would keep it from doing so."""
    path = build(make)
    bare = path.with_name(f"open-{path.name}")
    bare.write_text(without_policy(path.read_text()))
    for one in (path, bare):
        dom, said = browse(one)
        assert "</html>" in dom and said == []
        assert "data-owned" not in re.search(r"<html[^>]*>", dom)[0] and SECRET not in dom
        assert canary.requests == []


@pytest.mark.slow
def test_the_browser_would_have_read_asked_and_run(tmp_path, canary):
    """The texts written into a page as they are: what the test above must see, it sees."""
    path = tmp_path / "raw.html"
    path.write_text("<!doctype html><html><body>" + "".join(canary.texts[11:13]) + "</body></html>")
    dom, _ = browse(path)
    assert "data-owned" in re.search(r"<html[^>]*>", dom)[0]
    assert {"/fetched", "/image.png", "/script.js"} <= set(canary.requests)
    canary.requests.clear()
