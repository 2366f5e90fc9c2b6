"""Load a model to train with Unsloth or with Transformers and PEFT, and save it as a plain folder that vLLM loads.

Import Unsloth before Transformers and TRL: it patches both. Left out: adapters as such; a stage leaves merged weights.
"""

import contextlib
import io
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aimo import prompts
from aimo.config import Profile, resolve
from aimo.engine import SETTINGS, Settings
from aimo.errors import AimoError


def local_folder(base: str) -> Path:
    """A model folder for a path or hub id, downloaded if need be."""
    path = resolve(base)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(base))
    except Exception as e:  # the hub client raises many kinds
        reason = " ".join(str(e).split())[:200]
        raise AimoError(f"model.base: {base!r} is no folder here and no model on the hub ({reason})") from None


def load_tokenizer(folder: Path, profile: Profile) -> Any:
    """A tokenizer with the profile's chat template. Raises AimoError when it cannot end or pad a completion."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.eos_token is None:
        raise AimoError(f"model {folder}: its tokenizer has no end-of-sequence token; set eos_token in tokenizer_config.json")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = prompts.chat_template(profile.prompt)
    return tokenizer


def load(folder: Path, profile: Profile, with_vllm: bool = False) -> Any:
    """A model ready to train: with LoRA adapters, or with all weights when `model.lora` is null.

    `with_vllm`: let Unsloth share the weights with a vLLM engine, which GRPO then generates with (GPU only).
    """
    settings = profile.model
    if settings.backend == "unsloth":
        with contextlib.redirect_stdout(io.StringIO()):  # its banner
            import torch
            from unsloth import FastLanguageModel

            model, _ = FastLanguageModel.from_pretrained(
                str(folder),
                max_seq_length=settings.max_length,
                dtype=getattr(torch, settings.dtype),
                load_in_4bit=settings.load_in_4bit,
                full_finetuning=settings.lora is None,
                fast_inference=with_vllm,
                max_lora_rank=settings.lora.rank if settings.lora else 16,
                use_gradient_checkpointing="unsloth" if torch.cuda.is_available() else False,
            )
            if settings.lora:
                model = FastLanguageModel.get_peft_model(
                    model,
                    r=settings.lora.rank,
                    lora_alpha=settings.lora.alpha,
                    target_modules=settings.lora.target_modules,
                    use_gradient_checkpointing="unsloth" if torch.cuda.is_available() else False,
                    random_state=profile.seed,
                )
        return model

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = getattr(torch, settings.dtype)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype) if settings.load_in_4bit else None
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=quantization)
    if settings.lora:
        torch.manual_seed(profile.seed)
        lora = settings.lora
        model = get_peft_model(
            model, LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.target_modules, task_type="CAUSAL_LM")
        )
    return model


def save(model: Any, tokenizer: Any, profile: Profile, folder: Path) -> None:
    """Merge adapters and save weights, tokenizer, chat template and sampling settings, whole or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    if profile.model.load_in_4bit and profile.model.backend == "unsloth":
        model.save_pretrained_merged(str(partial), tokenizer, save_method="merged_16bit")
    else:
        merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
        merged.config.use_cache = True
        merged.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    settings = Settings(
        temperature=profile.inference.temperature,
        top_p=profile.inference.top_p,
        max_tokens=profile.inference.max_tokens,
        max_length=profile.model.max_length,
        answer_tags=(profile.prompt.answer_start, profile.prompt.answer_end),
    )
    (partial / SETTINGS).write_text(json.dumps(asdict(settings), indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
