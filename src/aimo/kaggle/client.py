"""Kaggle's API through its official client: sign in, ask, wait, and explain a failure in one line. Upload
models and datasets, and compare them with what arrived; download a competition's data.

Every request goes through `Api.call`: it waits for a rate limit, repeats a read that was cut off, and in a
dry run prints a request instead of sending it. What Kaggle accepted is recorded in runs/kaggle.jsonl:

    {"did": "model", "model": "me/aimo/transformers/default/3", "run": "runs/tiny", "profile": "tiny", …}
    {"did": "push", "kernel": "me/aimo-submission", "version": 5, "models": ["me/aimo/…/3"], …}
    {"did": "submit", "ref": 41, "competition": "…", "kernel": "me/aimo-submission", "version": 5, …}

Written for kaggle 2.2.5 and kagglesdk 0.1.38. It uses their private names `get_access_token_from_env`,
`KaggleHttpClient._init_session` and `_session`, `ResumableUploadContext._file_uploads`,
`_get_retry_after_delay`, `_poll_submission`.
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
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import requests
from kagglesdk.blobs.types.blob_api_service import ApiBlobType
from kagglesdk.datasets.types import dataset_api_service as of_datasets
from kagglesdk.models.types import model_api_service as of_models
from kagglesdk.models.types.model_enums import ModelFramework

from aimo.config import ROOT, RUNS, Profile
from aimo.inference.errors import AimoError, one_line, redact
from aimo.inference.model_folder import check_model_folder
from aimo.inference.storage import append_lines, read_json, read_lines
from aimo.kaggle.kernels import slug_of, source_of
from aimo.run import hub

# Importing the client signs in, and prints a page of help if there is no token.
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    from kaggle.api import kaggle_api_extended
    from kaggle.api.kaggle_api_extended import KaggleApi, ResumableUploadContext
    from kagglesdk import kaggle_http_client

RECORDS = RUNS / "kaggle.jsonl"
TOKENS = "https://www.kaggle.com/settings"
TIMEOUT_S = 10, 300  # to connect, and until the next bytes of an answer
TRIES, PAUSE_S = 4, 2.0  # of a request that changes nothing; each pause is twice the one before
LIMITED_TRIES, LIMITED_PAUSE_S = 10, 30.0  # under a rate limit for which Kaggle names no time
LONGEST_PAUSE_S = 3600.0  # a rate limit that lasts longer is a quota
REPEATABLE = ("Get", "List", "Download", "Introspect", "Start")  # such requests change nothing a user sees
AGAIN = "give the same command again"


class DryRunEnds(Exception):
    """A dry run has printed every request that it can know."""


class Api(KaggleApi):  # type: ignore[misc]
    """Kaggle's client; every request goes through `call`."""

    user: str
    token_source: str
    dry_run = False

    def build_kaggle_client(self) -> Any:
        client = super().build_kaggle_client()
        http = client.http_client()
        http._init_session()  # the first request would create it, without a timeout
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
            return getattr(asked, self.camel_to_snake(name))(request)  # get_kernel

    def find(self, request_type: Any, **fields: Any) -> Any | None:
        """Ask for something by name, or return None. Kaggle answers 403 or 404 when it does not exist."""
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
        """End a dry run where the next step needs Kaggle's answers."""
        if self.dry_run:
            raise DryRunEnds

    def call(self, send: Any, service: str, name: str, request: Any, response_type: Any) -> Any:
        """Send one request and return its answer. If it fails, the error has a line for the user in `told`.

        A dry run only prints it: a Get or List returns an empty answer, any other request ends the dry run.
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
        area, own = type(request).__module__.split(".")[1].removesuffix("s"), request.to_field_map().items()
        parts = ("slug", "_owner", "user_name", "competition_name")
        names = [str(value) for key, value in own if value and key.endswith(parts)]
        thing = f"{area} {'/'.join(names)}" if names else name  # such as kernel me/aimo-submission
        for attempt in itertools.count(1):
            try:
                return send(service, name, request, response_type)
            except requests.RequestException as error:
                (code, _), pause = status_of(error), None
                if repeatable and (code is None or code >= 500) and attempt < TRIES:
                    pause = PAUSE_S * 2 ** (attempt - 1)
                elif code == 429 and attempt < LIMITED_TRIES:
                    named = self._get_retry_after_delay(error.response)  # in seconds, None without a time
                    pause = LIMITED_PAUSE_S if named is None else named
                    if pause <= LONGEST_PAUSE_S:
                        until = datetime.now() + timedelta(seconds=pause)
                        told = f"rate limit of Kaggle: waiting {pause:.0f} s, until {until:%H:%M:%S}"
                        print(told, file=sys.stderr)
                if pause is None or pause > LONGEST_PAUSE_S:
                    error.told = f"{thing}: {explain_answer(error, repeatable)}"  # type: ignore[attr-defined]
                    raise
            except ValueError as error:
                raise AimoError(
                    f"{thing}: what answers is not Kaggle ({one_line(error)}); look for a proxy "
                    "or a sign-in page of the network"
                ) from None
            time.sleep(pause)

    def await_score(self, ref: int, longest_pause_s: float) -> str:
        """Return a submission's public score once Kaggle has it. ValueError if it failed."""
        return str(self._poll_submission(ref, 0, longest_pause_s).public_score)

    def upload(
        self, thing: str, request: Any, body: Any, folder: Path, kind: Any, folders: str = "skip"
    ) -> None:
        """Upload a folder's files, put their tokens into `body`, and send the request that makes a version.

        Until that succeeds, the next call sends only what has not arrived. AimoError if a file does not.
        """
        if self.dry_run:
            for path in sorted(folder.iterdir()):
                print(f"PUT {path.name}, {path.stat().st_size:,} bytes")
            self.ask(request)  # which ends the dry run
        with ResumableUploadContext() as uploads:
            try:
                self.upload_files(body, None, str(folder), kind, uploads, quiet=True, dir_mode=folders)
            except ValueError as e:  # names the first file that does not arrive
                for upload in uploads._file_uploads:
                    if not upload.upload_complete:
                        upload.cleanup()  # otherwise the next call continues what Kaggle has given up
                raise AimoError(f"{folder}: {e}; no version was made; {AGAIN}") from None
            check_reply(thing, self.ask(request))


def filled(request_type: Any, **fields: Any) -> Any:
    request = request_type()
    for name, value in fields.items():
        setattr(request, name, value)
    return request


def find_token() -> tuple[str | None, str]:
    """Return the token (None for OAuth, or a user's name and key), and the file or variable that holds it."""
    variables = ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY")
    os.environ |= {name: os.environ[name].strip().strip("'\"") for name in variables if name in os.environ}
    token, name, key = (os.environ.get(variable) for variable in variables)
    home, pair = Path("~/.kaggle").expanduser(), Path(Api.config)
    places = [home / "access_token", home / "access_token.txt", pair, home / "credentials.json"]
    if token and (token[0] in "/~." or os.path.isfile(token)):
        places, token = [Path(token).expanduser(), *places], None
        if not places[0].is_file():
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
    """Sign in, and turn every failure of Kaggle, the connection or the client into one AimoError."""
    token, source = find_token()
    # By itself, the client first tries every token as a path, and fails on a long one:
    # https://github.com/Kaggle/kaggle-cli/issues/1188
    for module in (kaggle_api_extended, kaggle_http_client):
        module.get_access_token_from_env = lambda: (token, source)
    api = Api()
    api.token_source, api.dry_run = source, dry_run
    try:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                api.authenticate()
        except SystemExit:
            told = f"Kaggle does not accept the token in {source}: make another at {TOKENS}"
            raise AimoError(told) from None
        api.user = str(api.config_values[api.CONFIG_NAME_USER])
        with contextlib.suppress(DryRunEnds):
            yield api
    except requests.RequestException as e:  # also from a signed address, which `call` does not see
        told = getattr(e, "told", f"a download from Kaggle failed ({one_line(e)}); {AGAIN}")
        raise AimoError(told) from None
    except ValueError as e:  # the client's own checks, or an answer that is not JSON
        raise AimoError(f"Kaggle's client: {one_line(e)}") from None
    except KeyboardInterrupt:
        raise AimoError("interrupted; give the same command again to go on") from None


def status_of(error: requests.RequestException) -> tuple[int | None, str]:
    """Return an error's status, which may be in the body of an answer sent as 200, and its text."""
    if error.response is None:
        return None, str(error)
    body: Any = {}
    with contextlib.suppress(ValueError):
        body = error.response.json()
    body = body if isinstance(body, dict) else {}
    code = error.response.status_code
    return code if code >= 400 else int(body.get("code", 500)), str(body.get("message") or error)


def explain_answer(error: requests.RequestException, repeatable: bool) -> str:
    code, text = status_of(error)
    said = redact(" ".join(text.split()))[:200]
    unsure = "whether it arrived is not known: look before you do it again"
    told = {
        None: f"the connection to Kaggle broke ({said}); "
        + ("check the network and try again" if repeatable else unsure),
        401: f"Kaggle does not accept the token ({said}): make another at {TOKENS}",
        403: f"not open to this account, or no such thing ({said}); check the name",
        404: f"unknown to Kaggle ({said}); check the name",
        409: f"the name is taken ({said}); take another",
        429: f"a limit of Kaggle's is used up ({said}); try again later",
    }.get(code, f"Kaggle refuses it ({code}: {said})")
    if code == 403 and "rules" in said.lower():
        told = f"accept its rules on its page of kaggle.com first ({said})"
    if code and code >= 500:
        told = f"Kaggle failed ({code}: {said}); try again in some minutes"
    return told


def check_reply(thing: str, answer: Any) -> None:
    """Raise AimoError if an answer carries an error, with its reason and, for a quota, the remedy."""
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
    """Return the last record with these facts, or {} if there is none."""
    wanted = ({"did": did} | facts).items()
    return next((line for line in reversed(read_lines(RECORDS)) if wanted <= line.items()), {})


def recorded(run_dir: Path, profile: Profile) -> dict[str, str]:
    """Return a run's folder, relative to the repository if it is inside, and its profile."""
    run = run_dir.resolve()
    run = run.relative_to(ROOT) if run.is_relative_to(ROOT) else run
    return {"run": str(run), "profile": profile.profile}


# ---- Models, datasets and data

INPUTS = Path("/kaggle/input")
METADATA = "dataset-metadata.json"
LISTED_WITHIN_S, LOOK_S = 600.0, 10.0  # how long Kaggle may take to list an upload; between two polls


def push_version(api: Api, folder: Path, target: str | None, profile: Profile, run_dir: Path) -> str:
    """Push a run's model as a new version of owner/model/framework/variation; return that with its number.

    The default target is the profile's `training.push_to_kaggle` or USER/aimo-PROFILE/transformers/default.
    A missing model or variation is created, private and with the model's card. All files are downloaded
    again: AimoError if one did not arrive, or differs on Kaggle.
    """
    usual = profile.training.push_to_kaggle or f"{api.user}/aimo-{profile.profile}/transformers/default"
    target = source_of(target or usual, 4)
    try:
        owner, slug, framework, variation = api.split_model_instance_string(target)
        kind = api.lookup_enum(ModelFramework, None, framework)
    except (KeyError, ValueError):
        told = "write OWNER/MODEL/FRAMEWORK/VARIATION, such as me/aimo/transformers/default"
        raise AimoError(f"model {target}: {told}") from None
    check_model_folder(folder)
    hub.check_links(folder)
    if inner := [path.name for path in folder.iterdir() if path.is_dir()]:
        told = f"has folders in it, which are not pushed: move {', '.join(inner)} out"
        raise AimoError(f"model folder {folder} {told}")
    files = {path.name: path for path in sorted(folder.iterdir())}
    record = recorded(run_dir, profile)
    notes = f"profile {record['profile']}, run {record['run']}"

    model: dict[str, Any] = {"owner_slug": owner, "model_slug": slug}
    named = model | {"framework": kind, "instance_slug": variation}
    before = api.find(of_models.ApiGetModelInstanceRequest, **named)
    if before is None:
        card = files["README.md"].read_text() if "README.md" in files else notes
        if api.find(of_models.ApiGetModelRequest, **model) is None:
            about = {"owner_slug": owner, "slug": slug, "title": slug, "description": card}
            check_reply(target, api.ask(of_models.ApiCreateModelRequest, is_private=True, **about))
        about = {"instance_slug": variation, "framework": kind, "license_name": "Apache 2.0"}
        body_type = of_models.ApiCreateModelInstanceRequestBody
        body = filled(body_type, overview=card, fine_tunable=True, **about)
        request = filled(of_models.ApiCreateModelInstanceRequest, **model, body=body)
    else:
        body = filled(of_models.ApiCreateModelInstanceVersionRequestBody, version_notes=notes)
        request = filled(of_models.ApiCreateModelInstanceVersionRequest, **named, body=body)
    api.upload(target, request, body, folder, ApiBlobType.MODEL)

    named["version_number"] = (before.version_number if before else 0) + 1
    source = f"{target}/{named['version_number']}"
    compare_listing(api, source, files, of_models.ApiListModelInstanceVersionFilesRequest, named)
    for name, path in files.items():
        there = hashlib.sha256()
        with api.ask(of_models.ApiDownloadModelInstanceVersionRequest, **named, path=name) as response:
            for chunk in response.iter_content(1 << 20):
                there.update(chunk)
        with path.open("rb") as file:
            here = hashlib.file_digest(file, "sha256").hexdigest()
        if there.hexdigest() != here:
            raise AimoError(f"{source}: {name} has another content on Kaggle than in {folder}; push it again")
    add_record("model", model=source, **record)
    return source


def push_folder(api: Api, folder: Path, name: str | None) -> str:
    """Push a folder as a new version of a private dataset, which is created if needed; return OWNER/SLUG.

    Its name is `name`, or else the id in the folder's dataset-metadata.json, or else the folder's name. A
    sub-folder is sent as one archive, which Kaggle unpacks.
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
        raise AimoError(f"dataset {folder}: the folder is empty; put files into it")
    named = {"owner_slug": owner, "dataset_slug": slug}
    if api.find(of_datasets.ApiListDatasetFilesRequest, **named) is None:
        about = {"owner_slug": owner, "slug": slug, "title": str(metadata.get("title", slug))}
        kind = of_datasets.ApiCreateDatasetRequest
        body = request = filled(kind, license_name="other", is_private=True, **about)
    else:
        notes = time.strftime("%Y-%m-%d %H:%M")
        body = filled(of_datasets.ApiCreateDatasetVersionRequestBody, version_notes=notes)
        request = filled(of_datasets.ApiCreateDatasetVersionRequest, **named, body=body)
    thing = f"dataset {owner}/{slug}"
    api.upload(thing, request, body, folder, ApiBlobType.DATASET, folders="zip")
    files = {path.relative_to(folder).as_posix(): path for path in found}
    compare_listing(api, thing, files, of_datasets.ApiListDatasetFilesRequest, named)
    return f"{owner}/{slug}"


def compare_listing(
    api: Api, thing: str, files: dict[str, Path], request_type: Any, named: dict[str, Any]
) -> None:
    """Wait until Kaggle lists each file with its size. AimoError names files that are missing or differ."""
    sizes = {name: path.stat().st_size for name, path in files.items()}
    end = time.monotonic() + LISTED_WITHIN_S
    while True:
        found = {}
        try:
            for answer in api.pages(request_type, **named):
                for row in getattr(answer, "files", None) or answer.dataset_files:
                    found[row.name] = row.size if hasattr(row, "size") else row.total_bytes
        except requests.HTTPError as e:
            if status_of(e)[0] not in (403, 404):  # Kaggle does not know the version yet
                raise
        if not (wrong := sizes.items() - found.items()):
            return
        if time.monotonic() > end:
            told = ", ".join(
                f"{name} ({found[name]:,} bytes of {size:,})" if name in found else f"{name} (missing)"
                for name, size in sorted(wrong)
            )
            raise AimoError(f"{thing} is not whole on Kaggle: {told}; push it again as a new version")
        time.sleep(LOOK_S)


def download_competition(api: Api, competition: str, inputs: Path | None = None) -> Path:
    """Download a competition's files and unpack them into `inputs`/SLUG, as on Kaggle; return that folder.

    `competition` is aimo1, aimo2, aimo3 or a slug. `inputs` defaults to /kaggle/input, or data/kaggle if that
    cannot be written. The folder is replaced once all is unpacked, so that it is always whole.
    """
    slug = slug_of(competition)
    folder = (inputs or (INPUTS if os.access(INPUTS, os.W_OK) else ROOT / "data" / "kaggle")) / slug
    fresh = folder.with_name(f"{slug}.partial")
    try:
        api.competition_download_files(slug, str(fresh), unzip=True)
        if not any(fresh.iterdir()) or any(fresh.glob(f"{slug}.*")):  # the client keeps what is not a zip
            raise ValueError("it is no archive, or an empty one")
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    except requests.RequestException:
        raise
    except (OSError, ValueError, RuntimeError) as e:
        shutil.rmtree(fresh, ignore_errors=True)
        told = f"free some space or take another --to, then {AGAIN}"
        raise AimoError(f"{folder}: {one_line(e)}; {told}") from None
    return folder
