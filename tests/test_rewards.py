from aimo.config import Prompt
from aimo.rewards import get_reward_funcs

RIGHT = "2 + 2 = 4<end_working_out><SOLUTION>4</SOLUTION>"
WRONG = "<end_working_out><SOLUTION>5</SOLUTION>"
BARE = "4"


def test_accuracy_and_format_reward_text_and_conversations_alike():
    accuracy, form = get_reward_funcs(["accuracy", "format"], Prompt())
    for wrap in (str, lambda text: [{"role": "assistant", "content": text}]):
        completions = [wrap(text) for text in (RIGHT, WRONG, BARE)]
        assert accuracy(completions=completions, answer=["4"] * 3, prompts=[]) == [1.0, 0.0, 0.0]
        assert form(completions=completions, answer=["4"] * 3) == [1.0, 1.0, 0.0]


def test_the_tags_come_from_the_profile():
    prompt = Prompt(think_start="<a>", think_end="</a>", answer_start="[[", answer_end="]]")
    accuracy, form = get_reward_funcs(["accuracy", "format"], prompt)
    assert accuracy(completions=["x</a>[[4]]"], answer=["4"]) == form(completions=["x</a>[[4]]"], answer=["4"]) == [1.0]
