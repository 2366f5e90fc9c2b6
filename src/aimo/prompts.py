"""How a problem is put to the model: tags, chat template, and what a well-formed completion looks like.

The template carries the system prompt and the opening tag (the idea of Unsloth's Qwen3-4B-Base recipe), and it is saved
with the model: Transformers, vLLM and the Kaggle kernel then build the same prompt from the model folder alone.
Left out: tools, and turns after the first answer.
"""

import re

from aimo.config import Prompt


def chat_template(prompt: Prompt) -> str:
    """A Jinja chat template: system prompt, problem, then the opening tag as generation prompt."""
    return (
        "{%- if messages[0]['role'] == 'system' -%}{{ messages[0]['content'] + eos_token }}"
        + ("{%- else -%}{{ " + repr(prompt.system) + " + eos_token }}" if prompt.system else "")
        + "{%- endif -%}"
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'user' -%}{{ message['content'] }}"
        "{%- elif message['role'] == 'assistant' -%}{{ message['content'] + eos_token }}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ " + repr(prompt.think_start) + " }}{%- endif -%}"
    )


def as_prompt(problem: str) -> list[dict[str, str]]:
    """The conversation that asks `problem`."""
    return [{"role": "user", "content": problem}]


def as_completion(prompt: Prompt, thought: str, answer: int | str) -> list[dict[str, str]]:
    """The assistant turn that thinks `thought` and answers `answer`, in the profile's tags."""
    text = f"{prompt.think_start}{thought}{prompt.think_end}{prompt.answer_start}{answer}{prompt.answer_end}"
    return [{"role": "assistant", "content": text}]


def is_well_formed(prompt: Prompt, completion: str) -> bool:
    """Whether a completion (without the opening tag, which the prompt ends in) is one thought, then one answer, then nothing."""
    tags = (prompt.think_end, prompt.answer_start, prompt.answer_end)
    pattern = rf".*?{re.escape(tags[0])}\s*{re.escape(tags[1])}.+?{re.escape(tags[2])}\s*"
    return all(completion.count(tag) == 1 for tag in tags) and re.fullmatch(pattern, completion, re.DOTALL) is not None
