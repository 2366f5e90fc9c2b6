"""What a user of `aimo kaggle` can get wrong, or Kaggle can refuse: one line with the remedy, exit code 2."""

import pytest
import requests

from aimo.errors import AimoError

pytest_plugins = ["stand_in"]
COMMANDS = {
    "login-check": "GetAcceleratorQuotaStatistics",
    "data aimo3": "DownloadDataFiles",
    "push submission": "SaveKernel",
    "status me/some-kernel": "GetKernel",
    "logs me/some-kernel": "GetKernel",
    "output me/some-kernel": "GetKernel",
    "model push RUN": "GetModelInstance",
    "dataset push RUN --name aimo-data": "ListDatasetFiles",
    "submit me/some-kernel --message m": "GetKernel",
    "scores": "ListSubmissions",
}
ANSWERS = {
    401: "Kaggle does not accept the token (Say 401): make another at https://www.kaggle.com/settings",
    403: "not open to this account, or no such thing (Say 403); check the name",
    404: "unknown to Kaggle (Say 404); check the name",
    409: "the name is taken (Say 409); take another",
    500: "Kaggle failed (500: Say 500); try again in some minutes",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_refusal_is_one_line_that_names_the_thing_and_the_remedy(kaggle, refused, request, command):
    things = ["competition ai-math", "kernel me/", "model me/", "dataset me/", "StartBlobUpload", "Quota"]
    run = str(request.getfixturevalue("run_dir")) if "RUN" in command else ""
    for code, said in ANSWERS.items():
        kaggle.faults[COMMANDS[command]] = [(code, f"Say {code}")] * 8
        if run and code in (403, 404):  # Kaggle has nothing of that name: it is created
            kaggle.faults["StartBlobUpload"] = [(code, f"Say {code}")]
        line = refused(*[run if part == "RUN" else part for part in command.split()])
        assert said in line
        assert code == 401 or any(thing in line for thing in things)


def test_without_a_token_the_line_says_where_to_get_one(kaggle, refused, monkeypatch):
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    assert "there is no Kaggle token: make one at https://www.kaggle.com/settings" in refused("login-check")
    assert kaggle.requests == []


@pytest.mark.parametrize("name", ["access_token", "kaggle.json"])
def test_a_token_file_that_others_can_read_is_refused_until_it_is_closed(
    kaggle, aimo, refused, monkeypatch, tmp_path, name
):
    from aimo.kaggle import client

    monkeypatch.delenv("KAGGLE_API_TOKEN")
    path = tmp_path / ".kaggle" / name
    path.parent.mkdir()
    path.write_text("good-token" if name == "access_token" else '{"username": "me", "key": "good"}')
    monkeypatch.setattr(client.KaggleApi, "config", str(path.parent / "kaggle.json"))
    path.chmod(0o644)
    assert f"token file {path} is open to others (mode 644): run `chmod 600 {path}`" in refused("login-check")
    assert kaggle.requests == []
    path.chmod(0o600)
    code, out, err = aimo("login-check")
    assert (code, out.splitlines()[0]) == (0, f"signed in as me, with {path}"), err


def test_the_login_check_tells_what_is_left_of_the_gpu_time(kaggle, aimo):
    code, out, _ = aimo("login-check")
    assert code == 0 and "signed in as me, with KAGGLE_API_TOKEN" in out
    assert "GPU: 20.0 of 30.0 hours left until 2026-11-28" in out


def test_a_token_that_kaggle_does_not_know_is_named_by_where_it_is(kaggle, refused, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "old-token")
    assert "Kaggle does not accept the token in KAGGLE_API_TOKEN" in refused("login-check")


def test_a_competition_s_rules_are_to_be_accepted_first(kaggle, refused):
    kaggle.faults["DownloadDataFiles"] = [
        (403, "You must accept this competition's rules before downloading")
    ]
    line = refused("data", "aimo3")
    assert "competition ai-mathematical-olympiad-progress-prize-3: accept its rules on its page" in line
    assert "competition titanick: unknown to Kaggle" in refused("data", "titanick")


def test_a_quota_that_is_used_up_is_not_waited_for(kaggle, refused, run_dir):
    kaggle.invalid = {"error": "Maximum weekly GPU quota of 30.00 hours reached"}
    line = refused("push", "submission")
    assert "Maximum weekly GPU quota of 30.00 hours reached; wait until it is renewed: `aimo kaggle" in line
    kaggle.CreateDataset = lambda request: {"error": "Private dataset quota of 107.37 GB exceeded"}
    line = refused("dataset", "push", run_dir / "grpo", "--name", "aimo-data")
    assert "107.37 GB exceeded; delete what you no longer need on kaggle.com" in line
    kaggle.invalid = {}
    kaggle.faults["SaveKernel"] = [(429, "Daily limit", {"Retry_After": "86400"})]
    assert "a limit of Kaggle's is used up (Daily limit)" in refused("push", "submission")


def test_a_name_that_is_taken_is_told_with_what_kaggle_says(kaggle, refused, run_dir):
    kaggle.faults["CreateModel"] = [(409, "A model with this slug exists")]
    assert "model me/aimo-tiny: the name is taken" in refused("model", "push", run_dir)
    kaggle.CreateModelInstance = lambda request: {"error": "Slug is\nalready in use"}
    assert "Kaggle refuses it: Slug is already in use" in refused("model", "push", run_dir)


def test_an_error_sent_as_a_success_is_an_error(kaggle, refused):
    kaggle.faults["SaveKernel"] = [(404, "No such kernel", {"code": 200})]
    assert "unknown to Kaggle (No such kernel)" in refused("push", "submission")


def test_a_page_in_place_of_an_answer_is_told_apart_from_kaggle(kaggle, refused):
    kaggle.ListSubmissions = lambda request: b"<html>Sign in to the hotel's network</html>"
    assert "what answers is not Kaggle" in refused("scores")
    kaggle.DownloadDataFiles = kaggle.ListSubmissions
    assert "is no zip file; give the same command again" in refused("data", "aimo3")


def test_no_network_is_one_line(kaggle, refused):
    kaggle.close()
    assert "the connection to Kaggle broke" in refused("login-check")


@pytest.mark.parametrize(
    "command, said",
    [
        ("push nothing", "take a folder of kernels/"),
        ("push submission --model aimo", "write OWNER/MODEL/FRAMEWORK/VARIATION/VERSION"),
        ("model push nothing", "there is no nothing/profile.yaml; name a folder of runs/"),
        ("model push RUN --to me/model", "write OWNER/MODEL/FRAMEWORK/VARIATION"),
        ("model push RUN --to me/model/pytorches/x", "write OWNER/MODEL/FRAMEWORK/VARIATION"),
        ("dataset push nothing", "no such folder"),
        ("status nothing", "kernel me/nothing: unknown to Kaggle"),
        ("submit nothing --message m", "kernel me/nothing: unknown to Kaggle"),
    ],
)
def test_a_name_of_nothing_is_told_with_what_to_name(kaggle, refused, request, command, said):
    run = str(request.getfixturevalue("run_dir")) if "RUN" in command else ""
    assert said in refused(*[run if part == "RUN" else part for part in command.split()])


def test_a_run_without_a_model_that_can_be_loaded_is_not_pushed(kaggle, refused, run_dir):
    (run_dir / "grpo" / "model" / "model.safetensors").unlink()
    line = refused("model", "push", run_dir)
    assert "grpo/model" in line and not kaggle.asked("StartBlobUpload")


def test_every_error_of_the_client_is_for_the_user():
    from aimo.kaggle.client import explain

    for code in (400, 402, 418, 451, 502):
        response = requests.Response()
        response.status_code = code
        assert isinstance(explain(requests.HTTPError("no\nreason", response=response)), AimoError)
