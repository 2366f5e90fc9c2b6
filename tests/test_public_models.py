"""The profiles of public models: they parse, vLLM takes their arguments, and their prompts read well."""

import json

import polars as pl
import pytest
from conftest import aimo

from aimo import config
from aimo.inference import prompts
from aimo.inference.competitions import COMPETITIONS
from aimo.inference.settings import validate_settings

EASY = "What area of a 7 by 12 wall is not covered by a 4 by 3 door?"
"""A problem of a family that the tiny base is nearly always right about; the answer is 72."""
PUBLIC = {
    name: profile
    for name in sorted(path.stem for path in config.PROFILES.glob("*.yaml"))
    if not (profile := config.load(name)).trained and not profile.model.base.startswith("data/")
}


@pytest.mark.parametrize("name", PUBLIC)
def test_it_does_inference_alone_and_vllm_has_its_arguments(name):
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from aimo.inference.vllm_process import check_arguments

    assert PUBLIC[name].stages == ("inference",)
    arguments = PUBLIC[name].inference.vllm or {}
    check_arguments(arguments)
    options = [f"--{key.replace('_', '-')}={value}" for key, value in arguments.items()]
    parsed = vars(AsyncEngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(options))
    assert {key: parsed[key] for key in arguments} == arguments, "vLLM's own parser takes other values"


@pytest.mark.parametrize("competition", [c for c in COMPETITIONS if COMPETITIONS[c].answer.kind != "proof"])
@pytest.mark.parametrize("name", [name for name, profile in PUBLIC.items() if not profile.competition])
def test_each_sample_reads_the_problem_the_competitions_rules_and_where_the_answer_goes(name, competition):
    settings = validate_settings(PUBLIC[name].inference.written, name, "correct it")
    rules = COMPETITIONS[competition].rules
    asked = [prompts.variant(settings, i) for i in range(settings.samples)]
    for one in asked:
        text = f"{one.system}\n{one.user}".replace("{rules}", rules).replace("{problem}", "What is 1 + 1?")
        assert "What is 1 + 1?" in text and rules in text and "\\boxed{}" in text
        assert "{" not in text.replace("\\boxed{}", "")


@pytest.fixture(scope="module")
def profile(public_model, tmp_path_factory):
    """A profile of the public model, which does inference alone."""
    path = tmp_path_factory.mktemp("profile") / "public.yaml"
    inference = {"samples": 16, "max_tokens": 96, "user": "Q: {problem}", "test_rows": 12}
    path.write_text(json.dumps({"model": {"base": str(public_model)}, "inference": inference}))
    return path


@pytest.mark.engine
def test_notebook_04_asks_a_public_model_as_its_profile_says_and_reads_right_answers(profile, tmp_path):
    rules = tmp_path / "mine.yaml"
    rules.write_text(
        "slug: mine\ninputs: {id: row_id, problem: question}\nanswer: {kind: integer, high: 99999}\n"
        "rules: One integer.\nartefact: {kind: csv, id: row_id, answer: prediction}\n"
    )
    run_dir, competition = ["--run-dir", str(tmp_path / "run")], ["--competition", str(rules)]
    done = aimo("run", "--profile", str(profile), *run_dir, *competition)
    assert done.returncode == 0, done.stderr
    assert f"submission: {tmp_path / 'run/submission.csv'}" in done.stdout
    record = json.loads((tmp_path / "run/metrics.json").read_text())["stages"]
    assert list(record) == ["inference"] and record["inference"]["correct"] >= 8
    table = pl.read_csv(tmp_path / "run/submission.csv")
    assert table.columns == ["row_id", "prediction"] and len(table) == 12
    assert not (tmp_path / "run/data").exists()
    assert "12 questions" in (tmp_path / "run/report.html").read_text()
    used = json.loads((tmp_path / "run/submission.settings.json").read_text())
    assert (used["temperature"], used["top_p"], used["top_k"]) == (0.6, 0.95, 20), "the folder's own"
    assert (used["user"], used["tags"]["think_end"]) == ("Q: {problem}", "</think>")


@pytest.mark.engine
def test_solve_asks_a_public_model_as_its_profile_says_and_reads_the_right_answer(profile, public_model):
    arguments = ["--profile", str(profile), "--samples", "16", "--set", "inference.temperature=0.8"]
    done = aimo("solve", "--model", str(public_model), *arguments, EASY)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = done.stdout.splitlines()
    assert "</think>$\\boxed{" in done.stdout and lines[-1] == "72"
    assert any(line.endswith(" of 16: 72") for line in lines)
