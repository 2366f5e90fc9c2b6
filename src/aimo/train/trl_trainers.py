"""TRL's SFT, GRPO and DPO trainers with our changes: the order of rows, a check of each loss, less padding.

Import this module after Unsloth, which replaces TRL's classes: ours inherit from what TRL has at that time.
"""

from typing import Any

import pyarrow.compute as pc
import torch
import trl
from torch.nn.functional import pad
from transformers import Trainer

from aimo.train import compat
from aimo.train.dynamic_sampling import DynamicSampling
from aimo.train.row_order import ByLength, Seeded


class Shared(compat.OrderHook):
    """The part that the three trainers share: order of rows and the check of each loss."""

    on_loss: Any = None
    """Called with each loss and with the token ids of the batch's first row; raises to stop."""

    def order_rows(self, sampler: Any) -> Any:
        """The sampler's rows in an order that follows the seed and the epoch alone."""
        return Seeded(sampler, self)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss, after it was checked."""
        result = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        if self.on_loss:
            loss = result[0] if isinstance(result, tuple) else result
            ids = inputs.get("input_ids", inputs.get("prompt_ids"))
            self.on_loss(float(loss.detach()), [] if ids is None else ids[0])
        return result

    def log_apart(self, figures: dict[str, float]) -> None:
        """Log a record of its own. TRL's `log` would add the figures of the step so far, and clear them."""
        Trainer.log(self, figures)  # type: ignore[arg-type]


class SftTrainer(Shared, trl.SFTTrainer):
    """SFT whose steps hold rows of similar length, where `by_length` is set."""

    by_length = False

    def order_rows(self, sampler: Any) -> Any:
        """Rows by length or as TRL orders them."""
        if self.by_length:
            dataset: Any = self.train_dataset
            lengths = pc.list_value_length(dataset.with_format("arrow")[:]["input_ids"]).to_pylist()
            sampler = ByLength(lengths, rows_per_step(self.args))
        return super().order_rows(sampler)


class GrpoTrainer(Shared, DynamicSampling, compat.LogProbHook, trl.GRPOTrainer):
    """GRPO that trains on groups with signal where `max_resample` is set, with less padding on a CPU."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss; the batch's token ids are kept for `floating_point_ops`."""
        self.batch_ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def floating_point_ops(self, inputs: Any) -> int:
        """Of training on the last batch; generation is not counted. TRL finds 0, as `inputs` are texts."""
        return super().floating_point_ops({"input_ids": self.batch_ids})

    def log_probs(self, compute: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int) -> Any:
        """As TRL computes them; on a CPU in up to four parts, each padded to its own longest row only.

        On a GPU, Unsloth and large batches make this unnecessary.
        """
        if input_ids.device.type != "cpu":
            return compute(input_ids, attention_mask, logits_to_keep)
        rows, width = input_ids.shape
        # Prompts are padded on their left and completions on their right.
        begins = attention_mask.argmax(1)
        ends = (width - attention_mask.flip(1).argmax(1)).clamp(min=width - logits_to_keep + 1)
        order = ends.argsort()
        parts = []
        for part in order.split(max(8, -(-rows // 4))):
            begin, end = int(begins[part].min()), int(ends[part].max())
            kept = logits_to_keep - (width - end)
            values = compute(input_ids[part, begin:end], attention_mask[part, begin:end], kept)
            parts.append([*(pad_right(value, width - end) for value in values[:2]), values[2]])
        logps, entropies, aux_losses = zip(*parts, strict=True)
        back = order.argsort()
        return (
            torch.cat(logps)[back],
            None if entropies[0] is None else torch.cat(entropies)[back],
            None if aux_losses[0] is None else torch.stack(aux_losses).mean(),
        )


class DpoTrainer(Shared, trl.DPOTrainer):
    """DPO."""


def pad_right(values: torch.Tensor | None, columns: int) -> torch.Tensor | None:
    """Values (rows, n) as (rows, n + columns), with zeros at the end."""
    return None if values is None else pad(values, (0, columns))


def rows_per_step(args: Any) -> int:
    """Rows (for GRPO: completions) that one optimiser step trains on, in all processes together."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size
