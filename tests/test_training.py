import json
import random
import shutil
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch.utils.data import RandomSampler
from transformers import AutoModelForCausalLM
from trl import GRPOTrainer, SFTTrainer
from trl.trainer import utils

from aimo import config, hub
from aimo.data import prepare
from aimo.errors import AimoError
from aimo.runs import read_lines
from aimo.training import callbacks, models, trainers
from aimo.training.trainers import PlainLogProbs, last_checkpoint


def test_a_checkpoint_cut_off_while_it_was_written_is_removed_and_the_one_before_is_used(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step, state in (
        (50, json.dumps({"global_step": 50})),
        (100, json.dumps({"global_step": 100})),
        (150, '{"global_st'),
        (200, None),
    ):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-100", "checkpoint-50"]


def test_the_plain_loss_is_cross_entropy_with_its_gradient():
    torch.manual_seed(0)
    hidden, weight, targets = (
        torch.randn(5, 8, requires_grad=True),
        torch.randn(11, 8),
        torch.tensor([0, 3, 10, 7, 7]),
    )
    chosen, entropy, log_square, mean, top = PlainLogProbs.apply(
        hidden, weight, None, targets, 0.7, 1024, None, 1.0, ()
    )
    logits = hidden @ weight.T / 0.7
    assert torch.allclose(
        -chosen, torch.nn.functional.cross_entropy(logits, targets, reduction="none"), atol=1e-5
    )
    distribution = torch.distributions.Categorical(logits=logits)
    assert torch.allclose(entropy, distribution.entropy(), atol=1e-5)
    assert torch.allclose(log_square.exp(), distribution.probs.square().sum(-1), atol=1e-5)
    assert torch.allclose(mean, logits.mean(-1), atol=1e-5) and torch.equal(top, logits.argmax(-1) == targets)
    (gradient,) = torch.autograd.grad(-chosen.sum(), hidden)
    assert torch.allclose(gradient, (distribution.probs - torch.eye(11)[targets]) @ weight / 0.7, atol=1e-5)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The tiny profile's data, few of them."""
    p = small()
    prepared = prepare.clean(prepare.load(p), p, models.load_tokenizer(TINY, p))
    return {name: rows.to_dicts() for name, rows in prepare.format(prepared, p).items()}


def small(*overrides):
    """The tiny profile with few rows, quick to train."""
    few = [
        "data.sft.rows=64",
        "data.grpo.rows=64",
        "data.heldout.rows=8",
        "data.grpo.test_split=0.1",
        "data.sft.test_split=0.1",
    ]
    quick = [
        "model.backend=transformers",
        "sft.batch_size=4",
        "sft.max_steps=6",
        "sft.save_steps=2",
        "grpo.max_steps=4",
    ]
    shape = [
        "grpo.prompts_per_step=2",
        "grpo.num_generations=4",
        "grpo.save_steps=2",
        "grpo.sample_steps=2",
        "grpo.probe_steps=2",
    ]
    return config.load("tiny", [*few, *quick, *shape, *overrides])


def train(p, sets, folder, stage="sft", start=TINY):
    """One stage, as its notebook does it; the log and the model in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = models.load(start, p), models.load_tokenizer(start, p)
    if stage == "sft":
        log = trainers.sft(
            model, tokenizer, sets["sft"], p, folder, lambda *_: None, sets["sft_test"], sets["grpo_test"]
        )
    else:
        log = trainers.grpo(model, tokenizer, sets["grpo"], p, folder, lambda *_: None, sets["grpo_test"])
    return log, model, tokenizer


def losses(log):
    return [record["loss"] for record in log if "loss" in record]


def test_the_merged_model_says_what_base_and_adapter_say(tmp_path, sets):
    p = small("sft.learning_rate=0.01")
    log, model, tokenizer = train(p, sets, tmp_path / "sft")
    models.save(tmp_path / "sft/trained", TINY, tokenizer, p, tmp_path / "sft/model", trainers.summary(log))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "sft/model")
    apart = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(TINY), str(tmp_path / "sft/trained")
    )
    texts = [trainers.complete(m, tokenizer, sets["heldout"], 60) for m in (merged, apart, model)]
    assert texts[0] == texts[1] == texts[2]
    assert texts[0] != trainers.complete(
        AutoModelForCausalLM.from_pretrained(TINY), tokenizer, sets["heldout"], 60
    )
    card = (tmp_path / "sft/model/README.md").read_text()
    assert "learning_rate: 0.01" in card and "| steps | 6 |" in card


@pytest.mark.parametrize(
    "stage, steps, epoch", [("sft", 8, "sft.batch_size=20"), ("grpo", 5, "grpo.prompts_per_step=24")]
)
def test_a_run_broken_off_at_any_step_ends_in_the_losses_of_an_unbroken_one(
    tmp_path, sets, monkeypatch, stage, steps, epoch
):
    p = small(
        f"{stage}.max_steps={steps}",
        "grpo.max_completion_length=40",
        "grpo.learning_rate=0.001",
        "grpo.probe_steps=null",
        epoch,
    )
    whole, _, _ = train(p, sets, tmp_path / "whole", stage)
    broken, last = tmp_path / "broken", random.randint(1, steps - 1)
    report = callbacks.Record.on_step_end

    def killed(self, args, state, control, **more):
        report(self, args, state, control, **more)
        if state.global_step == last:
            raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(callbacks.Record, "on_step_end", killed)
        train(p, sets, broken, stage)
    again, _, _ = train(p, sets, broken, stage)
    assert losses(again) == pytest.approx(losses(whole), abs=1e-5), f"broken off at step {last}"
    assert [r.get("reward") for r in again] == [r.get("reward") for r in whole], f"broken off at step {last}"
    for log in (again, read_lines(broken / "log.jsonl")):
        assert [record["step"] for record in log if "loss" in record] == list(range(1, steps + 1)), (
            "a step was lost or trained twice"
        )


def test_rows_of_a_step_are_of_like_length_the_longest_first_and_every_row_comes_once():
    lengths = [10 + row * row % 977 for row in range(100)]
    sampler = trainers.ByLength(lengths, rows_a_step=8)
    for seed in range(5):
        sampler.generator = torch.Generator().manual_seed(seed)
        order = list(sampler)
        steps = [[lengths[row] for row in order[i : i + 8]] for i in range(0, 100, 8)]
        assert sorted(order) == list(range(100)) and max(lengths) in steps[0]
        assert sum(max(step) * len(step) for step in steps) < 1.2 * sum(lengths), "more padding than a fifth"
        means = [sum(step) for step in steps[1:-1]]
        assert means not in (sorted(means), sorted(means, reverse=True)), (
            "the steps themselves are sorted by length"
        )


def test_the_order_of_rows_follows_the_seed_and_the_epoch():
    def order(seed, epoch):
        trainer = SimpleNamespace(args=SimpleNamespace(seed=seed), state=SimpleNamespace(epoch=epoch))
        return list(trainers.Seeded(RandomSampler(range(100)), trainer))

    assert order(0, None) == order(0, 0) != order(0, 1.0) != order(0, 2.0) and order(0, 1.0) == order(
        0, 1.35
    ) != order(5, 1.0)


@pytest.mark.parametrize("temperature, silent", [(0.01, {1.0}), (1.0, {0.0, 0.5})])
def test_a_group_of_equal_rewards_counts_as_one_without_signal(tmp_path, sets, temperature, silent):
    shape = [
        "grpo.num_generations=16",
        "grpo.max_steps=2",
        "grpo.probe_steps=null",
        f"grpo.temperature={temperature}",
    ]
    log, _, _ = train(small(*shape), sets, tmp_path, "grpo")
    assert {record["frac_reward_zero_std"] for record in log} <= silent and all(
        record["reward"] > 0 for record in log
    )


def grpo_trainer(sets, folder, monkeypatch):
    """GRPO's trainer as it is before its first step, with adapters that say something."""
    monkeypatch.setattr(trainers, "fit", lambda trainer, *_: trainer)
    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", PlainLogProbs)
    model, tokenizer = models.load(TINY, small()), models.load_tokenizer(TINY, small())
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.02)
    return trainers.grpo(model, tokenizer, sets["grpo"], small(), folder, lambda *_: None), model, tokenizer


def test_log_probabilities_without_padding_are_those_with_it_and_so_are_their_gradients(
    tmp_path, sets, monkeypatch
):
    trainer, model, tokenizer = grpo_trainer(sets, tmp_path, monkeypatch)
    asked, said = 9, 40
    rng = torch.Generator().manual_seed(0)
    mask = torch.zeros(30, asked + said, dtype=torch.long)
    for row in mask:
        left, right = (
            torch.randint(0, asked, (1,), generator=rng),
            torch.randint(0, said, (1,), generator=rng),
        )
        row[left : asked + right] = 1  # of a completion that is masked as cut off, nothing
    ids = torch.randint(5, 60, mask.shape, generator=rng) * mask + tokenizer.pad_token_id * (1 - mask)
    shown, found = mask[:, asked:].bool(), []
    for compute in (
        trainer._get_per_token_logps_and_entropies,
        GRPOTrainer._get_per_token_logps_and_entropies.__get__(trainer),
    ):
        logps, entropies, _ = compute(model, ids, mask, said, compute_entropy=True)
        model.zero_grad()
        logps[shown].sum().backward()
        gradients = torch.cat(
            [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
        )
        assert logps.shape == entropies.shape == shown.shape
        found.append((logps[shown].detach(), entropies[shown].detach(), gradients))
    for ours, theirs in zip(*found, strict=True):
        assert ours.abs().sum() > 1 and torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_model_generates_with_its_adapters_merged_and_gets_its_weights_back_to_the_bit(
    tmp_path, sets, monkeypatch
):
    _, model, tokenizer = grpo_trainer(sets, tmp_path, monkeypatch)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    merged, products = trainers.complete(model, tokenizer, sets["heldout"], 40), []
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_A["default"].register_forward_hook(lambda *_: products.append(1))
    assert trainers.complete(model, tokenizer, sets["heldout"], 40) == merged and not products
    del model.generate
    assert trainers.complete(model, tokenizer, sets["heldout"], 40) == merged and products
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_what_is_trained_begins_with_the_tokens_of_generation_even_where_a_tag_merges_with_the_text_after_it(
    sets,
):
    p = small('prompt.think_start="12"', "prompt.think_end=/")
    tokenizer = models.load_tokenizer(TINY, p)
    row = {
        "prompt": sets["sft"][0]["prompt"],
        "completion": [{"role": "assistant", "content": "12 + 1 = 13/<SOLUTION>13</SOLUTION>"}],
    }
    asked = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    trained = trainers.tokenize([row], tokenizer)[0]
    assert trained["input_ids"][: len(asked)] == asked and trained["completion_mask"] == [0] * len(asked) + [
        1
    ] * (len(trained["input_ids"]) - len(asked))
    assert trained["input_ids"][-1] == tokenizer.eos_token_id


def test_packed_rows_do_not_see_each_other(tmp_path, sets):
    log = {}
    for packing in ("false", "true"):
        p = small(
            f"sft.packing={packing}",
            "sft.max_steps=1",
            "sft.batch_size=64",
            "model.max_length=256",
            "model.lora=null",
        )
        shortest = sorted(sets["sft"], key=lambda row: len(str(row)))[:16]
        log[packing], _, _ = train(p, sets | {"sft": shortest}, tmp_path / packing)
    assert losses(log["true"]) == pytest.approx(losses(log["false"]), rel=1e-4)


def test_evaluation_and_probes_are_logged_and_the_best_model_probed_is_what_stays(tmp_path, sets):
    p = small(
        "sft.eval_steps=3", "grpo.learning_rate=0.02", "grpo.max_steps=6", "grpo.max_completion_length=30"
    )
    log, _, _ = train(p, sets, tmp_path / "sft")
    assert len([r for r in log if "eval_loss" in r]) == 2
    log, model, tokenizer = train(p, sets, tmp_path / "grpo", "grpo")
    probes = {r["step"]: r["probe/accuracy"] for r in log if "probe/accuracy" in r}
    assert list(probes) == [0, 2, 4, 6]
    kept = json.loads((tmp_path / "grpo/trained/probe.json").read_text())
    assert kept["probe/accuracy"] == max(probes[step] for step in (2, 4, 6)) == probes[kept["step"]]
    apart = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(TINY), str(tmp_path / "grpo/trained")
    )
    answered = [trainers.complete(m, tokenizer, sets["heldout"], 30) for m in (model, apart)]
    assert answered[0] == answered[1], "the model in memory is another than the one that was kept"
    lines = read_lines(tmp_path / "grpo/samples.jsonl")
    assert {line["step"] for line in lines} == {1, 2, 4, 6} and {
        "completion",
        "accuracy_reward",
        "advantage",
    } <= lines[0].keys()


def test_dpo_comes_to_prefer_what_was_chosen(tmp_path, sets):
    p = small("dpo={learning_rate: 1.0e-3, batch_size: 4, max_steps: 8}")
    pairs = [
        {
            "prompt": row["prompt"],
            "chosen": row["completion"],
            "rejected": [{"role": "assistant", "content": "<start_working_out>no"}],
        }
        for row in sets["sft"]
    ]
    log = trainers.dpo(
        models.load(TINY, p), models.load_tokenizer(TINY, p), pairs, p, tmp_path, lambda *_: None
    )
    assert log[-1]["rewards/margins"] > log[0]["rewards/margins"] and losses(log)[-1] < losses(log)[0]


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"])
def test_every_loss_of_trl_trains(tmp_path, sets, loss):
    level = ["grpo.trl={importance_sampling_level: sequence}"] if loss == "luspo" else []
    p = small(
        f"grpo.loss_type={loss}",
        "grpo.max_steps=1",
        "grpo.probe_steps=null",
        "grpo.max_completion_length=16",
        *level,
    )
    assert len(losses(train(p, sets, tmp_path, "grpo")[0])) == 1


def test_a_loss_that_is_not_finite_stops_at_once_and_names_step_batch_and_checkpoint(
    tmp_path, sets, monkeypatch
):
    p = small()
    measure = SFTTrainer.compute_loss

    def poisoned(self, model, inputs, *args, **kwargs):
        loss = measure(self, model, inputs, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 3 else loss

    monkeypatch.setattr(SFTTrainer, "compute_loss", poisoned)
    with pytest.raises(AimoError) as e:
        train(p, sets, tmp_path)
    told = str(e.value)
    assert (
        "loss is nan at step 4" in told
        and "checkpoint-2" in told
        and "learning_rate 0.001" in told
        and "\n" not in told
    )
    assert not (tmp_path / "trained").exists()


@pytest.mark.parametrize(
    "stage, remedy", [("sft", "batch_size from 4 to 2"), ("grpo", "gradient_accumulation_steps from 1 to 2")]
)
def test_out_of_memory_names_the_setting_to_lower(tmp_path, sets, monkeypatch, stage, remedy):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SFTTrainer if stage == "sft" else GRPOTrainer, "compute_loss", full)
    with pytest.raises(AimoError, match=f"{stage}: out of memory at step 1; .*{remedy}"):
        train(small(), sets, tmp_path, stage)


def test_a_stage_stops_and_saves_before_its_time_limit(tmp_path, sets):
    p = small("training.time_limit_s=6", "sft.max_steps=100000", "sft.save_steps=100000")
    started = time.monotonic()
    log, _, _ = train(p, sets, tmp_path)
    assert time.monotonic() - started < 20 and 0 < len(losses(log)) < 100000
    last = max(record["step"] for record in log)
    assert (
        trainers.last_checkpoint(tmp_path) == str(tmp_path / f"checkpoint-{last}")
        and (tmp_path / "trained").exists()
    )


def test_a_stage_stops_before_its_disk_budget(tmp_path, sets):
    log, _, _ = train(small("training.disk_gb=0.001"), sets, tmp_path)
    assert len(losses(log)) == 2 and (tmp_path / "trained").exists()


@pytest.mark.parametrize(
    "override, told",
    [
        ("sft.trl={pakcing: true}", "sft.trl.pakcing: SFTConfig has no such key, did you mean packing"),
        ("sft.trl={learning_rate: 1}", "a key of its own"),
        ("sft.trl={train_sampling_strategy: group_by_length}", "a key of its own"),
        ("sft.use_liger_kernel=true", "pip install liger-kernel"),
        ("training.log_to=wandb", "pip install wandb"),
        ("model.load_in_4bit=true", "need a GPU"),
        ("model.dtype=float16", "cannot be trained on a CPU"),
    ],
)
def test_what_cannot_be_done_here_is_refused_in_one_line(tmp_path, sets, override, told):
    if "GPU" in told and torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(AimoError) as e:
        train(small(override), sets, tmp_path)
    assert told in str(e.value) and "\n" not in str(e.value)


def test_figures_go_to_tensorboard_by_one_key(tmp_path, sets):
    train(small("training.log_to=tensorboard", "sft.max_steps=1"), sets, tmp_path)
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_an_adapter_is_no_base(tmp_path, sets):
    train(small("sft.max_steps=1"), sets, tmp_path)
    with pytest.raises(AimoError, match=r"is an adapter for .*, not a model"):
        hub.local_folder(str(tmp_path / "trained"))


def test_an_adapter_for_another_base_is_not_gone_on_from(tmp_path, sets):
    train(small("sft.max_steps=2"), sets, tmp_path / "run")
    other = shutil.copytree(TINY, tmp_path / "another-base")
    with pytest.raises(
        AimoError, match=r"checkpoint-2 is an adapter for .*tiny-base, not for .*another-base"
    ):
        train(small("sft.max_steps=4"), sets, tmp_path / "run", start=other)


def test_weights_cut_off_in_a_checkpoint_make_it_incomplete(tmp_path, sets, capsys):
    train(small("sft.max_steps=4"), sets, tmp_path)
    weights = tmp_path / "checkpoint-4/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert "checkpoint-4 was not written to its end" in capsys.readouterr().out
