"""Every private name of TRL and Transformers that aimo touches; no other module uses one.

Written for TRL 1.15.0 and Transformers 5.17.0. Each entry says why the public interface is not enough. Import
this module after Unsloth, which patches TRL.

https://github.com/huggingface/trl/blob/v1.15.0/trl/trainer/sft_trainer.py, grpo_trainer.py, utils.py
https://github.com/huggingface/trl/blob/v1.15.0/trl/generation/vllm_generation.py
https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/trainer.py, training_args.py
"""

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
import trl
from accelerate.utils import gather_object
from trl.trainer import grpo_trainer, utils

LogProbs = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]


class OrderHook:
    """Before TRL's class among the bases of a trainer: lets it choose the order of its rows.

    `Trainer._get_train_sampler` (Transformers; overridden by TRL's GRPOTrainer): `get_train_dataloader` is
    public, but it builds the sampler and prepares the loader for several processes in one step.
    """

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return self.order_rows(super()._get_train_sampler(dataset))  # type: ignore[misc]

    def order_rows(self, sampler: Any) -> Any:
        """Return the sampler to use in place of the trainer's own."""
        return sampler


def pack_tokens(dataset: Any, args: Any) -> Any:
    """Return what TRL's SFTTrainer makes of a tokenised dataset, without a trainer and its model.

    `SFTTrainer._prepare_dataset` (TRL) makes labels and packs; only `trl.pack_dataset` is public.
    """
    unused: Any = None
    masked: Any = SimpleNamespace(completion_only_loss=True)  # all that it reads for rows that are tokenised
    return trl.SFTTrainer._prepare_dataset(masked, dataset, unused, args, True, None, "train")


class LogProbHook:
    """Before TRL's class among the bases of a GRPO trainer: changes how log-probabilities are computed.

    `GRPOTrainer._get_per_token_logps_and_entropies` (TRL): the policy's, the old policy's and the reference's
    log-probabilities all come from it, and no public method stands between it and the loss.
    """

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> LogProbs:
        compute = super()._get_per_token_logps_and_entropies  # type: ignore[misc]

        def compute_rows(input_ids: Any, attention_mask: Any, logits_to_keep: int) -> LogProbs:
            return compute(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)

        return self.log_probs(compute_rows, input_ids, attention_mask, logits_to_keep)

    def log_probs(
        self, compute: Callable[..., LogProbs], input_ids: Any, attention_mask: Any, logits_to_keep: int
    ) -> LogProbs:
        """Return log-probabilities and entropies (rows, logits_to_keep) and the auxiliary loss, by TRL's
        `compute`."""
        return compute(input_ids, attention_mask, logits_to_keep)


Sampled = tuple[tuple[Any, ...], torch.Tensor]
"""A completion: its row of the data set, prompt and reply as messages, prompt ids, completion ids, mask of
the ids that the policy sampled, log-probabilities; and its reward by each function."""
COMPLETION_IDS = 4  # where they stand


class SamplingHook:
    """Before TRL's class among the bases of a GRPO trainer: chooses what to train on of what it samples.

    `GRPOTrainer._generate_and_score_completions` (TRL) samples with `_generate`, scores with
    `_calculate_rewards`, and makes tensors of all rows. Rows are exchanged between the two, so that masks,
    log-probabilities and advantages are TRL's. `_metrics` are averaged inside `GRPOTrainer.log`;
    `_batch_environments` has one environment's name for each row of a step.
    """

    model: Any
    accelerator: Any
    args: Any
    processing_class: Any
    train_dataset: Any
    num_generations: Any
    reward_weights: Any
    environments: Any
    _batch_environments: Any

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self.inputs, self.chosen, self.tried = inputs, None, []  # type: ignore[var-annotated]
        batch = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        if self.model.training:
            metrics = self._metrics["train"]  # type: ignore[attr-defined]
            for name, value in self.figures(torch.cat(self.tried)).items():
                metrics[name][-1:] = [value]
        return batch

    def _generate(self, prompts: Any) -> Any:
        chosen = self.choose(self.inputs) if self.model.training else None
        if chosen is None:
            return super()._generate(prompts)  # type: ignore[misc]
        rows, rewards = zip(*chosen, strict=True)
        self.chosen = torch.stack(rewards).to(self.accelerator.device)  # type: ignore[assignment]
        share = len(rows) // self.accelerator.num_processes
        rows = rows[self.accelerator.process_index * share :][:share]
        columns = [list(column) for column in zip(*rows, strict=True)]
        self.inputs[:], prompts[:] = columns[:2]
        replies, ids, completion_ids, mask, logps = (c if c[0] is not None else None for c in columns[2:])
        return ids, completion_ids, mask, replies, logps, {}, None, []

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        if self.chosen is not None:
            return self.chosen
        rewards = super()._calculate_rewards(*args, **kwargs)  # type: ignore[misc]
        self.tried.append(rewards)
        return rewards

    def sample(self, inputs: list[dict[str, Any]]) -> list[Sampled]:
        """Sample and score a completion for each of the rows of each process, at most as many as a step has;
        returns those of all processes."""
        prompts, nothing = [row["prompt"] for row in inputs], [None] * len(inputs)
        with self.environments_of(inputs):
            ids, completion_ids, mask, replies, logps, *_ = super()._generate(prompts)  # type: ignore[misc]
            rewards = self._calculate_rewards(inputs, prompts, replies, completion_ids).cpu()
        columns = inputs, prompts, replies, ids, completion_ids, mask or nothing, logps or nothing
        return list(zip(gather_object(list(zip(*columns, strict=True))), rewards, strict=True))

    @contextlib.contextmanager
    def environments_of(self, inputs: list[dict[str, Any]]) -> Iterator[None]:
        """Let the trainer have as many environments as there are rows, begun anew for them."""
        if not self.environments:
            yield
            return
        every, names = self.environments, self._batch_environments
        self.environments, self._batch_environments = every[: len(inputs)], names[: len(inputs)]
        for environment, row in zip(self.environments, inputs, strict=True):
            environment.reset(**row)
        yield
        self.environments, self._batch_environments = every, names

    def choose(self, inputs: list[dict[str, Any]]) -> list[Sampled] | None:
        """Return what to train on in this step, in all processes together, or None for what TRL samples for
        `inputs`: whole groups, which split evenly over the processes and TRL's `steps_per_generation`."""
        raise NotImplementedError

    def figures(self, rewards: torch.Tensor) -> dict[str, float]:
        """Return what to log in place of TRL's figures, from the rewards (completions, functions) of all that
        was sampled for a step."""
        raise NotImplementedError


def take_one_gpu(args: Any) -> None:
    """Let a process that was not launched with others train on one GPU, however many it sees.

    `TrainingArguments._n_gpu` (Transformers): with more, `Trainer` wraps the model in DataParallel, which
    TRL's trainers refuse. To hide the others is too late when CUDA has started.
    """
    if args.n_gpu > 1:
        args._n_gpu = 1


def last_completions(trainer: Any) -> dict[str, Any]:
    """GRPO's latest completions in all processes: `prompt`, `completion`, `advantages`, and `rewards` by
    function.

    `GRPOTrainer._logs` (TRL): `log_completions=True` prints them or writes a file of all of them at each
    step.
    """
    return trainer._logs


def provide_log_probs() -> None:
    """Let TRL's trainers run without Triton, that is, on a CPU.

    `trl.trainer.utils._ChunkedLogProbFunction` (TRL) is None there, and the trainers call it unchecked.
    Unsloth provides its own.
    """
    if utils._ChunkedLogProbFunction is None:
        utils._ChunkedLogProbFunction = PlainLogProbs  # type: ignore[misc, assignment]


class ExactGeneration(grpo_trainer.VLLMGeneration):
    """TRL's generation with vLLM; the frozen weights stay what they are, to the bit.

    TRL merges the adapters into them for vLLM and subtracts them again, which rounds. The errors of all steps
    add up, and no checkpoint has them.
    """

    frozen: list[tuple[Any, torch.Tensor]] | None = None
    """The frozen parameters, each with a copy in the host's memory."""

    def sync_weights(self) -> None:
        """Give vLLM the trainer's weights, and forget what it computed with the old ones."""
        if self.frozen is None:
            frozen = [parameter for parameter in self.model.parameters() if not parameter.requires_grad]
            self.frozen = [(parameter, parameter.data.to("cpu", copy=True)) for parameter in frozen]
        self.send_weights()
        for parameter, data in self.frozen:
            parameter.data.copy_(data)

    def send_weights(self) -> None:
        """TRL's own synchronisation."""
        super().sync_weights()


class CpuGeneration(ExactGeneration):
    """The same with vLLM in the trainer's process, on a CPU.

    `VLLMGeneration._iter_named_params` (TRL): its own synchronisation hands vLLM one weight at a time, and on
    a CPU vLLM has packed the weights and takes all of them or none.
    """

    def send_weights(self) -> None:
        """All weights at once."""
        worker = self.llm.llm_engine.model_executor.driver_worker
        worker.reload_weights(weights_iterator=self._iter_named_params())
        self.llm.reset_prefix_cache()


def generate_with_vllm(on_cpu: bool) -> None:
    """Let GRPO's trainer generate with our classes; `on_cpu`: with vLLM in this process, without a GPU.

    `trl.trainer.grpo_trainer.VLLMGeneration` (TRL): the trainer makes one by this name.
    """
    grpo_trainer.VLLMGeneration = CpuGeneration if on_cpu else ExactGeneration  # type: ignore[misc]


class PlainLogProbs:
    """TRL's loss kernel in plain PyTorch."""

    @staticmethod
    def apply(
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        _chunk_size: int,
        softcap: float | None,
        scale: float,
        _outputs: Any,
    ) -> tuple[torch.Tensor, ...]:
        """For hidden states (n, h) and target ids (n,): log-probability of the target, entropy, log of the
        summed squared probabilities, mean logit, and whether the target is the likeliest token, each of shape
        (n,).
        """
        logits = torch.nn.functional.linear(hidden, weight, bias).float() * scale
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits / temperature
        log_p = logits.log_softmax(-1)
        return (
            log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1),
            -(log_p.exp() * log_p).sum(-1),
            (2 * log_p).logsumexp(-1),
            logits.mean(-1),
            logits.argmax(-1) == targets,
        )
