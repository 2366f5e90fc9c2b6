"""On-policy distillation (OPD, Agarwal 2023; Thinking Machines 2025), from problems to a trained model.

The student, which is trained, writes completions; the teacher, a stronger model, grades each of their tokens.
A row is a problem:

    prompt  [{"role": "user", "content": "What is 2 + 2?"}]

One step of TRL's trainer:

1. Take B = `batch_size` x `gradient_accumulation_steps` prompts on each device, and sample one completion for
   each from the student, with Transformers or vLLM.
2. Both models read prompt and completion, and give logits (B, T, V) at the T completion tokens.
3. The loss is the mean over those tokens of the divergence between the two distributions over the vocabulary
   of V tokens: reverse KL(student || teacher), forward KL(teacher || student), or the Jensen-Shannon mixture.

A teacher behind a server sends only the log-probabilities of the sampled token and of its own most likely
tokens. The divergence is then over those tokens and one more, which represents all others.

GRPO learns from one number for each completion, OPD from one for each token. But OPD needs a teacher with the
same vocabulary, and the student gets no better than the teacher.
"""

import json
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from openai import APIStatusError, OpenAIError
from transformers import AutoConfig, AutoModelForCausalLM

from aimo import config
from aimo.config import Profile
from aimo.config.profile import Opd
from aimo.data.prepare import Rows
from aimo.inference import prompts, startup
from aimo.inference.errors import AimoError
from aimo.inference.model_folder import check_model_folder, read_tokenizer
from aimo.inference.prompts import BackgroundLoop
from aimo.inference.server import address, open_client, reason, served_models
from aimo.run import hub, machine
from aimo.run.runs import Run
from aimo.train import arguments, compat, models
from aimo.train.trainers import Log, Shared, fit, make_trainer

FAMILY = "take a teacher of the student's family in opd.teacher"
OTHER = (
    f"has another vocabulary: token {{}} is {{!r}} here and {{!r}} there, and {{:,}} more differ; {FAMILY}"
)
END = "ends a turn with {}, the student with {!r}; set prompt.eos_token to the teacher's, or take another"
SERVE = "serve the teacher with `vllm serve`, or `aimo serve`"
IDS = 512  # token ids that a server is asked about at once


class OpdTrainer(Shared, trl.DistillationTrainer):
    """TRL's on-policy distillation with the shared part."""


class ServerOpdTrainer(Shared, compat.server_distillation()[0]):  # type: ignore[misc]
    """TRL's on-policy distillation with a teacher behind a server, with the shared part."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().compute_loss(*args, **kwargs)
        except Exception as e:  # TRL raises bare Exceptions for a server's answer
            if type(e) is not Exception and not isinstance(e, OSError | ValueError | TypeError | LookupError):
                raise
            raise AimoError(
                f"opd.teacher: {self.args.teacher_model_server_url} did not grade step "
                f"{self.state.global_step + 1}: {reason(e)}; start it again, and run the same command to "
                "continue from the last checkpoint"
            ) from None


def train_opd(model: Any, tokenizer: Any, rows: Rows, run: Run, probe: Rows | None = None) -> Log:
    """Train the model towards the teacher on the model's own completions; return the records of
    `trainers.fit`. `probe` rows (`prompt`, `answer`) are answered every `opd.probe_steps`."""
    opd, kind = run.profile.opd, OpdTrainer
    assert opd
    given = {"model": model, "args": arguments.stage_arguments(run), "processing_class": tokenizer}
    if opd.asks_server:
        check_teacher_server(opd, tokenizer)
        kind = ServerOpdTrainer
    else:
        given["teacher_model"] = load_teacher(check_teacher(opd.teacher, tokenizer, model.config), run)
    given["train_dataset"] = Dataset.from_list([{"prompt": row["prompt"]} for row in rows])
    return fit(make_trainer(kind, run, **given), run, probe)


# ---- Teachers: a model that has the student's tokens and end of turn and fits beside it in memory, or a
# server of such a model


def check_early(profile: Profile, run_dir: Path) -> None:
    """Refuse an unfit teacher before the earlier stages run, as far as that needs no download. Skip a teacher
    in the run's own folder: an earlier stage may still make it."""
    opd, base = profile.opd, config.locate(profile.model.base)
    if not opd or not base.is_dir():
        return
    folder, tokenizer = config.locate(opd.teacher), models.load_tokenizer(base, profile)
    is_path = folder.is_dir() or opd.teacher.count("/") > 1  # a hub id has one
    if opd.asks_server:
        check_teacher_server(opd, tokenizer)
    elif is_path and not folder.absolute().is_relative_to(run_dir.absolute()):
        check_teacher(opd.teacher, tokenizer, AutoConfig.from_pretrained(base))


def check_teacher(name: str, tokenizer: Any, student: Any) -> Path:
    """Return the folder of a teacher, a path or a hub id. Raise AimoError if its token ids or end of turn
    differ from those of `student`, a configuration: it would grade texts that nobody wrote."""
    folder = hub.local_folder(name, key="opd.teacher")
    check_model_folder(folder)
    theirs = read_tokenizer(folder)
    ours, other = tokenizer.get_vocab(), theirs.get_vocab()
    if apart := sorted((i, token) for token, i in ours.items() if other.get(token) != i):
        i, token = apart[0]
        held = theirs.convert_ids_to_tokens(i) if i < len(theirs) else "nothing"
        raise AimoError(f"opd.teacher: {name} {OTHER.format(i, token, held, len(apart) - 1)}")
    teacher = AutoConfig.from_pretrained(folder)
    sizes = [each.get_text_config().vocab_size for each in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise AimoError(
            f"opd.teacher: {name} scores {sizes[1]:,} tokens and the student {sizes[0]:,}; {FAMILY}"
        )
    listed = teacher.eos_token_id
    ends = {theirs.eos_token_id, *(listed if isinstance(listed, list) else [listed])}
    if tokenizer.eos_token_id not in ends:
        named = ", ".join(repr(theirs.decode([i])) for i in sorted(ends - {None}))
        raise AimoError(f"opd.teacher: {name} {END.format(named, tokenizer.eos_token)}")
    return folder


def load_teacher(folder: Path, run: Run) -> Any:
    """Return the frozen teacher in the stage's dtype; AimoError if it does not fit beside the student."""
    dtype = getattr(torch, arguments.choose_dtype(run.profile)[0])
    stored = getattr(torch, str(AutoConfig.from_pretrained(folder).dtype or "float32").removeprefix("torch."))
    needed = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    needed = needed * dtype.itemsize // stored.itemsize
    if machine.computes_on_gpu() and not arguments.is_sharded():
        torch.cuda.empty_cache()
        free, where = torch.cuda.mem_get_info()[0], "GPU"
    else:
        free, where = startup.available_memory(), "machine"
    if needed > free:
        raise AimoError(
            f"opd.teacher: {folder.name} takes {needed / 1e9:.1f} GB beside the student, and the {where} has "
            f"{free / 1e9:.1f} GB free; take a smaller teacher, one behind a server (http://…), or set "
            "model.load_in_4bit for the student"
        )
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)


def check_teacher_server(opd: Opd, tokenizer: Any) -> None:
    """Refuse a server that cannot grade the student's completions: it sends no log-probabilities, has other
    tokens, ends a turn differently, or has no room for the longest completion."""
    loop, client = BackgroundLoop(), open_client(opd.teacher, 0)
    told = f"opd.teacher: {address(client)}"

    def ask(path: str, **body: Any) -> Any:
        try:
            return json.loads(loop.run(client.post(path, cast_to=str, body={"model": served.id, **body})))
        except (OpenAIError, ValueError) as e:
            said = " ".join(e.response.text.split())[:200] if isinstance(e, APIStatusError) else ""
            raise AimoError(f"{told} does not answer as vLLM does: {said or reason(e)}; {SERVE}") from None

    try:
        try:
            served = loop.run(served_models(client))[0]
        except AimoError as e:
            raise AimoError(f"opd.teacher: {e}") from None
        room = getattr(served, "max_model_len", None) or IDS
        longest = opd.max_prompt_length + opd.max_completion_length + 1
        if longest > room:
            raise AimoError(
                f"{told} has a context of {room:,} tokens, and prompt and completion take up to {longest:,}; "
                "serve it with a longer one (max_model_len), or lower opd.max_completion_length"
            )
        ours = {i: tokenizer.decode([i]) for i in sorted(tokenizer.get_vocab().values())}
        ids, size, apart = list(ours), min(IDS, room - 2), []
        for part in (ids[begin : begin + size] for begin in range(0, len(ids), size)):
            prompt = [part[0], *part]  # a first token has no log-probability
            answer = ask("/completions", prompt=prompt, max_tokens=1, prompt_logprobs=0)
            try:
                graded = answer["choices"][0]["prompt_logprobs"][1:]
                theirs = [row[str(i)]["decoded_token"] for i, row in zip(part, graded, strict=True)]
            except (LookupError, TypeError, ValueError):
                raise AimoError(
                    f"{told} returns no log-probabilities of a prompt's tokens; {SERVE}"
                ) from None
            pairs = ((i, ours[i], text) for i, text in zip(part, theirs, strict=True))
            apart += [(i, a, b) for i, a, b in pairs if a != b and "\ufffd" not in a + b]  # partial letters
        if apart:
            raise AimoError(f"{told} {OTHER.format(*apart[0], len(apart) - 1)}")
        talk = [*prompts.as_prompt("1 + 1?"), {"role": "assistant", "content": "2"}]
        root = address(client).removesuffix("/v1")
        turn = ask(f"{root}/tokenize", messages=talk, add_generation_prompt=False)
        shown = turn.get("tokens") if isinstance(turn, dict) else None
        last = shown[-4:] if isinstance(shown, list) else []  # some families add a line break
        if tokenizer.eos_token_id not in last:
            raise AimoError(f"{told} {END.format(repr(tokenizer.decode(last)), tokenizer.eos_token)}")
    finally:
        loop.run(client.close())
        loop.stop()
