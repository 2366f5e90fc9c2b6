"""Direct preference optimisation (DPO, Rafailov 2023), from the model's completions to a trained model.

A pair is two completions of one problem, sampled from the model that the stage starts from: a short right one
is preferred to a long right one or to a wrong one. The second place of AIMO 2 (imagination-research, 2025)
shortened its model's answers this way.
"""

from typing import Any

from datasets import Dataset

from aimo.config import Profile
from aimo.data.prepare import Rows
from aimo.evaluation.completions import Trace
from aimo.evaluation.scores import sample_rows
from aimo.inference.engine import Engine
from aimo.inference.errors import AimoError
from aimo.inference.storage import read_json, write_json
from aimo.run.runs import Run
from aimo.train import arguments, trainers

LONGER = 1.5  # a right completion this many times as long as the shortest is rejected


def sample_pairs(model: Any, rows: Rows, run: Run) -> Rows:
    """Sample completions of the first `dpo.problems` rows and return pairs: `prompt`, `chosen`, `rejected`,
    `kind`. A restarted stage reads them from its folder. Raise AimoError if there is no pair."""
    dpo, kept = run.profile.dpo, run.folder / "pairs.json"
    assert dpo
    if kept.exists():
        return read_json(kept, "remove it, and the problems are sampled again", list)  # type: ignore[no-any-return]
    rows, seed = rows[: dpo.problems], run.profile.seed
    with Engine(model, run.profile.solver_settings(model), seed=seed) as engine:
        asked = rows, run.profile.prompt, dpo.samples, seed, run.progress
        found = sample_rows(engine, *asked, run.profile.rules)
    pairs = []
    for row, group, right in zip(rows, found.traces, found.right.tolist(), strict=True):
        pairs += pair_up(row["prompt"], group, right, run.profile)
    if not pairs:
        raise AimoError(
            f"dpo: none of {len(rows)} problems gave a right and a worse completion; "
            "raise dpo.problems or dpo.samples"
        )
    write_json(kept, pairs)
    return pairs


def pair_up(prompt: list[dict[str, str]], group: list[Trace], right: list[bool], profile: Profile) -> Rows:
    """Return a problem's pairs; `right` marks the right completions in `group`. The shortest right one that
    finished is preferred to the longest (`long`, if LONGER times as long) and the longest wrong (`wrong`)."""
    judged = sorted(zip(group, right, strict=True), key=lambda pair: pair[0].tokens)
    good = [completion for completion, is_right in judged if is_right and completion.finished]
    bad = [completion for completion, is_right in judged if not is_right]
    if not good:
        return []
    worse = [("long", good[-1])] if good[-1].tokens >= LONGER * good[0].tokens else []
    worse += [("wrong", bad[-1])] if bad else []
    opening = profile.prompt.think_start if profile.prompt.prefill else ""

    def reply(completion: Trace) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": opening + completion.text}]

    chosen = reply(good[0])
    return [{"prompt": prompt, "chosen": chosen, "rejected": reply(w), "kind": kind} for kind, w in worse]


def train_dpo(model: Any, tokenizer: Any, pairs: Rows, run: Run, probe: Rows | None = None) -> "trainers.Log":
    """Train the model to prefer `chosen` to `rejected`; return the records of `trainers.fit`.

    A pair's loss is -log sigmoid(beta * (r(chosen) - r(rejected))), where r(y) is the log-probability of y
    under the policy minus that under the reference, the model that training starts from.
    """
    columns = "prompt", "chosen", "rejected"
    given = {"train_dataset": Dataset.from_list([{name: row[name] for name in columns} for row in pairs])}
    given |= {"model": model, "args": arguments.stage_arguments(run), "processing_class": tokenizer}
    return trainers.fit(trainers.make_trainer(trainers.DpoTrainer, run, **given), run, probe)
