"""A kernel's versions on Kaggle: push, follow, bring the output here, submit, and list the scores."""

import json
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import requests
from kagglesdk.competitions.types.competition_api_service import ApiListSubmissionsRequest
from kagglesdk.kernels.types.kernels_api_service import (
    ApiGetKernelRequest,
    ApiGetKernelSessionStatusRequest,
    ApiListKernelFilesRequest,
    ApiListKernelSessionOutputRequest,
)
from kagglesdk.kernels.types.kernels_enums import KernelWorkerStatus as State

from aimo.errors import AimoError, StageError
from aimo.inference import startup
from aimo.inference.errors import one_line
from aimo.inference.storage import read_json, write_whole
from aimo.kaggle import transfers
from aimo.kaggle.check import FORMS, OUTPUT, PLACEHOLDER, is_in, is_source, kernel_folder, slug_of, source_of
from aimo.kaggle.client import Api, add_record, check_reply, find_record
from aimo.kaggle.kernels import FOLDER

WAITING = (State.QUEUED, State.NEW_SCRIPT)
ENDED = (State.COMPLETE, State.ERROR, State.CANCEL_ACKNOWLEDGED)
POLL_S = 20.0  # between two looks at a version's status
LAST_LINES = 20  # of the log of a version that failed
ANSWERS = ("submission.parquet", "submission.csv")


@dataclass(frozen=True)
class Version:
    """One version of a kernel."""

    owner: str
    slug: str
    number: int

    def __str__(self) -> str:
        return f"{self.ref} version {self.number}"

    @property
    def ref(self) -> str:
        """The kernel, OWNER/SLUG."""
        return f"{self.owner}/{self.slug}"

    def fields(self) -> dict[str, str]:
        """How requests name this version."""
        label = str(self.number) if self.number else ""
        return {"user_name": self.owner, "kernel_slug": self.slug, "version_label": label}


def read_metadata(folder: Path, owner: str) -> dict[str, Any]:
    """Return a kernel's metadata with the owner in place of the placeholder."""
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


def push_kernel(api: Api, name: str, model: str | None = None) -> tuple[Version, dict[str, Any]]:
    """Push a kernel, which Kaggle then runs; return the new version and the metadata it was pushed with.

    `model` (owner/model/framework/variation/version) takes the place of the model that the metadata attach,
    in the notebook too. AimoError when Kaggle refuses the kernel, or takes it without one of its inputs.
    """
    folder = kernel_folder(name)
    metadata = read_metadata(folder, api.user)
    code = folder / str(metadata.get("code_file"))
    if not code.is_file():
        raise AimoError(f"kernel {name}: there is no {code}; make it with `aimo kernel build {name}`")
    text = code.read_text()
    if model:
        model = source_of(model, 5)
        if not is_source("model_sources", model):
            form = FORMS["model_sources"][1]
            raise AimoError(f"--model {model}: write {form}, such as me/aimo/transformers/default/1")
        for old in metadata.get("model_sources") or []:
            text = replace_input(text, old, model)
        metadata["model_sources"] = [model]
    with tempfile.TemporaryDirectory() as copy:
        Path(copy, code.name).write_text(text)
        Path(copy, "kernel-metadata.json").write_text(json.dumps(metadata | {"code_file": code.name}))
        answer = api.kernels_push(copy)
    check_reply(f"kernel {metadata['id']}", answer)
    kinds = ("dataset", "competition", "kernel", "model")
    if lost := [(kind, names) for kind in kinds if (names := getattr(answer, f"invalid_{kind}_sources"))]:
        named = "; ".join(f"{kind} {', '.join(names)}" for kind, names in lost)
        raise AimoError(
            f"kernel {metadata['id']} version {answer.version_number} runs without inputs that Kaggle does "
            f"not know: {named}; push or rename them, then push the kernel again"
        )
    owner, slug = metadata["id"].split("/")
    version = Version(owner, slug, answer.version_number)
    if not api.dry_run:
        models = metadata.get("model_sources", [])
        add_record("push", kernel=version.ref, version=version.number, models=models)
    return version, metadata


def replace_input(text: str, old: str, new: str) -> str:
    """Put the path of another input in place of each path of an old one, in either of Kaggle's layouts."""

    def replaced(found: re.Match[str]) -> str:
        named = startup.place_of(found[0])
        if not named or not is_in(named, old.partition("/")[::2]):
            return found[0]
        return f"/kaggle/input/{new.partition('/')[2]}{named[1][len(old.partition('/')[2]) :]}"

    return re.sub(r"/kaggle/input/[\w./-]+", replaced, text)


def find_version(api: Api, name: str, number: int | None = None) -> tuple[Version, Any]:
    """Return a version of a kernel, the last one if no number is given, and Kaggle's metadata of the kernel.

    `name` is a folder of kernels/, OWNER/SLUG, or a SLUG of the token's user.
    """
    folder = FOLDER / name
    ref = read_metadata(folder, api.user)["id"] if folder.is_dir() else source_of(name, 2)
    owner, _, slug = ref.rpartition("/")
    owner = owner or api.user
    metadata = api.ask(ApiGetKernelRequest, user_name=owner, kernel_slug=slug).metadata
    return Version(owner, slug, number or (metadata.current_version_number if metadata else 0)), metadata


def ask_state(api: Api, version: Version) -> tuple[State, str]:
    """Return how far a version is, and the message of one that failed."""
    answer = api.ask(ApiGetKernelSessionStatusRequest, **version.fields())
    return answer.status, " ".join(answer.failure_message.split())


def follow_version(api: Api, version: Version, metadata: dict[str, Any], start_within_s: float) -> None:
    """Print a version's changes of status and its log until it has ended.

    StageError with the last lines of its log when it failed; AimoError when it does not start in time; it
    then stays queued.
    """
    began, seen, last = time.monotonic(), 0, None
    while True:
        state, message = ask_state(api, version)
        if state != last:
            print(f"{time.strftime('%H:%M:%S')} {version}: {state.name.lower()}", flush=True)
        if state == State.RUNNING and last != state:
            _, found = find_version(api, version.ref)
            for key in ("machine_shape", "enable_gpu", "enable_internet"):  # Kaggle tells nobody
                asked, given = metadata.get(key), getattr(found, key)
                if asked is not None and given not in (asked, ""):
                    told = f"runs with {key} {given}, not {asked}; may the account use that machine?"
                    print(f"{version} {told}")
        last = state
        if state == State.RUNNING:
            seen = follow_log(api, version, seen)
        if state in ENDED:
            break
        if state in WAITING and time.monotonic() - began > start_within_s:
            raise AimoError(
                f"{version} has not started within {start_within_s / 60:.0f} minutes; it stays queued: look "
                f"with `aimo kaggle status {version.ref}`, or give --start-within more"
            )
        time.sleep(POLL_S)
    if state != State.COMPLETE:
        print("\n".join(["the last lines of its log:", *read_log(api, version)[-LAST_LINES:]]))
        raise StageError(f"{version} ended as {state.name.lower()}: {message or 'Kaggle names no reason'}")


def follow_log(api: Api, version: Version, seen: int) -> int:
    """Print the log of a running version as it comes; return how many entries have been seen.

    Where it breaks off, the caller's next look at the status decides; Kaggle then sends the log from its
    start.
    """
    try:
        for count, event in enumerate(api.kernels_logs_stream(version.ref), 1):
            if count > seen:
                print(str(event.get("data", "")).rstrip("\n"), flush=True)
                seen = count
    except (requests.RequestException, ValueError):
        pass
    return seen


def read_log(api: Api, version: Version) -> list[str]:
    """Return the lines of a version's log."""
    return log_lines(api.ask(ApiListKernelSessionOutputRequest, **version.fields()).log)


def log_lines(log: str) -> list[str]:
    """Return the lines of a log, which Kaggle keeps as JSON entries with `data`, or as text."""
    try:
        return "".join(entry["data"] for entry in json.loads(log)).splitlines()
    except (ValueError, TypeError, KeyError):
        return log.splitlines()


def list_output(api: Api, version: Version) -> dict[str, int]:
    """Return the files of a version's output with their sizes in bytes."""
    answers = api.pages(ApiListKernelFilesRequest, **version.fields())
    return {file.name: file.size for answer in answers for file in answer.files}


def download_output(api: Api, version: Version, to: Path | None = None) -> Path:
    """Download a version's output and log and return their folder, runs/kaggle/SLUG/NUMBER if none is given.

    Each file has the size that Kaggle lists; what is already there in that size is kept. AimoError for a
    file that is missing or of another size, and for a submission that is no table of answers.
    """
    folder = to or OUTPUT / version.slug / version.fields()["version_label"]
    sizes = list_output(api, version)
    answers = list(api.pages(ApiListKernelSessionOutputRequest, **version.fields()))
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
            transfers.save_download(transfers.fetch(url), path, sizes.get(name))
    write_whole(folder / f"{version.slug}.log", "\n".join(log_lines(answers[0].log)) + "\n")
    submission = folder / ANSWERS[0]
    if submission.exists():
        try:
            columns = set(pl.read_parquet_schema(submission))
        except (pl.exceptions.PolarsError, OSError) as e:
            raise AimoError(f"{submission} is no parquet file ({one_line(e, 100)})") from None
        if not {"id", "answer"} <= columns:
            raise AimoError(f"{submission} has the columns {', '.join(sorted(columns))}, not id and answer")
    return folder


def submit_version(api: Api, kernel: str, number: int | None, message: str, competition: str | None) -> int:
    """Submit a version of a kernel (the last one if no number is given) and return the submission's number.

    The competition is the one that the kernel has as input, if no other is named. AimoError when the
    version is not complete or left no answers, or when no submission is left for today.
    """
    version, metadata = find_version(api, kernel, number)
    state, _ = ask_state(api, version)
    names = list_output(api, version)
    if api.dry_run:
        slug, answers = slug_of(competition) if competition else "COMPETITION", ANSWERS[0]
    else:
        if state != State.COMPLETE:
            raise AimoError(f"{version} is {state.name.lower()}, not complete; submit a version that is")
        answers = next((name for name in ANSWERS if name in names), "")
        if not answers:
            left = ", ".join(names) or "nothing"
            raise AimoError(f"{version} left no {ANSWERS[0]}, only {left}; see its log")
        attached = metadata.competition_data_sources
        if not competition and len(attached) != 1:
            named = ", ".join(attached) or "none"
            raise AimoError(f"{version} has {named} as competitions; name one with --competition")
        slug = slug_of(competition or attached[0])
    limits = api.competition_get_submission_limits(slug)
    if not api.dry_run and limits.num_allowed_now <= 0:
        raise AimoError(
            f"competition {slug}: no submission is left ({limits.num_today} made today); wait for 0:00 UTC"
        )
    answer = api.competition_submit_code(answers, message, slug, version.ref, version.number, quiet=True)
    if api.dry_run:
        return 0
    if not answer.ref:
        raise AimoError(
            f"competition {slug}: {version} was not taken ({answer.message or 'no reason given'})"
        )
    made = {"kernel": version.ref, "version": version.number, "message": message}
    add_record("submit", ref=answer.ref, competition=slug, **made)
    return int(answer.ref)


def list_scores(api: Api, competition: str) -> list[dict[str, Any]]:
    """Return a row for each submission to a competition, with what made it where that is recorded."""
    answers = api.pages(ApiListSubmissionsRequest, competition_name=slug_of(competition))
    rows = []
    for submission in (submission for answer in answers for submission in answer.submissions):
        made = origin(submission.ref)
        rows.append(
            {
                "date": f"{submission.date:%Y-%m-%d %H:%M}" if submission.date else "",
                "ref": submission.ref,
                "public score": submission.public_score or submission.status.name.lower(),
                **{key: made.get(key, "") for key in ("kernel", "version", "run", "profile")},
                "message": submission.description,
            }
        )
    return rows


def origin(ref: int) -> dict[str, Any]:
    """Return what made a submission: kernel, version, models, and the first known model's run."""
    submitted = find_record("submit", ref=ref)
    pushed = find_record("push", kernel=submitted.get("kernel"), version=submitted.get("version"))
    made = (find_record("model", model=model) for model in pushed.get("models", []))
    return next(filter(None, made), {}) | pushed | submitted
