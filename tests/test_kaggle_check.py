"""`aimo kernel check`: what Kaggle would refuse of a kernel, or what would fail an hour after its push."""

import functools
import json

import pytest
from conftest import ROOT, refused

from aimo import config
from aimo.kaggle import kernels
from aimo.kaggle.kernels import FOLDER, KERNELS, check_kernel

PARAMETERS = """\
competition = "aimo3"
model = "/kaggle/input/aimo-model/transformers/default/1"
time_limit_s = 17400
settings = {"vllm": {}}
"""
AIMO1 = {"competition_sources": ["ai-mathematical-olympiad-prize"]}
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


def test_each_kernel_and_other_machines_have_no_fault(kernel):
    assert not any(check_kernel(name) for name in KERNELS)
    assert (
        check_kernel(kernel({"code_file": "kernel-metadata.json", "enable_internet": True})) == []
    )  # not ours
    four = PARAMETERS.replace("{}", '{"tensor_parallel_size": 4}')
    assert check_kernel(kernel({"machine_shape": "NvidiaL4"}, four)) == []


@pytest.mark.parametrize(
    "metadata, told",
    [
        ({"id": "me/aimo"}, "should be OWNER/SLUG"),
        ({"title": "AIMO"}, "5 to 50 characters"),
        ({"title": "AIMO 3 submission"}, "the slug 'aimo-3-submission', not the id's 'aimo-submission'"),
        ({"machine_shapes": "NvidiaH100"}, "unknown key machine_shapes, did you mean machine_shape?"),
        ({"code_file": "other.ipynb"}, "code_file 'other.ipynb' does not exist"),
        ({"enable_gpu": "true"}, "enable_gpu should be true or false, not 'true'"),
        ({"enable_internet": True}, "enable_internet should be false"),
        ({"enable_gpu": False}, "enable_gpu should be true"),
        ({"machine_shape": None}, "enable_gpu without machine_shape"),
        ({"machine_shape": "NvidiaTeslaP100"}, "P100 is retired or unknown; take one of NvidiaTeslaT4"),
        ({"kernel_sources": []}, "no wheels are attached"),
        ({"dataset_sources": [5]}, "dataset_sources should be a list of texts, not [5]"),
        ({"kernel_sources": ["https://kaggle.com/code/me/wheels/edit"]}, "be OWNER/SLUG: me/wheels"),
        ({"competition_sources": ["c/aimo-3"]}, "should be SLUG: aimo-3"),
        ({"kernel_sources": ["me/", "/", "", "me/[a", "../..", "a/b/c"]}, "kernel_sources: 'me/' should be"),
        ({"competition_sources": []}, "competition_sources lack ai-mathematical-olympiad-progress-prize-3"),
        ({"model_sources": []}, "no model is attached"),
        ({"model_sources": ["me/aimo-model/transformers/default"]}, "be OWNER/MODEL/FRAMEWORK/VARIATION/V"),
    ],
)
def test_what_is_wrong_with_the_metadata_is_named(kernel, metadata, told):
    refused("kernel", "check", kernel(metadata), told=[told])


@pytest.mark.parametrize(
    "metadata, old, new, told",
    [
        (T4, "{}", "{'tensor_parallel_size': 4}", "want 4 GPUs (vllm), machine_shape NvidiaTeslaT4"),
        (H100, "{}", "{'data_parallel_size': 2}", "want 2 GPUs (vllm), machine_shape NvidiaH100 has 1"),
        (T4, "{}", "{'kv_cache_dtype': 'fp8'}", "vllm kv_cache_dtype fp8 does not run on a T4"),
        (AIMO1, '"aimo3"', '"aimo1"', "NvidiaH100 is not allowed in aimo1; take one of NvidiaTeslaT4"),
        ({}, '"aimo3"', '"aimo9"', "competition 'aimo9' is unknown"),
        ({}, "17400", '"5 h"', "time_limit_s '5 h' is not within the session's 18000 seconds"),
        ({}, "17400", "6 * 3600 - 60", "time_limit_s 21540 is not within"),
        ({}, '"vllm"', '"temprature"', "settings: temprature: unknown key, did you mean temperature?"),
        ({}, "{}", "{}, 'stop': {'a'}", "settings: Object of type set"),
        ({}, "time_", "test_csv = '/kaggle/input/other/t.csv'\ntime_", "other/t.csv' is not among what is"),
        ({}, "17400", "17400\n!pip install x", "line 4"),
        ({}, "17400", "17400\nseed = (", "not plain Python"),
        ({}, "17400", f"17400 # {'a' * 1_000_000}", "Kaggle takes 1,000,000"),
    ],
)
def test_parameters_that_cannot_be_met_are_named(kernel, metadata, old, new, told):
    (fault,) = check_kernel(kernel(metadata, PARAMETERS.replace(old, new)))
    assert told in fault and "\n" not in fault


@pytest.mark.parametrize(
    "name, metadata, parameters, told",
    [
        ("wheels", {"enable_internet": False}, "", "enable_internet should be true"),
        ("train", {"kernel_sources": []}, "", "no wheels are attached: add the kernel `wheels`"),
        ("train", {}, "session_s = 50000", "session_s 50000 is not within the session's 43200 seconds"),
        ("train", {}, "overrides = ['sft.epoch=2']", "sft.epoch: unknown key, did you mean sft.epochs?"),
        ("train", T4, "overrides = ['model.dtype=bfloat16']", "model.dtype bfloat16 does not run on a T4"),
        ("train", {}, "overrides = ['sft=null', 'grpo=null']", "trains nothing"),
        # However a parameter is written:
        ("evaluate", {}, "files = ['/kaggle/input/amc/t.csv']", "files '/kaggle/input/amc/t.csv' is not"),
        ("evaluate", {}, 'IN = "/kaggle/input"\nfile = IN + "/amc"', "file '/kaggle/input/amc' is not among"),
        ("evaluate", {}, 'file: "Path | str" = "/kaggle/input/amc"', "file '/kaggle/input/amc' is not among"),
        (
            "evaluate",
            {},
            'x = file = object()\nz: int\nfile = "/kaggle/input/amc"',
            "file '/kaggle/input/amc'",
        ),
    ],
)
def test_each_kernel_s_own_needs_are_checked(kernel, name, metadata, parameters, told):
    (fault,) = check_kernel(kernel(metadata, parameters, name))
    assert told in fault


@pytest.mark.parametrize(
    "place", ["/kaggle/input/models/me/", "/kaggle/input/", "https://www.kaggle.com/models/me/"]
)
def test_an_attached_model_is_known_in_each_way_to_name_it(kernel, place):
    sources = {"model_sources": ["me/aimo-model/transformers/default/1"]}
    parameters = PARAMETERS.replace("/kaggle/input/", place)
    assert check_kernel(kernel(sources, parameters)) == []
    (fault,) = check_kernel(kernel(sources, parameters.replace("aimo-model", "aimo-models")))
    assert "is not among what is attached" in fault


@pytest.mark.parametrize("name", ["kernel-metadata.json", "aimo-submission.ipynb"])
@pytest.mark.parametrize(
    "text", ["{", "[]", '{"a": ' * 5000, '{"cells": [5]}', '{"cells": [{"metadata": 5}]}']
)
def test_a_broken_file_is_one_line(kernel, tmp_path, name, text):
    folder = kernel()
    (tmp_path / name).write_text(text)
    (fault,) = check_kernel(folder)
    assert (name in fault or "unknown key cells" in fault) and "\n" not in fault


def test_wheels_that_do_not_cover_the_imports_are_named(kernel, tmp_path, monkeypatch):
    """Those of the newest output of theirs that was downloaded."""
    monkeypatch.setattr(kernels, "OUTPUT", tmp_path)
    needed = kernels.startup.imports((ROOT / "src" / "aimo" / "inference").glob("*.py"))
    left = [module for module in needed if module not in ("math_verify", "vllm")]
    for version, modules in ("9", needed), ("10", [*left, "other"]):
        manifest = tmp_path / "aimo-wheels" / version / "wheels.json"
        manifest.parent.mkdir(parents=True)
        manifest.write_text(json.dumps({"wheels": [{"modules": [module]} for module in modules]}))
        faults = check_kernel(kernel())
        assert faults == [] or version == "10"
    (fault,) = faults
    assert f"no wheel of aimo-wheels holds math_verify, vllm ({manifest}); run the kernel" in fault
