"""The commands of a page: what bash makes of its fences, and whether each would be accepted.

Bash runs every fence in a folder where most programs only write down their arguments. `check` then reads
these as the program itself would, up to the point where it would begin to work.
"""

import ast
import importlib
import importlib.util
import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from conftest import ROOT

from aimo import config
from aimo.commands import run
from aimo.config.profile import STAGES
from aimo.inference import files, settings
from aimo.kaggle.kernels import KERNELS, slug_of

FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
RECORD = 'printf \'%s\\0\' "$@" >> "$RECORDS"; printf \'\\1\' >> "$RECORDS"'
REALLY_RUN = ("cp", "mkdir", "sed")  # what they write is read by the commands after them


def fences(page: Path) -> list[tuple[str, str]]:
    """The fences of a page: their language and their text."""
    text = page.read_text(encoding="utf-8")
    return [(m[2] or "bash", re.sub(rf"^{m[1]}", "", m[3], flags=re.MULTILINE)) for m in FENCE.finditer(text)]


def words(text: str, desk: Path) -> list[list[str]]:
    """The commands of a fence, each with its arguments as bash expands them."""
    records = desk / "records"
    records.write_text("")
    for name in set(re.findall(r"\.venv/bin/([\w.-]+)", text)):
        assert Path(sys.executable).with_name(name).exists(), f".venv/bin/{name} is not installed"
        program = desk / ".venv/bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f'#!/bin/sh\nset -- {name} "$@"\n{RECORD}\n')
        program.chmod(0o755)
    recorded = {name: "" for name in ("cd", "export", "source")}
    recorded |= {name: f'{shutil.which(name)} "$@"; ' for name in REALLY_RUN}
    lines = [f"command_not_found_handle() {{ {RECORD}; }}"]
    lines += [f'{name}() {{ {first}set -- {name} "$@"; {RECORD}; }}' for name, first in recorded.items()]
    command = [shutil.which("bash"), "--norc", "-c", "\n".join([*lines, text])]
    env = {"PATH": str(desk / "none"), "RECORDS": str(records), "TIMEFORMAT": ""}
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=desk)
    assert done.returncode == 0 and not done.stderr, f"not for bash: {text}\n{done.stderr}"
    return [record.split("\0")[:-1] for record in records.read_text().split("\1")[:-1]]


def check(argv: list[str]) -> None:
    """Raise what a command would raise before it begins."""
    name, *arguments = argv
    assert name in CHECKS, f"no known command: {' '.join(argv)}"
    CHECKS[name]([argument for argument in arguments if argument != "…"])


def parsed(app: Any, arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The names of a command and its parameters, as typer or click reads them."""
    command = typer.main.get_command(app) if isinstance(app, typer.Typer) else app
    names: list[str] = []
    context = command.make_context("", list(arguments))
    while hasattr(command, "resolve_command"):
        name, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
        names.append(name)
        context = command.make_context(name, arguments, parent=context)
    return names, context.params


def check_aimo(arguments: list[str]) -> None:
    """Its options, profile, keys, stages, kernels, rules and competitions."""
    from aimo.evaluation import benchmarks, replay
    from aimo.inference.competitions import COMPETITIONS

    if arguments == ["--version"]:
        return
    names, given = parsed(run.app, arguments)
    profile, overrides = given.get("profile"), given.get("set_") or []
    if names[0] in ("solve", "serve", "evaluate"):
        layers = run.options.solver_settings(profile, overrides, given.get("samples"), given["vllm"] or [])
        settings.resolve_settings("MODEL", *layers)
    elif profile:
        loaded = config.load(profile, overrides if names[0] in ("run", "launch", "distil") else None)
    if names[0] == "launch" and given["gpus"]:
        from aimo.train import launch

        job = [given["stage"], profile, None, overrides, given["strategy"], given["gpus"], given["nodes"]]
        launch.check_job(launch.Job(*job, serve_gpus=given["serve_gpus"]), loaded)
    for option in ("from_", "until"):
        stage, _, checkpoint = (given.get(option) or "").partition("/")
        assert stage in ("", *STAGES) and re.fullmatch(r"(checkpoint-\d+)?", checkpoint), stage
    rules = given.get("policy") or []
    for rule in [rules] if isinstance(rules, str) else rules:
        replay.parse_rule(rule)
    by_name = names[-1] in ("data", "scores", "choose", "new")
    wanted = given.get("name" if by_name else "competition") or "aimo3"
    by_address = names == ["competition", "new"] and slug_of(wanted)
    assert wanted in COMPETITIONS or wanted.endswith(".yaml") or by_address, wanted
    if names[0] == "kernel" or names == ["kaggle", "push"]:
        wanted = given.get("names") or [given.get("name") or given.get("kernel")]
        assert all(name is None or name in KERNELS or Path(name).is_dir() for name in wanted), wanted
    for name in given.get("benchmarks", "").split(",") if names[0] == "evaluate" else ():
        assert name in benchmarks.BENCHMARKS or files.kind_of(Path(name)), name


def check_make(arguments: list[str]) -> None:
    """Its targets and variables are those of the Makefile."""
    text = (ROOT / "Makefile").read_text()
    for word in arguments:
        name, _, value = word.partition("=")
        known = rf"\$\({name}\)" if "=" in word else rf"^{name}:"
        assert re.search(known, text, re.MULTILINE), f"make has no {word}"
        if name == "PROFILE":
            config.load(value)


def check_python(arguments: list[str]) -> None:
    """The module or script exists and has the options; code compiles."""
    first, *rest = arguments
    if first == "-c":
        ast.parse(rest[0])
        return
    if first == "-m":
        assert importlib.util.find_spec(rest[0]), rest[0]
        return
    # The options of a benchmark: those that its code names, and the arguments of its `main`.
    script = ast.parse((ROOT / first).read_text())
    known = {str(node.value) for node in ast.walk(script) if isinstance(node, ast.Constant)}
    mains = [node for node in script.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    known |= {"--" + argument.arg.replace("_", "-") for main in mains for argument in main.args.args}
    for word in rest:
        assert not word.startswith("--") or word in known, f"{first} has no {word}"
    config.load("tiny", [word for option, word in itertools.pairwise(rest) if option == "--set"])


def check_papermill(arguments: list[str]) -> None:
    """Its options are papermill's, the notebook exists and has the parameters."""
    import nbformat
    from papermill.cli import papermill

    _, given = parsed(papermill, arguments)
    cells = nbformat.read(given["notebook_path"], 4).cells
    cell = next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    unknown = {name for name, _ in given["parameters"]} - set(re.findall(r"^(\w+)\s*(?::.*)?=", cell, re.M))
    assert not unknown, f"{given['notebook_path']} has no parameter {unknown}"


CHECKS: dict[str, Callable[[list[str]], Any]] = {
    "aimo": check_aimo,
    "make": check_make,
    "papermill": check_papermill,
    "python": check_python,
    "taskset": lambda words: check(words[2:]),
    **dict.fromkeys(
        ("cd", "export", "git", "hf", "lighteval", "pip", "pre-commit", "pytest", "sbatch"),
        lambda words: None,
    ),
}
