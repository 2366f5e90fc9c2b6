"""Reward functions with TRL's signature, by name: Open-R1's, and those of Unsloth's Qwen3-4B-Base recipe.

Each takes `completions`, n texts or conversations, and whatever columns the trainer passes, of which `answer` or `solution`
holds the gold answers. It returns n floats, None for a completion that is not to be scored. Lengths are tokens where
`completion_ids` are passed, characters otherwise. Bound to a profile by `get_reward_funcs`, they expect the profile's tags, the
first of which its prompt ends in. Called directly, they expect Open-R1's layout (`<think>` and `<answer>` on lines of their
own), and those of the recipe its own tags. Out of scope: ioi_code and cf_code, which need a Piston server, and reward models.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial, update_wrapper
from typing import Any

from aimo.errors import AimoError
from aimo.inference import answers
from aimo.inference.prompts import is_well_formed
from aimo.inference.settings import Prompt
from aimo.rewards.settings import REWARDS, Reward, read_rewards

Completions = Sequence[str | list[dict[str, str]]]
Column = Sequence[Any] | None
Rewards = list[float | None]
RewardFunc = Callable[..., Rewards]
Jobs = list[tuple[str, str]]  # programs, each with its standard input

OPEN_R1_TAGS = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")
STEP = re.compile(r"Step \d+:|^(?:\d+\.|[-*])|First,|Second,|Next,|Finally,", re.MULTILINE)
TIME_LIMIT_S = 5.0  # of one test case, as in Open-R1


def text_of(completion: str | list[dict[str, str]]) -> str:
    """A completion's text, whether TRL passes it as text or as a conversation."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def lengths(completions: Completions, completion_ids: Column = None, **_: Any) -> list[int]:
    """Tokens, or else characters, of each completion."""
    return [len(ids) for ids in (map(text_of, completions) if completion_ids is None else completion_ids)]


def read_golds(solution: Column, answer: Column = None, **_: Any) -> list[str]:
    """The gold answers. `answer` wins over `solution`: in sets that have both, the solution is worked out."""
    column = solution if answer is None else answer
    if column is None:
        raise AimoError("rewards: the rows have no gold answer; give them a column `answer` or `solution`")
    return [answers.extract(str(gold)) or str(gold) for gold in column]


def judge(
    completions: Completions, solution: Column, prompt: Prompt | None = None, **columns: Any
) -> list[bool | None]:
    """Whether each completion's answer is right; None where the gold answer cannot be read."""
    tags = (prompt.answer_start, prompt.answer_end) if prompt else answers.TAGS
    return answers.are_correct([text_of(c) for c in completions], read_golds(solution, **columns), tags)


def bind(function: RewardFunc, *args: Any, **options: Any) -> RewardFunc:
    """A partial that keeps its name, for TRL's log, and can be pickled."""
    return update_wrapper(partial(function, *args, **options), function)


# Right answers, and their length


def accuracy_reward(completions: Completions, solution: Column = None, **columns: Any) -> Rewards:
    """1 for the right answer, 0 for a wrong one, None where the gold answer cannot be read."""
    return [None if right is None else float(right) for right in judge(completions, solution, **columns)]


def len_reward(
    completions: Completions, solution: Column = None, prompts: Column = None, **columns: Any
) -> Rewards:
    """From 0.5 for the shortest to -0.5 for the longest completion of a prompt; wrong ones get 0 at most (Kimi 1.5).

    An unreadable gold answer counts every completion as right. Without `prompts`, all completions are compared.
    """
    sizes = lengths(completions, **columns)
    groups = [str(prompt) for prompt in prompts or [None] * len(sizes)]
    members: dict[str, list[int]] = defaultdict(list)
    for group, size in zip(groups, sizes, strict=True):
        members[group].append(size)
    rewards: Rewards = []
    for right, group, size in zip(judge(completions, solution, **columns), groups, sizes, strict=True):
        low, high = min(members[group]), max(members[group])
        reward = 0.5 - (size - low) / (high - low) if high > low else 0.0
        rewards.append(min(0.0, reward) if right is False else reward)
    return rewards


def get_cosine_scaled_reward(
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
    max_len: int = 1000,
) -> RewardFunc:
    """Right answers earn less, and wrong ones lose less, the longer they are, along half a cosine (arXiv 2502.03373, C.1)."""
    return bind(
        cosine_scaled_reward,
        (max_value_correct, min_value_correct),
        (min_value_wrong, max_value_wrong),
        max_len,
    )


def cosine_scaled_reward(
    correct: tuple[float, float],
    wrong: tuple[float, float],
    max_len: int,
    /,
    completions: Completions,
    solution: Column = None,
    **columns: Any,
) -> Rewards:
    """From the first of a pair at length 0 to the second at `max_len` and beyond; None where the gold answer cannot be read."""
    rewards: Rewards = []
    for right, size in zip(
        judge(completions, solution, **columns), lengths(completions, **columns), strict=True
    ):
        short, long = correct if right else wrong
        rewards.append(
            None
            if right is None
            else long + (short - long) * (1 + math.cos(math.pi * min(size / max_len, 1))) / 2
        )
    return rewards


def get_soft_overlong_punishment(max_completion_len: int, soft_punish_cache: int) -> RewardFunc:
    """0, then down to -1 over the last `soft_punish_cache` tokens before `max_completion_len` (DAPO, eq. 13)."""
    return bind(soft_overlong_punishment_reward, max_completion_len, soft_punish_cache)


def soft_overlong_punishment_reward(
    max_completion_len: int,
    soft_punish_cache: int,
    /,
    completion_ids: Column = None,
    completions: Completions = (),
    **_: Any,
) -> Rewards:
    """TRL's function, of characters where there are no token ids."""
    from trl.rewards import get_soft_overlong_punishment

    counted: Any = [text_of(c) for c in completions] if completion_ids is None else completion_ids
    return get_soft_overlong_punishment(max_completion_len, soft_punish_cache)(counted)


# Format


def answer_of(text: str, prompt: Prompt | None) -> str | None:
    """What a well-formed completion has between its answer tags, else None."""
    if prompt is None:
        rest = text[8:].partition("\n</think>\n<answer>\n")[2] if text.startswith("<think>\n") else ""
        match = re.match(r"(.*)\n</answer>$", rest, re.DOTALL | re.MULTILINE)
        return match[1] if match else None
    found = answers.tagged(text, prompt.answer_start, prompt.answer_end)
    return found[1] if found and is_well_formed(prompt, text) else None


def format_reward(completions: Completions, prompt: Prompt | None = None, **_: Any) -> Rewards:
    """1 for one thought, then one answer, each in its tags, else 0."""
    return [float(answer_of(text_of(c), prompt) is not None) for c in completions]


def get_code_format_reward(language: str = "python") -> RewardFunc:
    """`format`, with a fenced block of `language` in the answer; a row's own `language` goes first."""
    return bind(code_format_reward, language)


def code_format_reward(
    default: str, /, completions: Completions, language: Column = None, prompt: Prompt | None = None, **_: Any
) -> Rewards:
    """1 for a well-formed completion whose answer holds a block of its language, else 0."""
    found = [answer_of(text_of(c), prompt) or "" for c in completions]
    blocks = [rf"```{re.escape(name or default)}.*?```" for name in language or [default] * len(found)]
    return [
        float(re.search(block, answer, re.DOTALL) is not None)
        for block, answer in zip(blocks, found, strict=True)
    ]


def tag_count_reward(completions: Completions, prompt: Prompt | None = None, **_: Any) -> Rewards:
    """A quarter for each of the four tags that stands exactly once; the opening one may stand in the prompt."""
    tags = (
        (prompt.think_start, prompt.think_end, prompt.answer_start, prompt.answer_end)
        if prompt
        else OPEN_R1_TAGS
    )
    texts = [tags[0] + text if prompt and tags[0] not in text else text for text in map(text_of, completions)]
    return [sum(text.count(tag) == 1 for tag in tags) / 4 for text in texts]


def reasoning_steps_reward(completions: Completions, **_: Any) -> Rewards:
    """A third for each of the first three steps: `Step 1:`, lines that begin with `1.`, `-` or `*`, `First,` … `Finally,`."""
    return [min(1.0, len(STEP.findall(text_of(c))) / 3) for c in completions]


def get_repetition_penalty_reward(
    ngram_size: int = 3, max_penalty: float = -1.0, language: str = "en"
) -> RewardFunc:
    """`max_penalty` times the share of n-grams that are repeats (arXiv 2502.03373, C.2); words by spaces (en) or jieba (zh)."""
    if max_penalty > 0:
        raise ValueError(f"max_penalty {max_penalty} should not be positive")
    if language not in ("en", "zh"):
        raise ValueError(f"language {language!r} is unknown: repetition_penalty splits en and zh")
    return bind(repetition_penalty_reward, ngram_size, max_penalty, language)


def repetition_penalty_reward(
    ngram_size: int, max_penalty: float, default: str, /, completions: Completions, **_: Any
) -> Rewards:
    """0 for a completion that has no n-gram twice, towards `max_penalty` for one that says the same again and again."""

    def words(text: str) -> list[str]:
        if default == "en":
            return text.lower().split()
        import jieba

        jieba.setLogLevel("WARNING")
        return jieba.lcut(text)

    split = [words(text_of(c)) for c in completions]
    ngrams = [list(zip(*(w[i:] for i in range(ngram_size)), strict=False)) for w in split]
    return [(len(set(n)) / len(n) - 1) * -max_penalty if n else 0.0 for n in ngrams]


# Unsloth's Qwen3-4B-Base recipe


def solution_of(text: str, prompt: Prompt) -> str | None:
    """What the recipe takes for the answer: between its tags, after the thought, with nothing behind it on the line."""
    rest = text.partition(prompt.think_end)[2].partition(prompt.answer_start)[2]
    match = re.match(rf"(.+?){re.escape(prompt.answer_end)}\s*$", rest, re.DOTALL | re.MULTILINE)
    return match[1] if match else None


def match_format_exactly(completions: Completions, prompt: Prompt | None = None, **_: Any) -> Rewards:
    """3 for the end of a thought and then an answer in its tags, else 0."""
    return [0.0 if solution_of(text_of(c), prompt or Prompt()) is None else 3.0 for c in completions]


def match_format_approximately(completions: Completions, prompt: Prompt | None = None, **_: Any) -> Rewards:
    """For each tag but the opening one: 0.5 if it stands exactly once, else -1."""
    p = prompt or Prompt()
    return [
        sum(
            0.5 if text_of(c).count(tag) == 1 else -1.0 for tag in (p.think_end, p.answer_start, p.answer_end)
        )
        for c in completions
    ]


def check_answer(
    completions: Completions, solution: Column = None, prompt: Prompt | None = None, **columns: Any
) -> Rewards:
    """5 for the gold answer's text, 3.5 if only spaces differ, 2 within 10 %, 1.5 within 20 %, else -2.5.

    -4.5 where one of the two is no number, -2 for a completion out of format.
    """

    def score(guess: str | None, gold: str) -> float:
        if guess is None:
            return -2.0
        if guess.strip() == gold.strip():
            return 5.0 if guess == gold else 3.5
        try:
            ratio = float(guess) / float(gold)
        except (ValueError, ZeroDivisionError):
            return -4.5
        return 2.0 if 0.9 <= ratio <= 1.1 else 1.5 if 0.8 <= ratio <= 1.2 else -2.5

    guesses = [solution_of(text_of(c), prompt or Prompt()) for c in completions]
    return [score(guess, gold) for guess, gold in zip(guesses, read_golds(solution, **columns), strict=True)]


def check_numbers(
    completions: Completions, solution: Column = None, prompt: Prompt | None = None, **columns: Any
) -> Rewards:
    """The first number after the answer tag: 3.5 if right, -1.5 if wrong, -2.5 if there is none, 0 if one is unreadable."""

    def score(text: str, gold: str) -> float:
        number = re.search(r"-?[\d.,]+", text.partition((prompt or Prompt()).answer_start)[2])
        if number is None:
            return -2.5
        try:
            return 3.5 if float(number[0].replace(",", "")) == float(gold.replace(",", "")) else -1.5
        except ValueError:
            return 0.0

    return [
        score(text_of(c), gold) for c, gold in zip(completions, read_golds(solution, **columns), strict=True)
    ]


# Code


def code_reward(
    completions: Completions,
    verification_info: Column = None,
    num_parallel: int = 2,
    provider_type: Any = "local",
    **_: Any,
) -> Rewards:
    """The share of a row's test cases that the completion's last Python block passes; None for a row without Python test cases.

    A case passes when the program ends well and prints the expected lines, spaces around them aside. `verification_info`: a
    dict or its JSON, `{"language": "python", "test_cases": [{"input", "output", "type": "stdin_stdout"}]}`. `provider_type`:
    local (`aimo.inference.sandbox`), e2b, or a function of programs with their input and of how many to run at once that returns what
    each one printed, None for a failure. A program close to its time limit may fail on a busy machine.
    """
    if verification_info is None:
        raise AimoError("rewards: code needs a column `verification_info` with the rows' test cases")
    run = provider_type if callable(provider_type) else PROVIDERS.get(provider_type)
    if run is None:
        raise AimoError(
            f"rewards: code has no provider_type {provider_type!r}; use {', '.join(PROVIDERS)} or a function"
        )
    programs = [extract_code(text_of(c)) for c in completions]
    tests = [read_test_cases(info) for info in verification_info]
    jobs = [
        (program, case["input"])
        for program, cases in zip(programs, tests, strict=True)
        for case in cases
        if program
    ]
    outputs = iter(run(jobs, num_parallel))
    passed = [
        sum(prints(next(outputs), case["output"]) for case in cases if program)
        for program, cases in zip(programs, tests, strict=True)
    ]
    return [n / len(cases) if cases else None for n, cases in zip(passed, tests, strict=True)]


def binary_code_reward(completions: Completions, **columns: Any) -> Rewards:
    """1 where `code_reward` finds that all test cases pass, else 0."""
    return [None if share is None else float(share == 1.0) for share in code_reward(completions, **columns)]


def extract_code(completion: str, language: str = "python") -> str:
    """The last fenced block of `language`, or nothing."""
    return (re.findall(rf"```{re.escape(language)}\n(.*?)```", completion, re.DOTALL) or [""])[-1]


def read_test_cases(info: Any) -> list[dict[str, str]]:
    """A row's Python test cases; none where they are for another language, of another type, or unreadable."""
    try:
        info = json.loads(info) if isinstance(info, str) else info
        runnable = info["language"] == "python" and all(
            case.get("type") in (None, "stdin_stdout") for case in info["test_cases"]
        )
        return [
            {key: str(case[key]) for key in ("input", "output")} for case in info["test_cases"] if runnable
        ]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []


def prints(output: str | None, expected: str) -> bool:
    """Whether a program ended well and printed what was expected."""
    return output is not None and [s.strip() for s in output.strip().split("\n")] == [
        s.strip() for s in expected.strip().split("\n")
    ]


def run_here(jobs: Jobs, workers: int) -> list[str | None]:
    """Run programs in limited processes on this machine."""
    from aimo.inference import sandbox

    limits = sandbox.Limits(seconds=TIME_LIMIT_S, output_chars=1_000_000)
    return [result.stdout if result.ok else None for result in sandbox.run_many(jobs, limits, workers)]


def run_in_e2b(jobs: Jobs, workers: int) -> list[str | None]:
    """Run programs in E2B's cloud, a sandbox each; needs e2b-code-interpreter, and E2B_API_KEY in the environment."""
    try:
        from e2b_code_interpreter import CommandExitException, Sandbox, TimeoutException
    except ImportError:
        raise AimoError(
            "rewards: provider_type e2b needs its client: pip install e2b-code-interpreter; or use local"
        ) from None

    def run(job: tuple[str, str]) -> str | None:
        with Sandbox.create() as box:
            box.files.write("program.py", job[0])
            box.files.write("input", job[1])
            try:
                return box.commands.run("python3 program.py < input", timeout=TIME_LIMIT_S).stdout
            except (CommandExitException, TimeoutException):
                return None

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(run, jobs))


PROVIDERS = {"local": run_here, "e2b": run_in_e2b}

# The registry

FUNCTIONS: dict[str, RewardFunc] = {
    "accuracy": accuracy_reward,
    "format": format_reward,
    "tag_count": tag_count_reward,
    "reasoning_steps": reasoning_steps_reward,
    "length": len_reward,
    "code": code_reward,
    "binary_code": binary_code_reward,
    "format_exact": match_format_exactly,
    "format_approximate": match_format_approximately,
    "check_answer": check_answer,
    "check_numbers": check_numbers,
}
FACTORIES: dict[str, Callable[..., RewardFunc]] = {
    "cosine": get_cosine_scaled_reward,
    "repetition_penalty": get_repetition_penalty_reward,
    "soft_overlong_punishment": get_soft_overlong_punishment,
    "code_format": get_code_format_reward,
}


def options_of(name: str) -> list[str]:
    """What can be set of a reward, besides its weight."""
    return [o for o in REWARDS.get(name, Reward).__dataclass_fields__ if o != "weight"]  # type: ignore[attr-defined]


# Options that Open-R1's script arguments name in their own way.
ALIASES = {
    "ngram_size": "repetition_n_grams",
    "num_parallel": "parallel_code_exec_per_proc",
    "provider_type": "code_provider",
}


def read_arguments(arguments: Any) -> dict[str, dict[str, Any]]:
    """Open-R1's script arguments (`reward_funcs`, `cosine_max_len`, `code_language`, …) as `{name: options}`."""
    fields = vars(arguments)
    read: dict[str, dict[str, Any]] = {}
    for name in arguments.reward_funcs:
        called = {o: (f"{name.partition('_')[0]}_{o}", ALIASES.get(o, o)) for o in options_of(name)}
        read[name] = {
            o: fields[field] for o, candidates in called.items() for field in candidates if field in fields
        }
    return read


def get_reward_funcs(names: Any, prompt: Prompt | None = None, **options: Any) -> list[RewardFunc]:
    """The named rewards, with their options and a profile's tags (None: Open-R1's layout).

    `names`: a list, whose rewards take what they know of `options`; a mapping such as a profile's `grpo.rewards`; or Open-R1's
    script arguments. AimoError for an unknown reward or a wrong option, with the known ones.
    """
    if hasattr(names, "reward_funcs"):
        chosen: Mapping[str, Any] = read_arguments(names)
    elif isinstance(names, Mapping):
        chosen = names
    else:
        known = {option for name in names for option in options_of(name)}
        # What none of them knows is given to all, to be refused by name.
        chosen = {
            name: {o: v for o, v in options.items() if o in options_of(name) or o not in known}
            for name in names
        }
    try:
        settings = read_rewards(chosen)
    except ValueError as e:
        raise AimoError(f"rewards: {e}") from None
    functions = []
    for name, setting in settings.items():
        own = {option: getattr(setting, option) for option in options_of(name)}
        function, own = (FACTORIES[name](**own), {}) if name in FACTORIES else (FUNCTIONS[name], own)
        functions.append(bind(function, **own, prompt=prompt))
    return functions
