"""Files from Kaggle: complete or not there, and a competition's data where the local gateway finds it.

Out of scope: which files a kernel has (`kernel_runs`).
"""

import errno
import functools
import hashlib
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import requests
from kagglesdk.competitions.types.competition_api_service import ApiDownloadDataFilesRequest

from aimo.config import ROOT
from aimo.errors import AimoError
from aimo.inference.errors import one_line
from aimo.kaggle import client
from aimo.kaggle.check import slug_of
from aimo.kaggle.client import Api
from aimo.kaggle.kaggle_compat import TIMEOUT_S

INPUTS = Path("/kaggle/input")
CHUNK = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)


def fetch(url: str) -> Callable[[], requests.Response]:
    """A request for a signed address, which takes no token."""
    return lambda: requests.get(url, stream=True, timeout=TIMEOUT_S)


def save(request: Callable[[], requests.Response], path: Path, size: int | None = None) -> None:
    """Download to `path`, which is complete or does not exist; a broken connection is tried again.

    `size` is what Kaggle lists. AimoError for another size, a full disk, or an address that answers with an
    error: its body is not saved.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        written, expected = write(request, partial, size)
    except OSError as e:
        partial.unlink(missing_ok=True)
        if hasattr(e, "thing"):  # of the API, not of a file's address
            raise
        if isinstance(e, requests.RequestException):
            raise AimoError(f"{path.name}: {one_line(e)}; give the same command again") from None
        if e.errno in FULL:
            raise AimoError(
                f"{path}: the disk is full; free some space and give the same command again; it keeps "
                "what is complete"
            ) from None
        raise AimoError(f"{path}: {e.strerror or e}") from None
    if expected is not None and written != expected:
        partial.unlink()
        raise AimoError(f"{path.name}: {written:,} bytes came of {expected:,}; give the same command again")
    partial.replace(path)


def write(request: Callable[[], requests.Response], path: Path, size: int | None) -> tuple[int, int | None]:
    """Write an answer to a file; return the bytes written and those expected, if known."""
    for attempt in range(1, client.TRIES + 1):
        try:
            with request() as response:
                response.raise_for_status()
                length = response.headers.get("Content-Length")
                expected = size if size is not None else int(length) if length else None
                check_room(path, expected or 0)
                with path.open("wb") as file:
                    for chunk in response.iter_content(CHUNK):
                        file.write(chunk)
                    return file.tell(), expected
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
            if attempt == client.TRIES:
                raise
        time.sleep(client.PAUSE_S * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def check_room(path: Path, size: int) -> None:
    """Raise OSError before the download begins when the disk has no room for it."""
    if shutil.disk_usage(path.parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sha256(request: Callable[[], requests.Response]) -> str:
    """The hash of what an address answers with; nothing is kept."""
    digest = hashlib.sha256()
    with request() as response:
        for chunk in response.iter_content(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def data(api: Api, competition: str, inputs: Path | None = None) -> Path | None:
    """Download a competition's files and unpack them into `inputs`/SLUG, as on Kaggle; return that folder.

    `competition` is aimo1, aimo2, aimo3 or a slug. `inputs` is /kaggle/input, or data/kaggle where that
    cannot be written. None in a dry run.
    """
    slug = slug_of(competition)
    request = client.filled(ApiDownloadDataFilesRequest, competition_name=slug)
    with api.build_kaggle_client() as kaggle:
        ask = functools.partial(kaggle.competitions.competition_api_client.download_data_files, request)
        if api.dry_run:
            ask()
            return None
        folder = (inputs or default_inputs()) / slug
        archive = folder.with_name(f"{slug}.zip")
        save(ask, archive)
    unpack(archive, folder)
    return folder


def default_inputs() -> Path:
    """Where Kaggle has the inputs, or data/kaggle where there is no such folder to write to."""
    return INPUTS if os.access(INPUTS, os.W_OK) else ROOT / "data" / "kaggle"


def unpack(archive: Path, folder: Path) -> None:
    """Unpack in place of `folder`, which is whole before and after; the archive is deleted."""
    fresh, old = (folder.with_name(f"{folder.name}.{name}") for name in ("partial", "old"))
    shutil.rmtree(fresh, ignore_errors=True)
    again = "give the same command again"
    try:
        with zipfile.ZipFile(archive) as file:
            check_room(fresh, sum(entry.file_size for entry in file.infolist()))
            file.extractall(fresh)
        if not fresh.is_dir():
            raise zipfile.BadZipFile("it is empty")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as e:
        reason = e.strerror or e
        raise AimoError(f"{folder}: {reason}; free some space or take another --to; {again}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as e:  # of an encrypted one
        raise AimoError(f"{archive.name}: it is no zip file that opens ({one_line(e)}); {again}") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        archive.unlink()
