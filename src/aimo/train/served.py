"""Whether the model that a stage saves computes what was trained.

A stage ends in two steps: `remember` lets the trainer's model write to held-out problems, and keeps the
log-probability that it gives each token. `check` loads the saved folder as its users do, with its own
tokenizer, chat template and number type, and reads the same conversations (`evaluation.served`).
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from aimo.data import prepare
from aimo.data.prepare import Rows
from aimo.evaluation.served import Reading, compare, encode_talks, read_kept
from aimo.inference.model_folder import read_tokenizer
from aimo.inference.storage import write_json
from aimo.run import machine
from aimo.run.runs import Run
from aimo.train import arguments, models

ROWS, TOKENS = 64, 16  # held-out problems, and tokens that are written to each
PART = 16  # of those problems, answered at once
PIECE = 1024  # tokens whose log-probabilities are computed at once


def log_probs(model: Any, pairs: Sequence[tuple[list[int], list[int]]], dtype: str) -> list[Reading]:
    """Return the prompts of pairs of prompt and reply, both token ids, and the log-probabilities (n,) of each
    reply's tokens, computed in `dtype`."""
    found: list[Reading] = []
    was_training, compute = model.training, getattr(torch, dtype)
    model.eval()
    for prompt, reply in pairs:
        row = torch.tensor([prompt + reply], device=model.device)  # (1, prompt + n)
        with torch.no_grad(), torch.autocast(model.device.type, compute, enabled=dtype != "float32"):
            logits = model(input_ids=row).logits[0, len(prompt) - 1 : -1]  # (n, vocabulary)
        ids = row[0, len(prompt) :, None]  # (n, 1)
        pieces = zip(logits.split(PIECE), ids.split(PIECE), strict=True)
        values = [part.float().log_softmax(-1).gather(-1, chosen)[:, 0] for part, chosen in pieces]
        found.append((prompt, [round(value, 6) for value in torch.cat(values).tolist()]))
    model.train(was_training)
    return found


def remember(model: Any, tokenizer: Any, run: Run, probe: Rows | None) -> None:
    """Keep in served.json of the stage what the trained model writes to held-out problems, with its
    log-probabilities; nothing where the run has none, or where each process has a part of the model."""
    path = run.folder / "served.json"
    rows = prepare.read_set(run.dir / "data", "heldout")[:ROWS] or (probe or [])[:ROWS]
    if not rows or arguments.is_sharded():
        path.unlink(missing_ok=True)
        return
    dtype, settings = arguments.choose_dtype(run.profile)[0], run.profile.model
    talks: Rows = []

    def keep(key: str) -> None:
        read = log_probs(model, encode_talks(tokenizer, talks), dtype)
        for talk, (ids, values) in zip(talks, read, strict=True):
            talk |= {"ids": ids, key: values}

    # Adapters of a four-bit model are merged into other weights than the trainer's.
    can_merge = settings.lora and not settings.load_in_4bit
    with torch.random.fork_rng(), models.merged(model) if can_merge else contextlib.nullcontext():
        torch.manual_seed(run.profile.seed)
        for first in range(0, len(rows), PART):
            part = rows[first : first + PART]
            texts = models.complete(model, tokenizer, part, TOKENS, do_sample=True)
            replies = zip(part, texts, strict=True)
            talks += [{"prompt": row["prompt"], "reply": text} for row, text in replies if text]
        if can_merge:
            keep("merged")
    keep("log_probs")
    if settings.lora:
        with model.disable_adapter():
            keep("start")
    write_json(path, {"dtype": dtype, "four_bits": settings.load_in_4bit, "talks": talks})


def check(run: Run) -> dict[str, float]:
    """Return the mean difference of the log-probabilities of the saved model and of the trained one.

    AimoError as `compare`. On a GPU with room for the folder it is read there.
    """
    folder, kept = run.folder / "model", read_kept(run.folder)
    if not kept:
        return {}
    device = "cpu"
    if machine.computes_on_gpu():
        torch.cuda.empty_cache()
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        device = "cuda" if torch.cuda.mem_get_info()[0] > 1.2 * size else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    model.to(device)
    saved_in = str(model.dtype).removeprefix("torch.")
    found = log_probs(model, encode_talks(read_tokenizer(folder), kept["talks"]), saved_in)
    difference = compare(kept, found, saved_in, f"{run.stage}: {folder}", run.profile.training.served_bound)
    return {"served_difference": round(difference, 6)}
