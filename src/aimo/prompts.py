"""How a problem is put to the model: tags, chat template, and what a well-formed completion looks like.

The template carries the system prompt and the opening tag (the idea of Unsloth's Qwen3-4B-Base recipe), and it is saved
with the model: Transformers, vLLM and the Kaggle kernel then build the same prompt from the model folder alone.
Left out: tools, and turns after the first answer.
"""

import re
from typing import Any

from aimo.config import Prompt, resolve
from aimo.errors import AimoError

MARK = "{#- aimo -#}"  # a template that was put together here
# A turn ends in the end-of-sequence token and nothing more: what is trained is what is generated.
CHATML = (
    "{%- for message in messages -%}"
    "{{ ('\n' if not loop.first else '') + '<|im_start|>' + message['role'] + '\n' + message['content'] + eos_token }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '\n<|im_start|>assistant\n' }}{%- endif -%}"
)
PLAIN = "{%- for message in messages -%}{{ message['content'] + (eos_token if message['role'] != 'user' else '') }}{%- endfor -%}"


def chat_template(prompt: Prompt, own: str | None) -> str:
    """A Jinja chat template: the profile's (`own` is the base model's), its system prompt, the opening tag as generation prompt."""
    if prompt.template == "model" and own is None:
        raise AimoError("prompt.template: the base model has no chat template of its own; use plain or chatml")
    if prompt.template == "model" and own and own.startswith(MARK):
        return own  # a stage's model has it already
    path = resolve(prompt.template)
    if prompt.template not in ("plain", "chatml", "model") and not path.is_file():
        raise AimoError(f"prompt.template: {prompt.template!r} is not plain, chatml or model, and no file of that name exists")
    template = {"plain": PLAIN, "chatml": CHATML, "model": own}.get(prompt.template) or path.read_text()
    if prompt.system:
        message = "[{'role': 'system', 'content': " + repr(prompt.system) + "}]"
        first = "{%- if messages[0]['role'] != 'system' -%}{%- set messages = " + message + " + messages -%}{%- endif -%}"
        template = first + template
    if prompt.prefill:
        template += "{%- if add_generation_prompt -%}{{ " + repr(prompt.think_start) + " }}{%- endif -%}"
    return MARK + template if prompt.template == "model" else template


def check(tokenizer: Any, prompt: Prompt) -> None:
    """Refuse a template without a generation prompt, and tags that are tokenised otherwise in training than in generation."""

    def ids(completion: str | None) -> list[int]:
        talk = as_prompt("1 + 1?") + ([] if completion is None else [{"role": "assistant", "content": completion}])
        return tokenizer.apply_chat_template(talk, add_generation_prompt=completion is None, return_dict=False)

    bare = tokenizer.apply_chat_template(as_prompt("1 + 1?"), return_dict=False)
    asked = ids(None)
    if prompt.template != "plain" and asked == bare:
        raise AimoError(f"prompt.template: {prompt.template!r} adds no generation prompt, so nothing tells the model to answer")
    for thought in ("a", "1", " a", "\n", "$x$", ">", "("):
        told = as_completion(prompt, thought, 2)[0]["content"]
        if ids(told)[: len(asked)] != asked:
            raise AimoError(
                f"prompt.think_start: {prompt.think_start!r} is tokenised otherwise with {thought!r} after it than alone, so that "
                "training and generation differ; end it with a newline, make it a special token, or set prompt.prefill: false"
            )


def as_prompt(problem: str) -> list[dict[str, str]]:
    """The conversation that asks `problem`."""
    return [{"role": "user", "content": problem}]


def as_completion(prompt: Prompt, thought: str, answer: int | str) -> list[dict[str, str]]:
    """The assistant turn that thinks `thought` and answers `answer`, in the profile's tags."""
    text = f"{prompt.think_start}{thought}{prompt.think_end}{prompt.answer_start}{answer}{prompt.answer_end}"
    return [{"role": "assistant", "content": text}]


def is_well_formed(prompt: Prompt, completion: str) -> bool:
    """Whether a completion is one thought, then one answer, then nothing; the opening tag leads it unless the prompt ends in it."""
    if completion.startswith(prompt.think_start):
        completion = completion[len(prompt.think_start) :]
    elif not prompt.prefill:
        return False
    tags = (prompt.think_end, prompt.answer_start, prompt.answer_end)
    pattern = rf".*?{re.escape(tags[0])}\s*{re.escape(tags[1])}.+?{re.escape(tags[2])}\s*"
    return all(completion.count(tag) == 1 for tag in tags) and re.fullmatch(pattern, completion, re.DOTALL) is not None
