"""The site of the docs: it builds without a warning, reads as on GitHub, and fits a screen and a phone."""

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from browser import browse
from conftest import MARKDOWN, ROOT

PAGES = sorted(path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [Path(sys.executable).with_name("mkdocs"), "build", "-q", "--strict", "-d", folder]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_loads_nothing_from_elsewhere_and_has_the_blocks_that_github_shows(site):
    """Python-Markdown wants a blank line before a list and four spaces in it; GitHub does not."""
    kinds = ("blockquote", "h1", "h2", "h3", "img", "li", "pre", "table", "td")
    loads = r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?(https?:[^\" >]+)"
    for page in PAGES:
        text = (site / page).with_suffix(".html").read_text()
        assert re.findall(loads, text) == [], page
        assert f'<html lang="{"zh" if page.parent.name == "zh" else "en"}"' in text, page
        (shown,) = re.findall(r"<article.*</article>", text, re.DOTALL)
        texts = shown, MARKDOWN.render((ROOT / "docs" / page).read_text())
        built, wanted = ([len(re.findall(rf"<{kind}[ >]", text)) for kind in kinds] for text in texts)
        assert built == wanted, page


CHECKS = """<pre id="checked"></pre><script>
addEventListener("load", () => {
  const found = []
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, name = `${frame.getAttribute("src")} at ${frame.clientWidth}`
    if (page.documentElement.scrollWidth > page.documentElement.clientWidth) found.push(`${name} is too wide`)
    for (const image of page.images)
      if (!image.complete || !image.naturalWidth) found.push(`${name} lacks ${image.src}`)
    if (page.querySelector("h1")?.getBoundingClientRect().width) found.push(`${name} is drawn`)
  }
  document.getElementById("checked").textContent = JSON.stringify(found)
})
</script>"""


@pytest.mark.slow
def test_every_page_fits_a_screen_and_a_phone_with_its_pictures_and_no_error(site):
    views = [(page.with_suffix(".html"), width) for page in PAGES for width in (390, 1200)]
    frame = '<iframe src="{}" style="width:{}px; height:800px; border:0"></iframe>'
    checks = site / "checks.html"
    checks.write_text("".join([*(frame.format(*view) for view in views), CHECKS]))
    # Files may read each other.
    dom, said = browse(checks, "--allow-file-access-from-files", "--window-size=1300,900")
    found = json.loads(html.unescape(re.search(r'<pre id="checked">(.+?)</pre>', dom)[1]))
    assert said == [] and found == [f"{page} at {width} is drawn" for page, width in views]
