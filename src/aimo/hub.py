"""Models that come from the Hugging Face hub, and finished ones that go to it or to Kaggle."""

import json
from pathlib import Path

from aimo.config import Profile, resolve
from aimo.errors import AimoError


def local_folder(base: str) -> Path:
    """A model folder for a path or hub id, downloaded if need be."""
    path = resolve(base)
    if path.is_dir():
        if (path / "adapter_config.json").exists():
            under = json.loads((path / "adapter_config.json").read_text()).get("base_model_name_or_path")
            raise AimoError(
                f"model.base: {base} is an adapter for {under!r}, not a model; give a merged model, such as the `model` beside it"
            )
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(base))
    except Exception as e:  # the hub client raises many kinds
        reason = " ".join(str(e).split())[:200]
        raise AimoError(
            f"model.base: {base!r} is no folder here and no model on the hub ({reason})"
        ) from None


def push(folder: Path, profile: Profile) -> str:
    """Push a finished model folder to where `training.push_to_hub` or `push_to_kaggle` say; returns what was done in a line."""
    to = profile.training
    done = []
    if to.push_to_hub:
        from huggingface_hub import HfApi

        try:
            api = HfApi()
            api.create_repo(to.push_to_hub, private=True, exist_ok=True)
            done.append(str(api.upload_folder(repo_id=to.push_to_hub, folder_path=str(folder))))
        except Exception as e:  # the hub client raises many kinds
            reason = " ".join(str(e).split())[:200]
            raise AimoError(
                f"training.push_to_hub: {to.push_to_hub!r} was refused ({reason}); look at HF_TOKEN. The model is safe in {folder}"
            ) from None
    if to.push_to_kaggle:
        try:
            from kaggle.api.kaggle_api_extended import KaggleApi

            api = KaggleApi()
            api.authenticate()
            api.model_instance_version_create(
                to.push_to_kaggle, str(folder), version_notes=profile.profile, quiet=True
            )
            done.append(f"kaggle.com/models/{to.push_to_kaggle}")
        except (Exception, SystemExit) as e:  # without a token, the client exits
            reason = " ".join(str(e).split())[:200]
            raise AimoError(
                f"training.push_to_kaggle: {to.push_to_kaggle!r} was refused ({reason}); create the variation and look at the Kaggle "
                f"token. The model is safe in {folder}"
            ) from None
    return ", ".join(done)
