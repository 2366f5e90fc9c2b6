import json

import torch

from aimo.training import PlainLogProbs, last_checkpoint


def test_a_checkpoint_cut_off_while_it_was_written_is_removed_and_the_one_before_is_used(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step, state in ((50, json.dumps({"global_step": 50})), (100, json.dumps({"global_step": 100})), (150, '{"global_st'), (200, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-100", "checkpoint-50"]


def test_the_plain_loss_is_cross_entropy_with_its_gradient():
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8), torch.tensor([0, 3, 10, 7, 7])
    chosen, entropy, log_square, mean, top = PlainLogProbs.apply(hidden, weight, None, targets, 0.7, 1024, None, 1.0, ())
    logits = hidden @ weight.T / 0.7
    assert torch.allclose(-chosen, torch.nn.functional.cross_entropy(logits, targets, reduction="none"), atol=1e-5)
    distribution = torch.distributions.Categorical(logits=logits)
    assert torch.allclose(entropy, distribution.entropy(), atol=1e-5)
    assert torch.allclose(log_square.exp(), distribution.probs.square().sum(-1), atol=1e-5)
    assert torch.allclose(mean, logits.mean(-1), atol=1e-5) and torch.equal(top, logits.argmax(-1) == targets)
    (gradient,) = torch.autograd.grad(-chosen.sum(), hidden)
    assert torch.allclose(gradient, (distribution.probs - torch.eye(11)[targets]) @ weight / 0.7, atol=1e-5)
