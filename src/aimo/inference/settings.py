"""How a model is prompted, sampled and voted on: the `prompt` and `inference` sections of a profile.

A model folder carries its settings as aimo.json. They are defaults: `resolve_settings` puts a profile, the
command line or a kernel's parameters over them.
"""

import ast
import contextlib
import functools
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, validate_call
from pydantic.dataclasses import dataclass

from aimo.inference.errors import AimoError, explain
from aimo.inference.model_folder import REMEDY
from aimo.inference.storage import read_json

SETTINGS = "aimo.json"
# vLLM's arguments that a model folder may set: none of them names code, a file or an address.
HARMLESS = (
    "dtype quantization kv_cache_dtype calculate_kv_scales max_model_len max_num_seqs max_num_batched_tokens "
    "max_logprobs tensor_parallel_size pipeline_parallel_size data_parallel_size enable_expert_parallel "
    "enable_prefix_caching enable_chunked_prefill disable_cascade_attn disable_sliding_window block_size "
    "num_gpu_blocks_override cpu_offload_gb kv_offloading_size enforce_eager cudagraph_capture_sizes "
    "max_cudagraph_capture_size disable_custom_all_reduce async_scheduling stream_interval attention_backend "
    "moe_backend language_model_only max_lora_rank"
)
TOP_LOGPROBS = 20  # likeliest tokens that an entropy is measured from; as many as vLLM gives by default
# The settings that decide what a completion says, and the engine arguments of vLLM that do too.
ASKED = (
    "format", "system", "user", "variants", "chat_template_kwargs", "temperature", "top_p", "min_p", "top_k",
    "stop", "max_tokens", "tags", "thinking", "tools", "tool_turns", "tool_seconds", "tool_parser",
)  # fmt: skip
CHANGING = ("dtype", "quantization", "kv_cache_dtype", "hf_overrides")

strict = ConfigDict(extra="forbid", strict=True)
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Tag = Annotated[str, Field(min_length=1)]
User = Annotated[str, Field(pattern=r"\{problem\}")]
Temperature = Annotated[float, Field(ge=0)]
TopP = Annotated[float, Field(gt=0, le=1)]
ToolSeconds = Annotated[float, Field(gt=0, le=600)]
Format = Literal["chat", "harmony"]
Weight = Literal["equal", "length", "logprob", "tail_logprob", "entropy", "tail_entropy", "ties"]


@dataclass(config=strict, frozen=True)
class Tags:
    """What encloses the thought and the answer of a completion. The defaults are Unsloth's recipe."""

    think_start: Tag = "<start_working_out>"  # Opens the thought
    think_end: Tag = "<end_working_out>"  # Closes the thought
    answer_start: Tag = "<SOLUTION>"  # Opens the answer
    answer_end: Tag = "</SOLUTION>"  # Closes the answer


# Tags of models without aimo.json; the first is also taken for models that have no thought tags.
PUBLIC = [
    Tags("<think>", "</think>", "\\boxed{", "}"),
    Tags(),
    Tags("<|begin_of_thought|>", "<|end_of_thought|>", "\\boxed{", "}"),
]
# What encloses gpt-oss's thought and answer.
HARMONY = Tags("<|channel|>analysis<|message|>", "<|channel|>final<|message|>", "\\boxed{", "}")


@dataclass(config=strict, frozen=True)
class Prompt(Tags):
    """Tags, system prompt and chat template; all are saved with the model."""

    system: str = ""  # The system message; empty sends none
    # `plain` (Unsloth's recipe), `chatml` (Qwen, Open-R1), `model` for the base's own, or a Jinja file
    template: str = "plain"
    # The token that ends a reply, such as <|im_end|>; null takes the tokenizer's
    eos_token: str | None = None
    # Whether a prompt ends with the thought's opening tag, so that a completion starts inside the thought
    prefill: bool = True

    @property
    def tags(self) -> Tags:
        return Tags(self.think_start, self.think_end, self.answer_start, self.answer_end)


@dataclass(config=strict, frozen=True)
class Variant:
    """Another prompt for a share of the samples."""

    share: Rate  # The share of samples that get this prompt
    system: str = ""  # As `system` in the settings
    user: User = "{problem}"  # As `user` in the settings


@dataclass(config=strict, frozen=True)
class Proofs:
    """The four roles of a model that proves: counts, tokens and prompts, each of which may hold `{rules}`."""

    # Time for a problem. Null: what the session allows for it.
    seconds: Annotated[float, Field(gt=0)] | None = None
    provers: Positive = 6  # How many proofs are written
    verifiers: NonNegative = 3  # How often each proof is graded, on a scale of 0 to 7
    refiners: NonNegative = 3  # How many of the best proofs are rewritten to answer the objections
    selectors: NonNegative = 5  # How many votes choose among the best
    proof_tokens: Positive = 65536  # Tokens per proof, including its thought
    verdict_tokens: Positive = 16384  # Tokens per grading or vote
    closing_tokens: Positive = 4096  # Tokens to write out a proof whose thought was cut off
    # The prompt for a proof, with `{problem}`
    prove: User = (
        "Prove this as in a mathematical olympiad: completely, each step with its reason. If you cannot "
        "prove it all, write what you can prove. {rules}\n\n{problem}"
    )
    # The prompt for a grading, with `{proof}`
    verify: Annotated[str, Field(pattern=r"\{proof\}")] = (
        "Mark this proof as the strictest examiner of a mathematical olympiad. Check each step. List every "
        "error and every gap, with its sentence. Then put the mark in \\boxed{}: 7 for a complete "
        "proof, 6 for one with a small gap, 1 for real progress, 0 for none.\n\n"
        "Problem:\n\n{problem}\n\nProof:\n\n{proof}"
    )
    # The prompt for a revised proof, with `{objections}`
    refine: Annotated[str, Field(pattern=r"\{objections\}")] = (
        "Examiners marked this proof. Where they are right, repair it; where a step cannot be saved, prove "
        "it in another way. Write the whole proof, and nothing about the examiners. {rules}\n\n"
        "Problem:\n\n{problem}\n\nProof:\n\n{proof}\n\nExaminers:\n\n{objections}"
    )
    # The prompt for a vote, with `{proofs}`
    select: Annotated[str, Field(pattern=r"\{proofs\}")] = (
        "These are proofs of one problem. Find the errors and gaps of each. Then put the number of the proof "
        "to which an examiner would give most marks in \\boxed{}.\n\nProblem:\n\n{problem}\n\n{proofs}"
    )


@dataclass(config=strict, frozen=True)
class Settings:
    """Prompt, sampling, tools, votes and vLLM's arguments: everything that the engine and the solver read."""

    # How a conversation becomes tokens: by the chat template, or by Harmony, the default for a model folder
    # whose config.json says gpt_oss
    format: Format = "chat"
    # The system message; empty sends none, which keeps the template's own. `{rules}` is replaced by the
    # competition's sentence about its answers.
    system: str = ""
    # The user message. `{problem}` is replaced by the problem, and `{rules}` as in `system`.
    user: User = "{problem}"
    variants: list[Variant] = field(default_factory=list)  # Other prompts, each for a share of the samples
    # Arguments of the chat template, such as enable_thinking (Qwen3) or reasoning_effort (gpt-oss)
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    samples: Positive = 16  # Samples per question
    # 0 always takes the likeliest token, so that all samples of a question are equal
    temperature: Temperature = 1.0
    top_p: TopP = 1.0  # Sample from the likeliest tokens that together have this probability
    min_p: Share = 0.0  # Sample from tokens that are at least this share as likely as the likeliest
    top_k: NonNegative = 0  # Sample from this many likeliest tokens; 0 from all
    # Whether each sample has its own seed: repeated, it gives the same text, except for rounding. false lets
    # vLLM draw for all samples at once, which is faster with a large vocabulary (docs/solver.md).
    seeded: bool = True
    # Texts that end a completion, besides the model's own end of turn
    stop: list[Tag] = field(default_factory=list)
    max_tokens: Positive = 16384  # Tokens per sample; the context may hold fewer
    # Tokens of prompt and completion. Null: a training profile's `model.max_length`, otherwise the model's.
    max_length: Positive | None = None
    # What encloses a thought and an answer. If not given, they come from a training profile's `prompt`
    # section, otherwise from the model's template.
    tags: Tags = field(default_factory=Tags)
    thinking: bool | None = None  # Whether a prompt ends inside a thought. Null: read from each prompt.
    # The share of samples whose Python runs in the sandbox, with its output fed back
    tools: Share = 0.0
    tool_turns: Positive = 128  # How many programs a sample may run
    tool_seconds: ToolSeconds = 6.0  # Seconds per program, at most 600
    # vLLM's parser for the model's own tool calls (`hermes` for Qwen); null runs its fenced Python blocks
    tool_parser: str | None = None
    # What weights a vote (docs/voting.md); `ties` breaks equal votes by entropy
    weight: Weight = "equal"
    # Whether the journal records each sample's log-probability and entropy, whatever `weight` needs, for
    # `aimo replay`. Costs 0.2 ms of a core per token.
    confidence: bool = False
    discount_trivial: bool = False  # Whether the answers 0, 1 and the statement's numbers count half
    # How proofs are written if a competition asks for them. Null: the defaults.
    proofs: Proofs | None = None
    gpu_memory: Share = 0.9  # Share of GPU memory that vLLM takes; on a CPU it takes 1 GiB
    # vLLM's engine arguments by its own names: tensor_parallel_size, kv_cache_dtype, speculative_config …
    vllm: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if sum(other.share for other in self.variants) > 1:
            raise ValueError("variants: their shares are more than 1 in all; lower them")
        if self.format == "harmony" and self.tool_parser:
            raise ValueError(f"tool_parser: {self.tool_parser} does not read Harmony's calls; set it to null")

    @property
    def top_logprobs(self) -> int | None:
        """How many log-probabilities of each token vLLM returns, for `weight` and `confidence`."""
        if self.confidence or self.weight == "ties" or self.weight.endswith("entropy"):
            return TOP_LOGPROBS
        return 0 if self.weight.endswith("logprob") else None

    @property
    def asked(self) -> dict[str, Any]:
        """The settings that decide what a completion says, as JSON values."""
        values = json.loads(self.to_json())
        vllm = {key: values["vllm"][key] for key in CHANGING if key in self.vllm}
        return {key: values[key] for key in ASKED} | {"vllm": vllm}

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    def describe(self) -> str:
        """Return the settings in one block, one `key: value` per line."""
        values = json.loads(self.to_json())
        return "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items())


def resolve_settings(model: str | Path, *layers: Mapping[str, Any]) -> Settings:
    """Return the settings of a model folder: each source overrides those before it.

    The sources are the sampling of its generation_config.json and the tags that `guess_tags` finds, its
    aimo.json, then the layers. Dictionaries such as `tags` and `vllm` are merged key by key. AimoError for
    an unknown key or an impossible value, and when aimo.json sets an argument of vLLM that is not HARMLESS
    and that no layer sets.
    """
    folder = Path(model)
    values: dict[str, Any] = {"tags": asdict(guess_tags(folder))}
    path, remedy = folder / "generation_config.json", "repair the file, or delete it"
    if path.exists():
        own = read_json(path, remedy)
        sampling = {key: own[key] for key in ("temperature", "top_p", "top_k") if own.get(key) is not None}
        validate_settings(sampling, str(path), remedy)
        values |= sampling
    path = folder / "config.json"
    is_harmony = path.exists() and read_json(path, REMEDY).get("model_type") == "gpt_oss"
    if is_harmony:
        values |= {"format": "harmony", "tags": asdict(HARMONY)}
    path, remedy = folder / SETTINGS, "repair the file, or delete it to take the defaults"
    if path.exists():
        values = merge(values, read_json(path, remedy))
        vllm = validate_settings(values, str(path), remedy).vllm
        odd = {key for key, value in vllm.items() if key not in HARMLESS.split() or isinstance(value, dict)}
        if refused := sorted(odd.difference(*(layer.get("vllm") or {} for layer in layers))):
            raise AimoError(
                f"{path}: vllm.{refused[0]} could run code of the folder's, so no model folder may set it; "
                f"remove it there, or say inference.vllm.{refused[0]} yourself, in a profile, by --set or in "
                "the settings of a kernel"
            )
    for layer in layers:
        values = merge(values, layer)
    settings = validate_settings(values, "settings", "correct the value")
    if settings.format == "harmony" and not is_harmony:
        raise AimoError(
            f"inference.format: harmony is gpt-oss's, and model {model} is another; set it to chat"
        )
    return settings


def guess_tags(model: Path) -> Tags:
    """Return the public tags whose `think_end` is in a folder's chat template or tokenizer files."""
    names = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json", "tokenizer.json")
    files = [model / name for name in names]
    text = "".join(file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file())
    return next((tags for tags in PUBLIC if tags.think_end in text), PUBLIC[0])


def merge(values: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**values, **layer}
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), Mapping):
            merged[key] = {**values[key], **value}
    return merged


def validate_settings(values: Mapping[str, Any], where: str, remedy: str) -> Settings:
    """Return typed settings, or raise one AimoError that names every bad key."""
    try:
        # From JSON, as strict Python input would refuse a dictionary of tags.
        settings = TypeAdapter(Settings).validate_json(json.dumps(values))
    except (TypeError, RecursionError) as e:  # a set, bytes, an object: nothing that JSON has
        raise AimoError(f"{where}: {e}; {remedy}") from None
    except ValidationError as e:
        known = {f.name for section in (Settings, Tags, Proofs) for f in fields(section)}
        found = "; ".join(explain(error, known) for error in e.errors())
        raise AimoError(f"{where}: {found}; {remedy}") from None
    for way in ("tensor", "pipeline", "data"):
        size = settings.vllm.get(f"{way}_parallel_size", 1)
        if type(size) is not int or size < 1:
            raise AimoError(f"{where}: vllm.{way}_parallel_size should be a number, not {size!r}; {remedy}")
    return settings


P = ParamSpec("P")
T = TypeVar("T")


def list_of_texts(value: Any) -> Any:
    """Return a text as a list: the list that it spells out, or the text alone."""
    if not isinstance(value, str):
        return value
    with contextlib.suppress(ValueError, SyntaxError):
        if isinstance(listed := ast.literal_eval(value), list):
            return listed
    return [value] if value.strip() else []


# A list of texts; papermill's `-p` gives a list as one text.
Texts = Annotated[list[str], BeforeValidator(list_of_texts)]


def check_parameters(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function take numbers for texts, and raise AimoError for arguments of another type."""
    config = ConfigDict(coerce_numbers_to_str=True, arbitrary_types_allowed=True)
    validated = validate_call(config=config)(function)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return validated(**signature.bind(*arguments, **named).arguments)  # type: ignore[call-arg]
        except ValidationError as e:
            if e.title != function.__name__:
                raise
            wrong = "; ".join(explain(error) for error in e.errors())
            raise AimoError(f"{wrong}; correct it in the cell of parameters") from None

    return call
