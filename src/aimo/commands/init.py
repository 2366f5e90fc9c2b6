"""`aimo init my.csv`: a profile of a laptop's size for one's own problems."""

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import yaml

from aimo import config
from aimo.commands.options import arg, opt
from aimo.config import Columns
from aimo.config.profile import PLAIN_NAME
from aimo.data import prepare
from aimo.data.sources import roles_of
from aimo.errors import AimoError
from aimo.inference import files
from aimo.inference.storage import write_whole
from aimo.run import hub, runs
from aimo.train import models

LEAST = 4  # problems: of fewer, none can be held out
PROFILE = """\
# The problems of {file} on a laptop's CPU, written by `aimo init`. Every key: docs/profiles.md.
profile: {name}
seed: 0

model:
  base: {base}
  backend: transformers
  max_length: 1024            # longer rows are dropped
  dtype: float32

data:
{sets}
  ngram: {ngram}                   # drop training rows that share so many words in a row with a held-out one
{sft}
grpo:
  learning_rate: 1.0e-3
  max_steps: 30
  prompts_per_step: {prompts}
  num_generations: 8
  max_resample: 1
  max_prompt_length: 512
  max_completion_length: 256
  rewards: {{accuracy: 1.0, format: 0.2}}
  save_steps: 10

inference:
  test_rows: 4
  samples: 8
  max_tokens: 256
"""
SFT = """
sft:
  learning_rate: 1.0e-3
  epochs: 2
  batch_size: {batch}
  save_steps: 50
"""


def init_command(
    source: Annotated[Path, arg("A file of problems with answers: .csv, .jsonl, .parquet …")],
    base: Annotated[str, opt("The model to train, a folder or a hub id.")] = "data/tiny-base",
    prompt_column: Annotated[str | None, opt("Its problems; `problem`.")] = None,
    answer_column: Annotated[str | None, opt("Its gold answers; `answer`.")] = None,
    solution_column: Annotated[str | None, opt("Its worked solutions, for SFT.")] = None,
    out: Annotated[Path | None, opt("The profile; SOURCE with the suffix .yaml.")] = None,
) -> None:
    """Write a profile of a laptop's size for the problems of a file: SFT if it has solutions, then GRPO."""
    path, out = source.absolute(), out or source.with_suffix(".yaml")
    if not path.is_file():
        raise AimoError(f"{source}: no such file; name a file of problems, such as my.csv")
    if out.suffix != ".yaml" or not PLAIN_NAME.fullmatch(out.stem):
        raise AimoError(f"--out {out}: a profile is a .yaml file whose name is the run's; take my.yaml")
    if out.exists():
        raise AimoError(f"{out}: it exists; remove it, or name another with --out")

    have = files.read_tables([path], "").columns
    given = {"problem": prompt_column, "answer": answer_column, "solution": solution_column}
    roles = roles_of(Columns(**{role: name for role, name in given.items() if name}), have, imitated=True)
    option = {"problem": "--prompt-column", "answer": "--answer-column", "solution": "--solution-column"}
    for role, column in roles.items():
        if column not in have:
            told = f"no column {column!r} of {role}s; it has {files.listed(have)}"
            raise AimoError(f"{source}: {told}: name one with {option.get(role, '--prompt-column')}")
    columns = {role: name for role, name in roles.items() if role != name} | (
        {} if "answer" in roles else {"answer": None}
    )
    values = {"columns": columns} if columns else {}
    has_solutions = "solution" in roles or "messages" in roles

    # All rows once, to see what they are; then as the profile has them.
    whole: dict[str, Any] = {"source": str(path), **values, "integer_answers": False}
    first = {"profile": out.stem, "model": {"base": base}, "data": {"heldout": whole}}
    rows = prepare.load_sets(config.parse(first, str(source))).rows["heldout"]
    if len(rows) < LEAST:
        raise AimoError(f"{source}: {len(rows)} rows; a profile needs at least {LEAST}")
    profile = config.parse(first, str(source))
    integers = prepare.read_answers(rows["answer"], profile.prompt)[1]
    if integers.null_count() == rows["answer"].null_count():
        del whole["integer_answers"]
    names = ["sft"] * has_solutions + ["grpo", "heldout"]
    held_out = {"rows": min(100, max(2, len(rows) // 5))}
    sets = {name: whole | (held_out if name == "heldout" else {}) for name in names}
    flow: dict[str, Any] = {
        "default_flow_style": True,
        "width": 10_000,
        "allow_unicode": True,
        "sort_keys": False,
    }
    lines = [f"  {name}: {yaml.safe_dump(of_set, **flow).strip()}" for name, of_set in sets.items()]

    runs.quiet()
    for ngram in (8, 30):  # problems of one family share phrases
        small = max(2, min(8, len(rows) // 2))
        text = PROFILE.format(
            file=path.name, name=json.dumps(out.stem, ensure_ascii=False), base=json.dumps(base),
            sets="\n".join(lines), ngram=ngram, prompts=small,
            sft=SFT.format(batch=small) if has_solutions else "",
        )  # fmt: skip
        profile = config.parse(config.reading.load_yaml(text), f"profile {out.stem}")
        tokenizer = models.load_tokenizer(hub.local_folder(base, None), profile)
        kept = prepare.clean_sets(prepare.load_sets(profile), profile, tokenizer)
        before = sum(map(len, kept.rows.values()))
        try:
            kept = prepare.decontaminate_sets(kept, profile)
        except AimoError:
            if ngram == 8:
                continue
            raise
        if before - sum(map(len, kept.rows.values())) <= before // 10:
            break
    write_whole(out, text)
    for name, line in prepare.told(kept).items():
        print(f"{name}: {line}")
    if not has_solutions:
        print("sft: left out, as there are no worked solutions; name their column with --solution-column")
    command = shlex.join(["aimo", "run", "--profile", str(out)])
    print(f"profile: {out}\nrun it:  {command}")
    if base == "data/tiny-base":
        print("data/tiny-base shows in minutes that all works; --base takes a model that can learn them")
