"""The layout: wings, sizes of modules, functions and lines, and an inference folder that works alone."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

PACKAGE = ROOT / "src" / "aimo"
SOURCES = {path: path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_a_module_begins_with_what_it_is():
    assert [name(path) for path, text in SOURCES.items() if not ast.get_docstring(ast.parse(text))] == []


def test_a_module_fits_in_500_lines():
    lines = {name(path): len(text.splitlines()) for path, text in SOURCES.items()}
    assert {module: count for module, count in lines.items() if count > 500} == {}


def test_a_function_fits_in_80_lines():
    long = {}
    for path, text in SOURCES.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > 80:
                    long[f"{name(path)}: {node.name}"] = lines
    assert long == {}


def test_a_line_fits_in_110_columns():
    """Ruff lets a comment pass whose only word is long; this does not."""
    rest = [path for folder in ("tests", "benchmarks", "notebooks") for path in ROOT.glob(f"{folder}/*.py")]
    long = [
        f"{name(path)}:{number}"
        for path in [*SOURCES, *rest]
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > 110
    ]
    assert long == []


def test_inference_works_without_the_rest_of_the_package(tmp_path):
    """What a kernel ships."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE / "inference", tmp_path / "aimo" / "inference", ignore=ignore)
    (tmp_path / "aimo" / "__init__.py").touch()
    modules = [f"aimo.inference.{path.stem}" for path in (PACKAGE / "inference").glob("[!_]*.py")]
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
