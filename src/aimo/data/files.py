"""Which files of a dataset folder belong to a subset and a split.

A copy of a hub dataset says so in the header of its README.md (`configs:`). Elsewhere the hub's conventions
hold: a subset is a subfolder (`data` is the default one), and a split is in a file's name or in its
folder's.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from aimo.errors import AimoError
from aimo.inference import files

T = TypeVar("T")
Files = dict[str, dict[str, list[Path]]]
"""The files by subset and split."""

SPLITS = {"train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation"}
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")


def files_of(folder: Path, split: str | None = None) -> Files:
    """The data files of a folder; `split` is a word that names one there, besides the usual ones.

    AimoError when the header of its README.md cannot be read.
    """
    if declared := read_header(folder / "README.md"):
        return {
            name: {split: matching(folder, patterns) for split, patterns in splits.items()}
            for name, splits in declared.items()
        }
    found: Files = {}
    for path in files.tables_of(folder.rglob("*")):
        subset, part = place_of(path.relative_to(folder), SPLITS | {split or "train"})
        found.setdefault(subset, {}).setdefault(part, []).append(path)
    return found


def read_header(readme: Path) -> dict[str, dict[str, list[str]]]:
    """The patterns of the files by subset and split, as README.md declares them; none where it does not."""
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.exists() else ""
    header = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    if not header:
        return {}
    try:
        configs = (yaml.safe_load(header[1]) or {}).get("configs") or []
        return {config["config_name"]: patterns_of(config) for config in configs if "data_files" in config}
    except (yaml.YAMLError, AttributeError, KeyError, TypeError):
        raise AimoError(f"{readme}: the `configs` of its header cannot be read; correct the header") from None


def patterns_of(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """The patterns of one entry of `configs` by split; `data_files` may be a pattern, a list or a mapping."""
    declared = config["data_files"]
    if isinstance(declared, list) and all(isinstance(part, dict) for part in declared):
        splits = {part.get("split", "train"): part["path"] for part in declared}
    else:
        splits = declared if isinstance(declared, dict) else {"train": declared}
    prefix = f"{config['data_dir']}/" if "data_dir" in config else ""
    return {
        split: [prefix + path for path in ([paths] if isinstance(paths, str) else paths)]
        for split, paths in splits.items()
    }


def matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The files of a folder that match any of the patterns."""
    found = {path for pattern in patterns for path in folder.glob(pattern.removeprefix("./"))}
    return files.tables_of(found)


def place_of(path: Path, splits: set[str]) -> tuple[str, str]:
    """Subset and split of a file by its path in the folder; `splits` are the words that name a split."""
    stem = files.stem_of(path)
    shard = SHARD.fullmatch(stem)
    split = shard[1] if shard else "train"
    for name in (*path.parts[:-1], stem):
        words = re.split(r"[^a-z0-9]+", name.lower())
        split = next((word for word in words if word in splits), split)
    subsets = [name for name in path.parts[:-1] if name.lower() not in splits and name != "data"]
    return (subsets[0] if subsets else "default"), split


def choose(options: Mapping[str, T], wanted: str | None, usual: str | None, key: str, place: str) -> T:
    """The option that a profile wants; where it wants none, the usual one, or the only one.

    AimoError naming the key of the profile, the place, and what is there.
    """
    known = ", ".join(options) or "none"
    if wanted is not None:
        if wanted not in options:
            raise AimoError(f"{key}: {place} has no {wanted!r}; it has {known}")
        return options[wanted]
    if usual in options:
        return options[usual]  # type: ignore[index]
    if len(options) == 1:
        return next(iter(options.values()))
    raise AimoError(f"{key}: {place} has {known}; name one")
