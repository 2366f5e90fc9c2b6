import pytest
from conftest import TINY

from aimo import config, models, prompts


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_tokenizer(TINY, config.load("tiny"))


def test_the_prompt_is_a_prefix_of_prompt_and_completion_to_the_token(tokenizer):
    messages = prompts.as_prompt("What is 2 + 3?") + prompts.as_completion(config.Prompt(), "2 + 3 = 5", 5)
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    assert whole[: len(prompt)] == prompt
    assert whole[-1] == tokenizer.eos_token_id


def test_the_system_prompt_of_the_profile_stands_first_unless_the_caller_brings_one(tokenizer):
    tokenizer = models.load_tokenizer(TINY, config.load("tiny", ['prompt.system=Think it\'s "hard".']))
    text = tokenizer.apply_chat_template(prompts.as_prompt("Q"), add_generation_prompt=True, tokenize=False)
    assert text == 'Think it\'s "hard".<|endoftext|>Q<start_working_out>'
    own = tokenizer.apply_chat_template([{"role": "system", "content": "S"}, *prompts.as_prompt("Q")], tokenize=False)
    assert own == "S<|endoftext|>Q"


def test_any_text_survives_the_tokenizer_and_a_tag_is_one_token(tokenizer):
    for text in ("2 * 3 = 6\n6 + 1 = 7", r"Let $\frac{a}{b}$ be… 中文 😀", "  spaces\t\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert all(len(tokenizer.encode(tag)) == 1 for tag in vars(config.Prompt()).values() if tag)


@pytest.mark.parametrize(
    "completion, good",
    [
        ("1 + 1 = 2<end_working_out><SOLUTION>2</SOLUTION>", True),
        ("<end_working_out><SOLUTION>2</SOLUTION>\n", True),
        ("<end_working_out>\n<SOLUTION>2</SOLUTION>", True),
        ("1 + 1 = 2<SOLUTION>2</SOLUTION>", False),
        ("<end_working_out><SOLUTION></SOLUTION>", False),
        ("<end_working_out><SOLUTION>2</SOLUTION> and more", False),
        ("<end_working_out><SOLUTION>2</SOLUTION><SOLUTION>3</SOLUTION>", False),
        ("<SOLUTION>2</SOLUTION><end_working_out>", False),
    ],
)
def test_well_formed_is_one_thought_then_one_answer_then_nothing(completion, good):
    assert prompts.is_well_formed(config.Prompt(), completion) is good
