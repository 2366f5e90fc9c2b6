"""A .jsonl file of samples that one process appends to, each line whole, however the process ends.

A line is known by the key of its problem and the number of its sample. Out of scope: a machine that loses
power, which may lose the last seconds.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aimo.errors import AimoError
from aimo.inference.storage import LineFile, iterate_records, read_json, write_json


def key_of(text: str) -> str:
    """What identifies a problem in the file: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class SampleFile:
    """The file, locked for this process while it is open; use it as a context manager."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        """Open or create the file, and remove a last line that was cut off.

        `settings` are what determines the samples, kept beside the file. AimoError when another process
        writes to it, or when it was made with other settings.
        """
        self.path, self.settings = path, json.loads(json.dumps(settings))
        try:
            self.file = LineFile(path, "another output_file")
            self.check_settings()
        except OSError as e:
            raise AimoError(f"output_file {path}: {e.strerror}; take a file that can be written") from None

    def check_settings(self) -> None:
        """Refuse a file that was made with other settings; keep those of a new one."""
        beside = self.path.with_suffix(".settings.json")
        before = self.settings
        if beside.exists() and self.file.size:
            before = read_json(beside, "restore it, or take another output_file")
        if changed := [key for key in self.settings if before.get(key) != self.settings[key]]:
            said = ", ".join(
                f"{key} (was {before.get(key)!r}, now {self.settings[key]!r})" for key in changed
            )
            raise AimoError(f"{self.path} was made with other settings: {said}; take another output_file")
        write_json(beside, self.settings)

    def __enter__(self) -> "SampleFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The samples in the file."""
        return iterate_records(self.path, "this command did not write that line; remove it")

    def append(self, sample: dict[str, Any]) -> None:
        """Write a sample. AimoError when the disk is full; what came before is whole."""
        try:
            self.file.append(sample)
        except OSError as e:
            raise AimoError(
                f"{self.path}: {e.strerror}; every sample before is kept: make room, and run the same "
                "command again"
            ) from None
