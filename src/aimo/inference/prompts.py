"""How a problem is presented to the model: tags, chat template, and what a well-formed completion looks like.

The template carries the system prompt and the opening tag (as in Unsloth's Qwen3-4B-Base recipe), and it is
saved with the model: Transformers, vLLM and the Kaggle kernel then build the same prompt from the folder.
"""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aimo.inference.errors import AimoError, one_line
from aimo.inference.sampling import MIN_TOKENS
from aimo.inference.settings import Prompt, Settings, Variant

TAIL = 32  # tokens at the end of a prompt that may hold an opening tag
MARK = "{#- aimo -#}"  # marks a template that `chat_template` made
# A turn ends in the end-of-sequence token and nothing more: what is trained is what is generated.
BUILT_IN = {
    "chatml": "{%- for message in messages -%}"
    "{{ ('\n' if not loop.first else '') + '<|im_start|>' + message['role'] + '\n'"
    " + message['content'] + eos_token }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '\n<|im_start|>assistant\n' }}{%- endif -%}",
    "plain": "{%- for message in messages -%}"
    "{{ message['content'] + (eos_token if message['role'] != 'user' else '') }}{%- endfor -%}",
}
Templates = str | dict[str, str]  # a tokenizer's chat template, or several by name


def chat_template(prompt: Prompt, own: Templates | None, root: Path = Path()) -> Templates:
    """Return the profile's Jinja template, which adds the system prompt and ends a prompt in the opening tag.

    `own` is the base model's template, or several. A template's relative path starts here or at `root`.
    AimoError when there is no such template.
    """
    if prompt.template == "model":
        if isinstance(own, dict):
            return {name: str(chat_template(prompt, one, root)) for name, one in own.items()}
        if own is None:
            raise AimoError("prompt.template: the base model has no chat template; use plain or chatml")
        if own.startswith(MARK):
            return own  # the model of an earlier stage has it already
        template = own
    elif prompt.template in BUILT_IN:
        template = BUILT_IN[prompt.template]
    else:
        path = Path(prompt.template) if Path(prompt.template).exists() else root / prompt.template
        if not path.is_file():
            raise AimoError(
                f"prompt.template: {prompt.template!r} is not plain, chatml or model, "
                "and no file of that name exists"
            )
        try:
            template = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as e:
            raise AimoError(f"prompt.template: {path} cannot be read ({e}); save it as UTF-8") from None
    if prompt.system:
        message = "[{'role': 'system', 'content': " + repr(prompt.system) + "}]"
        first = "{%- if messages[0]['role'] != 'system' -%}{%- set messages = " + message + " + messages -%}"
        template = first + "{%- endif -%}" + template
    opening = "{%- if add_generation_prompt -%}{{ " + repr(prompt.think_start) + " }}{%- endif -%}"
    if prompt.prefill and not template.endswith(opening):
        template += opening
    return MARK + template if prompt.template == "model" else template


def render(
    tokenizer: Any, talks: list[tuple[list[dict[str, str]], bool]], what: str, remedy: str, **options: Any
) -> list[str]:
    """Return conversations as the chat template shows them, each with or without a generation prompt.

    AimoError when it cannot be rendered.
    """
    try:
        return [
            tokenizer.apply_chat_template(talk, add_generation_prompt=asks, tokenize=False, **options)
            for talk, asks in talks
        ]
    except Exception as e:  # templates raise errors of their own, and Jinja its own
        line = f" in line {e.lineno}" if hasattr(e, "lineno") else ""
        raise AimoError(f"{what} cannot be rendered ({one_line(e)}{line}); {remedy}") from None


def check_trainable(tokenizer: Any, prompt: Prompt) -> None:
    """Raise AimoError for a template that cannot be rendered, or that cannot be trained with.

    It must show the system prompt, add a generation prompt, show a reply as it asks for it, and end it in the
    tokenizer's end-of-sequence token.
    """
    template = f"prompt.template: {prompt.template!r}"
    remedy = "use chatml, plain or a Jinja file of your own"
    talk, reply = as_prompt("1 + 1?"), as_completion(prompt, "Let me think.", 2)
    what = f"{template}{' and prompt.system' if prompt.system else ''}"
    talks = [(talk, True), (talk, False), (talk + reply, False)]
    asked, bare, answered = render(tokenizer, talks, what, remedy)
    if prompt.system.strip() not in asked:
        raise AimoError(f"{template} has no system role, and prompt.system is set; empty it, or {remedy}")
    if prompt.template != "plain" and asked == bare:
        raise AimoError(
            f"{template} adds no generation prompt, so nothing tells the model to answer; {remedy}"
        )
    if not answered.startswith(asked) or "Let me think." not in answered:
        raise AimoError(
            f"{template} shows a reply differently from how it asks for it (it may leave out thoughts), so "
            f"that training and generation would differ; {remedy}"
        )
    end, eos = answered.rpartition(prompt.answer_end.strip())[2].strip(), tokenizer.eos_token
    if not end.startswith(eos):
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        ending = max((token for token in added if end.startswith(token)), key=len, default=None)
        raise AimoError(
            f"{template} ends a reply in {(ending or end)!r}, not in the tokenizer's eos_token {eos!r}, "
            "so the model would not learn to stop; "
            + (f"set prompt.eos_token to {ending!r}" if ending else f"end it in eos_token, or {remedy}")
        )


def check_template(tokenizer: Any, settings: Settings, model: str | Path) -> None:
    """Raise AimoError when the chat template does not present what the settings say.

    It is rendered once: it may raise, have no system role, no generation prompt, or not read an argument.
    """
    template, remedy = f"model {model}: its chat template", "save another with the model"
    problem = "What is 1 + 1?"
    asked = as_messages(settings, problem)
    changed = f"{remedy}, or change inference.system and inference.chat_template_kwargs"
    prompt, bare = render(
        tokenizer, [(asked, True), (asked, False)], template, changed, **settings.chat_template_kwargs
    )
    if settings.system and asked[0]["content"] not in prompt:
        raise AimoError(f"{template} has no system role; put inference.system's text into inference.user")
    if problem not in prompt:
        raise AimoError(f"{template} leaves the problem out; {remedy}")
    text = tokenizer.get_chat_template()
    if prompt == bare and MARK not in text and not text.endswith(BUILT_IN["plain"]):
        raise AimoError(
            f"{template} adds no generation prompt, so nothing tells the model to answer; {remedy}"
        )
    for name in settings.chat_template_kwargs:
        if not re.search(rf"\b{re.escape(name)}\b", text):
            raise AimoError(f"inference.chat_template_kwargs: {template} does not read {name!r}; remove it")


def check_length(prompt: list[int], room: int) -> None:
    """Raise AimoError when the n tokens of a short problem's prompt leave no room to answer."""
    if len(prompt) + MIN_TOKENS > room:
        raise AimoError(
            f"a prompt takes {len(prompt)} of the context's {room} tokens before the problem; shorten "
            "inference.system and inference.user, or raise inference.max_length"
        )


def as_prompt(problem: str) -> list[dict[str, str]]:
    """Return the conversation that asks `problem`."""
    return [{"role": "user", "content": problem}]


def as_completion(prompt: Prompt, thought: str, answer: int | str) -> list[dict[str, str]]:
    """Return the assistant turn that thinks `thought` and answers `answer`, in the profile's tags."""
    text = f"{prompt.think_start}{thought}{prompt.think_end}{prompt.answer_start}{answer}{prompt.answer_end}"
    return [{"role": "assistant", "content": text}]


def as_messages(settings: Settings, problem: str, index: int = 0, rules: str = "") -> list[dict[str, str]]:
    """Return the conversation that asks `problem` of the `index`-th sample, as the settings say.

    `rules`, the competition's sentence on its answers, stands where the settings put it.
    """
    asked = variant(settings, index)
    user = asked.user.replace("{rules}", rules).replace("{problem}", problem).strip()
    system = asked.system.replace("{rules}", rules).strip()
    return [{"role": "system", "content": system}] * bool(asked.system) + as_prompt(user)


def variant(settings: Settings, index: int) -> Settings | Variant:
    """Return what has the system and user message of the `index`-th sample."""
    end = 0.0
    for other in settings.variants:
        begin, end = end, end + other.share
        # Spread evenly over the samples, as the shares of tools are.
        if int((index + 1) * end) - int((index + 1) * begin) > int(index * end) - int(index * begin):
            return other
    return settings


def escape_special_tokens(tokenizer: Any, text: str) -> str:
    """Split the special tokens and tags in a text by a zero-width space after their first character."""
    for token in tokenizer.added_tokens_decoder.values():
        if token.special or token.content.startswith("<"):
            text = text.replace(token.content, f"{token.content[0]}\u200b{token.content[1:]}")
    return text


def keeps_special_tokens(tokenizer: Any, settings: Settings) -> bool:
    """Return whether a text keeps special tokens: tool calls, channels or tags may consist of them."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    tags = {tag.strip() for tag in asdict(settings.tags).values()}
    return settings.tool_parser is not None or settings.format == "harmony" or bool(special & tags)


def is_well_formed(prompt: Prompt, completion: str) -> bool:
    """Return whether a completion is one thought, then one answer, then nothing.

    The opening tag leads it, unless the prompt ends in that tag.
    """
    if completion.startswith(prompt.think_start):
        completion = completion[len(prompt.think_start) :]
    elif not prompt.prefill:
        return False
    if prompt.answer_start == "\\boxed{":  # R1's way: the answer is boxed somewhere after the thought
        _, closed, rest = completion.partition(prompt.think_end)
        return bool(closed) and prompt.think_end not in rest and prompt.answer_start in rest
    tags = (prompt.think_end, prompt.answer_start, prompt.answer_end)
    pattern = rf".*?{re.escape(tags[0])}\s*{re.escape(tags[1])}.+?{re.escape(tags[2])}\s*"
    return all(completion.count(tag) == 1 for tag in tags) and bool(re.fullmatch(pattern, completion, re.S))
