"""Download base models from the Hugging Face hub, and push models and datasets to it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from aimo.config import resolve
from aimo.errors import AimoError
from aimo.inference.errors import redact

OTHER_FORMATS = ["original/*", "metal/*"]
"""Files of a hub's repository that hold the same weights again, such as gpt-oss's."""


def local_folder(base: str, revision: str | None = None) -> Path:
    """A model folder for a path or hub id, downloaded if need be.

    `revision` is a branch, tag or commit of the hub's repository. AimoError when there is no such model,
    or when the folder holds an adapter.
    """
    path = resolve(base)
    if path.is_dir():
        if (path / "adapter_config.json").exists():
            raise AimoError(
                f"model.base: {base} is an adapter{trained_on(path)}, not a model; "
                "give a merged model, such as the `model` beside it"
            )
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(base, revision=revision, ignore_patterns=OTHER_FORMATS))
    except Exception as e:  # the hub client raises many kinds
        reason = redact(" ".join(str(e).split()))[:200]
        at = f" at revision {revision!r}" if revision else ""
        raise AimoError(
            f"model.base: {base!r}{at} is no folder here and no model on the hub ({reason})"
        ) from None


def trained_on(adapter: Path) -> str:
    """`` for 'BASE'`` of an adapter's folder; nothing where its configuration cannot be read."""
    try:
        return (
            f" for {json.loads((adapter / 'adapter_config.json').read_text())['base_model_name_or_path']!r}"
        )
    except (ValueError, KeyError, TypeError):
        return ""


def check_links(folder: Path) -> None:
    """Refuse a folder to push that has a link out of it, or what is no file: its target would be pushed."""
    for path in sorted(folder.rglob("*")):
        out = path.is_symlink() and not path.resolve().is_relative_to(folder.resolve())
        if out or not (path.is_file() or path.is_dir()):
            target = f"a link to {os.readlink(path)}" if path.is_symlink() else "no file"
            raise AimoError(f"{path} is {target}, and is not pushed: put a file in its place, or remove it")


def push_model(folder: Path, repo: str) -> str:
    """Push a model folder to a private repository of the hub; returns its address.

    AimoError when it is refused.
    """
    from huggingface_hub import HfApi

    check_links(folder)
    try:
        api = HfApi()
        api.create_repo(repo, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=str(folder)))
    except Exception as e:  # the hub client raises many kinds
        reason = redact(" ".join(str(e).split()))[:200]
        raise AimoError(
            f"training.push_to_hub: {repo!r} was refused ({reason}); check HF_TOKEN. "
            f"The model is kept in {folder}"
        ) from None


def push_dataset(repo: str, files: Mapping[str, Path | bytes]) -> str:
    """Push files, by their path in it, to a private dataset of the hub, in one commit; returns its address.

    AimoError when it is refused.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    try:
        api = HfApi()
        api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
        parts = [CommitOperationAdd(path, part) for path, part in files.items()]
        pushed = api.create_commit(repo, parts, commit_message="Pushed by aimo", repo_type="dataset")
        return str(pushed.commit_url)
    except Exception as e:  # the hub client raises many kinds
        reason = redact(" ".join(str(e).split()))[:200]
        raise AimoError(
            f"--push-to-hub: dataset {repo!r} was refused ({reason}); check HF_TOKEN. Its files are kept here"
        ) from None
