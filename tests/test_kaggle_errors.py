"""What a user of `aimo kaggle` can get wrong, or Kaggle can refuse: one line with the remedy, exit code 2."""

import json

import pytest
from stand_in import zipped

pytest_plugins = ["stand_in"]
COMMANDS = {
    "data aimo3": "DownloadDataFiles",
    "push submission": "SaveKernel",
    "output me/some-kernel": "GetKernel",
    "model push RUN": "GetModelInstance",
    "dataset push RUN --name aimo-data": "ListDatasetFiles",
}
ANSWERS = {
    402: "Kaggle refuses it (402: Say 402)",
    401: "Kaggle does not accept the token (Say 401): make another at https://www.kaggle.com/settings",
    403: "not open to this account, or no such thing (Say 403); check the name",
    404: "unknown to Kaggle (Say 404); check the name",
    409: "the name is taken (Say 409); take another",
    500: "Kaggle failed (500: Say 500); try again in some minutes",
}
THINGS = ["competition ai-math", "kernel me/", "model me/", "dataset me/", "StartBlobUpload"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_refusal_is_one_line_that_names_the_thing_and_the_remedy(kaggle, refused, words, command):
    for code, said in ANSWERS.items():
        kaggle.faults[COMMANDS[command]] = [(code, f"Say {code}")] * 8
        if "RUN" in command and code in (403, 404):  # Kaggle has nothing of that name: it is created
            kaggle.faults["StartBlobUpload"] = [(code, f"Say {code}")]
        line = refused(*words(command))
        assert said in line and any(thing in line for thing in THINGS)


PATH, ODD = "KAGGLE_API_TOKEN is a path, and there is no such file", "a character that no token has"
PAIR = json.dumps({"username": "me", "key": "good"})


@pytest.mark.parametrize(
    "place, text, told",
    [
        ("KAGGLE_API_TOKEN", "", "there is no Kaggle token: make one at https://www.kaggle.com/settings"),
        ("KAGGLE_API_TOKEN", "/no/such/file", PATH),
        ("KAGGLE_API_TOKEN", "~/token", PATH),
        ("KAGGLE_API_TOKEN", "old-token", "Kaggle does not accept the token in KAGGLE_API_TOKEN"),
        ("KAGGLE_API_TOKEN", "“good-token”", ODD),
        ("KAGGLE_KEY", "good token", ODD),
        ("access_token", "good-token\nother", ODD),
        ("kaggle.json", '{"username": "me", "key": "“good-token”"}', ODD),
        ("kaggle.json", '{"key": 5}', ODD),
        ("kaggle.json", "{", "it is not JSON"),
        ("KAGGLE_API_TOKEN", "  'good-token' \n", None),
        ("access_token", "good-token\r\n", None),
        ("kaggle.json", PAIR, None),
    ],
)
def test_a_token_is_found_or_its_place_is_named_and_it_is_never_shown(
    kaggle, aimo, refused, monkeypatch, tmp_path, place, text, told
):
    from aimo.kaggle import client

    monkeypatch.delenv("KAGGLE_API_TOKEN")
    monkeypatch.setattr(client.KaggleApi, "config", str(tmp_path / ".kaggle" / "kaggle.json"))
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    if place.islower():
        path = tmp_path / ".kaggle" / place
        path.parent.mkdir()
        path.write_text(text)
        path.chmod(0o644)
        assert f"token file {path} is open to others (mode 644): run `chmod 600" in refused("login-check")
        path.chmod(0o600)
    else:
        monkeypatch.setenv(place, text)
    if told:
        line = refused("login-check")
        assert told in line and (place in line or not text) and "good" not in line
        assert kaggle.requests == [] or "old-token" in text
        return
    code, out, err = aimo("login-check")
    assert code == 0 and "signed in as me, with" in out and place in out, err
    assert "GPU: 20.0 of 30.0 hours left until 2026-11-28" in out


def test_a_quota_that_is_used_up_is_not_waited_for(kaggle, refused, run_dir):
    kaggle.invalid = {"error": "Maximum weekly GPU quota of 30.00 hours reached"}
    line = refused("push", "submission")
    assert "Maximum weekly GPU quota of 30.00 hours reached; wait until it is renewed: `aimo kaggle" in line
    kaggle.CreateDataset = lambda request: {"error": "Private dataset\nquota of 107.37 GB exceeded"}
    line = refused("dataset", "push", run_dir / "grpo", "--name", "aimo-data")
    assert "dataset quota of 107.37 GB exceeded; delete what you no longer need on kaggle.com" in line
    kaggle.faults["SaveKernel"] = [(429, "Daily limit", {"Retry_After": "86400"})]
    assert "a limit of Kaggle's is used up (Daily limit)" in refused("push", "submission")


def test_what_is_no_answer_of_kaggle_s_is_an_error(kaggle, refused):
    kaggle.faults["SaveKernel"] = [(404, "No such kernel", {"code": 200})]  # sent as a success
    assert "unknown to Kaggle (No such kernel)" in refused("push", "submission")
    kaggle.ListSubmissions = lambda request: b"<html>Sign in to the hotel's network</html>"
    assert "what answers is not Kaggle" in refused("scores")
    kaggle.faults["DownloadDataFiles"] = [(403, "You must accept this competition's rules")]
    assert "-prize-3: accept its rules on its page of kaggle.com first" in refused("data", "aimo3")
    kaggle.close()
    assert "the connection to Kaggle broke" in refused("login-check")


ZIP = zipped({"a": b"data", "b": b"data"})
ENCRYPTED = bytearray(ZIP)
ENCRYPTED[6] |= 1  # the flag of the file, and that of the archive's list
ENCRYPTED[ZIP.index(b"PK\1\2") + 8] |= 1
BROKEN = {"empty": zipped({}), "encrypted": bytes(ENCRYPTED), "a page": b"<html>", "cut off": ZIP[:-30]}


@pytest.mark.parametrize("sent", BROKEN.values(), ids=BROKEN)
def test_a_download_that_cannot_be_unpacked_leaves_what_was_there(kaggle, refused, aimo, tmp_path, sent):
    inputs = tmp_path / "input"
    assert aimo("data", "aimo3", "--to", inputs)[0] == 0
    before = sorted(path.name for path in inputs.rglob("*"))
    kaggle.DownloadDataFiles = lambda request: sent
    assert "give the same command again" in refused("data", "aimo3", "--to", inputs)
    assert sorted(path.name for path in inputs.rglob("*")) == before


@pytest.mark.parametrize("link", ["/etc/passwd", "../config.json", "nowhere"])
def test_a_link_out_of_a_folder_is_not_uploaded(kaggle, refused, run_dir, link):
    folder = run_dir / "grpo" / "model"
    (folder / "linked.txt").symlink_to(link)
    line = refused("dataset", "push", folder, "--name", "aimo-data")
    assert f"linked.txt is a link to {link}, and is not pushed" in line
    refused("model", "push", run_dir)
    assert not kaggle.asked("StartBlobUpload")


def test_no_error_shows_a_token_or_a_signed_address(kaggle, aimo, refused, monkeypatch):
    from aimo.inference.errors import redact

    signed = "https://storage.example/a.bin?X-Goog-Signature=abc123&X-Goog-Date=5"
    for text in (f"404 for url: {signed}", f"exceeded with url: /a.bin?{signed.split('?')[1]} (Caused by"):
        assert "abc123" not in redact(text) and "a.bin?…" in redact(text)
    for secret in ("hf_abcdefghijklmnop", "KGAT_0123456789abcdef", "eyJhbGciOi.eyJzdWIiOi.abc-_123"):
        assert secret not in redact(f"header 'Bearer {secret}\\n'") + redact(f"token={secret}")
    monkeypatch.setenv("KAGGLE_KEY", "0123456789abcdef")
    assert "0123456789abcdef" not in redact("me:0123456789abcdef") and "//…@" in redact("http://me:pw@proxy/")
    aimo("push", "submission")
    kaggle.faults["GET submission.parquet"] = [(403, "Expired")]
    line = refused("output", "submission")
    assert "/submission.parquet?…" in line and "signature" not in line


@pytest.mark.parametrize(
    "command, said",
    [
        ("data ../up", "or the slug of its address"),
        ("data aimo9/../../x", "or the slug of its address"),
        ("push nothing", "take a folder of kernels/"),
        ("push submission --model aimo", "write OWNER/MODEL/FRAMEWORK/VARIATION/VERSION"),
        ("push submission --wait --no-run", "--wait goes without --no-run"),
        ("model push nothing", "there is no nothing/profile.yaml; name a folder of runs/"),
        ("model push RUN --to me/model", "write OWNER/MODEL/FRAMEWORK/VARIATION"),
        ("model push RUN --to me/model/pytorches/x", "write OWNER/MODEL/FRAMEWORK/VARIATION"),
        ("dataset push nothing", "no such folder"),
        ("submit nothing --message m", "kernel me/nothing: unknown to Kaggle"),
        ("data titanick", "competition titanick: unknown to Kaggle"),
    ],
)
def test_a_name_of_nothing_is_told_with_what_to_name(kaggle, refused, words, command, said):
    assert said in refused(*words(command))


def test_an_empty_folder_is_no_dataset(kaggle, refused, tmp_path):
    (tmp_path / "nothing-in-it").mkdir()
    assert "the folder is empty" in refused("dataset", "push", tmp_path / "nothing-in-it")
    assert not kaggle.asked("CreateDataset")


def test_a_run_without_a_model_that_can_be_loaded_is_not_pushed(kaggle, refused, run_dir):
    (run_dir / "grpo" / "model" / "model.safetensors").unlink()
    assert "grpo/model" in refused("model", "push", run_dir) and not kaggle.asked("StartBlobUpload")
