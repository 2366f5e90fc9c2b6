"""`aimo distil` and `aimo reject`: completions of a teacher, and which of them are kept."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from aimo.commands.options import Key, Profile, RunDir
from aimo.config import Distil, Prompt, Reject, Source, read_values, set_key
from aimo.data import sources
from aimo.data.sources import PRESETS
from aimo.errors import AimoError, explain
from aimo.inference.settings import PUBLIC, Tags
from aimo.run import runs
from aimo.run.progress import changing_line

# The keys of `distil` that options go over.
KEYS = {
    "dataset_name": "source",
    "dataset_config": "subset",
    "dataset_split": "split",
    "prompt_column": "columns.problem",
    "answer_column": "columns.answer",
    "uuid_column": "columns.id",
    "api_addr": "api_addr",
    "model": "model",
    "num_generations": "num_generations",
    "prompt_template": "prompt_template",
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_tokens",
    "max_concurrent": "max_concurrent",
    "timeout": "timeout",
    "retries": "retries",
}


def distil(
    context: typer.Context,
    output_file: Annotated[Path, typer.Option(help="A .jsonl file; one that is there is continued.")],
    dataset_name: Annotated[str | None, typer.Option(help="A file, a folder, or a hub id.")] = None,
    dataset_config: Annotated[str | None, typer.Option(help="Its subset.")] = None,
    dataset_split: Annotated[str | None, typer.Option(help="Its split.")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Its problems; `problem`.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Its gold answers; `answer`.")] = None,
    uuid_column: Annotated[str | None, typer.Option(help="What tells problems apart; their text.")] = None,
    api_addr: Annotated[list[str] | None, typer.Option(help="A server, 127.0.0.1:8000; repeat.")] = None,
    model: Annotated[str | None, typer.Option(help="The teacher's name on the servers.")] = None,
    num_generations: Annotated[int | None, typer.Option(help="Completions of a problem; 4.")] = None,
    prompt_template: Annotated[str | None, typer.Option(help="The user message, with {prompt}.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0.6.")] = None,
    top_p: Annotated[float | None, typer.Option(help="0.95.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of a completion; 16384.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(help="Requests in flight; 1000.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds of a request; 3600.")] = None,
    retries: Annotated[int | None, typer.Option(help="Of a sample; 3.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The profile's, or 0.")] = None,
    profile: Annotated[
        str | None, typer.Option(help="A profile, whose distil section, tags and seed are taken.")
    ] = None,
    set_: Key = None,
    push_to_hub: Annotated[
        str | None, typer.Option(help="Then push the file and its card to this hub dataset, owner/name.")
    ] = None,
) -> None:
    """Let a teacher behind OpenAI-compatible servers answer problems, several times each."""
    from aimo.data import distil  # loads openai

    values = read_values(profile, set_) if profile else {}
    asked = values["distil"] = values.get("distil") or {}
    for override in [] if profile else set_ or []:
        set_key(values, override)
    if dataset_name in PRESETS and (prompt_column or answer_column or uuid_column):
        asked["columns"] = asdict(PRESETS[dataset_name].columns)
    for option, key in KEYS.items():
        if (value := context.params[option]) is not None:
            set_key(asked, f"{key}={json.dumps(value, ensure_ascii=False)}")
    wanted = checked(Distil, asked, "distil")
    tags = tags_of(values) if profile else PUBLIC[0]
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


def reject(
    source: Annotated[
        str, typer.Argument(help="What `aimo distil` wrote, or another file, folder or hub id.")
    ],
    out: Annotated[Path, typer.Option(help="A .jsonl or .parquet file, a source with preset `aimo reject`.")],
    preset: Annotated[
        str | None, typer.Option(help="Whose columns the source has; those of `aimo distil`.")
    ] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Its problems.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Its gold answers.")] = None,
    solution_column: Annotated[
        str | None, typer.Option(help="Its completions, one or a list; no preset then.")
    ] = None,
    max_per_problem: Annotated[int | None, typer.Option(min=1, help="Completions to keep.")] = None,
    prefer: Annotated[str, typer.Option(help="Which ones: first, shorter or diverse.")] = "first",
    pass_rate: Annotated[
        tuple[float, float], typer.Option(help="Keep problems of this share of right completions.")
    ] = (0.0, 1.0),
    profile: Annotated[str | None, typer.Option(help="A profile, whose tags are taken.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write a page of what was kept here.")] = None,
) -> None:
    """Keep the right and finished completions of a set, judged by their answers."""
    from aimo.data import distil  # loads openai

    if out.suffix not in (".jsonl", ".parquet"):
        raise AimoError(f"--out {out}: takes a .jsonl or a .parquet file")
    options = {"max_per_problem": max_per_problem, "prefer": prefer, "pass_rate": pass_rate}
    wanted = checked(Reject, options, "reject")
    given = {"problem": prompt_column, "answer": answer_column, "solution": solution_column}
    roles = {role: column for role, column in given.items() if column}
    usual = source if source in PRESETS else None if solution_column else "aimo distil"
    origin = Source(source, preset=preset or usual)
    known = sources.preset_of(origin, "reject").columns
    origin = replace(origin, columns=replace(known, **roles))
    rows, _ = sources.load_source(origin, 0, "reject")
    found = distil.reject(rows, wanted, tags_of(read_values(profile)) if profile else PUBLIC[0])
    distil.write_kept(found.kept, out)
    print(f"{found}: {out}")
    if page:
        from aimo.report import pages  # draws with matplotlib

        print(f"page: {pages.write_distillation(page, source, found, wanted.pass_rate)}")


def tags_of(profile: dict[str, Any]) -> Tags:
    return checked(Prompt, profile.get("prompt") or {}, "prompt").tags  # type: ignore[no-any-return]


def checked(kind: type, values: dict[str, Any], where: str) -> Any:
    """Return a section of a profile; AimoError names every bad key."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(values))
    except ValidationError as e:
        raise AimoError(f"{where}: {'; '.join(explain(error) for error in e.errors())}") from None


def pack(
    profile: Profile,
    run_dir: RunDir = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a key of the profile, such as sft.packing=true.")
    ] = None,
    push_to_hub: Annotated[str | None, typer.Option(help="Then push to this dataset, owner/name.")] = None,
) -> None:
    """Tokenise and pack a run's SFT set before training, which then finds it."""

    run = runs.begin("sft", profile, run_dir, set_)
    from aimo.train.sft import pack_rows  # loads TRL

    pack_rows(run, push_to_hub)
