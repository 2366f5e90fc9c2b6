"""Inputs from public reports, each handled as its report says is right.

`reports/AREA.py` has one function for each case, named by its id. It gets the case and a fixture request, and
asserts.
"""

import importlib
import json

import pytest
from conftest import ROOT

pytest_plugins = ["stand_in"]
CASES = ROOT.parent / "shared" / "data" / "cases" / "public_reports.jsonl"
cases = [json.loads(line) for line in CASES.read_text().split("\n") if line] if CASES.exists() else []


@pytest.mark.parametrize("case", cases, ids=[f"{case['id']}-{case['symptom'][:40]}" for case in cases])
def test_a_public_report_is_handled(case, request):
    area = importlib.import_module(f"reports.{case['area'].lower().replace(' ', '_')}")
    getattr(area, case["id"])(case, request)
