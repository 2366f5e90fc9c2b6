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

from aimo import config
from aimo.config import RUNS
from aimo.config.stages import STAGES
from aimo.errors import AimoError
from aimo.inference.model_folder import check_model_folder
from aimo.inference.storage import read_json
from aimo.kaggle import downloads, records
from aimo.kaggle.check import source_of
from aimo.kaggle.client import Api, filled, pages, refusal, status
from aimo.run import hub

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
        models, kind = kaggle.models.model_api_client, named(target)
        before = existing(models.get_model_instance, filled(ApiGetModelInstanceRequest, **kind))
        if before is None:
            owner, slug, variation = kind["owner_slug"], kind["model_slug"], kind["instance_slug"]
            card = files["README.md"].read_text() if "README.md" in files else notes
            if (
                existing(models.get_model, filled(ApiGetModelRequest, owner_slug=owner, model_slug=slug))
                is None
            ):
                about = {"owner_slug": owner, "slug": slug, "title": slug, "description": card}
                refused(target, models.create_model(filled(ApiCreateModelRequest, is_private=True, **about)))
            body = filled(
                ApiCreateModelInstanceRequestBody,
                instance_slug=variation,
                framework=kind["framework"],
                license_name=license_name,
                overview=card,
                fine_tunable=True,
            )
            request = filled(ApiCreateModelInstanceRequest, owner_slug=owner, model_slug=slug, body=body)
            create = models.create_model_instance
        else:
            body = filled(ApiCreateModelInstanceVersionRequestBody, version_notes=notes)
            request = filled(ApiCreateModelInstanceVersionRequest, **kind, body=body)
            create = models.create_model_instance_version
        with api.uploaded(body, folder, ApiBlobType.MODEL):
            refused(target, create(request))
        if api.dry_run:
            return f"{target}/VERSION"
        number = (before.version_number if before else 0) + 1
        source, kind = f"{target}/{number}", kind | {"version_number": number}

        def listed() -> dict[str, int]:
            """The sizes of the version's files; none while Kaggle does not know it yet."""
            request = filled(ApiListModelInstanceVersionFilesRequest, **kind)
            answers = existing(
                lambda asked: list(pages(models.list_model_instance_version_files, asked)), request
            )
            return {file.name: file.size for answer in answers or [] for file in answer.files}

        compare(source, files, listed)
        for name, path in files.items():
            request = filled(ApiDownloadModelInstanceVersionRequest, **kind, path=name)
            there = downloads.sha256(functools.partial(models.download_model_instance_version, request))
            with path.open("rb") as file:
                here = hashlib.file_digest(file, "sha256").hexdigest()
            if there != here:
                raise AimoError(
                    f"{source}: {name} has another content on Kaggle than in {folder}; push it again"
                )
    return source


def named(target: str) -> dict[str, Any]:
    """The fields of a request about owner/model/framework/variation.

    AimoError for another form or an unknown framework.
    """
    parts = target.split("/")
    frameworks = {
        framework.name.removeprefix("MODEL_FRAMEWORK_").replace("_", "").lower(): framework
        for framework in ModelFramework
    }
    if len(parts) != 4 or not all(parts) or parts[2].lower() not in frameworks:
        raise AimoError(
            f"model {target}: write OWNER/MODEL/FRAMEWORK/VARIATION, such as me/aimo/transformers/default"
        )
    fields = dict(zip(("owner_slug", "model_slug", "framework", "instance_slug"), parts, strict=True))
    return fields | {"framework": frameworks[parts[2].lower()]}


def existing(ask: Callable[[Any], Any], request: Any) -> Any | None:
    """What Kaggle has of this name; None without it. It says 403 of some names that do not exist."""
    try:
        return ask(request)
    except requests.HTTPError as e:
        if status(e) in (403, 404):
            return None
        raise


def refused(thing: str, answer: Any) -> None:
    """Raise AimoError with the reason that an answer carries."""
    if answer.error:
        raise refusal(thing, answer.error)


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
    kind = {"owner_slug": owner, "dataset_slug": slug}
    with api.build_kaggle_client() as kaggle:
        datasets = kaggle.datasets.dataset_api_client
        if existing(datasets.list_dataset_files, filled(ApiListDatasetFilesRequest, **kind)) is None:
            about: dict[str, Any] = {
                "owner_slug": owner,
                "slug": slug,
                "title": str(metadata.get("title", slug)),
            }
            about |= {"license_name": license_name, "is_private": True}
            body = request = filled(ApiCreateDatasetRequest, **about)
            create = datasets.create_dataset
        else:
            body = filled(ApiCreateDatasetVersionRequestBody, version_notes=time.strftime("%Y-%m-%d %H:%M"))
            request = filled(ApiCreateDatasetVersionRequest, **kind, body=body)
            create = datasets.create_dataset_version
        with api.uploaded(body, folder, ApiBlobType.DATASET, folders="zip"):
            refused(f"dataset {owner}/{slug}", create(request))

        def listed() -> dict[str, int]:
            """The sizes of the last version's files."""
            answers = pages(datasets.list_dataset_files, filled(ApiListDatasetFilesRequest, **kind))
            return {file.name: file.total_bytes for answer in answers for file in answer.dataset_files}

        if not api.dry_run:
            compare(f"dataset {owner}/{slug}", files, listed)
    return f"{owner}/{slug}"
