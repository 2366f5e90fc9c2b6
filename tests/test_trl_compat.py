"""Private names of other libraries are used in two modules only, and do what their docstrings say."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "src" / "aimo"
COMPAT = {  # modules that may, and the packages whose versions their heading names
    PACKAGE / "train" / "compat.py": ("trl", "transformers"),
    PACKAGE / "kaggle" / "client.py": ("kagglesdk",),
}
# Not __dunder__, nor _protocol_ of IPython, nor what a named tuple offers.
PRIVATE = re.compile(r"_(?!_|fields$|asdict$|replace$)\w*[^_]")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def own_names() -> set[str]:
    """Names that aimo itself gives to functions, classes and variables."""
    names = set()
    for path in PACKAGE.rglob("*.py"):
        if path in COMPAT:
            continue
        tree = tree_of(path)
        plain = [
            n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        ]
        inherited = {
            member
            for node in plain
            if isinstance(node, ast.ClassDef) and node.bases  # a method may replace one of the base's
            for member in node.body
        }
        names |= {node.name for node in plain if node not in inherited}
        names |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        for node in plain:
            if isinstance(node, ast.ClassDef) and not node.bases:
                names |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and on_self(n)}
    return names


def on_self(node: ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self"


def private_names(tree: ast.Module, own: set[str]) -> Iterator[str]:
    """The private names of third-party objects that a module imports, reads, sets or overrides."""
    standard = {
        alias.asname or alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name.partition(".")[0] in sys.stdlib_module_names
    }
    for node in ast.walk(tree):
        found: list[str] = []
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("aimo"):
            found = [part for alias in node.names for part in (*node.module.split("."), alias.name)]
        if isinstance(node, ast.Attribute):
            root = node.value.id if isinstance(node.value, ast.Name) else ""
            found = [] if root in standard else [node.attr]
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr"):
            found = [
                arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
            ]
        if isinstance(node, ast.ClassDef) and node.bases:
            found = [member.name for member in node.body if isinstance(member, ast.FunctionDef)]
        yield from (name for name in found if PRIVATE.fullmatch(name) and name not in own)


def test_no_module_but_those_two_uses_a_private_name_of_another_library():
    own = own_names()
    found = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in PACKAGE.rglob("*.py")
        if path not in COMPAT
        for name in private_names(tree_of(path), own)
    }
    assert not found, "move it to one of them, with version, reason and link"


def test_each_way_to_use_a_private_name_is_seen_and_own_names_are_allowed():
    code = """
from trl.trainer.utils import _a
from trl._b import kernel
trainer._c.clear()
getattr(trainer, '_d')
class Ours(trl.SFTTrainer):
    def _e(self): ...
    def __len__(self): ...
os._exit(1)
run._ours
"""
    found = set(private_names(ast.parse(f"import os{code}"), {"_ours"}))
    assert found == {"_a", "_b", "_c", "_d", "_e"}


@pytest.mark.parametrize("path", COMPAT, ids=lambda path: path.stem)
def test_the_heading_names_the_versions_that_are_installed(path):
    from importlib.metadata import version

    heading = ast.get_docstring(tree_of(path))
    for package in COMPAT[path]:
        assert version(package) in heading, f"look over {path.name} for {package} {version(package)}"


def test_the_plain_loss_is_cross_entropy_with_its_gradient():
    import torch

    from aimo.train.compat import PlainLogProbs

    torch.manual_seed(0)
    hidden = torch.randn(5, 8, requires_grad=True)
    weight, targets = torch.randn(11, 8), torch.tensor([0, 3, 10, 7, 7])
    chosen, entropy, log_square, mean, top = PlainLogProbs.apply(
        hidden, weight, None, targets, 0.7, 1024, None, 1.0, ()
    )
    logits = hidden @ weight.T / 0.7
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    assert torch.allclose(-chosen, expected, atol=1e-5)
    distribution = torch.distributions.Categorical(logits=logits)
    assert torch.allclose(entropy, distribution.entropy(), atol=1e-5)
    assert torch.allclose(log_square.exp(), distribution.probs.square().sum(-1), atol=1e-5)
    assert torch.allclose(mean, logits.mean(-1), atol=1e-5)
    assert torch.equal(top, logits.argmax(-1) == targets)
    (gradient,) = torch.autograd.grad(-chosen.sum(), hidden)
    assert torch.allclose(gradient, (distribution.probs - torch.eye(11)[targets]) @ weight / 0.7, atol=1e-5)
