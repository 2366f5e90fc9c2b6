"""YAML into a Profile and back. Unknown keys, wrong types and impossible values are refused by name."""

import ast
import difflib
import fnmatch
import inspect
import itertools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from aimo.config.profile import TRAINED, Profile
from aimo.inference.competitions import find_competition
from aimo.inference.errors import AimoError, explain
from aimo.inference.startup import find_input
from aimo.inference.storage import load_yaml, read_yaml
from aimo.rewards import with_texts

ROOT = Path(__file__).parents[3]
RUNS = Path(os.environ.get("AIMO_RUNS") or ROOT / "runs").absolute()  # unless another folder is given
PROFILES = ROOT / "notebooks" / "profiles"
# What other projects call a setting, and what the error message says.
ALIASES = yaml.load(Path(__file__).with_name("aliases.yaml").read_text(), yaml.CSafeLoader)
# Keys that change no stage's result: a run continues with other values.
ANY_TIME = [
    "profile", "training.*", "*.save_steps", "*.trl.save_total_limit", "model.gradient_checkpointing",
    "grpo.gradient_accumulation_steps", "grpo.sample_steps", "grpo.vllm_gpu_memory", "grpo.vllm_server_url",
    "inference.gpu_memory",
]  # fmt: skip
# Keys of all stages that may change with `--from`: earlier stages keep their old values.
FROM_A_STAGE_ON = ["model.max_length", "model.dtype", "model.load_in_4bit", "model.attention"]


def locate(path: str) -> Path:
    """Return a path as given, or as Kaggle attaches it now, or else from the repository's root."""
    path = find_input(path)
    return Path(path) if os.path.exists(path) else ROOT / path


def find(profile: str | Path) -> Path:
    """Return the file of a profile, given by name (`tiny`) or path (`my.yaml`). AimoError without one."""
    is_path = str(profile).endswith((".yaml", ".yml"))
    path = locate(str(profile)) if is_path else PROFILES / f"{profile}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        fault = "is no .yaml file; save it as one" if os.path.exists(profile) else "does not exist"
        raise AimoError(f"profile {str(profile)!r} {fault}: use one of {known}, or a path to a .yaml file")
    return path


def load(profile: str | Path, overrides: list[str] | None = None) -> Profile:
    """Read a profile by name or path and apply overrides such as `grpo.max_steps=50`.

    Raises AimoError naming the key that is unknown, of the wrong type, or impossible.
    """
    return parse(read_values(profile, overrides), where=f"profile {find(profile).stem}")


def read_values(profile: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """Return the values of a profile's file with the overrides, not yet checked."""
    path = find(profile)
    values = read_yaml(path, "profile", f"start from {PROFILES / 'tiny.yaml'}")
    for override in overrides or []:
        set_key(values, override)
    folders = [path.absolute().parent, Path.cwd(), ROOT]  # where a path may start
    if isinstance(named := values.get("competition"), str):
        there = (folder / named for folder in folders if (folder / named).is_file())
        rules = find_competition(str(next(there, named)))
        values["competition"] = asdict(rules)  # type: ignore[call-overload]
    grpo = values.get("grpo")
    if isinstance(grpo, dict) and isinstance(given := grpo.get("rewards"), dict):
        try:
            values["grpo"] = grpo | {"rewards": with_texts(given, folders)}
        except ValueError as e:
            raise AimoError(f"profile {path.stem}: grpo.rewards.{e}") from None
    return {"profile": path.stem} | values


def set_key(values: dict[str, Any], override: str, option: str = "--set") -> None:
    """Apply `section.key=value` to nested values in place; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals:
        raise AimoError(f"{option} {override!r}: expected KEY=VALUE, such as grpo.max_steps=50")
    *parents, last = key.split(".")
    for name in parents:
        if values.get(name) is None:
            values[name] = {}
        values = values[name]
        if not isinstance(values, dict):
            raise AimoError(f"{option} {override!r}: {name} is a value, not a section")
    try:
        values[last] = load_yaml(text)
    except yaml.YAMLError:
        raise AimoError(f"{option} {override!r}: {text!r} is not a YAML value; quote it") from None


def parse(values: dict[str, Any], where: str, kind: Any = None) -> Any:
    """Validate nested values into a Profile, or another `kind`; one AimoError names every bad key."""
    try:
        # As JSON: pydantic's strict mode does not accept a dict for a section from Python objects.
        return TypeAdapter(kind or Profile).validate_json(json.dumps(values, default=str))
    except ValidationError as e:
        found = []
        for error in e.errors():
            key = ".".join(map(str, error["loc"]))
            unknown = error["type"] == "unexpected_keyword_argument" and not kind
            found.append(f"{key}: unknown key{suggest(key)}" if unknown else explain(error))
        raise AimoError(f"{where}: {'; '.join(found)}") from None
    except (TypeError, ValueError) as e:  # a key that is not text, or a list that holds itself
        raise AimoError(f"{where}: {e}; use plain keys and values") from None


def suggest(key: str) -> str:
    """Return the end of the error for an unknown dotted key: what it is called here, or what it may mean."""
    known = list(keys())
    section, _, name = key.rpartition(".")
    name = key if key in ALIASES["keys"] else name
    if name in ALIASES["instead"]:
        return f", use {ALIASES['instead'][name]} instead"
    if name in ALIASES["needless"]:
        return f", leave it out: {ALIASES['needless'][name]}"
    ours = ALIASES["keys"].get(name, name).split()

    def distance(other: str) -> tuple[bool, ...]:
        place = other.rpartition(".")[0]
        is_near = f"{place}.".startswith((f"{section}.", f"data.{section}."))
        return place != section, not is_near, ".mixture." in other, place == "inference"

    if found := [other for other in known if other in ours or other.rpartition(".")[2] in ours]:
        nearest = min(map(distance, found))
        found = [other for other in found if distance(other) == nearest]
        if found[0].endswith((".trl", ".vllm", ".chat_template_kwargs")):
            return f", put it under {found[0]}"
        return f", it is called {', '.join(found)} here"
    siblings = [other for other in known if other.rpartition(".")[0] == section]
    close = difflib.get_close_matches(key, siblings, n=1) or difflib.get_close_matches(key, known, n=1)
    meant = f", did you mean {close[0]}?" if close else ""
    return meant + (f" (a key of TRL's goes under {section}.trl)" if section in TRAINED else "")


def keys(section: type = Profile, prefix: str = "") -> Iterator[str]:
    for name, hint in get_type_hints(section).items():
        yield f"{prefix}{name}"
        for part in (hint, *get_args(hint)):
            if is_dataclass(part) and isinstance(part, type):
                yield from keys(part, f"{prefix}{name}.")


def meanings(section: type) -> dict[str, str]:
    """Return what a dataclass's source says of each of its keys: beside it or above it."""
    source = inspect.getsource(section)
    lines, found = source.splitlines(), {}
    (declared,) = ast.parse(source).body
    for key in (part for part in declared.body if isinstance(part, ast.AnnAssign)):  # type: ignore[attr-defined]
        before = itertools.takewhile(lambda line: line.startswith("    # "), lines[key.lineno - 2 :: -1])
        said = [*reversed([line[6:] for line in before]), lines[key.end_lineno - 1].partition("  # ")[2]]  # type: ignore[operator]
        found[key.target.id] = re.sub(r"[^.…]$", r"\g<0>.", " ".join(" ".join(said).split()))  # type: ignore[union-attr]
    return found


class Dumper(yaml.SafeDumper):
    """YAML in which a text of several lines stands as it is."""

    def represent_str(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


Dumper.add_representer(str, Dumper.represent_str)


def dump(profile: Profile) -> str:
    values = asdict(profile)  # type: ignore[call-overload]
    return str(yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True))


def changed(section: Any) -> dict[str, Any]:
    """Return the keys of a section that are not at their defaults."""
    return TypeAdapter(type(section)).dump_python(section, mode="json", exclude_defaults=True)  # type: ignore[no-any-return]


def describe(profile: Profile, stage: str) -> str:
    """Return the keys of a stage's section that are not at their defaults, in a few lines of YAML."""
    values = changed(getattr(profile, stage))
    for reward in values.get("rewards", {}).values():
        reward.pop("code", None)  # the text of a user's reward
    flow: dict[str, Any] = {"default_flow_style": None, "width": 100}
    text = yaml.safe_dump({stage: values}, sort_keys=False, allow_unicode=True, **flow)
    return f"{text.rstrip()}\n(docs/profiles.md has the defaults of all other keys)"


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def differing_keys(a: Profile, b: Profile) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys whose values differ, with both values."""
    x, y = (flatten(asdict(profile)) for profile in (a, b))  # type: ignore[call-overload]
    return {key: (x.get(key), y.get(key)) for key in sorted(x | y) if x.get(key) != y.get(key)}


def lasting_changes(old: Profile, new: Profile, redo: str | None = None) -> dict[str, tuple[Any, Any]]:
    """Return the differing keys, with both values, that a stage was made with: one before `redo`, if any."""
    later = new.stages[new.stages.index(redo) :] if redo else ()
    if later == new.stages:
        return {}
    may_change = ANY_TIME + [part for stage in later for part in (stage, f"{stage}.*")]
    may_change += FROM_A_STAGE_ON if redo else []
    for stage in ("sft", "dpo", "opd"):  # another batch size is no change if a step keeps its rows
        both = [section for profile in (old, new) if (section := getattr(profile, stage))]
        steps = {section.batch_size * section.gradient_accumulation_steps for section in both}
        if len(both) == 2 and len(steps) == 1:
            may_change += [f"{stage}.batch_size", f"{stage}.gradient_accumulation_steps"]
    pattern = re.compile("|".join(map(fnmatch.translate, may_change)))
    return {key: both for key, both in differing_keys(old, new).items() if not pattern.match(key)}
