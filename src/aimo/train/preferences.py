"""Pairs of completions for DPO: a short right completion preferred to a long right one, and to a wrong one.

After the second place of AIMO 2 (imagination-research, 2025), which shortened its model's answers in this
way. Out of scope: pairs chosen by a judge.
"""

from typing import Any

from aimo.config import Profile
from aimo.data.prepare import Rows
from aimo.errors import AimoError
from aimo.evaluation.completions import Trace
from aimo.evaluation.scores import sample_rows
from aimo.inference.engine import Engine
from aimo.inference.storage import read_json, write_json
from aimo.run.runs import Run

LONGER = 1.5
"""How many times as long as the shortest a right completion must be to be rejected."""


def sample(model: Any, rows: Rows, run: Run) -> Rows:
    """Pairs of the model's completions of the first `dpo.problems` rows: `prompt`, `chosen`, `rejected`,
    `kind`.

    They are kept in the stage's folder and read from there when it is started again. AimoError when there is
    none.
    """
    dpo = run.profile.dpo
    assert dpo
    kept = run.folder / "pairs.json"
    if kept.exists():
        return read_json(kept, "remove it, and the problems are sampled again", list)  # type: ignore[no-any-return]
    rows, seed = rows[: dpo.problems], run.profile.seed
    with Engine(model, run.profile.solver_settings(model), seed=seed) as engine:
        found = sample_rows(engine, rows, run.profile.prompt, dpo.samples, seed, run.progress)
    pairs = []
    for row, group, right in zip(rows, found.traces, found.right.tolist(), strict=True):
        pairs += pair(row["prompt"], group, right, run.profile)
    if not pairs:
        raise AimoError(
            f"dpo: none of {len(rows)} problems gave a right and a worse completion; "
            "raise dpo.problems or dpo.samples"
        )
    write_json(kept, pairs)
    return pairs


def pair(prompt: list[dict[str, str]], group: list[Trace], right: list[bool], profile: Profile) -> Rows:
    """The pairs of one problem: its shortest right completion preferred to the longest right one (`long`) and
    to the longest wrong one (`wrong`). `right` says which completions of the group are."""
    judged = sorted(zip(group, right, strict=True), key=lambda pair: pair[0].tokens)
    good = [completion for completion, is_right in judged if is_right and completion.finished]
    bad = [completion for completion, is_right in judged if not is_right]
    opening = profile.prompt.think_start if profile.prompt.prefill else ""

    def reply(completion: Trace) -> list[dict[str, str]]:
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
