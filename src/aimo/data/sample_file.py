"""A .jsonl file of samples that one process appends to, each line whole, however the process ends.

A line is known by the key of its problem and the number of its sample. Out of scope: a machine that loses
power, which may lose the last seconds.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aimo.errors import AimoError
from aimo.runs import write_json


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
            self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AimoError(
                    f"{path}: another process is writing to it; wait for it, or take another output_file"
                ) from None
            self.check_settings()
            self.size = whole_lines(self.file)
            os.ftruncate(self.file, self.size)
        except OSError as e:
            raise AimoError(f"output_file {path}: {e.strerror}; take a file that can be written") from None

    def check_settings(self) -> None:
        """Refuse a file that was made with other settings; keep those of a new one."""
        beside = self.path.with_suffix(".settings.json")
        empty = os.fstat(self.file).st_size == 0
        before = json.loads(beside.read_text()) if beside.exists() and not empty else self.settings
        if changed := [key for key in self.settings if before.get(key) != self.settings[key]]:
            said = ", ".join(
                f"{key} (was {before.get(key)!r}, now {self.settings[key]!r})" for key in changed
            )
            raise AimoError(f"{self.path} was made with other settings: {said}; take another output_file")
        write_json(beside, self.settings)

    def __enter__(self) -> "SampleFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.file)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The samples in the file."""
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield json.loads(line)
                except ValueError:
                    raise AimoError(
                        f"{self.path}, line {number}: is not JSON, and not what this command wrote; remove it"
                    ) from None

    def append(self, sample: dict[str, Any]) -> None:
        """Write a sample. AimoError when the disk is full; what came before is whole."""
        line = json.dumps(sample, ensure_ascii=False).encode() + b"\n"
        try:
            written = 0
            while written < len(line):
                written += os.write(self.file, line[written:])
            self.size += len(line)
        except OSError as e:
            os.ftruncate(self.file, self.size)
            raise AimoError(
                f"{self.path}: {e.strerror}; every sample before is kept: make room, and run the same "
                "command again"
            ) from None


def whole_lines(file: int, block: int = 1 << 16) -> int:
    """The size of an open file without a last line that lacks its end."""
    end = os.fstat(file).st_size
    while end:
        start = max(0, end - block)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
