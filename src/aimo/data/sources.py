"""Read a profile's sources, whatever their columns are called, into tables with the same columns.

A source is a file (`aimo.inference.files`), a folder of files (attached by Kaggle, copied from the hub, or
saved by `datasets`), a hub id, or a mixture of these; a set must fit into memory. The built-in problems need
no download: they are word problems with worked solutions, drawn from the families of `builtin.yaml`.
"""

import operator
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import polars as pl
import yaml

from aimo.config import Columns, Mixture, Set, Source, locate
from aimo.data import conversations
from aimo.inference import files
from aimo.inference.competitions import Competition, with_options
from aimo.inference.errors import AimoError
from aimo.inference.files import Table

# The columns of every table; those that a source lacks are null.
SCHEMA = {
    "problem": pl.String, "answer": pl.String, "solution": pl.String, "correct": pl.Boolean,
    "kind": pl.String, "pass_rate": pl.Float64, "verification_info": pl.String, "source": pl.String,
    "id": pl.String,
}  # fmt: skip
# Names of columns to try for a role, in this order, if a source lacks the usual one.
NAMES = {
    "problem": ("problem", "question", "prompt", "query"),
    "answer": (
        "answer", "final_answer", "expected_answer", "ground_truth", "gold", "reward_model.ground_truth",
        "extra_info.answer",
    ),
    "messages": ("messages", "conversations", "conversation"),
    "solution": ("solution", "completion", "response", "output", "generation"),
}  # fmt: skip
# What a column may hold besides texts, by role.
FITTING = dict.fromkeys(("answer", "solution", "correct", "complete"), "lists")
FITTING |= dict.fromkeys(("messages", "verification_info"), "objects")
SPLITS = {"train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation"}
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
CACHED = re.compile(r"cache-\w+\.arrow")  # what `datasets` leaves in a folder that it saved


@dataclass(frozen=True)
class Preset:
    """What a dataset's columns hold, and its default subset and split."""

    columns: Columns
    subset: str | None = None
    split: str | None = None
    order: Sequence[str] = ()  # columns to sort rows by, if their order in the file is random


PRESETS = {
    name: Preset(**row | {"columns": Columns(**row["columns"])})
    for name, row in yaml.safe_load(Path(__file__).with_name("presets.yaml").read_text()).items()
}


@dataclass
class Notes:
    """What was left out or changed while reading."""

    dropped: Counter[str] = field(default_factory=Counter)  # rows left out, by reason
    repaired: Counter[str] = field(default_factory=Counter)  # texts that were changed or are odd, by oddity


def load_mixture(
    wanted: Mixture, seed: int, where: str, rules: Competition | None = None
) -> tuple[pl.DataFrame, Notes]:
    """Return the rows of a set with the columns of SCHEMA, and what was left out and repaired.

    With `rules`, a file may have the layout of that competition's test file. `where` is the set's key in the
    profile, for errors. The parts of a mixture are shuffled together (Open-R1's dataset mixtures); in a
    `Set`, sources with worked solutions cannot be mixed with sources without.
    """
    if not wanted.mixture:
        return load_source(wanted, seed, where, rules)
    parts, notes, solved = [], Notes(), dict[bool, str]()
    for i, source in enumerate(wanted.mixture):
        rows, found = load_source(source, seed, f"{where}.mixture.{i}", rules)
        parts.append(rows)
        notes.dropped += found.dropped
        notes.repaired += found.repaired
        solved.setdefault(rows["solution"].null_count() < len(rows), source.source)
    if isinstance(wanted, Set) and len(solved) == 2:
        told = f"{solved[True]} has the column solution and {solved[False]} has not"
        raise AimoError(f"{where}.mixture: {told}; map it in both or in none")
    return pl.concat(parts).sample(fraction=1.0, shuffle=True, seed=seed), notes


def load_source(
    source: Source, seed: int, where: str, rules: Competition | None = None
) -> tuple[pl.DataFrame, Notes]:
    """Return one source's rows with the columns of SCHEMA, and what was left out and repaired.

    AimoError names the file, subset, split or column that is missing.
    """
    notes = Notes()
    if source.source == "builtin":
        name = where.removeprefix("data.").split(".")[0]  # each set of a profile draws its own
        drawn = generate(source.rows or 0, source.split or "train", f"{name}-{seed}")  # type: ignore[arg-type]
        told = [(p.problem, str(p.answer), p.solution) for p in drawn]
        rows = pl.DataFrame(told, ["problem", "answer", "solution"], orient="row")
    else:
        preset = preset_of(source, where)
        table, roles = read_columns(source, preset, where, rules)
        notes.dropped += Counter({"corrupt line": table.skipped})
        notes.repaired += table.repaired
        if preset.order:
            table.rows = table.rows.sort(pl.col(preset.order).str.zfill(20))
        rows = standard(table, roles, source.source, notes, where)
    rows = rows.with_columns(source=pl.lit(source.source))
    held = {name: pl.col(name) if name in rows.columns else pl.lit(None) for name in SCHEMA}
    rows = rows.select(column.cast(SCHEMA[name]).alias(name) for name, column in held.items())
    share = int(len(rows) * source.weight)
    keep = min(share, source.rows or share)
    return (rows.sample(keep, seed=seed, shuffle=True) if keep < len(rows) else rows), notes


def preset_of(source: Source, where: str) -> Preset:
    """Return a source's preset, found by `preset` or its id; our own columns if there is none."""
    if source.preset and source.preset not in PRESETS:
        known = ", ".join(PRESETS)
        raise AimoError(f"{where}.preset: {source.preset!r} is not known: use one of {known}, or columns")
    return PRESETS.get(source.preset or source.source, Preset(Columns()))


def roles_of(columns: Columns, have: Collection[str], imitated: bool = False) -> dict[str, str]:
    """Return the column of each role. A role without its default column takes one of NAMES, case ignored.

    SFT imitates a solution, so it also takes a column named like one. Without a column of answers, the answer
    comes from the end of the conversation or solution.
    """
    spelled = {name.strip().lower(): name for name in reversed(list(have))}
    usual = Columns()
    named = asdict(columns)  # type: ignore[call-overload]

    def find(role: str) -> None:
        if named[role] == getattr(usual, role) and named[role] not in have:
            found = [spelled[name] for name in NAMES[role] if name in spelled]
            named[role] = next((name for name in found if name not in named.values()), named[role])

    find("answer")
    if not columns.messages:
        find("problem")
        if named["problem"] not in have:
            find("messages")
        elif imitated or named["problem"] == "prompt":
            find("solution")
    guessed = named["messages"] or named["solution"] != columns.solution
    if guessed and named["answer"] == usual.answer and usual.answer not in have:
        named["answer"] = None
    unused = ("problem", "solution") if named["messages"] else ()
    return {role: column for role, column in named.items() if column and role not in unused}


def read_columns(
    source: Source, preset: Preset, where: str, rules: Competition | None = None
) -> tuple[Table, dict[str, str]]:
    """Return a source's mapped columns as they are, and the column of each role.

    If it has the columns of a competition's options, they are appended to the problem.
    """
    path, name, dataset = locate(source.source), source.source, None
    # Read the first rows to learn the columns, then only the columns that have a role.
    if path.exists():
        if source.revision:
            raise AimoError(f"{where}.revision: {path} is a local folder or file; leave the key out")
        found = files_of(path, source, preset, where)
        hint = f", or set {where}.corrupt_lines: skip"
        read = partial(
            files.read_tables, found, f"{where}.source: ", skip=source.corrupt_lines == "skip", hint=hint
        )
        name, have = str(found[0]), read(limit=files.PEEK).columns
    elif files.kind_of(path) or name.startswith(("/", ".")):
        raise AimoError(f"{where}.source: {path} does not exist")
    else:
        subset, split = source.subset or preset.subset, source.split or preset.split or "train"
        dataset = from_hub(name, subset, split, f"{where}.source", source.revision)
        have = files.from_frame(dataset.select(range(min(len(dataset), files.PEEK))).to_polars()).columns
    columns = source.columns or preset.columns
    if rules and columns.problem == Columns().problem and rules.inputs.problem in have:
        columns = replace(columns, problem=rules.inputs.problem)
    roles = roles_of(columns, have, where.startswith("data.sft"))
    options = rules.inputs.options if rules and {*rules.inputs.options} <= {*have} else ()
    wanted = [*roles.values(), *preset.order, *options]
    if dataset is None:
        table = read(wanted=wanted)
        have = [*have, *table.columns]
    for role, column in roles.items():
        if column not in have:
            talk = f", or a conversation as {where}.columns.messages" if role == "problem" else ""
            known = f"it has {files.listed(dict.fromkeys(have))}: name one{talk}"
            raise AimoError(f"{where}.columns.{role}: {name} has no column {column!r}; {known}")
    if unsorted := [column for column in preset.order if column not in have]:
        raise AimoError(f"{where}.preset: {name} has no column {unsorted[0]!r}; set columns instead")
    if dataset is not None:
        kept = {*wanted, *(key.split(".")[0] for key in wanted)}
        mapped = dataset.select_columns([column for column in dataset.column_names if column in kept])
        table = files.from_frame(mapped.to_polars(), wanted)
    if rules and options:
        table.rows = with_options(table.rows, roles["problem"], rules)
    return table, roles


def from_hub(name: str, subset: str | None, split: str, where: str, revision: str | None = None) -> Any:
    """Return a split of a dataset on the hub, downloaded if needed."""
    import datasets  # loads pandas

    try:
        return datasets.load_dataset(name, subset, split=split, revision=revision)
    except Exception:  # the hub client and datasets raise many types
        asked = f"subset {subset}, split {split}, revision {revision}"
        raise AimoError(
            f"{where}: {name!r} is no file here, and the hub does not give it ({asked}); check these and the "
            "network, and set HF_TOKEN for a private or gated one"
        ) from None


def files_of(path: Path, source: Source, preset: Preset, where: str) -> Sequence[Path]:
    """Return the file itself, or the files of a folder's subset and split, which must be of one kind.

    The header of a hub dataset's README.md lists them (`configs:`). Without it, the hub's conventions apply:
    a subset is a subfolder (`data` is the default one), and a split is a word in the name of a file or of its
    folder: one of SPLITS, or the profile's.
    """
    subsets: dict[str, dict[str, list[Path]]] = {}
    readme = path / "README.md"
    if path.is_file():
        for key in ("subset", "split"):
            if getattr(source, key) is not None:
                raise AimoError(f"{where}.{key}: {path} is one file; leave the key out, or name its folder")
    elif readme.exists():
        text = readme.read_text(encoding="utf-8", errors="replace")
        header = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        try:
            for config in (yaml.safe_load(header[1]) or {}).get("configs") or [] if header else []:
                declared = config.get("data_files", {})  # a pattern, patterns, a mapping, or a list of these
                if isinstance(declared, list) and all(isinstance(part, dict) for part in declared):
                    declared = {part["split"]: part["path"] for part in declared}
                for part, paths in (declared if isinstance(declared, dict) else {"train": declared}).items():
                    patterns = [paths] if isinstance(paths, str) else paths
                    matches = {file for p in patterns for file in path.glob(p.removeprefix("./"))}
                    subsets.setdefault(config["config_name"], {})[part] = files.tables_of(matches)
        except (yaml.YAMLError, AttributeError, KeyError, TypeError):
            fault = f"{readme}: the `configs` of its header cannot be read; correct the header"
            raise AimoError(fault) from None
    if path.is_dir() and not subsets:
        known = SPLITS | {source.split or "train"}
        for file in files.tables_of(file for file in path.rglob("*") if not CACHED.fullmatch(file.name)):
            folders, stem = file.relative_to(path).parts[:-1], files.stem_of(file)
            shard = SHARD.fullmatch(stem)
            part = shard[1] if shard and shard[1] != "data" else "train"
            for name in (*folders, stem):
                words = re.split(r"[^a-z0-9]+", name.lower())
                part = next((word for word in words if word in known), part)
            named = (name for name in folders if name.lower() not in known and name != "data")
            subsets.setdefault(next(named, "default"), {}).setdefault(part, []).append(file)

    found = [path] if path.is_file() else []
    if subsets:
        splits = choose_part(subsets, source.subset, (preset.subset, "default"), f"{where}.subset", path)
        found = choose_part(splits, source.split, (preset.split, "train"), f"{where}.split", path)
    kinds = {files.kind_of(file) for file in found}
    if len(kinds) != 1 or None in kinds:
        raise files.one_kind(f"{where}.source: ", path, kinds)
    return found


def choose_part(options: Mapping[str, Any], wanted: str | None, usual: Any, key: str, path: Path) -> Any:
    """Return the option that a profile's key wants, or by default the first usual one, or the only one."""
    known = ", ".join(options) or "none"
    if wanted and wanted not in options:
        raise AimoError(f"{key}: {path} has no {wanted!r}; it has {known}")
    for name in (wanted, *usual, *(options if len(options) == 1 else ())):
        if name in options:
            return options[str(name)]
    raise AimoError(f"{key}: {path} has {known}; name one")


def standard(table: Table, roles: dict[str, str], name: str, notes: Notes, where: str) -> pl.DataFrame:
    """Return mapped columns under their roles, one row per trace; `correct` means right and complete.

    A conversation becomes its problem and solution; one that is dropped is counted.
    """
    rows = table.rows.select(**{role: pl.col(column) for role, column in roles.items()})

    def is_talk(role: str) -> bool:
        cells = rows[role]  # the first ones decide
        return cells.dtype == pl.String and any(map(conversations.turns, cells.drop_nulls().head(10)))

    # Traces and verdicts, which a CSV holds as lists in JSON.
    for role in [role for role in roles if role in ("solution", "correct", "complete")]:
        in_brackets = rows[role].dtype == pl.String and rows[role].drop_nulls().str.contains(r"^\s*\[").all()
        if not in_brackets or is_talk(role):
            continue
        values = [None if cell is None else files.parsed(cell) for cell in rows[role]]
        if any(values) and all(value is None or isinstance(value, list) for value in values):
            lists = Table(pl.DataFrame(), [role])
            lists.rows = files.series(role, values, lists).to_frame()
            rows = rows.with_columns(files.cleaned(lists).rows)
            notes.repaired += lists.repaired

    talks = [role for role in ("messages", "problem", "solution") if role in roles and is_talk(role)]
    for role, column in roles.items():
        kind = "objects" if column in table.nested else None if rows[role].dtype == pl.String else "lists"
        if kind not in (None, FITTING.get(role)) and role not in talks:
            keys = [key for key in table.columns if key.startswith(f"{column}.")]
            remedy = f"name a key of these ({', '.join(keys)})" if keys else "name a column of texts"
            raise AimoError(f"{where}.columns.{role}: {name} holds {kind} in {column!r}, not text; {remedy}")
    if talks or "messages" in roles:
        reply = rows["solution"] if rows.schema.get("solution") == pl.String else None
        said = conversations.read_conversations(rows["messages" if "messages" in roles else "problem"], reply)
        notes.dropped += Counter(said["fault"].drop_nulls().to_list())
        taken = ["problem"] if "solution" in roles and reply is None else ["problem", "solution"]
        texts = files.cleaned(Table(said.select(taken), taken))
        notes.repaired += texts.repaired
        rows = rows.with_columns(texts.rows).filter(said["fault"].is_null())
    if rows.schema.get("answer") == pl.List(pl.String):
        rows = rows.with_columns(pl.col("answer").list.join(", ", ignore_nulls=True).replace("", None))

    # One row for each solution of a list, with its own flags; all are unknown if one is missing.
    flags = [role for role in ("correct", "complete") if role in roles]
    listed = ["solution"] * isinstance(rows.schema.get("solution"), pl.List)
    number = pl.col("solution").list.len() if listed else pl.lit(1)
    for flag in flags:
        verdicts = pl.concat_list(flag) if rows[flag].dtype == pl.String else pl.col(flag)
        unknown = pl.lit("").repeat_by(number)
        rows = rows.with_columns(pl.when(verdicts.list.len() == number).then(verdicts).otherwise(unknown))
    if listed or flags:
        rows = rows.explode(*listed, *flags)
    if flags:
        said_yes = pl.col(flags).cast(pl.String).str.to_lowercase().is_in(["true", "yes", "1"])
        passed = pl.all_horizontal(said_yes.fill_null(False))
        # A complete solution need not be right: it is judged later.
        verdict = passed if "correct" in roles else pl.when(~passed).then(False)
        rows = rows.with_columns(correct=verdict)
    if "answer" not in roles and "solution" in rows.columns:
        rows = rows.with_columns(answer="solution")
    if "pass_rate" in roles:
        rows = rows.with_columns(pl.col("pass_rate").cast(pl.Float64, strict=False))
    return rows


# ---- built-in problems

Split = Literal["train", "heldout"]
WORDS, FAMILIES = yaml.safe_load(Path(__file__).with_name("builtin.yaml").read_text()).values()
SIGNS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv, "min": min
}  # fmt: skip


@dataclass(frozen=True)
class WordProblem:
    """A problem with its worked solution."""

    family: str
    problem: str
    solution: str  # one step a line
    answer: int


def draw_problem(r: random.Random) -> WordProblem:
    """Draw a family, its numbers and words, and one of its wordings."""
    name = r.choice(list(FAMILIES))
    family = FAMILIES[name]
    known: Any = {}
    steps: list[tuple[Any, ...]] = []  # a, sign, b, result

    def work_out(left: Any, sign: str, right: Any) -> int:
        a, b = (known[part] if part in known else int(part) for part in (left, right))
        steps.append((a, sign, b, SIGNS[sign](a, b)))
        return SIGNS[sign](a, b)

    while True:
        for key, drawn in family["draw"].items():
            if isinstance(drawn, list):
                low, high = (known.get(bound, bound) for bound in drawn)
                known[key] = r.randint(low, high)
            elif (words := WORDS.get(drawn)) is None:
                known[key] = work_out(*drawn.split())
            elif " " in key:
                two = r.choice(words) if isinstance(words[0], list) else r.sample(words, 2)
                known |= zip(key.split(), two, strict=True)
            else:
                known[key] = r.choice(words)
        steps.clear()  # the problem states these figures
        answer = 0
        for step in family["steps"]:
            key, _, *figure = step.split()
            answer = known[key] = work_out(*figure)
        if name == "digits":
            answer = int(str(answer)[0])
            for digit in str(known["n"])[1:]:
                answer = work_out(answer, "+", digit)
        if name == "gcd":
            x, y = known["a"], known["b"]
            while x != y:
                x, y = max(x, y), min(x, y)
                x = answer = work_out(x, "-", y)
        if name != "gcd" or 2 <= len(steps) <= 6:
            break
    text = r.choice(family["texts"]).format(**known)
    solution = "\n".join(f"{a} {sign} {b} = {figure}" for a, sign, b, figure in steps)
    return WordProblem(name, text, solution, answer)


def stream(
    split: Split, seed: int | str, draw: Callable[[random.Random], Any] = draw_problem
) -> Iterator[Any]:
    """Yield without end what `draw` returns, if its `problem` belongs to the split.

    A hash of the text decides whether a problem is held out, so the splits never overlap, whatever the seeds.
    """
    r = random.Random(f"{split}-{seed}")
    while True:
        problem = draw(r)
        if (zlib.crc32(problem.problem.encode()) % 10 == 0) == (split == "heldout"):
            yield problem


def generate(n: int, split: Split, seed: int | str) -> list[WordProblem]:
    """Return the first `n` built-in problems of a split with different texts."""
    unique: dict[str, WordProblem] = {}
    for problem in stream(split, seed):
        unique.setdefault(problem.problem, problem)
        if len(unique) == n:
            break
    return list(unique.values())
