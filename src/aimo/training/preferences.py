"""Pairs of completions for DPO: a short right one against a long right one, or else against a wrong one.

After the second place of AIMO 2 (imagination-research, 2025), which shortened its model's answers so. Out of scope: pairs by a judge.
"""

import json
from typing import Any

from aimo.config import Profile
from aimo.data.prepare import Rows
from aimo.errors import AimoError
from aimo.evaluation import metrics
from aimo.inference.engine import Completion, Engine
from aimo.runs import Run, write_json

LONGER = 1.5  # a right completion is worth avoiding when it is this many times as long as the shortest


def sample(model: Any, rows: Rows, run: Run) -> Rows:
    """Sample the model on `dpo.problems` of the GRPO rows and pair what it writes: `prompt`, `chosen`, `rejected`, `kind`.

    The pairs are kept in the stage's folder, and read from there when it is started again.
    """
    assert run.profile.dpo
    kept = run.folder / "pairs.json"
    if kept.exists():
        return json.loads(kept.read_text())
    rows = rows[: run.profile.dpo.problems]
    with Engine(model, run.profile.inference.gpu_memory, run.profile.seed) as engine:
        found = metrics.evaluate(
            engine, rows, run.profile.prompt, run.profile.dpo.samples, run.profile.seed, run.progress
        )
    pairs = []
    for row, group, answers, gold in zip(rows, found.completions, found.answers, found.golds, strict=True):
        pairs += pair(row["prompt"], group, [a == gold for a in answers], run.profile)
    if not pairs:
        raise AimoError(
            f"dpo: none of {len(rows)} problems gave a right and a worse completion; raise dpo.problems or dpo.samples"
        )
    write_json(kept, pairs)
    return pairs


def pair(prompt: list[dict[str, str]], group: list[Completion], right: list[bool], profile: Profile) -> Rows:
    """The pairs of one problem: the shortest right completion against the longest right one, and against the longest wrong one."""
    good = sorted((c for c, r in zip(group, right, strict=True) if r and c.finished), key=lambda c: c.tokens)
    bad = sorted((c for c, r in zip(group, right, strict=True) if not r), key=lambda c: c.tokens)
    opening = profile.prompt.think_start if profile.prompt.prefill else ""

    def reply(completion: Completion) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": opening + completion.text}]

    pairs = []
    if good and good[-1].tokens >= LONGER * good[0].tokens:
        pairs.append(
            {"prompt": prompt, "chosen": reply(good[0]), "rejected": reply(good[-1]), "kind": "long"}
        )
    if good and bad:
        pairs.append(
            {"prompt": prompt, "chosen": reply(good[0]), "rejected": reply(bad[-1]), "kind": "wrong"}
        )
    return pairs
