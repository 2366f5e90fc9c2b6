import importlib.metadata
import re

import pytest

from aimo import doctor, machine
from aimo.config import ROOT


@pytest.mark.parametrize("has_gpu, lock", [(False, "requirements-cpu.txt"), (True, "requirements.txt")])
def test_a_missing_and_a_mismatched_package_are_named_with_the_remedy(monkeypatch, has_gpu, lock):
    real = importlib.metadata.version

    def version(name):
        if name == "kaggle":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "trl" else real(name)

    monkeypatch.setattr(machine, "has_gpu", lambda: has_gpu)
    monkeypatch.setattr(importlib.metadata, "version", version)
    rows = {row["piece"]: row for row in doctor.check()}
    locked = re.search(r"^trl==([^ ;\n]+)", (ROOT / lock).read_text(), re.MULTILINE)[1]
    assert rows["trl"]["found"] == "0.1" and rows["trl"]["wanted"] == locked
    for package in ("trl", "kaggle"):
        assert f"`make setup` installs it from {lock}" in rows[package]["remedy"]
    assert rows["kaggle"]["found"] == "missing"
    assert rows["peft"]["remedy"] == "" and rows["peft"]["found"] == real("peft")


def test_the_lock_of_this_machine_and_no_other_decides_what_is_wanted(monkeypatch, tmp_path):
    for name in ("requirements.txt", "requirements-cpu.txt"):
        text = (ROOT / name).read_text()
        (tmp_path / name).write_text(re.sub(r"^peft==.*$", "peft==9.9", text, flags=re.MULTILINE))
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    row = next(row for row in doctor.check() if row["piece"] == "peft")
    assert row["wanted"] == "9.9" and "make setup" in row["remedy"]
