"""What was pushed and submitted from here, in runs/kaggle.jsonl; the table of scores is joined with it.

{"did": "model", "model": "me/aimo/transformers/default/3", "run": "runs/tiny", "profile": "tiny", …}
{"did": "push", "kernel": "me/aimo-submission", "version": 5, "models": ["me/aimo/…/3"], …}
{"did": "submit", "ref": 41, "competition": "…", "kernel": "me/aimo-submission", "version": 5, …}
"""

import time
from pathlib import Path
from typing import Any

from aimo.config import ROOT, RUNS
from aimo.inference.storage import append_lines, read_lines

RECORDS = RUNS / "kaggle.jsonl"


def record(did: str, **facts: Any) -> None:
    """Add a line on what was done."""
    RECORDS.parent.mkdir(exist_ok=True)
    line = {"did": did, "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())} | facts
    append_lines(RECORDS, [line])


def find(did: str, **facts: Any) -> dict[str, Any]:
    """The last record with these facts; empty if there is none."""
    for line in reversed(read_lines(RECORDS)):
        if line.get("did") == did and all(line.get(key) == value for key, value in facts.items()):
            return line
    return {}


def origin(ref: int) -> dict[str, Any]:
    """What made a submission: kernel, version, models, and the run and profile of the first known model."""
    submitted = find("submit", ref=ref)
    pushed = find("push", kernel=submitted.get("kernel"), version=submitted.get("version"))
    made = [found for model in pushed.get("models", []) if (found := find("model", model=model))]
    return (made[0] if made else {}) | pushed | submitted


def shown(path: Path) -> str:
    """A run's folder as it stands in a record: relative to the repository where it lies inside."""
    full = path.resolve()
    return str(full.relative_to(ROOT)) if full.is_relative_to(ROOT) else str(full)
