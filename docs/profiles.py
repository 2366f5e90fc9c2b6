"""Write profiles.md, every key of a profile, from the dataclasses: `make docs` does it.

What a key reaches is where `tests/test_schema.py` looks at it; of a key of TRL's configuration, the fields
that change with it. What other libraries call a key is what the error message answers to their names.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from aimo import config
from aimo.config import reading
from aimo.inference import settings
from aimo.inference.errors import AimoError
from aimo.rewards import REWARDS
from aimo.run.runs import quiet

sys.path.append(str(reading.ROOT / "tests"))
import test_schema as schema

KNOWN = set(reading.keys())
PAGE = Path(__file__).with_suffix(".md")
INTRO = """\
# Profiles, key by key

A profile is one YAML file. A stage without a section is left out; inference always runs. A value that does
not fit is refused with the key and the remedy, an unknown key with the nearest one. `--set KEY=VALUE`
changes a key on the command line: `--set grpo.max_steps=50`, `--set model.lora=null`. `notebooks/profiles`
holds examples ([recipes.md](recipes.md)). This profile distils with SFT alone and measures on held-out
problems:

```yaml
profile: distil
model: {base: data/tiny-base, max_length: 1024, dtype: float32}
data:
  sft: {source: builtin, rows: 1000}
  heldout: {source: builtin, split: heldout, rows: 50}
sft: {learning_rate: 1.0e-3, epochs: 1, batch_size: 16}
inference: {samples: 4, max_tokens: 96}
```

This one answers a test file with a model as it is:

```yaml
profile: answer
model: {base: data/tiny-base, max_length: 1024}
inference: {test: my.csv, samples: 16, max_tokens: 96}
```

With `grpo` and without `sft`, GRPO starts from the base; `dpo` starts from the last model trained before
it.

*Reaches* says what a key changes: `tests/test_schema.py` sets every key to another value and looks there, or
names the test that does. A name after "TRL:" is a field of its SFTConfig, GRPOConfig, DPOConfig or
DistillationConfig. *Elsewhere* is what other projects call the key (`src/aimo/config/aliases.yaml`); the
error message answers to these names.
`docs/profiles.py` writes this page from the dataclasses in `src/aimo/config`.
"""


class Table(NamedTuple):
    """The keys of a dataclass under a heading, and the prefix under which the walk finds them."""

    heading: str
    section: type
    prefix: str
    text: str = ""


TRAINS = "Of every stage that trains. Where the table of a stage has a key too, its default holds there."
ENTRIES = "Of the sets, of `distil`, and of each entry of `mixture` and of `data.decontaminate`."
TABLES = [
    Table("## profile", config.Profile, "", "The first level: three keys, and the sections."),
    Table("## model", config.Model, "model."),
    Table("### lora", config.Lora, "model.lora."),
    Table("## prompt", config.Prompt, "prompt.", "Besides the four keys of [tags](#tags)."),
    Table("## data", config.Data, "data."),
    Table("### Sets", config.Set, "data.sft.", "`data.sft`, `data.grpo` and `data.heldout`."),
    Table("### Sources", config.Source, "data.sft.", ENTRIES),
    Table("### Mixtures", config.Mixture, "data.sft.", "Of the sets and of `distil`."),
    Table("### columns", config.Columns, "data.sft.columns.", "Of a source."),
    Table("## distil", config.Distil, "distil.", "Besides the keys of a source."),
    Table("### reject", config.Reject, "distil.reject."),
    Table("## Stages that train", config.Optimization, "sft.", TRAINS),
    Table("## sft", config.Sft, "sft."),
    Table("## grpo", config.Grpo, "grpo."),
    Table("## dpo", config.Dpo, "dpo."),
    Table("## opd", config.Opd, "opd."),
    Table("## inference", settings.Settings, "inference."),
    Table("### Questions of a run", config.Inference, "inference."),
    Table("### tags", settings.Tags, "inference.tags."),
    Table("### variants", settings.Variant, "inference.variants.", "Of each entry of the list."),
    Table("### proofs", settings.Proofs, "inference.proofs.", "Of competitions that ask for proofs."),
    Table("## training", config.Training, "training."),
]
HEADS = ("key", "type", "default", "meaning", "reaches", "elsewhere")

UNITS = {
    "tokens": "max_length max_tokens max_prompt_length max_completion_length max_len max_completion_len "
    "soft_punish_cache proof_tokens verdict_tokens closing_tokens",
    "seconds": "timeout tool_seconds time_limit_s seconds",
    "steps": "max_steps save_steps probe_steps eval_steps sample_steps",
    "GB": "disk_gb",
    "per million tokens": "input_price output_price",
    "words": "ngram ngram_size",
    "rows": "rows batch_size",
    "problems": "test_rows problems prompts_per_step",
    "completions": "num_generations samples pass_rate_samples max_per_problem",
}
LOOKS: dict[Any, str] = {
    schema.rows: "the rows",
    schema.distilled: "requests and what is kept",
    schema.chat: "prompts and rows",
    schema.loading: "how the model is loaded",
    schema.adapters: "PEFT's adapters",
    schema.base_model: "which base is taken",
    schema.rewards: "the reward",
    schema.proved: "calls of proofs",
    schema.sft_order: "the training",
    schema.served_model: "the check of the saved model",
    schema.asked: "requests and votes",
    schema.questions: "the questions",
    schema.vllm: "vLLM",
    schema.hub_cache: "the hub's client",
}
WORDS = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    Any: "any value",
    NoneType: "null",
}


def page() -> str:
    parts = [INTRO]
    for table in TABLES:
        # The keys that a dataclass adds to those of its parents, or gives another default.
        own = [f.name for f in fields(table.section) if f.name in vars(table.section)["__annotations__"]]
        rows = [row(table.section, key, table.prefix + key) for key in own]
        parts.append("\n\n".join([table.heading, *filter(None, [table.text]), as_table(HEADS, rows)]) + "\n")
    rows = []
    for name, reward in REWARDS.items():
        for option in ("weight", *reward.option_names) if name == "accuracy" else reward.option_names:
            first, *rest = row(reward.options, option, f"grpo.rewards.{name}.{option}")
            rows.append(["any" if name == "accuracy" else f"`{name}`", first, *rest[:-2]])
    text = "Keys of `grpo.rewards.NAME`; [rewards.md](rewards.md) says what each reward gives."
    parts.append("\n\n".join(["## rewards", text, as_table(("reward", *HEADS[:-2]), rows)]) + "\n")
    return "\n".join(parts)


def as_table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(heads), ["---" for _ in heads], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def row(section: type, key: str, dotted: str) -> list[str]:
    """The cells of HEADS."""
    (chosen,) = (f for f in fields(section) if f.name == key)
    hint = get_type_hints(section, include_extras=True)[key]
    unit = next((unit for unit, names in UNITS.items() if key in names.split()), "")
    kind = ", ".join(filter(None, [words(hint), unit]))
    value = chosen.default if chosen.default_factory is MISSING else chosen.default_factory()
    default = (
        f"`{json.dumps(value, ensure_ascii=False, default=vars)}`" if value is not MISSING else "required"
    )
    default = "its defaults" if is_dataclass(value) else default
    meaning = next(said[key] for base in section.__mro__ if key in (said := reading.meanings(base)))

    # What other libraries call the key.
    place, _, last = dotted.rpartition(".")
    elsewhere = [
        f"`{other}`"
        for other, ours in reading.ALIASES["keys"].items()
        for our in ours.split()
        if our == dotted or (our == last and f"{place}.{our}" in KNOWN)
    ]
    cells = f"`{key}`", kind, default, meaning, reaches(dotted), ", ".join(elsewhere)
    return [cell.replace("|", "\\|") for cell in cells]


def words(hint: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = [one for item in parts[1:] for one in (item.metadata if isinstance(item, FieldInfo) else ())]
        signs = {"gt": "> ", "ge": "≥ ", "lt": "< ", "le": "≤ "}
        bounds = [f"{signs[n]}{getattr(limit, n)}" for limit in limits for n in signs if hasattr(limit, n)]
        text = f"{words(parts[0])} {' and '.join(bounds)}".strip()
        text += "".join(", not empty" for limit in limits if hasattr(limit, "min_length"))
        patterns = [limit.pattern.replace("\\", "") for limit in limits if hasattr(limit, "pattern")]
        return text + "".join(f" with `{pattern}`" for pattern in patterns)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in parts)
    if origin in (Union, UnionType):
        return " or ".join(words(part) for part in parts)
    if origin is tuple:
        return f"[{', '.join(words(part) for part in parts)}]"
    if origin is list:
        return f"list of: {words(parts[0])}"
    if origin is dict:
        return "keys and values"
    if not is_dataclass(hint):
        return WORDS[hint]
    section: Any = settings.Settings if hint is config.Inference else hint
    heading = next(table.heading for table in TABLES if table.section is section)
    return f"[section](#{heading.strip('# ').lower()})"


def reaches(key: str) -> str:
    """What a key changes; of a key of TRL's configuration, the fields that change with it."""
    key = key if key in schema.KEYS else key.replace("data.sft", "distil")
    case = schema.case_of(key)
    if case is None or key not in schema.KEYS:
        return ""
    if key.endswith(".trl"):
        return "TRL: the same names"
    if case.observe not in (schema.SFT_ARGS, schema.GRPO_ARGS, schema.DPO_ARGS, schema.OPD_ARGS):
        return case.observe.partition(": ")[0] if isinstance(case.observe, str) else LOOKS[case.observe]
    values = schema.prepared(key, case)
    before, value = config.parse(values, "page"), case.value
    if value is None:
        value = schema.other(schema.KEYS[key], schema.get(before, key))
    schema.put(values, key, value)
    try:
        old, new = (case.observe(profile) for profile in (before, config.parse(values, "page")))
        changed = sorted(name for name in old | new if old.get(name) != new.get(name))
    except AimoError:  # a package for GPUs
        changed = [key.rpartition(".")[2]]
    return "TRL: " + ", ".join(f"`{name}`" for name in changed)


if __name__ == "__main__":
    quiet()
    PAGE.write_text(page(), encoding="utf-8")
