"""`aimo kaggle scores` and `choose`: submissions beside their models' hold-out figures."""

import json
import re

import polars as pl
import pytest
from stand_in import AIMO3

from aimo import config

pytest_plugins = ["stand_in"]


@pytest.fixture
def submitted(kaggle, tmp_path, monkeypatch):
    """Record a submission of a new run with a figure on n held-out problems, and its public score."""
    from aimo.kaggle import client, competition

    monkeypatch.setattr(competition, "RUNS", tmp_path / "pages")
    monkeypatch.setattr(competition.pages.write_index, "__defaults__", (tmp_path / "pages",))

    def submit(name, share, public, n=100, problems="the same", notes=""):
        run, ref = tmp_path / "runs" / name, 100 + len(kaggle.submissions)
        (run / "data").mkdir(parents=True, exist_ok=True)
        (run / "profile.yaml").write_text(config.dump(config.load("tiny")))
        pl.DataFrame({"prompt": [problems]}).write_parquet(run / "data/heldout.parquet")
        stages = {
            "data": {"heldout_rows": n},
            "inference": {"models": {"base": {}, "grpo": {"maj@16": share}}},
        }
        (run / "metrics.json").write_text(json.dumps({"stages": stages}))
        (run / "NOTES.md").write_text(notes)
        kernel = {"kernel": "me/aimo-submission", "version": ref}
        client.add_record("model", model=f"me/{name}/transformers/default/1", run=str(run), profile="tiny")
        client.add_record("push", models=[f"me/{name}/transformers/default/1"], **kernel)
        client.add_record("submit", ref=ref, **kernel)
        row = {"ref": ref, "status": "COMPLETE", "publicScore": public, "description": f"try {name}"}
        kaggle.submissions.insert(0, row | {"date": f"2026-11-{10 + len(kaggle.submissions)}T10:00:00Z"})
        return ref

    return submit


def test_the_table_has_hold_out_public_score_correlation_limits_deadline_and_notes(
    kaggle, aimo, submitted, tmp_path
):
    kaggle.competitions[AIMO3] = {"about": {"deadline": "2099-01-02T23:59:00Z"}, "pages": {}, "files": {}}
    kaggle.left = 3
    for i, (share, public) in enumerate([(0.5, "20"), (0.6, "26"), (0.7, "28"), (0.8, "33")]):
        if i == 3:
            assert (
                "3 submissions have a hold-out and a public score; a correlation needs 4" in aimo("scores")[1]
            )
        submitted(f"run-{i}", share, public, notes="# Longer thoughts\n\nmore" if i == 3 else "\n")
    kaggle.submissions.insert(0, {"ref": 7, "status": "PENDING", "description": "by hand"})
    out = aimo("scores")[1]
    (row,) = (line for line in out.splitlines() if " 103 " in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[1:5] == ["103", "33", "0.800 (0.711 to 0.867)", "maj@16"], "Wilson's interval of 80 of 100"
    assert cells[5:] == [
        "me/aimo-submission", "103", str(tmp_path / "runs/run-3"), "tiny", "try run-3", "Longer thoughts",
    ]  # fmt: skip
    assert "hold-out and public score of 4 submissions: correlation 0.98 (95 % interval 0.43 to 1.00)" in out
    assert "submissions left today: 3 (2 made); deadline: 2099-01-02 23:59 UTC, in 26" in out
    page = (tmp_path / "pages" / f"kaggle-{AIMO3}" / "scores.html").read_text()
    assert "0.800 (0.711 to 0.867)" in page and "correlation 0.98" in page and "by hand" in page
    assert "correlation 0.98" in (tmp_path / "pages" / "index.html").read_text()


def test_choose_takes_the_best_hold_out_of_each_run_and_says_how_sure_that_is(aimo, refused, submitted):
    assert "no submission has a hold-out figure" in refused("choose")
    submitted("good", 0.80, "31")
    submitted("lucky", 0.60, "40")  # the best of the public scores
    submitted("better", 0.90, "30")
    submitted("better", 0.90, "29")  # again, of the same run
    submitted("other", 0.99, "10", problems="others")
    code, out, err = aimo("choose", "--count", "2")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("1. submission 103, ") and "public score 29; among the best 2 of 3" in lines[0]
    assert lines[1].startswith("2. submission 100, ") and lines[2].startswith("not chosen: 101, ")
    chances = [int(re.search(r"chance of (\d+)%", line)[1]) for line in lines[:3]]
    assert chances[0] > 99 and chances[1] > 98 and chances[2] < 2, chances
    assert "not compared, as they were measured on other problems: 104" in lines[3]
    code, out, _ = aimo("choose", "--count", "1")
    chances = [int(re.search(r"chance of (\d+)%", line)[1]) for line in out.splitlines()[:3]]
    assert 95 < chances[0] < 99 and sum(chances) in (99, 100, 101), "0.9 and 0.8 of 100 are not far apart"


def test_a_run_that_measured_nothing_has_the_figure_of_the_kernel_evaluate(kaggle, aimo, submitted, tmp_path):
    from aimo.kaggle import client

    submitted("trained-there", 0.5, "20")
    (tmp_path / "runs/trained-there/metrics.json").write_text('{"stages": {"data": {"heldout_rows": 9}}}')
    model = "me/trained-there/transformers/default/1"
    client.add_record("push", kernel="me/aimo-evaluate", version=3, models=[model])
    client.add_record("push", kernel="me/aimo-evaluate", version=4, models=["you/other/transformers/b/1"])
    assert "0.75" not in aimo("scores")[1], "its output is not here yet"
    folder = tmp_path / "output" / "aimo-evaluate" / "3"
    folder.mkdir(parents=True)
    rows = [{"file": name, "questions": 10, "right in each pass": [8, 7]} for name in ("a", "b")]
    (folder / "evaluation.json").write_text(json.dumps(rows))
    out = aimo("scores")[1]
    assert "0.750 (0.531 to 0.888)" in out and " vote " in out
    assert "vote 0.750 (0.531 to 0.888) of 20 held-out problems" in aimo("choose", "--count", "1")[1]


def test_a_file_is_uploaded_where_its_competition_would_take_it_and_stands_with_its_run(
    kaggle, aimo, refused, submitted, tmp_path
):
    submitted("by-file", 0.75, "")  # a run
    kaggle.submissions.clear()
    rules, file = tmp_path / "mine.yaml", tmp_path / "runs/by-file/submission.csv"
    rules.write_text(
        "slug: mine\nanswer: {kind: choice}\nrules: A letter.\nscoring: accuracy\n"
        "artefact: {kind: csv, id: row_id, answer: prediction}\n"
    )
    message = ["--message", "first", "--competition", rules]
    file.write_text("row_id,prediction\n1,A\n2,E\n")
    assert "2 has 'E', no letter of ABCD" in refused("submit", file, *message)
    assert "takes a file submission.csv; rename it" in refused("submit", rules, *message)
    assert "--competition is missing" in refused("submit", file, "--message", "m")
    file.write_text("row_id,prediction\n1,A\n2,B\n")
    assert "PUT submission.csv" in aimo("submit", file, *message, "--dry-run")[1]
    assert not kaggle.asked("CreateSubmission")
    code, out, err = aimo("submit", file, *message)
    assert (code, out) == (0, "submission 100; see `aimo kaggle scores`\n"), err
    (request,) = kaggle.asked("CreateSubmission")
    assert kaggle.blobs[request.blob_file_tokens]["data"] == file.read_bytes()
    row = next(line for line in aimo("scores", rules)[1].splitlines() if " 100 " in line)
    assert "0.750 (" in row and "by-file" in row and "first" in row
    # A text: proofs may have faults of form.
    message = ["--message", "proofs", "--competition", "proof-pilot"]
    file.write_text('id,prediction\na,Let $x be.\nb,"By\ncases."\n')
    assert aimo("submit", file, *message)[1].startswith("a: a formula between $ is not closed\nsubmission")
