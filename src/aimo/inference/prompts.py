"""How a problem is presented to the model: the messages, and whether its chat template shows them."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aimo.inference.errors import AimoError, one_line
from aimo.inference.sampling import MIN_TOKENS
from aimo.inference.settings import Prompt, Settings, Variant

TAIL = 32  # tokens at the end of a prompt that may hold an opening tag
# Templates that training made, which may ask without a generation prompt: they hold MARK, or end in PLAIN.
MARK = "{#- aimo -#}"
PLAIN = (
    "{%- for message in messages -%}"
    "{{ message['content'] + (eos_token if message['role'] != 'user' else '') }}{%- endfor -%}"
)


def apply_template(
    tokenizer: Any, talks: list[tuple[list[dict[str, str]], bool]], what: str, remedy: str, /, **options: Any
) -> list[str]:
    """Return conversations as the chat template shows them, each with or without a generation prompt."""
    try:
        return [
            tokenizer.apply_chat_template(talk, add_generation_prompt=asks, tokenize=False, **options)
            for talk, asks in talks
        ]
    except Exception as e:  # templates raise errors of their own, and Jinja its own
        line = f" in line {e.lineno}" if hasattr(e, "lineno") else ""
        raise AimoError(f"{what} cannot be rendered ({one_line(e)}{line}); {remedy}") from None


def check_template(tokenizer: Any, settings: Settings, model: str | Path) -> None:
    """Raise AimoError when the chat template does not present what the settings say.

    It is rendered once: it may raise, have no system role, no generation prompt, or not read an argument.
    """
    template, remedy = f"model {model}: its chat template", "save another with the model"
    problem = "What is 1 + 1?"
    asked = as_messages(settings, problem)
    changed = f"{remedy}, or change inference.system and inference.chat_template_kwargs"
    prompt, bare = apply_template(
        tokenizer, [(asked, True), (asked, False)], template, changed, **settings.chat_template_kwargs
    )
    if settings.system and asked[0]["content"] not in prompt:
        raise AimoError(f"{template} has no system role; put inference.system's text into inference.user")
    if problem not in prompt:
        raise AimoError(f"{template} leaves the problem out; {remedy}")
    text = tokenizer.get_chat_template()
    if prompt == bare and MARK not in text and not text.endswith(PLAIN):
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
    """Return the conversation that asks `problem` of the `index`-th sample, by a competition's `rules`."""
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
