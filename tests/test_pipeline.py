"""A small run of the whole pipeline: killed, resumed, reported and repeated."""

import contextlib
import fcntl
import json
import re
import shutil
import time
from pathlib import Path

import nbformat
import polars as pl
import pytest
from conftest import SMALL, here, refused, settings

from aimo import config, pipeline
from aimo.inference.errors import AimoError
from aimo.inference.storage import read_lines
from aimo.run import progress, runs
from aimo.run.runs import figures, read_metrics

RUN = ["run", "--profile", "tiny", *settings(SMALL)]


def in_folder(folder: Path, *overrides: str) -> list[str]:
    """The arguments of the small run in a folder, with other values of some keys."""
    return [*RUN, "--run-dir", str(folder), *settings(list(overrides))]


def losses(folder: Path) -> list[tuple[int, float]]:
    """Each training step of a stage, with its loss."""
    return [(line["step"], line["loss"]) for line in read_lines(folder / "log.jsonl") if "loss" in line]


def solutions(folder: Path) -> list[dict]:
    return json.loads((folder / "inference/solutions.json").read_text())


def test_a_killed_run_continues_and_keeps_what_was_finished(small_run):
    said = (small_run / "stdout.txt").read_text()
    assert "sft: finished before, kept" in said and "grpo: finished in" in said
    before = json.loads((small_run / "killed.json").read_text())["sft"]
    assert before == (small_run / "sft/model/model.safetensors").stat().st_mtime_ns
    assert [step for step, _ in losses(small_run / "grpo")] == [1, 2, 3, 4], "lost or trained twice"


def test_the_record_has_the_figures_of_each_model_and_the_cost_of_each_stage(small_run):
    rows = figures(small_run)
    assert list(rows) == ["base", "sft", "grpo"]
    for row in rows.values():
        assert {"format", "maj@4"} <= set(row) and 0 <= row["pass@1"] <= 1 and row["mean_tokens"] > 3
    for name, steps in (("sft", 8), ("grpo", 4)):
        assert rows[name]["steps"] == steps and "mean_loss" in rows[name]
        for key in ("seconds", "samples_per_second", "steps_per_second", "total_flos"):
            assert rows[name][key] > 0, key
    printed = (small_run / "stdout.txt").read_text()
    for word in ("base", "sft", "grpo", "pass@1", "maj@4", "submission.parquet", "report.html"):
        assert word in printed


def test_every_stage_leaves_its_notebook_its_page_and_its_product_and_no_standard_error(small_run):
    assert (small_run / "stderr.txt").read_text() == ""
    for stem in ("01_data_prep", "02_format_sft", "03_grpo", "04_inference"):
        cells = nbformat.read(small_run / "notebooks" / f"{stem}.ipynb", 4).cells
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        assert [output.text for output in outputs if output.get("name") == "stderr"] == []
        assert "<img" in (small_run / "notebooks" / f"{stem}.html").read_text() or stem == "01_data_prep"
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "aimo.json"}
    for stage in ("sft", "grpo"):
        assert wanted <= {path.name for path in (small_run / stage / "model").iterdir()}
    table = pl.read_parquet(small_run / "submission.parquet")
    assert table.columns == ["id", "answer"] and len(table) == 4
    assert table["answer"].is_between(0, 99999).all()


def test_the_report_is_one_page_that_needs_nothing_else(small_run):
    page = (small_run / "report.html").read_text()
    links = re.findall(r"(?:src|href)=['\"](?!data:)([^'\"]*)", page)
    assert all((small_run / link.partition("#")[0]).is_file() for link in links)
    assert {"./notebooks/03_grpo.html", "./report.html#training-grpo"} <= set(links)
    for part in ("after format SFT", "after GRPO", "whose vote flipped", "The test file", "Versions"):
        assert part in page
    assert "num_generations: 4" in page and page.count("data:image/png") >= 4


def test_a_finished_run_is_kept_and_a_changed_profile_is_refused_with_the_keys(small_run):
    before = (small_run / "metrics.json").read_bytes()
    again = here(*in_folder(small_run))
    assert again.returncode == 0 and again.stdout.count("finished before, kept") == 4
    refused(*in_folder(small_run, "grpo.max_steps=5"), told=["grpo.max_steps (was 4, now 5)", "--from"])
    assert (small_run / "metrics.json").read_bytes() == before


def test_another_test_file_is_answered_with_other_settings_from_the_last_stage_on(
    small_run, tmp_path, shared
):
    folder, test = tmp_path / "run", shared / "aimo2" / "reference.csv"
    shutil.copytree(small_run, folder)
    changes = ["inference.samples=2", "inference.max_tokens=12", "inference.weight=length"]
    done = here(*in_folder(folder, *changes), "--from", "inference", "--test", str(test))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished before, kept") == 3
    golds, table = pl.read_csv(test, infer_schema=False), pl.read_parquet(folder / "submission.parquet")
    assert list(table["id"]) == list(golds["id"]) and table["answer"].is_between(0, 999).all()
    known = dict(golds.select("id", "answer").rows())
    right = sum(int(known[i]) == answer for i, answer in table.rows())
    assert f"10 questions: {right} of 10 known answers right" in (folder / "report.html").read_text()

    ends = {sample["end"] for solution in solutions(small_run) for sample in solution["samples"]}
    again = {sample["end"] for solution in solutions(folder) for sample in solution["samples"]}
    assert "tokens" not in ends and again == {"tokens"}, "max_tokens of the profile and not of the model"
    assert max(len(solution["samples"]) for solution in solutions(folder)) == 2
    kept = json.loads((folder / "submission.settings.json").read_text())
    assert (kept["samples"], kept["max_tokens"], kept["weight"]) == (2, 12, "length")
    for name, row in figures(folder).items():
        assert "maj@2" in row and "maj@4" not in row, "an old figure"
        assert row.get("steps") == figures(small_run)[name].get("steps")


@pytest.mark.train
def test_a_stage_continues_from_a_named_checkpoint_to_the_same_losses(small_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder)
    (folder / "sft/checkpoint-8/trainer_state.json").unlink()
    done = here(*in_folder(folder), "--from", "sft/checkpoint-4", "--until", "sft")
    assert done.returncode == 0, done.stderr
    assert losses(folder / "sft") == losses(small_run / "sft")
    assert (folder / "sft/checkpoint-8/trainer_state.json").exists()
    assert list(read_metrics(folder)["stages"]) == ["data", "sft"]
    assert not any((folder / name).exists() for name in ("grpo", "inference", "submission.parquet"))


def test_a_test_file_may_have_any_name(tmp_path):
    for name in ("it's.csv", 'a "b" $HOME #1: [x].csv', "试验😀.csv", "a\\b.csv"):
        with pytest.raises(AimoError) as e:
            pipeline.run_profile("tiny", str(tmp_path / "run"), test=str(tmp_path / name))
        assert str(tmp_path / name) in str(e.value), "the file is looked for under its own name"


def test_a_stage_begun_too_early_names_the_missing_one_and_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "quiet", lambda: None)
    with pytest.raises(AimoError, match=r"which stage data makes: .* `aimo run --profile tiny"):
        runs.begin("grpo", "tiny", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_notebook_gives_a_remedy_that_works_in_a_notebook(tmp_path, monkeypatch):
    runs.open_folder(tmp_path, config.load("tiny"))
    runs.unlock(tmp_path)
    monkeypatch.setattr(runs, "by_hand", lambda: True)
    told = r"seed \(was 0, now 5\).*another run_dir.*redo = True in notebooks/01"
    with pytest.raises(AimoError, match=told):
        runs.open_folder(tmp_path, config.load("tiny", ["seed=5"]))


def hands(folder: Path) -> bool:
    """Whether another process may work in a folder: its lock is free for another descriptor."""
    with (folder / "lock").open() as file, contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def test_a_changed_run_dir_leaves_the_first_folder_locked_and_open_to_its_own_processes(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        runs.lock(folder)
    runs.lock(first)  # a notebook that goes back to its first folder
    assert not hands(first) and not hands(second)
    runs.unlock(second)
    with pytest.MonkeyPatch.context() as patch:  # a process that the holder starts has its environment alone
        patch.setattr(runs, "_locks", {})
        runs.lock(first)
    assert not hands(first) and hands(second)
    runs.unlock(first)
    assert hands(first)


BROKEN = ["", "[]", "\xff", '{"stages": {"data"']
MISSHAPEN = ["1", '{"data": 5}', '{"sft": {"seconds": "long"}}', '{"inference": {"models": [1]}}']
MISSHAPEN += [
    '{"inference": {"models": {"base": 1}}}',
    '{"inference": {"models": {"base": {"pass@1": "0.5"}}}}',
]


def test_a_broken_record_is_told_in_one_line(tmp_path):
    for text in [*BROKEN, *(f'{{"stages": {stages}}}' for stages in MISSHAPEN)]:
        (tmp_path / "metrics.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(AimoError, match=r"metrics.json: .*; restore it, or remove it"):
            read_metrics(tmp_path)


def test_a_slow_first_step_says_what_it_does_now(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(progress, "PLAIN_S", 0)
    profile = config.load("tiny")
    with progress.Display(tmp_path, profile) as display:
        display.start("grpo")
        runs.Run(profile, tmp_path, "grpo", 0.0).progress(0, 60, "sampling 64 completions")
        end, shown = time.monotonic() + 20, ""
        while "sampling" not in shown and time.monotonic() < end:
            time.sleep(0.1)
            shown += capfd.readouterr().out
    assert re.search(r"grpo: 0 of 60, sampling 64 completions, \d+ s so far\n", shown)
