"""The pages: their commands are checked, their examples read, their links alive."""

import ast
import importlib.metadata
import itertools
import json
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
import yaml
from commands import REALLY_RUN, check, fences, parsed, words
from conftest import MARKDOWN, ROOT, here

from aimo import config
from aimo.commands import run
from aimo.config.profile import TRAINED
from aimo.inference import storage
from aimo.inference.competitions import COMPETITION
from aimo.rewards import try_rewards

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
ENGLISH = [page for page in PAGES if not ({"zh", "README.zh-CN.md"} & set(page.parts))]
LANGUAGES = {"bash", "json", "python", "text", "yaml"}
"""The commands of a Chinese page are those of its English one (`test_translation`)."""


def each(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


@each(ENGLISH)
def test_every_command_is_one_that_exists_with_its_options_and_values(page, tmp_path, monkeypatch):
    for name in ("benchmarks", "data", "kernels", "notebooks", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for language, text in fences(page):
        for name, *arguments in words(text, tmp_path) if language == "bash" else ():
            if name not in REALLY_RUN:
                check([name, *arguments])
            if arguments[:2] == ["kernel", "build"] and "runs" in arguments:  # later commands read it
                assert here(*arguments).returncode == 0


@each(ENGLISH)
def test_what_the_text_names_exists(page):
    """Commands with their options, modules with their names, and files."""
    text = page.read_text(encoding="utf-8")
    children = itertools.chain.from_iterable(token.children or () for token in MARKDOWN.parse(text))
    for span in [child.content for child in children if child.type == "code_inline"]:
        if not re.match(r"(\.venv/bin/)?(aimo|make) [^[]+$", span):
            continue
        name, *arguments = shlex.split(span.removeprefix(".venv/bin/"))
        if name == "make":
            page.parent.name == "from" or check([name, *arguments])  # there, the makes of others
            continue
        try:
            parsed(run.app, arguments)
        except Exception as error:  # in a sentence it may lack what it needs
            allowed = ("Exit", "MissingParameter", "NoArgsIsHelpError")
            assert type(error).__name__ in allowed, f"{span}: {error}"
    for dotted in re.findall(r"`(aimo(?:\.[a-z_]\w*)+)`", text):  # a module, or a name that it defines
        path = ROOT / "src" / dotted.replace(".", "/")
        if path.is_dir() or path.with_suffix(".py").is_file() or dotted.endswith((".json", ".md")):
            continue
        defined = rf"^(def|class) {path.name}\b|^{path.name}\b.* ="
        assert re.search(defined, path.parent.with_suffix(".py").read_text(), re.MULTILINE), dotted
    files = re.findall(r"`(?:python |\.venv/bin/\S+ )?((?:src|tests|benchmarks)/[\w/.]+\.\w+)", text)
    assert [file for file in files if not (ROOT / file).exists()] == []


SETS = {name: {"rows": 10, "test_split": 0.1} for name in ("sft", "grpo")} | {"heldout": {"rows": 10}}
REST = {"profile": "part", "model": {"base": "data/tiny-base", "max_length": 131072}, "data": SETS}


@each(PAGES)
def test_every_example_is_read(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a profile finds the page's own reward
    own = [text for language, text in fences(page) if language == "python" and "def short(" in text]
    Path("my.py").write_text("".join(own))
    for language, text in fences(page):
        assert language in LANGUAGES, f"a fence of {language}; output and messages go into text"
        if language == "yaml":  # a part of a profile: what it needs besides is added
            values, written = dict(REST), yaml.load(text, storage.Loader)
            if "slug" in written:
                COMPETITION.validate_json(json.dumps(written))
                continue
            for name, section in written.items():
                rate = {"learning_rate": 1e-5} if name in TRAINED else {}
                values[name] = rate | values.get(name, {}) | section if isinstance(section, dict) else section
            profile = config.parse(values, page.name)
            try_rewards(profile.grpo.rewards if profile.grpo else {})
        elif language == "json":
            json.loads(text)
        elif language == "python":
            ast.parse(f"{{{text}}}" if text.startswith('"') else text)  # an entry of a table


# Links and pictures.


@cache
def anchors(page):
    """The anchors of a page's headings as GitHub makes them."""
    tokens = MARKDOWN.parse(page.read_text(encoding="utf-8"))
    found = set()
    for before, token in itertools.pairwise(tokens):
        if before.type == "heading_open":
            text = "".join(child.content for child in token.children)
            found.add(re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-"))
    return found


@each(PAGES)
def test_every_link_is_alive(page):
    tokens = MARKDOWN.parse(page.read_text(encoding="utf-8"))
    children = [child for token in tokens for child in token.children or ()]
    for link in filter(None, (child.attrs.get("href") or child.attrs.get("src") for child in children)):
        found = urlparse(unquote(link))
        if found.scheme:
            assert found.scheme == "https" and "." in found.netloc and " " not in link, link
            continue
        path = (page.parent / found.path).resolve() if found.path else page
        assert path.exists(), link
        assert not found.fragment or found.fragment in anchors(path), f"{link}: it has {anchors(path)}"


def test_the_version_is_the_newest_in_the_changelog():
    written = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert importlib.metadata.version("aimo") == written, "run `make setup`"
    assert re.search(r"^## (\d\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == written


def clauses(text):
    """The parts of a message between marks and values."""
    parts = (part.strip(" .`'") for part in re.split(r"[;,:.(…] |…|\n|\d+", text))
    return [part for part in parts if len(re.findall("[a-zA-Z]", part)) > 8]


def test_a_message_that_the_troubles_quote_is_what_the_program_prints():
    printed = ""  # the texts of the source, with … where a value is put in
    for path in sorted((ROOT / "src" / "aimo").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                printed += (
                    "".join(
                        str(getattr(part, "value", "")) if isinstance(part, ast.Constant) else "…"
                        for part in node.values
                    )
                    + "\n"
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                printed += node.value + "\n"
    page = ROOT / "docs" / "troubleshooting.md"
    quoted = [line for language, text in fences(page) if language == "text" for line in text.splitlines()]
    for table in re.findall(r"^\| message \|.*\n\|[- |]+\|\n((?:\|.*\n)+)", page.read_text(), re.MULTILINE):
        quoted += [row.split("|")[1] for row in table.splitlines()]
    assert len(quoted) > 50
    for message in quoted:  # values that are written out may be absent
        parts = clauses(message)
        absent = [part for part in parts if part not in printed]
        assert parts and 2 * len(absent) < len(parts), (message, absent)
