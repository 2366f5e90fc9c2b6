"""YAML into a Profile, and a Profile into YAML. Unknown keys, wrong types and impossible values are refused by name."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from aimo.config import Profile
from aimo.config.data import Columns, Data, Set
from aimo.config.training import Dpo, Grpo, Lora, Model, Sft, Training
from aimo.errors import AimoError, explain
from aimo.inference.settings import Inference, Prompt

ROOT = Path(__file__).parents[3]
PROFILES = ROOT / "notebooks" / "profiles"


def resolve(path: str) -> Path:
    """A path as given, or else from the repository's root."""
    return Path(path) if Path(path).exists() else ROOT / path


def load(profile: str | Path, overrides: list[str] | None = None) -> Profile:
    """Read a profile by name (`tiny`) or path (`my.yaml`) and apply overrides such as `grpo.max_steps=50`.

    Raises AimoError naming the key that is unknown, of the wrong type, or impossible.
    """
    path = Path(profile) if str(profile).endswith(".yaml") else PROFILES / f"{profile}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise AimoError(
            f"profile {str(profile)!r} does not exist: use one of {known}, or a path to a .yaml file"
        )
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as e:
        raise AimoError(f"profile {path}: not valid YAML: {' '.join(str(e).split())}") from None
    if not isinstance(values, dict):
        raise AimoError(f"profile {path}: expected keys and values; start from {PROFILES / 'tiny.yaml'}")
    for override in overrides or []:
        set_key(values, override)
    return parse(values, where=f"profile {path.stem}")


def set_key(values: dict[str, Any], override: str, option: str = "--set") -> None:
    """Apply `section.key=value` to nested values in place; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals:
        raise AimoError(f"{option} {override!r}: expected KEY=VALUE, such as grpo.max_steps=50")
    *parents, last = key.split(".")
    for name in parents:
        if not isinstance(values.setdefault(name, {}), dict):
            raise AimoError(f"{option} {override!r}: {name} is a value, not a section")
        values = values[name]
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise AimoError(f"{option} {override!r}: {text!r} is not a YAML value; quote it") from None


def parse(values: dict[str, Any], where: str) -> Profile:
    """Validate nested values into a Profile; one AimoError names every bad key."""
    try:
        return TypeAdapter(Profile).validate_json(
            json.dumps(floats(values))
        )  # strict Python input would refuse sections
    except ValidationError as e:
        raise AimoError(
            f"{where}: " + "; ".join(explain(error, all_keys()) for error in e.errors())
        ) from None


def floats(value: Any) -> Any:
    """YAML 1.1 reads `5e-6` as text; read it as the number that everyone means."""
    if isinstance(value, dict):
        return {k: floats(v) for k, v in value.items()}
    if isinstance(value, str) and value[:1] in "0123456789.-" and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def all_keys() -> set[str]:
    """The names of all keys a profile may have."""
    sections = [Profile, Model, Lora, Prompt, Data, Set, Columns, Sft, Grpo, Dpo, Training, Inference]
    return {name for section in sections for name in section.__dataclass_fields__}  # type: ignore[attr-defined]


def dump(profile: Profile) -> str:
    """The profile as YAML, every key written out."""
    return yaml.safe_dump(asdict(profile), sort_keys=False, allow_unicode=True)  # type: ignore[call-overload]


def differing_keys(a: Profile, b: Profile) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both values."""
    flat_a, flat_b = flatten(asdict(a)), flatten(asdict(b))  # type: ignore[call-overload]
    return {
        k: (flat_a.get(k), flat_b.get(k)) for k in sorted(flat_a | flat_b) if flat_a.get(k) != flat_b.get(k)
    }


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
