"""docs/troubleshooting.md quotes what the program prints: each quoted message stands in the source."""

import ast
import re

import pytest

from aimo.config import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
FENCE = re.compile(r"^ *```text\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"^\| message \|.*\n\|[- |]+\|\n((?:\|.*\n)+)", re.MULTILINE)
HOLE = "…"


def templates():
    """The texts of src/aimo, with a hole where a value is put in."""
    for path in sorted((ROOT / "src" / "aimo").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def clauses(text):
    """The parts of a message, which the source may put together from several texts."""
    found = (clause.strip(" ,;:.`'") for clause in re.split(r"[;,:.(] |\n", text))
    return [clause for clause in found if letters(clause) > 3]


def letters(text):
    return len(re.findall(r"[a-zA-Z]", text))


def quoted():
    """The messages of the page: the lines of its fences, and the first cell of its tables of messages."""
    text = PAGE.read_text()
    lines = [line.strip() for fence in FENCE.findall(text) for line in fence.splitlines()]
    cells = [row.split("|")[1].strip() for table in TABLE.findall(text) for row in table.splitlines()]
    return [*lines, *(cell.strip("`") for cell in cells)]


def pattern(clause):
    return re.compile(".*".join(map(re.escape, clause.split(HOLE))))


@pytest.fixture(scope="module")
def source():
    """Each clause of the source, with its letters and the pattern of what it prints."""
    known = {clause for text in templates() for clause in clauses(text)}
    return [(clause, letters(clause), pattern(clause)) for clause in known]


def is_printed(part, source):
    """Whether a clause of the page is one of the source, with values in its holes or cut short by one."""
    enough, ours = letters(part) / 3, pattern(part)
    return any(
        part in clause or printed.fullmatch(part) or ours.fullmatch(clause)
        for clause, size, printed in source
        if size >= enough
    )


@pytest.mark.parametrize("message", quoted())
def test_a_quoted_message_is_what_the_program_prints(message, source):
    parts = clauses(message)
    assert parts, f"{message!r} has no words to look for"
    assert [part for part in parts if not is_printed(part, source)] == []
