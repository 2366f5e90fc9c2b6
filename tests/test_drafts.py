"""`aimo competition new`: a file of rules from a competition's pages and data."""

import pytest
from conftest import here
from stand_in import zipped

from aimo.inference.competitions import read_competition

pytest_plugins = ["stand_in"]
ABOUT = {"title": "Which is it?", "deadline": "2026-12-31T23:59:00Z", "maxDailySubmissions": 3}


@pytest.mark.parametrize(
    "files, pages, lines",
    [
        (  # four options, letters
            {
                "test.csv": b"row_id,question,a,b,c,d\n7,which?,1,2,3,4\n8,what?,5,6,7,8\n",
                "sample_submission.csv": b"row_id,prediction\n7,A\n8,A\n",
            },
            {"code": "<p>GPU Notebook &lt;= 9 hours run-time, T4 x 2</p>"},
            [
                "# Deadline 2026-12-31 23:59 UTC; 3 submissions a day",
                "inputs: {id: row_id, problem: question, options: [a, b, c, d]}",
                "answer: {kind: choice, letters: ABCD}  # ? seen: A, A",
                "artefact: {kind: csv, id: row_id, answer: prediction}",
                "scoring: accuracy  # ?",
                "accelerators: [NvidiaTeslaT4]  # ?",
                "session_s: 32400",
            ],
        ),
        (  # numbers within a tolerance, answers in another file; a large one comes packed
            {
                "data/test.parquet.csv": b"id,stem\n1,how far is it from here to there?\n",
                "train.csv": zipped({"any": b"id,stem,answer\n1,how?,3.14\n2,what?,-2e5\n"}),
                "sample_submission.csv": b"id,answer,language\n1,0,en\n",
            },
            {"evaluation": "An answer within 5 % of ours is right."},
            [
                "inputs: {id: id, problem: stem, test: test.parquet.csv}",
                "answer: {kind: number, relative: 0.05}  # ? seen: 3.14, -2e5",
                "artefact: {kind: csv, id: id, answer: answer, others: {language: en}}  # ?",
                "scoring: tolerance  # ?",
                "session_s: 32400  # ? no hours are named",
            ],
        ),
        (  # integers through a server, without a sample submission
            {
                "test.csv": b"id,problem,a,b\n1,how many?,2,3\n",
                "reference.csv": b"id,problem,a,b,answer\n1,x,2,3,500000\n",
                "kaggle_evaluation/which_inference_server.py": b"class WhichInferenceServer: pass\n",
            },
            {"code": "GPU Notebooks run for 5 hours on an H100."},
            [
                "answer: {kind: integer, low: 0, high: 500000}",
                "artefact: {kind: server, server: which_inference_server.WhichInferenceServer}\n",
                "session_s: 18000\n",
            ],
        ),
        ({}, {}, ["inputs: {id: id, problem: problem}  # ? no test file", "kind: text"]),
    ],
)
def test_a_draft_has_what_the_pages_and_the_data_say_and_marks_the_rest(
    kaggle, tmp_path, monkeypatch, files, pages, lines
):
    monkeypatch.chdir(tmp_path)
    kaggle.competitions["which-is-it"] = {"about": ABOUT, "pages": pages, "files": files}
    address = "https://www.kaggle.com/competitions/which-is-it/overview"
    done = here("competition", "new", address)
    text = (tmp_path / "which-is-it.yaml").read_text()
    assert done.returncode == 0 and "lines are marked # ?" in done.stdout, done.stderr
    assert all(line in text for line in lines), text
    assert read_competition(tmp_path / "which-is-it.yaml").slug == "which-is-it"
    checked = here("competition", "check", "which-is-it.yaml")
    assert checked.returncode == 0 and "not certain yet: the lines with `# ?`" in checked.stdout
    (tmp_path / "which-is-it.yaml").write_text(text.replace("# ?", "#"))
    assert "not certain" not in here("competition", "check", "which-is-it.yaml").stdout
    again = here("competition", "new", "which-is-it")
    assert again.returncode == 2 and "it exists; remove it, or name another file" in again.stderr


def test_an_unknown_competition_and_rules_that_are_not_accepted_are_one_line(kaggle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = here("competition", "new", "no-such-thing")
    assert done.returncode == 2 and "competition no-such-thing: unknown to Kaggle" in done.stderr
    kaggle.competitions["which-is-it"] = {"about": ABOUT, "pages": {}, "files": {"test.csv": b"id,problem\n"}}
    kaggle.faults["DownloadDataFile"] = [(403, "You must accept the rules")]
    done = here("competition", "new", "which-is-it")
    assert done.returncode == 2 and "accept its rules on its page of kaggle.com first" in done.stderr
    assert not list(tmp_path.glob("*.yaml"))
    done = here("competition", "new", "which-is-it", "--dry-run")
    assert done.returncode == 0 and "GetCompetition {" in done.stdout and not list(tmp_path.glob("*.yaml"))
