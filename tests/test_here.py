"""Those who come from another project: its names are answered, and each of its steps has a row that holds."""

import functools
import itertools
import re
import shlex

import pytest
import typer
from commands import CHECKS, check, parsed
from conftest import ROOT
from test_docs import whole

from aimo import config
from aimo.commands import run
from aimo.config import reading
from aimo.errors import AimoError
from aimo.rewards import REWARDS

# What the sources' scripts, recipes and notebooks call their settings, by the section they would be put into.
# Open-R1 (1416fa0, April 2026), its `configs.py` and recipes:
TRAINERS = """attn_implementation bf16 chat_template dataset_config dataset_mixture dataset_name do_eval
        eos_token
        eval_strategy gradient_checkpointing hub_model_id lr_scheduler_kwargs lr_scheduler_type max_length
        max_seq_length model_name_or_path model_revision num_train_epochs optim output_dir
        overwrite_output_dir per_device_train_batch_size push_to_hub report_to resume_from_checkpoint
        save_strategy seed system_prompt torch_dtype use_liger wandb_entity wandb_project fp16
        dataset_test_split dataset_train_split lora_r lora_alpha lora_target_modules use_peft load_in_4bit"""
NAMES = {
    "sft": TRAINERS,
    "grpo": TRAINERS
    + """ reward_funcs reward_weights dataset_prompt_column use_vllm vllm_mode vllm_gpu_memory_utilization
        vllm_server_host vllm_server_port cosine_min_value_wrong cosine_max_value_wrong
        cosine_min_value_correct cosine_max_value_correct cosine_max_len repetition_n_grams
        repetition_max_penalty code_language code_eval_test_batch_size code_eval_scoring_mode
        parallel_code_exec_per_proc code_provider ioi_provider provider_type max_completion_len
        soft_punish_cache pass_rate_min pass_rate_max""",
    # its generate_reasoning.py, generate.slurm and decontaminate.py:
    "distil": """dataset_name prompt_column uuid_column hf_dataset hf_dataset_config hf_dataset_split
        max_new_tokens
        api_key num_return_sequences""",
    "data": "ngram_size problem_column test_split_size",
    # accelerate's files, which the walk-through for AutoDL edits:
    "training": """num_processes num_machines zero_stage offload_optimizer_device offload_param_device
        mixed_precision
        gradient_clipping""",
    # Unsloth's notebook:
    "model": """max_seq_length fast_inference max_lora_rank gpu_memory_utilization r lora_alpha target_modules
        use_gradient_checkpointing random_state model_name lora_rank full_finetuning warmup_steps""",
    # LLaMA-Factory, with which AIMO 2's second place trained:
    "dpo": "pref_beta cutoff_len flash_attn enable_liger_kernel finetuning_type deepspeed num_train_epochs",
    # lmdeploy there, and the notebooks of AIMO 3:
    "inference": """quant_policy gpu_memory_utilization kv_cache_dtype max_model_len max_num_seqs
        stream_interval
        tensor_parallel_size data_parallel_size sample_count num_attempts max_iter jupyter_timeout
        reasoning_effort enable_prefix_caching model_path system_prompt""",
}


@pytest.mark.parametrize("section", NAMES)
def test_every_name_of_the_sources_is_answered_with_what_it_is_here(section):
    for name in NAMES[section].split():
        if (key := f"{section}.{name}") in set(reading.keys()):
            continue
        answer = reading.suggest(key)
        answered = (", it is called ", ", put it under ", ", use ", ", leave it out: ")
        assert answer.startswith(answered), f"{key}: {answer or 'no answer'}"
    with pytest.raises(AimoError) as e:  # as a user meets it
        config.load("tiny", [f"{key}=1"])
    assert reading.suggest(key) in str(e.value) and "\n" not in str(e.value)


def test_a_stages_data_are_those_that_it_trains_on():
    assert reading.suggest("sft.dataset_name") == ", it is called data.sft.source here"
    assert reading.suggest("grpo.dataset_config") == ", it is called data.grpo.subset here"
    assert reading.suggest("data.sft.mixture.dataset_name") == ", it is called data.sft.mixture.source here"


@pytest.mark.parametrize("told", sorted(t for t in reading.ALIASES["instead"].values() if "--" in t))
def test_what_is_said_of_a_name_that_is_no_key_exists(told):
    command, option = re.match(r"(?:aimo (\w+) )?(--.*)", told).groups()
    needed = {
        "launch": ["sft", "--profile", "tiny"],
        "evaluate": ["MODEL"],
        "distil": ["--dataset-name", "D", "--output-file", "F"],
    }
    words = option.split()
    parsed(
        run.app,
        [command or "run", *needed.get(command, ["--profile", "tiny"]), *words, *["2"][len(words) - 1 :]],
    )


# The pages.

PAGES = {path.stem: path for path in sorted((ROOT / "docs/from").glob("*.md"))}
ITEMS = {
    # Open-R1's scripts/, slurm/, src/, recipes/ and accelerate's files, besides NAMES.
    "open-r1": """sft.py grpo.py generate.py decontaminate.py generate_reasoning.py run_benchmarks.py
        upload_details.py get_tensor_parallel_size.py benchmark_e2b.py compute_pass_rate.py
        launch_filtering.sh train.slurm evaluate.slurm generate.slurm compute_pass_rate.slurm serve_r1.slurm
        serve_r1_vllm.slurm serve_router.slurm e2b_router.slurm morph_router.slurm launch_piston_workers.sh
        launch_single_piston.sh ddp.yaml fsdp.yaml zero2.yaml zero3.yaml dataset_filtering OlympicCoder-7B
        OpenR1-Distill-7B Qwen2.5-1.5B-Instruct config_demo_code.yaml config_demo_code_ioi.yaml
        Qwen2.5-Coder-7B-Instruct DeepSeek-R1-Distill-Qwen-1.5B config_simple_rl benchmarks beta callbacks
        compute_environment dataset_num_proc dataset_split debug deepspeed_config distributed_type
        downcast_bf16 e2b_router_url enable_cpu_affinity fsdp_config gpu_ids gradient_accumulation_steps
        gradient_checkpointing_kwargs hub_always_push hub_model_revision hub_strategy learning_rate
        log_completions log_level logging_first_step logging_steps logging_strategy loss_type machine_rank
        main_training_function mask_truncated_completions max_completion_length max_grad_norm
        max_prompt_length max_steps num_generations output_dataset_name packing per_device_eval_batch_size
        rdzv_backend same_network save_only_model save_steps save_total_limit scale_rewards temperature
        top_p tpu_env tpu_use_cluster tpu_use_sudo use_cpu use_liger_kernel vllm_device warmup_ratio
        accuracy format tag_count reasoning_steps length cosine repetition_penalty code binary_code ioi_code
        cf_code code_format soft_overlong_punishment""",
    # run_sft.sh and run_dpo.sh of AIMO 2's second place, and its other scripts.
    "aimo-2": """adam_beta1 adam_beta2 adam_epsilon cache_dir dataset ddp_timeout do_train
        gradient_accumulation_steps learning_rate logging_steps max_grad_norm max_steps overwrite_cache
        plot_loss pref_loss preprocessing_num_workers save_only_model save_total_limit
        sequence_parallel_size stage template warmup_ratio weight_decay deduplicate_sft_data.py run_sft.sh
        filter_dpo_data.py run_dpo.sh quant_awq.py quant_rep_kv.py local_eval.py local_eval_kaggle.py
        run_cfg.sh plot_table_local.py analyze_early_stop.py analyze_llm_vote.py""",
    # The two guides' files for accelerate, SFT and GRPO.
    "full-fine-tuning": """deepspeed_multinode_launcher offload_optimizer_device offload_param_device
        zero3_init_flag zero3_save_16bit_model distributed_type use_reentrant vllm_device_map
        vllm_max_model_len vllm_gpu_memory_utilization remove_unused_columns repetition_n_grams code_provider
        dataset_mixture test_split_size run_benchmarks.py max_grad_norm eos_token""",
    # Options of its scripts and keys of its file of fine-tuning.
    "mindspore": """generate_reasoning.py reject_sampling.py datasets_preprocess.py data_process_handling.yaml
        data_process_packing.yaml finetune_qwen_2_5_7b.yaml msrun_launcher.sh run_qwen2_5.py API_KEY
        --uuid-column --src register_path vocab_file merges_file data_files load_checkpoint load_ckpt_format
        auto_trans_ckpt only_save_strategy resume_training run_mode batch_size ACLNN_CACHE_LIMIT
        MS_DEV_RUNTIME_CONF""",
}
"""What a source's own lists hold: the error message answers it, or its page names it."""
OPTIONS = {
    option
    for command in ("reject", "distil", "serve", "solve", "evaluate", "launch", "run")
    for parameter in typer.main.get_command(run.app).commands[command].params
    for option in parameter.opts
}


def here(page):
    """The cells of the column "here" of a page's tables."""
    for head, body in re.findall(r"^(\|.+\|)\n\|[- |]+\|\n((?:\|.*\n)+)", page.read_text(), re.MULTILINE):
        heads = [cell.strip() for cell in head.split("|")]
        column = heads.index("here") if "here" in heads else 0
        yield from (re.split(r"(?<!\\)\|", line)[column].strip() for line in body.splitlines())


@functools.cache
def names():
    """What may stand by itself: profiles, and variables that other pages name."""
    told = "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    profiles = {path.stem for path in config.PROFILES.glob("*.yaml")}
    return profiles | set(re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b", told))


def hold(span):
    """Check that what stands in backticks exists here, as its command, key or option would be read."""
    words = shlex.split(span.replace(".venv/bin/", "").replace("\\|", "|").replace("…/", "URL/"))
    if words[0] in CHECKS:
        check(words)
    elif words[0].startswith("--"):
        for option in words:
            assert not option.startswith("--") or option in OPTIONS, option
        for override in [value for option, value in itertools.pairwise(words) if option == "--set"]:
            config.load("qwen2.5-1.5b-openr1", [override])
    elif found := re.fullmatch(r"([a-z_]+(?:\.[a-z_0-9]+)+|seed): (.+)", span):
        values = {}
        reading.set_key(values, f"{found[1]}={found[2]}")
        for part in values.get("data", {}).values():
            if isinstance(part, dict) and not {"source", "mixture"} & part.keys():
                part["source"] = "FILE.jsonl"
        config.parse(whole(values), span)
    else:
        name = re.split("[= ]", span)[0]
        known = {*names(), *reading.keys()}
        assert name in known or (ROOT / span).exists() or span.startswith("runs/"), span


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_names_here_exists(name):
    for cell in here(PAGES[name]):
        for span in re.findall(r"`([^`]+)`", cell):
            try:
                hold(span)
            except (Exception, SystemExit) as e:
                pytest.fail(f"{span!r}: {type(e).__name__}: {e}")


@pytest.mark.parametrize("source", ITEMS)
def test_every_item_of_a_sources_own_list_is_answered_or_named(source):
    page = PAGES[source].read_text()
    ours = {key.rpartition(".")[2] for key in set(reading.keys())}
    answered = ours.union(*reading.ALIASES.values(), REWARDS)
    absent = [
        item
        for item in ITEMS[source].split()
        if item not in answered and not re.search(rf"(?<!\w){re.escape(item)}(?!\w)", page)
    ]
    assert absent == []
