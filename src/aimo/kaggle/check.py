"""What Kaggle would refuse of a kernel, or what would fail an hour after its push. Nothing is asked of it.

Out of scope: whether names exist, which a push tells (`kernel_runs.push`).
"""

import ast
import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aimo.config import ROOT
from aimo.inference.competitions import COMPETITIONS

KERNELS = ROOT / "kernels"
KEYS = {
    "id",
    "id_no",
    "title",
    "code_file",
    "language",
    "kernel_type",
    "is_private",
    "enable_gpu",
    "enable_tpu",
    "enable_internet",
    "machine_shape",
    "dataset_sources",
    "competition_sources",
    "kernel_sources",
    "model_sources",
    "keywords",
    "docker_image",
    "docker_image_pinning_type",
}
GPUS = {"NvidiaTeslaT4": 2, "NvidiaL4": 4, "NvidiaL4X1": 1, "NvidiaH100": 1, "NvidiaTeslaA100": 1}
"""The GPUs of each machine that vLLM's wheels run on, by Kaggle's name."""
SLUG = r"[a-z0-9]+(?:-[a-z0-9]+)*"
OWNER = r"[a-z0-9]+(?:[_-][a-z0-9]+)*"
FORMS = {
    "dataset_sources": (rf"{OWNER}/{SLUG}", "OWNER/SLUG"),
    "kernel_sources": (rf"{OWNER}/{SLUG}", "OWNER/SLUG"),
    "competition_sources": (SLUG, "SLUG"),
    "model_sources": (
        rf"{OWNER}/{SLUG}/[A-Za-z0-9]+/[A-Za-z0-9.-]+/[1-9][0-9]*",
        "OWNER/MODEL/FRAMEWORK/VARIATION/VERSION",
    ),
}
SESSION_S = {True: 5 * 3600, False: 9 * 3600}
"""The limit of a submission's session, with a GPU and without."""
LARGEST = 1_000_000
"""Bytes of a notebook that Kaggle takes."""


def folder_of(name: str) -> Path:
    """A kernel's folder: a name in kernels/, or a path."""
    return KERNELS / name if (KERNELS / name).is_dir() else Path(name)


def check(name: str) -> list[str]:
    """The faults of a kernel (a name in kernels/, or a folder), each with its remedy."""
    folder = folder_of(name)
    path = folder / "kernel-metadata.json"
    if not path.is_file():
        return [f"there is no {path}; take a folder of {KERNELS.name}/"]
    try:
        metadata = json.loads(path.read_text())
    except ValueError as e:
        return [f"{path} is no JSON ({e})"]
    faults = [*check_names(metadata), *check_sources(metadata), *check_machine(metadata)]
    code = folder / str(metadata.get("code_file", ""))
    if not code.is_file():
        return [*faults, f"code_file {code.name!r} does not exist; make it with `aimo kernel build {name}`"]
    if code.stat().st_size > LARGEST:
        faults.append(f"code_file {code.name} has {code.stat().st_size:,} bytes; Kaggle takes {LARGEST:,}")
    parameters = read_parameters(code)
    if "competition" in parameters:  # it serves one
        faults += check_submission(metadata, parameters)
    return faults


def check_names(metadata: dict[str, Any]) -> Iterator[str]:
    """The rules of keys, id and title."""
    for key in sorted(metadata.keys() - KEYS):
        close = difflib.get_close_matches(key, KEYS, n=1)
        yield f"unknown key {key}" + (f", did you mean {close[0]}?" if close else "")
    for key, value in metadata.items():
        if key.startswith(("enable_", "is_")) and not isinstance(value, bool):
            yield f"{key} should be true or false, not {value!r}"
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


def check_sources(metadata: dict[str, Any]) -> Iterator[str]:
    """The form of what is attached."""
    for key, (pattern, form) in FORMS.items():
        sources = metadata.get(key, [])
        if not isinstance(sources, list):
            yield f"{key} should be a list"
            continue
        for source in sources:
            owner, slash, rest = str(source).partition("/")
            if not re.fullmatch(pattern, owner.lower() + slash + rest):
                yield f"{key}: {source!r} should be {form}"


def check_machine(metadata: dict[str, Any]) -> Iterator[str]:
    """The accelerator."""
    shape = metadata.get("machine_shape")
    if metadata.get("enable_tpu"):
        yield "enable_tpu: vLLM's CUDA wheels do not run on a TPU; set enable_gpu and a machine_shape"
    if shape == "NvidiaTeslaP100":
        yield "machine_shape NvidiaTeslaP100: its first CUDA call fails in Kaggle's image; take NvidiaTeslaT4"
    elif shape and shape not in GPUS:
        yield f"machine_shape {shape!r} is unknown; take one of {', '.join(GPUS)}"
    elif shape and not metadata.get("enable_gpu"):
        yield f"machine_shape {shape} without enable_gpu: set it to true"
    elif metadata.get("enable_gpu") and not shape:
        yield f"enable_gpu without machine_shape may give a P100; take one of {', '.join(GPUS)}"


def check_submission(metadata: dict[str, Any], parameters: dict[str, Any]) -> Iterator[str]:
    """What a kernel needs that serves a competition, with the parameters of its first code cell."""
    gpu, settings = bool(metadata.get("enable_gpu")), parameters.get("settings") or {}
    if metadata.get("enable_internet", True):
        yield "enable_internet should be false: a submission with internet is refused"
    if not gpu:
        yield "enable_gpu should be true: vLLM needs a GPU here"
    competition = COMPETITIONS.get(parameters["competition"])
    if competition is None:
        yield f"competition {parameters['competition']!r} is unknown; take one of {', '.join(COMPETITIONS)}"
    elif competition.slug not in metadata.get("competition_sources", []):
        yield f"competition_sources lack {competition.slug}"
    if not metadata.get("dataset_sources") and not metadata.get("kernel_sources"):
        yield "no wheels are attached: add their dataset to dataset_sources"
    places = [f"/kaggle/input/{source.split('/', 1)[-1]}" for source in metadata.get("model_sources", [])]
    if not places:
        yield "no model is attached: add OWNER/MODEL/FRAMEWORK/VARIATION/VERSION to model_sources"
    elif (model := parameters.get("model")) and not model.startswith(tuple(places)):
        yield f"model {model!r} is not among those attached, {', '.join(places)}"
    if parameters.get("time_limit_s", 0) > SESSION_S[gpu]:
        yield f"time_limit_s {parameters['time_limit_s']} is more than the session's {SESSION_S[gpu]}"
    yield from check_settings(str(metadata.get("machine_shape")), settings.get("vllm") or {})


def check_settings(shape: str, vllm: dict[str, Any]) -> Iterator[str]:
    """vLLM's arguments against the machine."""
    wanted = vllm.get("tensor_parallel_size", 1) * vllm.get("data_parallel_size", 1)
    wanted *= vllm.get("pipeline_parallel_size", 1)
    if shape in GPUS and wanted > GPUS[shape]:
        yield f"settings want {wanted} GPUs (vllm), machine_shape {shape} has {GPUS[shape]}"
    if shape == "NvidiaTeslaT4":
        for key, value in vllm.items():
            if str(value).startswith(("bfloat16", "fp8")):
                yield f"settings: vllm {key} {value} does not run on a T4"


def read_parameters(code: Path) -> dict[str, Any]:
    """The constants that a notebook's cell with the tag `parameters` sets; none for a script."""
    if code.suffix != ".ipynb":
        return {}
    cells = json.loads(code.read_text())["cells"]
    text = "\n".join(
        "".join(cell["source"]) for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", [])
    )
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found
