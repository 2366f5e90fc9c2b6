"""docs/troubleshooting.md quotes what the program prints: each quoted message stands in the source."""

import ast
import re

from conftest import ROOT

FENCE = re.compile(r"^ *```text\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"^\| message \|.*\n\|[- |]+\|\n((?:\|.*\n)+)", re.MULTILINE)


def letters(text):
    return len(re.findall(r"[a-zA-Z]", text))


def clauses(text):
    """The parts of a message, which the source may put together from several texts."""
    found = (clause.strip(" ,;:.`'") for clause in re.split(r"[;,:.(] |\n", text))
    return [clause for clause in found if letters(clause) > 3]


def pattern(clause):
    return re.compile(".*".join(map(re.escape, clause.split("…"))))


def test_a_quoted_message_is_what_the_program_prints():
    texts = []  # of the source, with … where a value is put in
    for path in sorted((ROOT / "src" / "aimo").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    source = [
        (clause, letters(clause), pattern(clause)) for clause in {c for text in texts for c in clauses(text)}
    ]

    def is_printed(part):  # with values in its holes, or cut short by one
        enough, ours = letters(part) / 3, pattern(part)
        return any(
            part in clause or printed.fullmatch(part) or ours.fullmatch(clause)
            for clause, size, printed in source
            if size >= enough
        )

    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    lines = [line.strip() for fence in FENCE.findall(page) for line in fence.splitlines()]
    cells = [row.split("|")[1].strip(" `") for table in TABLE.findall(page) for row in table.splitlines()]
    quoted = {message: clauses(message) for message in (*lines, *cells)}
    assert len(quoted) > 50 and [message for message, parts in quoted.items() if not parts] == []
    absent = {message: [part for part in parts if not is_printed(part)] for message, parts in quoted.items()}
    assert {message: parts for message, parts in absent.items() if parts} == {}
