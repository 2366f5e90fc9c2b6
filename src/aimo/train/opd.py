"""On-policy distillation (OPD, Agarwal 2023; Thinking Machines 2025), from problems to a trained model.

The model that is trained, the student, writes; a stronger model, the teacher, grades every token of it. A row
is a problem:

    prompt  [{"role": "user", "content": "What is 2 + 2?"}]

One step of TRL's trainer:

1. Take B = `batch_size` x `gradient_accumulation_steps` prompts on each device, and sample one completion for
   each from the student, with Transformers or vLLM.
2. Both models read prompt and completion: student and teacher logits (B, T, V) at the T completion tokens.
3. The loss is the mean over those tokens of the divergence between the two distributions over the vocabulary
   of V tokens: reverse KL(student || teacher), forward KL(teacher || student), or the Jensen-Shannon mixture.

GRPO learns one number from a completion, OPD one from each of its tokens; but it needs a teacher with the
same vocabulary, and ends at the teacher. Import this module after Unsloth, which replaces TRL's classes.
"""

from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from aimo.data.prepare import Rows
from aimo.errors import AimoError
from aimo.inference.model_folder import check_model_folder
from aimo.run import hub
from aimo.run.runs import Run
from aimo.train import arguments
from aimo.train.trainers import Log, Shared, fit, make_sampling_trainer


class OpdTrainer(Shared, trl.DistillationTrainer):
    """TRL's on-policy distillation with the shared part."""


def train_opd(model: Any, tokenizer: Any, rows: Rows, run: Run, probe: Rows | None = None) -> Log:
    """Draw the model's completions of each problem towards the teacher's; return the records of
    `trainers.fit`. `probe` rows (`prompt`, `answer`) are answered every `opd.probe_steps`."""
    opd, args = run.profile.opd, arguments.stage_arguments(run)
    assert opd
    folder = Path(hub.local_folder(opd.teacher))
    check_model_folder(folder)
    check_teacher(folder, model, tokenizer)
    trainer = make_sampling_trainer(
        OpdTrainer,
        run,
        model=model,
        teacher_model=load_teacher(folder, run),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in rows]),
        processing_class=tokenizer,
    )
    return fit(trainer, run, probe)


def check_teacher(folder: Path, model: Any, tokenizer: Any) -> None:
    """Refuse a teacher whose token ids or end of turn are others: it would grade texts that nobody wrote."""
    theirs = AutoTokenizer.from_pretrained(folder)
    ours, other = tokenizer.get_vocab(), theirs.get_vocab()
    remedy = "take a teacher of the student's family in opd.teacher"
    if apart := sorted((i, token) for token, i in ours.items() if other.get(token) != i):
        i, token = apart[0]
        held = theirs.convert_ids_to_tokens(i) if i < len(theirs) else "nothing"
        raise AimoError(
            f"opd.teacher: {folder.name} has another vocabulary: token {i} is {token!r} here and {held!r} "
            f"there, and {len(apart) - 1:,} more differ; {remedy}"
        )
    config = AutoConfig.from_pretrained(folder)
    sizes = [c.get_text_config().vocab_size for c in (model.config, config)]
    if sizes[0] != sizes[1]:
        raise AimoError(
            f"opd.teacher: {folder.name} scores {sizes[1]:,} tokens and the student {sizes[0]:,}; {remedy}"
        )
    listed = config.eos_token_id
    ends = {theirs.eos_token_id, *(listed if isinstance(listed, list) else [listed])}
    if tokenizer.eos_token_id not in ends:
        end, named = tokenizer.eos_token, ", ".join(repr(theirs.decode([i])) for i in sorted(ends - {None}))
        raise AimoError(
            f"opd.teacher: {folder.name} ends a turn with {named}, the student with {end!r}; set "
            "prompt.eos_token to the teacher's, or take another teacher"
        )


def load_teacher(folder: Path, run: Run) -> Any:
    """Return the teacher on the training device, frozen, in the number type that the stage computes in."""
    dtype = getattr(torch, arguments.choose_dtype(run.profile)[0])
    try:
        teacher = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        return teacher.eval().requires_grad_(False)
    except (torch.OutOfMemoryError, MemoryError):
        raise AimoError(
            f"opd.teacher: no memory for {folder.name} beside the student; take a smaller teacher, set "
            "model.load_in_4bit, or take a device with more memory"
        ) from None
