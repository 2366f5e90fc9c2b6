"""From a base model to an AI Mathematical Olympiad submission."""

import importlib.util
import sys
from types import ModuleType
from typing import Any


class Late(ModuleType):
    """A module whose code runs when one of its names is first used, not when it is imported."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # `inspect` and `warnings` ask every module for such names
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        assert self.__spec__ and self.__spec__.loader
        try:
            self.__spec__.loader.exec_module(self)
        except BaseException:  # such as Ctrl-C in a cell: the next use tries again, as an import does
            self.__class__ = Late
            raise
        return getattr(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("__"):
            getattr(self, name, None)  # the module's code, run later, would write over the value
        ModuleType.__setattr__(self, name, value)  # the class may have changed


def load_late(package: str, *names: str) -> None:
    """Make modules of a package late. Others may import them at their top (`from aimo.train import models`):
    `aimo --help` does not wait for torch, and TRL does not load before Unsloth, which patches it."""
    for name in names:
        full = f"{package}.{name}"
        spec = importlib.util.find_spec(full)
        if full not in sys.modules and spec:  # a kernel ships only the modules that it uses
            module = importlib.util.module_from_spec(spec)
            module.__class__ = Late
            sys.modules[full] = module
            setattr(sys.modules[package], name, module)
