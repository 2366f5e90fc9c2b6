"""Kaggle kernels: list them, build their notebooks, and check for what Kaggle would refuse.

Each kernel is a folder in kernels/ with kernel-metadata.json, the template aimo-NAME.py (py:percent) and the
self-contained notebook that is built from it. The template's cell with the tag `package` becomes an archive
of what the kernel ships, and a cell for each file that a competitor reads and changes. `settings = {}` turns
into a profile's settings, and the cell with the tag `profile` becomes the profile's file.
"""

import ast
import base64
import contextlib
import difflib
import io
import json
import math
import operator
import pprint
import re
import tarfile
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import yaml

from aimo import config
from aimo.config import ROOT, RUNS
from aimo.config.reading import meanings
from aimo.inference import startup
from aimo.inference.competitions import COMPETITIONS, HOUR_S, find_competition, name_of, parse_competition
from aimo.inference.errors import AimoError
from aimo.inference.settings import Settings, list_of_texts, validate_settings
from aimo.inference.storage import load_yaml, read_json, write_json

FOLDER = ROOT / "kernels"
OUTPUT = RUNS / "kaggle"  # where versions' outputs are downloaded
SPENT = 29 / 30  # the share of a session in which its questions are answered


@dataclass(frozen=True)
class Kernel:
    """What a kernel ships, and what its metadata must have."""

    files: tuple[str, ...] = ()  # globs of files that it ships beside the modules it imports
    internet: bool = False
    gpu: bool = True
    attaches: tuple[str, ...] = ()  # model, wheels, competition
    shown: str = ""  # a pattern of those that get a cell each; all others go into one archive
    profile: str | None = None  # the default one for the cell with the tag `profile`


# Modules read these on import.
DATA = ("src/aimo/config/aliases.yaml", "src/aimo/data/*.yaml", "src/aimo/report/page.jinja")
ROAD = (*DATA, "notebooks/0[0-3]*.ipynb", "notebooks/profiles/*.jinja")
ANSWERING = "submission", "evaluate"  # the kernels that answer a competition
READABLE = (  # what decides an answer
    r"src/aimo/inference/(competitions/.+\.yaml"
    r"|(settings|prompts|answers|sampling|sample|voting|solver|proofs|gateway)\.py)"
)
KERNELS = {
    "probe": Kernel(),
    "wheels": Kernel(("requirements.txt",), internet=True, gpu=False, shown=".+txt"),
    "train": Kernel(ROAD, internet=True, attaches=("wheels",), profile="kaggle-h100"),
    "submission": Kernel(attaches=("model", "wheels", "competition"), shown=READABLE),
    "evaluate": Kernel(DATA, attaches=("model", "wheels"), shown=READABLE),
}
FOLDED = {  # metadata that makes Kaggle and Jupyter fold a cell
    "_kg_hide-input": True,
    "_kg_hide-output": True,
    "jupyter": {"source_hidden": True, "outputs_hidden": True},
}
UNPACK = '''\
import base64
import io
import os
import sys
import tarfile

FILES
# as a tar archive, in base85
package = """
PACKAGE"""
with tarfile.open(fileobj=io.BytesIO(base64.b85decode(package.replace("\\n", "")))) as archive:
    archive.extractall(filter="data")
sys.path.insert(0, os.path.abspath("src"))
others = filter(None, [os.environ.get("PYTHONPATH")])
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], *others])  # of processes that this one starts'''


def kernels_of(profile: str | None, competition: str | None = None) -> list[str]:
    """Return the kernels that can use a profile's settings, and that answer a competition if one is named.

    `train` cannot use a profile that trains nothing, nor `evaluate` proofs, because nothing scores them.
    """
    found, rules = list(KERNELS), find_competition(competition) if competition else None
    if profile:
        loaded = config.load(profile)
        places = ["settings = {}", *(['tags=["profile"]'] if loaded.trained else [])]
        texts = {name: (FOLDER / name / f"aimo-{name}.py").read_text() for name in found}
        found = [name for name in found if any(place in texts[name] for place in places)]
        rules = rules or loaded.rules
    if competition:
        found = [name for name in found if name in ANSWERING]
    return [name for name in found if not (name == "evaluate" and rules and rules.scoring == "marks")]


def build_kernel(
    name: str, out: Path | None = None, profile: str | None = None, competition: str | None = None
) -> Path:
    """Write the notebook of the kernel `name` to its folder, or to `out`, and return its path.

    The settings are the `inference` section of a `profile`; the cell with the tag `profile` holds all of it.
    The kernel answers `competition`, a name or a YAML file, or the profile's: the notebook ships the file,
    and `out` gets metadata with its slug and machine if it has none. The same sources give the same bytes.
    AimoError if the kernel has no use for the profile or the competition.
    """
    if name not in KERNELS:
        raise AimoError(f"kernel {name!r} does not exist: use one of {', '.join(KERNELS)}")
    if name not in (fitting := kernels_of(profile, competition)):
        what = f"competition {competition}" if competition else f"profile {profile}"
        raise AimoError(f"kernel {name} has no use for {what}; it goes into {', '.join(fitting)}")
    template, kernel = FOLDER / name / f"aimo-{name}.py", KERNELS[name]
    path = (out or template.parent) / f"{template.stem}.ipynb"
    if not path.parent.is_dir():
        raise AimoError(f"--out {out}: no such folder; make it first")
    rules, known, files = None, "", {}
    if given := competition or (config.load(profile).rules if profile and name in ANSWERING else None):
        rules, known = find_competition(given, asks=True), name_of(given)
        if COMPETITIONS.get(known, rules) != rules:
            raise AimoError(f"competition {competition}: the package has one named {known}; rename the file")
        if known not in COMPETITIONS:
            as_file = yaml.safe_dump(json.loads(json.dumps(asdict(rules))), sort_keys=False)
            text = Path(competition).read_text("utf-8-sig") if competition else str(as_file)
            files[f"src/aimo/inference/competitions/{known}.yaml"] = text
    apart = [ROOT / f"src/aimo/inference/{module}.py" for module in (rules.answer.modules if rules else ())]
    files |= {str(file.relative_to(ROOT)): file.read_text() for file in [*apart, *shipped(name)]}
    settings = describe_settings(config.load(profile).inference.written if profile else {})
    code, cells = nbformat.v4.new_code_cell, []
    for cell in jupytext.reads(template.read_text(), "py:percent").cells:
        tags = cell.metadata.get("tags", [])
        if "package" in tags:
            shown = [file for file in files if re.fullmatch(kernel.shown, file)]
            cells.append(code(unpack_cell(files, shown), metadata=FOLDED))
            for file in shown:
                cells.append(code(f"%%writefile {file}\n{files[file].rstrip()}", metadata=FOLDED))
            continue
        if "profile" in tags and (used := profile or kernel.profile):
            loaded = config.load(used)  # checks it
            text = config.find(used).read_text(encoding="utf-8-sig")
            own = loaded.grpo and any(hasattr(one, "code") for one in loaded.grpo.rewards.values())
            if own or loaded.competition:
                text = config.dump(loaded)  # with the text of the user's rewards, and the rules
            cell.source = f"%%writefile profile.yaml\n{text.rstrip()}"
        if rules and "parameters" in tags:
            cell.source = re.sub(r'(?m)^competition = "\w+".*', f'competition = "{known}"', cell.source)
            place = f'test_csv = "/kaggle/input/{rules.slug}/{rules.inputs.test}"'
            cell.source = re.sub(r'(?m)^test_csv = ".*"', place, cell.source)
            limit = f"time_limit_s = {SPENT * rules.session_s:.0f}  # of the session's {rules.session_s:.0f}"
            cell.source = re.sub(r"(?m)^time_limit_s = .*", limit, cell.source)
        cell.source = cell.source.replace("settings = {}", f"settings = {{\n{settings}}}")
        cells.append(cell)

    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    headings = re.findall(r"^## (.+)$", prose, re.MULTILINE)
    links = ", ".join(f"[{heading}](#{heading.replace(' ', '-')})" for heading in headings)
    cells[0].source += f"\n\nContents: {links}"
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernelspec})
    # One string for each cell, as a list of lines would make the notebook a quarter larger.
    nbformat.write(made, path, split_lines=False)

    described = path.with_name("kernel-metadata.json")
    if rules and out and "competition" in kernel.attaches and not described.exists():
        metadata = read_json(template.with_name(described.name), "restore the file")
        owner, title = metadata["id"].split("/")[0], f"aimo-{re.sub('[^a-z0-9]+', '-', known.lower())}"
        metadata |= {"id": f"{owner}/{title}", "title": title, "competition_sources": [rules.slug]}
        if rules.accelerators and metadata["machine_shape"] not in rules.accelerators:
            metadata["machine_shape"] = rules.accelerators[0]
        write_json(described, metadata)
    return path


def unpack_cell(files: dict[str, str], shown: list[str]) -> str:
    """Return the code that writes `files`, texts by path; those `shown` stay empty, for their own cells.

    The archive uses bzip2, because all its releases write the same bytes.
    """
    made, hidden = io.BytesIO(), [file for file in files if file not in shown]
    with tarfile.open(fileobj=made, mode="w:bz2") as archive:
        for file, text in files.items():
            content = text.encode() if file in hidden else b""
            entry = tarfile.TarInfo(file)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    named = textwrap.wrap(", ".join(hidden), 110, initial_indent="# ", subsequent_indent="# ")
    lines = re.findall(".{1,107}", base64.b85encode(made.getvalue()).decode())
    return UNPACK.replace("FILES", "\n".join(named)).replace("PACKAGE", "\n".join(lines))


def describe_settings(written: dict[str, Any]) -> str:
    """Return the settings as entries of a Python dictionary, each below a comment that explains it.
    Settings that are not `written` become comments with their defaults."""
    lines: list[str] = []
    defaults = asdict(Settings())
    for key, meaning in meanings(Settings).items():
        value = pprint.pformat(written.get(key, defaults[key]), width=96, sort_dicts=False)
        entry = f'"{key}": {value},'
        lines += textwrap.wrap(meaning, 104, initial_indent="# ", subsequent_indent="# ")
        lines += entry.splitlines() if key in written else [f"# {line}" for line in entry.splitlines()]
    return "".join(f"    {line}\n" for line in lines)


def shipped(name: str) -> list[Path]:
    """Return the files that a kernel ships: its own, and the modules of `aimo` that its template and its
    notebooks import, directly or not. Each follows the modules that it imports, except in cycles."""
    entered: set[Path] = set()
    found: list[Path] = []

    def enter(path: Path) -> None:
        if path in entered:
            return
        entered.add(path)
        code = path.with_suffix(".py")  # a notebook's paired script
        names: set[str] = set()
        for node in ast.walk(ast.parse(code.read_text() if code.is_file() else "")):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        parts = [name.split(".") for name in names if name.split(".")[0] == "aimo"]
        modules = {"/".join(one[:i]) for one in parts for i in range(1, len(one) + 1)}  # and their packages
        for module in sorted(modules):
            for place in ROOT / "src" / module / "__init__.py", ROOT / "src" / f"{module}.py":
                if place.is_file():
                    enter(place)
        found.extend(sorted(path.with_suffix("").glob("*.yaml")))  # its data, which it reads on import
        found.append(path)

    template = FOLDER / name / f"aimo-{name}.py"
    enter(template)
    for pattern in KERNELS[name].files:
        for path in sorted(ROOT.glob(pattern)):
            enter(path)
    return [path for path in found if path != template]


# ---- Kaggle's names

PLACEHOLDER = "INSERT_YOUR_KAGGLE_NAME"  # the owner in a metadata file, until a push
# What Kaggle's addresses and its command line put before a name.
PREFIXES = ("datasets", "models", "notebooks", "kernels", "code", "competitions", "c")
SLUG = r"[a-z0-9]+(?:-[a-z0-9]+)*"
OWNER = r"[a-z0-9]+(?:[_-][a-z0-9]+)*"
VERSION = r"[A-Za-z0-9]+/[A-Za-z0-9.-]+/[1-9][0-9]*"
FORMS = {
    "dataset_sources": (f"{OWNER}/{SLUG}", "OWNER/SLUG"),
    "kernel_sources": (f"{OWNER}/{SLUG}", "OWNER/SLUG"),
    "competition_sources": (SLUG, "SLUG"),
    "model_sources": (f"{OWNER}/{SLUG}/{VERSION}", "OWNER/MODEL/FRAMEWORK/VARIATION/VERSION"),
}


def is_source(key: str, source: str) -> bool:
    """Return whether a source has its key's form; its owner may be the placeholder, in capitals."""
    owner, slash, rest = source.partition("/")
    return bool(re.fullmatch(FORMS[key][0], owner.lower() + slash + rest))


def source_of(text: str, parts: int) -> str:
    """Return OWNER/SLUG, or as many `parts`, of a Kaggle address or a prefixed name; other text unchanged."""
    path = re.sub(r"^(https?://)?(www\.)?kaggle\.com/", "", text.strip())
    if path == text.strip() and path.split("/")[0] not in PREFIXES:
        return path
    owner, place = startup.place_of(startup.KAGGLE + path) or ("", path)
    return "/".join([*filter(None, [owner]), *place.split("/")][:parts])


def slug_of(competition: str) -> str:
    """Return the slug of a competition, given by name, YAML file, address or slug. AimoError for others."""
    own = competition in COMPETITIONS or competition.endswith((".yaml", ".yml"))
    slug = find_competition(competition).slug if own else source_of(competition, 1)
    if not re.fullmatch(SLUG, slug):
        known = ", ".join(COMPETITIONS)
        raise AimoError(f"competition {competition!r}: write {known} or the slug of its address")
    return slug


def is_in(named: tuple[str, str], source: tuple[str, str]) -> bool:
    """Return whether a path is in an attached source; an owner may be missing, or be the placeholder."""
    owners = {named[0], source[0]} - {"", PLACEHOLDER}
    return len(owners) < 2 and f"{named[1]}/".lower().startswith(f"{source[1]}/".lower())


def kernel_folder(name: str) -> Path:
    return FOLDER / name if (FOLDER / name).is_dir() else Path(name)


# ---- Check for what Kaggle would refuse, or what would fail an hour after a push, without asking Kaggle

# The keys of kernel-metadata.json by the type of their value.
TYPES = {str: "a text", bool: "true or false", list: "a list of texts", int: "a number"}
KEYS = {
    str: "id title code_file language kernel_type machine_shape docker_image docker_image_pinning_type",
    bool: "is_private enable_gpu enable_tpu enable_internet",
    list: "dataset_sources competition_sources kernel_sources model_sources keywords",
    int: "id_no",
}
TYPE_OF = {key: kind for kind, keys in KEYS.items() for key in keys.split()}
# The number of GPUs of each machine that vLLM's wheels run on, by Kaggle's name.
GPUS = {"NvidiaTeslaT4": 2, "NvidiaL4": 4}
GPUS |= {"NvidiaL4X1": 1, "NvidiaH100": 1, "NvidiaTeslaA100": 1, "NvidiaRtxPro6000": 1}
ARITHMETIC: dict[Any, Any] = {ast.Add: operator.add, ast.Sub: operator.sub}
ARITHMETIC |= {ast.Mult: operator.mul, ast.Div: operator.truediv}
LONGEST_S = 12 * HOUR_S  # of a session that submits nothing
LARGEST = 1_000_000  # bytes of the largest notebook that Kaggle takes


def check_kernel(name: str) -> list[str]:
    """Return the faults of a kernel (a name in kernels/, or a folder), each with its remedy.

    The name of its code file identifies it in KERNELS. For another kernel, only the metadata is checked.
    """
    folder = kernel_folder(name)
    path = folder / "kernel-metadata.json"
    if not path.is_file():
        return [f"there is no {path}; take a folder of {FOLDER.name}/"]
    faults: list[str] = []
    try:
        metadata = read_json(path, "repair the file")
        for key, value in sorted(metadata.items()):
            kind = TYPE_OF.get(key)
            odd = isinstance(value, list) and not all(isinstance(one, str) for one in value)
            if kind is None:
                close = difflib.get_close_matches(key, TYPE_OF, n=1)
                faults.append(f"unknown key {key}" + (f", did you mean {close[0]}?" if close else ""))
            elif value is not None and (type(value) is not kind or odd):
                faults.append(f"{key} should be {TYPES[kind]}, not {value!r}")
        if faults:
            return faults
        code = folder / metadata.get("code_file", "")
        kernel = KERNELS.get(code.stem.removeprefix("aimo-"))
        faults += check_metadata(metadata, kernel)
        if not code.is_file():
            remedy = f"make it with `aimo kernel build {name}`"
            return [*faults, f"code_file {code.name!r} does not exist; {remedy}"]
        if (size := code.stat().st_size) > LARGEST:
            faults.append(f"code_file {code.name} has {size:,} bytes; Kaggle takes {LARGEST:,}")
        if kernel:
            faults += check_contents(kernel, metadata, *read_notebook(code))
    except (AimoError, yaml.YAMLError) as e:
        faults.append(" ".join(str(e).split()))
    return faults


def check_metadata(metadata: dict[str, Any], kernel: Kernel | None) -> Iterator[str]:
    owner, _, slug = str(metadata.get("id", "")).lower().rpartition("/")
    title = str(metadata.get("title", ""))
    if not re.fullmatch(OWNER, owner) or not re.fullmatch(SLUG, slug) or len(slug) < 5:
        form = "of small letters, digits and hyphens, the slug of at least 5"
        yield f"id {metadata.get('id')!r} should be OWNER/SLUG, {form}"
    if not 5 <= len(title) <= 50:
        yield f"title {title!r} should have 5 to 50 characters"
    elif (made := re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")) != slug:
        yield f"title {title!r} makes the slug {made!r}, not the id's {slug!r}"
    for key, (_, form) in FORMS.items():
        for source in metadata.get(key) or []:
            if not is_source(key, source):
                meant = source_of(source, form.count("/") + 1)
                yield f"{key}: {source!r} should be {form}" + (f": {meant}" if is_source(key, meant) else "")

    shape, gpu = metadata.get("machine_shape"), metadata.get("enable_gpu")
    if shape and shape not in GPUS:
        yield f"machine_shape {shape} is retired or unknown; take one of {', '.join(GPUS)}"
    elif gpu and not shape:
        yield f"enable_gpu without machine_shape gives what Kaggle chooses; take one of {', '.join(GPUS)}"
    if not gpu and (shape or (kernel and kernel.gpu)):
        yield f"enable_gpu should be true: {f'machine_shape is {shape}' if shape else 'vLLM needs a GPU'}"
    if kernel:
        internet = metadata.get("enable_internet", True)
        if internet and not kernel.internet:
            yield "enable_internet should be false: a submission with internet is refused"
        if kernel.internet and not internet:
            yield "enable_internet should be true: this kernel downloads what it needs"
        if "wheels" in kernel.attaches and not (
            metadata.get("kernel_sources") or metadata.get("dataset_sources")
        ):
            yield "no wheels are attached: add the kernel `wheels` to kernel_sources"
        if "model" in kernel.attaches and not metadata.get("model_sources"):
            yield "no model is attached: add OWNER/MODEL/FRAMEWORK/VARIATION/VERSION to model_sources"


def check_contents(
    kernel: Kernel, metadata: dict[str, Any], parameters: dict[str, Any], written: dict[str, str]
) -> Iterator[str]:
    """Yield what the parameters, the competition, the wheels and the profile need but do not get."""
    # Every input path, in either of Kaggle's layouts, must be in an attached source.
    competitions = metadata.get("competition_sources") or []
    attached = [
        one for kind in ("model", "kernel", "dataset") for one in metadata.get(f"{kind}_sources") or []
    ]
    inputs = [*(source.partition("/")[::2] for source in attached), *(("", slug) for slug in competitions)]
    for key, value in parameters.items():
        for path in value if isinstance(value, list) else [value]:
            place = startup.place_of(path) if isinstance(path, str) else None
            if place and not any(is_in(place, one) for one in inputs):
                there = ", ".join(name for _, name in inputs) or "nothing"
                yield f"{key} {path!r} is not among what is attached, {there}"

    # The competition's slug, machines and session, from the notebook's own file or by its name.
    shape, longest, name = metadata.get("machine_shape"), LONGEST_S, str(parameters.get("competition"))
    own = written.get(f"src/aimo/inference/competitions/{name}.yaml")
    rules = parse_competition(load_yaml(own), f"competition {name}") if own else COMPETITIONS.get(name)
    if rules is None and "competition" in parameters:
        known = ", ".join(COMPETITIONS)
        yield f"competition {name!r} is unknown; take one of {known}, or build with --competition FILE.yaml"
    if rules and "competition" in kernel.attaches:
        longest = rules.session_s
        if rules.slug not in competitions:
            yield f"competition_sources lack {rules.slug}"
        if shape in GPUS and shape not in (rules.accelerators or GPUS):
            allowed = ", ".join(rules.accelerators)
            yield f"machine_shape {shape} is not allowed in {name}; take one of {allowed}"
    for key in ("time_limit_s", "session_s"):
        seconds = parameters.get(key, 0)
        if not isinstance(seconds, int | float) or not 0 <= seconds <= longest:
            yield f"{key} {seconds!r} is not within the session's {longest:.0f} seconds"

    # The imports of aimo.inference that no attached wheel holds, if the wheels' output is here.
    for slug in (source.split("/")[-1] for source in attached):
        manifests = OUTPUT.glob(f"{slug}/[0-9]*/{startup.MANIFEST}") if re.fullmatch(SLUG, slug) else ()
        if newest := max(manifests, key=lambda path: int(path.parent.name), default=None):
            wheels = read_json(newest, "download the output again").get("wheels", [])
            held = {module for wheel in wheels for module in wheel["modules"]}
            needed = startup.imports(ROOT.glob("src/aimo/inference/*.py"))
            if lacking := ", ".join(module for module in needed if module not in held):
                yield f"no wheel of {slug} holds {lacking} ({newest}); run the kernel `wheels` again"

    # What the machine cannot run of the settings and the profile.
    vllm = validate_settings(parameters.get("settings") or {}, "settings", "correct the value").vllm
    wanted = math.prod(vllm.get(f"{way}_parallel_size", 1) for way in ("tensor", "data", "pipeline"))
    if shape in GPUS and wanted > GPUS[shape]:
        yield f"settings want {wanted} GPUs (vllm), machine_shape {shape} has {GPUS[shape]}"
    for key, value in vllm.items():
        if shape == "NvidiaTeslaT4" and str(value).startswith(("bfloat16", "fp8")):
            yield f"settings: vllm {key} {value} does not run on a T4"
    if text := written.get("profile.yaml"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "profile.yaml")
            path.write_text(text)
            profile = config.load(path, list_of_texts(parameters.get("overrides") or []))
        if shape == "NvidiaTeslaT4" and profile.model.dtype == "bfloat16":
            yield f"profile {profile.profile}: model.dtype bfloat16 does not run on a T4"
        if not profile.trained:
            yield f"profile {profile.profile} trains nothing; build with one that has sft, grpo, dpo or opd"


def read_notebook(code: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what a notebook's cell with the tag `parameters` sets, and the files that its cells write."""
    again = "make it again with `aimo kernel build`"
    cells = read_json(code, again).get("cells")
    try:
        sources = ["".join(cell["source"]) for cell in cells]
        place = next(i for i, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", []))
        assigned = ast.parse(sources[place]).body
    except (TypeError, AttributeError, KeyError, StopIteration):
        raise AimoError(f"code_file {code.name} has no cell with the tag `parameters`; {again}") from None
    except SyntaxError as e:
        raise AimoError(
            f"code_file {code.name}: its cell of parameters is not plain Python at line {e.lineno}, "
            f"{(e.text or '').strip()!r}; leave only assignments in it"
        ) from None
    heads = (source.partition("\n") for source in sources)
    written = {head.split()[-1]: text for head, _, text in heads if head.startswith("%%writefile ")}
    found: dict[str, Any] = {}

    def constant(node: ast.expr) -> Any:  # from constants, earlier names, and arithmetic
        if isinstance(node, ast.Name) and node.id in found:
            return found[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            return ARITHMETIC[type(node.op)](constant(node.left), constant(node.right))
        return ast.literal_eval(node)

    for node in assigned:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                with contextlib.suppress(ValueError, TypeError, ArithmeticError):
                    found.update({target.id: constant(node.value)} if isinstance(target, ast.Name) else {})
    return found, written
