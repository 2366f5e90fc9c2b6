"""Private names of other libraries are used in two modules only, and do what their docstrings say."""

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import version

import pytest
from conftest import ROOT, TINY

PACKAGE = ROOT / "src" / "aimo"
COMPAT = {  # modules that may, and the packages whose versions their heading names
    PACKAGE / "train" / "compat.py": ("trl", "transformers"),
    PACKAGE / "kaggle" / "client.py": ("kagglesdk",),
}
# Not __dunder__, nor _protocol_ of IPython, nor what a named tuple offers.
PRIVATE = re.compile(r"_(?!_|fields$|asdict$|replace$)\w*[^_]")
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def own_names(tree: ast.Module) -> Iterator[str]:
    """Names that a module gives to functions, classes, variables, and attributes of what has no base."""
    nodes = list(ast.walk(tree))
    derived = [node for node in nodes if isinstance(node, ast.ClassDef) and node.bases]
    replacing = {member for node in derived for member in node.body}  # may replace a method of the base's
    for node in nodes:
        if isinstance(node, FUNCTIONS | ast.ClassDef) and node not in replacing:
            yield node.name
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        if isinstance(node, ast.ClassDef) and not node.bases:
            for part in ast.walk(node):
                if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
                    yield from [part.attr] if getattr(part.value, "id", "") == "self" else []


def private_names(tree: ast.Module, own: set[str]) -> set[str]:
    """The private names of third-party objects that a module imports, reads, sets or overrides."""
    nodes, found = list(ast.walk(tree)), []
    imported = [alias for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    standard = {a.asname or a.name for a in imported if a.name.partition(".")[0] in sys.stdlib_module_names}
    for node in nodes:
        match node:
            case ast.ImportFrom(module=str(module), names=names) if not module.startswith("aimo"):
                found += [part for alias in names for part in (*module.split("."), alias.name)]
            case ast.Attribute(value=ast.Name(id=root)) if root in standard:
                pass
            case ast.Attribute(attr=name):
                found.append(name)
            case ast.Call(func=ast.Name(id="getattr" | "setattr" | "hasattr"), args=arguments):
                found += [a.value for a in arguments if isinstance(getattr(a, "value", None), str)]
            case ast.ClassDef(bases=[_, *_], body=body):
                found += [member.name for member in body if isinstance(member, ast.FunctionDef)]
    return {name for name in found if PRIVATE.fullmatch(name) and name not in own}


def test_no_module_but_those_two_uses_a_private_name_of_another_library():
    trees = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py") if path not in COMPAT}
    own = {name for tree in trees.values() for name in own_names(tree)}
    found = {path.name: names for path, tree in trees.items() if (names := private_names(tree, own))}
    assert not found, "move it to one of them, with version, reason and link"


def test_each_way_to_use_a_private_name_is_seen_and_own_names_are_allowed():
    code = """
import os
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
    tree = ast.parse(code)
    assert private_names(tree, {"_ours"}) == {"_a", "_b", "_c", "_d", "_e"}
    assert not {"_a", "_b", "_c", "_d", "_e"} & {*own_names(tree)}


@pytest.mark.parametrize("path", COMPAT, ids=lambda path: path.stem)
def test_the_heading_names_the_versions_that_are_installed(path):
    heading = ast.get_docstring(ast.parse(path.read_text()))
    for package in COMPAT[path]:
        assert version(package) in heading, f"look over {path.name} for {package} {version(package)}"


@pytest.mark.parametrize("at_once", [1 << 23, 22], ids=["whole", "in parts"])
def test_the_plain_loss_is_cross_entropy_with_its_gradient(at_once, monkeypatch):
    import torch

    from aimo.train import compat

    monkeypatch.setattr(compat, "LOGITS", at_once)
    outputs = "entropy", "log_sum_sq_probs", "mean_logits", "is_top1"

    torch.manual_seed(0)
    hidden = torch.randn(5, 8, requires_grad=True)
    weight, targets = torch.randn(11, 8), torch.tensor([0, 3, 10, 7, 7])
    chosen, entropy, log_square, mean, top = compat.PlainLogProbs.apply(
        hidden, weight, None, targets, 0.7, 1024, None, 1.0, outputs
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


def test_completions_are_counted_while_they_end_and_stay_what_they_are(monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from aimo.train import live

    monkeypatch.setattr(live, "COUNT_S", 0.0)
    told = []
    display = live.Live.__new__(live.Live)  # without a trainer
    display.doing = told.append
    model, tokenizer = (kind.from_pretrained(TINY) for kind in (AutoModelForCausalLM, AutoTokenizer))
    prompts = tokenizer(["1 + 1 ="] * 16, return_tensors="pt")

    def sample():
        torch.manual_seed(0)
        return model.generate(**prompts, max_new_tokens=60, do_sample=True)

    before = sample()
    for _ in range(2):  # a cell that runs twice
        display.count(model, display.by_transformers)
    assert torch.equal(sample(), before)
    counts = [int(re.fullmatch(r"sampling, (\d+) of 16 completions ended", line)[1]) for line in told]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] > 8 and len(counts) <= 60

    told.clear()
    monkeypatch.setenv("TQDM_DISABLE", "1")
    bar = display.by_vllm(None)["use_tqdm"]
    assert list(bar(range(3), desc="Rendering prompts")) == [0, 1, 2] and not told
    processed = bar(total=4, desc="Processed prompts", dynamic_ncols=True, postfix="")
    processed.update(4)
    assert processed.format_dict["elapsed"] > 0  # vLLM divides by it
    processed.close()
    assert told[-1] == "sampling, 4 of 4 completions ended"
