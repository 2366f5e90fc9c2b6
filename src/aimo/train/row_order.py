"""The order in which rows are trained on: the same in any number of processes, and in a run that goes on
later.

Out of scope: GRPO's repetition of prompts, which is TRL's.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch

POOL = 50  # steps whose rows are sorted by length together


class ByLength:
    """Rows in random order, except that those of a step are neighbours in length among the rows of `POOL`
    steps.

    The longest row comes in the first step, so that a step that does not fit in memory fails at once.
    """

    def __init__(self, lengths: list[int], rows_per_step: int):
        self.lengths, self.rows_per_step = lengths, rows_per_step
        self.generator: torch.Generator | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(len(self), generator=self.generator).tolist()
        longest = max(order, key=self.lengths.__getitem__)
        order.insert(0, order.pop(order.index(longest)))
        whole = len(self) - len(self) % self.rows_per_step  # the rest makes a short last step
        by_length: list[int] = []
        for pool in split(order[:whole], POOL * self.rows_per_step):
            by_length += sorted(pool, key=self.lengths.__getitem__)
        steps = split(by_length, self.rows_per_step)
        steps = [steps[i] for i in torch.randperm(len(steps), generator=self.generator).tolist()]
        steps.sort(key=lambda step: longest not in step)
        return itertools.chain(*steps, order[whole:])


def split(rows: list[Any], size: int) -> list[list[Any]]:
    """Rows in parts of a size; the last may be smaller."""
    return [rows[i : i + size] for i in range(0, len(rows), size)]


class Seeded:
    """A trainer's sampler whose order depends on the seed and the epoch alone.

    Without it, Transformers 5.17 and TRL 1.15 resume a run in a later epoch with the order of the first
    epoch.
    """

    def __init__(self, sampler: Any, trainer: Any):
        self.sampler, self.trainer = sampler, trainer

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        args, epoch = self.trainer.args, int(self.trainer.state.epoch or 0)
        seed = args.seed if args.data_seed is None else args.data_seed
        self.sampler.generator = torch.Generator().manual_seed(seed + epoch)
        return iter(self.sampler)
