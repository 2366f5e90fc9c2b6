"""Inputs from public reports, each handled as its report says is right.

`reports/AREA.py` has one function for each case, named by its id. It gets the case and the fixtures that it
names, in an empty folder, and asserts.
"""

import importlib
import inspect
import json

import pytest
from conftest import ROOT

pytest_plugins = ["stand_in"]
CASES = ROOT.parent / "shared" / "data" / "cases" / "public_reports.jsonl"
cases = [json.loads(line) for line in CASES.read_text().split("\n") if line] if CASES.exists() else []


@pytest.mark.parametrize("case", cases, ids=[f"{case['id']}-{case['symptom'][:40]}" for case in cases])
def test_a_public_report_is_handled(case, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    area = importlib.import_module(f"reports.{case['area'].lower().replace(' ', '_')}")
    check = getattr(area, case["id"])
    named = [name for name in inspect.signature(check).parameters if name != "case"]
    check(case, **{name: request.getfixturevalue(name) for name in named})
