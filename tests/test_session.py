"""The kernels `train` and `evaluate`: a state to continue from, and files of problems with answers."""

import json
import subprocess
import sys

import pytest
from conftest import TINY

from aimo import config, pipeline
from aimo.config.profile import STAGES
from aimo.evaluation import submission
from aimo.inference.competitions import COMPETITIONS
from aimo.inference.errors import AimoError
from aimo.kaggle import kernels
from aimo.run.runs import SESSION_OVER


def ship(kernel, folder):
    """Copy what a kernel ships into a folder; return its paths there."""
    copies = []
    for path in kernels.shipped(kernel):
        copies.append(folder / path.relative_to(kernels.ROOT))
        copies[-1].parent.mkdir(parents=True, exist_ok=True)
        copies[-1].write_bytes(path.read_bytes())
    return copies


@pytest.mark.parametrize("stopped", [SESSION_OVER, "the time limit of 60 s", None])
def test_a_stage_that_the_session_s_end_stopped_continues_and_one_that_its_profile_stopped_is_done(
    tmp_path, monkeypatch, capsys, stopped
):
    monkeypatch.setenv(pipeline.runs.SESSION_END, "")  # put back after the test
    inputs, folder, done = tmp_path / "input", tmp_path / "run", {"seconds": 1.0}
    left = inputs / "notebooks" / "me" / "aimo-train" / "run"
    for path in ("data/README.md", "sft/model", "sft/checkpoint-4", "sft/checkpoint-12"):
        (left / path).mkdir(parents=True)
    record = {"data": done, "sft": done | ({"stopped": stopped} if stopped else {})}
    (left / "profile.yaml").write_text("profile: tiny\n")
    (left / "metrics.json").write_text(json.dumps({"stages": record}))
    for path in [left, *left.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    asked = []

    def run_profile(profile, run_dir, overrides, from_stage, until):
        asked.append((from_stage, until))
        record[until] = done if until == "grpo" else record[until]
        (folder / "metrics.json").write_text(json.dumps({"stages": record}))

    monkeypatch.setattr(pipeline, "run_profile", run_profile)
    made = pipeline.train_in_session("tiny", [], 1e9, folder, inputs)
    again = [("sft/checkpoint-12", "sft")], folder / "sft" / "model"
    assert (asked, made) == (again if stopped == SESSION_OVER else ([(None, "grpo")], folder / "grpo/model"))
    assert all(path.stat().st_mode & 0o200 for path in folder.rglob("*")), "the copy can be written"
    assert f"continues {left}" in capsys.readouterr().out


def test_without_a_run_among_the_inputs_it_starts_anew_and_of_two_it_takes_none(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv(pipeline.runs.SESSION_END, "")
    (tmp_path / "input").mkdir()
    assert pipeline.train_in_session("tiny", [], 1e-9, tmp_path / "run", tmp_path / "input") is None
    assert "starts anew" in capsys.readouterr().out and not (tmp_path / "run").exists()
    for name in ("first", "second"):
        (tmp_path / "input" / name / "run").mkdir(parents=True)
        (tmp_path / "input" / name / "run" / "profile.yaml").write_text("profile: tiny\n")
    with pytest.raises(AimoError, match=r"hold 2 runs: .*first/run, .*second/run; attach the output of one"):
        pipeline.train_in_session("tiny", [], 1, tmp_path / "run", tmp_path / "input")


def test_a_kernel_that_trains_ships_the_notebooks_of_its_stages_and_needs_no_others(tmp_path, monkeypatch):
    shipped = {path.stem for path in ship("train", tmp_path)}
    monkeypatch.setattr(pipeline, "ROOT", tmp_path)
    for path in config.PROFILES.glob("*.yaml"):
        if (profile := config.load(path.stem)).trained:
            stages = profile.stages[: profile.stages.index(profile.trained[-1]) + 1]
            assert {STAGES[stage].notebook for stage in stages} <= shipped, profile.profile
    profile = config.load("tiny")
    pipeline.check_run(profile, tmp_path / "run", None, profile.trained[-1])
    with pytest.raises(AimoError, match=r"04_inference\.ipynb: it is no notebook"):
        pipeline.check_run(profile, tmp_path / "run", None, None)


def test_a_profile_that_trains_nothing_is_refused_before_anything_is_copied(tmp_path):
    profile = tmp_path / "public.yaml"
    profile.write_text(f"model: {{base: {TINY}}}\n")
    with pytest.raises(AimoError, match="profile public trains nothing; give one with sft, grpo, dpo or opd"):
        pipeline.train_in_session(str(profile), [], 100, tmp_path / "run", tmp_path)
    assert not (tmp_path / "run").exists()


# ---- Files of problems


@pytest.mark.parametrize(
    "name, text, told",
    [
        ("none.csv", None, "does not exist"),
        ("cut.jsonl", '{"id": 1, "problem": "x", "answer": 1}\n{"id"', "line 2 is not a JSON object"),
        ("few.csv", "id,problem\n1,x\n", "has no column 'answer'"),
        ("words.csv", "id,problem,answer\n1,x,one half\n", "no answer is an integer from 0 to 99999"),
        ("twice.csv", "id,problem,answer\n1,x,1\n1,y,2\n", "the id '1' twice"),
    ],
)
def test_a_bad_file_of_problems_is_named_with_the_remedy(tmp_path, name, text, told):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(AimoError) as e:
        submission.read_problems(path, COMPETITIONS["aimo3"])
    assert told in str(e.value) and str(path) in str(e.value)


def test_files_of_both_competitions_and_benchmarks_are_asked_in_the_chosen_one_s_form(shared):
    for rules in (COMPETITIONS["aimo2"], COMPETITIONS["aimo3"]):
        for name in ("aimo2/reference.csv", "aimo3/reference.csv", "benchmarks/aime25.jsonl"):
            table, left_out = submission.read_problems(shared / name, rules)
            wanted = {"id", "question" if rules.slug == COMPETITIONS["aimo2"].slug else "problem", "answer"}
            assert wanted <= set(table.columns) and len(table) + left_out in (10, 30)
            assert all(0 <= int(answer) <= rules.answer.high for answer in table["answer"])
    table, left_out = submission.read_problems(shared / "benchmarks" / "math500.jsonl", COMPETITIONS["aimo3"])
    assert len(table) > 250 and left_out > 100 and len(table) + left_out == 500


@pytest.mark.slow  # starts Python and imports what a kernel does
def test_what_the_kernel_train_ships_imports_without_the_repository(
    tmp_path,
):  # the others run in other tests
    ship("train", tmp_path)
    code = "import aimo.pipeline, aimo.data.prepare, aimo.report.pages; print(aimo.__file__)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": "src"})
    assert done.returncode == 0 and str(tmp_path) in done.stdout, done.stderr
