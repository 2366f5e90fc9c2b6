"""`aimo distil`, `aimo reject`, `aimo data pack`: what is done with rows before training."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated

import typer

from aimo import config
from aimo.commands.options import Key, Profile, RunDir, arg, opt
from aimo.config import Distil, Prompt, Reject, Source, read_values, set_key
from aimo.data import distil, sources
from aimo.data.sources import PRESETS
from aimo.errors import AimoError
from aimo.inference.settings import PUBLIC
from aimo.report import pages
from aimo.run import runs
from aimo.run.progress import changing_line
from aimo.train import sft

# Options of `aimo distil` that have another name than their key in the section `distil`.
NAMED = {
    "dataset_name": "source",
    "dataset_config": "subset",
    "dataset_split": "split",
    "prompt_column": "columns.problem",
    "answer_column": "columns.answer",
    "uuid_column": "columns.id",
}


def distil_command(
    context: typer.Context,
    output_file: Annotated[Path, opt("A .jsonl file; one that is there is continued.")],
    dataset_name: Annotated[str | None, opt("A file, a folder, or a hub id.")] = None,
    dataset_config: Annotated[str | None, opt("Its subset.")] = None,
    dataset_split: Annotated[str | None, opt("Its split.")] = None,
    prompt_column: Annotated[str | None, opt("Its problems; `problem`.")] = None,
    answer_column: Annotated[str | None, opt("Its gold answers; `answer`.")] = None,
    uuid_column: Annotated[str | None, opt("What tells problems apart; their text.")] = None,
    api_addr: Annotated[list[str] | None, opt("A server, 127.0.0.1:8000; repeat.")] = None,
    model: Annotated[str | None, opt("The teacher's name on the servers.")] = None,
    num_generations: Annotated[int | None, opt("Completions of a problem; 4.")] = None,
    prompt_template: Annotated[str | None, opt("The user message, with {prompt}.")] = None,
    temperature: Annotated[float | None, opt("0.6.")] = None,
    top_p: Annotated[float | None, opt("0.95.")] = None,
    max_tokens: Annotated[int | None, opt("Tokens of a completion; 16384.")] = None,
    max_concurrent: Annotated[int | None, opt("Requests in flight; 1000.")] = None,
    timeout: Annotated[float | None, opt("Seconds of a request; 3600.")] = None,
    retries: Annotated[int | None, opt("Of a sample; 3.")] = None,
    seed: Annotated[int | None, opt("The profile's, or 0.", min=0)] = None,
    profile: Annotated[str | None, opt("Whose distil section, tags and seed are taken.")] = None,
    set_: Key = None,
    push_to_hub: Annotated[str | None, opt("Push the file and its card to this dataset, owner/name.")] = None,
) -> None:
    """Let a teacher behind OpenAI-compatible servers answer problems, several times each."""
    values = read_values(profile, set_) if profile else {}
    asked = values["distil"] = values.get("distil") or {}
    for override in [] if profile else set_ or []:
        set_key(values, override)
    if dataset_name in PRESETS and (prompt_column or answer_column or uuid_column):
        asked["columns"] = asdict(PRESETS[dataset_name].columns)
    keys = {key.name for key in fields(Distil)}  # type: ignore[arg-type]
    for option, value in context.params.items():
        key = NAMED.get(option, option)
        if value is not None and key.partition(".")[0] in keys:
            set_key(asked, f"{key}={json.dumps(value, ensure_ascii=False)}")
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
    out: Annotated[Path, opt("A .jsonl or .parquet file, a source with preset `aimo reject`.")],
    preset: Annotated[str | None, opt("Whose columns the source has; those of `aimo distil`.")] = None,
    prompt_column: Annotated[str | None, opt("Its problems.")] = None,
    answer_column: Annotated[str | None, opt("Its gold answers.")] = None,
    solution_column: Annotated[str | None, opt("Its completions, one or a list; no preset then.")] = None,
    max_per_problem: Annotated[int | None, opt("Completions to keep.", min=1)] = None,
    prefer: Annotated[str, opt("Which ones: first, shorter or diverse.")] = "first",
    pass_rate: Annotated[tuple[float, float], opt("Keep problems of such a share of right ones.")] = (0, 1),
    profile: Annotated[str | None, opt("A profile, whose tags are taken.")] = None,
    page: Annotated[Path | None, opt("Write a page of what was kept here.")] = None,
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


def pack_command(
    profile: Profile,
    run_dir: RunDir = None,
    set_: Annotated[list[str] | None, opt("Change a key, such as sft.packing=true.", "--set")] = None,
    push_to_hub: Annotated[str | None, opt("Then push to this dataset, owner/name.")] = None,
) -> None:
    """Tokenise and pack a run's SFT set before training, which then finds it."""
    run = runs.begin("sft", profile, run_dir, set_)
    sft.pack_rows(run, push_to_hub)
