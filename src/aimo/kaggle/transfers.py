"""What goes to Kaggle and comes back: a run's model, a folder as a dataset, a competition's data.

An upload is compared with what Kaggle has afterwards; a download is complete or does not exist.
"""

import functools
import hashlib
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from kagglesdk.blobs.types.blob_api_service import ApiBlobType
from kagglesdk.competitions.types.competition_api_service import ApiDownloadDataFilesRequest
from kagglesdk.datasets.types import dataset_api_service as of_datasets
from kagglesdk.models.types import model_api_service as of_models
from kagglesdk.models.types.model_enums import ModelFramework

from aimo.config import ROOT, Profile
from aimo.config.profile import STAGES
from aimo.errors import AimoError
from aimo.inference.errors import one_line
from aimo.inference.model_folder import check_model_folder
from aimo.inference.storage import read_json
from aimo.kaggle import client
from aimo.kaggle.check import slug_of, source_of
from aimo.kaggle.client import Api, check_reply, filled
from aimo.run import hub
from aimo.run.runs import find_run

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
    client.add_record("model", model=source, run=str(run), profile=profile.profile)
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
            if client.status_of(e)[0] not in (403, 404):
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
        for attempt in range(1, client.TRIES + 1):
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
                if attempt == client.TRIES:
                    raise
            time.sleep(client.PAUSE_S * 2 ** (attempt - 1))
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
    return lambda: requests.get(url, stream=True, timeout=client.TIMEOUT_S)
