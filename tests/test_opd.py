"""On-policy distillation: the loss is the divergence it says, a student comes nearer to its teacher, and a
teacher that cannot grade it is refused."""

import json
import shutil

import pytest
from conftest import TINY

from aimo import config
from aimo.errors import AimoError
from aimo.run import runs


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_divergence_is_the_one_of_its_formula_and_moves_the_student_only(beta):
    import torch
    from torch.nn.functional import kl_div

    from aimo.train.compat import plain_divergence

    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 3, 5, requires_grad=True)
    heads = torch.randn(11, 8), torch.randn(11, 5)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    loss, entropy, count = plain_divergence(student, teacher, *heads, mask, beta, temperature=0.7)
    p, q = (h[mask.bool()] @ head.T / 0.7 for h, head in zip((student, teacher), heads, strict=True))
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    if beta == 0.5:
        mixed = ((p.exp() + q.exp()) / 2).log()
        wanted = sum(kl_div(mixed, x, log_target=True, reduction="sum") for x in (p, q)) / 2
    else:
        wanted = kl_div(*((q, p) if beta else (p, q)), log_target=True, reduction="sum")
    assert count == 3 and loss.item() == pytest.approx(wanted.item() / 3, rel=1e-5)
    assert entropy.item() == pytest.approx(-(p.exp() * p).sum().item(), rel=1e-5)
    loss.backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None
    assert not student.grad[~mask.bool()].any(), "a masked token counts"


def changed(tmp_path, name, change):
    """A copy of the tiny base with one of its files changed."""
    folder = tmp_path / "teacher"
    shutil.copytree(TINY, folder)
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))
    return folder


def swap(tokenizer):
    vocabulary = tokenizer["model"]["vocab"]
    a, b = (token for token, i in vocabulary.items() if i in (40, 41))
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]


@pytest.mark.parametrize(
    "name, change, told",
    [
        ("tokenizer.json", swap, "another vocabulary: token 4"),
        ("config.json", lambda c: c.update(vocab_size=c["vocab_size"] + 64), "and the student"),
    ],
)
def test_a_teacher_that_reads_other_tokens_is_refused(tmp_path, name, change, told):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from aimo.train import opd

    student = AutoModelForCausalLM.from_pretrained(TINY), AutoTokenizer.from_pretrained(TINY)
    opd.check_teacher(TINY, *student)
    with pytest.raises(AimoError, match=told) as refused:
        opd.check_teacher(changed(tmp_path, name, change), *student)
    assert "\n" not in str(refused.value) and "opd.teacher" in str(refused.value)


def test_a_teacher_that_ends_a_turn_with_another_token_is_refused(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from aimo.train import opd

    model, tokenizer = AutoModelForCausalLM.from_pretrained(TINY), AutoTokenizer.from_pretrained(TINY)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(40)  # as prompt.eos_token sets it
    with pytest.raises(AimoError, match="ends a turn with"):
        opd.check_teacher(TINY, model, tokenizer)


@pytest.mark.train
def test_a_student_comes_nearer_to_its_teacher_and_resumes_with_equal_losses(tmp_path):
    from aimo.train import models, opd

    section = (
        f"opd={{teacher: {TINY}, learning_rate: 1.0e-3, batch_size: 8, max_steps: 12, save_steps: 6, "
        "max_prompt_length: 128, max_completion_length: 24}"
    )
    profile = config.load("tiny", [section, "model.backend=transformers"])
    rows = [
        {"prompt": [{"role": "user", "content": f"What is {i} + {i}?"}], "answer": "1"} for i in range(64)
    ]

    def train(folder):
        import torch

        folder.mkdir(exist_ok=True)
        run = runs.Run(profile, folder, "opd", 0.0)
        model, tokenizer = models.load_model(TINY, profile), models.load_tokenizer(TINY, profile)
        with torch.no_grad():  # a student that is not the teacher
            torch.manual_seed(0)
            for name, weight in model.named_parameters():
                if not weight.requires_grad and "proj" in name:
                    weight.add_(0.4 * weight.std() * torch.randn_like(weight))
        return [r["loss"] for r in opd.train_opd(model, tokenizer, rows, run) if "loss" in r]

    losses = train(tmp_path / "whole")
    assert len(losses) == 12 and losses[-1] < 0.8 * losses[0]
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for left in "checkpoint-12", "trained":
        shutil.rmtree(tmp_path / "killed" / "opd" / left)
    assert train(tmp_path / "killed")[-6:] == pytest.approx(losses[-6:], rel=1e-4)
