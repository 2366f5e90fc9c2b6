"""Check, identify and read a model folder as `save_pretrained` writes it.

The checks find faults in milliseconds; vLLM takes half a minute and prints a traceback.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from tokenizers import Tokenizer

from aimo.inference.errors import AimoError
from aimo.inference.storage import read_json

REMEDY = "copy the model again, or save it again with `save_pretrained`"
NEEDED = {
    "config.json": ["config.json"],
    "weights (*.safetensors)": ["*.safetensors", "*.bin"],
    "a tokenizer (tokenizer.json)": ["tokenizer.json", "tokenizer.model", "vocab.json"],
}
INDEX = "model.safetensors.index.json"
JSON_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", INDEX)
WEIGHTS = ("*.safetensors", "*.bin")
TEXT_FILES = ("config.json", "tokenizer*", "chat_template*", "vocab*", "merges.txt", "special_tokens*")
WHOLE = 64 << 20  # bytes: files up to this size are read whole to identify them
BLOCK = 1 << 14  # bytes that are read of each tensor in a larger file
LARGE = 10_000  # tokens: a vocabulary this large has two-digit numbers, unless digits were split
NUMBER = re.compile("Ġ?[0-9]{2,}")
PROBE = "In 2023, it's\n\n55 + 1,234.5  x_1 = \\frac{12}{7}  77;\n\tTHE end."
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the ranks that vLLM has kernels for


def check_model_folder(model: str | Path) -> None:
    """Raise an AimoError that names what a model folder lacks, or the file that is broken."""
    model = Path(model)
    if not model.is_dir():
        raise AimoError(f"model {model}: no such folder; give one that `aimo run` or `save_pretrained` wrote")
    lacks = [what for what, patterns in NEEDED.items() if not any(any(model.glob(p)) for p in patterns)]
    if lacks:
        told = " and ".join(lacks)
        raise AimoError(f"model {model}: {told} missing; save the model and its tokenizer there")
    read = {name: read_json(model / name, REMEDY) for name in JSON_FILES if (model / name).exists()}
    if not read["config.json"].get("architectures"):
        raise AimoError(f"{model}/config.json: names no `architectures`, so vLLM cannot load it; {REMEDY}")
    for path in model.glob("*.safetensors"):
        tensor_spans(path)
    named = set(read.get(INDEX, {}).get("weight_map", {}).values())
    if absent := sorted(name for name in named if not (model / name).exists()):
        raise AimoError(f"{model / INDEX}: names {', '.join(absent)}, not in the folder; {REMEDY}")


def tensor_spans(path: Path) -> list[tuple[int, int]]:
    """Return where each tensor of a .safetensors file begins and ends. AimoError if it is incomplete."""
    size = path.stat().st_size  # 8 bytes with the header's size, the header (a JSON object), then the tensors
    with path.open("rb") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")
        header = file.read(begin - 8) if begin <= size else b""
    try:
        tensors = json.loads(header)
        offsets = [t["data_offsets"] for name, t in tensors.items() if name != "__metadata__"]
        spans = [(begin + int(first), begin + int(last)) for first, last in offsets] or [(begin, begin)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise AimoError(f"{path}: is not a complete .safetensors file ({size:,} bytes); {REMEDY}") from None
    if size != (end := max(end for _, end in spans)):
        raise AimoError(f"{path}: has {size:,} bytes, its header says {end:,}; {REMEDY}")
    return spans


def identity(model: str | Path, adapter: str | Path | None = None) -> str:
    """Return a digest of a model's files, whatever their path; it begins with the `fingerprint`."""
    said = f"{fingerprint(Path(model))}-{digest_of(Path(model), WEIGHTS + TEXT_FILES)}"
    return f"{said}+{digest_of(Path(adapter), (*WEIGHTS, 'adapter_config.json'))}" if adapter else said


def is_same_model(recorded: str, now: str) -> bool:
    """Return whether two identities are the same; aimo 1.0.1 recorded only a base model's weights."""
    return recorded == now or ("+" not in now and recorded == now.partition("-")[0])


def digest_of(folder: Path, patterns: Iterable[str]) -> str:
    """Return a digest of a folder's files: small ones whole, a block of each tensor for large ones."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if size <= WHOLE:
                digest.update(file.read())
                continue
            places = list(range(0, size, size // 1024))
            if path.suffix == ".safetensors":
                places = [0, *((begin + end) // 2 for begin, end in tensor_spans(path))]
            for place in places:
                file.seek(place)
                digest.update(file.read(BLOCK))
    return digest.hexdigest()[:16]


def fingerprint(folder: Path) -> str:
    """Return aimo 1.0.1's digest of weights: each file's size, and a megabyte from its middle on."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        with path.open("rb") as file:
            size = path.stat().st_size
            file.seek(size // 2)
            digest.update(f"{path.name} {size}".encode() + file.read(1 << 20))
    return digest.hexdigest()[:16]


def tied_embedding(model: Path) -> bytes | None:
    """Return a digest of a model's embedding if its output layer shares the weights, or None."""
    if not read_json(model / "config.json", REMEDY).get("tie_word_embeddings"):
        return None
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (the file is no mapping)
                if name.endswith("embed_tokens.weight"):
                    return hashlib.sha256(file.get_tensor(name).float().numpy().tobytes()).digest()
    return None


def read_adapter(adapter: str | Path) -> dict[str, Any]:
    """Return vLLM's engine arguments for a LoRA adapter. AimoError if there is none, or a broken one."""
    path = Path(adapter, "adapter_config.json")
    remedy = "give a folder that PEFT wrote, such as a stage's `trained`"
    if not path.is_file():
        raise AimoError(f"adapter {adapter}: no adapter_config.json there; {remedy}")
    rank = read_json(path, remedy).get("r")
    if not isinstance(rank, int) or rank < 1:
        raise AimoError(f"{path}: its rank `r` is {rank!r} and should be a positive integer; {remedy}")
    for weights in path.parent.glob("*.safetensors"):
        tensor_spans(weights)
    largest = next((r for r in LORA_RANKS if r >= rank), rank)
    return {"enable_lora": True, "max_lora_rank": largest, "max_loras": 1}


def read_tokenizer(model: str | Path, **options: Any) -> Any:
    """Return a model folder's tokenizer. AimoError if it cannot be loaded, or does not fit the model.

    Its chat template is a text, a dict of named templates with a `default`, or None.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    written = Path(model) / "tokenizer.json"
    try:
        # By default, Transformers asks at the terminal whether to trust code in the folder.
        tokenizer = AutoTokenizer.from_pretrained(model, **{"trust_remote_code": False} | options)
        fast = isinstance(tokenizer, PreTrainedTokenizerFast)
        if fast and type(tokenizer) is not PreTrainedTokenizerFast and written.exists():
            # Transformers 5's classes build a family's usual tokenizer from the vocabulary alone: Llama's
            # strips all spaces for DeepSeek-R1-Distill-Llama (huggingface/transformers#45488).
            ids = Tokenizer.from_file(str(written)).encode(PROBE, add_special_tokens=False).ids
            if ids != tokenizer.encode(PROBE, add_special_tokens=False):
                tokenizer = PreTrainedTokenizerFast.from_pretrained(model, **options)
    except Exception as e:  # the tokenizers library raises bare Exceptions
        reason = f"cannot be loaded ({' '.join(str(e).split())[:200]}); {REMEDY}"
        if "trust_remote_code" in str(e):
            reason = (
                "is code in the folder, which is not run; take one of Transformers' own, or for inference "
                "set inference.vllm.trust_remote_code=true"
            )
        raise AimoError(f"model {model}: its tokenizer {reason}") from None

    # The chat template.
    of_processor = Path(model) / "chat_template.json"  # Transformers reads it for images only
    if not tokenizer.chat_template and of_processor.exists():
        tokenizer.chat_template = read_json(of_processor, REMEDY).get("chat_template")
    templates = tokenizer.chat_template
    if isinstance(templates, dict) and "default" not in templates:
        if len(templates) > 1:
            raise AimoError(
                f"model {model}: none of its chat templates {', '.join(templates)} is named default; "
                "rename one in tokenizer_config.json or additional_chat_templates"
            )
        tokenizer.chat_template = next(iter(templates.values()), None)

    # What GGUF converters get wrong: the token that ends a turn, and how numbers are split.
    begin, turn = "", ""
    with contextlib.suppress(Exception):  # a broken template is reported when it is used
        talk = [{"role": "user", "content": "1 + 1?"}]
        shown: Any = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
        begin, _, turn = shown.partition("1 + 1?")
    eos, fault = tokenizer.eos_token or "\n", ""
    if begin.startswith(eos) and eos in turn.strip() and not turn.strip().startswith(eos):
        fault = (
            f"its eos_token {eos!r} begins a turn and ends none, so no reply would end; name the token that "
            "ends a turn in tokenizer_config.json"
        )
    vocabulary, splitter = tokenizer.get_vocab(), tokenizer.backend_tokenizer.pre_tokenizer if fast else None
    if (
        len(vocabulary) > LARGE
        and splitter
        and [text for text, _ in splitter.pre_tokenize_str(" 55")] in (["Ġ55"], ["Ġ", "55"])
        and not any(map(NUMBER.fullmatch, vocabulary))
        and not (Path(model) / "aimo.json").exists()  # it was trained that way
    ):
        fault = (
            "its tokenizer.json does not split numbers into digits, as its vocabulary, which has no number "
            "of two, was made to"
        )
    if fault:
        raise AimoError(
            f"model {model}: {fault} (GGUF converters do that); take the model's own tokenizer files"
        )
    return tokenizer
