"""A stand-in at the border to a model: a sampler whose streams write what a function says, or raise."""

import asyncio
import itertools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from aimo.inference.sampling import BackgroundLoop, Completion
from aimo.inference.settings import Settings, Tags

THINK = Tags("<think>", "</think>", "\\boxed{", "}")


class Letters:
    """A tokenizer whose tokens are characters."""

    chat_template = "messages, add_generation_prompt, tools"
    eos_token = "\x03"

    def __init__(self):
        self.added_tokens_decoder: dict[int, Any] = {}

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(map(chr, ids))

    def apply_chat_template(self, talk: list[dict], tokenize: bool = True, **_: Any) -> Any:
        text = "".join(f"{turn['role']}: {turn['content']}\n" for turn in talk)
        return self.encode(text) if tokenize else text


class Scripted:
    """A `Sampler`. `write` takes the number of the request and the prompt's text, and returns the completion
    (its last letter \\x03 where it ends by itself), raises, or is a coroutine function."""

    model, streams, queue_s, written = "scripted", sys.maxsize, 0.0, 0
    encoding = tool_parser = None
    has_died = False
    max_length = 100_000

    def __init__(self, write: Callable[[int, str], Any], **settings: Any):
        self.write, self.tokenizer, self.loop = write, Letters(), BackgroundLoop()
        self.settings = replace(Settings(tags=THINK, thinking=False, samples=8), **settings)
        self.requests, self.respawned, self.prompts = itertools.count(), 0, []

    async def sample(self, prompt, seed, settings, until=None):
        asked = self.tokenizer.decode(prompt)
        self.prompts.append(asked)
        await asyncio.sleep(0)
        text = self.write(next(self.requests), asked)
        if asyncio.iscoroutine(text):
            text = await text
        finished, text = text.endswith("\x03"), text.removesuffix("\x03")
        whole = text[: settings.max_tokens]
        ids = self.tokenizer.encode(whole)
        for end in range(0, len(whole) + 7, 7):
            if until and until(whole[:end], ids[:end]):
                return Completion(whole[:end], ids[:end], False)
        return Completion(whole, ids, finished and whole == text)

    def encode(self, problem: str) -> list[int]:
        return self.tokenizer.encode(problem)

    def run(self, coroutine, timeout=None):
        return self.loop.run(coroutine, timeout)

    def respawn(self):
        self.respawned += 1
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        pass


def write_shipped(cells, folder):
    """Write the files that a kernel's cells ship into a folder, as Jupyter does."""
    folder.mkdir(exist_ok=True)
    for source in cells:
        if source.startswith("import base64"):
            subprocess.run([sys.executable, "-"], input=source, text=True, cwd=folder, check=True)
        elif source.startswith("%%writefile "):
            head, _, text = source.partition("\n")
            (folder / head.removeprefix("%%writefile ")).write_text(text)
