"""Refuses to start an engine, to train, and to write into the repository's runs/ and submission/, in every
Python process that has this folder on PYTHONPATH.

conftest.py puts it there for `pytest -m "not slow"`: a test that needs a marker and has none fails instead of
slowing down `make fast`.
"""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder

REFUSED = (
    "an engine or training in a test without a marker: use the fixture `engine`, or mark it engine or train"
)


def refuse(*args, **kwargs):
    raise RuntimeError(REFUSED)


class Guard(MetaPathFinder):
    """Finds no vLLM engine, and a trainer that does not train."""

    def find_spec(self, name, path=None, target=None):
        if name == "vllm.v1.engine.async_llm":
            refuse()
        if name == "transformers.trainer":
            spec = PathFinder.find_spec(name, path)
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                module.Trainer.train = refuse

            spec.loader.exec_module = exec_module
            return spec
        return None


USERS = tuple(f"{os.path.abspath(f'{__file__}/../../../{name}')}{os.sep}" for name in ("runs", "submission"))


def audit(event, args):
    """Refuses to write where the user's own runs are."""
    written = event == "os.mkdir" or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    if written and isinstance(args[0], str) and f"{os.path.abspath(args[0])}{os.sep}".startswith(USERS):
        raise RuntimeError(f"a test writes {args[0]}: give the command a folder of its own")


sys.meta_path.insert(0, Guard())
sys.addaudithook(audit)
