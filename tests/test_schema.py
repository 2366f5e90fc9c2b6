"""Every key of a profile, set to another value, changes something that a run makes or hands to a library.

A new key without an effect fails here by its name. A `Case` says where to look; the first whose pattern fits
a key is its case.
"""

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import model_server
import pytest
from conftest import TINY
from pydantic import ConfigDict, TypeAdapter, ValidationError

from aimo import config
from aimo.data import distil, prepare
from aimo.evaluation import submission
from aimo.inference import competitions, gateway, proofs, tool_calls, vllm_process, voting
from aimo.inference.answers import Proof
from aimo.inference.engine import Supervisor
from aimo.inference.errors import AimoError
from aimo.inference.server import Server
from aimo.rewards import REWARDS, get_reward_funcs
from aimo.run import runs
from aimo.train import arguments, models, trainers

# Other values of a key, tried in this order; a key that takes none of them needs a value in its case.
CANDIDATES = [True, False, 3, 2, 0.5, 0.25, -0.75, [0.2, 0.8], [0, 40]]


# ---- the walk ----


def sections(hint: Any) -> list[type]:
    """The dataclasses in a type."""
    if typing.get_origin(hint) is Annotated:
        return sections(typing.get_args(hint)[0])
    return [hint] if is_dataclass(hint) else [s for part in typing.get_args(hint) for s in sections(part)]


def keys(section: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of a section and the sections in it, with their types."""
    hints = typing.get_type_hints(section, include_extras=True)
    for name in (f.name for f in fields(section)):
        for part in (inner := sections(hints[name])):
            yield from keys(part, f"{prefix}{name}.")
        if not inner:
            yield prefix + name, hints[name]


SOURCES = re.compile(
    r"(data\.(grpo|heldout)|distil)\.(" + "|".join(f.name for f in fields(config.Mixture)) + r")\b"
)
KEYS = {
    key: hint
    for section, prefix in [
        (config.Profile, ""),
        *((row.options, f"grpo.rewards.{name}.") for name, row in REWARDS.items()),
    ]
    for key, hint in keys(section, prefix)
    # Sources are read alike everywhere: their keys count in data.sft alone.
    if not SOURCES.match(key) and ".mixture." not in key and not key.startswith("data.decontaminate.")
}


def literals(hint: Any) -> list[Any]:
    parts = typing.get_args(hint)
    is_literal = typing.get_origin(hint) is typing.Literal
    return list(parts) if is_literal else [value for part in parts for value in literals(part)]


def other(hint: Any, value: Any) -> Any:
    """A valid value that is not `value`."""
    adapter = TypeAdapter(hint, config=ConfigDict(strict=True))
    for candidate in [*literals(hint), *CANDIDATES]:
        with suppress(ValidationError):
            if candidate != value and adapter.validate_json(json.dumps(candidate)) is not Ellipsis:
                return candidate
    raise LookupError("its type tells no other value; give one in its case")


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; in a list of sections, that of the first."""
    *parents, last = key.split(".")
    for name in parents:
        inner = values.setdefault(name, {})
        values = inner[0] if isinstance(inner, list) else inner
    values[last] = value


def get(section: Any, key: str) -> Any:
    """The value of a dotted key; None below a section that is not there."""
    for name in key.split("."):
        section = section[0] if isinstance(section, list) and section else section
        section = section.get(name) if isinstance(section, dict) else getattr(section, name, None)
    return section


# ---- the profile that is walked: every section ----


DESK = tempfile.TemporaryDirectory(prefix="schema-")
FOLDER = Path(DESK.name)
(FOLDER / "test.csv").write_text("id,problem\na,What is 1 + 1?\n")
BASE = {
    "profile": "walk",
    "model": {
        "base": str(TINY), "backend": "transformers", "max_length": 1024, "dtype": "float32", "lora": {},
    },
    "data": {
        "sft": {"rows": 20, "test_split": 0.1},
        "grpo": {"rows": 20, "test_split": 0.1},
        "heldout": {"rows": 10, "split": "heldout"},
    },
    "distil": {"rows": 3, "api_addr": ["127.0.0.1:1"], "input_price": 1.0, "output_price": 2.0},
    **{stage: {"learning_rate": 1e-3} for stage in ("sft", "grpo", "dpo")},
    "opd": {"learning_rate": 1e-3, "teacher": str(TINY)},
    "inference": {"samples": 8, "max_tokens": 4000},
}  # fmt: skip


# ---- where to look ----


class Captured(Exception):
    """What was handed to another library."""


def capture(*arguments: Any, **keywords: Any) -> None:
    raise Captured([arguments, keywords])


def captured(look: Callable[[], Any], **patches: Any) -> Any:
    """What `capture`, in the place of something that is patched, is given."""
    with pytest.MonkeyPatch.context() as patch:
        for place, stand_in in patches.items():
            patch.setattr(place, stand_in)
        with pytest.raises(Captured) as call:
            look()
    return call.value.args


@cache
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY)


def rows(profile: config.Profile) -> Any:
    """The rows that notebook 01 writes."""
    sets = prepare.clean_sets(prepare.load_sets(profile), profile, tokenizer())
    ready = prepare.format_sets(prepare.decontaminate_sets(sets, profile), profile)
    return {name: table.to_dicts() for name, table in ready.items()}


def distilled(profile: config.Profile) -> Any:
    """What the servers of a teacher are asked, and what it costs."""
    given, asked = [], []

    class Teacher(distil.Servers):
        def __init__(self, urls, model, *limits):
            given.append((urls, model, *limits))
            self.servers, self.model = [], model or "teacher"

        async def ask(self, body):
            asked.append(json.dumps(body))
            said = {"text": "So it is \\boxed{1}.", "thought": "", "finish_reason": "stop"}
            return said | {"prompt_tokens": 10, "completion_tokens": 20}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distil, "Servers", Teacher)
        out = Path(tempfile.mkdtemp(dir=FOLDER)) / "samples.jsonl"
        tally = distil.distil(profile.distil, out, profile.seed, lambda tally: None)
    return [given, sorted(asked), tally.cost]


def chat(profile: config.Profile) -> Any:
    """A prompt as the model reads it, and the rows."""
    own = models.load_tokenizer(TINY, profile)
    asked = own.apply_chat_template([{"role": "user", "content": "1 + 1?"}], add_generation_prompt=True)
    return [own.decode(asked["input_ids"]), own.eos_token, rows(profile)]


def arguments_of(stage: str) -> Callable[[config.Profile], Any]:
    """TRL's configuration of a stage."""

    def observe(profile: config.Profile) -> Any:
        return arguments.stage_arguments(runs.Run(profile, FOLDER, stage, 0.0)).to_dict()

    return observe


SFT_ARGS, GRPO_ARGS, DPO_ARGS, OPD_ARGS = map(arguments_of, ("sft", "grpo", "dpo", "opd"))


def rewards(profile: config.Profile) -> Any:
    """The rewards with the options that they are bound to, and their weights in TRL's configuration."""
    functions = get_reward_funcs(profile.grpo.rewards, profile.prompt)
    bound = [(function.__name__, repr(function.func), function.keywords) for function in functions]
    return [bound, GRPO_ARGS(profile)["reward_weights"]]


def loading(profile: config.Profile) -> Any:
    """What Unsloth or Transformers is told to load where there is a GPU; the call does not get there."""
    import peft  # noqa: F401 (before there seems to be a GPU)

    unsloth = types.ModuleType("unsloth")
    unsloth.FastLanguageModel = types.SimpleNamespace(from_pretrained=capture)  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "unsloth", unsloth)
        places = {"torch.cuda.is_available": lambda: True}
        places["transformers.AutoModelForCausalLM.from_pretrained"] = capture
        return captured(lambda: models.load_model(TINY, profile), **places)


def adapters(profile: config.Profile) -> Any:
    """The adapters of a loaded model."""
    return vars(models.load_model(TINY, profile).peft_config["default"])


def base_model(profile: config.Profile) -> Any:
    """Where the base model comes from."""
    run = runs.Run(profile, FOLDER, "sft", 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.snapshot_download", lambda *args, **keys: f"{args} {keys}")
        return run.start_model()


def sft_order(profile: config.Profile) -> Any:
    """Whether a step of SFT's trainer holds rows of like length."""
    made, run = rows(profile), runs.Run(profile, FOLDER, "sft", 0.0)
    given = models.load_model(TINY, profile), models.load_tokenizer(TINY, profile), made["sft"], run
    (((trainer,), _),) = captured(
        lambda: models.training_of("sft")(*given, made["sft_test"], made["grpo_test"]),
        **{"transformers.Trainer.train": capture},
    )
    return trainer.by_length


def served_model(profile: config.Profile) -> Any:
    """How far a saved model's log-probabilities may be from the trained one's."""
    model = types.SimpleNamespace(dtype="torch.float32", to=lambda device: None)
    places = {
        "read_kept": lambda _: {"talks": []}, "read_tokenizer": lambda _: None, "log_probs": lambda *_: [],
        "AutoModelForCausalLM.from_pretrained": lambda *_, **__: model, "encode_talks": lambda *_: [],
        "compare": capture,
    }  # fmt: skip
    run = runs.Run(profile, FOLDER, "sft", 0.0)
    return captured(
        lambda: trainers.check(run), **{f"aimo.train.trainers.{name}": of for name, of in places.items()}
    )


def hub_cache(profile: config.Profile) -> Any:
    """Where the hub's client keeps what it downloads, in a process that begins a stage."""
    code = "import sys; from aimo.run import runs; runs.begin('distil', *sys.argv[1:])\n"
    code += "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    path = Path(tempfile.mkdtemp(dir=FOLDER)) / "walk.yaml"
    path.write_text(config.dump(profile))
    command = [sys.executable, "-c", code, str(path), str(path.with_name("run"))]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


REPLIES = [
    "so 1 + 1 = 2 and \\boxed{5} <end_working_out><SOLUTION>6</SOLUTION>",
    "<start_working_out>\\boxed{7} </think> \\boxed{8}<end_working_out> so 6",
    "<b>so it goes on and on, once more, without an answer",
    "```python\nimport time\ntime.sleep(0.5)\nprint(6)\n``` which is as it should be, I think",
    "now it is surely <end_working_out><SOLUTION>1</SOLUTION>",
]
BODIES: list[dict[str, Any]] = []  # what the model server was asked for the last question


@cache
def server() -> Any:
    """A model server with a reply for each seed, and its address."""

    def complete(body):
        BODIES.append(body)
        seed = body.get("seed") or 0  # none where samples are not seeded
        text = REPLIES[seed % len(REPLIES)].replace("6", str(seed % 1000))
        words = {"token_logprobs": [-0.5], "top_logprobs": [{"a": -0.5, "b": -1.0}]}
        choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": words}
        return [choice | {"token_ids": [5] * len(text)}]

    serving = model_server.serving(complete, 4096)
    return serving, serving.__enter__()  # it ends with the process


def asked(profile: config.Profile) -> Any:
    """What a model server is asked for one question, and what the solver makes of its replies."""
    BODIES.clear()
    solutions: dict[str, Any] = {}

    def to_the_end(state, policy):  # which sample would settle a vote depends on timing
        step = voting.Step(start=state.left)
        return step if state.left + state.running else voting.Step(voting.Stop.EXHAUSTED)

    with (
        Server([server()[1]], TINY, profile.solver_settings(TINY)) as model,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(voting, "next_step", to_the_end)
        schedule = gateway.Schedule(competitions.COMPETITIONS["aimo3"], None, 1)
        predict = gateway.make_predict(schedule, Supervisor(lambda: model, model), profile.seed, solutions)
        predict(["q"], ["What is 1 + 1, or 2?"])
    samples = sorted(solutions["q"].samples, key=lambda sample: sample.index)
    return [sorted(map(str, BODIES)), [(s.text, s.end, s.answer, s.weight) for s in samples]]


def proved(profile: config.Profile) -> Any:
    """What each role of a proof is asked and says, and how long a problem may take."""
    from scripted import Scripted

    def write(number, prompt):
        said = f"It is so, {number}. " * 40
        return said if "Prove" in prompt else f"{said}Proof {number}, \\boxed{{{number % 6}}}\x03"

    sampler, budgets, solve = Scripted(write), [], proofs.Prover.solve
    sampler.settings = profile.solver_settings(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proofs.Prover, "solve", lambda self, s: budgets.append(s) or solve(self, s))
        solution = proofs.prove_problem(sampler, "?", Proof())
    return [budgets, sorted(sampler.prompts), sorted((one.role, one.text) for one in solution.samples)]


def questions(profile: config.Profile) -> Any:
    """The questions that notebook 04 answers."""

    run = runs.Run(profile, Path(tempfile.mkdtemp(dir=FOLDER)), "inference", 0.0)
    return submission.test_file(run).read_text()


def vllm(profile: config.Profile) -> Any:
    """What vLLM is given: the engine's arguments and a stream's parameters."""
    from aimo.inference import engine

    settings = profile.solver_settings(TINY)
    parser = tool_calls.find_tool_parser(settings.tool_parser, tokenizer())
    parameters = engine.sampling_parameters(settings, profile.seed, 10**6)
    return [vllm_process.engine_arguments(TINY, settings, profile.seed), repr(parameters), parser]


# ---- the cases ----


@dataclass(frozen=True)
class Case:
    """Where the keys that fit a pattern show."""

    keys: str
    # None: it would do nothing there and is refused. A text: what it reaches, and the test that sets it.
    observe: Callable[[config.Profile], Any] | str | None
    value: Any = None  # another one, where the type does not tell it
    given: dict[str, Any] = field(default_factory=dict)  # other keys that make this one count


OVERLONG = {"grpo.rewards": {"soft_overlong_punishment": {"max_completion_len": 60, "soft_punish_cache": 50}}}
VARIANT = {"inference.variants": [{"share": 0.5, "user": "?{problem}"}]}
FEW_PROOFS = {"inference.proofs.proof_tokens": 200}
TOOLS = {"inference.tools": 1.0, "inference.tool_turns": 3}
SMALL_ANSWERS = {"answer": {"kind": "integer", "high": 30}, "artefact": {"kind": "csv"}}
SMALL_ANSWERS |= {"slug": "small", "rules": "Small."}
SFT_ONLY = ("overlong", "traces", "verbatim", "empty_thoughts", "min_logprob")


def of(section: str, look: Any, **values: Any) -> list[Case]:
    """Keys of a section that are seen in one place."""
    return [Case(f"{section}.{key}", look, value) for key, value in values.items()]


def stage(name: str, look: Any) -> list[Case]:
    """The keys that every stage that trains has."""
    return [
        Case(f"{name}.min_lr_rate", look, given={f"{name}.scheduler": "cosine_with_min_lr"}),
        Case(f"{name}.trl", look, {"adam_beta2": 0.9}),
        Case(f"{name}.probe_steps", "the training: test_training"),
    ]


CASES = [
    Case("profile", SFT_ARGS, "another"),
    Case("model.base", base_model, str(FOLDER)),
    Case("model.revision", base_model, "v2", {"model.base": "some/model"}),
    Case("model.max_length", SFT_ARGS, 2048),
    Case("model.gradient_checkpointing", loading, given={"model.backend": "unsloth"}),
    Case("model.lora.target_modules", adapters, ["q_proj"]),
    Case("model.lora.*", adapters),
    *of("model", loading, backend=None, dtype="bfloat16", load_in_4bit=None, attention="eager"),
    Case("seed", SFT_ARGS),
    Case("competition", rows, SMALL_ANSWERS),
    *of("prompt", chat, template="chatml", eos_token="</SOLUTION>", prefill=None),
    Case("prompt.*", chat, "<a>"),
    *(Case(f"data.{name}.{key}", None) for name in ("grpo", "heldout") for key in SFT_ONLY),
    Case("data.heldout.test_split", None),
    *of("distil", distilled, api_addr=["127.0.0.1:2"], model="teacher-2", system="Think."),
    Case("distil.reject.*", "what is kept: test_distil"),
    Case("distil.prompt_template", distilled, "{prompt}?"),
    Case("distil.*", distilled),
    Case("data.sft.columns.id", "what is distilled: test_distil"),
    Case("data.sft.min_logprob", "the rows: test_worst_tokens"),
    Case("data.*", "the rows: test_data test_sources"),
    *stage("sft", SFT_ARGS),
    Case("sft.packing_strategy", SFT_ARGS, given={"sft.packing": True}),
    Case("sft.group_by_length", sft_order),
    Case("sft.*", SFT_ARGS),
    *stage("grpo", GRPO_ARGS),
    *of("grpo", GRPO_ARGS, generation="vllm_server", gradient_accumulation_steps=2, degenerate="penalty"),
    Case("grpo.vllm_server_url", GRPO_ARGS, "http://localhost:1", {"grpo.generation": "vllm_server"}),
    *of("grpo", "the training: test_training", max_resample=None, sample_steps=None),
    Case("grpo.pass_rate*", "the problems of GRPO: test_evaluate"),
    Case("grpo.tools", "GRPO's trainer: test_tool_use"),
    Case("grpo.max_prompt_length", rows, 20),
    Case("grpo.rewards", rewards, {"format": 1.0}),
    Case("grpo.rewards.code_format.language", rewards, "cpp"),
    Case("grpo.rewards.soft_overlong_punishment.*", rewards, given=OVERLONG),
    Case("grpo.rewards.*", rewards),
    Case("grpo.*", GRPO_ARGS),
    *stage("dpo", DPO_ARGS),
    *of("dpo", "the pairs of DPO: test_stages", problems=None, samples=None),
    Case("dpo.*", DPO_ARGS),
    *stage("opd", OPD_ARGS),
    Case("opd.teacher", "the check of the teacher: test_opd"),
    Case("opd.max_prompt_length", rows, 20),
    Case("opd.*", OPD_ARGS),
    *of("inference", questions, test=str(FOLDER / "test.csv"), test_rows=None),
    Case("inference.tags.think_start", asked, "<b>", {"inference.thinking": False}),
    Case("inference.tags.*", asked, "<b>"),
    Case("inference.variants.share", asked, 0.25, VARIANT),
    Case("inference.variants.*", asked, "{problem} Think.", {"inference.variants": [{"share": 0.5}]}),
    *of("inference", vllm, vllm={"max_num_seqs": 7}, gpu_memory=None, tool_parser="hermes"),
    *of("inference.proofs", proved, prove="So {problem}", verify="So {proof}"),
    *of("inference.proofs", proved, refine="So {objections}", select="So {proofs}"),
    Case("inference.proofs.*_tokens", proved, 300, FEW_PROOFS),
    Case("inference.proofs.*", proved, 2),
    Case("inference.tools", asked, 0.0, TOOLS),
    Case("inference.tool_seconds", asked, 0.2, TOOLS),
    Case("inference.tool_turns", asked, 1, TOOLS),
    *of("inference", asked, format="harmony", system="Think.", user="{problem} Think.", stop=["so"]),
    *of("inference", asked, weight="logprob", thinking=False, seeded=False),
    *of("inference", asked, chat_template_kwargs={"enable_thinking": False}),
    Case("inference.*", asked),
    Case("training.served_bound", served_model),
    Case("training.log_to", SFT_ARGS, "tensorboard"),
    *of("training", "when a stage stops: test_training", time_limit_s=None, disk_gb=None),
    Case("training.push_*", "where a model goes: test_push"),
    Case("training.cache_dir", hub_cache, str(FOLDER)),
]


def prepared(key: str, case: Case) -> dict[str, Any]:
    """The profile's values in which `key` counts."""
    values = deepcopy(BASE)
    if key.startswith("grpo.rewards."):  # case.given may say more
        values["grpo"]["rewards"] = {key.split(".")[2]: {}}
    for name, value in case.given.items():
        put(values, name, value)
    return values


def case_of(key: str) -> Case | None:
    return next((case for case in CASES if fnmatch(key, case.keys)), None)


SEEN: dict[tuple[Any, str], Any] = {}  # what was seen, by what looked and at which profile
STEADY: set[Any] = {hub_cache}  # what saw the same when it looked twice; a process takes a second
SLOW = [case.keys for case in CASES if case.observe in (sft_order, vllm)]  # trains, or loads vLLM
WALK = [pytest.param(key, marks=[pytest.mark.train] * any(fnmatch(key, of) for of in SLOW)) for key in KEYS]


@pytest.mark.parametrize("key", WALK)
def test_a_key_changes_what_it_names(key):
    case = case_of(key)
    assert case, f"{key}: no case says what it changes"
    name = key.rpartition(".")[2]
    if isinstance(case.observe, str):
        files = [Path(__file__).with_name(f"{test}.py") for test in re.findall(r"\btest_\w+", case.observe)]
        texts = "".join(file.read_text() for file in files)
        assert re.search(rf"\b{name}\b", texts), f"{key}: {case.observe} does not set it"
        return
    values = prepared(key, case)
    before = config.parse(values, "walk")
    value = other(KEYS[key], get(before, key)) if case.value is None else case.value
    put(values, key, value)
    if case.observe is None:
        with pytest.raises(AimoError, match=f"{key}: has no effect"):
            config.parse(values, "walk")
        return

    def seen(profile: config.Profile) -> Any:
        """What is observed; for a value that is refused, why."""
        try:
            return case.observe(profile)
        except AimoError as e:
            return str(e)

    known = (case.observe, repr(before))
    if known not in SEEN:
        SEEN[known] = seen(before)
        if case.observe not in STEADY:
            assert seen(before) == SEEN[known], "what is looked at changes by itself"
            STEADY.add(case.observe)
    assert seen(config.parse(values, "walk")) != SEEN[known], f"{key}: {value!r} changes nothing"


@pytest.mark.parametrize("look", [rows, SFT_ARGS, GRPO_ARGS, DPO_ARGS, OPD_ARGS, asked])
def test_the_seed_reaches_every_stage(look):
    seen = [look(config.parse(BASE | {"seed": seed}, "walk")) for seed in (0, 0, 1)]
    assert seen[0] == seen[1] != seen[2]


def test_every_sample_of_a_question_has_a_seed_of_its_own():
    asked(config.parse(BASE, "walk"))
    first = min((body["prompt"] for body in BODIES), key=len)  # others are asked again, to force an answer
    seeds = [body["seed"] for body in BODIES if body["prompt"] == first]
    assert len(set(seeds)) == len(seeds) == 8


def test_the_page_of_all_keys_says_what_the_dataclasses_and_this_walk_say():
    spec = importlib.util.spec_from_file_location("profiles", config.ROOT / "docs/profiles.py")
    profiles = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(profiles)
    assert profiles.page() == profiles.PAGE.read_text(), "run `make docs`"
