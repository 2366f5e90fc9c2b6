"""Every use of a private name of TRL, Transformers and vLLM; no other module has one.

Written for TRL 1.15.0, Transformers 5.17.0 and vLLM 0.31.0. Each entry names the private member and says why
no public one works. Import this module after Unsloth, which patches TRL.

https://github.com/huggingface/trl/blob/v1.15.0/trl/trainer/sft_trainer.py, grpo_trainer.py, utils.py
https://github.com/huggingface/trl/blob/v1.15.0/trl/generation/vllm_generation.py
https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/trainer.py, training_args.py
https://github.com/vllm-project/vllm/blob/v0.31.0/vllm/v1/worker/worker_base.py
"""

import functools
import math
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
import trl
from accelerate.utils import gather_object, is_peft_model
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora import LoraLayer
from torch.utils.checkpoint import checkpoint
from trl.generation import vllm_generation
from trl.trainer import distillation_trainer, grpo_trainer, utils

from aimo.inference.errors import AimoError

BEFORE_TRLS: Any = object  # base of the classes that come before TRL's; Any, as they use TRL's names
GRPO: Any = trl.GRPOTrainer


def take_one_gpu(args: Any) -> None:
    """Limit a single process to one GPU, however many it sees. With more, `Trainer` wraps the model in
    DataParallel, which TRL refuses (`TrainingArguments._n_gpu`, Transformers)."""
    args._n_gpu = min(args.n_gpu, 1)


class OrderHook(BEFORE_TRLS):
    """A base class of trainers, whose `order_rows` takes the default sampler and returns the one to use.

    `Trainer._get_train_sampler` (Transformers): the public `get_train_dataloader` also prepares the loader.
    """

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return self.order_rows(super()._get_train_sampler(dataset))


def pack_tokens(dataset: Any, args: Any) -> Any:
    """Return a tokenised dataset as TRL's SFTTrainer prepares it, packed and with labels, without a model
    (`SFTTrainer._prepare_dataset`, TRL; only `trl.pack_dataset` is public)."""
    trainer: Any = SimpleNamespace(completion_only_loss=True)  # TRL reads no more for tokenised rows
    unused: Any = None
    return trl.SFTTrainer._prepare_dataset(trainer, dataset, unused, args, True, None, "train")


def goes_around(trainer: Any) -> bool:
    """Return whether Unsloth generated the trainer's class, as it does on a GPU. Its `compute_loss` of SFT
    and GRPO (unsloth 2026.10.9) bypasses TRL's, so the hooks below log the entropy of a step's first pass."""
    return any(kind.__name__.startswith("Unsloth") for kind in type(trainer).__mro__)


class SftHook(trl.SFTTrainer):
    """TRL's SFT. For Unsloth's trainer, TRL's `fused_lm_head` also computes entropy and token accuracy from
    the hidden states of the loss."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        figures = self._metrics["train" if model.training else "eval"]
        if not goes_around(self) or figures.get("entropy"):
            return super().compute_loss(model, inputs, *args, **kwargs)
        unwrapped, states = self.accelerator.unwrap_model(model), []  # type: ignore[var-annotated]
        decoder = unwrapped.get_decoder()
        hook = decoder.register_forward_hook(lambda _, _given, found: states.append(found))
        result = super().compute_loss(model, inputs, *args, **kwargs)
        hook.remove()
        if not states:  # the forward pass does not call the decoder
            return result
        own = vars(decoder).get("forward")
        decoder.forward = lambda *_, **__: states[0]  # (rows, tokens, h), not computed again
        with torch.no_grad():
            found = unwrapped(**inputs, fused_lm_head=True)
        del decoder.forward
        if own:
            decoder.forward = own
        sums = torch.stack([found.entropy.sum(), found.is_top1.sum(), found.label_mask.sum()])
        entropy, right, count = self.accelerator.reduce(sums).tolist()
        figures["entropy"] = [entropy / max(1, count)]
        figures["mean_token_accuracy"] = [right / max(1, count)]
        return result


Sampled = tuple[tuple[Any, ...], torch.Tensor]
"""A completion (its row of the data set, prompt and reply as messages, prompt ids, completion ids, mask of
the ids that the policy sampled, log-probabilities) and the reward from each function (functions,)."""
COMPLETION_IDS, MASK = 4, 5  # their indices in a completion


class GrpoHook(GRPO):
    """TRL's GRPO, which calls `choose`, `figures`, `masks`, `signal` and `log_probs` of `grpo.GrpoTrainer`.

    `GRPOTrainer._generate_and_score_completions` (TRL) samples with `_generate`, scores with
    `_calculate_rewards` and turns all rows into tensors. This class replaces rows between the two calls, so
    TRL still computes masks, log-probabilities and advantages. `GRPOTrainer.log` averages `_metrics`;
    `_batch_environments` holds a name for each row. TRL calls no public method before the loss.
    """

    chosen_rewards: Any
    environments: Any
    _batch_environments: Any

    def __init__(self, *args: Any, **given: Any) -> None:
        """Make a trainer. Unsloth leaves the padding token out of the loss even if it ends a completion."""
        tokenizer = given["processing_class"]
        if goes_around(self) and tokenizer.pad_token_id == tokenizer.eos_token_id:
            from unsloth_zoo.pad_token import fix_pad_token  # pads with a reserved token

            fix_pad_token(tokenizer, model_config=given["model"].config, allow_add=False)
            if tokenizer.pad_token_id == tokenizer.eos_token_id:
                raise AimoError(
                    f"grpo: the tokenizer pads with {tokenizer.eos_token!r}, which ends a completion, and "
                    "Unsloth would not train on it; set model.backend to transformers"
                )
        super().__init__(*args, **given)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self.rows, self.chosen_rewards, self.kept = inputs, None, None
        self.all_rewards: list[torch.Tensor] = []
        batch = super()._generate_and_score_completions(inputs)
        if self.model.training:
            for name, value in self.figures(torch.cat(self.all_rewards)).items():
                self._metrics["train"][name][-1:] = [value]
            # For equal rewards TRL divides one rounding error by another, and AdamW scales the result up.
            rewards = self.all_rewards[-1] if self.chosen_rewards is None else self.chosen_rewards
            own = self.signal(rewards)[self.accelerator.process_index * len(self.rows) :][: len(self.rows)]
            batch["advantages"] = batch["advantages"] * own.to(batch["advantages"].device)
        return batch

    def _generate(self, prompts: Any) -> Any:
        self.doing(f"sampling {len(prompts)} completions")
        chosen = self.choose(self.rows) if self.model.training else None
        if chosen is None:
            ids, completion_ids, mask, replies, *more = super()._generate(prompts)
            if self.model.training:
                mask = self.masks(replies, completion_ids, mask)
            return ids, completion_ids, mask, replies, *more
        rows, rewards = zip(*chosen, strict=True)
        self.chosen_rewards = torch.stack(rewards).to(self.accelerator.device)  # (completions, functions)
        share = len(rows) // self.accelerator.num_processes
        own = rows[self.accelerator.process_index * share :][:share]
        columns = [list(column) for column in zip(*own, strict=True)]
        self.rows[:], prompts[:] = columns[:2]
        replies, ids, completion_ids, mask, logps = (c if c[0] is not None else None for c in columns[2:])
        return ids, completion_ids, mask, replies, logps, {}, None, []

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        if self.chosen_rewards is not None:
            return self.chosen_rewards
        self.doing("scoring")
        self.all_rewards.append(super()._calculate_rewards(*args, **kwargs))
        return self.all_rewards[-1]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """For Unsloth's trainer, log TRL's figures; entropy is the mean of -log p of the sampled tokens."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if not goes_around(self):
            return loss
        figures = self._metrics["train" if self.model.training else "eval"]
        for name in ["completion_length", *["kl"] * (self.beta == 0)]:  # TRL logs none of these
            figures.pop(name, None)
        if figures.get("entropy"):
            return loss
        prompts, seen = inputs["prompt_ids"], inputs["prompt_mask"]
        mask, tools = inputs["completion_mask"], inputs.get("tool_mask")
        logps = inputs.get("old_per_token_logps")
        if logps is None:  # vLLM did not sample
            ids = torch.cat([prompts, inputs["completion_ids"]], 1)
            asked = model, ids, torch.cat([seen, mask], 1), mask.shape[1]
            logps = self._get_per_token_logps_and_entropies(*asked)[0]
        # Unsloth moves each prompt's padding behind the completion.
        begins = logps.shape[1] - mask.shape[1] - (seen == 0).sum(1, keepdim=True)  # (rows, 1)
        logps = logps.gather(1, begins + torch.arange(mask.shape[1], device=mask.device))
        mask = mask if tools is None else mask * tools
        sums = self.accelerator.reduce(torch.stack([-(logps * mask).sum(), mask.sum()]))
        figures["entropy"] = [(sums[0] / sums[1].clamp(min=1)).item()]
        return loss

    def sample(self, inputs: list[dict[str, Any]]) -> list[Sampled]:
        """Sample and score one completion for each row of each process, at most as many rows as a step has.
        Return the completions of all processes."""
        prompts, nothing = [row["prompt"] for row in inputs], [None] * len(inputs)
        environments = self.environments
        if environments:  # one for each row, reset for it
            names = self._batch_environments
            self.environments, self._batch_environments = environments[: len(inputs)], names[: len(inputs)]
            for environment, row in zip(self.environments, inputs, strict=True):
                environment.reset(**row)
        ids, completion_ids, mask, replies, logps, *_ = super()._generate(prompts)
        mask = self.masks(replies, completion_ids, mask)
        rewards = self._calculate_rewards(inputs, prompts, replies, completion_ids).cpu()
        if environments:
            self.environments, self._batch_environments = environments, names
        columns = inputs, prompts, replies, ids, completion_ids, mask or nothing, logps or nothing
        return list(zip(gather_object(list(zip(*columns, strict=True))), rewards, strict=True))

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> Any:
        of_rows, on_cpu = super()._get_per_token_logps_and_entropies, self.accelerator.device.type == "cpu"
        # PEFT casts an adapter's input to float32, and autocast casts it back bit for bit: skip both.
        uncast = functools.partial(disable_input_dtype_casting, model, on_cpu and self.args.bf16)

        def compute(*rows: Any, **more: Any) -> Any:
            with uncast():
                return of_rows(model, *rows, *args, **kwargs | more)

        def packed(input_ids: Any, position_ids: Any, mask: Any, targets: Any) -> tuple[Any, Any]:
            with uncast(), self.accelerator.autocast():
                found = model(
                    input_ids=input_ids, position_ids=position_ids, attention_mask=mask,
                    shift_labels=targets, fused_lm_head=True,
                )  # fmt: skip
            return found.log_probs, found.entropy

        more = {k for k, v in kwargs.items() if v is not None and v is not False}  # images, auxiliary losses
        can_pack = packed if more <= {"batch_size", "compute_entropy"} else None
        return self.log_probs(compute, can_pack, input_ids, attention_mask, logits_to_keep)


def last_completions(trainer: Any) -> dict[str, Any]:
    """Return GRPO's latest completions of all processes: `prompt`, `completion`, `advantages`, `rewards` by
    function (`GRPOTrainer._logs`, TRL: `log_completions=True` prints all at each step, or writes a file)."""
    return trainer._logs


class ExactGeneration(grpo_trainer.VLLMGeneration):
    """TRL's generation with vLLM. Frozen weights stay the same bit for bit, and a vLLM in this process gets
    them only once.

    TRL merges the adapters into them for vLLM and then subtracts them, which rounds: the errors accumulate
    over the steps, and no checkpoint holds them. `VLLMGeneration._iter_named_params` (TRL) yields vLLM's
    weights one at a time. On a CPU, vLLM has packed its weights, and its worker reloads all of them or none.
    """

    has_frozen = False  # whether vLLM already has the weights that training does not change

    def sync_weights(self) -> None:
        sharded = self.model.parameters() if self._dist.is_fsdp else []  # TRL merges in place under FSDP
        kept = [(weight, weight.data.to("cpu", copy=True)) for weight in sharded if not weight.requires_grad]
        if self.mode == "colocate" and self.accelerator.device.type == "cpu":
            worker = self.llm.llm_engine.model_executor.driver_worker
            worker.reload_weights(weights_iterator=self._iter_named_params())
            self.llm.reset_prefix_cache()
        else:
            super().sync_weights()
            # A server, or an engine that has slept, may hold other weights.
            self.has_frozen = self.mode == "colocate" and not self.enable_sleep_mode
        for weight, data in kept:
            weight.data.copy_(data)

    def _iter_named_params(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield each weight under its name in vLLM, with the adapters merged into a copy."""
        model: Any = self.model
        if not is_peft_model(model) or self._dist.is_fsdp or self._dist.is_zero3:
            yield from super()._iter_named_params()
            return
        layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
        adapted = {layer.get_base_layer().weight: layer for layer in layers}
        for name, weight in model.named_parameters():
            if model.prefix in name or "original_module" in name:
                continue
            name = name.removeprefix("base_model.model.").replace(".base_layer", "")
            name = self._fix_param_name_to_vllm(name, ["modules_to_save.default."])
            if layer := adapted.get(weight):
                frozen, weight.data = weight.data, weight.data.clone()
                with torch.no_grad():
                    layer.merge()
                merged, weight.data = weight.data, frozen
                layer.merged_adapters.clear()
                yield name, merged
            elif weight.requires_grad or not self.has_frozen:
                yield name, weight.data

    def answer(self, prompts: list[list[int]], max_tokens: int, end: int) -> list[list[int]] | None:
        """Return the greedy completion of each prompt, both as token ids; the token `end` ends one. Return
        None if a prompt fills the context. All processes must call this: each generates a share."""
        if max(map(len, prompts)) >= (self.max_model_length or math.inf):
            return None
        count, index = self.accelerator.num_processes, self.accelerator.process_index
        share = -(-len(prompts) // count)
        own = (prompts + prompts[-1:] * count)[index * share :][:share]  # equally many in every process
        greedy: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
        greedy |= {"repetition_penalty": 1.0, "max_completion_length": max_tokens}
        greedy["generation_kwargs"] = {"stop_token_ids": [end]}
        before = {name: getattr(self, name) for name in greedy}
        self.sync_weights()
        vars(self).update(greedy)
        try:
            _, completions, *_ = self.generate(own, None, 1)
        finally:
            vars(self).update(before)
        return gather_object(completions)[: len(prompts)]  # type: ignore[no-any-return]


def server_distillation() -> tuple[Any, Any]:
    """Return TRL's experimental trainer and configuration for a teacher behind a server."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental import server_distillation as found

    return found.ServerDistillationTrainer, found.ServerDistillationConfig


LOGITS = 1 << 23  # held at once on a CPU: more are computed in parts, and recomputed for their gradient


class PlainLogProbs:
    """TRL's loss kernel in plain PyTorch."""

    @staticmethod
    def apply(
        hidden: torch.Tensor,  # (n, h)
        weight: torch.Tensor,  # (vocabulary, h)
        bias: torch.Tensor | None,
        targets: torch.Tensor,  # (n,)
        temperature: float,
        _chunk_size: int,
        softcap: float | None,
        scale: float,
        outputs: tuple[str, ...],
    ) -> tuple[torch.Tensor | None, ...]:
        """Return the target's log-probability, the entropy, the log of the summed squared probabilities, the
        mean logit, and whether the target is the most likely token, each (n,). The last four are None unless
        `outputs` names them."""

        def of_part(hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            logits = torch.nn.functional.linear(hidden, weight, bias).float() * scale  # (part, vocabulary)
            if softcap:
                logits = softcap * torch.tanh(logits / softcap)
            logits = logits / temperature
            log_p = logits.log_softmax(-1)
            more = {
                "entropy": lambda: -(log_p.exp() * log_p).sum(-1),
                "log_sum_sq_probs": lambda: (2 * log_p).logsumexp(-1),
                "mean_logits": lambda: logits.mean(-1),
                "is_top1": lambda: logits.argmax(-1) == targets,
            }
            chosen = log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
            return chosen, *(compute() if name in outputs else None for name, compute in more.items())

        if len(hidden) * len(weight) <= LOGITS:
            return of_part(hidden, targets)
        size = max(1, LOGITS // 2 // len(weight))  # tokens of a part
        parts = [
            checkpoint(of_part, *part, use_reentrant=False, preserve_rng_state=False)
            for part in zip(hidden.split(size), targets.split(size), strict=True)
        ]
        return tuple(None if v[0] is None else torch.cat(v) for v in zip(*parts, strict=True))


def plain_divergence(
    student: torch.Tensor,  # (B, T, h): hidden states at the completion tokens
    teacher: torch.Tensor,  # (B, T, h')
    student_head: torch.Tensor,  # (V, h)
    teacher_head: torch.Tensor,  # (V, h')
    mask: torch.Tensor,  # (B, T), 1 where a token counts
    beta: float,
    num_items_in_batch: Any = None,
    student_lm_head_bias: torch.Tensor | None = None,
    teacher_lm_head_bias: torch.Tensor | None = None,
    temperature: float = 1.0,
    **scales: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute TRL's distillation loss in plain PyTorch: return the divergence, the student's summed entropy
    and the number of tokens.

    `beta` 0 is KL(teacher || student), 1 is KL(student || teacher), and values between are the generalised
    Jensen-Shannon divergence. Models that scale or cap their logits need Triton: AimoError.
    """
    if any(value not in (None, 1.0) for value in scales.values()):
        raise AimoError("opd: a model that scales or caps its logits is distilled on a GPU only")
    linear, valid = torch.nn.functional.linear, mask.bool()
    ours = linear(student[valid], student_head, student_lm_head_bias).float() / temperature  # (n, V)
    theirs = linear(teacher[valid], teacher_head, teacher_lm_head_bias).float() / temperature  # (n, V)
    ours, theirs = ours.log_softmax(-1), theirs.log_softmax(-1).detach()

    def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return (p.exp() * (p - q)).sum()

    if beta in (0, 1):
        divergence = kl(ours, theirs) if beta else kl(theirs, ours)
    else:
        mixed = torch.logaddexp(ours + math.log(1 - beta), theirs + math.log(beta))
        divergence = beta * kl(theirs, mixed) + (1 - beta) * kl(ours, mixed)
    count = valid.sum()
    items = count.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return divergence / items, -(ours.exp() * ours).sum().detach(), count


def patch_trl() -> None:
    """Let TRL's trainers run without Triton, as on a CPU, and generate with `ExactGeneration`.

    `trl.trainer.utils._ChunkedLogProbFunction` (TRL) is None without Triton, and the trainers call it
    unchecked; `distillation_trainer._chunked_divergence_loss` needs Triton too. On a CPU, vLLM would compile
    for a minute and store prompts in blocks of 128 tokens, and a group's samples share only whole blocks. TRL
    passes neither setting to `LLM`.
    """
    if utils._ChunkedLogProbFunction is None:
        utils._ChunkedLogProbFunction = PlainLogProbs  # type: ignore[misc, assignment]
    if not torch.cuda.is_available():
        if start := getattr(vllm_generation, "LLM", None):
            on_cpu = functools.partial(start, enforce_eager=True, block_size=32)
            vllm_generation.LLM = on_cpu  # type: ignore[misc, assignment]
        distillation_trainer._chunked_divergence_loss = plain_divergence  # type: ignore[assignment]
    grpo_trainer.VLLMGeneration = distillation_trainer.VLLMGeneration = ExactGeneration  # type: ignore[misc]
