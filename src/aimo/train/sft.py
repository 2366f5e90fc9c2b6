"""Supervised fine-tuning (SFT), from rows to a trained model.

A row is a conversation:

    prompt      [{"role": "user", "content": "What is 2 + 2?"}]
    completion  [{"role": "assistant", "content": "<think>2 + 2 = 4</think>\\boxed{4}"}]

The loss is the mean negative log-likelihood of the completion's tokens; the prompt's tokens carry no loss.
Rows are tokenised once, onto disk, for all processes and later starts. To save padding, they are packed into
full contexts, or a step takes rows of similar length.
"""

import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
from datasets import Dataset, load_from_disk

from aimo.data import prepare
from aimo.data.prepare import Rows
from aimo.inference.errors import AimoError
from aimo.inference.storage import read_json, write_json
from aimo.run import hub
from aimo.run.runs import Run
from aimo.train import arguments, compat, models, trainers
from aimo.train.trainers import Log, Shared, fit, make_trainer, rows_per_step

POOL = 50  # steps whose rows are sorted by length together
LOOKED_AT = 256  # rows whose least likely token is shown if `min_logprob` drops none


def train_sft(
    model: Any, tokenizer: Any, rows: Rows, run: Run, test: Rows | None = None, probe: Rows | None = None
) -> Log:
    """Fine-tune the model on `prompt` and `completion` rows; return the records of `trainers.fit`.

    `data.sft.min_logprob` drops rows that have a less likely token. Rows longer than `model.max_length` are
    cut. The loss on `test` rows is logged every `sft.eval_steps`; `probe` rows
    (`prompt`, `answer`) are answered every `sft.probe_steps`.
    """
    sft, args = run.profile.sft, arguments.stage_arguments(run)
    assert sft
    if (least := min_logprob(run)) is not None:
        with args.main_process_first(local=False):
            worst = worst_tokens(model, tokenizer, rows, run)
        kept = [row for row, token in zip(rows, worst, strict=True) if token["log_prob"] >= least]
        if not kept:
            best = max(token["log_prob"] for token in worst)
            raise AimoError(
                f"data.sft.min_logprob: {least:g} is above the least likely token of every solution, of "
                f"which the best has {best:.3g}; lower it"
            )
        print(f"{len(kept):,} of {len(rows):,} solutions have no token below {least:g}.")
        rows = kept

    sets: list[Dataset | None] = []
    for part in (rows, test if sft.eval_steps else None):
        dataset = read_or_tokenize(part, tokenizer, args, run.folder) if part else None
        if dataset and not sft.packing and pc.max(lengths_of(dataset)).as_py() > args.max_length:
            # TRL cuts them; Unsloth leaves tokenised rows as they are.
            dataset = dataset.map(lambda row: {name: ids[: args.max_length] for name, ids in row.items()})
        sets.append(dataset)
    given = {"train_dataset": sets[0], "eval_dataset": sets[1], "processing_class": tokenizer}
    trainer = make_trainer(SftTrainer, run, model=model, args=args, **given)
    if sft.packing and not args.packing:  # Unsloth only logs that it does not pack
        raise AimoError(
            "sft.packing: Unsloth does not pack the rows of this model; set it to false, or take "
            "model.backend transformers"
        )
    trainer.by_length = sft.group_by_length and not sft.packing
    return fit(trainer, run, probe)


# ---- The least likely token


def min_logprob(run: Run) -> float | None:
    data = run.profile.data
    return data.sft.min_logprob if data and data.sft else None


def worst_tokens(model: Any, tokenizer: Any, rows: Rows, run: Run) -> Rows:
    """Return the least likely token of each row's completion under the model before training: `log_prob` in
    nats, and `token`, its text.

    Read all rows if `data.sft.min_logprob` is set, or else the first LOOKED_AT. Keep the result in the
    stage's folder, with a hash of the rows. Tokens that the trainer cuts off count too.
    """
    path = run.folder / "worst_tokens.json"
    rows = rows if min_logprob(run) is not None else rows[:LOOKED_AT]
    digest = hashlib.sha256(json.dumps([[row["prompt"], row["completion"]] for row in rows]).encode())
    remedy = f"remove {path}, and run the stage again"
    if path.exists() and (known := read_json(path, remedy))["rows"] == digest.hexdigest():
        return known["tokens"]  # type: ignore[no-any-return]
    if arguments.is_sharded():
        raise AimoError(
            "data.sft.min_logprob: no process holds the whole model to read the solutions with; take "
            "--strategy ddp or zero2, or set it to null"
        )
    pairs, found = encode(rows, tokenizer), []
    read = trainers.log_probs(model, pairs, arguments.choose_dtype(run.profile)[0])
    for (_, reply), (_, values) in zip(pairs, read, strict=True):
        worst = min(range(len(values)), key=values.__getitem__)
        found.append({"log_prob": values[worst], "token": tokenizer.decode([reply[worst]])})
    write_json(path, {"rows": digest.hexdigest(), "tokens": found})
    return found


# ---- Token ids


def encode(rows: Rows, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Return the token ids of each row's prompt and completion.

    They are encoded separately, so that the prompt has the same tokens as in generation. In one text, its end
    might merge with what follows (`>` and `a` into `>a`).
    """
    prompts, talks = [r["prompt"] for r in rows], [r["prompt"] + r["completion"] for r in rows]
    asked = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(talks, tokenize=False)
    replies = [text[len(prompt) :] for prompt, text in zip(asked, whole, strict=True)]
    ids = tokenizer(asked + replies, add_special_tokens=False)["input_ids"]
    return list(zip(ids[: len(rows)], ids[len(rows) :], strict=True))


def tokenize(rows: Rows, tokenizer: Any, num_proc: int | None = None) -> Dataset:
    """Return rows of `input_ids` (n,) and `completion_mask` (n,), 1 on the completion."""

    def to_columns(batch: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        rows = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
        pairs = encode(rows, tokenizer)
        masks = [[0] * len(prompt) + [1] * len(reply) for prompt, reply in pairs]
        return {"input_ids": [prompt + reply for prompt, reply in pairs], "completion_mask": masks}

    columns = ["prompt", "completion"]
    dataset = Dataset.from_list([{column: row[column] for column in columns} for row in rows])
    return dataset.map(to_columns, batched=True, num_proc=num_proc, remove_columns=columns)


def lengths_of(dataset: Any) -> Any:
    """Return each row's number of tokens, as an Arrow array."""
    return pc.list_value_length(dataset.with_format("arrow")[:]["input_ids"])


def read_or_tokenize(rows: Rows, tokenizer: Any, args: Any, folder: Path) -> Dataset:
    """Return the tokenised rows from the stage's folder. If they are not there, `tokenize` and write them.

    Their folder is named after a hash of what determines the token ids: the rows, the tokenizer's files and
    its chat template. The main process tokenises in `dataset_num_proc` processes; the others wait and read.
    """
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row["prompt"], row["completion"]]).encode())
    with tempfile.TemporaryDirectory() as name:
        tokenizer.save_pretrained(name)
        for file in sorted(path for path in Path(name).rglob("*") if path.is_file()):
            digest.update(file.name.encode() + file.read_bytes())
    cached = folder / "tokens" / digest.hexdigest()[:16]
    with args.main_process_first(local=False):
        if not cached.exists():
            print(f"Tokenizing {len(rows):,} rows.")
            partial = cached.with_suffix(".partial")
            tokenize(rows, tokenizer, args.dataset_num_proc).save_to_disk(partial)
            partial.rename(cached)
    return load_from_disk(cached)


def pack_rows(run: Run, push_to_hub: str | None = None) -> None:
    """Tokenise and pack a run's SFT set as training would, print its file, and push it to a dataset if asked.
    `datasets` finds the packed rows again by a hash of how they were made; Unsloth on a GPU has another."""
    profile, length = run.profile, run.profile.model.max_length
    assert profile.sft and length
    if not profile.sft.packing:
        raise AimoError("sft.packing: false packs nothing; add --set sft.packing=true")
    if min_logprob(run) is not None:
        raise AimoError(
            "data.sft.min_logprob: the model chooses the rows when the stage starts; set it to null to pack"
        )
    args = arguments.stage_arguments(run)
    tokenizer = models.load_tokenizer(run.start_model(), profile)
    tokens = read_or_tokenize(prepare.read_set(run.dir / "data", "sft"), tokenizer, args, run.folder)
    packed = compat.pack_tokens(tokens, args)
    full = sum(map(len, packed["input_ids"])) / len(packed) / length
    said = f"{len(tokens):,} rows in {len(packed):,} of {length:,} tokens, {full:.1%} full"
    print(f"{said}: {packed.cache_files[0]['filename']}")
    if push_to_hub:
        with hub.refusals(f"--push-to-hub: dataset {push_to_hub!r} was refused (REASON); check HF_TOKEN"):
            print(packed.push_to_hub(push_to_hub, private=True).commit_url)


# ---- Order of rows


class SftTrainer(Shared, compat.SftHook):
    """TRL's SFT; with `by_length`, a step holds rows of similar length."""

    by_length = False

    def order_rows(self, sampler: Any) -> Any:
        if self.by_length:
            sampler = ByLength(lengths_of(self.train_dataset).to_pylist(), rows_per_step(self.args))
        return super().order_rows(sampler)


class ByLength:
    """A sampler that shuffles rows, sorts the rows of each `POOL` steps by length, and shuffles the steps.
    The longest row comes first, so that a step that does not fit in memory fails at once."""

    def __init__(self, lengths: list[int], rows_per_step: int):
        self.lengths, self.rows_per_step = lengths, rows_per_step
        self.generator: torch.Generator | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        length, size = self.lengths.__getitem__, self.rows_per_step
        order = torch.randperm(len(self), generator=self.generator).tolist()
        longest = max(order, key=length)
        order.insert(0, order.pop(order.index(longest)))
        whole = len(self) - len(self) % size  # the rest makes a short last step
        pools = [order[first : min(first + POOL * size, whole)] for first in range(0, whole, POOL * size)]
        by_length = [row for pool in pools for row in sorted(pool, key=length)]
        steps = [by_length[first : first + size] for first in range(0, whole, size)]
        steps = [steps[i] for i in torch.randperm(len(steps), generator=self.generator).tolist()]
        steps.sort(key=lambda step: longest not in step)
        return itertools.chain(*steps, order[whole:])
