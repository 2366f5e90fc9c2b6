"""The table of Kaggle kernels, and how one is built: a self-contained notebook from a template and sources.

Each kernel is a folder of kernels/: kernel-metadata.json, the template (a py:percent notebook) and beside
it the notebook that is built. In the template, the cell with the tag `package` becomes an archive of what the
kernel ships, and a cell for each file that a competitor reads and changes; `settings = {}` becomes the
settings of a profile, and the cell with the tag `profile` the profile's file.
"""

import ast
import base64
import io
import json
import pprint
import re
import tarfile
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import yaml

from aimo import config
from aimo.config import ROOT
from aimo.config.reading import meanings
from aimo.inference.competitions import COMPETITIONS, Competition, find_competition, name_of
from aimo.inference.errors import AimoError
from aimo.inference.settings import Settings
from aimo.inference.storage import read_json, write_json

FOLDER = ROOT / "kernels"
SPENT = 29 / 30  # of a session, in which its questions are answered


@dataclass(frozen=True)
class Kernel:
    """What a kernel ships, and what its metadata must have."""

    files: tuple[str, ...]  # globs of the repository's files that it ships beside the modules it imports
    internet: bool
    gpu: bool
    attaches: tuple[str, ...]  # model, wheels, competition
    shown: str = ""  # a pattern of those that have a cell each; all others are one archive
    profile: str | None = None  # whose file the cell with the tag `profile` holds, if no other is given


# Modules read these as they load.
DATA = ("src/aimo/config/aliases.yaml", "src/aimo/data/*.yaml", "src/aimo/report/page.jinja")
ROAD = (*DATA, "notebooks/0[0-3]*.ipynb", "notebooks/profiles/*.jinja")
ANSWERING = "submission", "evaluate"  # the kernels that answer a competition
READABLE = (  # what decides an answer
    r"src/aimo/inference/(competitions/.+\.yaml"
    r"|(settings|prompts|answers|sampling|sample|voting|solver|proofs|gateway)\.py)"
)
KERNELS = {
    "probe": Kernel((), internet=False, gpu=True, attaches=()),
    "wheels": Kernel(("requirements.txt",), internet=True, gpu=False, attaches=(), shown=".+txt"),
    "train": Kernel(ROAD, internet=True, gpu=True, attaches=("wheels",), profile="kaggle-h100"),
    "submission": Kernel(
        (), internet=False, gpu=True, attaches=("model", "wheels", "competition"), shown=READABLE
    ),
    "evaluate": Kernel(DATA, internet=False, gpu=True, attaches=("model", "wheels"), shown=READABLE),
}
FOLDED = {  # the metadata of a cell that Kaggle and Jupyter show folded
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


def build_kernel(
    name: str, out: Path | None = None, profile: str | None = None, competition: str | None = None
) -> Path:
    """Write the notebook of the kernel `name` to its folder, or to `out`, and return its path.

    The `inference` section of a `profile` stands in its settings, or the whole of it. A `competition`, a name
    or a YAML file, is the one that it answers, else that of the profile; it ships the file, and `out` gets
    metadata with its slug and machine where it has none. The same sources give the same bytes.
    AimoError for a profile or a competition that the kernel has no use for.
    """
    if name not in KERNELS:
        raise AimoError(f"kernel {name!r} does not exist: use one of {', '.join(KERNELS)}")
    if name not in (fitting := kernels_of(profile, competition)):
        what = f"competition {competition}" if competition else f"profile {profile}"
        raise AimoError(f"kernel {name} has no use for {what}; it goes into {', '.join(fitting)}")
    template, kernel = template_of(name), KERNELS[name]
    path = (out or template.parent) / f"{template.stem}.ipynb"
    if not path.parent.is_dir():
        raise AimoError(f"--out {out}: no such folder; make it first")
    rules, known = None, ""
    given = competition or (config.load(profile).rules if profile and name in ANSWERING else None)
    if given:
        rules, known = find_competition(given, asks=True), name_of(given)
        if known in COMPETITIONS and COMPETITIONS[known] != rules:
            raise AimoError(f"competition {competition}: the package has one named {known}; rename the file")
    settings = describe_settings(config.load(profile).inference.written if profile else {})
    code, cells = nbformat.v4.new_code_cell, []
    for cell in jupytext.reads(template.read_text(), "py:percent").cells:
        tags = cell.metadata.get("tags", [])
        if "package" in tags:
            names = rules.answer.modules if rules else ()
            apart = [ROOT / f"src/aimo/inference/{module}.py" for module in names]
            files = {str(file.relative_to(ROOT)): file.read_text() for file in [*apart, *shipped(name)]}
            if rules and known not in COMPETITIONS:
                path_of = f"src/aimo/inference/competitions/{known}.yaml"
                as_file = yaml.safe_dump(json.loads(json.dumps(asdict(rules))), sort_keys=False)
                text = Path(competition).read_text("utf-8-sig") if competition else str(as_file)
                files = {path_of: text} | files
            shown = [file for file in files if re.fullmatch(kernel.shown, file)]
            cells.append(code(unpack_cell(files, shown), metadata=FOLDED))
            for file in shown:
                cells.append(code(f"%%writefile {file}\n{files[file].rstrip()}", metadata=FOLDED))
            continue
        if "profile" in tags:
            used, text = profile or kernel.profile, ""
            if used:
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
    if rules and out and "competition" in kernel.attaches:
        write_metadata(path, template.parent, rules, known)
    return path


def write_metadata(notebook: Path, template: Path, rules: Competition, known: str) -> None:
    """Write the metadata of a kernel that answers another competition beside its notebook, if it has none."""
    path = notebook.with_name("kernel-metadata.json")
    if path.exists():
        return
    metadata = read_json(template / path.name, "restore the file")
    owner, named = str(metadata["id"]).partition("/")[0], f"aimo-{re.sub('[^a-z0-9]+', '-', known.lower())}"
    metadata |= {"id": f"{owner}/{named}", "title": named, "competition_sources": [rules.slug]}
    if rules.accelerators and metadata["machine_shape"] not in rules.accelerators:
        metadata["machine_shape"] = rules.accelerators[0]
    write_json(path, metadata)


def unpack_cell(files: dict[str, str], shown: list[str]) -> str:
    """Return the code that writes files, texts by path; those that are shown empty, for their own cells.

    The archive is of bzip2, whose releases all write the same bytes.
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


def template_of(name: str) -> Path:
    path = FOLDER / name / "kernel-metadata.json"
    code = read_json(path, "restore the file").get("code_file")
    template = (path.parent / str(code)).with_suffix(".py")
    if not template.is_file():
        raise AimoError(f"{path}: its code_file {code!r} has no template {template.name} beside it")
    return template


def kernels_of(profile: str | None, competition: str | None = None) -> list[str]:
    """Return the kernels that have a place for a profile's settings, and answer a competition.

    A profile that trains nothing has no place in `train`, proofs, which nothing scores, none in `evaluate`.
    """
    found, rules = list(KERNELS), find_competition(competition) if competition else None
    if profile:
        loaded = config.load(profile)
        places = ["settings = {}", *(['tags=["profile"]'] if loaded.trained else [])]
        found = [name for name in found if any(one in template_of(name).read_text() for one in places)]
        rules = rules or loaded.rules
    if competition:
        found = [name for name in found if name in ANSWERING]
    return [name for name in found if not (name == "evaluate" and rules and rules.scoring == "marks")]


def shipped(name: str) -> list[Path]:
    """Return the files that a kernel ships: its own, and the modules that its template and these import.

    Each stands after the modules that it imports, but for circles.
    """
    entered: set[Path] = set()
    found: list[Path] = []

    def enter(path: Path) -> None:
        if path not in entered:
            entered.add(path)
            for module in imported(path):
                enter(module)
            found.extend(sorted(path.with_suffix("").glob("*.yaml")))  # its data, which it reads as it loads
            found.append(path)

    enter(template_of(name))
    for pattern in KERNELS[name].files:
        for path in sorted(ROOT.glob(pattern)):
            enter(path)
    return [path for path in found if path != template_of(name)]


def imported(path: Path) -> list[Path]:
    """Return the modules of `aimo` that a file of Python or a notebook imports, anywhere in it."""
    code = path.with_suffix(".py")  # a notebook's pair
    names: set[str] = set()
    for node in ast.walk(ast.parse(code.read_text() if code.is_file() else "")):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = [name.split(".") for name in names]
    names |= {".".join(one[:i]) for one in parts for i in range(1, len(one))}  # packages come with modules
    folders = [
        ROOT.joinpath("src", *name.split(".")) for name in sorted(names) if name.split(".")[0] == "aimo"
    ]
    places = [place for folder in folders for place in (folder / "__init__.py", folder.with_suffix(".py"))]
    return [place for place in places if place.is_file()]


def describe_settings(written: dict[str, Any]) -> str:
    """Return the entries of the settings as Python, each below a comment that says what it is.

    Keys that are not written are comments with their defaults.
    """
    lines: list[str] = []
    defaults = asdict(Settings())
    for key, meaning in meanings(Settings).items():
        value = pprint.pformat(written.get(key, defaults[key]), width=96, sort_dicts=False)
        entry = f'"{key}": {value},'
        lines += textwrap.wrap(meaning, 104, initial_indent="# ", subsequent_indent="# ")
        lines += entry.splitlines() if key in written else [f"# {line}" for line in entry.splitlines()]
    return "".join(f"    {line}\n" for line in lines)
