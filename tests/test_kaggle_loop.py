"""`aimo kaggle`: from a kernel to its score, by Kaggle's own client against a stand-in on loopback."""

import errno
import json
import os
import shutil
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from conftest import ROOT, TINY
from stand_in import AIMO3, CUT, HANG, SUBMISSION

pytest_plugins = ["stand_in"]
KERNEL = "me/aimo-submission"
MODEL = "me/aimo-tiny/transformers/default"


def test_the_loop_from_a_model_to_a_score_joined_with_what_made_it(kaggle, aimo, run_dir, tmp_path):
    from aimo.kaggle import client

    client.add_record("model", model=f"{MODEL}/1", run="runs/before", profile="of a model that was deleted")
    code, out, err = aimo("model", "push", run_dir)
    assert (code, out) == (0, f"model: {MODEL}/1\n"), err
    code, out, err = aimo("push", "submission", "--model", f"{MODEL}/1", "--wait")
    assert code == 0, err
    said = ("pushed me/aimo-submission version 1", "version 1: queued", "running", "complete", "serving")
    assert all(part in out for part in said)
    folder = tmp_path / "output" / "aimo-submission" / "1"
    assert (folder / "submission.parquet").read_bytes() == SUBMISSION
    assert (folder / "run" / "a.txt").read_bytes() == b"a"
    assert (folder / "aimo-submission.log").read_text() == "loading\nserving\ndone\n"
    assert len(kaggle.asked("GetKernelSessionStatus")) == 3
    assert aimo("logs", "submission")[1] == "loading\nserving\ndone\n"
    assert aimo("status", "submission")[1] == f"{KERNEL} version 1: complete\n"
    for name in f"https://www.kaggle.com/code/{KERNEL}/edit", f"code/{KERNEL}":  # its address
        assert aimo("status", name, "--version", 1)[1] == f"{KERNEL} version 1: complete\n"
    code, out, err = aimo("submit", "submission", "--version", "1", "--message", "the first")
    assert (code, out) == (0, "submission 100; see `aimo kaggle scores`\n"), err
    assert kaggle.asked("CreateCodeSubmission")[0].to_dict() == {
        "competitionName": AIMO3,
        "kernelOwner": "me",
        "kernelSlug": "aimo-submission",
        "kernelVersion": 1,
        "fileName": "submission.parquet",
        "submissionDescription": "the first",
    }
    out = aimo("scores", f"https://www.kaggle.com/competitions/{AIMO3}/overview")[1]
    row = next(line for line in out.splitlines() if " 100 " in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")][1:]
    assert cells == ["100", "41.5", "", "", KERNEL, "1", str(run_dir), "tiny", "the first", ""]


@pytest.mark.parametrize("place, prefix", [("", "https://www.kaggle.com/models/"), ("models/me/", "")])
def test_a_kernel_is_pushed_as_its_metadata_say_with_the_model_named_in_either_layout(
    kaggle, aimo, tmp_path, place, prefix
):
    folder = tmp_path / "kernel"
    shutil.copytree(ROOT / "kernels/submission", folder)
    notebook, old = folder / "aimo-submission.ipynb", "aimo-model/transformers/default/1"
    inner = "/inner" if place else ""
    text = notebook.read_text().replace(f"/kaggle/input/{old}", f"/kaggle/input/{place}{old}{inner}")
    notebook.write_text(text)
    code, _, err = aimo("push", folder, "--model", f"{prefix}you/other/transformers/big/7", "--no-run")
    assert code == 0, err
    (request,) = kaggle.asked("SaveKernel")
    metadata = json.loads((folder / "kernel-metadata.json").read_text())
    assert (request.slug, request.new_title) == (KERNEL, metadata["title"])
    assert (request.enable_gpu, request.enable_internet, request.is_private) == (True, False, True)
    assert request.machine_shape == metadata["machine_shape"]
    assert request.kernel_data_sources == ["me/aimo-wheels"]
    assert request.competition_data_sources == [AIMO3]
    assert request.model_data_sources == ["you/other/transformers/big/7"]
    assert f'\\"/kaggle/input/other/transformers/big/7{inner}\\"' in request.text
    assert "aimo-model" not in request.text
    assert request.kernel_execution_type.name == "QUICK_SAVE"


def test_the_second_version_of_a_model_is_compared_byte_for_byte_with_what_kaggle_has(
    kaggle, aimo, refused, run_dir
):
    assert aimo("model", "push", run_dir)[0] == 0
    kaggle.faults["ListModelInstanceVersionFiles"] = [(404, "not yet")]
    code, out, err = aimo("model", "push", run_dir)
    assert (code, out) == (0, f"model: {MODEL}/2\n"), err
    (created,) = kaggle.asked("CreateModel")
    (variation,) = kaggle.asked("CreateModelInstance")
    (version,) = kaggle.asked("CreateModelInstanceVersion")
    card = (TINY / "README.md").read_text()
    assert (created.is_private, created.description, variation.body.overview) == (True, card, card)
    assert variation.body.license_name == "Apache 2.0" and "profile tiny" in version.body.version_notes
    files = {path.name: path.read_bytes() for path in (run_dir / "grpo" / "model").iterdir()}
    assert kaggle.models["me/aimo-tiny"]["default"] == [files, files]
    kept = kaggle.stored
    changed = {"config.json": files["config.json"].replace(b"4", b"5", 1)}
    kaggle.stored = lambda sent: kept(sent) | changed
    assert "config.json has another content on Kaggle" in refused("model", "push", run_dir)
    kaggle.stored = lambda sent: {n: data[:100] for n, data in kept(sent).items() if "json" not in n}
    line = refused("model", "push", run_dir)
    size = (TINY / "model.safetensors").stat().st_size
    assert f"model.safetensors (100 bytes of {size:,})" in line and "config.json (missing)" in line


def test_a_dataset_is_created_then_gets_versions_and_its_sub_folders_arrive(kaggle, aimo, refused, tmp_path):
    folder = tmp_path / "aimo-wheels"
    (folder / "vocabulary").mkdir(parents=True)
    (folder / "vllm-1.whl").write_bytes(b"wheel")
    (folder / "vocabulary" / "o200k.tiktoken").write_bytes(b"words")
    for _ in range(2):
        assert aimo("dataset", "push", folder)[:2] == (0, "dataset: me/aimo-wheels\n")
    sent = {"vllm-1.whl": b"wheel", "vocabulary/o200k.tiktoken": b"words"}
    assert kaggle.datasets["me/aimo-wheels"] == [sent, sent]
    assert len(kaggle.asked("CreateDataset")) == len(kaggle.asked("CreateDatasetVersion")) == 1
    assert "--name" in refused("dataset", "push", folder, "--name", "tiny")


def test_a_competition_s_data_lie_where_the_local_gateway_finds_them(kaggle, aimo, tmp_path):
    inputs = tmp_path / "input"
    for _ in range(2):  # the second time over what is there
        code, out, err = aimo("data", "aimo3", "--to", inputs)
        assert code == 0 and f"KAGGLE_INPUT={inputs}" in out, err
    assert (inputs / AIMO3 / "test.csv").read_text().startswith("id,problem")
    assert (inputs / AIMO3 / "kaggle_evaluation/aimo_3_inference_server.py").is_file()
    assert [path.name for path in inputs.iterdir()] == [AIMO3]


@pytest.mark.parametrize(
    "command, names",
    [
        ("login-check", ["GetAcceleratorQuotaStatistics"]),
        ("data aimo3", ["DownloadDataFiles"]),
        ("push submission --wait", ["SaveKernel"]),
        ("status submission", ["GetKernel", "GetKernelSessionStatus"]),
        ("output submission", ["GetKernel", "ListKernelFiles"]),
        ("model push RUN", ["GetModelInstance", "PUT model.safetensors", "CreateModelInstanceVersion"]),
        ("dataset push RUN --name aimo-data", ["ListDatasetFiles", "CreateDatasetVersion"]),
        ("submit submission --message first --version 2", ["GetSubmissionLimits", "CreateCodeSubmission"]),
        ("scores", ["ListSubmissions"]),
    ],
)
def test_a_dry_run_prints_each_request_and_sends_none(kaggle, aimo, words, command, names):
    code, out, err = aimo(*words(command), "--dry-run")
    assert code == 0, err
    said = iter(out.splitlines())
    for name in names:
        assert any(line.startswith(f"{name} {{") or line.startswith(f"{name},") for line in said), (name, out)
    assert {name for name, _ in kaggle.requests} == {"IntrospectToken"}
    assert not list(Path(tempfile.gettempdir()).rglob("*.json"))  # nothing that a real push would go on with


def test_a_limit_is_waited_for_with_the_time_shown(kaggle, aimo, monkeypatch):
    from aimo.kaggle import client

    slept = []
    monkeypatch.setattr(client.time, "sleep", slept.append)
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    times = [{"Retry_After": "7"}, {"Retry_After": date}, {"Retry_After": "soon"}, {}]
    kaggle.faults["SaveKernel"] = [(429, "Too many requests", more) for more in times]
    code, _, err = aimo("push", "submission")
    assert code == 0 and "rate limit of Kaggle: waiting 7 s, until " in err and len(err.splitlines()) == 4
    assert slept == [7, pytest.approx(90, abs=5), client.LIMITED_PAUSE_S, client.LIMITED_PAUSE_S]
    assert len(kaggle.asked("SaveKernel")) == 5 and len(kaggle.kernels[KERNEL]) == 1


def test_what_changes_nothing_is_asked_again_and_what_may_have_arrived_is_not(
    kaggle, aimo, refused, monkeypatch
):
    from aimo.kaggle import client

    aimo("push", "submission")
    kaggle.faults["GetKernelSessionStatus"] = [(500, "Internal"), CUT, (503, "Busy")]
    assert aimo("status", "submission")[0] == 0 and len(kaggle.asked("GetKernelSessionStatus")) == 4
    monkeypatch.setattr(client, "TIMEOUT_S", (0.3, 0.3))
    kaggle.faults["GetKernelSessionStatus"] = [HANG]  # an answer that never comes
    assert aimo("status", "submission")[0] == 0 and len(kaggle.asked("GetKernelSessionStatus")) == 6
    kaggle.faults["SaveKernel"] = [CUT]
    assert "whether it arrived is not known" in refused("push", "submission")
    kaggle.faults["SaveKernel"] = [(500, "Internal")]
    assert "Kaggle failed (500: Internal)" in refused("push", "submission")
    assert len(kaggle.asked("SaveKernel")) == 3


def test_a_run_that_fails_ends_with_exit_code_1_and_the_end_of_its_log(kaggle, aimo):
    kaggle.script = {
        "statuses": ["QUEUED", "RUNNING", "ERROR"],
        "failure": "Your notebook\ntried to allocate more memory than is available.",
        "log": [f"line {i}" for i in range(100)] + ["torch.OutOfMemoryError"],
    }
    code, out, err = aimo("push", "submission", "--wait")
    assert code == 1 and "ended as error: Your notebook tried to allocate more memory" in err
    end = out.partition("the last lines of its log:\n")[2].splitlines()
    assert len(end) == 20 and end[-1] == "torch.OutOfMemoryError"
    assert out.count("line 50\n") == 1  # the log was also followed, once


def test_a_run_that_never_starts_is_given_up_and_stays_queued(kaggle, refused, monkeypatch):
    from aimo.kaggle import versions

    kaggle.script = {"statuses": ["QUEUED"]}
    monkeypatch.setattr(versions, "START_WITHIN_S", 0.05)
    assert "has not started within" in refused("push", "submission", "--wait")
    assert kaggle.kernels[KERNEL][0].status() == "QUEUED"


def test_another_machine_than_asked_for_is_told_and_a_log_that_breaks_off_is_gone_on_with(kaggle, aimo):
    kaggle.script = {"statuses": ["RUNNING", "RUNNING", "RUNNING", "COMPLETE"], "machine": "NvidiaTeslaP100"}
    kaggle.faults["GET log"] = [CUT]
    code, out, _ = aimo("push", "submission", "--wait")
    assert code == 0 and "runs with machine_shape NvidiaTeslaP100, not Nvidia" in out
    assert out.count("loading\n") == out.count("done\n") == 1, "a line comes twice"


def test_an_input_that_kaggle_does_not_know_is_an_error_not_a_run_without_it(kaggle, refused):
    kaggle.invalid = {"invalidModelSources": ["me/aimo-model/transformers/default/1"]}
    assert "model me/aimo-model/transformers/default/1" in refused("push", "submission", "--wait")
    assert not kaggle.asked("GetKernelSessionStatus")


def raise_enospc(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_output_is_there_when_all_of_it_has_come(kaggle, aimo, refused, monkeypatch, tmp_path):
    """Errors in its place, connections that break, and a disk that fills."""
    from aimo.kaggle import client

    aimo("push", "submission")
    folder = tmp_path / "output" / "aimo-submission" / "1"
    partial = folder.with_name("1.partial")
    kaggle.faults["GET submission.parquet"] = [(403, "Expired")]
    assert "HTTPError: 403" in refused("output", "submission")
    kaggle.faults["GET submission.parquet"] = [(500, "Internal", {"code": 200})]
    assert "not whole: submission.parquet; give the same command again" in refused("output", "submission")
    assert not (partial / "submission.parquet").exists() and not folder.exists()
    with monkeypatch.context() as full:
        full.setattr(client.Api, "download_file", raise_enospc)
        assert "No space left on device" in refused("output", "submission") and not folder.exists()
    kaggle.faults["GET submission.parquet"] = [CUT, CUT]
    assert aimo("output", "submission")[:2] == (0, f"output: {folder}\n")
    assert (folder / "submission.parquet").read_bytes() == SUBMISSION and not partial.exists()


def test_an_output_that_lies_elsewhere_is_refused(kaggle, aimo, refused, tmp_path):
    kaggle.script = {"files": {"../../up.txt": b"up"}}
    aimo("push", "submission")
    assert "Refusing to download '../../up.txt'" in refused("output", "submission")
    assert not list(tmp_path.rglob("up.txt"))


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_a_file_that_does_not_arrive_makes_no_version_and_the_next_call_sends_only_that(
    kaggle, aimo, refused, run_dir, monkeypatch
):
    from aimo.kaggle import client

    with monkeypatch.context() as pressed:
        pressed.setattr(client.Api, "upload_complete", interrupt)
        assert "interrupted; give the same command again" in refused("model", "push", run_dir)
    kaggle.faults["PUT model.safetensors"] = [(400, "Bad upload")]
    assert "model.safetensors; no version was made" in refused("model", "push", run_dir)
    assert not kaggle.asked("CreateModelInstance")
    kaggle.faults["PUT model.safetensors"] = [(503, "Busy"), CUT]  # which go on where they broke
    assert aimo("model", "push", run_dir)[1].endswith(f"model: {MODEL}/1\n")
    sent = Counter(request.name for request in kaggle.asked("StartBlobUpload"))
    assert {name for name, times in sent.items() if times > 1} == {"model.safetensors"}


def test_after_ctrl_c_a_version_goes_on_and_the_line_says_how_to_get_its_output(
    kaggle, aimo, refused, monkeypatch
):
    from aimo.kaggle import versions

    with monkeypatch.context() as pressed:
        pressed.setattr(versions, "ask_state", interrupt)
        line = refused("push", "submission", "--wait")
    assert f"interrupted; {KERNEL} version 1 goes on at Kaggle: `aimo kaggle status {KERNEL}`" in line
    assert aimo("output", KERNEL)[0] == 0 and len(kaggle.kernels[KERNEL]) == 1


def test_only_a_complete_version_with_answers_is_submitted(kaggle, aimo, refused):
    message = ["--message", "m"]
    for script in (
        {"statuses": ["RUNNING"]},
        {"statuses": ["COMPLETE"], "files": {"notes.txt": b""}},
        {"statuses": ["COMPLETE"], "files": {"submission.zip": b""}},
    ):
        kaggle.script = script
        aimo("push", "submission")
    assert "version 1 is running, not complete" in refused("submit", "submission", "--version", "1", *message)
    assert "no submission.parquet, only notes.txt" in refused("submit", KERNEL, "--version", "2", *message)
    kaggle.left = 0
    assert "no submission is left (5 made today)" in refused("submit", "submission", *message)
    kaggle.left = 1
    assert not kaggle.asked("CreateCodeSubmission")
    assert aimo("submit", "aimo-submission", *message)[0] == 0
    (sent,) = kaggle.asked("CreateCodeSubmission")
    assert (sent.kernel_version, sent.file_name) == (3, "submission.zip")


@pytest.mark.parametrize("end, told", [("COMPLETE", "public score 41.5"), ("ERROR", "no such column")])
def test_a_submission_is_waited_for(kaggle, aimo, end, told):
    states, scored = ["PENDING", end], {"publicScore": "41.5", "errorDescription": "no such column"}
    kaggle.GetSubmission = lambda request: scored | {"ref": request.ref, "status": states.pop(0)}
    aimo("push", "submission", "--wait")
    code, out, err = aimo("submit", "submission", "--message", "m", "--wait")
    assert code == 2 * (end == "ERROR") and told in out + err and not states
