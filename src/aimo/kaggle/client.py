"""Kaggle's API through its official client: sign in, ask, wait, ask again, say in a line what failed.

Every request goes through `Api.call`: it waits for a rate limit, repeats a read that was cut off, and prints
a request in place of sending it in a dry run. What Kaggle took from here is recorded in runs/kaggle.jsonl:

    {"did": "model", "model": "me/aimo/transformers/default/3", "run": "runs/tiny", "profile": "tiny", …}
    {"did": "push", "kernel": "me/aimo-submission", "version": 5, "models": ["me/aimo/…/3"], …}
    {"did": "submit", "ref": 41, "competition": "…", "kernel": "me/aimo-submission", "version": 5, …}

Written for kaggle 2.2.5 and kagglesdk 0.1.38, with these private names: `get_access_token_from_env`,
`KaggleHttpClient._init_session` and `_session`, `ResumableUploadContext._file_uploads`, `_poll_submission`.
"""

import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import stat
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import requests
from kagglesdk.blobs.types.blob_api_service import ApiBlobType
from kagglesdk.competitions.types.competition_api_service import ApiDownloadDataFilesRequest
from kagglesdk.datasets.types import dataset_api_service as of_datasets
from kagglesdk.models.types import model_api_service as of_models
from kagglesdk.models.types.model_enums import ModelFramework

from aimo.config import ROOT, RUNS, Profile
from aimo.config.profile import STAGES
from aimo.inference.errors import AimoError, one_line, redact
from aimo.inference.model_folder import check_model_folder
from aimo.inference.storage import append_lines, read_json, read_lines
from aimo.kaggle.check import slug_of, source_of
from aimo.run import hub
from aimo.run.runs import find_run

# Importing the client signs in, and prints a page of help where there is no token.
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    from kaggle.api import kaggle_api_extended
    from kaggle.api.kaggle_api_extended import KaggleApi, ResumableUploadContext
    from kagglesdk import kaggle_http_client

RECORDS = RUNS / "kaggle.jsonl"
TOKENS = "https://www.kaggle.com/settings"
TIMEOUT_S = 10, 300  # to connect, and until the next bytes of an answer
TRIES, PAUSE_S = 4, 2.0  # of a request that changes nothing; each pause is twice as long as the one before
LIMITED_TRIES, LIMITED_PAUSE_S = 10, 30.0  # under a rate limit for which Kaggle names no time
LONGEST_PAUSE_S = 3600.0  # a rate limit that lasts longer is a quota
REPEATABLE = ("Get", "List", "Download", "Introspect", "Start")  # such requests change nothing a user sees


class DryRunEnds(Exception):
    """A dry run has printed what could be known of its requests."""


class Api(KaggleApi):  # type: ignore[misc]
    """Kaggle's client with each request under `call`."""

    def __init__(self, token_source: str, dry_run: bool = False):
        super().__init__()
        self.token_source, self.dry_run = token_source, dry_run

    @property
    def user(self) -> str:
        return str(self.config_values[self.CONFIG_NAME_USER])

    def build_kaggle_client(self) -> Any:
        client = super().build_kaggle_client()
        http = client.http_client()
        http._init_session()  # it would be made with the first request, and wait for ever
        http._session.send = functools.partial(http._session.send, timeout=TIMEOUT_S)
        http.call = functools.partial(self.call, http.call)
        return client

    def with_retry(self, func: Callable[..., Any], *args: Any, **options: Any) -> Callable[..., Any]:
        return func  # `call` repeats what may be repeated, and nothing else

    def ask(self, request: Any, **fields: Any) -> Any:
        """Send a request, given whole or as a type (ApiGetKernelRequest) and fields; return the answer."""
        request = filled(request, **fields) if isinstance(request, type) else request
        area, _, service = type(request).__module__.split(".")[1:]  # kernels.types.kernels_api_service
        name = re.sub("^Api|Request$", "", type(request).__name__)
        with self.build_kaggle_client() as kaggle:
            asked = getattr(getattr(kaggle, area), service.replace("_service", "_client"))
            return getattr(asked, re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower())(request)  # get_kernel

    def find(self, request_type: Any, **fields: Any) -> Any | None:
        """Ask for something by its name; None where Kaggle has no such thing, of which it says 403 or 404."""
        try:
            return self.ask(request_type, **fields)
        except requests.HTTPError as e:
            if status_of(e)[0] in (403, 404):
                return None
            raise

    def pages(self, request_type: Any, **fields: Any) -> Iterator[Any]:
        token: dict[str, str] | None = {}
        while token is not None:
            answer = self.ask(request_type, page_size=100, **token, **fields)
            yield answer
            token = {"page_token": answer.next_page_token} if answer.next_page_token else None

    def end_dry_run(self) -> None:
        """End a dry run where Kaggle's answers are needed to go on."""
        if self.dry_run:
            raise DryRunEnds

    def call(self, send: Any, service: str, name: str, request: Any, response_type: Any) -> Any:
        """Send one request and return its answer.

        A dry run prints it in place of that: one that asks has an empty answer, another ends the dry run.
        """
        repeatable = name.startswith(REPEATABLE)
        if self.dry_run and name != "IntrospectToken":
            fields = request.to_dict()
            for key, value in fields.items():
                if isinstance(value, str) and len(value) > 200:
                    fields[key] = f"{value[:60]} … ({len(value):,} characters)"
            print(f"{name} {json.dumps(fields, indent=2, ensure_ascii=False)}")
            if not name.startswith(("Get", "List")):
                raise DryRunEnds
            return response_type()
        for attempt in itertools.count(1):
            try:
                return send(service, name, request, response_type)
            except requests.RequestException as error:
                code, _ = status_of(error)
                broken = repeatable and (code is None or code >= 500) and attempt < TRIES
                pause = PAUSE_S * 2 ** (attempt - 1) if broken else None
                if code == 429 and attempt < LIMITED_TRIES:
                    pause = rate_limit(error)
                if pause is None:
                    error.thing, error.unsure = subject(request), not repeatable  # type: ignore[attr-defined]
                    raise
            except ValueError as error:
                raise AimoError(
                    f"{subject(request)}: what answers is not Kaggle ({one_line(error)}); look for a proxy "
                    "or a sign-in page of the network"
                ) from None
            time.sleep(pause)

    def wait_for_score(self, ref: int, pause_s: float) -> str:
        """Return a submission's public score once Kaggle has it; the client raises where it failed."""
        return str(self._poll_submission(ref, 0, pause_s).public_score)

    @contextlib.contextmanager
    def uploaded(self, body: Any, folder: Path, kind: Any, folders: str = "skip") -> Iterator[None]:
        """Upload a folder's files and put their tokens into `body`, for the request that is made inside.

        Until one succeeds, the next call sends only what has not arrived. AimoError for a file that did not.
        """
        if self.dry_run:
            for path in sorted(folder.iterdir()):
                print(f"PUT {path.name}, {path.stat().st_size:,} bytes")
            yield  # to the request that ends the dry run
        with ResumableUploadContext() as uploads:
            fault = None
            try:
                self.upload_files(body, None, str(folder), kind, uploads, quiet=True, dir_mode=folders)
            except ValueError as e:  # since kaggle 2.2.5, of the first file that does not arrive
                fault = e
            failed = [upload for upload in uploads._file_uploads if not upload.upload_complete]
            for upload in failed:
                upload.cleanup()  # or else the next call goes on with an upload that Kaggle has given up
            if names := ", ".join(Path(upload.path).name for upload in failed):  # Kaggle would do without
                told = "did not arrive, so no version was made; give the same command again"
                raise AimoError(f"{folder}: {names} {told}")
            if fault:
                raise fault
            yield


def filled(request_type: Any, **fields: Any) -> Any:
    request = request_type()
    for name, value in fields.items():
        setattr(request, name, value)
    return request


def rate_limit(error: requests.RequestException) -> float | None:
    """Say how long a rate limit lasts and return the seconds; None where it is a quota."""
    assert error.response is not None
    named, seconds = error.response.headers.get("Retry-After", ""), LIMITED_PAUSE_S
    with contextlib.suppress(ValueError):  # it is a date, a number, or nothing
        seconds = max(0.0, (parsedate_to_datetime(named) - datetime.now(UTC)).total_seconds())
    with contextlib.suppress(ValueError):
        seconds = max(0.0, float(named))
    if seconds > LONGEST_PAUSE_S:
        return None
    until = datetime.now() + timedelta(seconds=seconds)
    print(f"rate limit of Kaggle: waiting {seconds:.0f} s, until {until:%H:%M:%S}", file=sys.stderr)
    return seconds


def find_token() -> tuple[str | None, str]:
    """Return the token, None where it is a user's name and key, and where it is: a file or a variable."""
    variables = ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY")
    os.environ |= {name: os.environ[name].strip().strip("'\"") for name in variables if name in os.environ}
    token, name, key = (os.environ.get(variable) for variable in variables)
    home, pair = Path("~/.kaggle").expanduser(), Path(Api.config)
    places = [home / "access_token", home / "access_token.txt", pair, home / "credentials.json"]
    if token and os.path.isfile(named := os.path.expanduser(token)):
        token, places = None, [Path(named), *places]
    elif token and token.startswith(("/", "~", ".")):
        told = "is a path, and there is no such file: put a token there, from"
        raise AimoError(f"KAGGLE_API_TOKEN {told} {TOKENS}")
    files = [path for path in places if path.is_file()]
    for path in files:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise AimoError(f"token file {path} is open to others (mode {mode:o}): run `chmod 600 {path}`")
    if token:
        source, is_key = "KAGGLE_API_TOKEN", False
    elif files and files[0].name == "credentials.json":  # of OAuth
        return None, str(files[0])
    elif files:
        source, is_key = str(files[0]), files[0] == pair
        text = files[0].read_text("utf-8-sig", errors="replace").strip()
        token = read_json(pair, f"make another at {TOKENS}").get("key") if is_key else text
    elif name and key:
        token, source, is_key = key, "KAGGLE_USERNAME and KAGGLE_KEY", True
    else:
        raise AimoError(
            f"there is no Kaggle token: make one at {TOKENS}, put it into ~/.kaggle/access_token and run "
            "`chmod 600 ~/.kaggle/access_token`, or set KAGGLE_API_TOKEN"
        )
    if not isinstance(token, str) or not re.fullmatch(r"[!-~]+", token):  # no header can hold it
        told = "is empty or has a character that no token has, such as a curly quote or a space"
        raise AimoError(f"the token in {source} {told}: copy it again from {TOKENS}")
    return None if is_key else token, source


@contextlib.contextmanager
def sign_in(dry_run: bool = False) -> Iterator[Api]:
    """Sign in, and give every failure of Kaggle, of the connection and of the client as one AimoError."""
    token, source = find_token()
    # By itself the client takes every token for a path first, and fails on a long one:
    # https://github.com/Kaggle/kaggle-cli/issues/1188
    for module in (kaggle_api_extended, kaggle_http_client):
        module.get_access_token_from_env = lambda: (token, source)
    api = Api(source, dry_run)
    try:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                api.authenticate()
        except SystemExit:
            told = f"Kaggle does not accept the token in {source}: make another at {TOKENS}"
            raise AimoError(told) from None
        with contextlib.suppress(DryRunEnds):
            yield api
    except requests.RequestException as e:
        raise explain_failure(e) from None
    except ValueError as e:  # the client's own checks, and an answer that is no JSON
        raise AimoError(f"Kaggle's client: {one_line(e)}") from None
    except KeyboardInterrupt:
        raise AimoError("interrupted; give the same command again to go on") from None


def subject(request: Any) -> str:
    """Return what a request is about, such as `kernel me/aimo-submission`."""
    fields = request.to_field_map()
    owner = fields.get("owner_slug") or fields.get("user_name") or fields.get("kernel_owner")
    found = []
    for kind in ("competition", "kernel", "model", "dataset"):
        own = fields.get("slug") if kind in type(request).__name__.lower() else None
        if name := fields.get(f"{kind}_slug") or fields.get(f"{kind}_name") or own:
            owned = owner and kind != "competition" and "/" not in name
            found.append(f"{kind} {owner}/{name}" if owned else f"{kind} {name}")
    return ", ".join(found) or re.sub(r"^Api|Request$", "", type(request).__name__)


def status_of(error: requests.RequestException) -> tuple[int | None, str]:
    """Return an error's status, which may stand in the body of an answer sent as 200, and what is said."""
    if error.response is None:
        return None, str(error)
    body: Any = {}
    with contextlib.suppress(ValueError):
        body = error.response.json()
    body = body if isinstance(body, dict) else {}
    code = error.response.status_code
    return code if code >= 400 else int(body.get("code", 500)), str(body.get("message") or error)


def explain_failure(error: requests.RequestException) -> AimoError:
    thing, (code, text) = getattr(error, "thing", "Kaggle"), status_of(error)
    said = redact(" ".join(text.split()))[:200]
    if code == 401:
        return AimoError(f"Kaggle does not accept the token ({said}): make another at {TOKENS}")
    unsure = "whether it arrived is not known: look before you do it again"
    remedy = unsure if getattr(error, "unsure", False) else "check the network and try again"
    told = {
        None: f"the connection to Kaggle broke ({said}); {remedy}",
        403: f"not open to this account, or no such thing ({said}); check the name",
        404: f"unknown to Kaggle ({said}); check the name",
        409: f"the name is taken ({said}); take another",
        429: f"a limit of Kaggle's is used up ({said}); try again later",
    }.get(code, f"Kaggle refuses it ({code}: {said})")
    if code == 403 and "rules" in said.lower():
        told = f"accept its rules on its page of kaggle.com first ({said})"
    if code and code >= 500:
        told = f"Kaggle failed ({code}: {said}); try again in some minutes"
    return AimoError(f"{thing}: {told}")


def check_reply(thing: str, answer: Any) -> None:
    """Raise AimoError with the reason that an answer carries, and the remedy for a quota that is used up."""
    if answer.error:
        reason, remedy = redact(" ".join(answer.error.split())), ""
        if re.search(r"\b[GT]PU quota", reason):
            remedy = "; wait until it is renewed: `aimo kaggle login-check` says when"
        elif "quota" in reason:
            remedy = "; delete what you no longer need on kaggle.com, then give the same command again"
        raise AimoError(f"{thing}: Kaggle refuses it: {reason}{remedy}")


def add_record(did: str, **facts: Any) -> None:
    RECORDS.parent.mkdir(exist_ok=True)
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    append_lines(RECORDS, [{"did": did, "date": date} | facts])


def find_record(did: str, **facts: Any) -> dict[str, Any]:
    """Return the last record with these facts; empty without one."""
    wanted = ({"did": did} | facts).items()
    return next((line for line in reversed(read_lines(RECORDS)) if wanted <= line.items()), {})


INPUTS = Path("/kaggle/input")
METADATA = "dataset-metadata.json"
LISTED_WITHIN_S, LOOK_S = 600.0, 10.0  # how long Kaggle may take to list an upload; between two looks
CHUNK = 1 << 20  # bytes
AGAIN = "give the same command again"


def push_run(api: Api, run: str, to: str | None) -> str:
    """Push the last model of a run as `push_version` does, and return its source.

    `to` is owner/model/framework/variation: the profile's `training.push_to_kaggle` or else
    USER/aimo-PROFILE/transformers/default, if not given.
    """
    run_dir, profile = find_run(run)
    if not profile.trained:
        raise AimoError(f"run {run}: profile {profile.profile} trains no model, so there is none to push")
    usual = profile.training.push_to_kaggle or f"{api.user}/aimo-{profile.profile}/transformers/default"
    folder = run_dir / STAGES[profile.trained[-1]].product
    return push_version(api, folder, to or usual, profile, run_dir)


def recorded(run_dir: Path) -> Path:
    """Return a run's folder as records have it: relative to the repository where it lies inside."""
    run = run_dir.resolve()
    return run.relative_to(ROOT) if run.is_relative_to(ROOT) else run


def run_of(folder: Path) -> dict[str, str]:
    """Return the run and the profile of a run's folder as records have them; nothing of another folder."""
    if not (folder / "profile.yaml").is_file():
        return {}
    _, profile = find_run(str(folder))
    return {"run": str(recorded(folder)), "profile": profile.profile}


def push_version(api: Api, folder: Path, target: str, profile: Profile, run_dir: Path) -> str:
    """Push a run's model as a new version of owner/model/framework/variation; return that with its number.

    Model and variation are created, private and with the model's card, where there are none. AimoError when
    a file did not arrive, or is another one on Kaggle: all are downloaded again.
    """
    target = source_of(target, 4)
    frameworks = {f.name.removeprefix("MODEL_FRAMEWORK_").replace("_", "").lower(): f for f in ModelFramework}
    parts = target.split("/")
    if len(parts) != 4 or not all(parts) or parts[2].lower() not in frameworks:
        told = "write OWNER/MODEL/FRAMEWORK/VARIATION, such as me/aimo/transformers/default"
        raise AimoError(f"model {target}: {told}")
    owner, slug, framework, variation = *parts[:2], frameworks[parts[2].lower()], parts[3]
    check_model_folder(folder)
    hub.check_links(folder)
    if inner := [path.name for path in folder.iterdir() if path.is_dir()]:
        told = f"has folders in it, which are not pushed: move {', '.join(inner)} out"
        raise AimoError(f"model folder {folder} {told}")
    files = {path.name: path for path in sorted(folder.iterdir())}
    run = recorded(run_dir)
    notes = f"profile {profile.profile}, run {run}"

    model: dict[str, Any] = {"owner_slug": owner, "model_slug": slug}
    named = model | {"framework": framework, "instance_slug": variation}
    before = api.find(of_models.ApiGetModelInstanceRequest, **named)
    if before is None:
        card = files["README.md"].read_text() if "README.md" in files else notes
        if api.find(of_models.ApiGetModelRequest, **model) is None:
            about = {"owner_slug": owner, "slug": slug, "title": slug, "description": card}
            check_reply(target, api.ask(of_models.ApiCreateModelRequest, is_private=True, **about))
        about = {"instance_slug": variation, "framework": framework, "license_name": "Apache 2.0"}
        kind = of_models.ApiCreateModelInstanceRequestBody
        body = filled(kind, overview=card, fine_tunable=True, **about)
        request = filled(of_models.ApiCreateModelInstanceRequest, **model, body=body)
    else:
        body = filled(of_models.ApiCreateModelInstanceVersionRequestBody, version_notes=notes)
        request = filled(of_models.ApiCreateModelInstanceVersionRequest, **named, body=body)
    with api.uploaded(body, folder, ApiBlobType.MODEL):
        check_reply(target, api.ask(request))

    named["version_number"] = (before.version_number if before else 0) + 1
    source = f"{target}/{named['version_number']}"
    compare_listing(api, source, files, of_models.ApiListModelInstanceVersionFilesRequest, named)
    for name, path in files.items():
        there = hashlib.sha256()
        with api.ask(of_models.ApiDownloadModelInstanceVersionRequest, **named, path=name) as response:
            for chunk in response.iter_content(CHUNK):
                there.update(chunk)
        with path.open("rb") as file:
            here = hashlib.file_digest(file, "sha256").hexdigest()
        if there.hexdigest() != here:
            raise AimoError(f"{source}: {name} has another content on Kaggle than in {folder}; push it again")
    add_record("model", model=source, run=str(run), profile=profile.profile)
    return source


def push_folder(api: Api, folder: Path, name: str | None) -> str:
    """Push a folder as a new version of a private dataset, which is created if need be; return OWNER/SLUG.

    The name is `name` or that of dataset-metadata.json in the folder, or else the folder's. A sub-folder is
    sent as one archive, which Kaggle unpacks.
    """
    if not folder.is_dir():
        raise AimoError(f"dataset {folder}: no such folder")
    hub.check_links(folder)
    metadata = read_json(folder / METADATA, "repair the file") if (folder / METADATA).is_file() else {}
    owner, _, slug = source_of(str(name or metadata.get("id") or folder.resolve().name), 2).rpartition("/")
    owner = owner or api.user
    if not 6 <= len(slug) <= 50:
        raise AimoError(f"dataset {slug!r}: a slug has 6 to 50 characters; take another with --name")
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != METADATA]
    if not found:
        raise AimoError(f"dataset {folder}: the folder is empty")
    named = {"owner_slug": owner, "dataset_slug": slug}
    if api.find(of_datasets.ApiListDatasetFilesRequest, **named) is None:
        about = {"owner_slug": owner, "slug": slug, "title": str(metadata.get("title", slug))}
        kind = of_datasets.ApiCreateDatasetRequest
        body = request = filled(kind, license_name="other", is_private=True, **about)
    else:
        notes = time.strftime("%Y-%m-%d %H:%M")
        body = filled(of_datasets.ApiCreateDatasetVersionRequestBody, version_notes=notes)
        request = filled(of_datasets.ApiCreateDatasetVersionRequest, **named, body=body)
    with api.uploaded(body, folder, ApiBlobType.DATASET, folders="zip"):
        check_reply(f"dataset {owner}/{slug}", api.ask(request))
    files = {path.relative_to(folder).as_posix(): path for path in found}
    compare_listing(api, f"dataset {owner}/{slug}", files, of_datasets.ApiListDatasetFilesRequest, named)
    return f"{owner}/{slug}"


def compare_listing(
    api: Api, thing: str, files: dict[str, Path], request_type: Any, named: dict[str, Any]
) -> None:
    """Wait until Kaggle lists each file with its size. AimoError names those missing or of another size."""

    def listed() -> dict[str, int]:
        try:
            answers = list(api.pages(request_type, **named))
        except requests.HTTPError as e:
            if status_of(e)[0] not in (403, 404):
                raise
            return {}  # Kaggle does not know the version yet
        rows = [row for answer in answers for row in getattr(answer, "files", None) or answer.dataset_files]
        return {row.name: row.size if hasattr(row, "size") else row.total_bytes for row in rows}

    sizes = {name: path.stat().st_size for name, path in files.items()}
    end = time.monotonic() + LISTED_WITHIN_S
    while wrong := sizes.items() - (found := listed()).items():
        if time.monotonic() > end:
            told = ", ".join(
                f"{name} ({found[name]:,} bytes of {size:,})" if name in found else f"{name} (missing)"
                for name, size in sorted(wrong)
            )
            raise AimoError(f"{thing} is not whole on Kaggle: {told}; push it again as a new version")
        time.sleep(LOOK_S)


def download_competition(api: Api, competition: str, inputs: Path | None = None) -> Path:
    """Download a competition's files and unpack them into `inputs`/SLUG, as on Kaggle; return that folder.

    `competition` is aimo1, aimo2, aimo3 or a slug. `inputs` is /kaggle/input, or data/kaggle where that
    cannot be written.
    """
    slug = slug_of(competition)
    request = functools.partial(api.ask, ApiDownloadDataFilesRequest, competition_name=slug)
    if api.dry_run:
        request()  # which ends it, before a folder is made
    folder = (inputs or (INPUTS if os.access(INPUTS, os.W_OK) else ROOT / "data" / "kaggle")) / slug
    archive, fresh, old = (folder.with_name(f"{slug}.{name}") for name in ("zip", "partial", "old"))
    save_download(request, archive)
    # The folder is replaced when all is unpacked: it is whole before and after.
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as file:
            file.extractall(fresh)
        if not fresh.is_dir():
            raise zipfile.BadZipFile("it is empty")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as e:
        told = f"{e.strerror or e}; free some space or take another --to, then {AGAIN}"
        raise AimoError(f"{folder}: {told}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as e:  # of an encrypted one
        raise AimoError(f"{archive.name}: it is no zip file that opens ({one_line(e)}); {AGAIN}") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        archive.unlink()
    return folder


def save_download(request: Callable[[], requests.Response], path: Path, size: int | None = None) -> None:
    """Download to `path`, which is complete or does not exist; a broken connection is tried again.

    AimoError for another `size`, a full disk, or an address that answers with an error: it is not saved.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    broken = requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError
    try:
        for attempt in range(1, TRIES + 1):
            try:
                with request() as response:
                    response.raise_for_status()
                    length = response.headers.get("Content-Length")
                    expected = size if size is not None else int(length) if length else None
                    with partial.open("wb") as file:
                        for chunk in response.iter_content(CHUNK):
                            file.write(chunk)
                        written = file.tell()
                break
            except broken:
                if attempt == TRIES:
                    raise
            time.sleep(PAUSE_S * 2 ** (attempt - 1))
    except OSError as e:
        partial.unlink(missing_ok=True)
        if hasattr(e, "thing"):  # of the API, not of a file's address
            raise
        if isinstance(e, requests.RequestException):
            raise AimoError(f"{path.name}: {one_line(e)}; {AGAIN}") from None
        raise AimoError(f"{path}: {e.strerror or e}; free some space, then {AGAIN}") from None
    if expected is not None and written != expected:
        partial.unlink()
        raise AimoError(f"{path.name}: {written:,} bytes came of {expected:,}; {AGAIN}")
    partial.replace(path)


def fetch(url: str) -> Callable[[], requests.Response]:
    """Return a request for a signed address, which takes no token."""
    return lambda: requests.get(url, stream=True, timeout=TIMEOUT_S)
