"""Format SFT and GRPO: TRL's trainers, resumable, with the profile's settings.

What they leave in the stage's folder: checkpoints, and `log.json`, the figures of every step. Left out: launching on
several devices, and guards against diverging runs.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aimo import rewards
from aimo.config import Grpo, Profile, Sft
from aimo.data import Rows
from aimo.errors import AimoError

Progress = Callable[[int, int], None]
Log = list[dict[str, Any]]


def sft(model: Any, tokenizer: Any, rows: Rows, profile: Profile, folder: Path, progress: Progress) -> Log:
    """Fine-tune on `prompt` and `completion` rows, loss on the completion only; returns one record a step.

    Goes on from the last checkpoint in `folder`, if there is one.
    """
    from trl import SFTConfig, SFTTrainer

    s = profile.sft
    args = SFTConfig(
        **shared_arguments(s, profile, folder),
        per_device_train_batch_size=s.batch_size,
        num_train_epochs=s.epochs,
        max_steps=s.max_steps or -1,
        max_length=profile.model.max_length,
        completion_only_loss=True,
    )
    trainer = SFTTrainer(model=model, args=args, processing_class=tokenizer, train_dataset=to_dataset(rows))
    return fit(trainer, folder, progress)


def grpo(model: Any, tokenizer: Any, rows: Rows, profile: Profile, folder: Path, progress: Progress) -> Log:
    """Reinforce the completions that the rewards prefer within their group (GRPO, DeepSeekMath 2024); rows have `prompt`, `answer`.

    A step samples `num_generations` completions for each of `prompts_per_step` prompts; advantages are rewards relative
    to the group's mean. Returns one record a step. Goes on from the last checkpoint in `folder`, if there is one.
    """
    import torch
    from trl import GRPOConfig, GRPOTrainer

    s = profile.grpo
    if s.use_vllm and not torch.cuda.is_available():
        raise AimoError("grpo.use_vllm: true needs a GPU and there is none; set it to false")
    names = list(s.rewards)
    args = GRPOConfig(
        **shared_arguments(s, profile, folder),
        per_device_train_batch_size=s.prompts_per_step * s.num_generations // s.gradient_accumulation_steps,
        max_steps=s.max_steps,
        num_generations=s.num_generations,
        max_completion_length=s.max_completion_length,
        temperature=s.temperature,
        beta=s.beta,
        max_grad_norm=s.max_grad_norm,
        reward_weights=[s.rewards[name] for name in names],
        use_vllm=s.use_vllm,
        vllm_mode="colocate",
        vllm_gpu_memory_utilization=0.5,
    )
    trainer = GRPOTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=to_dataset(rows),
        reward_funcs=list(rewards.get_reward_funcs(names, profile.prompt)),
    )
    return fit(trainer, folder, progress)


def shared_arguments(stage: Sft | Grpo, profile: Profile, folder: Path) -> dict[str, Any]:
    """The training arguments that both stages have."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(folder),
        "learning_rate": stage.learning_rate,
        "gradient_accumulation_steps": stage.gradient_accumulation_steps,
        "lr_scheduler_type": stage.scheduler,
        "warmup_steps": stage.warmup_ratio,  # below 1, Transformers takes it as a share of all steps
        "optim": stage.optimizer,
        "weight_decay": stage.weight_decay,
        "save_steps": stage.save_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "seed": profile.seed,
        "bf16": profile.model.dtype == "bfloat16",
        "fp16": profile.model.dtype == "float16",
        # Unsloth brings its own on a GPU; a model that runs on a CPU is small enough to do without.
        "gradient_checkpointing": cuda and profile.model.backend == "transformers",
        "use_cpu": not cuda,
        "report_to": "none",
        "disable_tqdm": True,
    }


def fit(trainer: Any, folder: Path, progress: Progress) -> Log:
    """Train to the end, from the last complete checkpoint, and write `log.json`."""
    from transformers import PrinterCallback, TrainerCallback
    from trl.trainer import utils

    if utils._ChunkedLogProbFunction is None:  # no Triton, so no GPU; Unsloth has put in its own
        utils._ChunkedLogProbFunction = PlainLogProbs  # type: ignore[misc, assignment]

    class Report(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress(state.global_step, state.max_steps)

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Report())
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    log = [record for record in trainer.state.log_history if "loss" in record]
    (folder / "log.json").write_text(json.dumps(log))
    return log


class PlainLogProbs:
    """TRL 1.15's loss kernel in plain PyTorch: TRL has it in Triton only, which a CPU cannot run."""

    @staticmethod
    def apply(hidden: Any, weight: Any, bias: Any, targets: Any, temperature: float, _chunk: int, cap: Any, scale: float, _: Any) -> Any:
        """For hidden states (n, h) and targets (n,): log-probability, entropy, log of the summed squared probabilities,
        mean logit and whether the target is the likeliest token, each (n,).
        """
        import torch

        logits = torch.nn.functional.linear(hidden, weight, bias).float() * scale
        logits = (cap * torch.tanh(logits / cap) if cap else logits) / temperature
        log_p = logits.log_softmax(-1)
        chosen = log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return chosen, -(log_p.exp() * log_p).sum(-1), (2 * log_p).logsumexp(-1), logits.mean(-1), logits.argmax(-1) == targets


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; newer ones cut off by a kill are removed."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda p: -int(p.name.split("-")[1])):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())  # the trainer writes this file last
            return str(checkpoint)
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
    return None


def to_dataset(rows: Rows) -> Any:
    """Rows as the dataset that TRL reads."""
    from datasets import Dataset

    return Dataset.from_list(rows)


def complete(model: Any, tokenizer: Any, rows: Rows, max_tokens: int) -> list[str]:
    """The most likely completion of each row's prompt, for a person to read."""
    import torch

    texts = [tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False) for row in rows]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False).to(model.device)
    model.eval()
    with torch.no_grad():
        out = model.generate(**batch, max_new_tokens=max_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    model.train()
    return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
