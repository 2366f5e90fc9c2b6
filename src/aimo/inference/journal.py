"""Finished samples and answers on disk, so that a kernel that is restarted continues from them."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from aimo.inference.solution import End, Sample, Solution
from aimo.inference.voting import Stop


class Journal:
    """A JSON-lines file with a line for each finished sample or answer; without a path it keeps nothing."""

    def __init__(self, path: Path | None = None, model: str = ""):
        """Read what an earlier start with the same model left."""
        self.path, self.model = path, model
        self.known: dict[str, Solution] = {}
        for line in path.read_text().splitlines() if path and path.exists() else []:
            try:
                self.read(line)
            except (ValueError, KeyError, TypeError):
                print(f"{path}: a line was cut off and is left out: {line[:80]!r}")

    def read(self, line: str) -> None:
        """Add a line to what is known. Raises ValueError, KeyError or TypeError when it was cut off."""
        entry = json.loads(line)
        solution = self.known.setdefault(entry["key"], Solution())
        if "sample" in entry:
            values = entry["sample"]
            solution.samples.append(Sample(**values | {"end": End(values["end"])}))
        else:
            solution.answer = entry["answer"]
            solution.stop, solution.note = Stop.KNOWN, "from the journal"

    def key(self, question_id: str, problem: str) -> str:
        """Return what identifies a question: its id, its problem and the model."""
        return hashlib.sha256("\0".join((self.model, question_id, problem)).encode()).hexdigest()[:16]

    def recall(self, question_id: str, problem: str) -> Solution:
        """Return what is known of a question; `stop` is KNOWN when it was answered."""
        return self.known.get(self.key(question_id, problem)) or Solution()

    def add(self, question_id: str, problem: str, entry: Sample | int) -> None:
        """Write a sample or an answer. On a full disk it is not written, and the error printed."""
        if self.path is None:
            return
        value = {"sample": asdict(entry)} if isinstance(entry, Sample) else {"answer": entry}
        line = json.dumps({"key": self.key(question_id, problem), "id": question_id} | value)
        try:
            with self.path.open("a") as file:
                file.write(line + "\n")
        except OSError as e:
            print(f"{self.path}: {e}; what is not written is lost when the kernel starts again")
