"""A reward of one's own: a function in a file that a profile names."""

from types import SimpleNamespace

import nbformat
import pytest
from conftest import refused

from aimo import config
from aimo.errors import AimoError
from aimo.kaggle import kernels
from aimo.rewards import get_reward_funcs
from aimo.rewards.table import try_rewards
from aimo.run import runs

SHORT = '''\
"""Short completions."""
LIMIT = 5


def short(completions, answer, **columns):
    """1 for few words: a text with "quotes", a tab\\tand two spaces.  """
    return [float(len(c[-1]["content"].split()) <= LIMIT) for c in completions]
'''


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
    rewards = get_reward_funcs(profile.grpo.rewards, profile.prompt)
    return rewards[-1](completions=talks, prompts=["a", "a"], answer=["1", "1"], trainer_state=None)


def test_a_function_in_a_file_is_a_reward_and_stays_with_the_run_and_the_kernel(mine, tmp_path):
    profile = config.load(str(mine))
    assert list(profile.grpo.rewards) == ["accuracy", "my.py:short"]
    assert profile.grpo.rewards["my.py:short"].weight == 0.5
    assert get_reward_funcs(profile.grpo.rewards)[-1].__name__ == "short"  # what TRL logs it under
    assert score(profile) == [1.0, 0.0] and "LIMIT" not in config.describe(profile, "grpo")

    run = runs.begin("data", str(mine), tmp_path / "run")
    runs.unlock(run.dir)
    built = kernels.build_kernel("train", tmp_path, str(mine))
    cells = [cell for cell in nbformat.read(built, 4).cells if "profile" in cell.metadata.get("tags", [])]
    (tmp_path / "shipped.yaml").write_text(cells[0].source.partition("\n")[2])
    (mine.parent / "my.py").unlink()
    for copy in (tmp_path / "run" / "profile.yaml", tmp_path / "shipped.yaml"):
        assert str(tmp_path) not in copy.read_text() and "    return [float(len(c[-1]" in copy.read_text()
        assert config.load(copy) == profile
        assert score(config.load(copy)) == [1.0, 0.0]

    # Another text is another profile, which the folder refuses in one line without the texts.
    (mine.parent / "my.py").write_text(SHORT.replace("= 5", "= 6"))
    with pytest.raises(AimoError, match=r"my\.py:short\.code \(its text differs\)") as other:
        runs.begin("data", str(mine), tmp_path / "run")
    assert "\n" not in str(other.value) and "LIMIT" not in str(other.value)


def test_the_file_is_found_beside_the_profile_or_in_the_current_folder(mine, tmp_path):
    (tmp_path / "other.py").write_text(SHORT.replace("LIMIT = 5", "LIMIT = 9"))
    given = ["grpo.rewards={./my.py:short: 1, other.py:short: {weight: 2}}"]
    with pytest.raises(AimoError, match=r"other.py:short: my.py:short has the same function's name"):
        config.load(str(mine), given)
    with pytest.raises(AimoError, match="two files have this name"):
        config.load(str(mine), ["grpo.rewards={my.py:short: 1, ./my.py:short: 1}"])
    profile = config.load(str(mine), ["grpo.rewards={other.py:short: {weight: 2}}"])
    assert score(profile) == [1.0, 1.0]
    (tmp_path / "my.py").write_text(SHORT.replace("LIMIT = 5", "LIMIT = 9"))
    assert score(config.load(str(mine))) == [1.0, 0.0], "the profile's folder goes first"
    talk = [[{"role": "assistant", "content": "one"}]]
    assert get_reward_funcs(["./my.py:short"])[0](completions=talk, answer=["1"]) == [1.0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, ["no file", "my.py", "correct the path"]),
        ("def short(completions, **columns:\n", ["raises SyntaxError", "my.py, line 1"]),
        ("def long(completions, **columns): ...\n", ["no function short", "write def short(completions"]),
        ("def short(completions): ...\n", ["raises TypeError", "unexpected keyword argument"]),
        ("def short(completions, gold, **columns): ...\n", ["raises TypeError", "'gold'"]),
        ("import nothing_of_this_name\n{}    ...\n", ["raises ModuleNotFoundError", "in line 1 of my.py"]),
        ("{}    return [1 / 0 for _ in completions]\n", ["raises ZeroDivisionError", "in line 3 of my.py"]),
        ("{}    return [c[-1]['content'].split()[0] == '4' for c in completions]\n", ["IndexError"]),
        ("{}    return 1.0\n", ["gives 1.0", "each of the 2 completions"]),
        ("{}    return [1.0]\n", ["gives [1.0]", "each of the 2 completions"]),
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
    rewards = config.load(str(mine)).grpo.rewards
    try_rewards(rewards)
    state = SimpleNamespace(global_step=3)
    given = {"completion_ids": [[], []], "trainer_state": state, "log_metric": lambda *_: None}
    assert get_reward_funcs(rewards)[-1](completions=["", ""], **given) == [None, 3.0]
