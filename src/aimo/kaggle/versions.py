"""A kernel's versions on Kaggle: push, follow, bring the output here, and submit."""

import contextlib
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import requests
from kagglesdk.kernels.types import kernels_api_service as of_kernels
from kagglesdk.kernels.types.kernels_enums import KernelWorkerStatus as State

from aimo.inference import startup
from aimo.inference.errors import AimoError, StageError
from aimo.inference.storage import read_json, write_whole
from aimo.kaggle import client
from aimo.kaggle.check import FORMS, OUTPUT, PLACEHOLDER, is_in, is_source, kernel_folder, slug_of, source_of
from aimo.kaggle.client import Api, add_record, check_reply
from aimo.kaggle.kernels import FOLDER

WAITING = (State.QUEUED, State.NEW_SCRIPT)
ENDED = (State.COMPLETE, State.ERROR, State.CANCEL_ACKNOWLEDGED)
POLL_S = 20.0  # between two looks at a version's status
START_WITHIN_S = 7200.0  # a version that waits longer for a machine is no longer followed
SCORE_POLL_S = 60  # the longest time between two looks at a submission
LAST_LINES = 20  # of the log of a version that failed
ANSWERS = ("submission.parquet", "submission.csv", "submission.zip")


class Version(NamedTuple):
    """One version of a kernel, OWNER/SLUG."""

    ref: str
    number: int

    def __str__(self) -> str:
        return f"{self.ref} version {self.number}"

    def fields(self) -> dict[str, str]:
        owner, _, slug = self.ref.rpartition("/")
        label = str(self.number) if self.number else ""
        return {"user_name": owner, "kernel_slug": slug, "version_label": label}


def read_metadata(folder: Path, owner: str) -> dict[str, Any]:
    """Return a kernel's metadata with the owner in place of the placeholder."""
    text = json.dumps(read_json(folder / "kernel-metadata.json", "restore the file"))
    return dict(json.loads(text.replace(PLACEHOLDER, owner)))


def push_kernel(
    api: Api, name: str, model: str | None = None, no_run: bool = False
) -> tuple[Version, dict[str, Any]]:
    """Push a kernel that `check_kernel` has passed, which Kaggle then runs; return its version and metadata.

    With `no_run` Kaggle saves the version only.
    `model` (owner/model/framework/variation/version) takes the place of the model that the metadata attach,
    in the notebook too. AimoError when Kaggle refuses the kernel, or takes it without one of its inputs.
    """
    folder = kernel_folder(name)
    metadata = read_metadata(folder, api.user)
    code = folder / str(metadata.get("code_file"))
    text = code.read_text()
    if model:
        model = source_of(model, 5)
        if not is_source("model_sources", model):
            form = FORMS["model_sources"][1]
            raise AimoError(f"--model {model}: write {form}, such as me/aimo/transformers/default/1")
        old_models = [old.partition("/")[::2] for old in metadata.get("model_sources") or []]

        def replaced(found: re.Match[str]) -> str:  # of a path in either of Kaggle's layouts
            named = startup.place_of(found[0])
            old = next((place for owner, place in old_models if named and is_in(named, (owner, place))), None)
            if named is None or old is None:
                return found[0]
            return f"/kaggle/input/{str(model).partition('/')[2]}{named[1][len(old) :]}"

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
    answer = api.ask(of_kernels.ApiGetKernelSessionStatusRequest, **version.fields())
    return answer.status, " ".join(answer.failure_message.split())


def follow_version(api: Api, version: Version, metadata: dict[str, Any]) -> None:
    """Print a version's changes of status and its log until it has ended; StageError when it failed."""
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
        if state in WAITING and time.monotonic() - began > START_WITHIN_S:
            raise AimoError(
                f"{version} has not started within {START_WITHIN_S / 3600:.0f} hours; it stays queued: look "
                f"with `aimo kaggle status {version.ref}`"
            )
        time.sleep(POLL_S)
    if state != State.COMPLETE:
        print("\n".join(["the last lines of its log:", *read_log(api, version)[-LAST_LINES:]]))
        raise StageError(f"{version} ended as {state.name.lower()}: {message or 'Kaggle names no reason'}")


def follow_log(api: Api, version: Version, seen: int = 0) -> int:
    """Print a running version's log from the entry `seen` on, until it breaks off; return how many came."""
    with contextlib.suppress(requests.RequestException, ValueError):
        for count, event in enumerate(api.kernels_logs_stream(version.ref), 1):
            if count > seen:
                print(str(event.get("data", "")).rstrip("\n"), flush=True)
                seen = count
    return seen


def read_log(api: Api, version: Version, text: str | None = None) -> list[str]:
    """Return the lines of a version's log, which Kaggle keeps as JSON entries with `data`, or as text."""
    if text is None:
        text = str(api.ask(of_kernels.ApiListKernelSessionOutputRequest, **version.fields()).log)
    try:
        return "".join(entry["data"] for entry in json.loads(text)).splitlines()
    except (ValueError, TypeError, KeyError):
        return text.splitlines()


def list_output(api: Api, version: Version) -> dict[str, int]:
    answers = api.pages(of_kernels.ApiListKernelFilesRequest, **version.fields())
    return {file.name: file.size for answer in answers for file in answer.files}


def download_output(api: Api, version: Version) -> Path:
    """Download a version's output and log and return their folder, runs/kaggle/SLUG/NUMBER.

    What is already there in the size that Kaggle lists is kept. AimoError for a file that is missing or of
    another size.
    """
    _, slug, label = version.fields().values()
    folder, sizes = OUTPUT / slug / label, list_output(api, version)
    answers = list(api.pages(of_kernels.ApiListKernelSessionOutputRequest, **version.fields()))
    api.end_dry_run()
    if not sizes and not answers[0].log:
        raise AimoError(f"{version} has no output yet; see `aimo kaggle status`")
    urls = {file.file_name: file.url for answer in answers for file in answer.files}
    if missing := sizes.keys() - urls.keys():
        raise AimoError(f"{version}: Kaggle gives no address for {', '.join(sorted(missing))}; try again")
    folder.mkdir(parents=True, exist_ok=True)
    for name, url in urls.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            told = f"its output {name!r} would lie outside {folder}; it is not downloaded"
            raise AimoError(f"{version}: {told}")
        if not path.is_file() or path.stat().st_size != sizes.get(name):
            client.save_download(client.fetch(url), path, sizes.get(name))
    write_whole(folder / f"{slug}.log", "\n".join(read_log(api, version, answers[0].log)) + "\n")
    return folder


def submit_version(
    api: Api, kernel: str, number: int | None, message: str, competition: str | None, wait: bool = False
) -> str:
    """Submit a version of a kernel (the last one if no number is given); return a line with the submission's
    number and, with `wait`, its public score.

    The competition is the kernel's, if no other is named. AimoError when the version is not complete, left
    no answers, or no submission is left for today.
    """
    version, metadata = find_version(api, kernel, number)
    state, _ = ask_state(api, version)
    names = list_output(api, version)
    answers, slug = ANSWERS[0], slug_of(competition) if competition else "COMPETITION"
    if not api.dry_run:
        if state != State.COMPLETE:
            raise AimoError(f"{version} is {state.name.lower()}, not complete; submit a version that is")
        if not (found := [name for name in ANSWERS if name in names]):
            left = ", ".join(names) or "nothing"
            raise AimoError(f"{version} left no {ANSWERS[0]}, only {left}; see its log")
        answers, attached = found[0], [slug] if competition else metadata.competition_data_sources
        if len(attached) != 1:
            named = ", ".join(attached) or "none"
            raise AimoError(f"{version} has {named} as competitions; name one with --competition")
        slug = attached[0]
    check_submissions_left(api, slug)
    answer = api.competition_submit_code(answers, message, slug, version.ref, version.number, quiet=True)
    made = {"kernel": version.ref, "version": version.number, "message": message}
    return taken(api, slug, answer, str(version), made, wait)


def submit_file(api: Api, path: Path, message: str, competition: str, wait: bool = False) -> str:
    """Submit a file, as `submit_version` does a version; a run's own is recorded with the run."""
    slug = slug_of(competition)
    check_submissions_left(api, slug)
    if api.dry_run:
        print(f"PUT {path.name}, {path.stat().st_size:,} bytes")
    api.end_dry_run()
    answer = api.competition_submit(str(path), message, slug, quiet=True)
    made = {"file": path.name, "message": message} | client.run_of(path.parent)
    return taken(api, slug, answer, str(path), made, wait)


def check_submissions_left(api: Api, slug: str) -> None:
    """Raise AimoError when no submission is left for today."""
    limits = api.competition_get_submission_limits(slug)
    if not api.dry_run and limits.num_allowed_now <= 0:
        told = f"no submission is left ({limits.num_today} made today); wait for 0:00 UTC"
        raise AimoError(f"competition {slug}: {told}")


def taken(api: Api, slug: str, answer: Any, what: str, made: dict[str, Any], wait: bool) -> str:
    """Record a submission that Kaggle has taken; return a line on it."""
    if not answer.ref:
        reason = answer.message or "no reason given"
        raise AimoError(f"competition {slug}: {what} was not taken ({reason})")
    add_record("submit", ref=answer.ref, competition=slug, **made)
    score = f": public score {api.wait_for_score(answer.ref, SCORE_POLL_S)}" if wait else ""
    return f"submission {answer.ref}{score or '; see `aimo kaggle scores`'}"
