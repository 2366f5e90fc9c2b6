"""Public reports of the area: kaggle."""

import importlib
import json
from pathlib import Path

import jupytext
from test_kaggle_check import kernel_with

from aimo.inference import startup
from aimo.kaggle.kernels import FOLDER, check_kernel, source_of


def D01(case, request):
    """The parameters of the kernel `submission` are found in either layout."""
    source, names = case["input"].split("--model ")[1], {}
    template = jupytext.read(FOLDER / "submission" / "aimo-submission.py")
    exec(next(c.source for c in template.cells if "parameters" in c.metadata.get("tags", [])), {}, names)
    owner, model = source.split("/", 1)
    slug = Path(names["test_csv"]).parent.name
    for folders in (model, slug), (f"models/{owner}/{model}", f"competitions/{slug}"):
        inputs = request.getfixturevalue("tmp_path") / folders[0].replace("/", "-")
        for folder in folders:
            (inputs / folder).mkdir(parents=True)
        (inputs / folders[1] / "test.csv").touch()
        found = startup.find_input([names["model"], names["test_csv"], None, source], inputs)
        there = str(inputs / folders[0])
        assert found == [there, str(inputs / folders[1] / "test.csv"), None, there]


def token_of(case, request, token):
    """Sign in with a token; the line of a refusal, which never holds it."""
    request.getfixturevalue("monkeypatch").setenv("KAGGLE_API_TOKEN", token)
    code, out, err = request.getfixturevalue("aimo")("login-check")
    assert token not in out + err and token[:20] not in out + err and "Traceback" not in err
    return code, err


def D03(case, request):
    kaggle = request.getfixturevalue("kaggle")
    stand_in = importlib.import_module("stand_in")
    token = "eyJ" + "a" * 897
    request.getfixturevalue("monkeypatch").setattr(stand_in, "TOKENS", (f"Bearer {token}",))
    kaggle.IntrospectToken = lambda asked: {"active": asked.token == token, "username": "me"}
    assert token_of(case, request, token) == (0, "")
    code, err = token_of(case, request, token[::-1])
    assert code == 2 and "Kaggle does not accept the token in KAGGLE_API_TOKEN" in err


def D02v(case, request):
    kaggle = request.getfixturevalue("kaggle")
    code, err = token_of(case, request, "KGAT_“0123456789abcdef0123")
    assert code == 2 and err.count("\n") == 1 and "a character that no token has" in err
    assert kaggle.requests == []


def faults_of(request, *changed, **more):
    return check_kernel(kernel_with(request.getfixturevalue("tmp_path"), *changed, **more))


def D05(case, request):
    (address,) = json.loads(case["input"].partition(": ")[2])
    (fault,) = faults_of(request, {"dataset_sources": [address]})
    assert "should be OWNER/SLUG" in fault and "me/my-problems" in fault
    assert source_of(address, 2) == "me/my-problems"


def D06v(case, request):
    (fault,) = faults_of(request, tag="other")
    assert "has no cell with the tag `parameters`" in fault


def D07(case, request):
    parameters = "\n".join(part.strip() for part in case["input"].split(";"))
    faults = faults_of(request, parameters=parameters)
    assert len(faults) == 2
    assert "model '/kaggle/input/other-model" in faults[0] and "time_limit_s 99999" in faults[1]


def D08(case, request):
    magic = case["input"].removesuffix(" in the cell")
    (fault,) = faults_of(request, parameters=f"seed = 0\n{magic}")
    assert magic in fault and "line 2" in fault and "\n" not in fault
