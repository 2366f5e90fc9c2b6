"""`aimo init`, `distil`, `reject`, `data pack`: prepare rows before training."""

import json
import shlex
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from aimo import config
from aimo.commands.options import Key, Profile, RunDir, arg, opt
from aimo.config import Columns, Distil, Prompt, Reject, Source, read_values, set_key
from aimo.config.profile import PLAIN_NAME
from aimo.data import distil, prepare, sources
from aimo.data.sources import PRESETS, roles_of
from aimo.inference import files
from aimo.inference.errors import AimoError
from aimo.inference.settings import PUBLIC
from aimo.inference.storage import write_whole
from aimo.report import pages
from aimo.run import hub, runs
from aimo.run.progress import changing_line
from aimo.train import models, sft

LEAST = 4  # problems: with fewer, none can be held out


def init_command(
    source: Annotated[Path, arg("A file of problems with answers: .csv, .jsonl, .parquet …")],
    base: Annotated[str, opt("The model to train, a folder or a hub id.")] = "data/tiny-base",
    prompt_column: Annotated[str | None, opt("The column of problems (default `problem`).")] = None,
    answer_column: Annotated[str | None, opt("The column of gold answers (default `answer`).")] = None,
    solution_column: Annotated[str | None, opt("The column of worked solutions, for SFT.")] = None,
    out: Annotated[Path | None, opt("The profile to write (default SOURCE with the suffix .yaml).")] = None,
) -> None:
    """Write a laptop-sized profile for a file of problems: SFT if it has solutions, then GRPO."""
    path, out = source.absolute(), out or source.with_suffix(".yaml")
    if out.suffix != ".yaml" or not PLAIN_NAME.fullmatch(out.stem):
        raise AimoError(f"--out {out}: a profile is a .yaml file whose name is the run's; take my.yaml")
    if out.exists():
        raise AimoError(f"{out}: it exists; remove it, or name another with --out")

    table = files.read_tables([path], "")
    count = table.rows.height
    if count < LEAST:
        raise AimoError(f"{source}: {count} rows; a profile needs at least {LEAST}")
    given = {"problem": prompt_column, "answer": answer_column, "solution": solution_column}
    named = Columns(**{role: name for role, name in given.items() if name})
    roles = roles_of(named, table.columns, imitated=True)
    for role, column in roles.items():
        if column not in table.columns:
            option = f"--{role}-column" if role in ("answer", "solution") else "--prompt-column"
            told = f"no column {column!r} of {role}s; it has {files.listed(table.columns)}"
            raise AimoError(f"{source}: {told}: name one with {option}")
    columns: dict[str, str | None] = {role: name for role, name in roles.items() if role != name}
    if "answer" not in roles:
        columns["answer"] = None
    has_solutions = "solution" in roles or "messages" in roles

    whole: dict[str, Any] = {"source": str(path), "integer_answers": False}
    whole |= {"columns": columns} if columns else {}
    small, rate = max(2, min(8, count // 2)), {"learning_rate": 1e-3}
    values: dict[str, Any] = {
        "profile": out.stem,
        "seed": 0,
        "model": {"base": base, "backend": "transformers", "max_length": 1024, "dtype": "float32"},
        "data": {
            "sft": whole,
            "grpo": whole,
            "heldout": whole | {"rows": min(100, max(2, count // 5))},
            "ngram": 30,  # consecutive words: problems of one family share shorter runs
        },
        "sft": rate | {"epochs": 2, "batch_size": small, "save_steps": 50},
        "grpo": rate
        | {"max_steps": 30, "prompts_per_step": small, "num_generations": 8, "max_resample": 1}
        | {"max_prompt_length": 512, "max_completion_length": 256, "save_steps": 10}
        | {"rewards": {"accuracy": 1.0, "format": 0.2}},
        "inference": {"test_rows": 4, "samples": 8, "max_tokens": 256},
    }
    if not has_solutions:
        del values["sft"], values["data"]["sft"]

    runs.quiet()
    profile = config.parse(values, f"profile {out.stem}")
    tokenizer = models.load_tokenizer(hub.local_folder(base, None), profile)
    kept = prepare.clean_sets(prepare.load_sets(profile), profile, tokenizer)
    kept = prepare.decontaminate_sets(kept, profile)
    head = f"# The problems of {path.name}, by `aimo init`. Every key: docs/profiles.md.\n"
    written = json.loads(json.dumps(values))  # so that YAML writes no anchors for repeated values
    write_whole(out, head + yaml.safe_dump(written, sort_keys=False, allow_unicode=True, width=1000))
    for name, line in prepare.told(kept).items():
        print(f"{name}: {line}")
    if not has_solutions:
        print("sft: left out, as there are no worked solutions; name their column with --solution-column")
    command = shlex.join(["aimo", "run", "--profile", str(out)])
    print(f"profile: {out}\nrun it:  {command}")
    if base == "data/tiny-base":
        print("data/tiny-base shows in minutes that all works; --base takes a model that can learn them")


def distil_command(
    context: typer.Context,
    output_file: Annotated[Path, opt("A .jsonl file; an existing one is continued.")],
    source: Annotated[str | None, opt("A file, a folder, or a hub id.", "--dataset-name")] = None,
    subset: Annotated[str | None, opt("The dataset's subset.", "--dataset-config")] = None,
    split: Annotated[str | None, opt("The dataset's split.", "--dataset-split")] = None,
    prompt_column: Annotated[str | None, opt("The column of problems (default `problem`).")] = None,
    answer_column: Annotated[str | None, opt("The column of gold answers (default `answer`).")] = None,
    uuid_column: Annotated[str | None, opt("Column that identifies problems (default their text).")] = None,
    api_addr: Annotated[list[str] | None, opt("A server, such as 127.0.0.1:8000; repeatable.")] = None,
    model: Annotated[str | None, opt("The teacher's name on the servers.")] = None,
    num_generations: Annotated[int | None, opt("Completions per problem (default 4).")] = None,
    prompt_template: Annotated[str | None, opt("The user message, with {prompt}.")] = None,
    temperature: Annotated[float | None, opt("Sampling temperature (default 0.6).")] = None,
    top_p: Annotated[float | None, opt("Nucleus sampling (default 0.95).")] = None,
    max_tokens: Annotated[int | None, opt("Tokens per completion (default 16384).")] = None,
    max_concurrent: Annotated[int | None, opt("Requests in flight (default 1000).")] = None,
    timeout: Annotated[float | None, opt("Seconds per request (default 3600).")] = None,
    retries: Annotated[int | None, opt("Retries per sample (default 3).")] = None,
    seed: Annotated[int | None, opt("Default: the profile's, or 0.", min=0)] = None,
    profile: Annotated[str | None, opt("A profile that provides the distil section, tags and seed.")] = None,
    set_: Key = None,
    push_to_hub: Annotated[str | None, opt("Push the file and its card to this dataset, owner/name.")] = None,
) -> None:
    """Let a teacher behind OpenAI-compatible servers answer problems, several times each."""
    values = read_values(profile, set_) if profile else {}
    asked = values["distil"] = values.get("distil") or {}
    for override in [] if profile else set_ or []:
        set_key(values, override)
    given = {"problem": prompt_column, "answer": answer_column, "id": uuid_column}
    if columns := {role: column for role, column in given.items() if column}:
        usual = asdict(PRESETS[source].columns) if source in PRESETS else asked.get("columns") or {}
        asked["columns"] = usual | columns
    keys = {key.name for key in fields(Distil)}  # type: ignore[arg-type]
    asked |= {key: value for key, value in context.params.items() if key in keys and value is not None}
    wanted = config.parse(asked, "distil", Distil)
    tags = config.parse(values.get("prompt") or {}, "prompt", Prompt).tags if profile else PUBLIC[0]
    if not wanted.api_addr:
        raise AimoError("--api-addr is missing: name a server, such as one that `aimo serve MODEL` starts")
    seed = values.get("seed", 0) if seed is None else seed
    with changing_line("connecting") as show:
        tally = distil.distil(wanted, output_file, seed, lambda t: show(f"{t.left}: {t}"), tags)
    for fault, count in tally.failed.most_common():
        print(f"{count:,} samples failed, and can be asked for again by the same command: {fault}")
    print(f"{tally}: {output_file}")
    if push_to_hub:
        print(distil.push_samples(output_file, push_to_hub, wanted, tally))


def reject_command(
    source: Annotated[str, arg("What `aimo distil` wrote, or another file, folder or hub id.")],
    out: Annotated[Path, opt("A .jsonl or .parquet file; as a source, its preset is `aimo reject`.")],
    preset: Annotated[str | None, opt("The preset for the columns (default `aimo distil`).")] = None,
    prompt_column: Annotated[str | None, opt("The column of problems.")] = None,
    answer_column: Annotated[str | None, opt("The column of gold answers.")] = None,
    solution_column: Annotated[str | None, opt("The completions, one or a list; no default preset.")] = None,
    max_per_problem: Annotated[int | None, opt("Completions to keep per problem.", min=1)] = None,
    prefer: Annotated[str, opt("Which ones: first, shorter or diverse.")] = "first",
    pass_rate: Annotated[tuple[float, float], opt("Keep problems with this share of right ones.")] = (0, 1),
    profile: Annotated[str | None, opt("A profile that provides the tags.")] = None,
    page: Annotated[Path | None, opt("Write a page about what was kept here.")] = None,
) -> None:
    """Keep the right and finished completions of a set, judged by their answers."""
    if out.suffix not in (".jsonl", ".parquet"):
        raise AimoError(f"--out {out}: takes a .jsonl or a .parquet file")
    options = {"max_per_problem": max_per_problem, "prefer": prefer, "pass_rate": pass_rate}
    wanted = config.parse(options, "reject", Reject)
    prompt = read_values(profile).get("prompt") or {} if profile else {}
    tags = config.parse(prompt, "prompt", Prompt).tags if profile else PUBLIC[0]
    given = {"problem": prompt_column, "answer": answer_column, "solution": solution_column}
    usual = source if source in PRESETS else None if solution_column else "aimo distil"
    origin = Source(source, preset=preset or usual)
    known = sources.preset_of(origin, "reject").columns
    columns = replace(known, **{role: column for role, column in given.items() if column})
    rows, _ = sources.load_source(replace(origin, columns=columns), 0, "reject")
    found = distil.reject(rows, wanted, tags)
    distil.write_kept(found.kept, out)
    print(f"{found}: {out}")
    if page:
        print(f"page: {pages.write_distillation(page, source, found, wanted.pass_rate)}")


def pack_set_command(
    profile: Profile,
    run_dir: RunDir = None,
    set_: Annotated[list[str] | None, opt("Change a key, such as sft.packing=true.", "--set")] = None,
    push_to_hub: Annotated[str | None, opt("Then push the set to this dataset, owner/name.")] = None,
) -> None:
    """Tokenise and pack a run's SFT set in advance, for training to use."""
    run = runs.begin("sft", profile, run_dir, set_)
    sft.pack_rows(run, push_to_hub)
