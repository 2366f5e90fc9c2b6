"""Measure the models of a run on held-out problems (format, pass@1, maj@k), and answer its test file.

Out of scope: intervals and public benchmarks.
"""

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from aimo.config import Prompt, resolve
from aimo.data import builtin
from aimo.errors import AimoError
from aimo.hub import local_folder
from aimo.inference import answers, gateway, prompts, voting
from aimo.inference.engine import Completion, Engine, sample_seed
from aimo.runs import Run, write_json


@dataclass(frozen=True)
class Evaluation:
    """All samples of all problems, and the figures they give."""

    golds: list[int]
    completions: list[list[Completion]]
    answers: list[list[int | None]]
    well_formed: float

    def metrics(self) -> dict[str, float]:
        """Shares over all completions (`format`, `pass@1`), over problems (`maj@k`), and mean tokens a completion."""
        n = len(self.answers[0])
        tokens = [c.tokens for group in self.completions for c in group]
        right = [a == gold for gold, group in zip(self.golds, self.answers, strict=True) for a in group]
        return {
            "format": self.well_formed,
            "pass@1": sum(right) / len(right),
            f"maj@{n}": self.majority()[n],
            "mean_tokens": sum(tokens) / len(tokens),
        }

    def majority(self) -> dict[int, float]:
        """Accuracy of the vote by its number of samples: 1, 2, 4 … n."""
        n = len(self.answers[0])
        sizes = [2**i for i in range(n.bit_length()) if 2**i < n] + [n]
        rng = random.Random(0)
        pairs = list(zip(self.golds, self.answers, strict=True))
        return {
            k: sum(voting.maj_at(group, gold, k, rng) for gold, group in pairs) / len(pairs) for k in sizes
        }


def evaluate(
    engine: Engine,
    rows: list[dict[str, Any]],
    prompt: Prompt,
    samples: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Sample every held-out row (`prompt`, `answer`) `samples` times with the engine's present weights."""
    total = len(rows) * samples
    done = 0

    async def sample(ids: list[int], own_seed: int) -> Completion:
        nonlocal done
        completion = await engine.sample(ids, own_seed, engine.settings)
        done += 1
        if progress and (done % 64 == 0 or done == total):
            progress(done, total)
        return completion

    async def sample_all() -> list[Completion]:
        streams = []
        for row in rows:
            problem = row["prompt"][-1]["content"]
            ids = engine.encode(problem)
            streams += [sample(ids, sample_seed(seed, problem, i)) for i in range(samples)]
        return await asyncio.gather(*streams)

    flat = engine.run(sample_all())
    groups = [flat[i : i + samples] for i in range(0, total, samples)]
    tags = (prompt.answer_start, prompt.answer_end)
    return Evaluation(
        golds=[int(row["answer"]) for row in rows],
        completions=groups,
        answers=[[answers.to_integer(answers.extract(c.text, tags)) for c in group] for group in groups],
        well_formed=sum(prompts.is_well_formed(prompt, c.text) for c in flat) / total,
    )


def within_pass_rate(
    model: Path, rows: list[dict[str, Any]], run: Run
) -> tuple[list[dict[str, Any]], list[float]]:
    """The rows of which `model` solves a share within `grpo.pass_rate`, and the shares of all; every row without that key.

    The shares are kept in the stage's folder, and read from there when it is started again.
    """
    bounds, samples = run.profile.grpo.pass_rate, run.profile.grpo.pass_rate_samples
    if bounds is None:
        return rows, []
    tried = run.folder / "pass_rates.json"
    if not tried.exists():
        with Engine(model, run.profile.inference.gpu_memory, run.profile.seed) as engine:
            found = evaluate(engine, rows, run.profile.prompt, samples, run.profile.seed, run.progress)
        right = zip(found.golds, found.answers, strict=True)
        write_json(tried, [sum(a == gold for a in group) / samples for gold, group in right])
    rates = json.loads(tried.read_text())
    kept = [row for row, rate in zip(rows, rates, strict=True) if bounds[0] <= rate <= bounds[1]]
    if not kept:
        raise AimoError(
            f"grpo.pass_rate: no problem is solved in a share from {bounds[0]} to {bounds[1]}; widen it"
        )
    return kept, rates


def compare(engine: Engine, run: Run, rows: list[dict[str, Any]]) -> dict[str, Evaluation]:
    """Evaluate the base and each stage on the held-out rows, one after the other in the same engine; keep it for the report."""
    folders = {"base": local_folder(run.profile.model.base)}
    folders |= {
        stage: run.dir / stage / "model" for stage in run.profile.stages if stage not in ("data", "inference")
    }
    samples = run.profile.inference.samples
    evaluations: dict[str, Evaluation] = {}
    for i, (name, folder) in enumerate(folders.items()):
        engine.load_weights(folder)

        def progress(done: int, total: int, before: int = i) -> None:
            run.progress(before * total + done, len(folders) * total)

        evaluations[name] = evaluate(engine, rows, run.profile.prompt, samples, run.profile.seed, progress)
    write_json(run.folder / "majority.json", {name: e.majority() for name, e in evaluations.items()})
    texts = {name: [group[0].text for group in e.completions[:4]] for name, e in evaluations.items()}
    write_json(run.folder / "samples.json", {"rows": rows[:4], "texts": texts})
    return evaluations


def answer(engine: Engine, run: Run) -> list[dict[str, Any]]:
    """Answer the run's test file through the local gateway; returns each question with its vote, also for the report."""
    test_csv = test_file(run)
    competition, table = gateway.read_questions(test_csv)
    rules = gateway.COMPETITIONS[competition]
    answered, solutions = gateway.answer_all(
        engine, test_csv, run.profile.inference.samples, run.profile.seed
    )
    partial = run.dir / "submission.partial"
    answered.write_parquet(partial)
    partial.rename(run.dir / "submission.parquet")
    golds = table["answer"] if "answer" in table.columns else [None] * len(table)
    records = []
    for question_id, problem, gold in zip(table["id"], table[rules.problem_column], golds, strict=True):
        s = solutions[question_id]
        said = {sample.answer: sample.text for sample in reversed(s.ended)}
        records.append(
            {
                "id": question_id,
                "problem": problem or "",
                "answer": s.answer,
                "gold": answers.to_integer(gold),
            }
            | {
                "votes": {str(row.answer): row.votes for row in s.tally},
                "tally": [asdict(row) for row in s.tally],
            }
            | {"stop": s.stop, "seconds": round(s.seconds, 2), "note": s.note}
            | {"texts": {str(row.answer): said[row.answer] for row in s.tally[:2]}}
            | {"samples": [{k: v for k, v in asdict(sample).items() if k != "text"} for sample in s.samples]}
        )
    write_json(run.folder / "solutions.json", records)
    return records


def test_file(run: Run) -> Path:
    """The profile's test file, or one of built-in held-out problems in AIMO 3's layout."""
    if run.profile.inference.test:
        return resolve(run.profile.inference.test)
    path = run.folder / "test.csv"
    drawn = builtin.generate(run.profile.inference.test_rows, "heldout", run.profile.seed + 1)
    rows = [{"id": f"{p.family}-{i}", "problem": p.problem, "answer": p.answer} for i, p in enumerate(drawn)]
    pl.DataFrame(rows).write_csv(path)
    return path


def score(solutions: list[dict[str, Any]]) -> dict[str, int]:
    """Questions, how many of the known answers are right, and how many answers are fallbacks."""
    known = [s for s in solutions if s["gold"] is not None]
    return {
        "questions": len(solutions),
        "known": len(known),
        "correct": sum(s["answer"] == s["gold"] for s in known),
        "fallbacks": sum(not s["votes"] for s in solutions),
    }
