"""Load a model to train with Unsloth or with Transformers and PEFT, and leave it as a plain folder that vLLM loads.

Import Unsloth before Transformers and TRL: it patches both. Out of scope: adapters on top of adapters.
"""

import contextlib
import functools
import io
import json
import os
import shutil
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from aimo import config
from aimo.config import Profile
from aimo.errors import AimoError
from aimo.inference import prompts
from aimo.inference.settings import SETTINGS, Settings


def load_tokenizer(folder: Path, profile: Profile) -> Any:
    """A tokenizer with the profile's chat template and end of a turn. AimoError when they do not fit it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    wanted = profile.prompt.eos_token
    if wanted is not None and wanted not in tokenizer.get_vocab():
        raise AimoError(
            f"prompt.eos_token: {wanted!r} is no token of {folder}; its own is {tokenizer.eos_token!r}"
        )
    if wanted is not None:
        tokenizer.eos_token = wanted
    if tokenizer.eos_token is None:
        raise AimoError(f"model {folder}: its tokenizer has no end-of-sequence token; set prompt.eos_token")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = prompts.chat_template(profile.prompt, tokenizer.chat_template, config.ROOT)
    prompts.check(tokenizer, profile.prompt)
    return tokenizer


def choose_dtype(profile: Profile) -> tuple[str, str]:
    """The number type to train in, and why."""
    import torch

    wanted, cuda = profile.model.dtype, torch.cuda.is_available()
    if wanted == "float16" and not cuda:
        raise AimoError("model.dtype: float16 cannot be trained on a CPU; set it to auto")
    if wanted != "auto":
        return wanted, "the profile says so"
    if not cuda:
        return "float32", "there is no GPU"
    name = torch.cuda.get_device_name()
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16", f"{name} computes in it"
    return "float16", f"{name} has no bfloat16"


def load(folder: Path, profile: Profile, with_vllm: bool = False) -> Any:
    """A model ready to train: with LoRA adapters, or with all weights when `model.lora` is null.

    `with_vllm`: let Unsloth share the weights with a vLLM engine, which GRPO then generates with (GPU only).
    """
    settings = profile.model
    name, reason = choose_dtype(profile)
    if settings.backend == "unsloth":
        with contextlib.redirect_stdout(io.StringIO()):  # its banner
            import torch
            from unsloth import FastLanguageModel
    import torch

    cuda = torch.cuda.is_available()
    if settings.load_in_4bit and not cuda:
        raise AimoError("model.load_in_4bit: four-bit weights need a GPU and there is none; set it to false")
    print(f"Training in {name}: {reason}.")
    dtype = getattr(torch, name)
    checkpointing: Any = "unsloth" if cuda and settings.gradient_checkpointing else False
    if settings.backend == "unsloth":
        with contextlib.redirect_stdout(io.StringIO()):
            model, _ = FastLanguageModel.from_pretrained(
                str(folder),
                max_seq_length=settings.max_length,
                dtype=dtype,
                load_in_4bit=settings.load_in_4bit,
                full_finetuning=settings.lora is None,
                fast_inference=with_vllm,
                max_lora_rank=settings.lora.rank if settings.lora else 16,
                use_gradient_checkpointing=checkpointing,
            )
            if settings.lora:
                model = FastLanguageModel.get_peft_model(
                    model,
                    r=settings.lora.rank,
                    lora_alpha=settings.lora.alpha,
                    target_modules=settings.lora.target_modules,
                    use_gradient_checkpointing=checkpointing,
                    random_state=profile.seed,
                )
        return model

    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        # All weights in float16 leave no room for small updates; they are trained in float32 under autocast.
        dtype=torch.float32 if settings.lora is None and name == "float16" else dtype,
        quantization_config=four_bits if settings.load_in_4bit else None,
        device_map={"": int(os.environ.get("LOCAL_RANK", 0))} if settings.load_in_4bit else None,
        attn_implementation=settings.attention,
    )
    if settings.lora:
        torch.manual_seed(profile.seed)
        lora = settings.lora
        if settings.load_in_4bit:
            from peft import prepare_model_for_kbit_training

            model = prepare_model_for_kbit_training(
                model, use_gradient_checkpointing=settings.gradient_checkpointing
            )
        model = get_peft_model(
            model,
            LoraConfig(
                r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.target_modules, task_type="CAUSAL_LM"
            ),
        )
    return model


def merge_to_generate(model: Any) -> None:
    """Let a model generate with its adapters merged in, which is a third of the matrix products; its weights come back to the bit."""
    import torch
    from peft.tuners.lora import LoraLayer

    generate = model.generate

    @functools.wraps(generate)
    def merged(*args: Any, **kwargs: Any) -> Any:
        layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
        weights = [layer.get_base_layer().weight.data for layer in layers]
        try:
            with torch.no_grad():
                for layer, weight in zip(layers, weights, strict=True):
                    layer.get_base_layer().weight.data = weight.clone()
                    layer.merge()
            return generate(*args, **kwargs)
        finally:
            for layer, weight in zip(layers, weights, strict=True):
                layer.get_base_layer().weight.data = weight
                layer.merged_adapters.clear()

    model.generate = merged


def check_adapter(adapter: Path, base: Path) -> None:
    """Refuse an adapter that was trained on another base; a folder that moved with its run is the same."""
    config = adapter / "adapter_config.json"
    under = (
        Path(json.loads(config.read_text()).get("base_model_name_or_path") or base)
        if config.exists()
        else base
    )
    if under.absolute().parts[-2:] != base.absolute().parts[-2:]:
        raise AimoError(
            f"{adapter} is an adapter for {under}, not for {base}; take another run folder, or remove it"
        )


def save(
    trained: Path, base: Path, tokenizer: Any, profile: Profile, folder: Path, figures: dict[str, Any]
) -> None:
    """Turn what training left in `trained` (an adapter for `base`, or all weights) into a model folder, whole or not at all.

    An adapter stays beside the merged model. The folder holds 16-bit weights (32-bit where they were trained so), tokenizer,
    chat template, sampling settings and a model card with `figures`.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    is_adapter = (trained / "adapter_config.json").exists()
    dtype = getattr(torch, choose_dtype(profile)[0])
    model = AutoModelForCausalLM.from_pretrained(base if is_adapter else trained, dtype=dtype)
    if is_adapter:
        check_adapter(trained, base)
        model = PeftModel.from_pretrained(model, str(trained)).merge_and_unload()
    model.config.use_cache = True
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    wanted = asdict(profile.inference)
    settings = Settings(
        **{f.name: wanted[f.name] for f in fields(Settings) if f.name in wanted},
        max_length=profile.model.max_length,
        answer_tags=(profile.prompt.answer_start, profile.prompt.answer_end),
        think_end=profile.prompt.think_end,
        thinking=profile.prompt.prefill,
    )
    (partial / SETTINGS).write_text(json.dumps(asdict(settings), indent=2) + "\n")
    (partial / "README.md").write_text(card(profile, figures))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    if not is_adapter:
        shutil.rmtree(trained)


def card(profile: Profile, figures: dict[str, Any]) -> str:
    """A model card: base, figures and settings."""
    header = f"base_model: {profile.model.base}\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [aimo, trl]\n"
    lines = "\n".join(f"| {name} | {value} |" for name, value in figures.items())
    table = f"| figure | value |\n| --- | --- |\n{lines}"
    return f"---\n{header}---\n\n# {profile.profile}\n\n{table}\n\nSettings:\n\n```yaml\n{config.dump(profile)}```\n"
