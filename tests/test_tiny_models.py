"""The tiny models as they are in the repository, and how they are made."""

import json
import random
import runpy
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest
from conftest import ROOT, TINY

from aimo.inference.chat_format import ToolCalls, begin_conversation
from aimo.inference.engine import Engine
from aimo.inference.model_folder import read_tokenizer
from aimo.inference.prompts import Completion
from aimo.inference.sandbox import Session
from aimo.inference.settings import resolve_settings
from aimo.inference.tool_calls import find_tool_parser

TOOLS = ROOT / "data" / "tiny-tools"
PROBLEMS = SimpleNamespace(**runpy.run_path(str(TOOLS / "problems.py")))
CALL = '<tool_call>\n{"name": "python", "arguments": {"code": "1 + 1"}}\n</tool_call>'
BLOCK = "\n```python\n1 + 1\n```"


@pytest.mark.parametrize("model", [TINY, TOOLS])
def test_padding_ends_no_text(model):
    """On a GPU, Unsloth does not load it otherwise, or leaves the end of a text out of the loss of GRPO."""
    from transformers import AutoTokenizer

    tokenizer, config = AutoTokenizer.from_pretrained(model), json.loads((model / "config.json").read_text())
    assert tokenizer.pad_token_id != tokenizer.eos_token_id and tokenizer.pad_token_id < config["vocab_size"]
    assert tokenizer.decode(tokenizer.encode("ÿ, 中: 2² ÷ 4 ≤ 1")) == "ÿ, 中: 2² ÷ 4 ≤ 1"


# ---- The tool model


def test_a_problem_has_the_answer_that_its_programs_print_in_a_session():
    drawn = list(islice(PROBLEMS.stream_programmed("heldout", 0), 30))
    assert {p.family for p in drawn} == PROBLEMS.PROGRAMMED.keys()
    for p in drawn:
        with Session() as session:
            assert [session.run(program).stdout.strip() for program in p.programs] == p.outputs()


@pytest.mark.slow  # loads vLLM's parsers
def test_what_it_is_trained_on_is_what_a_conversation_asks_and_reads():
    tokenizer, make = read_tokenizer(TOOLS), runpy.run_path(str(TOOLS / "make.py"))
    parser = find_tool_parser("hermes", tokenizer)
    sampler = SimpleNamespace(tokenizer=tokenizer, settings=resolve_settings(TOOLS), tool_parser=parser)
    for p in islice(PROBLEMS.stream_programmed("train", 0), 20):
        parts = make["write"](p, random.Random(1))  # 1: with tools
        talk, ids = ToolCalls(sampler, p.problem), []
        for text, trained in parts[:-1]:
            if trained:
                assert talk.ids == ids
                turn = tokenizer.encode(text)
                call = talk.find_call(Completion(text.removesuffix(make["END"]), turn, True))
                assert call.code == p.programs[len(talk.messages) // 2]
                talk.reply(call, p.outputs()[len(talk.messages) // 2])
            ids += tokenizer.encode(text)
        assert talk.ids == ids


@pytest.fixture(scope="module")
def tool_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """The model in vLLM, which counts what it has cached, with room for a long context."""
    folder = tmp_path_factory.mktemp("tools") / "tiny-tools"
    shutil.copytree(TOOLS, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    with Engine(folder, resolve_settings(folder, {"vllm": {"disable_log_stats": False}})) as engine:
        yield engine


@pytest.mark.engine
def test_with_the_sandbox_it_is_right_and_without_tools_it_guesses(tool_engine):
    drawn = list(islice(PROBLEMS.stream_programmed("heldout", 1), 30))
    make = runpy.run_path(str(TOOLS / "make.py"))
    with_tools, without = (make["pass_at_1"](tool_engine, drawn, 0, tools) for tools in (True, False))
    assert with_tools >= without + 0.3


@pytest.mark.engine
@pytest.mark.parametrize(("parser", "call", "ending"), [("hermes", CALL, "<|im_end|>"), (None, BLOCK, "")])
def test_a_long_conversation_finds_what_came_before_in_the_prefix_cache(
    tool_engine, monkeypatch, parser, call, ending
):
    """Each turn is what the model writes, then a call; the cache counts from the second turn on."""
    from vllm.v1.metrics.reader import get_metrics_snapshot

    def counters() -> tuple[float, float]:
        values = {metric.name: metric.value for metric in get_metrics_snapshot() if "prefix" in metric.name}
        return values["vllm:prefix_cache_hits"], values["vllm:prefix_cache_queries"]

    settings = replace(tool_engine.settings, tool_parser=parser, max_tokens=24)
    monkeypatch.setattr(tool_engine, "settings", settings)
    monkeypatch.setattr(tool_engine, "keeps_special_tokens", parser is not None)
    talk = begin_conversation(tool_engine, f"{parser} " + "What is 6 x 7? " * 450, with_tools=True)
    # A character a token: a model may write other tokens than its text would be encoded in.
    written = [token for part in (*call, ending) for token in tool_engine.tokenizer.encode(part)]
    for turn in range(4):
        before, prompt = counters(), talk.ids
        completion = tool_engine.run(tool_engine.sample(prompt, turn, settings))
        hits, queries = (now - then for now, then in zip(counters(), before, strict=True))
        assert queries == len(prompt) and (hits >= 0.9 * queries if turn else hits < 0.5 * queries)
        complete = Completion(completion.text + call, completion.token_ids + written, True)
        talk.reply(talk.find_call(complete), "2")
        written_so_far = prompt + complete.token_ids
        assert talk.ids[: len(written_so_far)] == written_so_far
