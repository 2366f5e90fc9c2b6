"""`aimo kernel check`: what Kaggle would refuse of a kernel, or what would fail an hour after its push."""

import functools
import json

import pytest
from conftest import ROOT, refused

from aimo import config
from aimo.kaggle import check as check_module
from aimo.kaggle.check import check_kernel as check
from aimo.kaggle.kernels import FOLDER, KERNELS

MODEL = "/kaggle/input/aimo-model/transformers/default/1"
PARAMETERS = f"""\
competition = "aimo3"
model = "{MODEL}"
time_limit_s = 17400
settings = {{"vllm": {{}}}}
"""
H100, T4 = {"machine_shape": "NvidiaH100"}, {"machine_shape": "NvidiaTeslaT4"}


def kernel_with(folder, metadata=None, parameters=PARAMETERS, name="submission", tag="parameters"):
    """Write a kernel like one of ours with other metadata and parameters; returns its folder."""
    asked = json.loads((FOLDER / name / "kernel-metadata.json").read_text()) | (metadata or {})
    texts = {tag: parameters}
    if name == "train":
        texts |= {"profile": f"%%writefile profile.yaml\n{config.find('tiny').read_text()}"}
    cells = [{"cell_type": "code", "metadata": {"tags": [k]}, "source": text} for k, text in texts.items()]
    (folder / "kernel-metadata.json").write_text(json.dumps(asked))
    (folder / f"aimo-{name}.ipynb").write_text(json.dumps({"cells": cells}))
    return str(folder)


@pytest.fixture
def kernel(tmp_path):
    return functools.partial(kernel_with, tmp_path)


def with_vllm(arguments):
    return PARAMETERS.replace('"vllm": {}', f'"vllm": {arguments}')


@pytest.mark.parametrize("name", KERNELS)
def test_each_kernel_has_no_fault(name):
    assert check(name) == []


def test_other_machines_and_other_kernels_have_no_fault(kernel):
    assert check(kernel()) == []
    assert check(kernel({"code_file": "kernel-metadata.json", "enable_internet": True})) == []  # not of ours
    assert check(kernel({"machine_shape": "NvidiaL4"}, with_vllm({"tensor_parallel_size": 4}))) == []


@pytest.mark.parametrize(
    "metadata, told",
    [
        ({"id": "me/aimo"}, "slug 'aimo' of the id has less than five characters"),
        ({"id": "me/AIMO_submission"}, "should be OWNER/SLUG"),
        ({"title": "AIMO"}, "title 'AIMO' should have 5 to 50 characters"),
        ({"title": "AIMO 3 submission"}, "the slug 'aimo-3-submission', not the id's 'aimo-submission'"),
        ({"machine_shapes": "NvidiaH100"}, "unknown key machine_shapes, did you mean machine_shape?"),
        ({"language": "r"}, "language should be python"),
        ({"code_file": "other.ipynb"}, "code_file 'other.ipynb' does not exist"),
        ({"enable_gpu": "true"}, "enable_gpu should be true or false, not 'true'"),
        ({"enable_internet": True}, "enable_internet should be false"),
        ({"enable_gpu": False}, "machine_shape NvidiaH100 without enable_gpu"),
        ({"machine_shape": None}, "enable_gpu without machine_shape"),
        ({"machine_shape": "NvidiaTeslaP100"}, "P100 is retired or unknown; take one of NvidiaTeslaT4"),
        ({"kernel_sources": []}, "no wheels are attached"),
        ({"dataset_sources": ["aimo-wheels"]}, "dataset_sources: 'aimo-wheels' should be OWNER/SLUG"),
        ({"dataset_sources": "me/wheels"}, "dataset_sources should be a list"),
        ({"dataset_sources": [5]}, "dataset_sources should be a list of texts, not [5]"),
        ({"code_file": 5, "title": {}}, "code_file should be a text, not 5"),
        ({"id_no": "5"}, "id_no should be a number, not '5'"),
        ({"kernel_sources": ["https://kaggle.com/code/me/wheels/edit"]}, "be OWNER/SLUG: me/wheels"),
        ({"kernel_sources": ["code/me/wheels"]}, "should be OWNER/SLUG: me/wheels"),
        ({"competition_sources": ["c/aimo-3"]}, "should be SLUG: aimo-3"),
        ({"kernel_sources": ["me/", "/", "", "me/[a", "../..", "a/b/c"]}, "kernel_sources: 'me/' should be"),
        ({"competition_sources": []}, "competition_sources lack ai-mathematical-olympiad-progress-prize-3"),
        ({"model_sources": []}, "no model is attached"),
        ({"model_sources": ["me/aimo-model/transformers/default"]}, "be OWNER/MODEL/FRAMEWORK/VARIATION/V"),
        ({"model_sources": ["me/other/transformers/default/1"]}, "default/1' is not among what is attached"),
    ],
)
def test_what_is_wrong_with_the_metadata_is_named(kernel, metadata, told):
    faults = check(kernel(metadata))
    assert any(told in fault for fault in faults), faults


@pytest.mark.parametrize(
    "shape, vllm, told",
    [
        (T4, {"tensor_parallel_size": 4}, "want 4 GPUs (vllm), machine_shape NvidiaTeslaT4"),
        (H100, {"data_parallel_size": 2}, "want 2 GPUs (vllm), machine_shape NvidiaH100 has 1"),
        (T4, {"kv_cache_dtype": "fp8"}, "vllm kv_cache_dtype fp8 does not run on a T4"),
        (T4, {"dtype": "bfloat16"}, "vllm dtype bfloat16 does not run on a T4"),
        (H100, {"tensor_parallel_size": "2"}, "tensor_parallel_size should be a number, not '2'"),
    ],
)
def test_settings_that_the_machine_cannot_run_are_named(kernel, shape, vllm, told):
    (fault,) = check(kernel(shape, with_vllm(vllm)))
    assert told in fault


@pytest.mark.parametrize(
    "old, new, told",
    [
        ('"aimo3"', '"aimo9"', "competition 'aimo9' is unknown"),
        ("17400", '"5 h"', "time_limit_s '5 h' is not within the session's 18000 seconds"),
        ('"vllm"', '"temprature"', "settings: temprature: unknown key, did you mean temperature?"),
        ("{}", "{}, 'top_p': 2.0", "settings: top_p: "),
        ("time_", "test_csv = '/kaggle/input/other/t.csv'\ntime_", "other/t.csv' is not among what is"),
        ("{}}", "[]}\nsettings = 5", "settings: "),
        ("{}", "{}, 'stop': {'a'}", "settings: Object of type set"),
        ("17400", "6 * 3600 - 60", "time_limit_s 21540 is not within"),
        ("17400", "20000", "time_limit_s 20000 is not within the session's 18000 seconds"),
        *((PARAMETERS, magic, "its cell of parameters is not plain Python") for magic in
          ("%env X=1", "!pip install x", "%%time\nseed = 0", "seed = = 1", "seed = (", "a\0b")),
    ],
)  # fmt: skip
def test_parameters_outside_the_competition_s_rules_are_named(kernel, old, new, told):
    (fault,) = check(kernel(parameters=PARAMETERS.replace(old, new)))
    assert told in fault and "\n" not in fault


@pytest.mark.parametrize(
    "name, metadata, parameters, told",
    [
        ("wheels", {"enable_internet": False}, "", "enable_internet should be true: this kernel downloads"),
        ("train", {"enable_internet": False}, "", "enable_internet should be true: this kernel downloads"),
        ("train", {"kernel_sources": []}, "", "no wheels are attached: add the kernel `wheels`"),
        ("train", {}, "session_s = 50000", "session_s 50000 is not within the session's 43200 seconds"),
        ("train", {}, "overrides = ['sft.epoch=2']", "sft.epoch: unknown key, did you mean sft.epochs?"),
        ("train", T4, "overrides = ['model.dtype=bfloat16']", "model.dtype bfloat16 does not run on a T4"),
        ("train", {}, "overrides = ['sft=null', 'grpo=null']", "trains nothing; build with one that has sft"),
        ("evaluate", {"enable_internet": True}, "", "enable_internet should be false"),
        ("evaluate", {"model_sources": []}, "", "no model is attached"),
        ("evaluate", {}, "files = ['/kaggle/input/amc/t.csv']", "files '/kaggle/input/amc/t.csv' is not"),
    ],
)
def test_each_kernel_s_own_needs_are_checked(kernel, name, metadata, parameters, told):
    (fault,) = check(kernel(metadata, parameters, name))
    assert told in fault


def test_an_accelerator_that_the_competition_does_not_give_is_named_and_the_command_tells_all(kernel):
    slug = {"competition_sources": ["ai-mathematical-olympiad-prize"]}
    (fault,) = check(kernel(slug, PARAMETERS.replace("aimo3", "aimo1")))
    assert "machine_shape NvidiaH100 is not allowed in aimo1; take one of NvidiaTeslaT4" in fault
    faulty = kernel({"title": "AIMO", "enable_internet": True})
    refused("kernel", "check", faulty, told=["5 to 50 characters", "enable_internet"])


@pytest.mark.parametrize(
    "model",
    [
        "/kaggle/input/models/me/aimo-model/transformers/default/1",
        "/kaggle/input/aimo-model/Transformers/default/1",
        "https://www.kaggle.com/models/me/aimo-model/transformers/default/1",
        "me/aimo-model/transformers/default/1",
    ],
)
def test_an_attached_model_is_known_in_each_way_to_name_it(kernel, model):
    sources = {"model_sources": ["me/aimo-model/transformers/default/1"]}
    parameters = PARAMETERS.replace(MODEL, model)
    assert check(kernel(sources, parameters)) == []
    (fault,) = check(kernel(sources, parameters.replace("aimo-model", "aimo-models")))
    assert "is not among what is attached" in fault


@pytest.mark.parametrize(
    "written",
    [
        'ROOT = "/kaggle/input"\nmodel = ROOT + "/other/1"',
        'model: "Path | str" = "/kaggle/input/other/1"',
        'model = adapter = "/kaggle/input/other/1"',
        'files = ["/kaggle/input/other/1"]',
    ],
)
def test_a_parameter_is_read_however_it_is_written(kernel, written):
    faults = check(kernel(parameters=f"{PARAMETERS}{written}\nlimit: float\nx = y = object()\nz = 1 / 0"))
    told = "'/kaggle/input/other/1' is not among what is attached"
    assert faults and all(told in fault for fault in faults)


CELLS = [5, {}, [5], [{}], [{"metadata": 5}], [{"metadata": {"tags": ["parameters"]}}]]
BROKEN = ["", "{", "[]", "5", '{"a": ' * 5000, "null"]


@pytest.mark.parametrize(
    "name, text",
    [(name, text) for name in ("kernel-metadata.json", "aimo-submission.ipynb") for text in BROKEN]
    + [("aimo-submission.ipynb", json.dumps(text)) for text in ({}, *({"cells": cells} for cells in CELLS))],
)
def test_a_broken_file_is_one_line(kernel, tmp_path, name, text):
    folder = kernel()
    (tmp_path / name).write_text(text)
    (fault,) = check(folder)
    assert name in fault and "\n" not in fault


def test_a_large_notebook_is_named(kernel):
    faults = check(kernel(parameters=PARAMETERS + f"text = {'a' * 1_000_000!r}\n"))
    assert any("Kaggle takes 1,000,000" in fault for fault in faults)


def test_wheels_that_do_not_cover_the_imports_are_named(kernel, tmp_path, monkeypatch):
    """Those of the newest output of theirs that was downloaded."""
    monkeypatch.setattr(check_module, "OUTPUT", tmp_path)
    needed = check_module.startup.imports((ROOT / "src" / "aimo" / "inference").glob("*.py"))
    left = [module for module in needed if module not in ("math_verify", "vllm")]
    for version, modules in ("9", needed), ("10", [*left, "other"]):
        manifest = tmp_path / "aimo-wheels" / version / "wheels.json"
        manifest.parent.mkdir(parents=True)
        manifest.write_text(json.dumps({"wheels": [{"modules": [module]} for module in modules]}))
        faults = check(kernel())
        assert faults == [] or version == "10"
    (fault,) = faults
    assert f"no wheel of aimo-wheels holds math_verify, vllm ({manifest}); run the kernel" in fault
