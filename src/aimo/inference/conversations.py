"""Which conversation a sample has: by the format of the settings, with or without tools.

A format is one class with the methods of `tools.Chat`, chosen here or in `tools.OWN_FORMATS`.
"""

from pathlib import Path
from typing import Any

from aimo.inference import harmony, programs, prompts
from aimo.inference.harmony import Harmony
from aimo.inference.sampling import Sampler
from aimo.inference.settings import Settings
from aimo.inference.tools import OWN_FORMATS, Chat, ToolCalls

Conversation = Chat | Harmony
RULES = "Put the final answer in \\boxed{}."
"""The sentence on answers outside a competition."""


def prepare(tokenizer: Any, settings: Settings, model: str | Path) -> Any:
    """Check that a model folder can be asked as the settings say, and have sessions for tools ready.

    Returns the encoding of Harmony, None for other formats. AimoError when vocabulary or chat template
    are at fault.
    """
    if settings.tools:
        programs.warm(settings.tool_seconds)
    if settings.format == "harmony":
        return harmony.load(model)
    prompts.check_template(tokenizer, settings, model)
    return None


def begin(
    sampler: Sampler, problem: str, index: int = 0, rules: str = "", with_tools: bool = False
) -> Conversation:
    """The conversation of the `index`-th sample of a problem; `rules` is the competition's sentence."""
    settings, rules = sampler.settings, rules or RULES
    if settings.format == "harmony":
        return Harmony(sampler, problem, index, rules, with_tools)
    if not with_tools:
        return Chat(sampler, problem, index, rules)
    return OWN_FORMATS.get(settings.tool_parser, ToolCalls)(sampler, problem, index, rules)
