"""Rows of the SFT set as token ids, kept on disk: other processes and later starts of the stage read them.

Out of scope: what TRL does with them afterwards (labels, truncation, packing), which `datasets` keeps beside
them.
"""

import hashlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from datasets import Dataset, load_from_disk

from aimo.data.prepare import Rows


def read_or_tokenize(rows: Rows, tokenizer: Any, args: Any, folder: Path) -> Dataset:
    """The rows as `tokenize` gives them, from a folder named by the hash of rows and tokenizer, or written
    there.

    `args` is TRL's configuration: its `dataset_num_proc` processes share the work. The main process does it;
    the others wait and read.
    """
    cached = folder / "tokens" / content_hash(rows, tokenizer)
    with args.main_process_first(local=False):
        if not cached.exists():
            started = time.monotonic()
            print(f"Tokenizing {len(rows):,} rows.")
            partial = cached.with_suffix(".partial")
            tokenize(rows, tokenizer, args.dataset_num_proc).save_to_disk(partial)
            partial.rename(cached)
            print(f"Tokenized in {time.monotonic() - started:.0f} s.")
    return load_from_disk(cached)


def tokenize(rows: Rows, tokenizer: Any, num_proc: int | None = None) -> Dataset:
    """`prompt` and `completion` rows as `input_ids` and `completion_mask` (1 on the completion), equally long
    lists.

    The prompt's tokens are those of generation. Tokenized as one text, the end of a prompt may merge with
    what follows (`>` and `a` into `>a`), and the model would be trained on tokens that it never sees when it
    is asked.
    """

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        talks = [p + c for p, c in zip(batch["prompt"], batch["completion"], strict=True)]
        asked = tokenizer.apply_chat_template(batch["prompt"], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(talks, tokenize=False)
        replies = [text[len(prompt) :] for prompt, text in zip(asked, whole, strict=True)]
        prompt_ids = tokenizer(asked, add_special_tokens=False)["input_ids"]
        reply_ids = tokenizer(replies, add_special_tokens=False)["input_ids"]
        pairs = list(zip(prompt_ids, reply_ids, strict=True))
        return {
            "input_ids": [prompt + reply for prompt, reply in pairs],
            "completion_mask": [[0] * len(prompt) + [1] * len(reply) for prompt, reply in pairs],
        }

    columns = ["prompt", "completion"]
    dataset = Dataset.from_list([{column: row[column] for column in columns} for row in rows])
    return dataset.map(encode, batched=True, num_proc=num_proc, remove_columns=columns)


def content_hash(rows: Rows, tokenizer: Any) -> str:
    """A hash of everything that determines the token ids: the rows, and the tokenizer's files with its chat
    template."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row["prompt"], row["completion"]]).encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]
