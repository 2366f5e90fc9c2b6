"""A kernel ships the inference folder, which works alone."""

import ast
import shutil
import subprocess
import sys

from conftest import ROOT


def test_inference_works_without_the_rest_of_the_package(tmp_path):
    package, ignore = ROOT / "src" / "aimo", shutil.ignore_patterns("__pycache__")
    shutil.copytree(package / "inference", tmp_path / "aimo" / "inference", ignore=ignore)
    (tmp_path / "aimo" / "__init__.py").touch()
    modules = [f"aimo.inference.{path.stem}" for path in (package / "inference").glob("[!_]*.py")]
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import {", ".join(modules)}
print([module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "aimo"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = ast.literal_eval(done.stdout)
    assert len(loaded) >= len(modules) and all(path.startswith(str(tmp_path)) for path in loaded)
