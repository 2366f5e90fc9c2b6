"""`aimo data pack`: the rows of the SFT set, tokenised and packed before training, which finds them.

`datasets` keeps them beside the token ids, under a hash of what made them: every process of a job, and every
later start, maps the same files. Made on a machine without a GPU, they spare the others the work: copy the
run's folder there. Out of scope: rows that Unsloth's own trainer packs on a GPU; it keeps them too, under
another hash.
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated

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
    import trl

    from aimo.data import prepare
    from aimo.run import hub, runs
    from aimo.train import compat, models
    from aimo.train.arguments import sft_arguments
    from aimo.train.tokenization import read_or_tokenize

    run = runs.begin("sft", profile, run_dir, set_)
    assert run.profile.sft
    if not run.profile.sft.packing:
        raise AimoError("sft.packing: false packs nothing; add --set sft.packing=true")
    args = sft_arguments(run.profile, run.folder)
    tokenizer = models.load_tokenizer(run.start_model(), run.profile)
    tokens = read_or_tokenize(prepare.read(run.dir / "data", "sft"), tokenizer, args, run.folder)
    packed = compat.pack(tokens, args)
    assert run.profile.model.max_length
    length, count = run.profile.model.max_length, sum(map(len, packed["input_ids"]))
    full = count / len(packed) / length
    said = f"{len(tokens):,} rows in {len(packed):,} of {length:,} tokens, {full:.1%} full"
    print(f"{said}: {packed.cache_files[0]['filename']}")
    if push_to_hub:
        title = f"# Packed rows of the profile {run.profile.profile}"
        made_by = {
            key: getattr(args, key) for key in ("max_length", "packing_strategy", "shuffle_dataset", "seed")
        }
        card = f"{title}\n\n{said}.\n\n```json\n{json.dumps(made_by | {'trl': trl.__version__})}\n```\n"
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "train.parquet"
            packed.to_parquet(path)
            print(hub.push_dataset(push_to_hub, {"README.md": card.encode(), "train.parquet": path}))
