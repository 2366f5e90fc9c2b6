"""The reward functions: their scores, their options, and that nothing a model writes can stop a training."""

import importlib.util
import inspect
import json
import os
import pickle
import resource
from types import SimpleNamespace

import nbformat
import pytest
from conftest import refused

from aimo import config, rewards
from aimo.inference.errors import AimoError
from aimo.inference.settings import Prompt
from aimo.kaggle import kernels
from aimo.rewards import REWARDS, get_reward_funcs, try_rewards
from aimo.run import runs

OTHER = Prompt(think_start="(?", think_end="?)", answer_start="[|", answer_end="|]")
RECIPE = "thought<end_working_out><SOLUTION>{}</SOLUTION>"
TEXTS = [
    "2 + 2 = 4<end_working_out><SOLUTION>4</SOLUTION>",
    "<start_working_out>Step 1: add.<end_working_out>\n<SOLUTION> 4 </SOLUTION>\n",
    "<end_working_out><SOLUTION>5</SOLUTION>",
    "<SOLUTION>4</SOLUTION>",
    "so so so so <end_working_out><SOLUTION>4</SOLUTION> so",
    "1. add\n2. done<end_working_out><SOLUTION>\n```python\nprint(4)\n```\n</SOLUTION>",
    "",
]
COLUMNS = {
    "answer": ["4"] * len(TEXTS),
    "prompts": ["2 + 2?"] * len(TEXTS),
    "verification_info": [{"language": "python", "test_cases": [{"input": "", "output": "4"}]}] * len(TEXTS),
}
OPEN_R1 = "<think>\nFour.\n</think>\n<answer>\n4\n</answer>"
BARE, FLAT = OPEN_R1.removeprefix("<think>\n"), OPEN_R1.replace("\n", "")
IN_ANSWER = OPEN_R1.replace("4\n", "```python\n4\n```\n")
IN_THOUGHT = OPEN_R1.replace("Four.", "```python\n4\n```")
RIGHT, WRONG = "The answer is 4", "The answer is 5"
WORKED = [r"Three and three, so \boxed{6}, not \boxed{4}."]
TOKENS = {"answer": ["4"] * 4, "completion_ids": [[0] * n for n in (0, 50, 100, 180)]}
SIZES, OF_TWO = (
    [RIGHT, RIGHT + " " * 100, WRONG, RIGHT + " " * 1000],
    {"answer": ["4"] * 4, "prompts": [*"aaab"]},
)


@pytest.mark.parametrize("name", [name for name in REWARDS if name not in ("ioi_code", "cf_code")])
def test_conversations_are_rewarded_like_texts_and_any_tags_like_the_default_ones(name):
    reward, of_others = (get_reward_funcs([name], prompt)[0] for prompt in (Prompt(), OTHER))
    by_text = reward(completions=TEXTS, **COLUMNS)
    assert len(by_text) == len(TEXTS) and (len(set(by_text)) > 1 or name == "soft_overlong_punishment")
    talks = [[{"role": "assistant", "content": text}] for text in TEXTS]
    assert reward(completions=talks, **COLUMNS) == by_text
    others = TEXTS
    for tag in ("think_start", "think_end", "answer_start", "answer_end"):
        others = [text.replace(getattr(Prompt(), tag), getattr(OTHER, tag)) for text in others]
    ids = [[0] * len(text) for text in TEXTS]  # as if every character were a token, whatever the tags
    by_ids = reward(completions=TEXTS, completion_ids=ids, **COLUMNS)
    assert of_others(completions=others, completion_ids=ids, **COLUMNS) == by_ids


COSINE = rewards.get_cosine_scaled_reward(max_len=100)
OVERLONG = rewards.get_soft_overlong_punishment(100, 20)
REPEATS, CHINESE = (rewards.get_repetition_penalty_reward(2, -1.0, language) for language in ("en", "zh"))
PYTHON, CPP = rewards.get_code_format_reward(), rewards.get_code_format_reward("cpp")
STEPS = ["1. a\n2. b\n3. c\n4. d", "- a\n* b", "Step 1: a", "First, b. Then 2. c"]
OURS, NOBODY_KNOWS = {"prompt": Prompt()}, {"answer": ["", ""]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # jieba's
@pytest.mark.parametrize(
    "reward, completions, columns, scores",
    [
        (rewards.accuracy_reward, [RIGHT, WRONG, RIGHT], {"answer": ["4", "4", ""]}, [1, 0, None]),
        (rewards.accuracy_reward, [RIGHT], {"solution": WORKED}, [1]),
        (rewards.accuracy_reward, [RIGHT], {"solution": WORKED, "answer": ["7"]}, [0]),
        (rewards.format_reward, [OPEN_R1, BARE, FLAT], {}, [1, 0, 0]),
        (rewards.format_reward, [TEXTS[0], TEXTS[4], "", TEXTS[0] * 2], OURS, [1, 0, 0, 0]),
        (rewards.tag_count_reward, [OPEN_R1, BARE, FLAT], {}, [1, 0.75, 0]),
        (rewards.tag_count_reward, [TEXTS[0], TEXTS[3], "", TEXTS[0] * 2], OURS, [1, 0.75, 0.25, 0.25]),
        (PYTHON, [IN_ANSWER, IN_THOUGHT], {}, [1, 0]),
        (CPP, [IN_ANSWER] * 3, {"language": ["python", "cpp", None]}, [1, 0, 0]),
        (rewards.reasoning_steps_reward, STEPS, {}, [1, 2 / 3, 1 / 3, 1 / 3]),
        (rewards.len_reward, SIZES, OF_TWO, [0.5, -0.5, 0, 0]),
        (rewards.len_reward, SIZES, OF_TWO | {"completion_ids": ["abc", "ab", "a", "a"]}, [-0.5, 0, 0, 0]),
        (
            rewards.len_reward,
            [RIGHT, f"{RIGHT}."],
            {"answer": ["4"] * 2},
            [0.5, -0.5],
        ),  # no prompts: one group
        (rewards.len_reward, [WRONG, f"{WRONG}."], NOBODY_KNOWS, [0.5, -0.5]),
        (COSINE, [RIGHT] * 4, TOKENS, [1, 0.75, 0.5, 0.5]),
        (COSINE, [WRONG] * 4, TOKENS, [-1, -0.75, -0.5, -0.5]),
        (COSINE, [WRONG] * 2, NOBODY_KNOWS, [None, None]),
        (OVERLONG, ["x" * 90], {}, [-0.5]),
        (OVERLONG, ["x", "x"], {"completion_ids": [[0] * 80, [0] * 95]}, [0, -0.75]),
        (REPEATS, ["a b c d", "So so so SO so", "so", ""], {}, [0, -0.75, 0, 0]),
        (CHINESE, ["这个这个这个这个这个", "今天天气很好"], {}, [-0.75, 0]),
    ],
)
def test_a_reward_scores_as_its_source_does(reward, completions, columns, scores):
    assert reward(completions=completions, **columns) == pytest.approx(scores)


@pytest.mark.parametrize(
    "completion, gold, scores",
    [
        (RECIPE.format("10"), "10", [3.0, 1.5, 5.0, 3.5]),
        (RECIPE.format(" 10 ") + "\n", "10", [3.0, 1.5, 3.5, 3.5]),
        (RECIPE.format("10.5"), "10", [3.0, 1.5, 2.0, -1.5]),
        (RECIPE.format("8.5"), "10", [3.0, 1.5, 1.5, -1.5]),
        (RECIPE.format("7"), "10", [3.0, 1.5, -2.5, -1.5]),
        (RECIPE.format("about $1,000"), "1000", [3.0, 1.5, -4.5, 3.5]),
        (RECIPE.format("ten"), "10", [3.0, 1.5, -4.5, -2.5]),
        (RECIPE.format("10") + " or so", "10", [0.0, 1.5, -2.0, 3.5]),
        ("<SOLUTION>10", "10", [0.0, -1.5, -2.0, 3.5]),
        ("10", "10", [0.0, -3.0, -2.0, -2.5]),
    ],
)
def test_the_unsloth_recipe_scores_as_its_notebook(completion, gold, scores):
    names = ["format_exact", "format_approximate", "check_answer", "check_numbers"]
    functions = get_reward_funcs(names, Prompt())
    assert [f(completions=[completion], answer=[gold])[0] for f in functions] == scores


CASES = [{"input": "1 2", "output": "3\n", "type": "stdin_stdout"}, {"input": "5 5", "output": "10\nok"}]
INFO = {"language": "python", "test_cases": CASES}
ADD = "a, b = map(int, input().split())\nprint(a + b)"
UNKNOWN = [
    None, {}, "{", "null", {"language": "cpp", "test_cases": CASES}, {"language": "python", "test_cases": []},
    {"language": "python", "test_cases": [{"type": "function_call", "input": "1", "output": "1"}]},
]  # fmt: skip


def test_code_is_rewarded_by_its_share_of_right_test_cases_and_a_row_without_any_is_not_scored():
    programs = [f"{ADD}\nif a == b: print(' ok ')", ADD, "print(3); raise SystemExit(1)", ""]
    draft = "```python\nprint('a draft')\n```\nBetter:\n```python\n{}\n```"
    completions = [draft.format(program) for program in [*programs, ADD, *[ADD] * len(UNKNOWN), ADD]]
    infos, shares = [INFO] * 4 + [json.dumps(INFO), *UNKNOWN, INFO], [1.0, 0.5, 0.0, 0.0, 0.5]
    shares += [None] * len(UNKNOWN) + [0.5]
    assert rewards.code_reward(completions, verification_info=infos) == shares  # in the sandbox
    whole = [None if share is None else float(share == 1) for share in shares]
    assert rewards.binary_code_reward(completions, verification_info=infos) == whole
    given = {"verification_info": [INFO] * 2, "provider_type": lambda jobs, _: ["3", "", None, "10\n ok"]}
    assert rewards.code_reward(completions[:2], **given) == [0.5, 0.5]


def test_a_missing_column_and_package_are_named():
    for reward, column in ((rewards.code_reward, "verification_info"), (rewards.accuracy_reward, "answer")):
        with pytest.raises(AimoError, match=column):
            reward(["x"])
    with pytest.raises(AimoError, match=r"'piston'.*local, e2b, morph"):
        rewards.code_reward(["x"], verification_info=[INFO], provider_type="piston")
    for provider, package in ("e2b", "e2b-code-interpreter"), ("morph", "morphcloud==0.1.67"):
        if importlib.util.find_spec(package.partition("==")[0].replace("-", "_")) is None:
            with pytest.raises(AimoError, match=f"pip install {package}"):
                rewards.code_reward(["```python\nx\n```"], verification_info=[INFO], provider_type=provider)


def test_every_reward_keeps_its_public_name_its_defaults_and_can_be_pickled():
    functions = get_reward_funcs(list(REWARDS), Prompt())
    assert [pickle.loads(pickle.dumps(f)).__name__ for f in functions] == [
        "accuracy_reward", "format_reward", "tag_count_reward", "reasoning_steps_reward", "len_reward",
        "match_format_exactly", "match_format_approximately", "check_answer", "check_numbers",
        "cosine_scaled_reward", "repetition_penalty_reward", "soft_overlong_punishment_reward", "code_reward",
        "binary_code_reward", "ioi_code_reward", "cf_code_reward", "code_format_reward",
    ]  # fmt: skip
    for name in REWARDS.keys() - {"binary_code"}:  # which passes its options on
        row, parameters = REWARDS[name], inspect.signature(REWARDS[name].function).parameters
        for option in row.option_names:
            default = parameters[option].default
            assert default in (inspect.Parameter.empty, getattr(row.options(), option)), (name, option)


def test_options_reach_the_rewards_that_have_them():
    cosine, accuracy = get_reward_funcs(["cosine", "accuracy"], Prompt(), max_len=10, min_value_correct=0.0)
    columns = {"completions": [RIGHT], "answer": ["4"], "completion_ids": [[0] * 10]}
    assert (cosine(**columns), accuracy(**columns)) == ([0.0], [1.0])
    _, cosine = get_reward_funcs({"accuracy": 2.0, "cosine": {"weight": 0.5, "max_len": 20}})
    assert cosine(**columns) == pytest.approx([0.75])
    with pytest.raises(AimoError, match=r"'max_lenn'.*max_len"):
        get_reward_funcs(["cosine"], max_lenn=3)


def test_open_r1_script_arguments_are_understood():
    names = [
        "cosine",
        "repetition_penalty",
        "soft_overlong_punishment",
        "code_format",
        "code",
        "ioi_code",
        "cf_code",
    ]
    arguments = SimpleNamespace(
        reward_funcs=names, cosine_max_len=10, cosine_min_value_correct=0.0, repetition_n_grams=1,
        repetition_max_penalty=-2.0, max_completion_len=10, soft_punish_cache=5, code_language="cpp",
        parallel_code_exec_per_proc=3, code_provider="e2b", code_eval_test_batch_size=4,
        code_eval_scoring_mode="partial", ioi_provider="local", output_dir="x",
    )  # fmt: skip
    cosine, repetition, overlong, code_format, code, ioi, codeforces = get_reward_funcs(arguments)
    assert cosine([RIGHT], ["4"]) == [0.0] and repetition(["so so"]) == [-1.0]
    assert overlong(completion_ids=[[0] * 9]) == [-0.8]
    assert code_format([OPEN_R1.replace("4", "```cpp\n4```")]) == [1.0]
    assert code.keywords["num_parallel"] == 3 and code.keywords["provider_type"] == "e2b"
    assert ioi.keywords["test_batch_size"] == 4 and ioi.keywords["provider_type"] == "local"
    assert codeforces.keywords["scoring_mode"] == "partial" and codeforces.keywords["test_batch_size"] == 4


@pytest.mark.parametrize(
    "wanted, told",
    [
        ({"beauty": 1.0}, ["'beauty'", "accuracy", "check_numbers"]),
        ({"ioi_code": {"provider_type": "e2b"}}, ["ioi_code.provider_type", "piston", "local", "'e2b'"]),
        ({"cf_code": {"test_batch_size": -2}}, ["cf_code.test_batch_size", "-1"]),
        ({"cosine": {"max_lenn": 3}}, ["cosine", "'max_lenn'", "max_len", "min_value_wrong"]),
        ({"cosine": {"max_len": "long"}}, ["cosine.max_len", "integer", "'long'"]),
        ({"repetition_penalty": {"max_penalty": 1.0}}, ["repetition_penalty.max_penalty", "not be positive"]),
        ({"format": "much"}, ["format.weight", "number", "'much'"]),
    ],
)
def test_an_unknown_reward_and_a_wrong_option_are_refused_by_name_with_the_known_ones(wanted, told):
    with pytest.raises(AimoError) as direct:
        get_reward_funcs(wanted)
    with pytest.raises(AimoError) as from_profile:
        config.load("tiny", [f"grpo.rewards={json.dumps(wanted)}"])
    for message in (str(direct.value), str(from_profile.value)):
        assert all(part in message for part in told)


def test_a_profile_gives_a_weight_or_a_weight_and_options():
    given = "{accuracy: 5, cosine: {weight: 0.5, max_len: 40}, length: {}}"
    read = config.load("tiny", [f"grpo.rewards={given}"]).grpo.rewards.values()
    assert [(r.weight, getattr(r, "max_len", None)) for r in read] == [(5, None), (0.5, 40), (1, None)]
    with pytest.raises(AimoError, match=r"soft_overlong_punishment.*max_completion_len to 80"):
        config.load("tiny", ["grpo.rewards={soft_overlong_punishment: 1}"])
    with pytest.raises(AimoError, match=r"grpo.rewards.*at least 1"):
        config.load("tiny", ["grpo.rewards={}"])


LOOPS = ["\n</think>\n<answer>\n", "\n</answer>x", "<end_working_out><SOLUTION>1</SOLUTION>x "]
LOOPS += ["```python\nx```\n", "- \n"]


def test_a_repetitive_completion_takes_little_time_to_reward():
    pid = os.fork()
    if pid == 0:  # the kernel ends this process when its processor time is up, whatever it does
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
        for loop in LOOPS:
            completion = "<think>\n\n</think>\n<answer>\n" + loop * (300_000 // len(loop))
            names = [name for name in REWARDS if "code" not in name or name == "code_format"]
            for reward in get_reward_funcs(names, None) + get_reward_funcs(names, Prompt()):
                reward(completions=[completion], answer=["4"])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# ---- a reward of one's own: a function in a file that a profile names

SHORT = '''\
"""Short completions."""
LIMIT = 5


def short(completions, answer, **columns):
    """1 for few words: a text with "quotes", a tab\\tand two spaces.  """
    return [float(len(c[-1]["content"].split()) <= LIMIT) for c in completions]
'''
LONGER = SHORT.replace("LIMIT = 5", "LIMIT = 9")


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A profile with the reward of my.py beside it, in another folder than the current one."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "my.py").write_text(SHORT)
    tiny = (config.PROFILES / "tiny.yaml").read_text()
    mine = tiny.replace("{accuracy: 1.0, format: 0.2}", "{accuracy: 1.0, ./my.py:short: 0.5}")
    (folder / "mine.yaml").write_text(mine.replace("profile: tiny", "profile: mine"))
    return folder / "mine.yaml"


def score(profile):
    """What the last reward of a profile gives two completions."""
    talks = [[{"role": "assistant", "content": text}] for text in ("one two", "one two three four five six")]
    *_, last = get_reward_funcs(profile.grpo.rewards, profile.prompt)
    assert last.__name__ == "short"  # under which TRL logs it
    return last(completions=talks, prompts=["a", "a"], answer=["1", "1"], trainer_state=None)


def test_a_function_in_a_file_is_a_reward_and_stays_with_the_run_and_the_kernel(mine, tmp_path):
    profile = config.load(str(mine))
    assert list(profile.grpo.rewards) == ["accuracy", "my.py:short"]
    assert profile.grpo.rewards["my.py:short"].weight == 0.5
    assert score(profile) == [1.0, 0.0] and "LIMIT" not in config.describe(profile, "grpo")

    run = runs.begin("data", str(mine), tmp_path / "run")
    runs.unlock(run.dir)
    built = kernels.build_kernel("train", tmp_path, str(mine))
    cells = [cell for cell in nbformat.read(built, 4).cells if "profile" in cell.metadata.get("tags", [])]
    (tmp_path / "shipped.yaml").write_text(cells[0].source.partition("\n")[2])
    (mine.parent / "my.py").unlink()
    for copy in (tmp_path / "run" / "profile.yaml", tmp_path / "shipped.yaml"):
        assert str(tmp_path) not in copy.read_text() and config.load(copy) == profile
        assert score(config.load(copy)) == [1.0, 0.0]

    # Another text is another profile, which the folder refuses in one line without the texts.
    (mine.parent / "my.py").write_text(LONGER)
    with pytest.raises(AimoError, match=r"my\.py:short\.code \(its text differs\)") as other:
        runs.begin("data", str(mine), tmp_path / "run")
    assert "LIMIT" not in str(other.value)


def test_the_file_is_found_beside_the_profile_or_in_the_current_folder(mine, tmp_path):
    for name in ("other.py", "my.py"):
        (tmp_path / name).write_text(LONGER)
    given = ["grpo.rewards={./my.py:short: 1, other.py:short: {weight: 2}}"]
    with pytest.raises(AimoError, match=r"other.py:short: my.py:short has the same function's name"):
        config.load(str(mine), given)
    with pytest.raises(AimoError, match="two files have this name"):
        config.load(str(mine), ["grpo.rewards={my.py:short: 1, ./my.py:short: 1}"])
    assert score(config.load(str(mine), ["grpo.rewards={other.py:short: {weight: 2}}"])) == [1.0, 1.0]
    assert score(config.load(str(mine))) == [1.0, 0.0], "the profile's folder goes first"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, ["no file", "my.py", "correct the path"]),
        ("def short(completions, **columns:\n", ["raises SyntaxError", "my.py, line 1"]),
        ("def long(completions, **columns): ...\n", ["no function short", "write def short(completions"]),
        ("def short(completions, gold, **columns): ...\n", ["raises TypeError", "'gold'"]),
        ("import nothing_of_this_name\n{}    ...\n", ["raises ModuleNotFoundError", "in line 1 of my.py"]),
        ("{}    return [1 / 0 for _ in completions]\n", ["raises ZeroDivisionError", "in line 3 of my.py"]),
        ("{}    return [c[-1]['content'].split()[0] == '4' for c in completions]\n", ["IndexError"]),
        ("{}    return 1.0\n", ["gives 1.0", "each of the 2 completions"]),
        ("{}    return ['good', 'bad']\n", ["gives ['good', 'bad']", "a number or None"]),
    ],
)
def test_a_reward_that_fails_is_told_in_one_line_before_the_first_stage(mine, tmp_path, text, told):
    (mine.parent / "my.py").unlink()
    if text is not None:
        text = text.replace("{}", "\ndef short(completions, **columns):\n")
        (mine.parent / "my.py").write_text(text)
    refused("run", "--profile", mine, "--run-dir", "run", told=["my.py:short", *told])
    assert not (tmp_path / "run").exists()
    with pytest.raises(AimoError, match=r"my\.py:short"):
        runs.begin("data", str(mine), tmp_path / "run")


def test_a_reward_may_be_none_or_whole_and_use_what_trl_passes(mine):
    text = "def short(completions, completion_ids, trainer_state, log_metric, **columns):\n"
    text += "    log_metric('length', 1.0)\n    return [None, trainer_state.global_step]\n"
    (mine.parent / "my.py").write_text(text)
    read = config.load(str(mine)).grpo.rewards
    try_rewards(read)
    state = SimpleNamespace(global_step=3)
    given = {"completion_ids": [[], []], "trainer_state": state, "log_metric": lambda *_: None}
    assert get_reward_funcs(read)[-1](completions=["", ""], **given) == [None, 3.0]
