"""Those who come from another project: its names are answered, and what their pages name exists."""

import functools
import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml
from commands import CHECKS, check
from conftest import ROOT
from test_docs import REST

from aimo import config
from aimo.commands import run
from aimo.config import reading
from aimo.inference.errors import AimoError

# What the sources call their settings, by section.
NAMES = yaml.safe_load(Path(__file__).with_name("names_of_others.yaml").read_text())
NAMES = {section: names.split() for section, names in NAMES.items()}
NAMES["grpo"] += NAMES["sft"]  # a trainer's


OPTIONS = {
    option
    for command in typer.main.get_command(run.app).commands.values()
    for parameter in command.params
    for option in parameter.opts
}


@pytest.mark.parametrize("section", NAMES)
def test_every_name_of_the_sources_is_answered_with_what_it_is_here(section):
    for name in NAMES[section]:
        if (key := f"{section}.{name}") in set(reading.keys()):
            continue
        answer = reading.suggest(key)
        answered = (", it is called ", ", put it under ", ", use ", ", leave it out: ")
        assert answer.startswith(answered), f"{key}: {answer or 'no answer'}"
    with pytest.raises(AimoError) as e:  # as a user meets it
        config.load("tiny", [f"{key}=1"])
    assert reading.suggest(key) in str(e.value)


def test_a_stages_data_are_those_that_it_trains_on():
    assert reading.suggest("sft.dataset_name") == ", it is called data.sft.source here"
    assert reading.suggest("grpo.dataset_config") == ", it is called data.grpo.subset here"
    assert reading.suggest("data.sft.mixture.dataset_name") == ", it is called data.sft.mixture.source here"


@pytest.mark.parametrize("told", sorted(t for t in reading.ALIASES["instead"].values() if "--" in t))
def test_what_is_said_of_a_name_that_is_no_key_exists(told):
    assert set(re.findall(r"--[\w-]+", told)) <= OPTIONS


PAGES = {path.stem: path for path in sorted((ROOT / "docs/from").glob("*.md"))}


def here(page):
    """The cells of the column "here" of a page's tables."""
    for head, body in re.findall(r"^(\|.+\|)\n\|[- |]+\|\n((?:\|.*\n)+)", page.read_text(), re.MULTILINE):
        heads = [cell.strip() for cell in head.split("|")]
        column = heads.index("here") if "here" in heads else 0
        yield from (re.split(r"(?<!\\)\|", line)[column].strip() for line in body.splitlines())


@functools.cache
def names():
    """What may stand by itself: profiles, and variables that other pages name."""
    told = "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    profiles = {path.stem for path in config.PROFILES.glob("*.yaml")}
    return profiles | set(re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b", told))


def hold(span):
    """Check that what stands in backticks exists here, as its command, key or option would be read."""
    words = shlex.split(span.replace(".venv/bin/", "").replace("\\|", "|").replace("…/", "URL/"))
    if words[0] in CHECKS:
        check(words)
    elif words[0].startswith("--"):
        assert {word for word in words if word.startswith("--")} <= OPTIONS
        if words[0] == "--set":
            config.load("qwen2.5-1.5b-openr1", words[1::2])
    elif found := re.fullmatch(r"([a-z_]+(?:\.[a-z_0-9]+)+|seed): (.+)", span):
        values = {}
        reading.set_key(values, f"{found[1]}={found[2]}")
        for part in values.get("data", {}).values():
            if isinstance(part, dict) and not {"source", "mixture"} & part.keys():
                part["source"] = "FILE.jsonl"
        whole = dict(REST)  # with what a profile needs besides
        for name, section in values.items():
            rate = {"learning_rate": 1e-5} if name in ("sft", "grpo", "dpo") else {}
            whole[name] = rate | REST.get(name, {}) | section if isinstance(section, dict) else section
        config.parse(whole, span)
    else:
        name = re.split("[= ]", span)[0]
        known = {*names(), *reading.keys()}
        assert name in known or (ROOT / span).exists() or span.startswith("runs/"), span


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_names_here_exists(name):
    for cell in here(PAGES[name]):
        for span in re.findall(r"`([^`]+)`", cell):
            try:
                hold(span)
            except (Exception, SystemExit) as e:
                pytest.fail(f"{span!r}: {type(e).__name__}: {e}")
