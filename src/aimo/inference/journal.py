"""Keep samples and answers on disk: a restarted kernel continues from them, and `aimo replay` reads them.

The file holds JSON lines: a header with the model and its settings, then a line for each sample that ended
or was stopped, and one for each answer:

    {"journal": {"model": "qwen", "competition": "aimo3", "settings": {…}, "weights": "…", "seed": 0}}
    {"key": "9f86d081884c7d65", "id": "q1", "sample": {"index": 0, "text": "…", "answer": 42, …}}
    {"key": "9f86d081884c7d65", "id": "q1", "answer": 42}
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from aimo.inference.answers import INTEGER, AnswerKind, Kind, Value, read_kind, write_kind
from aimo.inference.errors import AimoError, explain, one_line, say
from aimo.inference.sample import End, Sample
from aimo.inference.settings import ASKED, CHANGING
from aimo.inference.solver import Solution
from aimo.inference.storage import SampleFile, append_lines, iterate_lines
from aimo.inference.voting import Stop

# Settings that decide an answer.
COMPARED = (*ASKED, "context", "samples", "weight", "discount_trivial", "proofs")


@dataclass(frozen=True)
class JournalHeader:
    """The model and the settings of the samples that follow."""

    model: str = ""
    competition: str = ""
    # Those that override the model folder's; `aimo solve` writes all settings, and the `context`.
    settings: dict[str, Any] = field(default_factory=dict)
    weights: str = ""  # the model's identity; aimo 1.0.1 did not record it
    seed: int | None = None
    # The kind of the answers, as JSON. None: integers, as in all AIMO competitions and in aimo 1.0.1.
    answer: dict[str, Any] | None = None
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    @property
    def kind(self) -> Kind:
        """The kind of the answers that follow. ValueError if it is invalid."""
        return INTEGER if self.answer is None else read_kind(self.answer)  # type: ignore[no-any-return]

    def differs(self, other: "JournalHeader") -> str:
        """Return how this header differs from another, or an empty string; seeds may differ."""
        for name in ("model", "competition", "settings", "weights", "answer"):
            if getattr(self, name) != getattr(other, name):
                return f"{name} {getattr(self, name)} is another than {getattr(other, name)}"
        return ""

    def compared(self) -> dict[str, Any]:
        settings, vllm = self.settings, self.settings.get("vllm", {})
        named: dict[str, Any] = {"competition": self.competition, "weights": self.weights, "seed": self.seed}
        named |= {} if self.answer is None else {"answer": self.answer}
        changing = {f"vllm.{key}": vllm.get(key) for key in CHANGING}
        return named | {key: settings[key] for key in COMPARED if key in settings} | changing


@dataclass(frozen=True)
class Entry:
    """A sample of a question, or its answer."""

    key: str  # identifies question and model
    id: str
    value: Sample | Value


HEADER, SAMPLE, ENTRY = TypeAdapter(JournalHeader), TypeAdapter(Sample), TypeAdapter(Entry)


def parse_line(line: Mapping[str, Any] | str, kind: AnswerKind = INTEGER) -> JournalHeader | Entry:
    """Return the content of a journal's line, whose answers must be of `kind`.

    ValueError names the fault; a line that is a text is a fault that `iterate_lines` found.
    """
    try:
        if isinstance(line, str):
            raise ValueError(line)
        if "journal" in line:
            header = HEADER.validate_python(line["journal"])
            _ = header.kind  # raises ValueError if it is invalid
            return header
        value = line["answer"] if "answer" in line else SAMPLE.validate_python(line["sample"])
        held = [value.answer, *value.printed] if isinstance(value, Sample) else [value]
        if odd := [one for one in held if one is not None and type(one) is not kind.type]:
            raise ValueError(f"{'sample.' * isinstance(value, Sample)}answer: {odd[0]!r} is no {kind.noun}")
        return ENTRY.validate_python({"key": line["key"], "id": line["id"], "value": value})
    except ValidationError as e:
        raise ValueError(explain(e.errors()[0])) from None
    except KeyError as e:
        raise ValueError(f"{e} is missing") from None
    except (TypeError, AttributeError) as e:
        raise ValueError(one_line(e)) from None


class Journal:
    """The answers and samples of earlier starts, and a file for new ones. Without a path it keeps none."""

    def __init__(
        self,
        path: Path | None = None,
        model: str = "",
        competition: str = "",
        settings: Mapping[str, Any] | None = None,
        weights: str = "",
        seed: int | None = None,
        other: str = "",
        kind: Kind = INTEGER,
    ):
        """Read what earlier starts with the same model and settings left.

        `other` names the option that takes another file: AimoError if this one is another model's, is broken
        or is being written. A kernel has no such option: it skips the lines that it cannot use, and prints
        why.
        """
        values = json.loads(json.dumps(settings or {}, default=str))
        written = None if kind.type is int else write_kind(kind)
        self.header = JournalHeader(model, competition, values, weights, seed, written)
        self.found: dict[str, Solution] = {}  # what is known, by the question's key
        self.last: JournalHeader | None = None  # the file's last header
        self.fault: AimoError | None = None  # why a write failed
        self.path, self.file = path, SampleFile(path, other) if path and other else None
        try:
            strangers = 0
            for number, line in iterate_lines(path) if path else ():
                try:
                    entry = parse_line(line, self.last.kind if self.last else INTEGER)
                except ValueError as e:
                    if self.file:
                        remedy = f"remove the line, or take another {other}"
                        raise AimoError(f"{path}, line {number}: {e}; {remedy}") from None
                    say(f"{path}, line {number} is left out: {e}")
                    continue
                if isinstance(entry, JournalHeader):
                    self.last = entry
                    if self.file:
                        self.file.check(entry.compared(), self.header.compared())
                elif not self.file and self.last not in (None, self.header):
                    strangers += 1
                else:
                    solution = self.found.setdefault(entry.key, Solution())
                    if not isinstance(entry.value, Sample):
                        solution.answer = entry.value
                        solution.stop, solution.note = Stop.KNOWN, "from the journal"
                    elif entry.value.end not in (End.STOPPED, End.FAILED):  # those may be sampled again
                        solution.samples.append(entry.value)
                        solution.seconds = max(solution.seconds, entry.value.end_s)
            if strangers:
                say(f"{path}: {strangers} lines of another model or other settings are left out")
        except BaseException:
            self.close()
            raise

    def key(self, question_id: str, problem: str) -> str:
        model = self.header.weights or self.header.model
        return hashlib.sha256("\0".join((model, question_id, problem)).encode()).hexdigest()[:16]

    def recall(self, question_id: str, problem: str) -> Solution:
        """Return what the journal knows about a question; `stop` is KNOWN if it was answered."""
        return self.found.get(self.key(question_id, problem)) or Solution()

    def add(self, question_id: str, problem: str, entry: Sample | Value) -> None:
        """Write a sample or an answer. Keep an error in `fault`, or print it, so that no answer fails."""
        if self.path is None:
            return
        value: dict[str, Any] = {"answer": entry}
        if isinstance(entry, Sample):
            value = {"sample": {k: v for k, v in asdict(entry).items() if k != "role" or v}}
        lines: list[dict[str, Any]] = [{"key": self.key(question_id, problem), "id": question_id} | value]
        if self.last is None or (self.last != self.header and not self.file):
            header = {k: v for k, v in asdict(self.header).items() if k != "answer" or v is not None}
            lines.insert(0, {"journal": header})
        try:
            if self.file:
                for line in lines:
                    self.file.append(line)
            else:
                append_lines(self.path, lines)
            self.last = self.header
        except AimoError as e:
            self.fault = e
        except OSError as e:
            say(f"{self.path}: {e}; what is not written is lost when the kernel starts again")

    def close(self) -> None:
        if self.file:
            self.file.close()
