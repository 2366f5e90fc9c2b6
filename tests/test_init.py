"""`aimo init`: a profile for one's own problems, which `aimo run` takes."""

import csv
import json

from conftest import here, refused

from aimo import config
from aimo.data import prepare
from aimo.train import models


def rows(count=40):
    """Problems of one family with their answers and solutions."""
    pairs = [(3 * i + 11, 7 * i + 2) for i in range(count)]
    return [(f"What is {a} plus {b}?", a + b, f"Adding {a} and {b} gives {a + b}.") for a, b in pairs]


def write(path, head, body):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *body])


def test_one_file_serves_sft_grpo_and_the_held_out_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(
        tmp_path / "my.csv",
        ("Question", "gold", "Response"),
        [*rows(), ("", 3, "no text"), ("How many?", "", "")],
    )
    done = here("init", "my.csv")
    assert done.returncode == 0, done
    profile = config.load("my.yaml")
    assert profile.profile == "my" and profile.stages == ("data", "sft", "grpo", "inference")
    tokenizer = models.load_tokenizer(config.locate(profile.model.base), profile)
    sets = prepare.clean_sets(prepare.load_sets(profile), profile, tokenizer)
    sets = prepare.decontaminate_sets(sets, profile)
    problems = {name: set(of_set["problem"]) for name, of_set in sets.rows.items()}
    assert problems["sft"] == problems["grpo"] and not problems["grpo"] & problems["heldout"]
    assert len(problems["grpo"] | problems["heldout"]) == 40 and len(problems["grpo"]) >= 30
    # The terminal says what became of the rows, and what to run.
    for name in ("sft", "grpo"):
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"{name}: ")]
        assert line.startswith(f"{name}: {len(problems[name])} of 42 rows kept; dropped: ")
        assert "1 no problem text" in line and "same text as in heldout" in line
    assert "aimo run --profile my.yaml" in done.stdout
    refused("init", "my.csv", told=["my.yaml", "exists", "--out"])


def test_without_solutions_there_is_no_sft_and_any_answer_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [{"problem": text, "answer": f"{answer}/7"} for text, answer, _ in rows(10)]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = here("init", "my.jsonl", "--out", "other.yaml")
    profile = config.load("other.yaml")
    assert profile.stages == ("data", "grpo", "inference") and not profile.data.grpo.integer_answers
    assert "sft: left out" in done.stdout and "grpo: 8 of 10 rows kept" in done.stdout


def test_what_cannot_be_a_profile_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "odd.csv", ("text", "key"), [row[:2] for row in rows(5)])
    write(tmp_path / "few.csv", ("problem", "answer"), [row[:2] for row in rows(3)])
    refused("init", "none.csv", told=["none.csv", "No such file"])
    refused("init", "few.csv", told=["3 rows", "at least 4"])
    refused("init", "odd.csv", told=["problem", "text, key", "--prompt-column"])
    refused("init", "odd.csv", "--prompt-column", "text", told=["answer", "--answer-column"])
    refused("init", "odd.csv", "--out", "odd.txt", told=["odd.txt", ".yaml"])
    assert not list(tmp_path.glob("*.yaml"))
    done = here("init", "odd.csv", "--prompt-column", "text", "--answer-column", "key")
    assert done.returncode == 0 and config.load("odd.yaml").data.grpo.columns.problem == "text"


def test_worked_solutions_alone_give_their_own_answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    boxed = [(text, f"{solution} So \\boxed{{{answer}}}.") for text, answer, solution in rows(20)]
    write(tmp_path / "my.csv", ("question", "response"), boxed)
    done = here("init", "my.csv")
    assert done.returncode == 0 and "grpo: 1" in done.stdout, done
    assert config.load("my.yaml").stages == ("data", "sft", "grpo", "inference")
