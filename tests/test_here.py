"""Those who come from another project: its names are answered, and each of its steps has a row that holds."""

import re

import pytest
from commands import parsed

from aimo import cli, config
from aimo.config import reading
from aimo.errors import AimoError

# What the sources' scripts, recipes and notebooks call their settings, by the section they would be put into.
# Open-R1 (1416fa0, April 2026), its `configs.py` and recipes:
TRAINERS = """attn_implementation bf16 chat_template dataset_config dataset_mixture dataset_name
    do_eval eos_token eval_strategy gradient_checkpointing hub_model_id
    lr_scheduler_kwargs lr_scheduler_type max_length max_seq_length model_name_or_path
    model_revision num_train_epochs optim output_dir overwrite_output_dir
    per_device_train_batch_size push_to_hub report_to resume_from_checkpoint
    save_strategy seed system_prompt torch_dtype use_liger wandb_entity wandb_project
    fp16 dataset_test_split dataset_train_split lora_r lora_alpha lora_target_modules
    use_peft load_in_4bit"""
NAMES = {
    "sft": TRAINERS,
    "grpo": TRAINERS
    + """ reward_funcs reward_weights dataset_prompt_column use_vllm vllm_mode
    vllm_gpu_memory_utilization vllm_server_host vllm_server_port cosine_min_value_wrong
    cosine_max_value_wrong cosine_min_value_correct cosine_max_value_correct
    cosine_max_len repetition_n_grams repetition_max_penalty code_language
    code_eval_test_batch_size code_eval_scoring_mode parallel_code_exec_per_proc
    code_provider ioi_provider provider_type max_completion_len soft_punish_cache
    pass_rate_min pass_rate_max""",
    # its generate_reasoning.py, generate.slurm and decontaminate.py:
    "distil": """dataset_name prompt_column uuid_column hf_dataset hf_dataset_config hf_dataset_split
    max_new_tokens api_key num_return_sequences""",
    "data": "ngram_size problem_column test_split_size",
    # accelerate's files, which the walk-through for AutoDL edits:
    "training": """num_processes num_machines zero_stage offload_optimizer_device offload_param_device
    mixed_precision gradient_clipping""",
    # Unsloth's notebook:
    "model": """max_seq_length fast_inference max_lora_rank gpu_memory_utilization r lora_alpha
    target_modules use_gradient_checkpointing random_state model_name lora_rank
    full_finetuning warmup_steps""",
    # LLaMA-Factory, with which AIMO 2's second place trained:
    "dpo": "pref_beta cutoff_len flash_attn enable_liger_kernel finetuning_type deepspeed num_train_epochs",
    # lmdeploy there, and the notebooks of AIMO 3:
    "inference": """quant_policy gpu_memory_utilization kv_cache_dtype max_model_len max_num_seqs
    stream_interval tensor_parallel_size data_parallel_size sample_count num_attempts
    max_iter jupyter_timeout reasoning_effort enable_prefix_caching model_path
    system_prompt""",
}


@pytest.mark.parametrize("section", NAMES)
def test_every_name_of_the_sources_is_answered_with_what_it_is_here(section):
    for name in NAMES[section].split():
        if (key := f"{section}.{name}") in set(reading.keys()):
            continue
        answer = reading.suggest(key)
        assert re.match(r", (it is called|use) ", answer), f"{key}: {answer or 'no answer'}"
    with pytest.raises(AimoError) as e:  # as a user meets it
        config.load("tiny", [f"{key}=1"])
    assert reading.suggest(key) in str(e.value) and "\n" not in str(e.value)


def test_a_stages_data_are_those_that_it_trains_on():
    assert reading.suggest("sft.dataset_name") == ", it is called data.sft.source here"
    assert reading.suggest("grpo.dataset_config") == ", it is called data.grpo.subset here"
    assert reading.suggest("data.sft.mixture.dataset_name") == ", it is called data.sft.mixture.source here"


@pytest.mark.parametrize("told", sorted(t for t in reading.NO_KEYS.values() if "--" in t))
def test_what_is_said_of_a_name_that_is_no_key_exists(told):
    option = re.search(r"--.*", told)[0].split()
    command = ["launch", "sft"] if told.startswith("aimo launch ") else ["run"]
    parsed(cli.app, [*command, "--profile", "tiny", *option, *["2"][len(option) - 1 :]])
