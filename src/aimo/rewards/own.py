"""A reward of one's own: a function in a file, which a profile names as `PATH.py:FUNCTION`.

Its text becomes part of the profile, and so of the run's folder, of the kernel and of the model's card.
"""

import ast
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from functools import wraps
from numbers import Real
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from aimo.errors import AimoError
from aimo.rewards.math import RewardFunc, Rewards

NAME = re.compile(r"(.+\.py):(\w+)")
# What TRL passes as keywords; `verification_info` where the rows have it.
COLUMNS = ("completions", "prompts", "completion_ids", "answer", "verification_info")
FURTHER = ("trainer_state", "log_extra", "log_metric")
EXAMPLE = "def short(completions, **columns)"


def name_in_file(name: str) -> str:
    """Return the name without its folders; ValueError for a text that names no function of a file."""
    if not (found := NAME.fullmatch(name)):
        raise ValueError(name)
    return f"{Path(found[1]).name}:{found[2]}"


def read_text(name: str, folders: Sequence[Path]) -> str:
    """Return the text of a reward's file, looked for in `folders`. ValueError says what is missing."""
    path = Path(NAME.fullmatch(name)[1]).expanduser()  # type: ignore[index]
    found = next((folder / path for folder in folders if (folder / path).is_file()), None)
    if found is None:
        places = "" if path.is_absolute() else f" in {' or '.join(map(str, dict.fromkeys(folders)))}"
        raise ValueError(f"{name}: there is no file {path}{places}; correct the path")
    try:
        return found.read_text(encoding="utf-8-sig").rstrip() + "\n"
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"{name}: {found} cannot be read ({e}); save it as UTF-8") from None


def check_text(name: str, code: str) -> None:
    """Raise ValueError for a text without the function, or with one that TRL cannot call. Runs nothing."""
    file, function = name.rsplit(":", 1)
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError) as e:
        where = f" at line {e.lineno}" if isinstance(e, SyntaxError) else ""
        raise ValueError(f"{name}: {file} is no Python{where} ({e.args[0]}); correct it") from None
    functions = {node.name: node.args for node in body if isinstance(node, ast.FunctionDef)}
    if function not in functions:
        there = f"it has {', '.join(functions)}" if functions else "it has none"
        raise ValueError(f"{name}: {file} has no function {function} ({there}); write {EXAMPLE} in it")
    args = functions[function]
    places = [*args.posonlyargs, *args.args]
    needed = [arg.arg for arg in places[: len(places) - len(args.defaults)]]
    needed += [arg.arg for arg, d in zip(args.kwonlyargs, args.kw_defaults, strict=True) if d is None]
    if "completions" not in needed or args.posonlyargs or not args.kwarg:
        raise ValueError(
            f"{name}: {function} should take completions, and the other columns as keywords: {EXAMPLE}"
        )
    if unknown := [arg for arg in needed if arg not in (*COLUMNS, *FURTHER)]:
        raise ValueError(
            f"{name}: {function} needs {unknown[0]}, which no row has; it may take {', '.join(COLUMNS)}"
        )


def load_function(name: str, code: str) -> RewardFunc:
    """Run a file's text and return its function, under its name; AimoError when that fails.

    What the function raises, or gives in place of a number for each completion, is an AimoError of one line.
    """
    file, function = name.rsplit(":", 1)

    def told(e: Exception) -> AimoError:
        lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == file]
        where = f" in line {lines[-1]} of {file}" if lines else ""
        said = " ".join(f"{type(e).__name__}: {e}".split())[:200]
        return AimoError(f"grpo.rewards.{name}: {function} raises {said}{where}; correct it")

    module = ModuleType(f"aimo_reward_{Path(file).stem}")
    sys.modules[module.__name__] = module  # dataclasses look for it
    try:
        exec(compile(code, file, "exec"), module.__dict__)
        own = getattr(module, function)
    except Exception as e:  # whatever the user's file raises
        raise told(e) from None

    @wraps(own)
    def reward(completions: Any, **columns: Any) -> Rewards:
        try:
            values = own(completions=completions, **columns)
        except AimoError:
            raise
        except Exception as e:
            raise told(e) from None
        try:
            made = list(values)
        except TypeError:
            made = [values]
        wanted = f"a number or None for each of the {len(completions)} completions"
        if len(made) != len(completions) or not all(one is None or isinstance(one, Real) for one in made):
            raise AimoError(f"grpo.rewards.{name}: {function} gives {values!r:.100}, not {wanted}")
        return [None if one is None else float(one) for one in made]

    return reward


def try_rewards(rewards: Mapping[str, Any]) -> None:
    """Let the profile's own rewards score two completions, one of them empty; AimoError when one fails."""

    def ignore(*_: Any) -> None: ...

    texts = ("Two and two are 4.", "")
    columns: dict[str, Any] = {
        "completions": [[{"role": "assistant", "content": text}] for text in texts],
        "prompts": [[{"role": "user", "content": "What is 2 + 2?"}]] * 2,
        "completion_ids": [[1, 2, 3], []],
        "answer": ["4", "4"],
        "trainer_state": SimpleNamespace(global_step=0, max_steps=1, epoch=0.0),
        "log_extra": ignore,
        "log_metric": ignore,
    }
    for name, reward in rewards.items():
        if code := getattr(reward, "code", None):
            tests = "verification_info" in code
            own = load_function(name, code)
            own(**columns | ({"verification_info": ['{"test_cases": []}'] * 2} if tests else {}))
