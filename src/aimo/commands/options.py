"""Options that several commands share, and the solver settings that follow from them."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from aimo.config import read_values, set_key
from aimo.evaluation import served
from aimo.inference import server as servers
from aimo.inference.engine import Engine
from aimo.inference.errors import AimoError
from aimo.inference.model_folder import check_model_folder
from aimo.inference.settings import resolve_settings
from aimo.run.runs import quiet


def opt(text: str, *names: str, **limits: Any) -> Any:
    """Return an option with this help; its name is the parameter's unless `names` has another."""
    return typer.Option(*names, help=text, **limits)


def arg(text: str, name: str | None = None) -> Any:
    """Return an argument with this help; its name is the parameter's unless another is given."""
    return typer.Argument(help=text, metavar=name)


Profile = Annotated[str, opt("A name in notebooks/profiles, or a path to a YAML file.")]
RunDir = Annotated[str | None, opt("The run's folder; runs/PROFILE if not given.")]
Seed = Annotated[int, typer.Option(min=0)]
Key = Annotated[list[str] | None, opt("Change a key, such as grpo.max_steps=50; repeatable.", "--set")]
Setting = Annotated[list[str] | None, opt("Change a setting, such as inference.temperature=0.6.", "--set")]
Over = Annotated[str | None, opt("A profile whose inference section overrides the settings.", "--profile")]
Test = Annotated[str | None, opt("A CSV of questions, with id and problem (or question).")]
Competition = Annotated[str | None, opt("The competition: aimo3, another name, or a YAML file.")]
Samples = Annotated[int | None, opt("Samples of each question.", min=1)]
Servers = Annotated[list[str] | None, opt("A `vllm serve` of the model, instead of an engine; repeatable.")]
Adapter = Annotated[str | None, opt("A folder with a LoRA adapter for the model.")]
EngineArguments = Annotated[list[str] | None, opt("vLLM's own, such as tensor_parallel_size=2; repeatable.")]
Golds = Annotated[Path | None, opt("A CSV with id and answer, for files without answers.")]


def start(
    model: str | Path, layers: list[dict[str, Any]], seed: int, server: list[str] | None, adapter: str | None
) -> Any:
    """Return the servers of a model, or else an engine; the layers override the folder's settings.

    AimoError if vLLM with a stage's adapter does not compute what the stage has trained.
    """
    quiet()
    check_model_folder(model)
    settings = resolve_settings(model, *layers)
    if not server:
        engine = Engine(model, settings, seed=seed, adapter=adapter)
        try:
            if adapter:
                served.check_engine(engine, Path(adapter).parent)
        except AimoError:
            engine.close()
            raise
        return engine
    return servers.Server(server, model, settings)


def solver_settings(
    profile: str | None,
    overrides: list[str] | None,
    samples: int | None,
    vllm: list[str] | None,
    server: list[str] | None = None,
    adapter: str | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the solver's settings that a profile's inference section has, and those of the command line.

    AimoError for an option that a running server cannot take.
    """
    section = read_values(profile).get("inference") or {} if profile else {}
    others = ("test", "test_rows")
    written = {key: value for key, value in section.items() if value is not None and key not in others}
    changed: dict[str, Any] = {"inference": {}}
    for override in overrides or []:
        if not override.startswith("inference."):
            raise AimoError(f"--set {override!r}: only keys of inference apply, such as inference.top_p=0.9")
        set_key(changed, override)
    for option in vllm or []:
        set_key(changed["inference"].setdefault("vllm", {}), option, "--vllm")
    if samples:
        changed["inference"]["samples"] = samples
    if server and (adapter or {"vllm", "gpu_memory"} & changed["inference"].keys()):
        raise AimoError("--server goes without --adapter, --vllm and gpu_memory: give them to `vllm serve`")
    return written, changed["inference"]


def show_rows(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table, those with a remedy in red; in a file or a pipe no cell is cut."""
    console, table = Console(), Table(*rows[0])
    if not console.is_terminal:
        console.width = 240
    for row in rows:
        table.add_row(*map(str, row.values()), style="red" if row.get("remedy") else "")
    console.print(table)


def check_folder(option: str, path: Path | None) -> None:
    """Refuse a file to write whose folder does not exist."""
    if path and not path.absolute().parent.is_dir():
        raise AimoError(f"{option} {path}: its folder does not exist; make it first")
