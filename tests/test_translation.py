"""A Chinese page has the headings, blocks, commands, tables, links and figures of its English one."""

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


def figures(text: str) -> list[str]:
    """The numbers of a text; a month's name before a year is one too, as in Chinese."""
    text = re.sub(rf"({'|'.join(MONTHS)})(?= \d{{4}})", lambda found: MONTHS[found[1]], text)
    return re.findall(r"\d+(?:[.,]\d+)*", text)


def command(line: str) -> str:
    """A line of a fenced block without its comment; of a picture, the last column."""
    return re.split(r" {2,}", line)[-1] if "►" in line else re.sub(r"(^|\s+)# .*", "", line)


def target(page: Path, link: str) -> str:
    """Where a link leads: from an English page to the Chinese twin, where there is one."""
    if "://" in link:
        return link
    name, _, anchor = link.partition("#")
    path = (page.parent / name).resolve() if name else page
    if path not in TWINS:
        return f"{path.relative_to(ROOT)}#{anchor}"
    path = TWINS[path] if page in PAIRS else path
    return str(path.relative_to(ROOT))  # without its anchor, which is translated


def facts(page: Path, inline) -> Counter:
    """What a translation keeps of a paragraph, a heading or a cell, each with its kind."""
    found = Counter()
    for token in inline.children:
        match token.type:
            case "code_inline":
                found["code", token.content] += 1
            case "link_open":
                found["link", target(page, token.attrs["href"])] += 1
            case "image":
                found["image", target(page, token.attrs["src"])] += 1
            case "strong_open":
                found["bold", "passage"] += 1
    prose = "".join(token.content if token.type in ("text", "image") else " " for token in inline.children)
    assert "**" not in prose, f"{page.name}: bold that is not: {prose}"
    found.update(("figure", number) for number in figures(prose))
    return found


def sections(page: Path, text: str) -> list[tuple[str, list]]:
    """Each heading with the blocks below it: the kind of each, and what a translation keeps of it."""
    found: list[tuple[str, list]] = []
    tokens = MARKDOWN.parse(text)
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "heading_open":
            found.append((f"{token.markup} {following.content}", [(token.tag, Counter())]))
        elif token.type == "inline":
            found[-1][1][-1][1].update(facts(page, token))
        elif token.type == "fence":
            lines = enumerate(map(command, token.content.splitlines()), 1)
            found[-1][1].append((f"block {token.info}", Counter((f"line {n}:", line) for n, line in lines)))
        elif token.nesting == 1:
            found[-1][1].append((token.tag, Counter()))
    return found


def differences(english: Path, ours: str, theirs: str) -> list[str]:
    """The sections of the English and the Chinese text that differ, and in what; empty if none does."""
    pages = [sections(english, ours), sections(PAIRS[english], theirs)]
    levels = [[blocks[0][0] for _, blocks in page] for page in pages]
    if levels[0] != levels[1]:
        return [f"headings: {levels[0]} in English, {levels[1]} in Chinese"]
    found = []
    for (heading, ours), (_, theirs) in zip(*pages, strict=True):
        where = f"{english.name}, {heading}"
        kinds = [kind for kind, _ in ours], [kind for kind, _ in theirs]
        if kinds[0] != kinds[1]:
            found.append(f"{where}: the blocks are {kinds[0]} in English, {kinds[1]} in Chinese")
            continue
        for (kind, original), (_, translation) in zip(ours, theirs, strict=True):
            for only, language in ((original - translation, "English"), (translation - original, "Chinese")):
                found += [f"{where}: only in {language} ({kind}): {' '.join(fact)}" for fact in only]
    return found


@pytest.mark.parametrize("english", PAIRS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_and_its_translation_agree(english):
    found = differences(english, english.read_text(), PAIRS[english].read_text())
    assert not found, "\n".join(found)


@pytest.mark.parametrize("page", TWINS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_leads_to_its_twin_before_its_first_section(page):
    links = re.findall(r"\]\(([^)]+)\)", page.read_text().split("\n## ")[0])
    assert TWINS[page] in [(page.parent / link).resolve() for link in links]


@pytest.mark.parametrize(
    "before, after, named",
    [
        ("| 0.958 |", "| 0.985 |", "## Two commands: only in English (td): figure 0.958"),
        ("make jupyter\n", "make notebook\n", "(block ): line 1: make notebook"),
        ("## 蒸馏", "### 蒸馏", "headings: ['h1', 'h2',"),
    ],
)
def test_a_difference_is_named_with_its_section(before, after, named):
    english = ROOT / "README.md"
    chinese = PAIRS[english].read_text()
    assert before in chinese
    found = differences(english, english.read_text(), chinese.replace(before, after))
    assert any(named in line for line in found), found
