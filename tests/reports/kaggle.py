"""Public reports of the area: kaggle."""

import json
from pathlib import Path

import jupytext
from test_kaggle_check import kernel_with

from aimo.inference import startup
from aimo.kaggle.kernels import FOLDER, check_kernel, source_of


def D01(case):
    source, names = case["input"].split("--model ")[1], {}
    template = jupytext.read(FOLDER / "submission" / "aimo-submission.py")
    exec(next(c.source for c in template.cells if "parameters" in c.metadata.get("tags", [])), {}, names)
    owner, model = source.split("/", 1)
    slug = Path(names["test_csv"]).parent.name
    for folders in (model, slug), (f"models/{owner}/{model}", f"competitions/{slug}"):
        inputs = Path.cwd() / folders[0].replace("/", "-")
        for folder in folders:
            (inputs / folder).mkdir(parents=True)
        (inputs / folders[1] / "test.csv").touch()
        found = startup.find_input([names["model"], names["test_csv"], None, source], inputs)
        there = str(inputs / folders[0])
        assert found == [there, str(inputs / folders[1] / "test.csv"), None, there]


def sign_in(token, aimo, monkeypatch):
    """Sign in with a token; the line of a refusal, which never holds it."""
    monkeypatch.setenv("KAGGLE_API_TOKEN", token)
    code, out, err = aimo("login-check")
    assert token[:20] not in out + err and "Traceback" not in err
    return code, err


def D03(case, kaggle, aimo, monkeypatch):
    token = "eyJ" + "a" * 897
    monkeypatch.setattr("stand_in.TOKENS", (f"Bearer {token}",))
    kaggle.IntrospectToken = lambda asked: {"active": asked.token == token, "username": "me"}
    assert sign_in(token, aimo, monkeypatch) == (0, "")
    code, err = sign_in(token[::-1], aimo, monkeypatch)
    assert code == 2 and "Kaggle does not accept the token in KAGGLE_API_TOKEN" in err


def D02v(case, kaggle, aimo, monkeypatch):
    code, err = sign_in("KGAT_“0123456789abcdef0123", aimo, monkeypatch)
    assert code == 2 and err.count("\n") == 1 and "a character that no token has" in err
    assert kaggle.requests == []


def faults_of(*changed, **more):
    return check_kernel(kernel_with(Path.cwd(), *changed, **more))


def D05(case):
    (address,) = json.loads(case["input"].partition(": ")[2])
    (fault,) = faults_of({"dataset_sources": [address]})
    assert "should be OWNER/SLUG" in fault and "me/my-problems" in fault
    assert source_of(address, 2) == "me/my-problems"


def D06v(case):
    (fault,) = faults_of(tag="other")
    assert "has no cell with the tag `parameters`" in fault


def D07(case):
    parameters = "\n".join(part.strip() for part in case["input"].split(";"))
    faults = faults_of(parameters=parameters)
    assert len(faults) == 2
    assert "model '/kaggle/input/other-model" in faults[0] and "time_limit_s 99999" in faults[1]


def D08(case):
    magic = case["input"].removesuffix(" in the cell")
    (fault,) = faults_of(parameters=f"seed = 0\n{magic}")
    assert magic in fault and "line 2" in fault and "\n" not in fault
