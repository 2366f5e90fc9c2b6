"""Wheels: collected with a manifest, installed from it without an index, and what is left out by name."""

import hashlib
import json
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from aimo.inference import harmony, startup, wheels
from aimo.inference.errors import AimoError


def wheel(folder, name, number="1.0", requires=(), tag="py3-none-any"):
    """A wheel of a package with one module that has its number."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{number}-{tag}.whl"
    info = f"{name}-{number}.dist-info"
    needs = "".join(f"Requires-Dist: {text}\n" for text in requires)
    needs += "Provides-Extra: more\n" if "more" in needs else ""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", f"number = {number!r}\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n{needs}")
        file.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        file.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of releases in place of the package index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder where pip installs to, and Python finds it."""
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "site"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    return tmp_path / "site"


def collect(tmp_path, lines):
    lock = tmp_path / "lock.txt"
    lock.write_text("\n".join(lines))
    return wheels.collect(lock, tmp_path / "inputs")


@pytest.mark.slow  # pip resolves and installs
def test_collected_wheels_stand_in_a_manifest_and_install_from_it_alone(index, tmp_path, elsewhere, capsys):
    wheel(index, "aimo_first", requires=["aimo-second[more]>=1", "aimo-other ; python_version < '3'"])
    wheel(
        index, "aimo_second", "2.0", requires=["aimo-third; extra == 'more'", "aimo-other; extra == 'rest'"]
    )
    for name in "aimo_third", "aimo_other":
        wheel(index, name)
    names = ["aimo-first==1.0", "aimo-second==2.0", "aimo-third==1.0", "aimo-other==1.0"]
    manifest = collect(tmp_path, [*names, "nowhere==1 ; sys_platform == 'win32'"])
    assert manifest == json.loads((tmp_path / "inputs/wheels.json").read_text())
    first, _, second, _ = manifest["wheels"]
    path = tmp_path / "inputs" / first["file"]
    assert (first["name"], first["version"], first["modules"]) == ("aimo-first", "1.0", ["aimo_first"])
    assert first["tags"] == ["py3-none-any"]
    assert first["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert second["requires"] == {"aimo-second": [], "aimo-second[more]": ["aimo-third"]}

    # Where they are attached: the module that is imported, and what it requires, and not the rest.
    startup.install_wheels(["aimo_first", "sys"], tmp_path / "inputs")
    assert "wheels: 4 attached, 3 needed, 3 to install" in capsys.readouterr().out
    found = sorted(path.stem for path in elsewhere.glob("*.py"))
    assert found == ["aimo_first", "aimo_second", "aimo_third"]
    startup.check_modules(*found)
    startup.install_wheels(inputs=tmp_path / "inputs")
    assert "wheels: 4 attached, 4 needed, 1 to install" in capsys.readouterr().out


def test_a_release_that_this_python_cannot_have_is_named(index, tmp_path):
    wheel(index, "aimo_there")
    wheel(index, "aimo_old", tag="cp27-cp27m-win32")
    said = r"^requirements .*lock.txt: .*aimo-old==1.0.* for Python 3\.\d+\.\d+; change the lock file"
    with pytest.raises(AimoError, match=said):
        collect(tmp_path, ["aimo-there==1.0", "aimo-old==1.0"])
    with pytest.raises(AimoError, match="no such file; give a lock file"):
        wheels.collect(tmp_path / "nothing.txt")


def test_harmony_s_vocabulary_is_added_and_one_that_cannot_be_had_is_named(tmp_path, monkeypatch, shared):
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", str(shared / "harmony"))
    wheels.add_vocabulary(tmp_path, Path(sys.executable))
    added = (tmp_path / "o200k_base.tiktoken").read_bytes()
    assert hashlib.sha256(added).hexdigest() == harmony.SHA256
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/o200k_base.tiktoken").write_bytes(added[:1000])
    for folder, reason in ("none", "No such file"), ("broken", "vocab"):
        monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", str(tmp_path / folder))
        with pytest.raises(AimoError, match=rf"^vocabulary o200k.*{reason}.*; turn the internet on"):
            wheels.add_vocabulary(tmp_path, Path(sys.executable))


def test_wheels_that_pip_would_refuse_are_left_out_by_name_and_the_rest_is_installed(
    tmp_path, elsewhere, capsys
):
    wheel(tmp_path / "inputs", "pytest", version("pytest"))
    names = "aimo_kept", "aimo_changed", "aimo_gone"
    described = [wheels.describe_wheel(wheel(tmp_path / "inputs/wheels", name)) for name in names]
    (tmp_path / "inputs/wheels.json").write_text(json.dumps({"wheels": described}))
    wheel(tmp_path / "inputs/wheels", "aimo_changed", requires=["more"])
    (tmp_path / "inputs/wheels/aimo_gone-1.0-py3-none-any.whl").unlink()
    wheel(tmp_path / "inputs", "aimo_foreign", tag="cp27-cp27m-win32")
    (tmp_path / "inputs/no-wheel.whl").touch()
    (tmp_path / "inputs/more").mkdir()
    (tmp_path / "inputs/more/wheels.json").write_text("{}")
    startup.install_wheels(inputs=tmp_path / "inputs")
    said = capsys.readouterr().out.splitlines()
    assert "wheels: 6 attached, 4 needed, 3 to install" in said
    assert [path.stem for path in elsewhere.glob("*.py")] == ["aimo_kept"]
    assert any("not for Python" in line and "aimo-foreign 1.0, no wheel" in line for line in said), said
    assert any("not the file of the manifest: aimo-changed 1.0, aimo-gone 1.0" in line for line in said)
    assert any("more/wheels.json is no manifest" in line for line in said)
    with pytest.raises(AimoError, match=r"^aimo_foreign and aimo_away not installed.*attach the output of"):
        startup.check_modules("aimo_foreign", "pytest", "aimo_away")
