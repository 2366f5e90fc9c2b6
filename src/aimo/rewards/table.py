"""The table of rewards: a row each, with the name in a profile, the function and its options."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from aimo.errors import AimoError, explain
from aimo.inference.settings import Prompt
from aimo.rewards.code import binary_code_reward, code_reward
from aimo.rewards.contests import cf_code_reward, ioi_code_reward
from aimo.rewards.correctness import accuracy_reward, get_cosine_scaled_reward, len_reward
from aimo.rewards.format import format_reward, get_code_format_reward, tag_count_reward
from aimo.rewards.inputs import RewardFunc, bind
from aimo.rewards.options import (
    CfCode,
    Code,
    CodeFormat,
    Cosine,
    IoiCode,
    RepetitionPenalty,
    Reward,
    SoftOverlongPunishment,
)
from aimo.rewards.text import (
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
    reasoning_steps_reward,
)
from aimo.rewards.unsloth import (
    check_answer,
    check_numbers,
    match_format_approximately,
    match_format_exactly,
)


@dataclass(frozen=True)
class Row:
    """A reward: a function that takes its options as keywords, or a factory that makes it from them."""

    function: Callable[..., Any]
    options: type[Reward] = Reward
    is_factory: bool = False

    @property
    def option_names(self) -> list[str]:
        """What can be set, besides the weight."""
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
    "cosine": Row(get_cosine_scaled_reward, Cosine, is_factory=True),
    "repetition_penalty": Row(get_repetition_penalty_reward, RepetitionPenalty, is_factory=True),
    "soft_overlong_punishment": Row(get_soft_overlong_punishment, SoftOverlongPunishment, is_factory=True),
    "code": Row(code_reward, Code),
    "binary_code": Row(binary_code_reward, Code),
    "ioi_code": Row(ioi_code_reward, IoiCode),
    "cf_code": Row(cf_code_reward, CfCode),
    "code_format": Row(get_code_format_reward, CodeFormat, is_factory=True),
}

# Options that Open-R1's script arguments name in their own way; the others are `REWARD_OPTION` or `OPTION`.
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
    """`{name: weight}` or `{name: {weight: …, option: …}}` as options.

    ValueError for an unknown name or option, with the known ones, and for an impossible value.
    """
    read = {}
    for name, value in values.items():
        if name not in REWARDS:
            raise ValueError(f"{name}: reward {name!r} is unknown; use one of {', '.join(REWARDS)}")
        options = vars(value) if isinstance(value, Reward) else value
        if not isinstance(options, dict):
            options = {"weight": value}
        known = ["weight", *REWARDS[name].option_names]
        if unknown := options.keys() - set(known):
            named = ", ".join(map(repr, sorted(unknown)))
            raise ValueError(f"{name}: no option {named}; it has {', '.join(known)}")
        try:
            read[name] = REWARDS[name].options(**options)
        except ValidationError as e:
            raise ValueError(f"{name}." + "; ".join(explain(error) for error in e.errors())) from None
    return read


def get_reward_funcs(names: Any, prompt: Prompt | None = None, **options: Any) -> list[RewardFunc]:
    """The named rewards, with their options and a profile's tags (None: Open-R1's layout).

    `names`: a list, whose rewards take what they know of `options`; a mapping such as a profile's
    `grpo.rewards`; or Open-R1's script arguments. AimoError for an unknown reward or a wrong option, with
    the known ones.
    """
    if hasattr(names, "reward_funcs"):
        chosen: Mapping[str, Any] = read_script_arguments(names)
    elif isinstance(names, Mapping):
        chosen = names
    else:
        chosen = share_options(names, options)
    try:
        settings = read_rewards(chosen)
    except ValueError as e:
        raise AimoError(f"rewards: {e}") from None
    functions = []
    for name, setting in settings.items():
        row = REWARDS[name]
        own = {option: getattr(setting, option) for option in row.option_names}
        if row.is_factory:
            functions.append(bind(row.function(**own), prompt=prompt))
        else:
            functions.append(bind(row.function, **own, prompt=prompt))
    return functions


def share_options(names: list[str], options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each named reward with the options that it has; what none of them has goes to all, to be refused."""
    known = {name: REWARDS[name].option_names if name in REWARDS else [] for name in names}
    shared = {option for of_one in known.values() for option in of_one}
    return {
        name: {o: v for o, v in options.items() if o in of_one or o not in shared}
        for name, of_one in known.items()
    }


def read_script_arguments(arguments: Any) -> dict[str, dict[str, Any]]:
    """Open-R1's script arguments (`reward_funcs`, `cosine_max_len`, …) as `{name: options}`."""
    fields = vars(arguments)
    read: dict[str, dict[str, Any]] = {}
    for name in arguments.reward_funcs:
        read[name] = {}
        for option in REWARDS[name].option_names if name in REWARDS else []:
            theirs = OPEN_R1_OPTIONS.get(f"{name}.{option}", OPEN_R1_OPTIONS.get(option, option))
            for field in (f"{name.partition('_')[0]}_{option}", theirs):
                if field in fields:
                    read[name][option] = fields[field]
    return read
