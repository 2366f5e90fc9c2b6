"""Whether what is served is what was trained: log-probabilities of the same tokens, side by side.

A trained stage keeps in served.json what its model wrote to held-out problems (`train.trainers`), with the
log-probabilities of each reply's n tokens three times: as trained (`log_probs`), with the adapter merged into
the weights (`merged`), and without the adapter (`start`). Whoever serves the model reads the same tokens and
compares: another chat template, number type or adapter shows at once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aimo.inference.engine import Engine
from aimo.inference.errors import AimoError
from aimo.inference.storage import read_json

Reading = tuple[list[int], Sequence[float]]
"""Token ids of a prompt, and the log-probabilities (n,) of the tokens of its reply."""
# Nats between two log-probabilities, on average, that are rounding. In 16 bits the trainer's own model moves
# when its adapter is merged: another honest computation may move it `TIMES` as far.
EXACT, ROUNDED, TIMES = 0.0005, 0.02, 3
# In 16 bits: all weights were trained in 32, and nothing says how far rounding them moves the model.
ALL_WEIGHTS = 0.2
# In 16 bits: vLLM's kernels round elsewhere than the trainer's (0.046 for SmolLM2-135M in bfloat16 on a CPU).
IN_VLLM = 0.1
SURE = 5  # standard errors
FOUR_BITS = 0.5  # the adapter was trained on rounded weights, and is merged into exact ones
ASKED_FOR = {"quantization", "kv_cache_dtype"}  # vLLM's arguments that change what it computes, as dtype does
REMEDY = "run the stage again, or raise training.served_bound"


def read_kept(stage: Path) -> dict[str, Any]:
    """Return the served.json of a stage's folder; {} where it kept none."""
    path = stage / "served.json"
    kept = read_json(path, f"remove {path}, and run the stage again") if path.exists() else {}
    return kept if kept.get("talks") else {}


def encode_talks(tokenizer: Any, talks: Sequence[dict[str, Any]]) -> list[tuple[list[int], list[int]]]:
    """Return the token ids of each talk's `prompt` and, encoded apart as in training, of its `reply`."""
    asked = [talk["prompt"] for talk in talks]
    prompts = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    texts = [*prompts, *(talk["reply"] for talk in talks)]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return list(zip(ids[: len(talks)], ids[len(talks) :], strict=True))


def compare(
    kept: dict[str, Any],
    found: Sequence[Reading],
    served_in: str,
    what: str,
    bound: float | None = None,
    remedy: str = REMEDY,
    kernels: float = 0.0,
) -> float:
    """Return the mean difference of the log-probabilities that were `found` from those of training, in nats.

    AimoError where it is above `bound` (None: what rounding explains), the number type is another, or the
    served model surely has less than half of what training changed. It names `what` is served, and the cause.
    `kernels`: what the served model's own rounding explains in 16 bits.
    """
    talks, trained_in = kept["talks"], kept["dtype"]
    kernels = 0.0 if trained_in == "float32" else kernels
    if any(
        talk["ids"] != ids or len(talk["log_probs"]) != len(values)
        for talk, (ids, values) in zip(talks, found, strict=True)
    ):
        cause = "its tokenizer or chat template makes other tokens of the same conversation"
        raise AimoError(f"{what} is not the model that was trained: {cause}; {remedy}")

    def joined(key: str) -> NDArray[np.float64]:  # (tokens,)
        return np.array([value for talk in talks for value in talk.get(key) or talk["log_probs"]])

    served = np.array([value for _, values in found for value in values])
    trained, merged, start = map(joined, ("log_probs", "merged", "start"))
    difference, rounding = np.abs(served - merged).mean(), np.abs(trained - merged).mean()
    allowed = bound
    if allowed is None:
        in_16_bits = max(ROUNDED, TIMES * rounding) if "merged" in talks[0] else ALL_WEIGHTS
        allowed = EXACT if trained_in == "float32" else max(in_16_bits, kernels)
        allowed = FOUR_BITS if kept.get("four_bits") else allowed
    # Least squares of served = start + share (trained - start) + rounding: the share is 1 for what was
    # trained, 0 for the model that training began with, and about 0 for another adapter. A merge in 16 bits
    # may lose what is smaller than a weight's last bit.
    learnt, moved, lost = trained - start, served - start, False
    if bound is None and np.abs(learnt).mean() > rounding:
        share = (learnt @ moved) / (learnt @ learnt)
        error = (moved - share * learnt).std() / np.linalg.norm(learnt)
        lost = bool(share + SURE * error < 0.5)
    if served_in != trained_in:
        cause = f"its weights are {served_in}, and the stage computed in {trained_in}"
    elif difference > allowed or lost:
        cause = "its weights are not those of the trained adapter and the model that it began with"
    else:
        return float(difference)
    raise AimoError(
        f"{what} is not the model that was trained: {cause}; the log-probabilities of {len(served):,} tokens "
        f"differ by {difference:.3g} on average, {allowed:.3g} is allowed, and training changed them by "
        f"{np.abs(learnt).mean():.3g}; {remedy}"
    )


def check_engine(
    engine: Engine, stage: Path, bound: float | None = None, remedy: str | None = None
) -> float | None:
    """Return how far vLLM's log-probabilities are from those of the `stage` whose merged folder or adapter
    the engine serves; None where the stage kept none, or vLLM was asked to compute other numbers.

    AimoError as `compare`.
    """
    kept, asked = read_kept(stage), engine.settings.vllm
    if not kept or ASKED_FOR & asked.keys():
        return None
    served_in = str(engine.llm.vllm_config.model_config.dtype).removeprefix("torch.")
    if "dtype" in asked and served_in != kept["dtype"]:
        return None
    pairs = encode_talks(engine.tokenizer, kept["talks"])

    async def read() -> list[Reading]:  # one by one: with an adapter, vLLM 0.31 mixes up the rows of several
        return [(prompt, await engine.log_probs(prompt, reply)) for prompt, reply in pairs]

    if engine.adapter and not remedy:
        remedy = (
            f"serve the merged {stage / 'model'}, or the adapter on the model that its stage began with, "
            f"with the adapter's chat template, in {kept['dtype']} (vLLM's dtype)"
        )
    what = f"{stage.name}: {engine.adapter or engine.model} in vLLM"
    return compare(kept, engine.run(read()), served_in, what, bound, remedy or REMEDY, IN_VLLM)
