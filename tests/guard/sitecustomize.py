"""Refuses to start an engine or to train, in every Python process that has this folder on PYTHONPATH.

conftest.py puts it there for `pytest -m "not slow"`: a test that needs a marker and has none fails instead of
slowing down `make fast`.
"""

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


sys.meta_path.insert(0, Guard())
