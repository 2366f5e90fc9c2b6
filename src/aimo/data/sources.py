"""Read the sources that a profile names, whatever their columns are called, into tables of the same columns.

Files (`aimo.inference.files`), folders of them as Kaggle attaches or as copied from the hub, folders saved
by `datasets`, hub ids, built-in problems, and mixtures of all these. A set must fit into memory.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import yaml

from aimo.config import Columns, Mixture, Set, Source, locate
from aimo.data import builtin, conversations
from aimo.errors import AimoError
from aimo.inference import files
from aimo.inference.files import Table

TEXTS = ["problem", "answer", "solution"]
T = TypeVar("T")
SCHEMA = {
    "problem": pl.String,
    "answer": pl.String,
    "solution": pl.String,
    "correct": pl.Boolean,
    "kind": pl.String,
    "pass_rate": pl.Float64,
    "verification_info": pl.String,
    "source": pl.String,
    "id": pl.String,
}
"""The columns of every table; a column that a source does not have is null."""
NAMES = {
    "problem": ("problem", "question", "prompt", "query"),
    "answer": (
        "answer", "final_answer", "expected_answer", "ground_truth", "gold", "reward_model.ground_truth",
        "extra_info.answer",
    ),
    "messages": ("messages", "conversations", "conversation"),
    "solution": ("solution", "completion", "response", "output", "generation"),
}  # fmt: skip
"""Columns that are taken for a role, in this order, where a source has none of the usual name."""
SPLITS = {"train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation"}
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")


@dataclass(frozen=True)
class Preset:
    """What a dataset's columns hold, and which subset and split are taken where a profile names none."""

    columns: Columns
    subset: str | None = None
    split: str | None = None
    order: Sequence[str] = ()
    """The columns by which rows are sorted, where their order in the file is that of chance."""


PRESETS = {
    name: Preset(**row | {"columns": Columns(**row["columns"])})
    for name, row in yaml.safe_load(Path(__file__).with_name("presets.yaml").read_text()).items()
}


@dataclass
class Notes:
    """What became of rows while they were read."""

    dropped: Counter[str] = field(default_factory=Counter)
    """Rows that are left out, by reason."""
    repaired: Counter[str] = field(default_factory=Counter)
    """Texts that were changed, or have an oddity, by its name."""

    def add(self, other: "Notes") -> None:
        """Count those of another part too."""
        self.dropped += other.dropped
        self.repaired += other.repaired


def load_mixture(wanted: Mixture, seed: int, where: str) -> tuple[pl.DataFrame, Notes]:
    """The rows of a set with the columns of SCHEMA, and what was left out and repaired.

    `where` is the set's key in the profile, for errors. The parts of a mixture are shuffled together
    (Open-R1's dataset mixtures); in a `Set`, sources with a worked solution do not mix with others.
    """
    if not wanted.mixture:
        return load_source(wanted, seed, where)
    parts, notes = [], Notes()
    for i, source in enumerate(wanted.mixture):
        rows, found = load_source(source, seed, f"{where}.mixture.{i}")
        parts.append(rows)
        notes.add(found)
    for source, rows in zip(wanted.mixture, parts, strict=True):
        if isinstance(wanted, Set) and has_solutions(rows) != has_solutions(parts[0]):
            pair = [wanted.mixture[0].source, source.source]
            has, lacks = pair if has_solutions(parts[0]) else pair[::-1]
            raise AimoError(
                f"{where}.mixture: {has} has the column solution and {lacks} has not; "
                "map columns.solution in both or in none"
            )
    return pl.concat(parts).sample(fraction=1.0, shuffle=True, seed=seed), notes


def has_solutions(rows: pl.DataFrame) -> bool:
    """Whether any row has a worked solution."""
    return rows["solution"].null_count() < len(rows)


def load_source(source: Source, seed: int, where: str) -> tuple[pl.DataFrame, Notes]:
    """One source's rows with the columns of SCHEMA, and what was left out and repaired.

    AimoError names the file, subset, split or column that is not there.
    """
    notes = Notes()
    if source.source == "builtin":
        assert source.rows is not None
        name = where.removeprefix("data.").split(".")[0]  # each set of a profile draws its own
        drawn = builtin.generate(source.rows, source.split or "train", f"{name}-{seed}")  # type: ignore[arg-type]
        rows = pl.DataFrame([(p.problem, str(p.answer), p.solution) for p in drawn], TEXTS, orient="row")
    else:
        preset = preset_of(source, where)
        table, roles = read_columns(source, preset, where)
        notes.add(Notes(Counter({"corrupt line": table.skipped}), table.repaired))
        if preset.order:
            numbers = pl.col(preset.order).str.zfill(20)
            table.rows = table.rows.sort(numbers)
        rows = standard(table, roles, source.source, notes, where)
    here = [pl.col(c).cast(t) for c, t in SCHEMA.items() if c in rows.columns]
    missing = [pl.lit(None, t).alias(c) for c, t in SCHEMA.items() if c not in rows.columns]
    rows = rows.select(*here, *missing).with_columns(source=pl.lit(source.source)).select(list(SCHEMA))
    share = int(len(rows) * source.weight)
    keep = min(share, source.rows or share)
    return (rows.sample(keep, seed=seed, shuffle=True) if keep < len(rows) else rows), notes


def preset_of(source: Source, where: str) -> Preset:
    """What is known of a source by its id or its `preset`; columns of our own names where nothing is."""
    if source.preset and source.preset not in PRESETS:
        known = ", ".join(PRESETS)
        raise AimoError(f"{where}.preset: {source.preset!r} is not known: use one of {known}, or columns")
    return PRESETS.get(source.preset or source.source, Preset(Columns()))


def roles_of(columns: Columns, have: Collection[str], imitated: bool = False) -> dict[str, str]:
    """Role to column, for the roles that a source has; `NAMES`, in any case, where a column has its default.

    SFT imitates a solution, so a column with the name of one is taken. A conversation, or a solution without
    a column of answers, gives its own last answer.
    """
    spelled = {name.strip().lower(): name for name in reversed(list(have))}
    usual = Columns()
    named = {f.name: getattr(columns, f.name) for f in fields(columns)}  # type: ignore[arg-type]

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


def read_columns(source: Source, preset: Preset, where: str) -> tuple[Table, dict[str, str]]:
    """Return the mapped columns of a source as they are, and role to column."""
    path, dataset, have = locate(source.source), None, []
    if not path.exists():
        if files.kind_of(path) or source.source.startswith(("/", ".")):
            raise AimoError(f"{where}.source: {path} does not exist")
        dataset = read_hub(source, preset, where)
    elif source.revision:
        raise AimoError(f"{where}.revision: {path} is a local folder or file; leave the key out")
    elif any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
        dataset = read_saved(path, source, preset, where)

    # The first rows tell the columns; then those alone are read that have a role.
    if dataset is not None:
        name = source.source
        have = files.from_frame(dataset.select(range(min(len(dataset), files.PEEK))).to_polars()).columns
    else:
        found = files_of_split(path, source, preset, where)
        name, place, skip = str(found[0]), f"{where}.source: ", source.corrupt_lines == "skip"
        hint = f", or set {where}.corrupt_lines: skip"
        have = files.read_tables(found, place, limit=files.PEEK, skip=skip, hint=hint).columns
    roles = roles_of(source.columns or preset.columns, have, where.startswith("data.sft"))
    wanted = [*roles.values(), *preset.order]
    if dataset is None:
        table = files.read_tables(found, place, wanted, skip=skip, hint=hint)
        have = [*have, *table.columns]
    known = dict.fromkeys(have)
    for role, column in roles.items():
        if column not in known:
            talk = f", or a conversation as {where}.columns.messages" if role == "problem" else ""
            raise AimoError(
                f"{where}.columns.{role}: {name} has no column {column!r}; it has {files.listed(known)}: "
                f"name one{talk}"
            )
    if dataset is not None:
        kept = {*wanted, *(key.split(".")[0] for key in wanted)}
        columns = dataset.select_columns([column for column in dataset.column_names if column in kept])
        table = files.from_frame(columns.to_polars(), wanted)
    return table, roles


def read_saved(path: Path, source: Source, preset: Preset, where: str) -> Any:
    """Return the split of a folder that `datasets` saved."""
    import datasets  # loads pandas

    if source.subset:
        raise AimoError(f"{where}.subset: {path} was saved without subsets; leave the key out")
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception:  # pyarrow and datasets raise many kinds
        raise AimoError(f"{where}.source: {path} cannot be read; save it again with save_to_disk") from None
    splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    usual = preset.split if preset.split in splits else "train"
    return choose(splits, source.split, usual, f"{where}.split", str(path))


def read_hub(source: Source, preset: Preset, where: str) -> Any:
    """Return the split of a dataset on the hub, downloaded if need be."""
    import datasets  # loads pandas

    subset, split = source.subset or preset.subset, source.split or preset.split or "train"
    try:
        return datasets.load_dataset(source.source, subset, split=split, revision=source.revision)
    except Exception as e:  # the hub client and datasets raise many kinds
        raise AimoError(f"{where}.{why_not(e, source, subset, split)}") from None


def why_not(error: Exception, source: Source, subset: str | None, split: str) -> str:
    """Return why the hub does not give a dataset, and the remedy, after the key of the profile."""
    name, said = repr(source.source), str(error)
    if "BuilderConfig" in said or "Config name is missing" in said:
        return f"subset: {name} has no subset {subset!r} on the hub, or has several; see its page"
    if "Unknown split" in said:
        return f"split: {name} has no split {split!r} on the hub; see its page"
    if source.revision and "revision" in said.lower():
        return f"revision: {name} has no revision {source.revision!r} on the hub, or no such dataset is there"
    return (
        f"source: {name} is no file here and no dataset that the hub gives; check the name and the "
        "network, and set HF_TOKEN for a private or gated one"
    )


def files_of_split(path: Path, source: Source, preset: Preset, where: str) -> Sequence[Path]:
    """Return the file itself, or the files of a folder's subset and split, which must be of one kind."""
    if path.is_file():
        for key in ("subset", "split"):
            if getattr(source, key) is not None:
                raise AimoError(f"{where}.{key}: {path} is one file; leave the key out, or name its folder")
        found = [path]
    else:
        subsets = files_of(path, source.split)
        usual = preset.subset if preset.subset in subsets else "default"
        splits = choose(subsets, source.subset, usual, f"{where}.subset", str(path)) if subsets else {}
        usual = preset.split if preset.split in splits else "train"
        found = choose(splits, source.split, usual, f"{where}.split", str(path)) if splits else []
    kinds = {files.kind_of(file) for file in found}
    if len(kinds) != 1 or None in kinds:
        raise files.one_kind(f"{where}.source: ", path, kinds)
    return found


def files_of(folder: Path, split: str | None) -> dict[str, dict[str, list[Path]]]:
    """Return a folder's data files by subset and split.

    The header of a hub dataset's README.md says which they are (`configs:`). Elsewhere the hub's conventions
    hold: a subset is a subfolder (`data` is the default one), and a split is a word in the name of a file or
    of its folder: one of SPLITS, or `split`. AimoError when the header cannot be read.
    """
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.exists() else ""
    header = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found: dict[str, dict[str, list[Path]]] = {}
    try:
        configs = (yaml.safe_load(header[1]) or {}).get("configs") or [] if header else []
        for config in configs:
            if "data_files" not in config:
                continue
            declared = config["data_files"]  # a pattern, a list of them, a mapping, or a list of mappings
            if isinstance(declared, list) and all(isinstance(part, dict) for part in declared):
                declared = {part.get("split", "train"): part["path"] for part in declared}
            prefix = f"{config['data_dir']}/" if "data_dir" in config else ""
            for part, paths in (declared if isinstance(declared, dict) else {"train": declared}).items():
                patterns = [
                    (prefix + p).removeprefix("./") for p in ([paths] if isinstance(paths, str) else paths)
                ]
                matches = {path for pattern in patterns for path in folder.glob(pattern)}
                found.setdefault(config["config_name"], {})[part] = files.tables_of(matches)
    except (yaml.YAMLError, AttributeError, KeyError, TypeError):
        raise AimoError(f"{readme}: the `configs` of its header cannot be read; correct the header") from None
    if found:
        return found

    known = SPLITS | {split or "train"}
    for path in files.tables_of(folder.rglob("*")):
        folders, stem = path.relative_to(folder).parts[:-1], files.stem_of(path)
        shard = SHARD.fullmatch(stem)
        part = shard[1] if shard else "train"
        for name in (*folders, stem):
            words = re.split(r"[^a-z0-9]+", name.lower())
            part = next((word for word in words if word in known), part)
        subset = next((name for name in folders if name.lower() not in known and name != "data"), "default")
        found.setdefault(subset, {}).setdefault(part, []).append(path)
    return found


def choose(options: Mapping[str, T], wanted: str | None, usual: str | None, key: str, place: str) -> T:
    """Return the option that a profile wants; else the usual one, or the only one.

    AimoError names the key of the profile, the place, and what is there.
    """
    known = ", ".join(options) or "none"
    if wanted is not None and wanted not in options:
        raise AimoError(f"{key}: {place} has no {wanted!r}; it has {known}")
    if wanted is None and usual not in options and len(options) != 1:
        raise AimoError(f"{key}: {place} has {known}; name one")
    return options[wanted or (usual if usual in options else next(iter(options)))]  # type: ignore[index]


def standard(table: Table, roles: dict[str, str], name: str, notes: Notes, where: str) -> pl.DataFrame:
    """Mapped columns under their roles: one row a trace, `correct` where it is right and complete.

    A conversation becomes its problem and solution; one that is not taken is counted.
    """
    rows = table.rows.select(**{role: pl.col(column) for role, column in roles.items()})
    for role in ("solution", "correct", "complete"):
        if role in roles and (found := lists_in(rows[role])):
            rows = rows.with_columns(found.rows)
            notes.repaired += found.repaired
    talks = [role for role in ("messages", "problem", "solution") if role in roles and is_talk(rows[role])]
    for role, column in roles.items():
        kind = "objects" * (column in table.nested) or "lists" * (rows[role].dtype != pl.String)
        lists_fit = kind == "lists" and role in ("answer", "solution", "correct", "complete")
        if kind and role not in (*talks, "messages", "verification_info") and not lists_fit:
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
    flags = [role for role in ("correct", "complete") if role in roles]
    if isinstance(rows.schema.get("solution"), pl.List):
        rows = one_row_a_trace(rows, flags)
    for flag in flags:
        if rows[flag].dtype == pl.List:  # beside one solution, a list must hold one verdict
            only = pl.when(pl.col(flag).list.len() == 1).then(pl.col(flag).list.first())
            rows = rows.with_columns(only.alias(flag))
    if flags:
        passed = pl.all_horizontal(is_true(flag) for flag in flags)
        # Complete alone says nothing of right: such a solution is judged later.
        verdict = passed if "correct" in roles else pl.when(~passed).then(False)
        rows = rows.with_columns(correct=verdict)
    if "answer" not in roles and "solution" in rows.columns:
        rows = rows.with_columns(answer=pl.col("solution"))
    if "pass_rate" in roles:
        rows = rows.with_columns(pl.col("pass_rate").cast(pl.Float64, strict=False))
    return rows


def is_talk(cells: pl.Series) -> bool:
    """Whether a column holds conversations, by its first cells."""
    return cells.dtype == pl.String and any(map(conversations.turns, cells.drop_nulls().head(10)))


def lists_in(column: pl.Series) -> Table | None:
    """The lists that a column holds as JSON, such as the traces in a CSV; None where it holds no lists."""
    if column.dtype != pl.String or not column.drop_nulls().str.contains(r"^\s*\[").all() or is_talk(column):
        return None
    values = [None if cell is None else files.parsed(cell) for cell in column]
    if not any(values) or not all(value is None or isinstance(value, list) for value in values):
        return None
    table = Table(pl.DataFrame(), [column.name])
    table.rows = files.series(column.name, values, table).to_frame()
    return files.cleaned(table)


def one_row_a_trace(rows: pl.DataFrame, flags: Iterable[str]) -> pl.DataFrame:
    """A row for each of the solutions in a list, with its own flags.

    If the flag of some trace is missing, no trace of the row is kept.
    """
    number = pl.col("solution").list.len()
    texts = [pl.col(flag).cast(pl.List(pl.String)) for flag in flags]
    unknown = pl.lit("").repeat_by(number)
    whole = [pl.when(pl.col(f).list.len() == number).then(pl.col(f)).otherwise(unknown) for f in flags]
    return rows.with_columns(texts).with_columns(whole).explode("solution", *flags)


def is_true(flag: str) -> pl.Expr:
    """Whether a flag's text says yes; a missing one does not."""
    return pl.col(flag).cast(pl.String).str.to_lowercase().is_in(["true", "yes", "1"]).fill_null(False)
