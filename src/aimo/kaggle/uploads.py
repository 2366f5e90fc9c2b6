"""Push a run's model, or a folder as a dataset, and compare what Kaggle then has with what is here.

Out of scope: the parts of an upload, which the client sends and resumes.
"""

import functools
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from kagglesdk.blobs.types.blob_api_service import ApiBlobType
from kagglesdk.datasets.types.dataset_api_service import (
    ApiCreateDatasetRequest,
    ApiCreateDatasetVersionRequest,
    ApiCreateDatasetVersionRequestBody,
    ApiListDatasetFilesRequest,
)
from kagglesdk.models.types.model_api_service import (
    ApiCreateModelInstanceRequest,
    ApiCreateModelInstanceRequestBody,
    ApiCreateModelInstanceVersionRequest,
    ApiCreateModelInstanceVersionRequestBody,
    ApiCreateModelRequest,
    ApiDownloadModelInstanceVersionRequest,
    ApiGetModelInstanceRequest,
    ApiGetModelRequest,
    ApiListModelInstanceVersionFilesRequest,
)
from kagglesdk.models.types.model_enums import ModelFramework

from aimo import config, hub
from aimo.config import RUNS
from aimo.errors import AimoError
from aimo.inference.model_folder import check_model_folder
from aimo.inference.storage import read_json
from aimo.kaggle import downloads, records
from aimo.kaggle.check import source_of
from aimo.kaggle.client import Api, pages, refusal, status
from aimo.stages import STAGES

LISTED_WITHIN_S = 600.0
"""How long Kaggle may take to list what was uploaded."""
POLL_S = 10.0
METADATA = "dataset-metadata.json"


def push_model(api: Api, run: str, to: str | None, license_name: str) -> str:
    """Push the last model of a run as `push_version` does, record it, and return its source.

    `to` is owner/model/framework/variation: the profile's `training.push_to_kaggle` or else
    USER/aimo-PROFILE/transformers/default, if not given.
    """
    places = Path(run), RUNS / run
    run_dir = next((path for path in places if (path / "profile.yaml").is_file()), None)
    if run_dir is None:
        raise AimoError(
            f"run {run}: there is no {Path(run) / 'profile.yaml'}; name a folder of runs/, or its path"
        )
    profile = config.load(str(run_dir / "profile.yaml"))
    if not profile.trained:
        raise AimoError(f"run {run}: profile {profile.profile} trains no model, so there is none to push")
    folder = run_dir / STAGES[profile.trained[-1]].product
    target = (
        to or profile.training.push_to_kaggle or f"{api.user}/aimo-{profile.profile}/transformers/default"
    )
    name = records.shown(run_dir)
    source = push_version(api, folder, target, f"profile {profile.profile}, run {name}", license_name)
    if not api.dry_run:
        records.record("model", model=source, run=name, profile=profile.profile)
    return source


def push_version(api: Api, folder: Path, target: str, notes: str, license_name: str = "Apache 2.0") -> str:
    """Push a model folder as a new version of owner/model/framework/variation; return that with its number.

    Model and variation are created, private, under `license_name` and with the model's card, where there are
    none. AimoError when a file did not arrive, or is another one on Kaggle. Costs an upload and a download.
    """
    target = source_of(target, 4)
    check_model_folder(folder)
    hub.check_links(folder)
    if inner := [path.name for path in folder.iterdir() if path.is_dir()]:
        raise AimoError(
            f"model folder {folder} has folders in it, which are not pushed: move {', '.join(inner)} out"
        )
    files = {path.name: path for path in sorted(folder.iterdir())}
    with api.build_kaggle_client() as kaggle:
        models = kaggle.models.model_api_client
        before = existing(models.get_model_instance, named(ApiGetModelInstanceRequest, target))
        if before is None:
            card = files["README.md"].read_text() if "README.md" in files else notes
            create_variation(api, models, target, card, license_name, folder)
        else:
            create_version(api, models, target, notes, folder)
        if api.dry_run:
            return f"{target}/VERSION"
        source = f"{target}/{(before.version_number if before else 0) + 1}"
        compare(source, files, functools.partial(list_model, models, source))
        for name, path in files.items():
            if downloads.sha256(functools.partial(download, models, source, name)) != hash_of(path):
                raise AimoError(
                    f"{source}: {name} has another content on Kaggle than in {folder}; push it again"
                )
    return source


def named(request_type: Any, target: str) -> Any:
    """A request about owner/model/framework/variation. AimoError for another form or an unknown framework."""
    parts = target.split("/")
    frameworks = {
        framework.name.removeprefix("MODEL_FRAMEWORK_").replace("_", "").lower(): framework
        for framework in ModelFramework
    }
    if len(parts) != 4 or not all(parts) or parts[2].lower() not in frameworks:
        raise AimoError(
            f"model {target}: write OWNER/MODEL/FRAMEWORK/VARIATION, such as me/aimo/transformers/default"
        )
    request = request_type()
    request.owner_slug, request.model_slug = parts[:2]
    request.framework = frameworks[parts[2].lower()]
    request.instance_slug = parts[3]
    return request


def existing(ask: Callable[[Any], Any], request: Any) -> Any | None:
    """What Kaggle has of this name; None without it. It says 403 of some names that do not exist."""
    try:
        return ask(request)
    except requests.HTTPError as e:
        if status(e) in (403, 404):
            return None
        raise


def create_variation(api: Api, models: Any, target: str, card: str, license_name: str, folder: Path) -> None:
    """Create a variation with its first version, and the model above it where there is none."""
    owner, slug, _, variation = target.split("/")
    model = ApiGetModelRequest()
    model.owner_slug, model.model_slug = owner, slug
    if existing(models.get_model, model) is None:
        request = ApiCreateModelRequest()
        request.owner_slug, request.slug, request.title = owner, slug, slug
        request.is_private, request.description = True, card
        refused(target, models.create_model(request))
    body = ApiCreateModelInstanceRequestBody()
    body.instance_slug, body.license_name = variation, license_name
    body.framework = named(ApiGetModelInstanceRequest, target).framework
    body.overview, body.fine_tunable = card, True
    request = ApiCreateModelInstanceRequest()
    request.owner_slug, request.model_slug, request.body = owner, slug, body
    with api.uploaded(body, folder, ApiBlobType.MODEL):
        refused(target, models.create_model_instance(request))


def create_version(api: Api, models: Any, target: str, notes: str, folder: Path) -> None:
    """Create a new version of a variation."""
    body = ApiCreateModelInstanceVersionRequestBody()
    body.version_notes = notes
    request = named(ApiCreateModelInstanceVersionRequest, target)
    request.body = body
    with api.uploaded(body, folder, ApiBlobType.MODEL):
        refused(target, models.create_model_instance_version(request))


def refused(thing: str, answer: Any) -> None:
    """Raise AimoError with the reason that an answer carries."""
    if answer.error:
        raise refusal(thing, answer.error)


def version_request(request_type: Any, source: str) -> Any:
    """A request about owner/model/framework/variation/version."""
    target, _, number = source.rpartition("/")
    request = named(request_type, target)
    request.version_number = int(number)
    return request


def list_model(models: Any, source: str) -> dict[str, int]:
    """The files of a model's version with their sizes; none while Kaggle does not know it yet."""
    request = version_request(ApiListModelInstanceVersionFilesRequest, source)
    try:
        answers = list(pages(models.list_model_instance_version_files, request))
    except requests.HTTPError as e:
        if status(e) == 404:
            return {}
        raise
    return {file.name: file.size for answer in answers for file in answer.files}


def download(models: Any, source: str, name: str) -> requests.Response:
    """One file of a model's version."""
    request = version_request(ApiDownloadModelInstanceVersionRequest, source)
    request.path = name
    response: requests.Response = models.download_model_instance_version(request)
    return response


def hash_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compare(thing: str, files: dict[str, Path], listing: Callable[[], dict[str, int]]) -> None:
    """Wait until Kaggle lists each file with its size. AimoError names those missing or of another size."""
    sizes = {name: path.stat().st_size for name, path in files.items()}
    began = time.monotonic()
    while True:
        found = listing()
        wrong = [
            f"{name} ({found[name]:,} bytes of {size:,})" if name in found else f"{name} (missing)"
            for name, size in sizes.items()
            if found.get(name) != size
        ]
        if not wrong:
            return
        if time.monotonic() - began > LISTED_WITHIN_S:
            raise AimoError(
                f"{thing} is not whole on Kaggle: {', '.join(wrong)}; push it again as a new version"
            )
        time.sleep(POLL_S)


def push_dataset(api: Api, folder: Path, name: str | None, license_name: str) -> str:
    """Push a folder as a new version of a private dataset, which is created if need be; return OWNER/SLUG.

    The name is `name` or that of dataset-metadata.json in the folder, or else the folder's. A sub-folder is
    sent as one archive, which Kaggle unpacks.
    """
    if not folder.is_dir():
        raise AimoError(f"dataset {folder}: no such folder")
    hub.check_links(folder)
    metadata = read_json(folder / METADATA, "repair the file") if (folder / METADATA).is_file() else {}
    ref = source_of(str(name or metadata.get("id") or folder.resolve().name), 2)
    owner, _, slug = ref.rpartition("/")
    owner = owner or api.user
    if not 6 <= len(slug) <= 50:
        raise AimoError(f"dataset {slug!r}: a slug has 6 to 50 characters; take another with --name")
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != METADATA
    }
    if not files:
        raise AimoError(f"dataset {folder}: the folder is empty")
    listing = ApiListDatasetFilesRequest()
    listing.owner_slug, listing.dataset_slug = owner, slug
    with api.build_kaggle_client() as kaggle:
        datasets = kaggle.datasets.dataset_api_client
        if existing(datasets.list_dataset_files, listing) is None:
            body = request = ApiCreateDatasetRequest()
            request.owner_slug, request.slug, request.title = owner, slug, metadata.get("title", slug)
            request.license_name, request.is_private = license_name, True
            create = datasets.create_dataset
        else:
            body = ApiCreateDatasetVersionRequestBody()
            body.version_notes = time.strftime("%Y-%m-%d %H:%M")
            request = ApiCreateDatasetVersionRequest()
            request.owner_slug, request.dataset_slug, request.body = owner, slug, body
            create = datasets.create_dataset_version
        with api.uploaded(body, folder, ApiBlobType.DATASET, folders="zip"):
            refused(f"dataset {owner}/{slug}", create(request))
        if not api.dry_run:
            compare(f"dataset {owner}/{slug}", files, functools.partial(list_dataset, datasets, listing))
    return f"{owner}/{slug}"


def list_dataset(datasets: Any, request: Any) -> dict[str, int]:
    """The files of a dataset's last version with their sizes."""
    request.page_token = None
    answers = pages(datasets.list_dataset_files, request)
    return {file.name: file.total_bytes for answer in answers for file in answer.dataset_files}
