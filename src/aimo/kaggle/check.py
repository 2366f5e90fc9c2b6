"""What Kaggle would refuse of a kernel, or what would fail an hour after its push. Nothing is asked of it."""

import ast
import contextlib
import difflib
import math
import operator
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from aimo import config
from aimo.config import ROOT, RUNS
from aimo.inference import startup
from aimo.inference.competitions import COMPETITIONS, HOUR_S, Competition, find_competition
from aimo.inference.errors import AimoError
from aimo.inference.settings import list_of_texts, validate_settings
from aimo.inference.storage import read_json
from aimo.kaggle.kernels import FOLDER, KERNELS, Kernel

T = TypeVar("T")
OUTPUT = RUNS / "kaggle"  # where the outputs of versions are downloaded to
PLACEHOLDER = "INSERT_YOUR_KAGGLE_NAME"  # stands for the owner in a metadata file, until a push
# The keys of kernel-metadata.json by the type of their value.
TYPES = {str: "a text", bool: "true or false", list: "a list of texts", int: "a number"}
KEYS = {
    str: "id title code_file language kernel_type machine_shape docker_image docker_image_pinning_type",
    bool: "is_private enable_gpu enable_tpu enable_internet",
    list: "dataset_sources competition_sources kernel_sources model_sources keywords",
    int: "id_no",
}
TYPE_OF = {key: kind for kind, keys in KEYS.items() for key in keys.split()}
# The GPUs of each machine that vLLM's wheels run on, by Kaggle's name.
GPUS = {"NvidiaTeslaT4": 2, "NvidiaL4": 4}
GPUS |= {"NvidiaL4X1": 1, "NvidiaH100": 1, "NvidiaTeslaA100": 1, "NvidiaRtxPro6000": 1}
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
ARITHMETIC: dict[Any, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
LONGEST_S = 12 * HOUR_S  # of a session that submits nothing
LARGEST = 1_000_000  # bytes of a notebook that Kaggle takes


def kernel_folder(name: str) -> Path:
    return FOLDER / name if (FOLDER / name).is_dir() else Path(name)


def check_kernel(name: str) -> list[str]:
    """Return the faults of a kernel (a name in kernels/, or a folder), each with its remedy.

    The name of its code file tells which kernel of the table it is; another is checked for its metadata only.
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
        faults += check_metadata(metadata)
        code = folder / metadata.get("code_file", "")
        if not code.is_file():
            remedy = f"make it with `aimo kernel build {name}`"
            return [*faults, f"code_file {code.name!r} does not exist; {remedy}"]
        if (size := code.stat().st_size) > LARGEST:
            faults.append(f"code_file {code.name} has {size:,} bytes; Kaggle takes {LARGEST:,}")
        if kernel := KERNELS.get(code.stem.removeprefix("aimo-")):
            parameters, written = read_notebook(code)
            name = str(parameters.get("competition"))
            rules, own = COMPETITIONS.get(name), written.get(f"src/aimo/inference/competitions/{name}.yaml")
            if own:
                rules = load_text(own, name, lambda path: find_competition(str(path)))
            faults += [*check_needs(kernel, metadata, parameters, rules), *check_wheels(metadata)]
            faults += check_machine(metadata.get("machine_shape"), parameters, written.get("profile.yaml"))
    except AimoError as e:
        faults.append(str(e))
    return faults


def check_metadata(metadata: dict[str, Any]) -> Iterator[str]:
    owner, _, slug = str(metadata.get("id", "")).lower().rpartition("/")
    title = str(metadata.get("title", ""))
    if not re.fullmatch(OWNER, owner) or not re.fullmatch(SLUG, slug):
        yield f"id {metadata.get('id')!r} should be OWNER/SLUG, of small letters, digits and hyphens"
    if len(slug) < 5:
        yield f"slug {slug!r} of the id has less than five characters"
    if not 5 <= len(title) <= 50:
        yield f"title {title!r} should have 5 to 50 characters"
    elif (made := re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")) != slug:
        yield f"title {title!r} makes the slug {made!r}, not the id's {slug!r}"
    if metadata.get("language") != "python" or metadata.get("kernel_type") not in ("notebook", "script"):
        yield "language should be python, and kernel_type notebook or script"

    for key, (_, form) in FORMS.items():
        for source in metadata.get(key) or []:
            if not is_source(key, source):
                meant = source_of(source, form.count("/") + 1)
                yield f"{key}: {source!r} should be {form}" + (f": {meant}" if is_source(key, meant) else "")

    shape, gpu = metadata.get("machine_shape"), metadata.get("enable_gpu")
    if shape and shape not in GPUS:
        yield f"machine_shape {shape} is retired or unknown; take one of {', '.join(GPUS)}"
    elif shape and not gpu:
        yield f"machine_shape {shape} without enable_gpu: set it to true"
    elif gpu and not shape:
        yield f"enable_gpu without machine_shape gives what Kaggle chooses; take one of {', '.join(GPUS)}"


def is_source(key: str, source: str) -> bool:
    """Return whether a source has its key's form; its owner may be the placeholder, in capitals."""
    owner, slash, rest = source.partition("/")
    return bool(re.fullmatch(FORMS[key][0], owner.lower() + slash + rest))


def source_of(text: str, parts: int) -> str:
    """Return OWNER/SLUG, or as many parts as a source has, of an address of Kaggle's or a prefixed name."""
    path = re.sub(r"^(https?://)?(www\.)?kaggle\.com/", "", text.strip())
    if path == text.strip() and path.split("/")[0] not in PREFIXES:
        return path
    owner, place = startup.place_of(startup.KAGGLE + path) or ("", path)
    return "/".join([*filter(None, [owner]), *place.split("/")][:parts])


def slug_of(competition: str) -> str:
    """Return the slug of aimo1, aimo2 or aimo3, of an address, or the slug itself; AimoError for another."""
    own = competition in COMPETITIONS or competition.endswith((".yaml", ".yml"))
    slug = find_competition(competition).slug if own else source_of(competition, 1)
    if not re.fullmatch(SLUG, slug):
        known = ", ".join(COMPETITIONS)
        raise AimoError(f"competition {competition!r}: write {known} or the slug of its address")
    return slug


def attached(metadata: dict[str, Any], *kinds: str) -> list[str]:
    """Return the sources of some kinds: OWNER/NAME, or a competition's NAME."""
    return [source for kind in kinds for source in metadata.get(f"{kind}_sources") or []]


def is_in(named: tuple[str, str], source: tuple[str, str]) -> bool:
    """Return whether a path lies in what is attached; an owner may be left out, or be the placeholder."""
    owners = {named[0], source[0]} - {"", PLACEHOLDER}
    return len(owners) < 2 and f"{named[1]}/".lower().startswith(f"{source[1]}/".lower())


def load_text(text: str, name: str, load: Callable[[Path], T]) -> T:
    """Return what `load` makes of a text as a YAML file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.yaml")
        path.write_text(text)
        return load(path)


def check_needs(
    kernel: Kernel, metadata: dict[str, Any], parameters: dict[str, Any], competition: Competition | None
) -> Iterator[str]:
    """Yield what a kernel lacks of what the table, its parameters and its competition ask for."""
    internet = metadata.get("enable_internet", True)
    if internet and not kernel.internet:
        yield "enable_internet should be false: a submission with internet is refused"
    if kernel.internet and not internet:
        yield "enable_internet should be true: this kernel downloads what it needs"
    if kernel.gpu and not metadata.get("enable_gpu"):
        yield "enable_gpu should be true: vLLM needs a GPU here"
    if "wheels" in kernel.attaches and not attached(metadata, "kernel", "dataset"):
        yield "no wheels are attached: add the kernel `wheels` to kernel_sources"
    if "model" in kernel.attaches and not attached(metadata, "model"):
        yield "no model is attached: add OWNER/MODEL/FRAMEWORK/VARIATION/VERSION to model_sources"

    # Each path of an input, in either of Kaggle's layouts, lies in something attached.
    inputs = [name.partition("/")[::2] for name in attached(metadata, "model", "dataset", "kernel")]
    inputs += [("", name) for name in attached(metadata, "competition")]
    for key, value in parameters.items():
        for path in value if isinstance(value, list) else [value]:
            named = startup.place_of(path) if isinstance(path, str) else None
            if named and not any(is_in(named, one) for one in inputs):
                places = ", ".join(place for _, place in inputs) or "nothing"
                yield f"{key} {path!r} is not among what is attached, {places}"

    longest, name = LONGEST_S, parameters.get("competition")
    if competition is None and "competition" in parameters:
        known = ", ".join(COMPETITIONS)
        yield f"competition {name!r} is unknown; take one of {known}, or build with --competition FILE.yaml"
    if competition and "competition" in kernel.attaches:
        longest, shape = competition.session_s, metadata.get("machine_shape")
        if competition.slug not in metadata.get("competition_sources", []):
            yield f"competition_sources lack {competition.slug}"
        if shape in GPUS and shape not in (competition.accelerators or GPUS):
            allowed = ", ".join(competition.accelerators)
            yield f"machine_shape {shape} is not allowed in {name}; take one of {allowed}"
    for key in ("time_limit_s", "session_s"):
        seconds = parameters.get(key, 0)
        if not isinstance(seconds, int | float) or not 0 <= seconds <= longest:
            yield f"{key} {seconds!r} is not within the session's {longest:.0f} seconds"


def check_machine(shape: str | None, parameters: dict[str, Any], text: str | None) -> Iterator[str]:
    """Yield the faults of settings and of a notebook's profile, and what its machine cannot run of them."""
    vllm = validate_settings(parameters.get("settings") or {}, "settings", "correct the value").vllm
    wanted = math.prod(vllm.get(f"{way}_parallel_size", 1) for way in ("tensor", "data", "pipeline"))
    if shape in GPUS and wanted > GPUS[shape]:
        yield f"settings want {wanted} GPUs (vllm), machine_shape {shape} has {GPUS[shape]}"
    for key, value in vllm.items():
        if shape == "NvidiaTeslaT4" and str(value).startswith(("bfloat16", "fp8")):
            yield f"settings: vllm {key} {value} does not run on a T4"
    overrides = list_of_texts(parameters.get("overrides") or [])
    if text:
        profile = load_text(text, "profile", lambda path: config.load(path, overrides))
        if shape == "NvidiaTeslaT4" and profile.model.dtype == "bfloat16":
            yield f"profile {profile.profile}: model.dtype bfloat16 does not run on a T4"
        if not profile.trained:
            yield f"profile {profile.profile} trains nothing; build with one that has sft, grpo, dpo or opd"


def check_wheels(metadata: dict[str, Any]) -> Iterator[str]:
    """Yield the imports of aimo.inference that no attached wheel holds, where the wheels' output is here."""
    for source in attached(metadata, "kernel", "dataset"):
        slug = source.rpartition("/")[2]
        manifests = OUTPUT.glob(f"{slug}/[0-9]*/{startup.MANIFEST}") if re.fullmatch(SLUG, slug) else ()
        if newest := max(manifests, key=lambda path: int(path.parent.name), default=None):
            wheels = read_json(newest, "download the output again").get("wheels", [])
            held = {module for wheel in wheels for module in wheel["modules"]}
            needed = startup.imports(ROOT.glob("src/aimo/inference/*.py"))
            if lacking := ", ".join(module for module in needed if module not in held):
                yield f"no wheel of {slug} holds {lacking} ({newest}); run the kernel `wheels` again"


def read_notebook(code: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what a notebook's cell with the tag `parameters` sets, and the files that its cells write.

    AimoError for what is no notebook, one without that cell, and a cell that is not plain Python.
    """
    again = "make it again with `aimo kernel build`"
    cells = read_json(code, again).get("cells")
    try:
        sources = ["".join(cell["source"]) for cell in cells]
        tags = [cell["metadata"].get("tags", []) for cell in cells]
        place = next((i for i, tag in enumerate(tags) if "parameters" in tag), None)
    except (TypeError, AttributeError, KeyError):
        raise AimoError(f"code_file {code.name} is no notebook; {again}") from None
    if place is None:
        raise AimoError(f"code_file {code.name} has no cell with the tag `parameters`; {again}")
    heads = (source.partition("\n") for source in sources)
    written = {head.split()[-1]: text for head, _, text in heads if head.startswith("%%writefile ")}
    try:
        assigned = ast.parse(sources[place]).body
    except SyntaxError as e:
        raise AimoError(
            f"code_file {code.name}: its cell of parameters is not plain Python at line {e.lineno}, "
            f"{(e.text or '').strip()!r}; leave only assignments in it"
        ) from None
    found: dict[str, Any] = {}

    def constant(node: ast.expr) -> Any:  # of constants, of names before it, and of arithmetic
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
