"""Whether the model that a stage saves computes what was trained.

A stage ends in two steps: `remember` lets the trainer's model write to a few held-out problems, and keeps the
log-probability that it gives each token. `check` loads the saved folder as its users do, with its own
tokenizer, chat template and number type, and reads the same conversations. A template that differs, weights
in another number type, or an adapter that is not the trained one, shows in log-probabilities at once.
"""

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from aimo.data import prepare
from aimo.data.prepare import Rows
from aimo.errors import AimoError
from aimo.inference.model_folder import read_tokenizer
from aimo.inference.storage import read_json, write_json
from aimo.run.runs import Run
from aimo.train import arguments, models

ROWS, TOKENS = 8, 32  # held-out problems, and tokens that are written to each
PIECE = 1024  # tokens whose log-probabilities are computed at once
# Nats between two log-probabilities, on average. The tiny base: 1e-6 in float32, 0.007 with bfloat16 weights.
# Merging rounds in 16 bits: SmolLM2-135M moved by 0.06 in bfloat16.
BOUNDS = {"float32": 0.0005, "bfloat16": 0.2, "float16": 0.2}
FOUR_BITS = 0.5  # the adapter was trained on rounded weights, and is merged into exact ones


def log_probs(model: Any, tokenizer: Any, talks: Rows, dtype: str) -> list[tuple[list[int], torch.Tensor]]:
    """Return the token ids of each talk's `prompt`, and the log-probabilities (n,) of its `reply`'s tokens.

    Both are encoded apart, as in training and generation.
    """
    found = []
    was_training, compute = model.training, getattr(torch, dtype)
    model.eval()
    asked = tokenizer.apply_chat_template(
        [talk["prompt"] for talk in talks], add_generation_prompt=True, tokenize=False
    )
    for text, talk in zip(asked, talks, strict=True):
        prompt, reply = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text, talk["reply"]))
        row = torch.tensor([prompt + reply], device=model.device)  # (1, prompt + n)
        with torch.no_grad(), torch.autocast(model.device.type, compute, enabled=dtype != "float32"):
            logits = model(input_ids=row).logits[0, len(prompt) - 1 : -1]  # (n, vocabulary)
        ids = row[0, len(prompt) :, None]  # (n, 1)
        pieces = zip(logits.split(PIECE), ids.split(PIECE), strict=True)
        values = [part.float().log_softmax(-1).gather(-1, chosen)[:, 0] for part, chosen in pieces]
        found.append((prompt, torch.cat(values).cpu()))
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
    dtype = arguments.choose_dtype(run.profile)[0]
    with torch.random.fork_rng():
        torch.manual_seed(run.profile.seed)
        replies = models.complete(model, tokenizer, rows, TOKENS, do_sample=True)
    talks = [
        {"prompt": row["prompt"], "reply": reply} for row, reply in zip(rows, replies, strict=True) if reply
    ]
    for talk, (ids, values) in zip(talks, log_probs(model, tokenizer, talks, dtype), strict=True):
        talk |= {"ids": ids, "log_probs": values.tolist()}
    write_json(path, {"dtype": dtype, "talks": talks})


def check(run: Run) -> dict[str, float]:
    """Return the mean difference of the log-probabilities of the saved model and of the trained one.

    AimoError names the cause where it is above `training.served_bound`: template, number type, or adapter.
    """
    path, folder = run.folder / "served.json", run.folder / "model"
    kept = read_json(path, f"remove {path}, and run the stage again") if path.exists() else {}
    if not kept.get("talks"):
        return {}
    talks, trained_in = kept["talks"], kept["dtype"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    saved_in = str(model.dtype).removeprefix("torch.")
    found = log_probs(model, read_tokenizer(folder), talks, saved_in)
    same_ids = all(talk["ids"] == ids for talk, (ids, _) in zip(talks, found, strict=True))
    theirs = [torch.tensor(talk["log_probs"]) for talk in talks]
    pairs = [(a, b) for a, (_, b) in zip(theirs, found, strict=True) if len(a) == len(b)]
    same_ids = same_ids and len(pairs) == len(talks)
    mean = float(torch.cat([(a - b).abs() for a, b in pairs]).mean()) if pairs else float("inf")
    bound = run.profile.training.served_bound
    if bound is None:
        bound = FOUR_BITS if run.profile.model.load_in_4bit else BOUNDS[trained_in]
    if same_ids and mean <= bound:
        return {"served_difference": round(mean, 6)}
    if not same_ids:
        cause = "its tokenizer or chat template makes other tokens of the same conversation"
    elif saved_in != trained_in:
        cause = f"its weights are {saved_in}, and the stage computed in {trained_in}"
    else:
        cause = "its weights are not those of the trained adapter, merged into the model that it began with"
    raise AimoError(
        f"{run.stage}: {folder} is not the model that was trained: {cause}; the log-probabilities of "
        f"{sum(map(len, theirs))} tokens differ by {mean:.3g} on average, and {bound:g} is allowed "
        f"(training.served_bound); run the stage again: --from {run.stage}"
    )
