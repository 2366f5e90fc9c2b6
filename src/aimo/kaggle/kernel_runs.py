"""A kernel's versions on Kaggle: push one, follow it, and bring its output here.

Out of scope: what is wrong with a kernel before it is pushed (`check`); building it (`kernels`).
"""

import json
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import requests
from kagglesdk.kernels.types.kernels_api_service import (
    ApiGetKernelRequest,
    ApiGetKernelSessionStatusRequest,
    ApiListKernelFilesRequest,
    ApiListKernelSessionOutputRequest,
)
from kagglesdk.kernels.types.kernels_enums import KernelWorkerStatus

from aimo.errors import AimoError, StageError
from aimo.inference import startup
from aimo.inference.errors import one_line
from aimo.inference.storage import read_json, write_whole
from aimo.kaggle import downloads
from aimo.kaggle.check import FORMS, OUTPUT, PLACEHOLDER, folder_of, is_in, lower_owner, source_of
from aimo.kaggle.client import Api, filled, pages, refusal
from aimo.kaggle.kernels import FOLDER

WAITING = (KernelWorkerStatus.QUEUED, KernelWorkerStatus.NEW_SCRIPT)
ENDED = (
    KernelWorkerStatus.COMPLETE,
    KernelWorkerStatus.ERROR,
    KernelWorkerStatus.CANCEL_ACKNOWLEDGED,
)
POLL_S = 20.0
"""Seconds between two looks at a version's status."""
LAST_LINES = 20
"""Lines of the log that are shown of a version that failed."""


@dataclass(frozen=True)
class Version:
    """One version of a kernel."""

    owner: str
    slug: str
    number: int

    def __str__(self) -> str:
        return f"{self.owner}/{self.slug} version {self.number}"

    @property
    def label(self) -> str:
        """The version as requests name it."""
        return str(self.number) if self.number else ""

    def ask(self, request_type: Any) -> Any:
        """A request about this version."""
        return filled(request_type, user_name=self.owner, kernel_slug=self.slug, version_label=self.label)


def read_metadata(folder: Path, owner: str) -> dict[str, Any]:
    """A kernel's metadata with the owner in place of the placeholder. AimoError when it cannot be read."""
    path = folder / "kernel-metadata.json"
    if not path.is_file():
        known = ", ".join(sorted(p.parent.name for p in FOLDER.glob("*/kernel-metadata.json")))
        raise AimoError(
            f"kernel {folder.name}: there is no {path}; take one of {known}, or a folder that has one"
        )
    metadata = read_json(path, "repair the file")
    if not isinstance(metadata.get("id"), str):
        raise AimoError(f"{path}: it has no id; write OWNER/SLUG")
    return dict(json.loads(json.dumps(metadata).replace(PLACEHOLDER, owner)))


def push(api: Api, name: str, model: str | None = None) -> tuple[Version, dict[str, Any]]:
    """Push a kernel, which Kaggle then runs; return the new version and the metadata it was pushed with.

    `model` (owner/model/framework/variation/version) takes the place of the model that the metadata attach,
    in the notebook too. AimoError when Kaggle refuses the kernel, or takes it without one of its inputs.
    """
    folder = folder_of(name)
    metadata = read_metadata(folder, api.user)
    code = folder / str(metadata.get("code_file"))
    if not code.is_file():
        raise AimoError(f"kernel {name}: there is no {code}; make it with `aimo kernel build {name}`")
    text = code.read_text()
    if model:
        pattern, form = FORMS["model_sources"]
        model = source_of(model, 5)
        if not re.fullmatch(pattern, lower_owner(model)):
            raise AimoError(f"--model {model}: write {form}, such as me/aimo/transformers/default/1")
        for old in metadata.get("model_sources") or []:
            text = replace_input(text, old, model)
        metadata["model_sources"] = [model]
    with tempfile.TemporaryDirectory() as copy:
        Path(copy, code.name).write_text(text)
        Path(copy, "kernel-metadata.json").write_text(json.dumps(metadata | {"code_file": code.name}))
        answer = api.kernels_push(copy)
    if answer.error:
        raise refusal(f"kernel {metadata['id']}", answer.error)
    lost = {
        kind: names
        for kind in ("dataset", "competition", "kernel", "model")
        if (names := getattr(answer, f"invalid_{kind}_sources"))
    }
    if lost:
        named = "; ".join(f"{kind} {', '.join(names)}" for kind, names in lost.items())
        raise AimoError(
            f"kernel {metadata['id']} version {answer.version_number} runs without inputs that Kaggle does "
            f"not know: {named}; push or rename them, then push the kernel again"
        )
    owner, slug = metadata["id"].split("/")
    return Version(owner, slug, answer.version_number), metadata


def replace_input(text: str, old: str, new: str) -> str:
    """Put the path of another input in place of each path of an old one, in either of Kaggle's layouts."""

    def replaced(found: re.Match[str]) -> str:
        named = startup.place_of(found[0])
        if not named or not is_in(named, old.partition("/")[::2]):
            return found[0]
        return f"/kaggle/input/{new.partition('/')[2]}{named[1][len(old.partition('/')[2]) :]}"

    return re.sub(r"/kaggle/input/[\w./-]+", replaced, text)


def latest(api: Api, name: str) -> tuple[Version, Any]:
    """The last version of a kernel, and Kaggle's metadata of it.

    `name` is a folder of kernels/, OWNER/SLUG, or a SLUG of the token's user.
    """
    folder = FOLDER / name
    ref = read_metadata(folder, api.user)["id"] if folder.is_dir() else source_of(name, 2)
    owner, _, slug = ref.rpartition("/")
    request = filled(ApiGetKernelRequest, user_name=owner or api.user, kernel_slug=slug)
    with api.build_kaggle_client() as kaggle:
        metadata = kaggle.kernels.kernels_api_client.get_kernel(request).metadata
    number = metadata.current_version_number if metadata else 0
    return Version(request.user_name, slug, number), metadata


def find(api: Api, name: str, number: int | None) -> Version:
    """A version of a kernel, the last one if no number is given."""
    version, _ = latest(api, name)
    return Version(version.owner, version.slug, number) if number else version


def ask_status(api: Api, version: Version) -> tuple[KernelWorkerStatus, str]:
    """How far a version is, and the message of one that failed."""
    with api.build_kaggle_client() as kaggle:
        answer = kaggle.kernels.kernels_api_client.get_kernel_session_status(
            version.ask(ApiGetKernelSessionStatusRequest)
        )
    return answer.status, " ".join(answer.failure_message.split())


def follow(api: Api, version: Version, metadata: dict[str, Any], start_within_s: float) -> None:
    """Print a version's changes of status and its log until it has ended.

    StageError with the last lines of its log when it failed; AimoError when it does not start in time; it
    then stays queued.
    """
    began, seen, last = time.monotonic(), 0, None
    while True:
        status, message = ask_status(api, version)
        if status != last:
            print(f"{time.strftime('%H:%M:%S')} {version}: {status.name.lower()}", flush=True)
        if status == KernelWorkerStatus.RUNNING and last != status:
            _, found = latest(api, f"{version.owner}/{version.slug}")
            for key in ("machine_shape", "enable_gpu", "enable_internet"):  # Kaggle tells nobody
                asked, given = metadata.get(key), getattr(found, key)
                if asked is not None and given not in (asked, ""):
                    print(
                        f"{version} runs with {key} {given}, not {asked}; may the account use that machine?"
                    )
        last = status
        if status == KernelWorkerStatus.RUNNING:
            seen = follow_log(api, version, seen)
        if status in ENDED:
            break
        if status in WAITING and time.monotonic() - began > start_within_s:
            raise AimoError(
                f"{version} has not started within {start_within_s / 60:.0f} minutes; it stays queued: look "
                f"with `aimo kaggle status {version.owner}/{version.slug}`, or give --start-within more"
            )
        time.sleep(POLL_S)
    if status != KernelWorkerStatus.COMPLETE:
        lines = read_log(api, version)[-LAST_LINES:]
        print("\n".join(["the last lines of its log:", *lines]))
        raise StageError(f"{version} ended as {status.name.lower()}: {message or 'Kaggle names no reason'}")


def follow_log(api: Api, version: Version, seen: int) -> int:
    """Print the log of a running version as it comes; return how many entries have been seen.

    Where it breaks off, the caller's next look at the status decides; Kaggle then sends the log from its
    start.
    """
    try:
        for count, event in enumerate(api.kernels_logs_stream(f"{version.owner}/{version.slug}"), 1):
            if count > seen:
                print(str(event.get("data", "")).rstrip("\n"), flush=True)
                seen = count
    except (requests.RequestException, ValueError):
        pass
    return seen


def read_log(api: Api, version: Version) -> list[str]:
    """The lines of a version's log."""
    with api.build_kaggle_client() as kaggle:
        ask = kaggle.kernels.kernels_api_client.list_kernel_session_output
        return log_lines(ask(version.ask(ApiListKernelSessionOutputRequest)).log)


def log_lines(log: str) -> list[str]:
    """The lines of a log, which Kaggle keeps as JSON entries with `data`, or as text."""
    try:
        return "".join(entry["data"] for entry in json.loads(log)).splitlines()
    except (ValueError, TypeError, KeyError):
        return log.splitlines()


def list_output(api: Api, version: Version) -> dict[str, int]:
    """The files of a version's output with their sizes in bytes."""
    with api.build_kaggle_client() as kaggle:
        ask = kaggle.kernels.kernels_api_client.list_kernel_files
        answers = pages(ask, version.ask(ApiListKernelFilesRequest))
        return {file.name: file.size for answer in answers for file in answer.files}


def output(api: Api, version: Version, to: Path | None = None) -> Path:
    """Download a version's output and log and return their folder, runs/kaggle/SLUG/NUMBER if none is given.

    Each file has the size that Kaggle lists; what is already there in that size is kept. AimoError for a
    file that is missing or of another size, and for a submission that is no table of answers.
    """
    folder = to or OUTPUT / version.slug / version.label
    sizes = list_output(api, version)
    with api.build_kaggle_client() as kaggle:
        ask = kaggle.kernels.kernels_api_client.list_kernel_session_output
        answers = list(pages(ask, version.ask(ApiListKernelSessionOutputRequest)))
    if api.dry_run:
        return folder
    if not sizes and not answers[0].log:
        raise AimoError(f"{version} has no output yet; see `aimo kaggle status`")
    urls = {file.file_name: file.url for answer in answers for file in answer.files}
    if missing := sizes.keys() - urls.keys():
        raise AimoError(f"{version}: Kaggle gives no address for {', '.join(sorted(missing))}; try again")
    folder.mkdir(parents=True, exist_ok=True)
    for name, url in urls.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise AimoError(
                f"{version}: its output {name!r} would lie outside {folder}; it is not downloaded"
            )
        if not path.is_file() or path.stat().st_size != sizes.get(name):
            downloads.save(downloads.fetch(url), path, sizes.get(name))
    write_whole(folder / f"{version.slug}.log", "\n".join(log_lines(answers[0].log)) + "\n")
    submission = folder / "submission.parquet"
    if submission.exists():
        try:
            columns = set(pl.read_parquet_schema(submission))
        except (pl.exceptions.PolarsError, OSError) as e:
            raise AimoError(f"{submission} is no parquet file ({one_line(e, 100)})") from None
        if not {"id", "answer"} <= columns:
            raise AimoError(f"{submission} has the columns {', '.join(sorted(columns))}, not id and answer")
    return folder
