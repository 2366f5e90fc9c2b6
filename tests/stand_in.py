"""A stand-in for Kaggle's API on loopback, for the real client.

Requests are read with the client's own types, field by field. `faults` holds, for a request's name, what
happens in place of its next answers: a status with a message and headers, CUT or HANG.
"""

import importlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import zipfile
from base64 import b64encode
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from conftest import TINY, here

from aimo import config

CUT, HANG = "cut", "hang"
AIMO3 = "ai-mathematical-olympiad-progress-prize-3"
DATA = {"test.csv": "id,problem\na,$1+1$\n", "kaggle_evaluation/aimo_3_inference_server.py": ""}
TOKENS = "Bearer good-token", f"Basic {b64encode(b'me:good').decode()}"
SUBMISSION = b"PAR1 of answers"


def zipped(files):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


def typed(service: str, name: str, body: dict):
    """A request's body as the client's type. Fails on an unknown field, a wrong type or a changed value."""
    package, _, service = service.partition(".")  # kernels.KernelsApiService
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", service).lower()
    module = importlib.import_module(f"kagglesdk.{package}.types.{snake}")
    kind = getattr(module, f"Api{name}Request", None) or getattr(module, f"{name}Request")
    read = kind.from_dict(body)
    request = kind()
    for field in kind._fields:
        if field.json_name in body:
            setattr(request, field.field_name, getattr(read, field.field_name))
    assert request.to_dict() == body, f"{name}: {body} is read as {request.to_dict()}"
    return request


def sizes(files, key="size"):
    return [{"name": name, key: len(content)} for name, content in files.items()]


class Version:
    """One version of a kernel."""

    def __init__(self, request, script):
        self.request, self.failure = request, script.get("failure", "")
        self.statuses = list(script.get("statuses", ["QUEUED", "RUNNING", "COMPLETE"]))
        self.log = list(script.get("log", ["loading", "serving", "done"]))
        self.files = script.get("files", {"submission.parquet": SUBMISSION, "run/a.txt": b"a"})
        self.machine = script.get("machine", request.machine_shape)

    def status(self):
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]


class Kaggle:
    """The state behind the API, one method for each request."""

    def __init__(self):
        self.requests, self.wrong, self.submissions = [], [], []
        self.kernels, self.blobs, self.models, self.datasets = {}, {}, {}, {}
        self.competitions = {AIMO3: {"files": DATA}}  # what each says `about` itself, its pages and its files
        self.faults = defaultdict(list)
        self.script, self.invalid = {}, {}  # of the next version of a kernel
        self.left, self.user = 5, "me"
        self.closing = threading.Event()
        self.http = Server(("127.0.0.1", 0), Handler)
        self.http.kaggle = self
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    def asked(self, name):
        return [request for asked, request in self.requests if asked == name]

    def version(self, request):
        label = request.version_label or "v0"
        assert label[0] == "v", "Kaggle knows no version by the bare number"
        return self.kernels[f"{request.user_name}/{request.kernel_slug}"][int(label[1:]) - 1]

    def IntrospectToken(self, request):
        return {"active": request.token.startswith("good"), "username": self.user}

    def GetAcceleratorQuotaStatistics(self, request):
        hours = {"timeUsed": "36000s", "totalTimeAllowed": "108000s"}
        return {"gpuQuota": hours, "quotaRefreshTime": "2026-11-28T00:00:00Z"}

    def SaveKernel(self, request):
        versions = self.kernels.setdefault(request.slug, [])
        versions.append(Version(request, self.script))
        return {"ref": request.slug, "versionNumber": len(versions)} | self.invalid

    def GetKernel(self, request):
        version = self.version(request)
        asked = version.request.to_dict() | {"machineShape": version.machine}
        kept = ("competitionDataSources", "enableGpu", "enableInternet", "machineShape")
        metadata = {key: asked[key] for key in kept if key in asked}
        return {"metadata": metadata | {"currentVersionNumber": len(self.kernels[version.request.slug])}}

    def GetKernelSessionStatus(self, request):
        version = self.version(request)
        return {"status": version.status(), "failureMessage": version.failure}

    def ListKernelFiles(self, request):
        return self.page(request, "files", sizes(self.version(request).files))

    def ListKernelSessionOutput(self, request):
        found = self.version(request).files
        files = [{"url": self.signed(name, data), "fileName": name} for name, data in found.items()]
        log = [{"stream_name": "stdout", "data": f"{line}\n"} for line in self.version(request).log]
        return self.page(request, "files", files) | {"log": json.dumps(log)}

    def signed(self, name, data):
        """The address of a file, as Kaggle gives one."""
        place = f"/file/{len(self.blobs)}/{name.split('/')[-1]}"
        self.blobs[place] = {"data": data}
        return f"{self.url}{place}?X-signature=5"

    def page(self, request, key, rows, size=2):
        """Two rows of a list, as Kaggle never sends a long one whole."""
        start = int(request.page_token or 0)
        more = {"nextPageToken": str(start + size)} if start + size < len(rows) else {}
        return {key: rows[start : start + size]} | more

    def StartBlobUpload(self, request):
        token = f"blob-{len(self.blobs)}"
        self.blobs[token] = {"name": request.name, "size": request.content_length, "data": b""}
        return {"token": token, "createUrl": f"{self.url}/upload/{token}"}

    def stored(self, files):
        """What Kaggle keeps of uploaded files: archives are unpacked."""
        kept = {blob["name"]: blob["data"] for blob in (self.blobs[file.token] for file in files)}
        for name in [name for name in kept if name.endswith(".zip")]:
            with zipfile.ZipFile(io.BytesIO(kept.pop(name))) as archive:
                paths = [path for path in archive.namelist() if path[-1] != "/"]
                kept |= {f"{name.removesuffix('.zip')}/{path}": archive.read(path) for path in paths}
        return kept

    def GetModel(self, request):
        return {"slug": self.models[f"{request.owner_slug}/{request.model_slug}"] and request.model_slug}

    def CreateModel(self, request):
        self.models[f"{request.owner_slug}/{request.slug}"] = {"": request}
        return {"id": 1}

    def variation(self, request):
        return self.models[f"{request.owner_slug}/{request.model_slug}"][request.instance_slug]

    def GetModelInstance(self, request):
        return {"slug": request.instance_slug, "versionNumber": len(self.variation(request))}

    def CreateModelInstance(self, request):
        model = self.models[f"{request.owner_slug}/{request.model_slug}"]
        model[request.body.instance_slug] = [self.stored(request.body.files)]
        return {"id": 2}

    def CreateModelInstanceVersion(self, request):
        self.variation(request).append(self.stored(request.body.files))
        return {"id": 3}

    def ListModelInstanceVersionFiles(self, request):
        return self.page(request, "files", sizes(self.variation(request)[request.version_number - 1]))

    def DownloadModelInstanceVersion(self, request):
        return self.variation(request)[request.version_number - 1][request.path]

    def ListDatasetFiles(self, request):
        files = self.datasets[f"{request.owner_slug}/{request.dataset_slug}"][-1]
        return self.page(request, "datasetFiles", sizes(files, "totalBytes"))

    def CreateDataset(self, request):
        self.datasets[f"{request.owner_slug}/{request.slug}"] = [self.stored(request.files)]
        return {"status": "ok"}

    def CreateDatasetVersion(self, request):
        self.datasets[f"{request.owner_slug}/{request.dataset_slug}"].append(self.stored(request.body.files))
        return {"status": "ok"}

    def GetCompetition(self, request):
        return {"ref": request.competition_name} | self.competitions[request.competition_name]["about"]

    def ListCompetitionPages(self, request):
        pages = self.competitions[request.competition_name]["pages"]
        return {"pages": [{"name": name, "content": content} for name, content in pages.items()]}

    def ListDataFiles(self, request):
        files = self.competitions[request.competition_name]["files"]
        return self.page(request, "files", sizes(files, "totalBytes"))

    def DownloadDataFile(self, request):
        return self.competitions[request.competition_name]["files"][request.file_name]

    def DownloadDataFiles(self, request):
        return zipped(self.competitions[request.competition_name]["files"])

    def GetSubmissionLimits(self, request):
        return {"numAllowedNow": self.left, "numToday": 5 - self.left}

    def submitted(self, request, score, **row):
        ref = 100 + len(self.submissions)
        row |= {"ref": ref, "description": request.submission_description, "date": "2026-11-24T10:00:00Z"}
        self.submissions.insert(0, row | {"status": "COMPLETE", "publicScore": score})
        return {"ref": ref, "message": "Successfully submitted"}

    def CreateCodeSubmission(self, request):
        return self.submitted(request, "41.5")

    def CreateSubmission(self, request):
        return self.submitted(request, "0.5", fileName=self.blobs[request.blob_file_tokens]["name"])

    def StartSubmissionUpload(self, request):
        return self.StartBlobUpload(
            SimpleNamespace(name=request.file_name, content_length=request.content_length)
        )

    def ListSubmissions(self, request):
        return self.page(request, "submissions", self.submissions)


class Server(ThreadingHTTPServer):
    """A server that prints nothing of a client that hangs up, and keeps any other error for the test."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError):
            self.kaggle.wrong.append(repr(sys.exception()))


class Handler(BaseHTTPRequestHandler):
    """HTTP: requests of the API, uploads, files, and the stream of a log."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, code, data, **headers):
        if not isinstance(data, bytes):
            data, headers = json.dumps(data).encode(), {"Content-Type": "application/json"} | headers
        self.send_response(code)
        for key, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(data)

    def fault(self, name):
        """Do what `faults` says of this request; False when it says nothing."""
        queue = self.server.kaggle.faults[name]
        if not queue:
            return False
        fault = queue.pop(0)
        if fault == HANG:
            self.server.kaggle.closing.wait(5)
        if fault in (CUT, HANG):
            self.close_connection = True
            self.connection.close()
            return True
        code, message, *headers = fault
        more = headers[0] if headers else {}
        self.answer(more.pop("code", code), {"code": code, "message": message}, **more)
        return True

    def do_POST(self):
        _, _, service, name = self.path.split("/")
        kaggle, data = self.server.kaggle, self.rfile.read(int(self.headers["Content-Length"]))
        if name != "IntrospectToken" and self.headers.get("Authorization") not in TOKENS:
            kaggle.wrong.append(f"{name} without the token")
        try:
            request = typed(service, name, json.loads(data))
        except Exception as e:
            kaggle.wrong.append(f"{name}: {e!r}")
            self.answer(400, b"{}")
            return
        kaggle.requests.append((name, request))
        if self.fault(name):
            return
        try:
            found = getattr(kaggle, name)(request)
        except LookupError as e:
            self.answer(404, {"code": 404, "message": f"not found: {e}"})
            return
        if isinstance(found, bytes):
            asked = getattr(request, "file_name", "archive.zip")
            is_packed = found[:2] == b"PK" and not asked.endswith(".zip")  # as Kaggle sends large files
            self.answer(302, b"", Location=kaggle.signed(asked + ".zip" * is_packed, found))
            return
        self.answer(200, found)

    def do_PUT(self):
        kaggle, data = self.server.kaggle, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        blob = kaggle.blobs[self.path.removeprefix("/upload/")]
        if self.fault(f"PUT {blob['name']}"):
            return
        spread = self.headers.get("Content-Range", "")
        if spread.startswith("bytes */"):
            more = {"Range": f"bytes=0-{len(blob['data']) - 1}"} if blob["data"] else {}
            self.answer(200, b"{}") if len(blob["data"]) == blob["size"] else self.answer(308, b"", **more)
            return
        blob["data"] = blob["data"] + data if spread else data
        self.answer(200, b"{}")

    def do_GET(self):
        kaggle, (path, _, query) = self.server.kaggle, self.path.partition("?")
        if path.startswith("/file/"):
            if not self.fault(f"GET {path.split('/')[-1]}"):
                self.answer(200, kaggle.blobs[path]["data"])
        elif not self.fault("GET log"):
            versions = kaggle.kernels[path.removeprefix("/v1/kernels/logs/stream/")]
            version = versions[int(query.removeprefix("versionLabel=v")) - 1]
            lines = [json.dumps({"data": line}) for line in version.log] + ["END_OF_LOG"]
            data = "".join(f"data: {line}\n\n" for line in lines).encode()
            self.answer(200, data, Content_Type="text/event-stream")


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """The stand-in, with a token for it, and every file of ours below `tmp_path`."""
    from kagglesdk import kaggle_env

    stand = Kaggle()
    for name in [name for name in os.environ if name.startswith("KAGGLE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KAGGLE_API_TOKEN", "good-token")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, stand.url)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    from aimo.kaggle import client, versions

    monkeypatch.setattr(client.KaggleApi, "config", str(tmp_path / "kaggle.json"))
    stand.requests.clear()  # the client signs in when it is first used
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
    monkeypatch.setattr(client, "ROOT", tmp_path / "repository")  # run paths in records stay absolute
    monkeypatch.setattr(versions, "OUTPUT", tmp_path / "output")
    monkeypatch.setattr(client, "RECORDS", tmp_path / "runs" / "kaggle.jsonl")
    monkeypatch.setattr(client, "LISTED_WITHIN_S", 0.2)
    yield stand
    stand.close()
    assert stand.wrong == []


@pytest.fixture
def aimo():
    """Run a command in this process; returns its exit code, output and errors."""

    def run(*arguments):
        done = here("kaggle", *arguments)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def refused(aimo):
    """Run a command that ends in one line of error with exit code 2; returns the line."""

    def run(*arguments):
        code, _, err = aimo(*arguments)
        line = err.strip().splitlines()[-1]
        assert code == 2 and line.startswith("aimo: ") and "Traceback" not in err, err
        return line

    return run


@pytest.fixture
def run_dir(tmp_path):
    """A finished run of the tiny profile."""
    folder = tmp_path / "runs" / "first"
    model = folder / "grpo" / "model"
    model.mkdir(parents=True)
    for path in TINY.iterdir():
        shutil.copyfile(path, model / path.name)
    (folder / "profile.yaml").write_text(config.dump(config.load("tiny")))
    return folder


@pytest.fixture
def words(request):
    """The words of a command, with the folder of a finished run in place of RUN."""

    def split(command):
        return [request.getfixturevalue("run_dir") if part == "RUN" else part for part in command.split()]

    return split
