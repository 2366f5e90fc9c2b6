"""Load a model to train, generate with it, and save it as a plain folder that vLLM can load.

Unsloth, or Transformers with PEFT, loads it. `load_model` imports Unsloth, which patches Transformers, PEFT
and TRL, so import them after it.
"""

import contextlib
import importlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from torch._functorch import config as compiling

from aimo import config
from aimo.config import Profile
from aimo.data.prepare import Rows
from aimo.inference import prompts
from aimo.inference.errors import AimoError
from aimo.inference.model_folder import read_tokenizer
from aimo.inference.settings import SETTINGS, Prompt
from aimo.inference.storage import read_json, write_whole
from aimo.kaggle import client
from aimo.run import hub, machine
from aimo.run.runs import Run
from aimo.train import arguments

# Prompt and completion tokens that `complete` processes at once: their cache takes 4.6 GB for a 4B model.
TOKENS_AT_ONCE = 2**15
# Receives what Unsloth prints. Loggers created meanwhile keep it, and vLLM asks it for a file descriptor.
NOWHERE = open(os.devnull, "w")  # noqa: SIM115
# The chat templates of `prompt.template`. A turn ends in the end-of-sequence token and nothing more, so that
# training and generation agree.
TEMPLATES = {
    "plain": prompts.PLAIN,
    "chatml": "{%- for message in messages -%}"
    "{{ ('\n' if not loop.first else '') + '<|im_start|>' + message['role'] + '\n'"
    " + message['content'] + eos_token }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '\n<|im_start|>assistant\n' }}{%- endif -%}",
}
Templates = str | dict[str, str]  # a tokenizer's chat template, or several by name


def load_tokenizer(folder: Path, profile: Profile) -> Any:
    """Return the tokenizer with the profile's chat template and end-of-turn token, padding on the left.
    Raise AimoError for a token or a template that cannot be trained with."""
    tokenizer, prompt = read_tokenizer(folder, padding_side="left"), profile.prompt
    if prompt.eos_token is not None:
        if prompt.eos_token not in tokenizer.get_vocab():
            raise AimoError(
                f"prompt.eos_token: {prompt.eos_token!r} is no token of {folder}; "
                f"its own is {tokenizer.eos_token!r}"
            )
        tokenizer.eos_token = prompt.eos_token
    eos = tokenizer.eos_token
    if eos is None:
        raise AimoError(f"model {folder}: its tokenizer has no end-of-sequence token; set prompt.eos_token")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = eos
    tokenizer.chat_template = chat_template(prompt, tokenizer.chat_template)

    template = f"prompt.template: {prompt.template!r}"
    remedy = "use chatml, plain or a Jinja file of your own"
    talk, reply = prompts.as_prompt("1 + 1?"), prompts.as_completion(prompt, "Let me think.", 2)
    what = f"{template}{' and prompt.system' if prompt.system else ''}"
    talks = [(talk, True), (talk, False), (talk + reply, False)]
    asked, bare, answered = prompts.apply_template(tokenizer, talks, what, remedy)
    if prompt.system.strip() not in asked:
        raise AimoError(f"{template} has no system role, and prompt.system is set; empty it, or {remedy}")
    if prompt.template != "plain" and asked == bare:
        raise AimoError(
            f"{template} adds no generation prompt, so nothing tells the model to answer; {remedy}"
        )
    if not answered.startswith(asked) or "Let me think." not in answered:
        raise AimoError(
            f"{template} shows a reply differently from how it asks for it (it may leave out thoughts), so "
            f"that training and generation would differ; {remedy}"
        )
    end = answered.rpartition(prompt.answer_end.strip())[2].strip()
    if not end.startswith(eos):
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        ending = max((token for token in added if end.startswith(token)), key=len, default=None)
        raise AimoError(
            f"{template} ends a reply in {(ending or end)!r}, not in the tokenizer's eos_token {eos!r}, "
            "so the model would not learn to stop; "
            + (f"set prompt.eos_token to {ending!r}" if ending else f"end it in eos_token, or {remedy}")
        )
    return tokenizer


def chat_template(prompt: Prompt, own: Templates | None) -> Templates:
    """Return the profile's Jinja template. It adds the system prompt and, with `prefill`, the opening tag.

    It is saved with the model, so Transformers, vLLM and the kernels build the same prompt from the folder.
    `own` is the base model's template, or several by name. Raise AimoError if there is no such template.
    """
    if prompt.template == "model":
        if isinstance(own, dict):
            return {name: str(chat_template(prompt, one)) for name, one in own.items()}
        if own is None:
            raise AimoError("prompt.template: the base model has no chat template; use plain or chatml")
        if own.startswith(prompts.MARK):
            return own  # the model of an earlier stage has it already
        template = own
    elif prompt.template in TEMPLATES:
        template = TEMPLATES[prompt.template]
    else:
        path = config.locate(prompt.template)
        try:
            template = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise AimoError(
                f"prompt.template: {prompt.template!r} is not plain, chatml or model, "
                "and no file of that name exists"
            ) from None
        except (OSError, UnicodeDecodeError) as e:
            raise AimoError(f"prompt.template: {path} cannot be read ({e}); save it as UTF-8") from None
    if prompt.system:
        message = "[{'role': 'system', 'content': " + repr(prompt.system) + "}]"
        first = "{%- if messages[0]['role'] != 'system' -%}{%- set messages = " + message + " + messages -%}"
        template = first + "{%- endif -%}" + template
    opening = "{%- if add_generation_prompt -%}{{ " + repr(prompt.think_start) + " }}{%- endif -%}"
    if prompt.prefill and not template.endswith(opening):
        template += opening
    return prompts.MARK + template if prompt.template == "model" else template


def load_model(folder: Path, profile: Profile, with_vllm: bool = False) -> Any:
    """Return a model ready to train: with LoRA adapters, or with all weights when `model.lora` is null.

    With `with_vllm`, Unsloth shares the weights with a vLLM engine, which GRPO then samples with (GPU only).
    """
    settings, lora, cuda = profile.model, profile.model.lora, machine.computes_on_gpu()
    loader = import_unsloth().FastLanguageModel if settings.backend == "unsloth" else None
    if settings.load_in_4bit and not cuda:
        raise AimoError("model.load_in_4bit: four-bit weights need a GPU and there is none; set it to false")
    compute, reason = arguments.choose_dtype(profile)
    line, gpus = f"Training in {compute}: {reason}.", torch.cuda.device_count() if cuda else 0
    if gpus > 1 and "WORLD_SIZE" not in os.environ:
        line += f" One process takes one of the {gpus} GPUs; `aimo launch` trains on all."
    print(line)
    if loader is None:
        return load_with_peft(folder, profile)
    more: dict[str, Any] = {"dtype": getattr(torch, arguments.weights_dtype(profile))}
    if cuda and lora is None:
        more = {"dtype": getattr(torch, compute), "float32_mixed_precision": True}
    with_vllm = with_vllm and cuda  # on a CPU, TRL starts the engine
    if with_vllm and profile.grpo:
        # The engine takes its memory and its seed from here, not from TRL's configuration.
        more["gpu_memory_utilization"] = profile.grpo.vllm_gpu_memory
    shared: dict[str, Any] = {
        "use_gradient_checkpointing": "unsloth" if cuda and settings.gradient_checkpointing else False,
        "random_state": profile.seed,
    }
    with contextlib.redirect_stdout(NOWHERE):
        model, _ = loader.from_pretrained(
            str(folder),
            max_seq_length=settings.max_length,
            load_in_4bit=settings.load_in_4bit,
            full_finetuning=lora is None,
            fast_inference=with_vllm,
            max_lora_rank=lora.rank if lora else 16,
            **shared,
            **more,
        )
        if lora is None:
            return model
        adapted = loader.get_peft_model(
            model, r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.target_modules, **shared
        )

    def answer(prompts: list[list[int]], max_tokens: int, end: int) -> list[list[int]] | None:
        """Return greedy completions from Unsloth's vLLM; None if a prompt fills the context."""
        from vllm import SamplingParams

        if settings.max_length and max(map(len, prompts)) >= settings.max_length:
            return None
        greedy = SamplingParams(temperature=0.0, max_tokens=max_tokens, stop_token_ids=[end])
        asked = [{"prompt_token_ids": ids} for ids in prompts]
        found = model.vllm_engine.generate(asked, greedy, use_tqdm=False)
        return [output.outputs[0].token_ids for output in found]

    if with_vllm:  # until it has a trainer; new adapters have no effect yet
        adapted.answer = answer
    return adapted


def import_unsloth() -> Any:
    """Return Unsloth, imported without its banner.

    Unsloth loads `vllm._C`. vLLM for CPUs builds that for AVX-512 and bfloat16: with only AVX2, it ends the
    process with SIGILL. So vLLM loads the build that fits first, and the import of `vllm._C` then fails.
    Unsloth also compiles losses with memory planning; PyTorch reports its views, as an error if CI is set.
    """
    from vllm.platforms import current_platform  # the command line imports this module and starts no vLLM

    if current_platform.is_cpu():
        current_platform.import_kernels()
        # None makes Python raise ModuleNotFoundError.
        sys.modules.setdefault("vllm._C", None)  # type: ignore[arg-type]
    compiling.error_on_custom_op_aliasing = False  # warn instead
    with contextlib.redirect_stdout(NOWHERE):
        import unsloth  # only if the profile asks for it: it patches the other libraries
    return unsloth


def after_unsloth() -> tuple[Any, Any]:
    """Return PEFT and Transformers: Unsloth patches them only if it is imported first."""
    import peft
    import transformers

    return peft, transformers


def load_with_peft(folder: Path, profile: Profile) -> Any:
    """Return what `load_model` returns, without Unsloth."""
    peft, transformers = after_unsloth()
    settings, lora = profile.model, profile.model.lora
    compute = getattr(torch, arguments.choose_dtype(profile)[0])
    four_bits = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    # The model goes to this process's GPU. It stays on the CPU if there is none, or if accelerate or
    # DeepSpeed will place its shards.
    on_cpu = arguments.is_sharded() or not machine.computes_on_gpu()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, arguments.weights_dtype(profile)),
        quantization_config=four_bits if settings.load_in_4bit else None,
        device_map=None if on_cpu else {"": int(os.environ.get("LOCAL_RANK", 0))},
        attn_implementation=settings.attention,
    )
    if lora is None:
        # accelerate does the same when training starts; completions before that use the same dtype.
        in_type = torch.autocast(model.device.type, compute, enabled=compute != model.dtype)
        model.forward = in_type(model.forward)
        return model
    torch.manual_seed(profile.seed)
    if settings.load_in_4bit:
        checkpointing = settings.gradient_checkpointing
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    adapters = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.target_modules, task_type="CAUSAL_LM"
    )
    # DeepSpeed's ZeRO-3 refuses adapters whose dtype differs from the base's.
    return peft.get_peft_model(model, adapters, autocast_adapter_dtype=not arguments.with_deepspeed())


def training_of(stage: str) -> Callable[..., list[dict[str, Any]]]:
    """Return a stage's function, such as `train_sft`. Its module imports TRL, so call `load_model` first."""
    return getattr(importlib.import_module(f"aimo.train.{stage}"), f"train_{stage}")  # type: ignore[no-any-return]


def complete(model: Any, tokenizer: Any, rows: Rows, max_tokens: int, do_sample: bool = False) -> list[str]:
    """Return the greedy completion of each row's prompt, or a sampled one with `do_sample`; [] for no rows.
    If the trainer samples with vLLM, vLLM generates the greedy ones too."""
    if not rows:
        return []
    asked = [row["prompt"] for row in rows]
    texts = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    if not do_sample and hasattr(model, "answer"):
        replies = model.answer(ids, max_tokens, tokenizer.eos_token_id)
        if replies is not None:
            return tokenizer.batch_decode(replies, skip_special_tokens=True)  # type: ignore[no-any-return]
    how = {"max_new_tokens": max_tokens, "pad_token_id": tokenizer.pad_token_id, "do_sample": do_sample}
    how |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if do_sample else {}
    size = max(1, TOKENS_AT_ONCE // (max(map(len, ids)) + max_tokens))
    marks = (getattr(module, "gradient_checkpointing", False) for module in model.modules())
    checkpointing, was_training = next(filter(None, marks), False), model.training
    model.eval()
    completions: list[str] = []
    for first in range(0, len(ids), size):
        part, left = texts[first : first + size], {"padding": True, "padding_side": "left"}
        batch = tokenizer(part, return_tensors="pt", add_special_tokens=False, **left)
        batch = batch.to(model.device)  # (size, prompt length)
        with torch.no_grad():
            out = model.generate(**batch, **how)  # (size, prompt length + new tokens)
        replies = out[:, batch["input_ids"].shape[1] :]
        completions += tokenizer.batch_decode(replies, skip_special_tokens=True)
    model.train(was_training)
    if was_training and hasattr(model, "for_training"):  # Unsloth's generate turned checkpointing off
        model.for_training(use_gradient_checkpointing=checkpointing)
    return completions


@contextlib.contextmanager
def merged(model: Any) -> Iterator[None]:
    """Merge a model's adapters into its weights inside the context. Afterwards, restore the weights bit for
    bit from a copy in host memory."""
    kind = after_unsloth()[0].tuners.lora.LoraLayer
    layers: list[Any] = [m for m in model.modules() if isinstance(m, kind) and not m.merged]
    weights = [layer.get_base_layer().weight.data for layer in layers]
    kept = [weight.to("cpu", copy=True) for weight in weights]
    try:
        with torch.no_grad():
            for layer in layers:
                layer.merge()
        yield
    finally:
        for layer, weight, copy in zip(layers, weights, kept, strict=True):
            layer.get_base_layer().weight.data = weight.copy_(copy)
            layer.merged_adapters.clear()


def check_adapter(adapter: Path, base: Path) -> None:
    """Refuse an adapter trained on another base. A base that has moved with its run counts as the same."""
    path, remedy = adapter / "adapter_config.json", f"remove {adapter}, or train it again"
    if not path.exists():
        return
    named = read_json(path, remedy).get("base_model_name_or_path", 0)
    if not isinstance(named, str | None):
        raise AimoError(f"{path}: it names no base model; {remedy}")
    if Path(named or base).absolute().parts[-2:] != base.absolute().parts[-2:]:
        raise AimoError(
            f"{adapter} is an adapter for {named}, not for {base}; take another run folder, or remove it"
        )


def save_model(run: Run, tokenizer: Any, figures: dict[str, Any]) -> None:
    """Build the stage's folder `model` from the adapter or the weights that training saved in `trained`. It
    holds 16-bit weights (32-bit if the stage computes in float32), the tokenizer, the chat template, the
    solver's settings (aimo.json) and a model card with `figures`.

    The folder is written whole or not at all. An adapter stays in `trained`.
    """
    peft, transformers = after_unsloth()
    profile, base = run.profile, run.start_model()
    trained, folder, named = run.folder / "trained", run.folder / "model", profile.model.base
    is_adapter = (trained / "adapter_config.json").exists()
    dtype = getattr(torch, arguments.choose_dtype(profile)[0])
    model = transformers.AutoModelForCausalLM.from_pretrained(base if is_adapter else trained, dtype=dtype)
    if is_adapter:
        check_adapter(trained, base)
        model = peft.PeftModel.from_pretrained(model, str(trained)).merge_and_unload()
    model.config.use_cache = True
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    header = ModelCardData(
        base_model=None if config.locate(named).is_dir() else named,  # the hub accepts only its own ids
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["aimo", "trl"],
    )
    lines = "\n".join(f"| {name} | {value} |" for name, value in figures.items())
    card = ModelCard(
        f"---\n{header.to_yaml()}\n---\n\n# {profile.profile}\n\nTrained from {named}.\n\n"
        f"| figure | value |\n| --- | --- |\n{lines}\n\nSettings:\n\n```yaml\n{config.dump(profile)}```\n"
    )
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    write_whole(partial / SETTINGS, profile.solver_settings(partial).to_json())
    card.save(partial / "README.md")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    if not is_adapter:
        shutil.rmtree(trained)


def push_trained(run: Run) -> None:
    """Push the stage's model folder to `training.push_to_hub` and, as a new version that is compared with
    what arrived, to `training.push_to_kaggle`. Raise AimoError if a push is refused."""
    to, folder = run.profile.training, run.folder / "model"
    if to.push_to_hub:
        hub.push_model(folder, to.push_to_hub)
    if to.push_to_kaggle:
        try:
            with client.sign_in() as api:
                client.push_version(api, folder, to.push_to_kaggle, run.profile, run.dir)
        except AimoError as e:
            named = f"training.push_to_kaggle: {to.push_to_kaggle!r}"
            raise AimoError(f"{named} was refused: {e}. The model is kept in {folder}") from None
