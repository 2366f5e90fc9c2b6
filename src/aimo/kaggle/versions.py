"""A kernel's versions on Kaggle: push, follow, download the output, and submit."""

import contextlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import requests
from kagglesdk.kernels.types import kernels_api_service as of_kernels
from kagglesdk.kernels.types.kernels_enums import KernelWorkerStatus as State

from aimo.inference import startup
from aimo.inference.errors import AimoError, StageError
from aimo.inference.storage import read_json, write_whole
from aimo.kaggle import kernels
from aimo.kaggle.client import PAUSE_S, TRIES, Api, add_record, check_reply, recorded
from aimo.kaggle.kernels import FOLDER, OUTPUT, slug_of, source_of
from aimo.run.runs import find_run

WAITING = (State.QUEUED, State.NEW_SCRIPT)
ENDED = (State.COMPLETE, State.ERROR, State.CANCEL_ACKNOWLEDGED)
POLL_S = 20.0  # between two polls of a version's status
START_WITHIN_S = 7200.0  # a version that waits longer for a machine is no longer followed
SCORE_POLL_S = 60  # the longest time between two polls of a submission
LAST_LINES = 20  # of the log of a version that failed
ANSWERS = ("submission.parquet", "submission.csv", "submission.zip")


class Version(NamedTuple):
    """One version of a kernel, OWNER/SLUG."""

    ref: str
    number: int

    def __str__(self) -> str:
        return f"{self.ref} version {self.number}"

    @property
    def path(self) -> str:  # as Kaggle's client names it
        return f"{self.ref}/{self.number}"


def read_metadata(folder: Path, owner: str) -> dict[str, Any]:
    """Return a kernel's metadata with the owner in place of the placeholder."""
    text = json.dumps(read_json(folder / "kernel-metadata.json", "restore the file"))
    return dict(json.loads(text.replace(kernels.PLACEHOLDER, owner)))


def push_kernel(
    api: Api, name: str, model: str | None = None, no_run: bool = False
) -> tuple[Version, dict[str, Any]]:
    """Push a kernel that `check_kernel` has passed, which Kaggle then runs; return its version and metadata.

    `model` (owner/model/framework/variation/version) replaces the model that the metadata attach, also in
    the notebook. AimoError if Kaggle refuses the kernel, or accepts it without one of its inputs.
    """
    folder = kernels.kernel_folder(name)
    metadata = read_metadata(folder, api.user)
    code = folder / str(metadata.get("code_file"))
    text = code.read_text()
    if model:
        model = source_of(model, 5)
        if not kernels.is_source("model_sources", model):
            form = kernels.FORMS["model_sources"][1]
            raise AimoError(f"--model {model}: write {form}, such as me/aimo/transformers/default/1")
        old_models = [old.partition("/")[::2] for old in metadata.get("model_sources") or []]

        def replaced(found: re.Match[str]) -> str:  # of a path in either of Kaggle's layouts
            named = startup.place_of(found[0])
            old = next((one for one in old_models if named and kernels.is_in(named, one)), None)
            if named is None or old is None:
                return found[0]
            return f"/kaggle/input/{str(model).partition('/')[2]}{named[1][len(old[1]) :]}"

        text = re.sub(r"/kaggle/input/[\w./-]+", replaced, text)
        metadata["model_sources"] = [model]
    with tempfile.TemporaryDirectory() as copy:
        Path(copy, code.name).write_text(text)
        Path(copy, "kernel-metadata.json").write_text(json.dumps(metadata | {"code_file": code.name}))
        answer = api.kernels_push(copy, no_run=no_run)
    check_reply(f"kernel {metadata['id']}", answer)
    version = Version(metadata["id"], answer.version_number)
    kinds = ("dataset", "competition", "kernel", "model")
    if lost := [(kind, names) for kind in kinds if (names := getattr(answer, f"invalid_{kind}_sources"))]:
        named = "; ".join(f"{kind} {', '.join(names)}" for kind, names in lost)
        raise AimoError(
            f"kernel {version} runs without inputs that Kaggle does not know: {named}; push or rename them, "
            "then push the kernel again"
        )
    models = metadata.get("model_sources", [])
    add_record("push", kernel=version.ref, version=version.number, models=models)
    return version, metadata


def find_version(api: Api, name: str, number: int | None = None) -> tuple[Version, Any]:
    """Return a version of a kernel, the last one if no number is given, and Kaggle's metadata of the kernel.

    `name` is a folder of kernels/, OWNER/SLUG, or a SLUG of the token's user.
    """
    folder = FOLDER / name
    ref = str(read_metadata(folder, api.user).get("id")) if folder.is_dir() else source_of(name, 2)
    owner, _, slug = ref.rpartition("/")
    owner = owner or api.user
    metadata = api.ask(of_kernels.ApiGetKernelRequest, user_name=owner, kernel_slug=slug).metadata
    current = metadata.current_version_number if metadata else 0
    return Version(f"{owner}/{slug}", number or current), metadata


def ask_state(api: Api, version: Version) -> tuple[State, str]:
    answer = api.kernels_status(version.path)
    return answer.status, " ".join(answer.failure_message.split())


def read_log(api: Api, version: Version) -> Iterator[str]:
    """Yield the lines of a version's log, live while it runs."""
    for event in api.kernels_logs_stream(version.path):
        yield from str(event.get("data", "")).splitlines()


def follow_version(api: Api, version: Version, metadata: dict[str, Any]) -> None:
    """Print a version's status changes and its log until it ends. StageError if it failed."""
    began, seen, last = time.monotonic(), 0, None
    while True:
        state, message = ask_state(api, version)
        if state != last:
            print(f"{time.strftime('%H:%M:%S')} {version}: {state.name.lower()}", flush=True)
        if state == State.RUNNING and last != state:
            _, found = find_version(api, version.ref)
            for key in ("machine_shape", "enable_gpu", "enable_internet"):  # Kaggle does not report it
                asked, given = metadata.get(key), getattr(found, key)
                if asked is not None and given not in (asked, ""):
                    told = f"runs with {key} {given}, not {asked}; may the account use that machine?"
                    print(f"{version} {told}")
        last = state
        if state == State.RUNNING:
            # The stream may break; the next poll reads it again.
            with contextlib.suppress(requests.RequestException, ValueError):
                for count, line in enumerate(read_log(api, version), 1):
                    if count > seen:
                        print(line, flush=True)
                        seen = count
        if state in ENDED:
            break
        if state in WAITING and time.monotonic() - began > START_WITHIN_S:
            raise AimoError(
                f"{version} has not started within {START_WITHIN_S / 3600:.0f} hours; it stays queued: look "
                f"with `aimo kaggle status {version.ref}`"
            )
        time.sleep(POLL_S)
    if state != State.COMPLETE:
        print("\n".join(["the last lines of its log:", *[*read_log(api, version)][-LAST_LINES:]]))
        raise StageError(f"{version} ended as {state.name.lower()}: {message or 'Kaggle names no reason'}")


def list_output(api: Api, version: Version) -> dict[str, int]:
    owner, slug = version.ref.split("/")
    named = {"user_name": owner, "kernel_slug": slug, "version_label": f"v{version.number}"}
    answers = api.pages(of_kernels.ApiListKernelFilesRequest, **named)
    return {file.name: file.size for answer in answers for file in answer.files}


def download_output(api: Api, version: Version) -> Path:
    """Download a version's output and log to runs/kaggle/SLUG/NUMBER, and return that folder.

    The folder is whole or does not exist; an interrupted download continues.
    AimoError if a file is missing or its size differs from Kaggle's list.
    """
    slug, sizes = version.ref.split("/")[1], list_output(api, version)
    api.end_dry_run()
    folder = OUTPUT / slug / str(version.number)
    partial = folder.with_name(f"{folder.name}.partial")
    for attempt in range(1, TRIES + 1):
        try:
            api.kernels_output(version.path, str(partial), quiet=True)
            break
        except (requests.ConnectionError, requests.Timeout):  # within a file, the client itself resumes
            if attempt == TRIES:
                raise
        time.sleep(PAUSE_S * 2 ** (attempt - 1))
    found = {str(path.relative_to(partial)): path for path in partial.rglob("*") if path.is_file()}
    if not found:
        raise AimoError(f"{version} has no output yet; see `aimo kaggle status`")
    wrong = [name for name, size in sizes.items() if name not in found or found[name].stat().st_size != size]
    for name in found.keys() & {*wrong}:
        found[name].unlink()
    if wrong:
        raise AimoError(f"{version}: not whole: {', '.join(sorted(wrong))}; give the same command again")
    log = partial / f"{slug}.log"
    # The log may be missing, or text already.
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        write_whole(log, "".join(entry["data"] for entry in json.loads(log.read_text())))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def submit_version(
    api: Api, what: str, message: str, competition: str | None, number: int | None = None, wait: bool = False
) -> str:
    """Submit a version of a kernel (the last one if no number is given), or a file; return a line with the
    submission's number and, with `wait`, its public score.

    The competition defaults to the kernel's. A file in a run's folder is recorded with the run.
    AimoError if the version is not complete or left no answers, or if no submission is left for today.
    """
    slug, path = slug_of(competition) if competition else "COMPETITION", Path(what)
    made: dict[str, Any] = {"message": message}
    if path.is_file():
        made["file"] = path.name
        if (path.parent / "profile.yaml").is_file():
            made |= recorded(*find_run(str(path.parent)))
    else:
        version, metadata = find_version(api, what, number)
        state, _ = ask_state(api, version)
        names, what = list_output(api, version), str(version)
        left = [name for name in ANSWERS if name in names] or ANSWERS[: api.dry_run]
        made |= {"kernel": version.ref, "version": version.number}
        if not api.dry_run:
            if state != State.COMPLETE:
                raise AimoError(f"{version} is {state.name.lower()}, not complete; submit a version that is")
            if not left:
                others = ", ".join(names) or "nothing"
                raise AimoError(f"{version} left no {ANSWERS[0]}, only {others}; see its log")
            attached = [slug] if competition else metadata.competition_data_sources
            if len(attached) != 1:
                named = ", ".join(attached) or "none"
                raise AimoError(f"{version} has {named} as competitions; name one with --competition")
            slug = attached[0]

    limits = api.competition_get_submission_limits(slug)
    if not api.dry_run and limits.num_allowed_now <= 0:
        told = f"no submission is left ({limits.num_today} made today); wait for 0:00 UTC"
        raise AimoError(f"competition {slug}: {told}")
    if not path.is_file():
        answer = api.competition_submit_code(left[0], message, slug, version.ref, version.number, quiet=True)
    else:
        if api.dry_run:
            print(f"PUT {path.name}, {path.stat().st_size:,} bytes")
        api.end_dry_run()
        answer = api.competition_submit(what, message, slug, quiet=True)
    if not answer.ref:
        reason = answer.message or "no reason given"
        raise AimoError(f"competition {slug}: {what} was not taken ({reason})")
    add_record("submit", ref=answer.ref, competition=slug, **made)
    if not wait:
        return f"submission {answer.ref}; see `aimo kaggle scores`"
    return f"submission {answer.ref}: public score {api.await_score(answer.ref, SCORE_POLL_S)}"
