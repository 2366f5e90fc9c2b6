"""YAML files that users write: profiles and competitions."""

import re
from pathlib import Path
from typing import Any

import yaml

from aimo.inference.errors import AimoError

DEEPEST, MOST = 50, 100_000  # nested values, and values with every YAML alias written out


class Loader(yaml.CSafeLoader):
    """YAML in which `5e-6` is a number, a date is a text, and a repeated key is an error."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_yaml(text: str) -> Any:
    """Return the value of a YAML text. Raises YAMLError, also for one that is too deep or too large."""
    sizes: dict[str | None, int] = {}
    nested: list[tuple[str | None, int]] = [(None, 0)]  # anchor, and values so far
    for event in yaml.parse(text, Loader):
        (anchor, count), size = nested[-1], 0
        if isinstance(event, yaml.CollectionStartEvent):
            nested.append((event.anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            nested.pop()
            sizes[anchor], size = count, count
        elif isinstance(event, yaml.AliasEvent | yaml.ScalarEvent):
            size = sizes.get(event.anchor, 1) if isinstance(event, yaml.AliasEvent) else 1
        if size:
            nested[-1] = nested[-1][0], nested[-1][1] + size
        if len(nested) > DEEPEST or nested[-1][1] > MOST:
            raise yaml.YAMLError(f"it is nested more than {DEEPEST} deep, or holds more than {MOST:,} values")
    return yaml.load(text, Loader)


def read_yaml(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """Return the keys and values of a file; AimoError where it has none says `what` it should be."""
    try:
        values = load_yaml(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as e:
        raise AimoError(f"{what} {path}: not UTF-8 at byte {e.start}; save it as UTF-8") from None
    except OSError as e:
        told = "give its path" if isinstance(e, FileNotFoundError) else "make it readable"
        raise AimoError(f"{what} {path}: {e.strerror}; {told}") from None
    except yaml.YAMLError as e:
        raise AimoError(f"{what} {path}: not valid YAML: {' '.join(str(e).split())}") from None
    if not isinstance(values, dict):
        raise AimoError(f"{what} {path}: expected keys and values; {remedy}")
    return values
