import pytest
from conftest import TINY

from aimo import config
from aimo.errors import AimoError
from aimo.inference import prompts
from aimo.training import models


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
    own = tokenizer.apply_chat_template(
        [{"role": "system", "content": "S"}, *prompts.as_prompt("Q")], tokenize=False
    )
    assert own == "S<|endoftext|>Q"


def test_any_text_survives_the_tokenizer_and_a_tag_is_one_token(tokenizer):
    for text in ("2 * 3 = 6\n6 + 1 = 7", r"Let $\frac{a}{b}$ be… 中文 😀", "  spaces\t\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert all(
        len(tokenizer.encode(tag)) == 1
        for tag in ("<start_working_out>", "<end_working_out>", "<SOLUTION>", "</SOLUTION>")
    )


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


@pytest.mark.parametrize(
    "completion, good",
    [
        ("<think>\nhm\n</think>\nIt is \\boxed{2}.", True),
        ("hm\n</think>\nIt is \\boxed{2}.", False),
        ("<think>\nhm \\boxed{2}\n</think>\nIt is 2.", False),
        ("<think>\nhm \\boxed{2}", False),
    ],
)
def test_a_boxed_answer_after_the_thought_is_well_formed_in_r1s_way(completion, good):
    tags = {
        "think_start": "<think>\n",
        "think_end": "\n</think>\n",
        "answer_start": "\\boxed{",
        "answer_end": "}",
    }
    assert prompts.is_well_formed(config.Prompt(prefill=False, **tags), completion) is good


@pytest.mark.parametrize("template", ["plain", "chatml", "model"])
def test_what_is_trained_begins_with_what_is_asked_under_every_template(tokenizer, template):
    p = config.load("tiny", [f"prompt.template={template}", "prompt.system=Think."])
    tokenizer = models.load_tokenizer(TINY, p)
    talk = prompts.as_prompt("Q")
    asked = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(talk + prompts.as_completion(p.prompt, "hm", 2), tokenize=False)
    assert whole.startswith(asked) and "Think." in asked and asked.endswith("<start_working_out>")
    assert whole.endswith("</SOLUTION>" + tokenizer.eos_token)


def test_a_stages_model_keeps_the_template_that_it_was_given(tokenizer, tmp_path):
    p = config.load("tiny", ["prompt.template=model", "prompt.system=Think."])
    first = models.load_tokenizer(TINY, p)
    first.save_pretrained(tmp_path)
    assert models.load_tokenizer(tmp_path, p).chat_template == first.chat_template


@pytest.mark.parametrize(
    "overrides, told",
    [
        (["prompt.template=mine.jinja"], "no file of that name"),
        (["prompt.eos_token=<|im_end|>"], "is no token of"),
    ],
)
def test_a_template_or_tag_that_cannot_work_is_refused_in_one_line(overrides, told):
    with pytest.raises(AimoError) as e:
        models.load_tokenizer(TINY, config.load("tiny", overrides))
    assert told in str(e.value) and "\n" not in str(e.value)


def test_a_template_that_leaves_thoughts_out_is_refused(tmp_path):
    own = "{%- for m in messages -%}{{ m['content'].split('<end_working_out>')[-1] }}{%- endfor -%}"
    (tmp_path / "t.jinja").write_text(own + "{%- if add_generation_prompt -%}A:{%- endif -%}")
    with pytest.raises(AimoError, match="shows a reply otherwise"):
        models.load_tokenizer(
            TINY, config.load("tiny", [f"prompt.template={tmp_path / 't.jinja'}", "prompt.prefill=false"])
        )


def test_a_template_without_a_generation_prompt_is_refused(tmp_path):
    (tmp_path / "t.jinja").write_text("{%- for m in messages -%}{{ m['content'] + eos_token }}{%- endfor -%}")
    with pytest.raises(AimoError, match="adds no generation prompt"):
        models.load_tokenizer(
            TINY, config.load("tiny", [f"prompt.template={tmp_path / 't.jinja'}", "prompt.prefill=false"])
        )
