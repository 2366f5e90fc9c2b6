"""Download base models from the Hugging Face hub, and push models and datasets to it."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import huggingface_hub

from aimo.config import locate
from aimo.inference.errors import AimoError, redact

OTHER_FORMATS = ["original/*", "metal/*"]  # second copies of the weights, as gpt-oss has


@contextlib.contextmanager
def refusals(message: str) -> Iterator[None]:
    """Turn any error of the hub's client into an AimoError; its first words replace REASON in `message`."""
    try:
        yield
    except Exception as e:  # the client raises many kinds
        raise AimoError(message.replace("REASON", redact(" ".join(str(e).split()))[:200])) from None


def local_folder(base: str, revision: str | None = None, key: str = "model.base") -> Path:
    """Return the model folder at a path, or download a hub id's at a branch, tag or commit.

    AimoError, which names the profile's `key`, if there is no such model or it is an adapter.
    """
    path = locate(base)
    if (path / "adapter_config.json").exists():
        remedy = "give a merged model, such as the `model` beside it"
        raise AimoError(f"{key}: {base} is an adapter, not a model; {remedy}")
    if path.is_dir():
        return path
    at = f" at revision {revision!r}" if revision else ""
    with refusals(f"{key}: {base!r}{at} is no folder here and no model on the hub (REASON)"):
        return Path(huggingface_hub.snapshot_download(base, revision=revision, ignore_patterns=OTHER_FORMATS))


def check_links(folder: Path) -> None:
    """Raise AimoError for a folder with a special file, or a link out of it, whose target would be pushed."""
    for path in sorted(folder.rglob("*")):
        out = path.is_symlink() and not path.resolve().is_relative_to(folder.resolve())
        if out or not (path.is_file() or path.is_dir()):
            target = f"a link to {os.readlink(path)}" if path.is_symlink() else "no file"
            raise AimoError(f"{path} is {target}, and is not pushed: put a file in its place, or remove it")


def push_model(folder: Path, repo: str) -> str:
    check_links(folder)
    remedy = f"check HF_TOKEN. The model is kept in {folder}"
    with refusals(f"training.push_to_hub: {repo!r} was refused (REASON); {remedy}"):
        api = huggingface_hub.HfApi()
        api.create_repo(repo, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=str(folder)))


def push_dataset(repo: str, files: Mapping[str, Path | bytes]) -> str:
    """Push `files`, by their paths there, to a private dataset on the hub; return the commit's address."""
    remedy = "check HF_TOKEN. Its files are kept here"
    with refusals(f"--push-to-hub: dataset {repo!r} was refused (REASON); {remedy}"):
        api = huggingface_hub.HfApi()
        api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
        parts = [huggingface_hub.CommitOperationAdd(path, part) for path, part in files.items()]
        pushed = api.create_commit(repo, parts, commit_message="Pushed by aimo", repo_type="dataset")
        return str(pushed.commit_url)
