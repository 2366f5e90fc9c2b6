"""A Chinese page has its English one's headings, commands, links and figures, and each leads to the other."""

import re
from collections import Counter
from pathlib import Path

import pytest
from conftest import MARKDOWN, ROOT

PAIRS = {
    ROOT / "README.md": ROOT / "README.zh-CN.md",
    **{ROOT / "docs" / page.name: page for page in sorted((ROOT / "docs/zh").glob("*.md"))},
}
TWINS = PAIRS | {chinese: english for english, chinese in PAIRS.items()}


def sections(page: Path) -> list[Counter]:
    """What a translation keeps of each section: blocks, commands, code, links and figures."""
    found = []
    for token in MARKDOWN.parse(page.read_text()):
        if token.type == "heading_open":
            found.append(Counter())
        if token.nesting == 1:
            found[-1]["block", token.tag] += 1
        elif token.type == "fence":  # without comments; of a picture, the last column
            for line in token.content.splitlines():
                shown = re.sub(r".* {2,}(?=\S)" if "►" in line else r"(^|\s+)# .*", "", line)
                found[-1]["command", shown] += 1
        for child in token.children or ():
            link = child.attrs.get("href") or child.attrs.get("src")
            if child.type == "code_inline":
                found[-1]["code", child.content] += 1
            elif child.type == "text":
                found[-1].update(
                    ("figure", number) for number in re.findall(r"\d+[.,]\d+|\d{3,}", child.content)
                )
            elif link and "://" in link:
                found[-1]["link", link] += 1
            elif link:  # as the English pages name it; anchors within twins are translated
                name, _, anchor = link.partition("#")
                path = (page.parent / name).resolve() if name else page
                english = path if path in PAIRS else TWINS.get(path)
                found[-1]["link", english or f"{path}#{anchor}"] += 1
    return found


@pytest.mark.parametrize("english", PAIRS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_and_its_translation_agree_and_lead_to_each_other(english):
    ours, theirs = sections(english), sections(PAIRS[english])
    differing = [(dict(a - b), dict(b - a)) for a, b in zip(ours, theirs, strict=True) if a != b]
    assert differing == []
    for page in (english, PAIRS[english]):
        links = re.findall(r"\]\(([^)]+)\)", page.read_text().split("\n## ")[0])
        assert TWINS[page] in [(page.parent / link).resolve() for link in links]
