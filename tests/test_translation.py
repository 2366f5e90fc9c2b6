"""A Chinese page has its English one's headings, commands, links and figures, and each leads to the other."""

import calendar
import re
from collections import Counter
from pathlib import Path

import pytest
from conftest import MARKDOWN, ROOT

MONTHS = dict(zip(calendar.month_name[1:], map(str, range(1, 13)), strict=True))
PAIRS = {
    ROOT / "README.md": ROOT / "README.zh-CN.md",
    **{ROOT / "docs" / page.name: page for page in sorted((ROOT / "docs/zh").glob("*.md"))},
}
TWINS = PAIRS | {chinese: english for english, chinese in PAIRS.items()}


def target(page: Path, link: str) -> str:
    """Where a link leads, as the English pages name it; anchors within twins are translated."""
    name, _, anchor = link.partition("#")
    path = (page.parent / name).resolve() if name else page
    if "://" in link or path not in TWINS:
        return link if "://" in link else f"{path.relative_to(ROOT)}#{anchor}"
    return str((path if path in PAIRS else TWINS[path]).relative_to(ROOT))


def sections(page: Path) -> list[Counter]:
    """What a translation keeps of each section: blocks, commands, code, links and figures."""
    found = []
    for token in MARKDOWN.parse(page.read_text()):
        if token.type == "heading_open":
            found.append(Counter())
        if token.nesting == 1:
            found[-1]["block", token.tag] += 1
        elif token.type == "fence":  # without comments; of a picture, the last column
            lines = (
                re.sub(r".* {2,}(?=\S)" if "►" in x else r"(^|\s+)# .*", "", x)
                for x in token.content.splitlines()
            )
            found[-1].update(("command", line) for line in lines)
        for child in token.children or ():
            if child.type == "code_inline":
                found[-1]["code", child.content] += 1
            elif link := child.attrs.get("href") or child.attrs.get("src"):
                found[-1]["link", target(page, link)] += 1
        if token.type == "inline":  # a month's name before a year is a figure, as in Chinese
            prose = " ".join(child.content for child in token.children if child.type == "text")
            prose = re.sub(rf"({'|'.join(MONTHS)})(?= \d{{4}})", lambda month: MONTHS[month[1]], prose)
            found[-1].update(("figure", number) for number in re.findall(r"\d+(?:[.,]\d+)*", prose))
    return found


@pytest.mark.parametrize("english", PAIRS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_and_its_translation_agree_and_lead_to_each_other(english):
    ours, theirs = sections(english), sections(PAIRS[english])
    differing = [(dict(a - b), dict(b - a)) for a, b in zip(ours, theirs, strict=True) if a != b]
    assert differing == []
    for page in (english, PAIRS[english]):
        links = re.findall(r"\]\(([^)]+)\)", page.read_text().split("\n## ")[0])
        assert TWINS[page] in [(page.parent / link).resolve() for link in links]
