"""Samples and answers on disk: a kernel that is restarted continues from them, and `aimo replay` reads them.

JSON lines: a header with the model and its settings, then a line for each sample that ended or was stopped,
and one for each answer. Out of scope: what a rule would have made of them (`aimo.evaluation.replay`).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from aimo.inference.errors import explain, one_line
from aimo.inference.solution import End, Sample, Solution
from aimo.inference.voting import Stop

SAMPLE = TypeAdapter(Sample)


@dataclass(frozen=True)
class Header:
    """Whose samples follow."""

    model: str = ""
    competition: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """Those that go over the model folder's own."""

    def differs(self, other: "Header") -> str:
        """Say in what this header differs from another."""
        for name, mine in asdict(self).items():
            if mine != getattr(other, name):
                return f"{name} {mine} is another than {getattr(other, name)}"
        return ""


@dataclass(frozen=True)
class Entry:
    """A sample of a question, or its answer."""

    key: str
    """Identifies question and model."""
    id: str
    value: Sample | int


def parse(line: Mapping[str, Any]) -> Header | Entry:
    """Return what a line of a journal holds. Raises ValueError that names what is missing or not known."""
    try:
        if "journal" in line:
            return Header(**known(Header, line["journal"]))
        if "answer" in line:
            return Entry(line["key"], line["id"], int(line["answer"]))
        sample = SAMPLE.validate_python(known(Sample, line["sample"]))
        return Entry(line["key"], line["id"], sample)
    except ValidationError as e:
        raise ValueError(explain(e.errors()[0])) from None
    except KeyError as e:
        raise ValueError(f"{e} is missing") from None
    except (TypeError, AttributeError) as e:
        raise ValueError(one_line(e)) from None


def known(kind: type[Header] | type[Sample], values: dict[str, Any]) -> dict[str, Any]:
    """Return values that are all fields of a dataclass. Raises ValueError that names one which is not."""
    if unknown := sorted(values.keys() - {f.name for f in fields(kind)}):
        raise ValueError(f"unknown field {unknown[0]}")
    return values


class Journal:
    """The journal of a model; without a path it keeps nothing."""

    def __init__(
        self,
        path: Path | None = None,
        model: str = "",
        competition: str = "",
        settings: Mapping[str, Any] | None = None,
    ):
        """Read what an earlier start with the same model and settings left.

        A line that was cut off, and those of another model, are left out, and this is printed.
        """
        self.path = path
        self.header = Header(model, competition, json.loads(json.dumps(settings or {}, default=str)))
        self.found: dict[str, Solution] = {}
        """What is known, by the key of the question."""
        self.last: Header | None = None
        """The file's last header."""
        strangers = 0
        text = path.read_text() if path and path.exists() else ""
        for number, line in enumerate(text.splitlines(), 1):
            try:
                strangers += not self.read(parse(json.loads(line)))
            except ValueError as e:
                print(f"{path}, line {number} is left out: {e}")
        if strangers:
            print(f"{path}: {strangers} lines of another model or other settings are left out")
        if text and not text.endswith("\n"):
            self.write("")  # ends the line that was cut off

    def read(self, entry: Header | Entry) -> bool:
        """Add a line to what is known; return False when it is of another model or settings."""
        if isinstance(entry, Header):
            self.last = entry
            return True
        if self.last not in (None, self.header):
            return False
        solution = self.found.setdefault(entry.key, Solution())
        if not isinstance(entry.value, Sample):
            solution.answer = entry.value
            solution.stop, solution.note = Stop.KNOWN, "from the journal"
        elif entry.value.end not in (End.STOPPED, End.FAILED):  # those may be sampled again
            solution.samples.append(entry.value)
        return True

    def key(self, question_id: str, problem: str) -> str:
        """Return what identifies a question: its id, its problem and the model."""
        return hashlib.sha256("\0".join((self.header.model, question_id, problem)).encode()).hexdigest()[:16]

    def recall(self, question_id: str, problem: str) -> Solution:
        """Return what is known of a question; `stop` is KNOWN when it was answered."""
        return self.found.get(self.key(question_id, problem)) or Solution()

    def add(self, question_id: str, problem: str, entry: Sample | int) -> None:
        """Write a sample or an answer."""
        if self.path is None:
            return
        if self.last != self.header:
            self.write(json.dumps({"journal": asdict(self.header)}))
            self.last = self.header
        value = {"sample": asdict(entry)} if isinstance(entry, Sample) else {"answer": entry}
        self.write(json.dumps({"key": self.key(question_id, problem), "id": question_id} | value))

    def write(self, line: str) -> None:
        """Append a line. On a full disk it is not written, and the error printed."""
        assert self.path is not None
        try:
            with self.path.open("a") as file:
                file.write(line + "\n")
        except OSError as e:
            print(f"{self.path}: {e}; what is not written is lost when the kernel starts again")
