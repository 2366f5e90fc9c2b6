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

A teacher behind a server sends the log-probabilities of the sampled token and of its own likeliest tokens
only: the divergence is that of those tokens and one more, which stands for all others.

GRPO learns one number from a completion, OPD one from each of its tokens; but it needs a teacher with the
same vocabulary, and ends at the teacher. Import this module after Unsloth, which replaces TRL's classes.
"""

from typing import Any

import trl
from datasets import Dataset

from aimo.data.prepare import Rows
from aimo.errors import AimoError
from aimo.inference.server import reason
from aimo.run.runs import Run
from aimo.train import arguments, compat
from aimo.train.teacher import check_teacher, check_teacher_server, load_teacher
from aimo.train.trainers import Log, Shared, fit, make_sampling_trainer


class OpdTrainer(Shared, trl.DistillationTrainer):
    """TRL's on-policy distillation with the shared part."""


class ServerOpdTrainer(Shared, compat.server_distillation()[0]):  # type: ignore[misc]
    """The same with a teacher behind a server."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().compute_loss(*args, **kwargs)
        except Exception as e:  # TRL raises bare ones for what a server answers
            if type(e) is not Exception and not isinstance(e, OSError | ValueError):
                raise
            raise AimoError(
                f"opd.teacher: {self.args.teacher_model_server_url} did not grade step "
                f"{self.state.global_step + 1}: {reason(e)}; start it again, and run the same command to "
                "continue from the last checkpoint"
            ) from None


def train_opd(model: Any, tokenizer: Any, rows: Rows, run: Run, probe: Rows | None = None) -> Log:
    """Draw the model's completions of each problem towards the teacher's; return the records of
    `trainers.fit`. `probe` rows (`prompt`, `answer`) are answered every `opd.probe_steps`."""
    opd, args = run.profile.opd, arguments.stage_arguments(run)
    assert opd
    kind: Any = OpdTrainer
    given: dict[str, Any] = {"model": model, "args": args, "processing_class": tokenizer}
    if opd.asks_server:
        check_teacher_server(opd, tokenizer)
        kind = ServerOpdTrainer
    else:
        given["teacher_model"] = load_teacher(check_teacher(opd.teacher, tokenizer, model.config), run)
    given["train_dataset"] = Dataset.from_list([{"prompt": row["prompt"]} for row in rows])
    return fit(make_sampling_trainer(kind, run, **given), run, probe)
