import importlib.metadata

from aimo import doctor


def test_a_missing_and_a_mismatched_package_are_named_with_the_remedy(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "kaggle":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "trl" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    rows = {row["piece"]: row for row in doctor.check()}
    assert rows["kaggle"]["found"] == "missing" and "make setup" in rows["kaggle"]["remedy"]
    assert (
        rows["trl"]["found"] == "0.1"
        and rows["trl"]["wanted"] == "1.15.0"
        and "make setup" in rows["trl"]["remedy"]
    )
    assert rows["peft"]["remedy"] == ""
