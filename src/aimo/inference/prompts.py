"""How a problem is put to the model: tags, chat template, and what a well-formed completion looks like.

The template carries the system prompt and the opening tag (the idea of Unsloth's Qwen3-4B-Base recipe), and it is saved
with the model: Transformers, vLLM and the Kaggle kernel then build the same prompt from the model folder alone.
Out of scope: tools, and turns after the first answer.
"""

import re
from pathlib import Path
from typing import Any

from aimo.inference.errors import AimoError
from aimo.inference.settings import Prompt

MARK = "{#- aimo -#}"  # a template that was put together here
# A turn ends in the end-of-sequence token and nothing more: what is trained is what is generated.
CHATML = (
    "{%- for message in messages -%}"
    "{{ ('\n' if not loop.first else '') + '<|im_start|>' + message['role'] + '\n' + message['content'] + eos_token }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '\n<|im_start|>assistant\n' }}{%- endif -%}"
)
PLAIN = "{%- for message in messages -%}{{ message['content'] + (eos_token if message['role'] != 'user' else '') }}{%- endfor -%}"


def chat_template(prompt: Prompt, own: str | None, root: Path = Path()) -> str:
    """A Jinja chat template: the profile's (`own` is the base model's), its system prompt, the opening tag as generation prompt.

    A relative path of a template starts here or at `root`.
    """
    if prompt.template == "model" and own is None:
        raise AimoError(
            "prompt.template: the base model has no chat template of its own; use plain or chatml"
        )
    if prompt.template == "model" and own and own.startswith(MARK):
        return own  # a stage's model has it already
    path = Path(prompt.template) if Path(prompt.template).exists() else root / prompt.template
    if prompt.template not in ("plain", "chatml", "model") and not path.is_file():
        raise AimoError(
            f"prompt.template: {prompt.template!r} is not plain, chatml or model, and no file of that name exists"
        )
    template = {"plain": PLAIN, "chatml": CHATML, "model": own}.get(prompt.template) or path.read_text()
    if prompt.system:
        message = "[{'role': 'system', 'content': " + repr(prompt.system) + "}]"
        first = (
            "{%- if messages[0]['role'] != 'system' -%}{%- set messages = "
            + message
            + " + messages -%}{%- endif -%}"
        )
        template = first + template
    opening = "{%- if add_generation_prompt -%}{{ " + repr(prompt.think_start) + " }}{%- endif -%}"
    if prompt.prefill and not template.endswith(opening):
        template += opening
    return MARK + template if prompt.template == "model" else template


def check(tokenizer: Any, prompt: Prompt) -> None:
    """Refuse a template without a generation prompt, and one that shows a reply otherwise than it asks for it."""

    def text(talk: list[dict[str, str]], ask: bool = False) -> str:
        return tokenizer.apply_chat_template(talk, add_generation_prompt=ask, tokenize=False)

    talk = as_prompt("1 + 1?")
    asked, told = text(talk, ask=True), text(talk + as_completion(prompt, "Let me think.", 2))
    if prompt.template != "plain" and asked == text(talk):
        raise AimoError(
            f"prompt.template: {prompt.template!r} adds no generation prompt, so nothing tells the model to answer"
        )
    if not told.startswith(asked) or "Let me think." not in told:
        raise AimoError(
            f"prompt.template: {prompt.template!r} shows a reply otherwise than it asks for it (it may leave out thoughts), so that "
            "training and generation would differ; use chatml, plain or a Jinja file of your own"
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
    if prompt.answer_start == "\\boxed{":  # R1's way: the answer is boxed somewhere after the thought
        _, closed, rest = completion.partition(prompt.think_end)
        return bool(closed) and prompt.think_end not in rest and prompt.answer_start in rest
    tags = (prompt.think_end, prompt.answer_start, prompt.answer_end)
    pattern = rf".*?{re.escape(tags[0])}\s*{re.escape(tags[1])}.+?{re.escape(tags[2])}\s*"
    return (
        all(completion.count(tag) == 1 for tag in tags)
        and re.fullmatch(pattern, completion, re.DOTALL) is not None
    )
