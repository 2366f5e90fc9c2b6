"""Dynamic sampling (DAPO, Yu et al. 2025): GRPO trains on the groups with signal, from as many prompts as it
takes.

Import this module after Unsloth, which replaces TRL's classes.
"""

import math
import random
from typing import Any

import torch
from trl.trainer.utils import nanstd

from aimo.train import compat
from aimo.train.row_order import split


class DynamicSampling(compat.SamplingHook):
    """The part of the GRPO trainer that chooses what a step trains on, and counts what was sampled for it."""

    max_resample: int | None = None
    """How many times as many prompts as a step has may be tried to fill it with groups that have signal."""

    def choose(self, inputs: list[dict[str, Any]]) -> list[compat.Sampled] | None:
        """The groups with signal, of as many prompts as it takes.

        Where `max_resample` times as many prompts have too few, the step is smaller. The further prompts
        follow from the seed, the step and its first prompt, so that a resumed run tries the same. All
        processes see the completions of all, and decide alike.
        """
        if self.max_resample is None:
            return None
        processes, size = self.accelerator.num_processes, self.num_generations
        wanted = len(inputs) * processes // size
        groups = split(self.sample(inputs), size)
        seed = f"{self.args.seed} {self.state.global_step} {groups[0][0][0][0]['prompt']}"
        limit = wanted * (self.max_resample - 1)
        others = random.Random(seed).choices(range(len(self.train_dataset)), k=limit)
        while others and (lacking := wanted - sum(map(self.has_signal, groups))) > 0:
            likely = lacking * len(groups) / max(1, wanted - lacking)
            count = whole(min(likely, wanted, len(others)), size, processes)
            rows = [self.train_dataset[i] for i in others[:count] for _ in range(size)]
            share = len(rows) // processes
            groups += split(self.sample(rows[self.accelerator.process_index * share :][:share]), size)
            del others[:count]
        groups.sort(key=self.has_signal, reverse=True)  # stable
        with_signal = max(1, sum(map(self.has_signal, groups)))
        count = whole(min(with_signal, wanted), size, processes * self.args.steps_per_generation)
        return [completion for group in groups[:count] for completion in group]

    def has_signal(self, group: list[compat.Sampled]) -> bool:
        """Whether a completion that counts in the loss is better or worse than the mean of its group."""
        rewards = self.total(torch.stack([rewards for _, rewards in group]))
        ends = {*self.eos_token_ids, self.processing_class.pad_token_id}
        for (row, _), reward in zip(group, rewards - rewards.nanmean(), strict=True):
            is_cut_off = row[compat.COMPLETION_IDS][-1] not in ends
            if abs(reward) > 1e-5 and not (is_cut_off and self.mask_truncated_completions):
                return True
        return False

    def total(self, rewards: torch.Tensor) -> torch.Tensor:
        """The weighted sum (completions,) of rewards (completions, functions); NaN without any reward."""
        total = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        return total.masked_fill(rewards.isnan().all(1), torch.nan)

    def figures(self, rewards: torch.Tensor) -> dict[str, float]:
        """Rewards of all completions that were sampled, the number of their groups, and the share of groups
        with equal rewards.

        TRL 1.15 counts none of those whose mean is rounded, such as that of equal rewards of 0.2.
        """
        total = self.total(rewards)
        groups = total.view(-1, self.num_generations).nan_to_num()
        equal = groups.amax(1) - groups.amin(1) < 1e-5
        found = {"reward": total.nanmean(), "reward_std": nanstd(total)}
        for name, values in zip(self.reward_func_names, rewards.T, strict=True):
            found |= {f"rewards/{name}/mean": values.nanmean(), f"rewards/{name}/std": nanstd(values)}
        found["frac_reward_zero_std"] = equal.float().mean()
        return {name: value.item() for name, value in found.items()} | {"groups/tried": len(groups)}


def whole(groups: float, size: int, parts: int) -> int:
    """At least so many groups of `size` completions that they can be split into equal parts."""
    unit = parts // math.gcd(parts, size)
    return math.ceil(groups / unit) * unit
