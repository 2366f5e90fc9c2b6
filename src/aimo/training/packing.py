"""`aimo data pack`: the packed rows of the SFT set, kept on disk and found again by what made them.

Every process of a job, and every later start, maps the same files. Made on a machine without a GPU, they
spare the others the work: copy the run's folder there. Out of scope: rows that Unsloth's own trainer packs on
a GPU; it keeps them too, under another hash.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from aimo.errors import AimoError


def pack(
    profile: Annotated[str, typer.Option(help="A name in notebooks/profiles, or a path to a YAML file.")],
    run_dir: Annotated[str | None, typer.Option(help="The run's folder; runs/PROFILE if not given.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a key of the profile, such as sft.packing=true.")
    ] = None,
    push_to_hub: Annotated[str | None, typer.Option(help="Then push to this dataset, owner/name.")] = None,
) -> None:
    """Tokenise and pack a run's SFT set before training, which then finds it."""
    from aimo import hub, runs
    from aimo.data import prepare
    from aimo.training import models, trl_compat
    from aimo.training.arguments import sft_arguments
    from aimo.training.tokenization import read_or_tokenize

    run = runs.begin("sft", profile, run_dir, set_)
    assert run.profile.sft
    if not run.profile.sft.packing:
        raise AimoError("sft.packing: false packs nothing; add --set sft.packing=true")
    args = sft_arguments(run.profile, run.folder)
    tokenizer = models.load_tokenizer(run.start_model(), run.profile)
    tokens = read_or_tokenize(prepare.read(run.dir / "data", "sft"), tokenizer, args, run.folder)
    packed = read_or_pack(tokens, args, lambda: trl_compat.pack(tokens, args))
    assert run.profile.model.max_length
    length, count = run.profile.model.max_length, sum(map(len, packed["input_ids"]))
    full = count / len(packed) / length
    said = f"{len(tokens):,} rows in {len(packed):,} of {length:,} tokens, {full:.1%} full"
    print(f"{said}: {folder_of(tokens, args)}")
    if push_to_hub:
        title = f"# Packed rows of the profile {run.profile.profile}"
        card = f"{title}\n\n{said}.\n\n```json\n{made_by(args)}\n```\n"
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "train.parquet"
            packed.to_parquet(path)
            print(hub.push_dataset(push_to_hub, {"README.md": card.encode(), "train.parquet": path}))


def read_or_pack(tokens: Any, args: Any, prepare: Callable[[], Any]) -> Any:
    """The packed rows of a tokenised dataset from the stage's folder, or what `prepare` gives, kept there.

    `args` is TRL's configuration. Every process may call it: they pack together, and the main one writes.
    """
    from datasets import load_from_disk

    kept = folder_of(tokens, args)
    if kept.exists():
        return load_from_disk(kept)
    packed = prepare()
    if args.process_index == 0:
        partial = kept.with_suffix(".partial")
        packed.save_to_disk(partial)
        partial.rename(kept)
    return packed


def folder_of(tokens: Any, args: Any) -> Path:
    """Where the packed rows are kept: the stage's folder, and a hash of the tokens and of what packs them."""
    digest = hashlib.sha256(made_by(args).encode())
    for column in ("input_ids", "completion_mask"):
        for batch in tokens.select_columns([column]).with_format("arrow").iter(1000):
            lists = batch[column].combine_chunks()
            digest.update(lists.value_lengths().to_numpy().tobytes() + lists.flatten().to_numpy().tobytes())
    return Path(args.output_dir) / "packed" / digest.hexdigest()[:16]


def made_by(args: Any) -> str:
    """What determines packed rows besides their tokens, as JSON."""
    import trl

    keys = ("max_length", "packing_strategy", "shuffle_dataset", "seed")
    made = {"trl": trl.__version__, "trainer": trl.SFTTrainer.__name__}
    return json.dumps(made | {key: getattr(args, key) for key in keys})
