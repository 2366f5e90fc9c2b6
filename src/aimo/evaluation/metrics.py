"""Sample problems with known answers many times, and count: format, pass@1, maj@k, tokens.

Out of scope: intervals and public benchmarks.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aimo.evaluation.scores import ballot
from aimo.inference import answers, prompts, voting
from aimo.inference.errors import AimoError
from aimo.inference.judge import are_equal
from aimo.inference.sampling import Completion, Sampler, sample_seed
from aimo.inference.settings import Prompt

Progress = Callable[[int, int], None]
"""Called with the number of completions that are done, and of all."""


@dataclass(frozen=True)
class Evaluation:
    """n problems with k samples each, and the figures they give."""

    golds: list[int]
    """(n,) the gold answers, as numbers like those of the samples."""
    completions: list[list[Completion]]
    """(n, k) the samples."""
    answers: list[list[int | None]]
    """(n, k) the samples' answers as numbers; equal answers are equal, None is no vote (`scores.ballot`)."""
    well_formed: float
    """The share of all n * k completions that keep to the format."""
    seed: int = 0
    """Draws the samples of `majority`."""

    def metrics(self) -> dict[str, float]:
        """Shares over all completions (`format`, `pass@1`), over problems (`maj@k`), and mean tokens."""
        num_samples = len(self.answers[0])
        tokens = [c.tokens for group in self.completions for c in group]
        right = [a == gold for gold, group in self.pairs() for a in group]
        return {
            "format": self.well_formed,
            "pass@1": sum(right) / len(right),
            f"maj@{num_samples}": self.majority()[num_samples],
            "mean_tokens": sum(tokens) / len(tokens),
        }

    def majority(self) -> dict[int, float]:
        """Accuracy of the vote by its number of samples: 1, 2, 4 … k."""
        num_samples = len(self.answers[0])
        sizes = [2**i for i in range(num_samples.bit_length()) if 2**i < num_samples] + [num_samples]
        rng = random.Random(self.seed)
        accuracy = {}
        for k in sizes:
            right = [voting.maj_at(group, gold, k, rng) for gold, group in self.pairs()]
            accuracy[k] = sum(right) / len(right)
        return accuracy

    def pass_rates(self) -> list[float]:
        """(n,) the share of each problem's samples that are right."""
        return [sum(a == gold for a in group) / len(group) for gold, group in self.pairs()]

    def pairs(self) -> list[tuple[int, list[int | None]]]:
        """(n,) each gold answer with its k sampled answers."""
        return list(zip(self.golds, self.answers, strict=True))


def evaluate(
    engine: Sampler,
    rows: list[dict[str, Any]],
    prompt: Prompt,
    num_samples: int,
    seed: int,
    progress: Progress | None = None,
) -> Evaluation:
    """Sample n rows (`prompt`, `answer`) `num_samples` times each, with the engine's current weights.

    Any answer counts, as the judge reads it. AimoError before sampling when a row has none.
    The same seed gives the same samples, whatever the order of the rows.
    """
    if without := sum(row["answer"] in (None, "") for row in rows):
        raise AimoError(
            f"{without} of {len(rows)} problems have no answer to judge samples by; leave them out"
        )
    total = len(rows) * num_samples
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
            streams += [sample(ids, sample_seed(seed, problem, i)) for i in range(num_samples)]
        return await asyncio.gather(*streams)

    flat = engine.run(sample_all())
    groups = [flat[i : i + num_samples] for i in range(0, total, num_samples)]
    golds, k = [str(row["answer"]) for row in rows], num_samples
    found = [[answers.extract(c.text, prompt) for c in group] for group in groups]
    each = [(text, gold) for texts, gold in zip(found, golds, strict=True) for text in texts]
    verdicts = are_equal([text for text, _ in each], [gold for _, gold in each])
    right = [verdict is True for verdict in verdicts]
    ballots = [ballot(golds[i], found[i], right[i * k : (i + 1) * k]) for i in range(len(rows))]
    return Evaluation(
        golds=[gold for gold, _ in ballots],
        completions=groups,
        answers=[votes for _, votes in ballots],
        well_formed=sum(prompts.is_well_formed(prompt, c.text) for c in flat) / total,
        seed=seed,
    )
