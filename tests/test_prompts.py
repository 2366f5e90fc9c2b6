import json
import shutil
from types import SimpleNamespace

import pytest
from conftest import TINY

from aimo import config
from aimo.inference import chat_format, prompts
from aimo.inference.engine import Engine
from aimo.inference.errors import AimoError
from aimo.inference.judge import is_well_formed
from aimo.inference.model_folder import read_tokenizer
from aimo.inference.settings import Settings, Variant, resolve_settings
from aimo.inference.tool_calls import PYTHON, Call
from aimo.train import models

Q = prompts.as_prompt("Q")


def trained(*overrides, folder=TINY):
    return models.load_tokenizer(folder, config.load("tiny", list(overrides)))


def rendered(tokenizer, talk=Q, asks=True, **options):
    return tokenizer.apply_chat_template(talk, add_generation_prompt=asks, tokenize=False, **options)


def test_a_prompt_is_to_the_token_the_beginning_of_prompt_and_completion_and_a_tag_is_one_token():
    tokenizer = trained()
    talk = Q + prompts.as_completion(config.Prompt(), "2 + 3 = 5", 5)
    prompt = tokenizer.apply_chat_template(Q, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(talk, return_dict=False)
    assert whole[: len(prompt)] == prompt and whole[-1] == tokenizer.eos_token_id
    for tag in ("<start_working_out>", "<end_working_out>", "<SOLUTION>", "</SOLUTION>"):
        assert len(tokenizer.encode(tag)) == 1


def test_the_system_prompt_of_the_profile_stands_first_unless_the_caller_brings_one():
    tokenizer = trained('prompt.system=Think it\'s "hard".')
    assert rendered(tokenizer) == 'Think it\'s "hard".<|endoftext|>Q<start_working_out>'
    own = [{"role": "system", "content": "S"}, *Q]
    assert rendered(tokenizer, own, asks=False) == "S<|endoftext|>Q"


R1 = ("<think>\n", "\n</think>\n", "\\boxed{", "}")


@pytest.mark.parametrize(
    "tags, completion, good",
    [
        ((), "1 + 1 = 2<end_working_out><SOLUTION>2</SOLUTION>", True),
        ((), "<end_working_out><SOLUTION>2</SOLUTION> and more", False),
        ((), "<end_working_out><SOLUTION>2</SOLUTION><SOLUTION>3</SOLUTION>", False),
        (R1, "<think>\nhm\n</think>\nIt is \\boxed{2}.", True),
        (R1, "<think>\nhm \\boxed{2}\n</think>\nIt is 2.", False),
    ],
)
def test_well_formed_is_one_thought_then_one_answer_then_nothing_or_in_r1s_way_a_box_somewhere(
    tags, completion, good
):
    assert is_well_formed(config.Prompt(*tags, prefill=not tags), completion) is good


@pytest.mark.parametrize("template", ["plain", "chatml", "model"])
def test_what_is_trained_begins_with_what_is_asked_and_a_stages_model_keeps_its_template(template, tmp_path):
    overrides = [f"prompt.template={template}", "prompt.system=Think."]
    tokenizer = trained(*overrides)
    asked = rendered(tokenizer)
    talk = Q + prompts.as_completion(config.load("tiny", overrides).prompt, "hm", 2)
    whole = rendered(tokenizer, talk, asks=False)
    assert whole.startswith(asked) and "Think." in asked and asked.endswith("<start_working_out>")
    assert whole.endswith("</SOLUTION>" + tokenizer.eos_token)
    tokenizer.save_pretrained(tmp_path)
    assert trained(*overrides, folder=tmp_path).chat_template == tokenizer.chat_template


ENDING = "{%- for m in messages -%}[{{ m.role }}]{{ m.content }}END{{ '\n' }}{%- endfor -%}"
ENDING += "{%- if add_generation_prompt -%}[assistant]{%- endif -%}"
RAISES = "{%- if messages[0].role == 'system' -%}{{ raise_exception('No system.') }}{%- endif -%}"
THINK = ["prompt.system=Think."]


@pytest.fixture
def trained_with(tmp_path):
    """Load the tokenizer of a base of which the profile takes a Jinja file."""

    def load(template, *overrides):
        (tmp_path / "t.jinja").write_text(template)
        return trained(f"prompt.template={tmp_path / 't.jinja'}", "prompt.prefill=false", *overrides)

    return load


@pytest.mark.parametrize(
    "template, overrides, told",
    [
        (ENDING, ["prompt.eos_token=<|im_end|>"], "is no token of"),
        ("{%- for m in messages -%}{{ m.content }", [], "in line 1"),
        (ENDING.replace("in messages", "in messages if m.role != 'system'"), THINK, "has no system role"),
        (ENDING.replace("m.content", "m.content.split('<end_working_out>')[-1]"), [], "a reply differently"),
        ("{%- for m in messages -%}{{ m.content + eos_token }}{%- endfor -%}", [], "no generation prompt"),
        (ENDING.replace("END", "<|im_end|>"), [], r"ends a reply in '<\|im_end\|>'.* end it in eos_token"),
        (ENDING.replace("END", ""), [], "would not learn to stop"),
    ],
)
def test_a_template_that_cannot_be_trained_with_is_refused_in_one_line(
    trained_with, template, overrides, told
):
    with pytest.raises(AimoError, match=rf"^prompt\.(template|eos_token): .*{told}"):
        trained_with(template, *overrides)


def test_the_token_that_a_template_ends_a_turn_in_can_be_set_and_it_may_mark_what_is_generated(trained_with):
    turn = ENDING.replace("END", "<SOLUTION>")
    assert trained_with(turn, "prompt.eos_token=<SOLUTION>").eos_token == "<SOLUTION>"
    marked = "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    trained_with(ENDING.replace("{{ m.content }}END", marked))


NAMED = {"default": ENDING.replace("END", "{{ eos_token }}")}
NAMED["tool_use"] = "{%- if tools -%}[tools]{%- endif -%}" + NAMED["default"]


def with_templates(folder, where, named):
    """A model folder with its templates in one of the places where they may stand."""
    model = shutil.copytree(TINY, folder / "model")
    (model / "chat_template.jinja").unlink()
    described = json.loads((model / "tokenizer_config.json").read_text())
    match where:
        case "tokenizer_config.json":
            described["chat_template"] = [{"name": name, "template": text} for name, text in named.items()]
        case "additional_chat_templates":
            (model / where).mkdir()
            for name, text in named.items():
                path = "chat_template.jinja" if name == "default" else f"{where}/{name}.jinja"
                (model / path).write_text(text)
        case "chat_template.json":
            (model / where).write_text(json.dumps({"chat_template": named["default"]}))
    (model / "tokenizer_config.json").write_text(json.dumps(described))
    return model


@pytest.mark.parametrize(
    "where", ["tokenizer_config.json", "additional_chat_templates", "chat_template.json"]
)
def test_of_several_templates_the_default_is_taken_and_tool_use_with_tools(tmp_path, where):
    model = with_templates(tmp_path, where, NAMED)
    overrides = ["prompt.template=model", "prompt.system=Think.", "prompt.prefill=false"]
    trained(*overrides, folder=model).save_pretrained(tmp_path / "trained")
    for folder, system in ((model, ""), (tmp_path / "trained", "[system]Think.<|endoftext|>\n")):
        tokenizer = read_tokenizer(folder)
        asked, offered = (rendered(tokenizer, tools=tools) for tools in (None, [PYTHON]))
        assert asked.startswith(system + "[user]Q")
        assert offered == ("" if where == "chat_template.json" else "[tools]") + asked
        prompts.check_template(tokenizer, Settings(), folder)
        with pytest.raises(AimoError, match="does not read 'enable_thinking'"):
            prompts.check_template(tokenizer, Settings(chat_template_kwargs={"enable_thinking": True}), "M")


def test_several_templates_without_a_default_are_refused(tmp_path):
    model = with_templates(tmp_path, "tokenizer_config.json", {"rag": "x", "tool_use": "y"})
    with pytest.raises(AimoError, match="none of its chat templates rag, tool_use is named default"):
        trained(folder=model)


# Templates of public models: what a prompt ends in, and how calls and outputs are shown
TALK = "{%- for m in messages -%}[{{ m.role }}]{{ m.content }}{%- endfor -%}"
TOOLS = "{%- if tools -%}[tools]{%- endif -%}"
ASK = "{%- if add_generation_prompt -%}[assistant]{%- endif -%}"
THINKING = "{%- if enable_thinking is defined and not enable_thinking -%}<think>\n\n</think>\n\n{%- endif -%}"
QWEN3 = TOOLS + TALK + ASK + THINKING
DISTILLED = TOOLS + TALK + ASK + "{%- if add_generation_prompt -%}<think>\n{%- endif -%}"
NO_SYSTEM = TALK.replace("[{{ m.role }}]", "{%- if m.role == 'system' -%}{%- continue -%}{%- endif -%}") + ASK
CALLS = "{%- for c in m.tool_calls or [] -%}<call>{{ c.function | tojson }}</call>{%- endfor -%}"
SAID = "{%- if m.role == 'tool' -%}<output>{{ m.content | tojson }}</output>"
SAID += "{%- else -%}{{ m.content }}{%- endif -%}"
ONLY_LAST = "{%- if m.role == 'assistant' and loop.last -%}<think>\n\n</think>{%- endif -%}"
NO_THOUGHTS = SAID.replace("m.content }}{%- endif", "m.content.split('</think>')[-1] }}{%- endif")


@pytest.fixture
def sampler(public_model):
    """A public model that is not loaded, with another template and settings."""

    def make(template, **settings):
        tokenizer = read_tokenizer(public_model)
        tokenizer.chat_template = template
        settings = resolve_settings(public_model, settings)
        return SimpleNamespace(tokenizer=tokenizer, settings=settings, tool_parser=None, encoding=None)

    return make


@pytest.mark.parametrize(
    "turn, end",
    [
        (SAID, "<|endoftext|>"),
        (NO_THOUGHTS, "<|endoftext|>"),  # DeepSeek-R1
        (ONLY_LAST + NO_THOUGHTS, "<|endoftext|>"),  # Qwen3
        (SAID, "{{ '<|eom|>' if m.tool_calls else '<|endoftext|>' }}"),  # Llama 3
    ],
)
@pytest.mark.parametrize("stopped", [False, True])
def test_the_prompt_after_a_call_continues_what_was_sampled_to_the_token(sampler, turn, end, stopped):
    talk_template = "{%- for m in messages -%}[{{ m.role }}]" + turn + CALLS + end + "{%- endfor -%}"
    model = sampler(TOOLS + talk_template + "{%- if add_generation_prompt -%}[assistant]<think>{%- endif -%}")
    tokenizer = model.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eom|>"]})
    talk = chat_format.ToolCalls(model, "1?")
    for thought in "Hm.", "Hm, again.":
        code = {"name": "python", "arguments": {"code": "print(1)"}}
        text = f"{thought}</think><call>{json.dumps(code)}</call>"
        sampled = tokenizer.encode(text if stopped else text + tokenizer.eos_token, add_special_tokens=False)
        message = {"role": "assistant", "content": f"{thought}</think>", "tool_calls": [{"function": code}]}
        before = talk.ids
        talk.reply(Call("print(1)", text, sampled, message), "1\n")
        assert talk.ids[: len(before) + len(sampled)] == [*before, *sampled]
        added = tokenizer.decode(talk.ids[len(before) + len(sampled) :])
        ending = ("<|eom|>" if "eom" in end else "<|endoftext|>") if stopped else ""
        assert added == ending + '[tool]<output>"1\\n"</output><|endoftext|>[assistant]<think>'


@pytest.mark.parametrize(
    "template, settings, thinks",
    [
        (QWEN3, {"chat_template_kwargs": {"enable_thinking": False}}, False),
        (DISTILLED, {}, True),
        (DISTILLED, {"thinking": False}, False),
        (QWEN3, {"thinking": True}, True),
        (TOOLS + TALK, {"user": "{problem} Write <think>"}, True),
    ],
)
def test_whether_a_prompt_ends_inside_a_thought_is_seen_from_the_prompt(sampler, template, settings, thinks):
    for with_tools, parser in (False, "hermes"), (True, None), (True, "hermes"):
        model = sampler(template, tool_parser=parser, **settings)
        talk = chat_format.begin_conversation(model, "What is 1 + 1?", with_tools=with_tools)
        offers = "[tools]" in model.tokenizer.decode(talk.ids)
        assert offers == bool(with_tools and parser) and talk.thinks() is thinks


@pytest.mark.parametrize(
    "template, settings, told",
    [
        (RAISES + TALK + ASK, {"system": "Think."}, "No system"),
        (NO_SYSTEM, {"system": "Think."}, "put inference.system's text into inference.user"),
        (TALK, {}, "adds no generation prompt"),
        ("[user]" + ASK, {}, "leaves the problem out"),
        (TALK + ASK, {"chat_template_kwargs": {"enable_thinking": True}}, "does not read 'enable_thinking'"),
    ],
)
def test_a_template_that_cannot_ask_what_the_settings_say_is_refused(sampler, template, settings, told):
    model = sampler(template, **settings)
    with pytest.raises(AimoError, match=f"model M: .*{told}"):
        prompts.check_template(model.tokenizer, model.settings, "M")
    if settings:
        prompts.check_template(model.tokenizer, Settings(), "M")


def test_the_rules_and_the_problem_stand_where_the_settings_say_and_the_problem_is_escaped(sampler):
    arguments = {"chat_template_kwargs": {"enable_thinking": True}}
    model = sampler(QWEN3, system="Rules: {rules}", user="{problem} -- {rules}", **arguments)
    prompts.check_template(model.tokenizer, model.settings, "M")

    def asked(problem, rules=""):
        return model.tokenizer.decode(chat_format.begin_conversation(model, problem, rules=rules).ids)

    assert asked("1?", "One integer.") == "[system]Rules: One integer.[user]1? -- One integer.[assistant]"
    assert asked("1?").startswith("[system]Rules: Put the final answer in \\boxed{}."), "no competition's"
    assert "</think>" not in asked("a </think>") and "{rules}" in asked("{rules}?")
    special = model.tokenizer.all_special_tokens
    assert special and not any(token in asked(f"What is {token}3 + 4?") for token in special)


def test_each_variant_is_asked_in_its_share_of_the_samples_spread_evenly():
    variants = [Variant(0.25, user="a {problem}"), Variant(0.5, user="b {problem}")]
    order = "".join(prompts.variant(Settings(variants=variants), i).user[0] for i in range(16))
    assert (order.count("a"), order.count("b")) == (4, 8)
    assert all(order[i : i + 4].count("b") == 2 for i in range(0, 16, 4))
    assert {prompts.variant(Settings(), i).user for i in range(9)} == {"{problem}"}, "off by default"


def test_prompts_longer_than_the_context_are_refused_before_anything_is_loaded(public_model):
    with pytest.raises(AimoError, match=r"a prompt takes \d+ of the context's 1024 tokens.*inference.system"):
        Engine(public_model, resolve_settings(public_model, {"system": "Think hard. " * 300}))
