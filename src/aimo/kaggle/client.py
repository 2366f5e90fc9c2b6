"""Kaggle's API through its official client, and what the client leaves to its user.

Every request goes through `Api.call`: a rate limit is waited for, a read that was cut off is made again, a
dry run prints the request in place of sending it, and an error becomes one line that names what was asked
for.

Out of scope: what is asked (`kernel_runs`, `uploads`, `downloads`, `submissions`).
"""

import contextlib
import functools
import io
import itertools
import json
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import requests

from aimo.errors import AimoError
from aimo.inference.errors import one_line, redact
from aimo.inference.storage import read_json
from aimo.kaggle.kaggle_compat import give_token, limit_times

# Importing the client signs in, and prints a page of help where there is no token.
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    from kaggle.api.kaggle_api_extended import KaggleApi, ResumableUploadContext

TOKENS = "https://www.kaggle.com/settings"
VARIABLES = ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY")
TRIES = 4
"""How often a request that changes nothing is made when Kaggle fails or the connection breaks."""
PAUSE_S = 2.0
"""Seconds before the second try; each further pause is twice as long."""
LIMITED_TRIES = 10
LIMITED_PAUSE_S = 30.0
"""Seconds to wait under a rate limit for which Kaggle names no time."""
LONGEST_PAUSE_S = 3600.0
"""A rate limit that lasts longer is an error: it is a quota."""
REPEATABLE = ("Get", "List", "Download", "Introspect", "Start")
"""How the names of requests begin that may be made twice: they change nothing that a user sees."""


class Uploads(ResumableUploadContext):  # type: ignore[misc]
    """Uploads that a later call goes on with, and a list of them."""

    def __init__(self) -> None:
        super().__init__()
        self.uploads: list[Any] = []

    def new_resumable_file_upload(self, path: str, request: Any) -> Any:
        """An upload of one file, new or begun by an earlier call."""
        self.uploads.append(super().new_resumable_file_upload(path, request))
        return self.uploads[-1]


class Api(KaggleApi):  # type: ignore[misc]
    """Kaggle's client with each request under `call`."""

    def __init__(self, dry_run: bool = False):
        super().__init__()
        self.dry_run = dry_run

    @property
    def user(self) -> str:
        """The name of the account that the token belongs to."""
        return str(self.config_values[self.CONFIG_NAME_USER])

    def build_kaggle_client(self) -> Any:
        """The SDK's client, with `call` around every request."""
        client = super().build_kaggle_client()
        http = client.http_client()
        limit_times(http)
        http.call = functools.partial(self.call, http.call)
        return client

    def with_retry(self, func: Callable[..., Any], *args: Any, **options: Any) -> Callable[..., Any]:
        """`func` as it is: `call` makes again what may be made again, and nothing else."""
        return func

    def call(
        self, send: Callable[..., Any], service: str, name: str, request: Any, response_type: Any
    ) -> Any:
        """Send one request and return its answer; in a dry run print it and return an empty answer.

        Raises RequestException, with what was asked for as its `thing`.
        """
        if self.dry_run and name != "IntrospectToken":
            fields = request.to_dict()
            for key, value in fields.items():
                if isinstance(value, str) and len(value) > 200:
                    fields[key] = f"{value[:60]} … ({len(value):,} characters)"
            print(f"{name} {json.dumps(fields, indent=2, ensure_ascii=False)}")
            return response_type()
        repeatable = name.startswith(REPEATABLE)
        for attempt in itertools.count(1):
            try:
                return send(service, name, request, response_type)
            except requests.RequestException as error:
                pause = self.pause(error, attempt, repeatable)
                if pause is None:
                    error.thing = subject(request)  # type: ignore[attr-defined]
                    error.unsure = not repeatable  # type: ignore[attr-defined]
                    raise
            except ValueError as error:
                raise AimoError(
                    f"{subject(request)}: what answers is not Kaggle ({one_line(error)}); look for a proxy "
                    "or a sign-in page of the network"
                ) from None
            time.sleep(pause)

    def pause(self, error: requests.RequestException, attempt: int, repeatable: bool) -> float | None:
        """Seconds until a request is made again; None: it is not."""
        code = status(error)
        if code == 429 and attempt < LIMITED_TRIES:
            assert error.response is not None
            named, seconds = error.response.headers.get("Retry-After", ""), LIMITED_PAUSE_S
            with contextlib.suppress(ValueError):  # a date, or nothing
                seconds = max(0.0, (parsedate_to_datetime(named) - datetime.now(UTC)).total_seconds())
            with contextlib.suppress(ValueError):
                seconds = max(0.0, float(named))
            if seconds > LONGEST_PAUSE_S:
                return None
            until = datetime.now() + timedelta(seconds=seconds)
            print(f"rate limit of Kaggle: waiting {seconds:.0f} s, until {until:%H:%M:%S}", file=sys.stderr)
            return seconds
        if repeatable and (code is None or code >= 500) and attempt < TRIES:
            return PAUSE_S * 2 ** (attempt - 1)
        return None

    @contextlib.contextmanager
    def uploaded(self, body: Any, folder: Path, kind: Any, folders: str = "skip") -> Iterator[None]:
        """Upload a folder for the request that is made inside.

        What has arrived is kept for the next call until the request has succeeded.
        """
        with Uploads() as uploads:
            self.upload_files(body, None, str(folder), kind, uploads, True, folders)
            yield

    def upload_files(
        self, request: Any, resources: Any, folder: str, blob_type: Any, upload_context: Any, *args: Any
    ) -> None:
        """Upload the files of a folder and put their tokens into the request.

        AimoError when one did not arrive: the client would make a version without it. What did arrive is not
        sent again by the next call.
        """
        if self.dry_run:
            for path in sorted(Path(folder).iterdir()):
                print(f"PUT {path.name}, {path.stat().st_size:,} bytes")
            return
        super().upload_files(request, resources, folder, blob_type, upload_context, *args)
        failed = [upload for upload in upload_context.uploads if not upload.upload_complete]
        for upload in failed:
            upload.cleanup()  # or else the next call would go on with an upload that Kaggle has given up
        if failed:
            names = ", ".join(Path(upload.path).name for upload in failed)
            raise AimoError(
                f"{folder}: {names} did not arrive, so no version was made; give the same command again"
            )


@contextlib.contextmanager
def connect(dry_run: bool = False) -> Iterator[Api]:
    """Sign in, and give every failure of Kaggle, of the connection and of the client as one line.

    AimoError also without a token, with one that others can read, or one that Kaggle does not accept.
    """
    token, source = find_token()
    give_token(token, source)
    api = Api(dry_run)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                api.authenticate()
            except SystemExit:
                said = f"Kaggle does not accept the token in {source}: make another at {TOKENS}"
                raise AimoError(said) from None
        yield api
    except requests.RequestException as e:
        raise explain(e) from None
    except ValueError as e:  # the client's own checks, and an answer that is no JSON
        raise AimoError(f"Kaggle's client: {one_line(e)}") from None
    except KeyboardInterrupt:
        raise AimoError("interrupted; give the same command again to go on") from None


def find_token() -> tuple[str | None, str]:
    """Return the token, None where it is a user's name and key, and where it is: a file or a variable.

    AimoError without one, for a file that others can read, and for what cannot be a token.
    """
    given = {name: os.environ.get(name, "").strip().strip("'\"") for name in VARIABLES}
    os.environ.update({name: value for name, value in given.items() if value})
    variable, home = given["KAGGLE_API_TOKEN"], Path("~/.kaggle").expanduser()
    named = os.path.expanduser(variable)
    places = [Path(named)] if os.path.isfile(named) else []
    if variable.startswith(("/", "~", ".")) and not places:
        raise AimoError(
            f"KAGGLE_API_TOKEN is a path, and there is no such file: put a token there, from {TOKENS}"
        )
    tokens = [*places, home / "access_token", home / "access_token.txt"]
    files = [path for path in [*tokens, Path(Api.config), home / "credentials.json"] if path.is_file()]
    for path in files:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise AimoError(f"token file {path} is open to others (mode {mode:o}): run `chmod 600 {path}`")
    if variable and not places:
        token, source = variable, "KAGGLE_API_TOKEN"
    elif files and files[0] in tokens:
        token, source = files[0].read_text("utf-8-sig", errors="replace").strip(), str(files[0])
    elif files:
        if files[0] == Path(Api.config):
            remedy = f"make another at {TOKENS}"
            values = read_json(files[0], remedy)
            if not isinstance(values.get("username"), str) or not isinstance(values.get("key"), str):
                raise AimoError(f"{files[0]}: it lacks a username or a key; {remedy}")
            check_token(values["key"], str(files[0]))
        return None, str(files[0])
    elif given["KAGGLE_USERNAME"] and given["KAGGLE_KEY"]:
        token, source = given["KAGGLE_KEY"], "KAGGLE_USERNAME and KAGGLE_KEY"
    else:
        raise AimoError(
            f"there is no Kaggle token: make one at {TOKENS}, put it into ~/.kaggle/access_token and run "
            "`chmod 600 ~/.kaggle/access_token`, or set KAGGLE_API_TOKEN"
        )
    check_token(token, source)
    return token if source != "KAGGLE_USERNAME and KAGGLE_KEY" else None, source


def check_token(token: str, source: str) -> None:
    """Refuse what no header can hold, without showing it."""
    if not re.fullmatch(r"[!-~]+", token):
        raise AimoError(
            f"the token in {source} is empty or has a character that no token has, such as a curly quote "
            f"or a space: copy it again from {TOKENS}"
        )


def subject(request: Any) -> str:
    """What a request is about, such as `kernel me/aimo-submission`."""
    fields = request.to_field_map()
    owner = fields.get("owner_slug") or fields.get("user_name") or fields.get("kernel_owner")
    found = []
    for kind in ("competition", "kernel", "model", "dataset"):
        own = fields.get("slug") if kind in type(request).__name__.lower() else None
        name = fields.get(f"{kind}_slug") or fields.get(f"{kind}_name") or own
        if name:
            owned = owner and kind != "competition" and "/" not in name
            found.append(f"{kind} {owner}/{name}" if owned else f"{kind} {name}")
    return ", ".join(found) or re.sub(r"^Api|Request$", "", type(request).__name__)


def status(error: requests.RequestException) -> int | None:
    """The HTTP status of an error, or that in the body of an answer sent as 200; None without one."""
    if error.response is None:
        return None
    code = error.response.status_code
    return int(body(error).get("code", 500)) if code < 400 else code


def body(error: requests.RequestException) -> dict[str, Any]:
    """The JSON of an error's answer; empty where it is something else."""
    try:
        found = error.response.json() if error.response is not None else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def explain(error: requests.RequestException) -> AimoError:
    """One line on what Kaggle refused, or what broke, with the remedy."""
    thing = getattr(error, "thing", "Kaggle")
    said = redact(" ".join(str(body(error).get("message") or error).split()))[:200]
    code = status(error)
    match code:
        case None:
            unsure = "whether it arrived is not known: look before you do it again"
            remedy = unsure if getattr(error, "unsure", False) else "check the network and try again"
            return AimoError(f"{thing}: the connection to Kaggle broke ({said}); {remedy}")
        case 401:
            return AimoError(f"Kaggle does not accept the token ({said}): make another at {TOKENS}")
        case 403 if "rules" in said.lower():
            return AimoError(f"{thing}: accept its rules on its page of kaggle.com first ({said})")
        case 403:
            return AimoError(f"{thing}: not open to this account, or no such thing ({said}); check the name")
        case 404:
            return AimoError(f"{thing}: unknown to Kaggle ({said}); check the name")
        case 409:
            return AimoError(f"{thing}: the name is taken ({said}); take another")
        case 429:
            return AimoError(f"{thing}: a limit of Kaggle's is used up ({said}); try again later")
        case _ if code >= 500:
            return AimoError(f"{thing}: Kaggle failed ({code}: {said}); try again in some minutes")
    return AimoError(f"{thing}: Kaggle refuses it ({code}: {said})")


def refusal(thing: str, said: str) -> AimoError:
    """The error for a reason that Kaggle gives in an answer, with the remedy for a quota that is used up."""
    reason = redact(" ".join(said.split()))
    remedy = ""
    if re.search(r"\b[GT]PU quota", reason):
        remedy = "; wait until it is renewed: `aimo kaggle login-check` says when"
    elif "quota" in reason:
        remedy = "; delete what you no longer need on kaggle.com, then give the same command again"
    return AimoError(f"{thing}: Kaggle refuses it: {reason}{remedy}")


def filled(request_type: Any, **fields: Any) -> Any:
    """A request with these fields."""
    request = request_type()
    for name, value in fields.items():
        setattr(request, name, value)
    return request


def pages(ask: Callable[[Any], Any], request: Any) -> Iterator[Any]:
    """Yield the answer of each page of a list."""
    request.page_size = 100
    while True:
        answer = ask(request)
        yield answer
        if not answer.next_page_token:
            return
        request.page_token = answer.next_page_token
