"""Keys of a profile reach TRL's configuration; a key under `trl` wins, or the key to set instead is named."""

import pytest

from aimo import config
from aimo.inference.errors import AimoError
from aimo.run import runs

DPO = "dpo={learning_rate: 1.0e-3}"
OPD = "opd={learning_rate: 1.0e-3, teacher: data/tiny-base}"


def arguments(stage, folder, *overrides):
    """TRL's configuration of a stage of the tiny profile."""
    from aimo.train import arguments

    profile = config.load("tiny", ["model.backend=transformers", DPO, OPD, *overrides])
    return arguments.stage_arguments(runs.Run(profile, folder, stage, 0.0))


@pytest.mark.parametrize(
    "stage, key, value",
    [
        ("sft", "completion_only_loss", False),
        ("sft", "lr_scheduler_kwargs", {"num_cycles": 2}),
        ("grpo", "logging_nan_inf_filter", True),
        ("grpo", "num_iterations", 2),
        ("dpo", "loss_type", ["ipo"]),
        ("opd", "repetition_penalty", 1.1),
    ],
)
def test_a_key_that_the_profile_has_not_goes_to_trl_over_what_we_fix(tmp_path, stage, key, value):
    plain, changed = (arguments(stage, tmp_path, *o) for o in ([], [f"{stage}.trl={{{key}: {value}}}"]))
    assert getattr(plain, key) != value == getattr(changed, key)


@pytest.mark.parametrize(
    "stage, key, told",
    [
        ("sft", "num_train_epochs", "it is called sft.epochs here"),
        ("grpo", "learning_rate", "it is called grpo.learning_rate here"),
        ("sft", "max_length", "it is called model.max_length here"),
        ("dpo", "per_device_train_batch_size", "it is called dpo.batch_size here"),
        ("opd", "beta", "it is called opd.divergence here"),
        ("grpo", "vllm_server_port", "it is called grpo.vllm_server_url here"),
        ("sft", "resume_from_checkpoint", "use --from STAGE/checkpoint-N instead"),
        ("sft", "pakcing", "SFTConfig has no such key, did you mean packing"),
    ],
)
def test_a_key_that_would_be_ignored_is_refused_by_the_name_of_what_to_set(tmp_path, stage, key, told):
    with pytest.raises(AimoError, match=rf"^{stage}\.trl\.{key}.*{told}"):
        arguments(stage, tmp_path, f"{stage}.trl={{{key}: 1}}")


def test_every_key_that_cannot_be_set_has_an_answer():
    from aimo.config.reading import suggest
    from aimo.train.arguments import TAKEN

    assert all(suggest(f"sft.{key}").startswith((", it is called", ", use", ", leave")) for key in TAKEN)


def test_the_least_rate_has_a_key_of_its_own_where_the_scheduler_has_one(tmp_path):
    scheduler = "sft.scheduler=cosine_with_min_lr"
    args = arguments("sft", tmp_path, scheduler, "sft.min_lr_rate=0.2")
    assert args.lr_scheduler_kwargs == {"min_lr_rate": 0.2}
    with pytest.raises(AimoError, match=r"it is called sft\.min_lr_rate here"):
        arguments("sft", tmp_path, scheduler, "sft.trl={lr_scheduler_kwargs: {min_lr: 1.0e-6}}")


@pytest.mark.parametrize(
    "attention, strategy, batch, steps",
    [("sdpa", "bfd", 1, 32), ("flash_attention_2", "bfd", 4, 8), ("sdpa", "wrapped", 4, 8)],
)
def test_a_step_has_the_same_rows_however_they_are_packed(tmp_path, attention, strategy, batch, steps):
    packing = ["sft.packing=true", f"sft.packing_strategy={strategy}", f"model.attention={attention}"]
    args = arguments("sft", tmp_path, *packing, "sft.batch_size=4", "sft.gradient_accumulation_steps=8")
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (batch, steps)
    assert args.packing_strategy == strategy


@pytest.mark.parametrize(
    "override, told",
    [
        ("sft.use_liger_kernel=true", "pip install liger-kernel"),
        ("training.log_to=wandb", "pip install wandb"),
        ("model.dtype=float16", "cannot be trained on a CPU"),
        ("sft.trl={load_best_model_at_end: true, save_strategy: steps}", "sft: .*eval"),  # TRL's own words
    ],
)
def test_what_cannot_be_done_here_is_refused_with_the_remedy(tmp_path, override, told):
    import torch

    if torch.cuda.is_available() and "CPU" in told:
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(AimoError, match=told):
        arguments("sft", tmp_path, override)


@pytest.mark.parametrize("given", ["http://host:8000", "http://host:8000/v1", "http://host:8000/v1/"])
def test_a_teachers_server_may_be_named_as_aimo_serve_prints_it(tmp_path, given):
    assert arguments("opd", tmp_path, f"opd.teacher={given}").teacher_model_server_url == "http://host:8000"
