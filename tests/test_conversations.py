"""Reading conversations, however they are written, as a problem and its solution."""

import json

import polars as pl
import pytest
from test_data import prepared, saved, tokenizer  # noqa: F401 a fixture

from aimo import config
from aimo.config import Columns, Source
from aimo.data import sources
from aimo.errors import AimoError

ASK, REPLY = "What is 6 x 7?", "six sevens: \\boxed{42}"
TALK = [{"role": "user", "content": ASK}, {"role": "assistant", "content": REPLY}]
SHAREGPT = [{"from": "human", "value": ASK}, {"from": "gpt", "value": REPLY}]
THOUGHT = f"<think>\nI multiply\n</think>\n\n{REPLY}"


def load(path, *rows, columns=None):
    if rows:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, notes = sources.load_source(Source(str(path), columns=columns), 0, "data.sft")
    return [(row["problem"], row["solution"]) for row in found.to_dicts()], notes


THINKING = {"type": "thinking", "thinking": "I multiply"}
PART, SAID = {"type": "text", "text": ASK}, {"type": "text", "text": REPLY}


def asking(content):
    return {"role": "user", "content": content}


def reply(**keys):
    return [TALK[0], {"role": "assistant"} | keys]


READ = {
    "texts as parts": ({"messages": [asking([ASK]), *reply(content=[REPLY[:4], REPLY[4:]])[1:]]}, REPLY),
    "messages": ({"messages": TALK}, REPLY),
    "ShareGPT": ({"conversations": SHAREGPT}, REPLY),
    "ShareGPT with a system turn": ({"conversations": [{"from": "system", "value": "s"}, *SHAREGPT]}, REPLY),
    "JSON": ({"messages": json.dumps(TALK)}, REPLY),
    "Python, as pandas writes it": ({"messages": str(TALK)}, REPLY),
    "an object that holds it": ({"conversation": {"messages": TALK, "id": 1}}, REPLY),
    "columns": ({"messages": {"role": ["user", "assistant"], "content": [ASK, REPLY]}}, REPLY),
    "prompt and completion": ({"prompt": TALK[:1], "completion": TALK[1:]}, REPLY),
    "prompt and completion as texts": ({"prompt": ASK, "completion": REPLY}, REPLY),
    "reasoning_content": ({"messages": reply(reasoning_content="I multiply", content=REPLY)}, THOUGHT),
    "thinking": ({"messages": reply(thinking="I multiply", content=REPLY)}, THOUGHT),
    "reasoning": ({"messages": reply(reasoning="I multiply\n", content=REPLY)}, THOUGHT),
    "a thought as a part": ({"messages": [asking([PART]), *reply(content=[THINKING, SAID])[1:]]}, THOUGHT),
    "a thought in both places": ({"messages": reply(reasoning="I multiply", content=THOUGHT)}, THOUGHT),
    "parts": ({"messages": [asking([PART]), *reply(content=[SAID])[1:]]}, REPLY),
    "a prompt alone": ({"prompt": TALK[:1], "answer": "42"}, None),
    "an empty thought": ({"messages": reply(thinking="", content=REPLY)}, REPLY),
}  # fmt: skip


@pytest.mark.parametrize("form", READ)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_conversation_is_known_by_its_columns_and_read(tmp_path, form, kind):
    row, solution = READ[form]
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pl.DataFrame([row]).write_parquet(path)
    rows, notes = load(path, *[row] * (kind == "jsonl"))
    assert rows == [(ASK, solution)] and not notes.dropped


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
LEFT_OUT = {
    "of several turns": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, *TALK],
    "of several turns ": [*TALK, TALK[0]],
    "of several turns  ": [*TALK, TALK[1]],
    "with calls of tools": [TALK[0], CALL, {"role": "tool", "content": "42"}, TALK[1]],
    "with calls of tools ": [*SHAREGPT[:1], {"from": "function_call", "value": "{}"}, SHAREGPT[1]],
    "without a question": [{"role": "system", "content": "s"}, TALK[1]],
    "with the role 'narrator'": [*TALK, {"role": "narrator", "content": "x"}],
    "with a part of the type 'image_url'": [asking([PART, {"type": "image_url", "image_url": "x"}])],
    "that cannot be read": "[{'role': 'user', 'conte",
}


@pytest.mark.parametrize("fault", LEFT_OUT)
def test_a_conversation_that_is_no_single_question_is_left_out_and_its_reason_counted(tmp_path, fault):
    rows, notes = load(tmp_path / "rows.jsonl", {"messages": TALK}, {"messages": LEFT_OUT[fault]})
    assert rows == [(ASK, REPLY)] and notes.dropped == {f"conversation {fault.strip()}": 1}


def test_a_thought_in_its_own_field_is_trained_and_the_card_counts_the_rest(tmp_path, tokenizer):  # noqa: F811
    talks = [reply(reasoning_content="I multiply", content=REPLY), LEFT_OUT["of several turns"]]
    talks.append([asking("a\fb"), TALK[1]])
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    profile = config.load("tiny", [f"data.sft={{source: {tmp_path / 'rows.jsonl'}}}"])
    ready, _ = saved(profile, tokenizer, tmp_path / "data")
    text = ready["sft"]["completion"][0][0]["content"]
    assert "I multiply" in text and text.endswith("<SOLUTION>42</SOLUTION>")
    card = (tmp_path / "data/README.md").read_text()
    assert "dropped: conversation of several turns | 1 |" in card and "control characters, left" in card
    assert "| sft | read from" in card and "rows.jsonl | 3 |" in card


def test_a_conversation_under_another_name_is_refused_with_the_key_to_set(tmp_path):
    path = tmp_path / "rows.jsonl"
    told = r"columns\.problem: .* no column 'problem'; it has dialog: .*\.messages"
    with pytest.raises(AimoError, match=told):
        load(path, {"dialog": TALK})
    assert load(path, columns=Columns(messages="dialog"))[0] == [(ASK, REPLY)]


def test_traces_in_a_csv_are_lists(tmp_path):
    row = {"problem": ASK, "answer": 42, "s": json.dumps([REPLY, "no"]), "ok": "[true, false]"}
    pl.DataFrame([row]).write_csv(tmp_path / "rows.csv")
    columns = Columns(solution="s", correct="ok")
    rows, _ = sources.load_source(Source(str(tmp_path / "rows.csv"), columns=columns), 0, "data.sft")
    assert rows.select("solution", "correct").rows() == [(REPLY, True), ("no", False)]


def test_an_answer_that_is_a_list_is_its_entries(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"question": "P", "final_answer": ["3"]}\n{"question": "Q", "final_answer": ["1", 2, null]}\n'
        '{"question": "R", "final_answer": []}\n'
    )
    rows, _ = sources.load_source(Source(str(tmp_path / "rows.jsonl")), 0, "data.grpo")
    assert rows["answer"].to_list() == ["3", "1, 2", None]


def test_a_shard_without_a_column_that_another_has_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"problem": "P", "answer": 1}\n')
    (tmp_path / "b.jsonl").write_text('{"problem": "P"}\n')
    with pytest.raises(AimoError, match=r"b\.jsonl has no column 'answer', which .*a\.jsonl has"):
        load(tmp_path)
