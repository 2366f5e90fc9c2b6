"""Files that survive a kill, a full disk and bad bytes: whole files, JSON and JSON lines. Also users' YAML.

This module writes and reads every JSON line of the project. Only "\\n" ends a record: U+2028, U+0085 and
other line separators are text inside it.
"""

import contextlib
import errno
import fcntl
import json
import mmap
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import yaml

from aimo.inference.errors import AimoError

AGAIN = "run the same command again"
# Errors of a disk that is full or not writable.
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
KEPT = f"what came before is kept: make room or unlock the folder, and {AGAIN}"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a kill or a power cut leaves it complete or unchanged. Raises OSError."""
    # The name holds the process id, so that two writers never rename each other's partial file.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as e:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(e, OSError):
            e.filename = str(path)
        raise


def write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, remedy: str, kind: type = dict) -> Any:
    """Return a JSON file's value. AimoError with the remedy if it cannot be read or is not a `kind`."""
    try:
        value = json.loads(path.read_bytes())
    except (RecursionError, ValueError) as e:
        raise AimoError(f"{path}: it is not JSON ({str(e)[:80]}); {remedy}") from None
    except OSError as e:
        raise AimoError(f"{path}: {e.strerror}; {remedy}") from None
    if not isinstance(value, kind):
        raise AimoError(f"{path}: it holds a {type(value).__name__}, not a {kind.__name__}; {remedy}")
    return value


def iterate_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield each line number and record of a JSON-lines file, or for a bad record a text that says why.

    A last line without "\\n" was cut off by a kill and is skipped. An absent file has no lines.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                value = json.loads(line)
                yield number, value if isinstance(value, dict) else f"a {type(value).__name__}, no object"
            except (ValueError, RecursionError) as e:
                yield number, f"no JSON ({str(e)[:80]})"


def iterate_records(path: Path, remedy: str = "remove the line") -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON-lines file. AimoError names the file and the bad line."""
    for number, value in iterate_lines(path):
        if isinstance(value, str):
            raise AimoError(f"{path}, line {number}: it is {value}; {remedy}")
        yield value


def read_lines(path: Path, remedy: str = "remove the line") -> list[dict[str, Any]]:
    return list(iterate_records(path, remedy))


def to_line(value: Any) -> bytes:
    """Return a value as one JSON line in UTF-8; a lone surrogate becomes its JSON escape."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    write_whole(path, b"".join(map(to_line, records)))


def append_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Append records to a JSON-lines file that several processes may append to. Raises OSError."""
    with LineFile(path) as file:
        for record in records:
            file.append(record)


class LineFile:
    """A JSON-lines file that one process appends to. It is locked while open; other processes wait.

    Every line is whole, however the process ends. A power cut may lose lines that are not yet on the disk.
    """

    def __init__(self, path: Path, how: int = fcntl.LOCK_EX):
        """Open or create the file and remove a last line that was cut off. Raises OSError."""
        self.path, self.size = path, 0
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self.file, how)
            if end := os.fstat(self.file).st_size:
                with mmap.mmap(self.file, 0, access=mmap.ACCESS_READ) as content:
                    self.size = content.rfind(b"\n") + 1
                if self.size < end:
                    os.ftruncate(self.file, self.size)
        except OSError:
            os.close(self.file)
            raise

    def append(self, value: dict[str, Any]) -> None:
        """Append a record whole, or raise OSError and leave the file as it was."""
        left = memoryview(to_line(value))
        if not os.fstat(self.file).st_nlink:
            raise FileNotFoundError(errno.ENOENT, "it was removed", str(self.path))
        try:
            while left:
                left = left[os.write(self.file, left) :]
        except OSError:
            os.ftruncate(self.file, self.size)
            raise
        self.size = os.lseek(self.file, 0, os.SEEK_END)

    def close(self) -> None:
        os.close(self.file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SampleFile(LineFile):
    """Samples that a command writes as they end, and continues from when it is started again.

    All errors are AimoErrors that name `other`, the option that takes another file.
    """

    def __init__(self, path: Path, other: str):
        """Create the folder and open the file. AimoError also if another process has it open."""
        self.other = other
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            super().__init__(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy = "another process is writing to it; wait for it"
            raise AimoError(f"{path}: {busy}, or take another {other}") from None
        except OSError as e:
            raise AimoError(f"{path}: {e.strerror}; take another {other}") from None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iterate_records(self.path, f"remove the line, or take another {self.other}")

    def append(self, value: dict[str, Any]) -> None:
        """Append a record whole. AimoError if it cannot be written; earlier records are kept."""
        try:
            super().append(value)
        except OSError as e:
            remedy = AGAIN if e.errno == errno.ENOENT else KEPT
            raise AimoError(f"{self.path}: {e.strerror}; {remedy}") from None

    def close(self) -> None:  # after everything is on the disk
        with contextlib.suppress(OSError):
            os.fsync(self.file)
        super().close()

    def check(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Raise AimoError if the settings differ; ignore keys that an older version did not write."""
        for key in now:
            if key in before and before[key] != now[key]:
                was = f"{key} was {before[key]!r} and is now {now[key]!r}"
                raise AimoError(f"{self.path} has other samples: {was}; take another {self.other}")


DEEPEST, MOST = 50, 100_000  # limits of YAML: depth, and values with every alias expanded


class Loader(yaml.CSafeLoader):
    """YAML in which `5e-6` is a number, a date is a text, and a repeated key is an error."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_yaml(text: str) -> Any:
    """Return the value of a YAML text. Raises YAMLError, also if it is too deep or too large."""
    sizes: dict[str | None, int] = {}
    nested: list[tuple[str | None, int]] = [(None, 0)]  # anchor, and values so far
    for event in yaml.parse(text, Loader):
        (anchor, count), size = nested[-1], 0
        if isinstance(event, yaml.CollectionStartEvent):
            nested.append((event.anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            nested.pop()
            sizes[anchor], size = count, count
        elif isinstance(event, yaml.AliasEvent | yaml.ScalarEvent):
            size = sizes.get(event.anchor, 1) if isinstance(event, yaml.AliasEvent) else 1
        if size:
            nested[-1] = nested[-1][0], nested[-1][1] + size
        if len(nested) > DEEPEST or nested[-1][1] > MOST:
            raise yaml.YAMLError(f"it is nested more than {DEEPEST} deep, or holds more than {MOST:,} values")
    return yaml.load(text, Loader)


def read_yaml(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """Return a YAML file's keys and values. AimoError, which calls the file `what`, if it has none."""
    try:
        values = load_yaml(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as e:
        raise AimoError(f"{what} {path}: not UTF-8 at byte {e.start}; save it as UTF-8") from None
    except OSError as e:
        told = "give its path" if isinstance(e, FileNotFoundError) else "make it readable"
        raise AimoError(f"{what} {path}: {e.strerror}; {told}") from None
    except yaml.YAMLError as e:
        raise AimoError(f"{what} {path}: not valid YAML: {' '.join(str(e).split())}") from None
    if not isinstance(values, dict):
        raise AimoError(f"{what} {path}: expected keys and values; {remedy}")
    return values
