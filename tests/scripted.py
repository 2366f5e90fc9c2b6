"""A stand-in at the border to a model: a sampler whose streams write what a function says, or raise."""

import asyncio
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from aimo.inference.prompts import BackgroundLoop, Completion
from aimo.inference.settings import Settings, Tags

HERE = Path(__file__).parent
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

    model = identity = "scripted"
    streams, queue_s, written = sys.maxsize, 0.0, 0
    encoding = tool_parser = None
    has_died = False
    max_length = 100_000

    def __init__(self, write: Callable[[int, str], Any], **settings: Any):
        self.write, self.tokenizer, self.loop = write, Letters(), BackgroundLoop()
        self.settings = replace(Settings(tags=THINK, thinking=False, samples=8), **settings)
        self.requests, self.prompts = itertools.count(), []

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


KERNEL = """
import json, os, sys
sys.path.insert(0, "src")
sys.path.append(sys.argv[1])
from scripted import Scripted
import aimo
from aimo.inference import gateway
assert aimo.__file__.startswith(os.getcwd()), aimo.__file__
competition, model, test, said, kill = sys.argv[2:]
said, (event, left) = json.loads(said), kill.split()
left = int(left)
def watch(name, given):  # of Python's audit events, those that touch the file of answers
    global left
    if name == event and "submission" in str(given[0]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)
sys.addaudithook(watch)
def write(_, prompt):
    watch("ask", ["submission"])
    key = next(key for key in said if key in prompt)
    if prompt.endswith("\\\\boxed{"):  # an answer that is forced
        return "}\\x03"
    said[key].append(said[key].pop(0))
    return f"</think>{said[key][-1]}\\x03"
gateway.start_engine = lambda *_: Scripted(write, samples=4)
gateway.check_installed = lambda settings: None
gateway.serve_submission(competition, model, test, 600.0, {"samples": 4})
"""


def run_shipped(folder, competition, test_csv, said, kill="never 1"):
    """Run the submission that a kernel shipped into a folder; samples say a question's texts in turn.

    It is killed at the n-th "ask" (a sample), "open" or "os.rename" (of its file of answers).
    """
    places = str(HERE), competition, str(HERE.parent / "data/tiny-base"), str(test_csv)
    command = [sys.executable, "-c", KERNEL, *places, json.dumps(said), kill]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)
