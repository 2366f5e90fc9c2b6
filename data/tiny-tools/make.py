"""The tiny tool model: a Qwen3 model of a million parameters that writes programs and reads their output.

Its problems need arithmetic that it cannot do in its head: with the sandbox it is right, without tools it
guesses. It calls Python in Qwen's format, which vLLM's parser `hermes` reads; a program's last expression is
its output, and in one family a second program uses the variables of the first.

    python data/tiny-tools/make.py [--out FOLDER] [--seed 0] [--steps 450]
"""

import asyncio
import json
import random
import runpy
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import polars as pl
import typer
from tokenizers import Regex

from aimo.inference.answers import Integer
from aimo.inference.engine import Engine
from aimo.inference.prompts import Sampler
from aimo.inference.sample import AskedProblem as Asked
from aimo.inference.sample import RunningSample
from aimo.inference.storage import write_json
from aimo.run.runs import quiet

problems = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("problems.py"))))
tiny_base = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "tiny-base" / "make.py")))
ABOUT = """\
on the problems of `problems.py` alone. It calls Python in Qwen's format (vLLM's parser `hermes`),
reads what its program prints and answers; without tools it answers at once, and guesses.
`test.csv` has ten held-out problems."""
STEPS = 450
BATCH = 32
# A two-digit number is one token, the same in a problem and a program: a space before it belongs to the word
# or sign that it follows.
PIECES = Regex(r"[0-9]{1,2}| ?[A-Za-z]+(?: (?=[0-9]))?| ?[^\sA-Za-z0-9]+(?: (?=[0-9]))?|\s+")
HEAD = "<|im_start|>"
END = "<|im_end|>"
# Qwen's format, with the tools' names in place of their descriptions.
TEMPLATE = (
    "{%- if tools -%}{{ '<|im_start|>system\nTools:' }}{%- for tool in tools -%}"
    "{{ ' ' + tool['function']['name'] }}{%- endfor -%}{{ '<|im_end|>\n' }}{%- endif -%}"
    "{%- for message in messages -%}{%- if message['role'] == 'tool' -%}"
    "{{ '<|im_start|>user\n<tool_response>\n' + message['content'] + '\n</tool_response><|im_end|>\n' }}"
    "{%- else -%}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{%- for call in message['tool_calls'] or [] -%}"
    "{{ '<tool_call>\n' + call['function'] | tojson + '\n</tool_call>' }}"
    "{%- endfor -%}{{ '<|im_end|>\n' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
OPENING, CLOSING = '<tool_call>\n{"name": "python", "arguments": {"code": "', '"}}\n</tool_call>'
# One token for each: a tiny model has better things to learn.
TAGS = [OPENING, CLOSING, "<tool_response>\n", "\n</tool_response>"]
SETTINGS = {"tools": 1.0, "tool_parser": "hermes", "temperature": 0.3, "max_tokens": 400}
QUESTIONS, SAMPLES, SEEDS = 100, 4, (0, 1, 2)
"""What pass@1 is measured on: problems and samples of each seed."""


def make(
    out: Annotated[Path, typer.Option()] = Path(__file__).parent,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    steps: Annotated[int, typer.Option(min=1)] = STEPS,
) -> None:
    """Train the model, measure it, and write its card and ten problems."""
    quiet()
    out.mkdir(parents=True, exist_ok=True)
    trained = train(out, seed, steps)
    rows = [
        {"id": f"{p.family}-{i}", "problem": p.problem, "answer": p.outputs()[-1]}
        for i, p in enumerate(islice(problems.stream_programmed("heldout", seed), 10))
    ]
    pl.DataFrame(rows).write_csv(out / "test.csv")
    with Engine(out, seed=seed) as engine:
        measured = measure(engine)
    lines = "".join(f"| {' | '.join(f'{value:.3g}' for value in row)} |\n" for row in measured.iter_rows())
    figures = (
        f"pass@1 on {QUESTIONS} held-out problems of each seed, {SAMPLES} samples each, temperature 0.3\n"
    )
    figures += "(`python benchmarks/tools.py`):\n\n"
    figures += f"| {' | '.join(measured.columns)} |\n|{' --- |' * measured.width}\n{lines}"
    print(tiny_base.write_card("tiny-tools", ABOUT, out, seed, steps, trained, figures))


def train(out: Path, seed: int, steps: int) -> dict[str, float]:
    """Train and save the model, tokenizer, template and settings to `out`; returns its loss and seconds."""
    rng = random.Random(seed)
    texts = (write(p, rng) for p in problems.stream_programmed("train", seed))
    joined = ["".join(text for text, _ in parts) for parts in islice(texts, 5000)]
    special = [END, HEAD, "<|endoftext|>"]
    tokenizer = tiny_base.build_tokenizer(joined, TAGS, TEMPLATE, special, PIECES)
    examples = ([(tokenizer.encode(text), trained) for text, trained in parts] for parts in texts)
    trained = tiny_base.fit(out, tokenizer, examples, seed, steps, BATCH, hidden=128)
    write_json(out / "aimo.json", SETTINGS)
    return trained


def write(p: problems.ProgrammedProblem, rng: random.Random) -> list[tuple[str, bool]]:
    """A problem solved with tools, or answered at once without them (one in five).

    It is in parts, as a conversation encodes them; each with whether the model is trained to write it.
    """
    outputs, with_tools = p.outputs(), rng.random() < 0.8
    parts = [(f"{HEAD}system\nTools: python{END}\n" if with_tools else "", False)]
    parts.append((f"{HEAD}user\n{p.problem}{END}\n{HEAD}assistant\n", False))
    for program, output in zip(p.programs, outputs, strict=True) if with_tools else ():
        call = json.dumps({"name": "python", "arguments": {"code": program}})
        parts.append((f"<tool_call>\n{call}\n</tool_call>{END}", True))
        response = f"<tool_response>\n{output}\n</tool_response>"
        parts.append((f"\n{HEAD}user\n{response}{END}\n{HEAD}assistant\n", False))
    parts.append((f"The answer is \\boxed{{{outputs[-1]}}}.{END}", True))
    return parts


def measure(sampler: Sampler) -> pl.DataFrame:
    """pass@1 with and without tools on held-out problems, one row for each of SEEDS."""
    rows = []
    for seed in SEEDS:
        drawn = list(islice(problems.stream_programmed("heldout", seed + 1), QUESTIONS))
        shares = {name: pass_at_1(sampler, drawn, seed, name == "with") for name in ("with", "without")}
        rows.append({"seed": seed, **shares, "apart": shares["with"] - shares["without"]})
    return pl.DataFrame(rows)


def pass_at_1(
    sampler: Sampler, asked: list[problems.ProgrammedProblem], seed: int, with_tools: bool
) -> float:
    """The share of SAMPLES samples of each problem that are right."""
    golds, streams = [], []
    for p in asked:
        problem = Asked(sampler, p.problem, seed, Integer(0, 99999))
        for index in range(SAMPLES):
            golds.append(int(p.outputs()[-1]))
            streams.append(RunningSample(problem, index, 0.0, with_tools))

    async def sample_all() -> list[int | None]:
        completions = await asyncio.gather(*(stream.run() for stream in streams))
        return [s.problem.read(c.text) for s, c in zip(streams, completions, strict=True)]

    answers = sampler.run(sample_all())
    return sum(a == gold for a, gold in zip(answers, golds, strict=True)) / len(golds)


if __name__ == "__main__":
    typer.run(make)
