"""The kernels: built from the sources; the submission alone in an empty folder."""

import ast
import contextlib
import inspect
import io
import json
import re
import shutil
from dataclasses import fields

import machine
import nbformat
import polars as pl
import pytest
from conftest import TINY
from scripted import write_shipped

from aimo import config
from aimo.config import ROOT
from aimo.inference import gateway
from aimo.inference.competitions import COMPETITIONS
from aimo.inference.errors import AimoError
from aimo.inference.settings import Settings
from aimo.kaggle import kernels

SIZES = {"wheels": 50, "train": 400, "submission": 200, "evaluate": 300}  # the most, in KB


def parameters(notebook):
    """The text of the cell with the parameters."""
    cells = nbformat.read(notebook, 4).cells
    return next(c.source for c in cells if "parameters" in c.metadata.get("tags", []))


@pytest.mark.parametrize("name", kernels.KERNELS)
def test_the_committed_kernel_is_what_the_sources_build(name, tmp_path):
    fresh = kernels.build_kernel(name, tmp_path)
    built = kernels.FOLDER / name / fresh.name
    is_fresh = fresh.read_bytes() == built.read_bytes()  # pytest would compare them for minutes
    assert is_fresh, "run `aimo kernel build`"


@pytest.mark.parametrize("name", SIZES)
def test_a_kernel_shows_its_settings_first_and_folds_the_files_that_it_ships(name, tmp_path):
    path = kernels.build_kernel(name, tmp_path)
    assert path.stat().st_size <= 1000 * SIZES[name] and str(ROOT) not in path.read_text()
    cells = nbformat.read(path, 4).cells
    archive, *files = [c for c in cells if re.match("%%writefile (src|requirements)|import base64", c.source)]
    assert all(c.metadata["_kg_hide-input"] for c in (archive, *files))
    shown = next(c for c in cells if c.cell_type == "code" and "_kg_hide-input" not in c.metadata)
    parameters = {}
    exec(shown.source, {}, parameters)
    nodes = [node for node in ast.walk(ast.parse(archive.source)) if isinstance(node, ast.Name)]
    assert not {node.id for node in nodes if isinstance(node.ctx, ast.Store)} & {*parameters}, "they stay"
    assert cells.index(shown) < cells.index(archive) and "parameters" in shown.metadata.tags
    write_shipped([c.source for c in (archive, *files)], tmp_path / "working")
    for file in kernels.shipped(name):
        text = (tmp_path / "working" / file.relative_to(ROOT)).read_text()
        assert text.rstrip() == file.read_text().rstrip()


def test_its_parameters_are_those_that_serve_takes_and_a_profiles_settings_each_below_a_comment(tmp_path):
    cell = parameters(kernels.build_kernel("submission", tmp_path, "aimo2-r1-14b-awq"))
    names: dict = {}
    exec(cell, {}, names)
    assert sorted(names) == sorted(inspect.signature(gateway.serve_submission).parameters)
    assert names["settings"] == config.load("aimo2-r1-14b-awq").inference.written
    lines = cell.splitlines()
    for key in fields(Settings):
        (place,) = (i for i, line in enumerate(lines) if re.match(rf' +(# )?"{key.name}": ', line))
        assert re.match(r" +# \S", lines[place - 1])


def test_a_profile_that_trains_stands_whole_in_train_and_another_has_no_use_there(tmp_path):
    assert kernels.kernels_of("kaggle-t4") == ["train", "submission", "evaluate"]
    assert kernels.kernels_of("aimo3-gpt-oss-120b") == ["submission", "evaluate"]
    built = kernels.build_kernel("train", tmp_path, "kaggle-t4")
    (text,) = (c.source for c in nbformat.read(built, 4).cells if "profile" in c.metadata.get("tags", []))
    assert text == f"%%writefile profile.yaml\n{config.find('kaggle-t4').read_text().rstrip()}"
    for name, profile in ("train", "aimo3-gpt-oss-120b"), ("wheels", "kaggle-t4"):
        with pytest.raises(AimoError, match=f"^kernel {name} has no use for profile {profile}; it goes into"):
            kernels.build_kernel(name, tmp_path, profile)
    with pytest.raises(AimoError, match="use one of probe, wheels, train, submission, evaluate"):
        kernels.build_kernel("../kernels/submission", tmp_path)


WALL = "What area of a 7 by 12 wall is not covered by a 4 by 3 door?"  # 72


@pytest.mark.engine
@pytest.mark.parametrize("competition, rerun", [("aimo2", True), ("aimo3", False)])
def test_it_answers_with_a_public_model_alone_in_an_empty_folder(tmp_path, public_model, competition, rerun):
    """In a rerun a gateway asks over gRPC, else that of the competition's package; a profile's settings."""
    profile = tmp_path / "public.yaml"
    inference = {"samples": 16, "max_tokens": 96, "temperature": 0.9, "user": "Q: {problem}"}
    profile.write_text(json.dumps({"model": {"base": str(public_model)}, "inference": inference}))
    text = kernels.build_kernel("submission", tmp_path, str(profile)).read_text()
    rules, test_csv, inputs = COMPETITIONS[competition], tmp_path / "test.csv", tmp_path / "input"
    questions = {"id": ["first", "empty", "long"], rules.inputs.problem: [WALL, "", "x + " * 2000]}
    pl.DataFrame(questions).write_csv(test_csv)
    shutil.copytree(public_model, inputs / "model")
    folder, working = machine.attach_competition(inputs, rules, test_csv), tmp_path / "working"
    parameters = {"competition": competition, "model": str(inputs / "model"), "time_limit_s": 3000}
    parameters["test_csv"] = str(folder / "test.csv")
    if rerun:
        out = tmp_path / "submission.parquet"
        ran, told = machine.rerun(text, inputs, working, folder, test_csv, out, parameters)
        assert told == "submission written"
    else:
        out = working / "submission.parquet"
        ran = machine.run(text, inputs, working, parameters)
    assert ran, ran.log[-20:]
    answers = dict(pl.read_parquet(out)["id", "answer"].rows())
    assert answers == {"first": 72, "empty": 0, "long": 0}
    used = json.loads((working / "settings.json").read_text())
    assert (used["temperature"], used["top_p"], used["user"]) == (0.9, 0.95, "Q: {problem}")
    said = machine.printed(working)
    assert "3 questions answered" in said and "do not fit" in said and "temperature: 0.9" in said
    steps = "wheels", "imports", "weights", "import of vLLM", "plan", "start of the engine", "first answer"
    assert all(re.search(rf"^{name}: .*\d", said, re.MULTILINE) for name in steps)
    assert not machine.printed(working, "stderr")


@pytest.mark.engine
def test_evaluate_scores_files_by_the_competition_s_points_and_leaves_a_page_and_journals(tmp_path):
    inputs, working = tmp_path / "input", tmp_path / "working"
    shutil.copytree(TINY, inputs / "model")
    (inputs / "made").mkdir()
    made = pl.DataFrame({"id": ["right", "wrong"], "problem": [WALL, WALL], "answer": [72, 71]})
    made.write_csv(inputs / "made" / "easy.csv")
    text = kernels.build_kernel("evaluate", tmp_path, "tiny").read_text()
    files = [str(inputs / "made" / "easy.csv")]
    parameters = {"model": str(inputs / "model"), "files": files, "time_limit_s": 600}
    ran = machine.run(text, inputs, working, parameters)
    assert ran, ran.log[-20:]
    (easy,) = json.loads((working / "evaluation.json").read_text())
    assert (easy["file"], easy["questions"], easy["score"]) == ("made-easy", 2, 1)
    assert easy["right in each pass"] == [1, 1]
    page = (working / "evaluation.html").read_text()
    assert "made-easy, pass 2" in page and WALL in page
    assert all((working / f"made-easy.journal-{number}.jsonl").stat().st_size for number in (1, 2))


def test_the_probe_says_what_a_machine_without_a_gpu_has(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    script = (kernels.FOLDER / "probe" / "aimo-probe.py").read_text()
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(script, {})
    assert "no GPU" in out.getvalue() and re.search(r"gpt-oss-120b.*does not fit", out.getvalue())
