"""Reward functions with TRL's signature: Open-R1's, and those of Unsloth's Qwen3-4B-Base recipe.

REWARDS lists each by its name in a profile, with its options; `math` and `code` hold the functions. Called
directly, Open-R1's expect its layout, and Unsloth's the recipe's tags. `get_reward_funcs` binds them to a
profile's tags.

A user's own reward is a function in a file, which a profile names as `PATH.py:FUNCTION`. The file's text
becomes part of the profile, and so of the run's folder, the kernel and the model's card.
"""

import re
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial, update_wrapper, wraps
from numbers import Real
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from aimo.inference.answers import AnswerKind
from aimo.inference.errors import AimoError, explain
from aimo.inference.settings import Positive, Prompt, strict
from aimo.rewards.code import binary_code_reward, cf_code_reward, code_reward, ioi_code_reward
from aimo.rewards.code import extract_code as extract_code
from aimo.rewards.math import (
    CodeFormat,
    Cosine,
    RepetitionPenalty,
    Reward,
    RewardFunc,
    Rewards,
    SoftOverlongPunishment,
    accuracy_reward,
    check_answer,
    check_numbers,
    format_reward,
    len_reward,
    match_format_approximately,
    match_format_exactly,
    reasoning_steps_reward,
    tag_count_reward,
)
from aimo.rewards.math import text_of as text_of

# Open-R1's names for the makers of these rewards.
get_cosine_scaled_reward = Cosine
get_code_format_reward = CodeFormat
get_repetition_penalty_reward = RepetitionPenalty
get_soft_overlong_punishment = SoftOverlongPunishment

OWN = re.compile(r"(.+\.py):(\w+)")


@dataclass(config=strict)
class Code(Reward):
    """`code` and `binary_code`: where programs run, and how many at a time."""

    num_parallel: Positive = 2  # Programs that run at the same time
    # The sandbox on this machine, or a service, whose package must be installed
    provider_type: Literal["local", "e2b", "morph"] = "local"


@dataclass(config=strict)
class IoiCode(Reward):
    """`ioi_code`: where programs run, and how many tests at a time."""

    # Tests that run at the same time; -1: all. `ioi_code` and `pass_fail` stop after a batch with a failure
    test_batch_size: Annotated[int, Field(ge=-1)] = 1
    # The servers of PISTON_ENDPOINTS, or g++ and the sandbox
    provider_type: Literal["piston", "local"] = "piston"


@dataclass(config=strict)
class CfCode(IoiCode):
    """`cf_code`: the options of `ioi_code`, and how tests make a score."""

    # Whether all tests pass, the share that passes, or the first plus a tenth of the second
    scoring_mode: Literal["pass_fail", "partial", "weighted_sum"] = "weighted_sum"
    patch_code: bool = False  # Whether to add the standard headers to C++


@dataclass(config=strict)
class OwnReward(Reward):
    """`PATH.py:FUNCTION`: the file's text, read with the profile."""

    code: str = ""


class Row(NamedTuple):
    """A reward: a function that takes its options as keywords, or a callable class that holds them."""

    function: Callable[..., Any]
    options: type[Reward] = Reward

    @property
    def option_names(self) -> list[str]:
        return [o for o in self.options.__dataclass_fields__ if o != "weight"]  # type: ignore[attr-defined]


REWARDS = {
    "accuracy": Row(accuracy_reward),
    "format": Row(format_reward),
    "tag_count": Row(tag_count_reward),
    "reasoning_steps": Row(reasoning_steps_reward),
    "length": Row(len_reward),
    "format_exact": Row(match_format_exactly),
    "format_approximate": Row(match_format_approximately),
    "check_answer": Row(check_answer),
    "check_numbers": Row(check_numbers),
    "cosine": Row(Cosine, Cosine),
    "repetition_penalty": Row(RepetitionPenalty, RepetitionPenalty),
    "soft_overlong_punishment": Row(SoftOverlongPunishment, SoftOverlongPunishment),
    "code": Row(code_reward, Code),
    "binary_code": Row(binary_code_reward, Code),
    "ioi_code": Row(ioi_code_reward, IoiCode),
    "cf_code": Row(cf_code_reward, CfCode),
    "code_format": Row(CodeFormat, CodeFormat),
}

BY_ANSWER = "accuracy", "length", "check_answer", "check_numbers", "cosine"  # rewards that need a gold answer

# Options with another name in Open-R1's script arguments; the others are `REWARD_OPTION` or `OPTION`.
OPEN_R1_OPTIONS = {
    "ngram_size": "repetition_n_grams",
    "num_parallel": "parallel_code_exec_per_proc",
    "provider_type": "code_provider",
    "ioi_code.provider_type": "ioi_provider",
    "cf_code.provider_type": "cf_provider",
    "test_batch_size": "code_eval_test_batch_size",
    "scoring_mode": "code_eval_scoring_mode",
}


def read_rewards(values: Mapping[str, Any]) -> dict[str, Reward]:
    """Return each reward's options from `{name: weight}` or `{name: {weight: …, option: …}}`.

    The name `PATH.py:FUNCTION` is a user's function. ValueError for an unknown name or option, which lists
    the known ones, and for an invalid value.
    """
    read: dict[str, Reward] = {}
    logged: dict[str, str] = {}  # TRL names its metrics after the functions
    for name, options in with_texts(values, [Path.cwd()]).items():
        own = OWN.fullmatch(name)
        if not (row := Row(load_function, OwnReward) if own else REWARDS.get(name)):
            others = f"{', '.join(REWARDS)}, or ./FILE.py:FUNCTION"
            raise ValueError(f"{name}: reward {name!r} is unknown; use one of {others}")
        known = ["weight", *row.option_names]
        if unknown := options.keys() - set(known):
            named = ", ".join(map(repr, sorted(unknown)))
            raise ValueError(f"{name}: no option {named}; it has {', '.join(known)}")
        try:
            read[name] = row.options(**options)
        except ValidationError as e:
            raise ValueError(f"{name}." + "; ".join(explain(error) for error in e.errors())) from None
        made = read[name] if row.function is row.options else row.function
        function = own[2] if own else getattr(made, "__name__", name)
        if other := logged.get(function):
            raise ValueError(f"{name}: {other} has the same function's name; give it another")
        logged[function] = name
    return read


def with_texts(values: Mapping[str, Any], folders: list[Path]) -> dict[str, dict[str, Any]]:
    """Return each reward's options. A user's file, found in `folders`, is named without its folder, and its
    text becomes an option. ValueError for a missing file, and for two files of one name.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        options = vars(value) if isinstance(value, Reward) else value
        options = dict(options) if isinstance(options, dict) else {"weight": value}
        if isinstance(name, str) and (own := OWN.fullmatch(name)):
            path = Path(own[1]).expanduser()
            if not options.get("code"):
                file = next((folder / path for folder in folders if (folder / path).is_file()), None)
                if file is None:
                    places = " or ".join(dict.fromkeys(map(str, folders)))
                    raise ValueError(f"{name}: there is no file {path} in {places}; correct the path")
                try:
                    options["code"] = file.read_text(encoding="utf-8-sig").rstrip() + "\n"
                except (OSError, UnicodeDecodeError) as e:
                    raise ValueError(f"{name}: {file} cannot be read ({e}); save it as UTF-8") from None
            name = f"{path.name}:{own[2]}"
        if name in found:
            raise ValueError(f"{name}: two files have this name; rename one")
        found[name] = options
    return found


def get_reward_funcs(
    names: Any, prompt: Prompt | None = None, kind: AnswerKind | None = None, **options: Any
) -> list[RewardFunc]:
    """Return the named rewards, bound to their options, a profile's tags (None: Open-R1's layout) and its
    competition's `kind` of answers.

    `names` is a list, whose rewards take the `options` that they know; a mapping such as a profile's
    `grpo.rewards`; or Open-R1's script arguments. A function from a file gets only TRL's arguments. AimoError
    for an unknown reward or option, which lists the known ones, and for an invalid value.
    """
    listed = getattr(names, "reward_funcs", names)
    known = {name: REWARDS[name].option_names if name in REWARDS else list[str]() for name in listed}
    if isinstance(names, Mapping):
        chosen = dict(names)
    elif names is listed:  # an option that no reward knows goes to all, which refuse it
        anywhere = {option for of_one in known.values() for option in of_one}
        chosen = {
            name: {option: v for option, v in options.items() if option in of_one or option not in anywhere}
            for name, of_one in known.items()
        }
    else:
        given, chosen = vars(names), {name: {} for name in listed}
        for name, option in [(name, option) for name, of_one in known.items() for option in of_one]:
            theirs = OPEN_R1_OPTIONS.get(f"{name}.{option}", OPEN_R1_OPTIONS.get(option, option))
            for field in (f"{name.partition('_')[0]}_{option}", theirs):  # cosine_max_len, max_len
                if field in given:
                    chosen[name][option] = given[field]
    try:
        settings = read_rewards(chosen)
    except ValueError as e:
        raise AimoError(f"rewards: {e}") from None
    functions = []
    for name, setting in settings.items():
        if isinstance(setting, OwnReward):
            functions.append(load_function(name, setting.code))
            continue
        made: Any = setting
        row, bound = REWARDS[name], {"prompt": prompt, "answer_kind": kind}
        if row.function is not row.options:
            made, bound = row.function, bound | {key: getattr(setting, key) for key in row.option_names}
        functions.append(update_wrapper(partial(made, **bound), made))  # with its name, which TRL logs
    return functions


# ---- a user's own reward ----


def load_function(name: str, code: str) -> RewardFunc:
    """Run a file's text and return the function that `name` ends in. AimoError if that fails.

    It raises a one-line AimoError unless the user's code returns a number or None for each completion.
    """
    file, function = name.rsplit(":", 1)

    def told(e: Exception) -> AimoError:
        lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == file]
        where = f" in line {lines[-1]} of {file}" if lines else ""
        said = " ".join(f"{type(e).__name__}: {e}".split())[:200]
        return AimoError(f"grpo.rewards.{name}: {function} raises {said}{where}; correct it")

    module = ModuleType(f"aimo_reward_{Path(file).stem}")
    sys.modules[module.__name__] = module  # dataclasses look it up there
    try:
        exec(compile(code, file, "exec"), module.__dict__)
    except Exception as e:  # whatever the user's file raises
        raise told(e) from None
    own = module.__dict__.get(function)
    if not callable(own):
        example = f"def {function}(completions, **columns)"
        raise AimoError(f"grpo.rewards.{name}: {file} has no function {function}; write {example} in it")

    @wraps(own)
    def reward(completions: Any, **columns: Any) -> Rewards:
        try:
            values = own(completions=completions, **columns)
        except AimoError:
            raise
        except Exception as e:
            raise told(e) from None
        try:
            made = list(values)
        except TypeError:
            made = [values]
        wanted = f"a number or None for each of the {len(completions)} completions"
        if len(made) != len(completions) or not all(one is None or isinstance(one, Real) for one in made):
            raise AimoError(f"grpo.rewards.{name}: {function} gives {values!r:.100}, not {wanted}")
        return [None if one is None else float(one) for one in made]

    return reward


def try_rewards(rewards: Mapping[str, Any]) -> None:
    """Let the user's own rewards score two completions, one of them empty. AimoError if one fails."""

    texts = ("Two and two are 4.", "")
    columns: dict[str, Any] = {
        "completions": [[{"role": "assistant", "content": text}] for text in texts],
        "prompts": [[{"role": "user", "content": "What is 2 + 2?"}]] * 2,
        "completion_ids": [[1, 2, 3], []],
        "answer": ["4", "4"],
        "trainer_state": SimpleNamespace(global_step=0, max_steps=1, epoch=0.0),
        "log_extra": lambda *_: None,
        "log_metric": lambda *_: None,
    }
    for name, reward in rewards.items():
        if code := getattr(reward, "code", None):
            tests = {"verification_info": ['{"test_cases": []}'] * 2} if "verification_info" in code else {}
            load_function(name, code)(**columns, **tests)
