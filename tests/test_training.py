"""Trained stages on the tiny base: losses, resuming, probes, limits, and what is reported when it fails."""

import json
import os
import random
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TINY, here, settings

from aimo import config, pipeline
from aimo.data import prepare
from aimo.inference.errors import AimoError
from aimo.inference.prompts import Completion
from aimo.inference.storage import read_lines
from aimo.run import machine, runs
from aimo.train import arguments, callbacks, compat, dpo, grpo, models, sft, trainers

trains = pytest.mark.train


@pytest.fixture(autouse=True)
def without_unsloths_marks(monkeypatch):
    """Recipes in the same process may have trained with Unsloth, which asks for logits from then on."""
    monkeypatch.delenv("UNSLOTH_RETURN_LOGITS", raising=False)


# ---- Checkpoints and the order of rows, without training


def checkpoint(folder, step, state=None, lacking=0):
    """A checkpoint's folder: its state is this text ("" leaves it out), its weights lack some bytes."""
    import torch
    from safetensors.torch import save

    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    if state != "":
        (path / "trainer_state.json").write_text(state or json.dumps({"global_step": step}))
    weights = save({"weight": torch.zeros(9)})
    (path / "adapter_model.safetensors").write_bytes(weights[: len(weights) - lacking])
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_cut_off_while_it_was_written_is_removed_and_the_one_before_is_used(tmp_path, capsys):
    assert callbacks.last_checkpoint(tmp_path) is None
    checkpoint(tmp_path, 50)
    checkpoint(tmp_path, 100)
    checkpoint(tmp_path, 150, '{"global_st')
    checkpoint(tmp_path, 200, "")
    checkpoint(tmp_path, 250, lacking=1)
    assert callbacks.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")
    assert names(tmp_path) == ["checkpoint-100", "checkpoint-50"]
    assert "checkpoint-150 was not written to its end" in capsys.readouterr().out


@pytest.mark.parametrize(
    "place, step, kept", [("best", 75, ["best"]), ("trained", 75, ["best"]), ("trained", 125, [])]
)
def test_a_stage_continues_from_a_named_checkpoint_with_the_best_model_probed_until_then(
    tmp_path, place, step, kept
):
    for number in (50, 100, 150):
        checkpoint(tmp_path / "sft", number)
    for product in (place, "model"):
        (tmp_path / "sft" / product).mkdir()
    (tmp_path / "sft" / place / "probe.json").write_text(json.dumps({"step": step, "probe/accuracy": 0.5}))
    for wrong in ("checkpoint-70", "../sft/checkpoint-50"):
        with pytest.raises(AimoError, match=r"no such checkpoint in .*; there are: checkpoint-150"):
            pipeline.check_run(config.load("tiny"), tmp_path, f"sft/{wrong}", None)
    callbacks.keep_until(tmp_path / "sft", "checkpoint-100")
    assert names(tmp_path / "sft") == [*kept, "checkpoint-100", "checkpoint-50"]


def test_rows_of_a_step_are_of_like_length_the_longest_first_and_every_row_comes_once():
    import torch

    lengths = [10 + row * row % 977 for row in range(100)]
    sampler = sft.ByLength(lengths, rows_per_step=8)
    for seed in range(5):
        sampler.generator = torch.Generator().manual_seed(seed)
        order = list(sampler)
        steps = [[lengths[row] for row in order[i : i + 8]] for i in range(0, 100, 8)]
        assert sorted(order) == list(range(100)) and max(lengths) in steps[0]
        padded = sum(max(step) * len(step) for step in steps)
        assert padded < 1.2 * sum(lengths), "more padding than a fifth"
        means = [sum(step) for step in steps[1:-1]]
        assert means not in (sorted(means), sorted(means, reverse=True)), "the steps are sorted by length"


# ---- Training


FEW = """
data.sft.rows=64 data.grpo.rows=64 data.heldout.rows=8 data.grpo.test_split=0.1 data.sft.test_split=0.1
model.backend=transformers sft.batch_size=4 sft.max_steps=6 sft.save_steps=2
grpo.max_steps=4 grpo.save_steps=2 grpo.sample_steps=2 grpo.probe_steps=2
grpo.prompts_per_step=2 grpo.num_generations=4 grpo.max_completion_length=40
"""


def small(*overrides):
    """The tiny profile with few rows, quick to train."""
    return config.load("tiny", [*FEW.split(), *overrides])


def test_the_order_of_rows_follows_the_seed_and_the_epoch():
    from torch.utils.data import RandomSampler

    def order(seed, epoch, data_seed=None):
        args = SimpleNamespace(seed=seed, data_seed=data_seed)
        trainer = SimpleNamespace(args=args, state=SimpleNamespace(epoch=epoch))
        return list(trainers.Seeded(RandomSampler(range(100)), trainer))

    assert order(0, None) == order(0, 0) == order(3, 0, data_seed=0)
    assert order(0, 0) != order(0, 1.0) != order(0, 2.0)
    assert order(0, 1.0) == order(0, 1.35) != order(5, 1.0)


@pytest.fixture(scope="module")
def sets(one_thread):
    """The tiny profile's data, few of them."""

    p = small()
    prepared = prepare.clean_sets(prepare.load_sets(p), p, models.load_tokenizer(TINY, p))
    return {name: rows.to_dicts() for name, rows in prepare.format_sets(prepared, p).items()}


def loaded(p, start=TINY):
    return models.load_model(start, p), models.load_tokenizer(start, p)


def train(p, sets, folder, stage="sft", start=TINY):
    """A stage of the run in `folder`, as its notebook does it: its log, the model and the tokenizer."""

    folder.mkdir(exist_ok=True)
    model, tokenizer = loaded(p, start)
    more = {"probe": sets["grpo_test"]} | ({"test": sets["sft_test"]} if stage == "sft" else {})
    rows, run = sets["pairs" if stage == "dpo" else stage], runs.Run(p, folder, stage, time.time())
    return models.training_of(stage)(model, tokenizer, rows, run, **more), model, tokenizer


def built(p, rows, folder, stage):
    """A stage's trainer as it is before its first step, its model and tokenizer."""
    with pytest.MonkeyPatch.context() as m:
        for module in (grpo, sft):
            m.setattr(module, "fit", lambda trainer, *_: trainer)
        return train(p, {stage: rows, "grpo_test": [], "sft_test": []}, folder, stage)


def losses(log):
    return [record["loss"] for record in log if "loss" in record]


def stop_at(last, patch):
    """Let a person stop every training after a step."""

    def stop(self, args, state, control, **_):
        if state.global_step == last:
            raise KeyboardInterrupt

    patch.setattr(callbacks.Budgets, "on_step_end", stop)


@pytest.fixture(scope="module")
def done(sets, tmp_path_factory):
    """A small SFT with an evaluation, TensorBoard and a saved model; its folder is read only."""

    run = tmp_path_factory.mktemp("run")
    p = small("sft.learning_rate=0.01", "sft.eval_steps=3", "training.log_to=tensorboard")
    log, model, tokenizer = train(p, sets, run)
    models.save_model(runs.Run(p, run, "sft", 0.0), tokenizer, trainers.summary(log))
    return SimpleNamespace(p=p, run=run, folder=run / "sft", log=log, model=model, tokenizer=tokenizer)


@trains
def test_a_stage_has_its_mean_loss_its_speed_its_operations_its_evaluations_and_a_card_for_the_hub(done):
    card = (done.folder / "model/README.md").read_text()
    assert "learning_rate: 0.01" in card and "| steps | 6 |" in card and "base_model" not in card
    figures = trainers.summary(done.log)
    assert figures["steps"] == 6 and figures["loss"] == round(losses(done.log)[-1], 4)
    assert figures["mean_loss"] == pytest.approx(sum(losses(done.log)) / 6, abs=1e-4)
    assert figures["samples_per_second"] == pytest.approx(4 * figures["steps_per_second"], rel=0.01)
    assert figures["steps_per_second"] * figures["train_seconds"] == pytest.approx(6, rel=0.01)
    # Six operations a parameter and token, forward and backward; the embedding is not counted.
    tokens = max(record.get("num_tokens", 0) for record in done.log)
    parameters = sum(weight.numel() for weight in done.model.parameters())
    assert 0.5 < figures["total_flos"] / (6 * parameters * tokens) < 2
    assert [record["step"] for record in done.log if "eval_loss" in record] == [3, 6]
    assert list(done.run.rglob("events.out.tfevents.*"))


@trains
def test_an_adapter_continues_on_no_other_base(done, sets, tmp_path):
    shutil.copytree(done.folder / "checkpoint-6", tmp_path / "sft/checkpoint-6")
    other = shutil.copytree(TINY, tmp_path / "another-base")
    with pytest.raises(
        AimoError, match=r"checkpoint-6 is an adapter for .*tiny-base, not for .*another-base"
    ):
        train(small("sft.max_steps=8"), sets, tmp_path, start=other)


@trains
@pytest.mark.parametrize("stage, steps, rows", [("sft", 8, 13), ("grpo", 5, 5)])  # epochs end within a step
def test_a_run_killed_at_any_step_ends_with_the_losses_of_an_uninterrupted_one(
    tmp_path, sets, monkeypatch, stage, steps, rows
):
    # With dynamic sampling, which draws further prompts, and a reference.
    rate, sampling = "grpo.learning_rate=0.001", ["grpo.probe_steps=null", "grpo.max_resample=2"]
    sampling += ["grpo.beta=0.1"]
    p, few = small(f"{stage}.max_steps={steps}", rate, *sampling), sets | {stage: sets[stage][:rows]}
    whole, _, _ = train(p, few, tmp_path / "whole", stage)
    broken, last = tmp_path / "broken", random.randint(1, steps - 1)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        stop_at(last, m)
        train(p, few, broken, stage)
    again, _, _ = train(p, few, broken, stage)
    assert losses(again) == pytest.approx(losses(whole), abs=1e-5), f"killed at step {last}"
    assert [r.get("reward") for r in again] == [r.get("reward") for r in whole], f"killed at step {last}"
    for log in (again, read_lines(broken / stage / "log.jsonl")):
        trained = [record["step"] for record in log if "loss" in record]
        assert trained == list(range(1, steps + 1)), "a step was lost or trained twice"
    figures = [trainers.summary(log) for log in (again, whole)]
    for name in ("mean_loss", "total_flos"):
        assert figures[0][name] == pytest.approx(figures[1][name], rel=1e-3), name


@trains
@pytest.mark.parametrize("stage, last", [("sft", 6), ("grpo", 2)])
def test_a_stage_that_was_trained_to_its_end_is_saved_as_it_was_and_not_trained_on(
    tmp_path, sets, stage, last
):
    p, folder = small("grpo.learning_rate=0.01", "grpo.max_steps=2"), tmp_path / stage
    first, *_ = train(p, sets, tmp_path, stage)
    kept = shutil.copytree(folder / "trained", tmp_path / "kept")
    again, *_ = train(p, sets, tmp_path, stage)
    assert losses(again) == losses(first) and max(record["step"] for record in again) == last
    for file in kept.glob("*.safetensors"):
        assert file.read_bytes() == (folder / "trained" / file.name).read_bytes()
    assert "best" not in names(folder)


@trains
def test_a_model_that_an_interrupted_training_changed_is_not_trained_on_without_a_checkpoint(
    tmp_path, sets, monkeypatch
):
    p = small("sft.save_steps=4")
    stop_at(2, monkeypatch)
    asked = *loaded(p), sets["sft"], runs.Run(p, tmp_path, "sft", time.time())
    with pytest.raises(KeyboardInterrupt):
        sft.train_sft(*asked)
    with pytest.raises(AimoError, match=r"the model in memory has been trained on.* load it[^\n]*$"):
        sft.train_sft(*asked)


# ---- GRPO's samples


@trains
def test_a_step_trains_on_the_groups_with_signal_of_no_more_prompts_than_allowed(tmp_path, sets, monkeypatch):
    import trl

    batches, compute_loss = [], trl.GRPOTrainer.compute_loss

    def seen(self, model, inputs, *args, **kwargs):
        batches.append(inputs)
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(trl.GRPOTrainer, "compute_loss", seen)
    shape = ["grpo.gradient_accumulation_steps=2", "grpo.max_steps=3", "grpo.probe_steps=null"]
    cut_off = ["grpo.max_completion_length=24", "grpo.mask_truncated_completions=true"]
    log, _, _ = train(small(*shape, *cut_off, "grpo.max_resample=3"), sets, tmp_path, "grpo")
    steps = [record for record in log if "loss" in record]
    tried = [record["groups/tried"] for record in steps]
    assert len(batches) == 2 * len(steps) and all(2 <= groups <= 6 for groups in tried) and max(tried) > 2
    for pair in zip(batches[::2], batches[1::2], strict=True):
        groups = {}
        for batch in pair:
            for row, advantage in enumerate(batch["advantages"]):
                counts = bool(batch["completion_mask"][row].any()) and abs(advantage) > 1e-3
                prompt = tuple(batch["prompt_ids"][row][batch["prompt_mask"][row].bool()].tolist())
                groups.setdefault(prompt, []).append(counts)
        assert all(any(group) and len(group) % 4 == 0 for group in groups.values()), groups
    assert any(record["frac_reward_zero_std"] > 0 for record in steps)


def test_vllm_gets_to_the_bit_what_trl_would_send_and_frozen_weights_once():
    """On a GPU; the model has adapters on two kinds of layers of seven, and the rest is frozen."""
    import copy
    from contextlib import nullcontext
    from unittest.mock import MagicMock

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from trl.generation.vllm_generation import VLLMGeneration

    adapters = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.bfloat16), adapters)
    frozen = {name: w.clone() for name, w in model.named_parameters() if not w.requires_grad}

    def generation(kind, model):
        made = object.__new__(kind)
        made.model, made.mode, made.enable_sleep_mode, made.llm = model, "colocate", False, MagicMock()
        made.accelerator = SimpleNamespace(device=torch.device("cuda"), is_main_process=True)
        made._dist = SimpleNamespace(is_fsdp=False, is_zero3=False, gather_params=lambda _: nullcontext())
        return made

    def sent(made):
        """What vLLM gets."""
        found = {}
        runner = made.llm.llm_engine.model_executor.driver_worker.model_runner
        runner.model.load_weights = lambda weights: found.update((name, w.clone()) for name, w in weights)
        made.sync_weights()
        return found

    ours, moved = generation(compat.ExactGeneration, model), []
    for step in range(3):
        wanted, got = sent(generation(VLLMGeneration, copy.deepcopy(model))), sent(ours)
        assert got.keys() == wanted.keys() if step == 0 else got.keys() < wanted.keys()
        assert all(torch.equal(weight, wanted[name]) for name, weight in got.items())
        assert all(torch.equal(weight, frozen[n]) for n, weight in model.named_parameters() if n in frozen)
        moved.append(sum(weight.nbytes for weight in got.values()))
        for name, weight in model.named_parameters():
            weight.data += 0.1 if "lora" in name else 0.0
    assert {name.split(".")[-2] for name in got} == {"q_proj", "v_proj"}
    assert moved[1] == moved[2] < 0.2 * moved[0]


# ---- Token ids, packed rows on disk


def row(text, question="What is 12 + 1?"):
    turns = {"prompt": ("user", question), "completion": ("assistant", text)}
    return {key: [{"role": role, "content": content}] for key, (role, content) in turns.items()}


def tokenizer_of(*overrides):
    return models.load_tokenizer(TINY, config.load("tiny", list(overrides)))


def test_what_is_trained_begins_with_the_tokens_of_generation_even_where_a_tag_merges_with_what_follows():
    tokenizer = tokenizer_of("prompt.think_start=tog", "prompt.think_end=/")
    talk = row("together 13/<SOLUTION>13</SOLUTION>")
    asked = tokenizer.apply_chat_template(talk["prompt"], add_generation_prompt=True, return_dict=False)
    (trained,) = sft.tokenize([talk], tokenizer)
    replied = len(trained["input_ids"]) - len(asked)
    assert trained["input_ids"][: len(asked)] == asked
    assert trained["completion_mask"] == [0] * len(asked) + [1] * replied
    assert trained["input_ids"][-1] == tokenizer.eos_token_id
    as_one_text = tokenizer.apply_chat_template(talk["prompt"] + talk["completion"], return_dict=False)
    assert tokenizer.decode(as_one_text) == tokenizer.decode(trained["input_ids"])
    assert as_one_text[: len(asked)] != asked, "this tag does not merge with what follows"


def test_rows_are_tokenized_once_and_again_when_rows_or_template_change(tmp_path):
    args = arguments.stage_arguments(runs.Run(small(), tmp_path, "sft", 0.0))

    def made(rows, *overrides):
        """The token ids, and how many sets of them are kept."""
        found = sft.read_or_tokenize(rows, tokenizer_of(*overrides), args, tmp_path)["input_ids"]
        return list(found), len(list((tmp_path / "tokens").iterdir()))

    rows = [row(f"{i} apples") for i in range(40)]
    first, _ = made(rows)
    assert made(rows) == (first, 1)
    other, count = made([*rows[:-1], row("40 pears")])
    assert count == 2 and other[:-1] == first[:-1] and other[-1] != first[-1]
    assert made(rows[::-1]) == (first[::-1], 3) and made(rows, "prompt.system=Think.")[1] == 4


LONG = ["sft.packing=true", "model.backend=transformers", "model.max_length=64", "grpo=null"]


@trains
def test_rows_are_packed_once_pushed_trained_on_elsewhere_and_packed_again_when_a_row_changes(
    tmp_path, monkeypatch
):
    import polars as pl
    from datasets import Dataset

    folder, pushed, overrides = tmp_path / "run", [], settings(LONG)
    runs.open_folder(folder, config.load("tiny", LONG))
    runs.unlock(folder)
    rows = [row(f"so {i}<end_working_out><SOLUTION>2</SOLUTION>", "What is 1 + 1?") for i in range(40)]
    (folder / "data").mkdir()
    pl.DataFrame(rows).write_parquet(folder / "data/sft.parquet")
    (folder / "data/README.md").touch()

    def pack(*more):
        """The file that the command prints, and when it was written."""
        done = here("data", "pack", "--profile", "tiny", "--run-dir", folder, *overrides, *more)
        runs.unlock(folder)
        assert not done.returncode and "40 rows in " in done.stdout, done.stderr
        kept = tmp_path / done.stdout.split("full: ")[1].split("\n")[0]
        return kept.relative_to(folder), kept.stat().st_mtime_ns

    def trained_on(folder):
        return built(config.load("tiny", LONG), prepare.read_set(folder / "data", "sft"), folder, "sft")[0]

    def push(self, repo, private):
        pushed.append((repo, private, max(map(len, self["input_ids"])) <= 64))
        return SimpleNamespace(commit_url="hub/packed")

    alone = trained_on(shutil.copytree(folder, tmp_path / "alone")).train_dataset
    kept, made = pack()
    monkeypatch.setattr(Dataset, "push_to_hub", push)
    assert pack("--push-to-hub", "me/packed") == (kept, made) and pushed == [("me/packed", True, True)]
    moved = shutil.copytree(folder, tmp_path / "copied")  # as to another machine
    dataset = trained_on(moved).train_dataset
    assert dataset.to_list() == alone.to_list()
    assert [Path(file["filename"]).name for file in dataset.cache_files] == [kept.name]
    assert (moved / kept).stat().st_mtime_ns == made
    pl.DataFrame(rows[::-1]).write_parquet(folder / "data/sft.parquet")
    assert pack()[0] != kept


# ---- Long rows and packing


def tokens_of(rows, p):
    """Each row's token ids and labels, by the tokenizer alone."""
    return [
        (row["input_ids"], [i if m else -100 for i, m in zip(*row.values(), strict=True)])
        for row in sft.tokenize(rows, models.load_tokenizer(TINY, p))
    ]


@trains
def test_rows_longer_than_the_context_are_cut_there_and_dropped_only_without_a_trained_token(sets, tmp_path):
    rows = sets["sft"][:20]
    whole = tokens_of(rows, small())
    prompts = [sum(label == -100 for label in labels) for _, labels in whole]
    limit = sorted(prompts)[10]  # some prompts alone fill it
    p = small(f"model.max_length={limit}", "grpo.max_prompt_length=1", "grpo.max_completion_length=1")
    dataset = built(p, rows, tmp_path, "sft")[0].train_dataset
    expected = [(ids[:limit], labels[:limit]) for ids, labels in whole if set(labels[:limit]) != {-100}]
    assert 0 < len(expected) < len(rows)
    assert list(zip(dataset["input_ids"], dataset["labels"], strict=True)) == expected


@trains
def test_packed_rows_do_not_see_each_other_but_wrapped_ones_do(tmp_path, sets):
    shortest = sorted(sets["sft"], key=lambda row: len(str(row)))[:16]
    log = {}
    for packing in ("packing: false", "packing: true", "packing: true, packing_strategy: wrapped"):
        keys = f"sft={{learning_rate: 1.0e-3, {packing}, max_steps: 1, batch_size: 64}}"
        p = small(keys, "model.max_length=256", "model.lora=null")
        log[packing], _, _ = train(p, sets | {"sft": shortest}, tmp_path / str(len(log)))
    apart, packed, wrapped = (losses(records) for records in log.values())
    assert packed == pytest.approx(apart, rel=1e-4) and wrapped != pytest.approx(apart, rel=1e-4)
    tokens = {records[0]["num_tokens"] for records in log.values()}
    assert tokens == {sum(len(ids) for ids, _ in tokens_of(shortest, small()))}


def test_packing_that_unsloth_would_leave_out_is_refused(sets, tmp_path, monkeypatch):
    class Unpacked(sft.SftTrainer):
        def __init__(self, *, args, **keywords):
            args.packing = False  # as Unsloth's trainer does, with a line in the log

    monkeypatch.setattr(sft, "make_trainer", lambda kind, run, **given: kind(**given))
    monkeypatch.setattr(sft, "SftTrainer", Unpacked)
    with pytest.raises(AimoError, match="Unsloth does not pack the rows"):
        train(small("sft.packing=true"), sets, tmp_path)


# ---- Probes, DPO


@pytest.fixture(scope="module")
def grpo_trainer(sets, tmp_path_factory):
    """GRPO's trainer before its first step, with adapters that say something."""
    import torch

    trainer, model, tokenizer = built(small(), sets["grpo"], tmp_path_factory.mktemp("grpo"), "grpo")
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.02)
    return trainer, model, tokenizer


@trains
def test_log_probabilities_without_padding_are_those_with_it_and_so_are_their_gradients(grpo_trainer):
    import torch
    from trl import GRPOTrainer

    trainer, model, tokenizer = grpo_trainer
    asked, replied = 9, 40
    rng = torch.Generator().manual_seed(0)
    mask = torch.zeros(30, asked + replied, dtype=torch.long)
    for row in mask:
        left = torch.randint(0, asked, (1,), generator=rng)
        right = torch.randint(0, replied, (1,), generator=rng)
        row[left : asked + right] = 1  # of a completion that is masked as cut off, nothing
    ids = torch.randint(5, 60, mask.shape, generator=rng) * mask + tokenizer.pad_token_id * (1 - mask)
    shown, found, widths = mask[:, asked:].bool(), [], []
    model.get_base_model().model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    ours = trainer._get_per_token_logps_and_entropies
    theirs = GRPOTrainer._get_per_token_logps_and_entropies.__get__(trainer)
    for compute in (ours, theirs):
        logps, entropies, _ = compute(model, ids, mask, replied, compute_entropy=True)
        model.zero_grad()
        logps[shown].sum().backward()
        weights = [weight for weight in model.parameters() if weight.grad is not None]
        gradients = torch.cat([weight.grad.flatten() for weight in weights])
        assert logps.shape == entropies.shape == shown.shape
        found.append((logps[shown].detach(), entropies[shown].detach(), gradients))
    for mine, other in zip(*found, strict=True):
        assert mine.abs().sum() > 1 and torch.allclose(mine, other, rtol=1e-3, atol=1e-4)
    assert len(widths) == 5 and min(widths) < widths[-1] == asked + replied, "nothing was trimmed"


def right_first(texts, count):
    return [i < count for i in range(len(texts))]


@trains
def test_probes_are_logged_and_the_best_model_probed_is_what_is_kept(tmp_path, sets, monkeypatch):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    rights = iter([1, 3, 2])  # of the probes at steps 0, 2 and 4: the last model is not the best
    monkeypatch.setattr(callbacks, "are_correct", lambda texts, *_: right_first(texts, next(rights)))
    p = small("grpo.learning_rate=0.02", "grpo.max_completion_length=30")
    log, model, tokenizer = train(p, sets, tmp_path, "grpo")
    probes = {r["step"]: r["probe/accuracy"] for r in log if "probe/accuracy" in r}
    kept = json.loads((tmp_path / "grpo/trained/probe.json").read_text())
    assert list(probes) == [0, 2, 4]
    assert kept["step"] == 2 and kept["probe/accuracy"] == probes[2] > probes[4]
    apart = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(TINY), tmp_path / "grpo/trained")
    answered = [models.complete(m, tokenizer, sets["heldout"], 30) for m in (model, apart)]
    assert answered[0] == answered[1], "the model in memory is another than the one that was kept"
    lines = read_lines(tmp_path / "grpo/samples.jsonl")
    assert {line["step"] for line in lines} == {1, 2, 4}
    assert {"completion", "accuracy_reward", "advantage"} <= lines[0].keys()
    figures = trainers.summary(log)
    assert figures["probe_accuracy"] == round(probes[4], 4) and figures["total_flos"] > 0


@pytest.mark.parametrize("opening", ["", "<start_working_out>"])
@pytest.mark.parametrize(
    "group, expected",
    [  # completions as (text, tokens, right), a fourth value: cut off
        ([("a", 10, True), ("b", 30, True)], [("long", "a", "b")]),
        ([("a", 10, True), ("b", 12, True)], []),
        ([("a", 10, True), ("b", 30, False), ("c", 20, False)], [("wrong", "a", "b")]),
        ([("a", 10, True), ("b", 30, True), ("c", 5, False)], [("long", "a", "b"), ("wrong", "a", "c")]),
        ([("a", 5, True, "cut off"), ("b", 9, True), ("c", 7, False)], [("wrong", "b", "c")]),
        ([("a", 10, False), ("b", 30, False)], []),
    ],
)
def test_the_shortest_right_completion_is_preferred_to_a_long_one_and_to_a_wrong_one(
    group, expected, opening
):
    """Each reply begins with the tag that its prompt ends in."""
    completions = [Completion(text, [0] * tokens, not cut) for text, tokens, _, *cut in group]
    profile = config.load("tiny", [f"prompt.prefill={json.dumps(bool(opening))}"])
    found = dpo.pair_up("prompt", completions, [right for _, _, right, *_ in group], profile)
    told = [(row["kind"], row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in found]
    assert told == [(kind, opening + chosen, opening + rejected) for kind, chosen, rejected in expected]
    assert all(row["prompt"] == "prompt" for row in found)


@trains
def test_dpo_comes_to_prefer_what_was_chosen_also_if_its_cell_is_stopped_and_run_again(
    tmp_path, sets, monkeypatch
):
    p = small("dpo={learning_rate: 1.0e-3, batch_size: 4, max_steps: 6, save_steps: 2}")
    no = [{"role": "assistant", "content": "<start_working_out>no"}]
    rows = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": no} for r in sets["sft"]]
    log, _, _ = train(p, sets | {"pairs": rows}, tmp_path, "dpo")
    steps = [record for record in log if "loss" in record]
    assert steps[-1]["rewards/margins"] > steps[0]["rewards/margins"] and losses(log)[-1] < losses(log)[0]

    (tmp_path / "stopped").mkdir()
    run = runs.Run(p, tmp_path / "stopped", "dpo", time.time())
    asked = *loaded(p), rows, run
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        stop_at(3, m)
        dpo.train_dpo(*asked)
    again = [record for record in dpo.train_dpo(*asked) if "loss" in record]  # the model in memory
    for last in (6, 4):  # another process
        (run.folder / f"checkpoint-{last}").rename(tmp_path / f"{last}")
    anew = [record for record in dpo.train_dpo(*loaded(p), rows, run) if "loss" in record]
    for name in ("loss", "rewards/margins"):
        assert [[record[name] for record in log] for log in (again, anew)] == 2 * [[r[name] for r in steps]]


# ---- Failures


@trains
@pytest.mark.parametrize(
    "stage, keys, told",
    [
        ("grpo", ["grpo.prompts_per_step=8"], "grpo: 5 rows do not make a step, which takes 8; lower"),
        ("sft", ["sft.batch_size=8", "sft.trl={dataloader_drop_last: true}"], "5 rows do not make a step"),
        ("sft", ["model.max_length=3", "grpo=null"], "sft: 0 rows do not make a step"),
    ],
)
def test_rows_too_few_for_a_step_are_refused_in_one_line(tmp_path, sets, stage, keys, told):
    with pytest.raises(AimoError, match=told) as e:
        train(small(*keys), sets | {stage: sets[stage][:5]}, tmp_path, stage)
    assert "\n" not in str(e.value) and not list(tmp_path.rglob("trained"))


@trains
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_at_once_and_names_step_batch_and_checkpoint(
    tmp_path, sets, monkeypatch, what
):
    from accelerate import Accelerator
    from trl import SFTTrainer

    kind, name = (SFTTrainer, "compute_loss") if what == "loss" else (Accelerator, "clip_grad_norm_")
    measure, calls = getattr(kind, name), []

    def broken(*args, **kwargs):
        calls.append(measure(*args, **kwargs))
        return calls[-1] * float("nan") if len(calls) == 4 else calls[-1]

    monkeypatch.setattr(kind, name, broken)
    told = rf"{what} is nan at step 4, in the batch of '.*learning_rate 0\.001.*checkpoint-2"
    with pytest.raises(AimoError, match=told):
        train(small(), sets, tmp_path)
    assert not (tmp_path / "sft/trained").exists()


@trains
def test_the_advice_when_memory_runs_out_continues_the_run_with_the_same_losses(tmp_path, sets, monkeypatch):
    import torch
    import trl

    measure = trl.SFTTrainer.compute_loss

    def full(self, model, inputs, *args, **kwargs):
        if self.state.global_step == 3 and len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measure(self, model, inputs, *args, **kwargs)

    whole, _, _ = train(small(), sets, tmp_path / "whole")
    runs.open_folder(tmp_path / "run", small())
    runs.unlock(tmp_path / "run")
    monkeypatch.setattr(trl.SFTTrainer, "compute_loss", full)
    with pytest.raises(AimoError, match=r"sft: out of memory at step 4; .*sft\.batch_size=2") as e:
        train(small(), sets, tmp_path / "run")
    advised = re.findall(r"--set ([\w.=]+)", str(e.value))  # `test_placement` gives the whole command
    again, _, _ = train(small(*advised), sets, tmp_path / "run")
    assert losses(again) == pytest.approx(losses(whole), rel=1e-3)


@pytest.mark.parametrize(
    "limit, event, told",
    [
        ("training.time_limit_s=60", "on_step_end", "the time limit of 60 s"),
        ("training.disk_gb=0.5", "on_save", "the disk budget of 0.5 GB"),
    ],
)
def test_a_stage_stops_before_its_limit_of_time_or_disk(tmp_path, limit, event, told):
    from transformers import TrainerControl, TrainerState

    weights = checkpoint(tmp_path / "sft", 2) / "adapter_model.safetensors"
    os.truncate(weights, 3 * 10**8)  # another checkpoint like it would pass half a gigabyte
    for profile, reason in ((small(), ""), (small(limit), told)):
        watching, control = callbacks.Budgets(runs.Run(profile, tmp_path, "sft", 0.0)), TrainerControl()
        watching.started -= 59
        watching.last_step -= 1
        getattr(watching, event)(None, TrainerState(global_step=2), control)
        assert (control.should_training_stop, watching.reason) == (bool(reason), reason)


@trains
def test_a_stage_stops_before_the_session_ends_with_a_checkpoint_to_go_on_from(tmp_path, sets, monkeypatch):
    p = small("sft.max_steps=100000", "sft.save_steps=100000")
    monkeypatch.setenv(runs.SESSION_END, str(time.monotonic() + 3))
    first = trainers.summary(train(p, sets, tmp_path)[0])
    assert 0 < first["steps"] < 100000 and first["stopped"] == runs.SESSION_OVER
    assert callbacks.last_checkpoint(tmp_path / "sft") == str(tmp_path / f"sft/checkpoint-{first['steps']}")
    second = trainers.summary(train(p, sets, tmp_path)[0])  # the session is over: one step more
    assert second["steps"] == first["steps"] + 1


def test_four_bit_weights_need_a_gpu(monkeypatch):
    monkeypatch.setattr(machine, "computes_on_gpu", lambda: False)
    with pytest.raises(AimoError, match="need a GPU"):
        loaded(small("model.load_in_4bit=true"))
