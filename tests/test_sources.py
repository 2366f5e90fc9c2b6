"""Reading sources: columns, presets, folders, the hub, conversations, and what is refused."""

import json
import re
import shutil

import polars as pl
import pytest
import yaml
from test_data import saved, tokenizer  # noqa: F401 a fixture

from aimo import config
from aimo.config import Columns, Set, Source
from aimo.data import sources
from aimo.inference.errors import AimoError

TALK = [
    {"role": "user", "content": "What is 6 x 7?"},
    {"role": "assistant", "content": r"<think>six sevens</think> \boxed{42}"},
]
STRINGS = pl.List(pl.String)
FLAGS = pl.List(pl.Boolean)
TURNS = pl.List(pl.Struct({"content": pl.String, "role": pl.String}))
ASK, TRACE = "What is 6 x 7?", "six sevens"
NVIDIA = {
    "expected_answer": "42", "problem_type": "has_answer_extracted", "pass_rate_72b_tir": "0.71875",
    "generated_solution": r"<think>six sevens</think> \boxed{42}", "inference_mode": "cot", "problem": ASK,
}  # fmt: skip
# Each set's columns with one row, the types that a row does not tell, and the answers and verdicts it holds.
HANDMADE = {
    "aimo distil": (
        {"key": "0f", "sample": 0, "problem": ASK, "answer": "42", "generation": TRACE, "complete": True},
        {},
        [("42", None)],  # complete, and not judged yet
    ),
    "aimo reject": (
        {"problem": ASK, "answer": "42", "generation": TRACE, "correct": True, "pass_rate": 0.5},
        {},
        [("42", True)],
    ),
    "open-r1/OpenR1-Math-220k": (
        {
            "problem": ASK, "solution": "It is 42.", "answer": "42", "question_type": "math-word-problem",
            "is_reasoning_complete": [True, False], "correctness_math_verify": [True, False],
            "generations": [r"<think>six sevens</think> \boxed{42}", "<think>six"], "correctness_llama": None,
            "messages": TALK,
        },
        {
            "is_reasoning_complete": FLAGS, "generations": STRINGS, "correctness_math_verify": FLAGS,
            "correctness_llama": FLAGS, "messages": TURNS,
        },
        [("42", True), ("42", False)],
    ),
    "open-r1/Mixture-of-Thoughts": (
        {"messages": TALK, "num_tokens": 20, "source": "open-r1/OpenR1-Math-220k"},
        {"messages": TURNS},
        [(r"<think>six sevens</think> \boxed{42}", None)],
    ),
    "unsloth/OpenMathReasoning-mini": (NVIDIA, {}, [("42", None)]),
    "nvidia/OpenMathReasoning": (NVIDIA | {"used_in_kaggle": True}, {}, [("42", None)]),
    "open-r1/DAPO-Math-17k-Processed": (
        {
            "prompt": ASK, "solution": "42", "source_prompt": TALK[:1], "extra_info": {"index": "0-1"},
            "reward_model": {"ground_truth": "42", "style": "rule-lighteval/MATH_v2"},
        },
        {"source_prompt": TURNS},
        [("42", None)],
    ),
    "AI-MO/NuminaMath-1.5": (
        {
            "problem": ASK, "solution": TRACE, "answer": "42", "question_type": "math-word-problem",
            "problem_is_valid": "Yes", "solution_is_valid": "Incomplete", "synthetic": False,
        },
        {},
        [("42", False)],
    ),
    "GAIR/LIMO": ({"question": ASK, "solution": TRACE, "answer": "42"}, {}, [("42", None)]),
    "simplescaling/s1K-1.1": (
        {"solution": "42", "question": ASK, "metadata": "{}", "deepseek_thinking_trajectory": TRACE},
        {},
        [("42", None)],
    ),
    "openai/gsm8k": ({"question": ASK, "answer": "six sevens\n#### 42"}, {}, [("six sevens\n#### 42", None)]),
}  # fmt: skip


def load(source, **keys):
    rows, lost = sources.load_source(Source(str(source), **keys), 0, "data.sft")
    return rows.to_dicts(), lost


@pytest.mark.parametrize("name", sources.PRESETS)
def test_a_preset_reads_its_sets_columns(tmp_path, name):
    row, types, expected = HANDMADE[name]
    path = tmp_path / "rows.parquet"
    pl.DataFrame([row], schema_overrides=types).write_parquet(path)
    rows, _ = load(path, preset=name)
    assert [(r["answer"], r["correct"]) for r in rows] == expected
    assert all(r["problem"] == "What is 6 x 7?" for r in rows)
    assert name == "open-r1/DAPO-Math-17k-Processed" or "six" in rows[0]["solution"]
    if "pass_rate_72b_tir" in row:
        assert rows[0]["pass_rate"] == 0.71875


@pytest.mark.parametrize("flags", [([True], [True]), ("yes", "yes")])
def test_a_trace_without_a_flag_of_its_own_is_not_right(tmp_path, flags):
    path = tmp_path / "rows.jsonl"
    given = zip("PQ", (["x", "y"], ["z"]), flags, strict=True)
    lines = [{"problem": p, "answer": 1, "s": traces, "ok": flag} for p, traces, flag in given]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows, _ = load(path, columns=Columns(solution="s", correct="ok"))
    assert [(r["solution"], r["correct"]) for r in rows] == [("x", False), ("y", False), ("z", True)]


def test_a_folder_of_files_is_one_source_and_their_names_tell_the_split(tmp_path):
    for name in ("train-0", "train-1", "test"):
        pl.DataFrame({"problem": [name], "answer": ["1"]}).write_csv(tmp_path / f"{name}.csv")
    (tmp_path / "notes.txt").write_text("no data")
    assert [row["problem"] for row in load(tmp_path)[0]] == ["train-0", "train-1"]
    assert load(tmp_path, split="test")[0][0]["problem"] == "test"


OPENR1 = {
    "all": "all/train-00000-of-00001.parquet",
    "default": "data/train-00000-of-00001.parquet",
    "extended": "extended/train-00000-of-00001.parquet",
}


def copy_of_openr1(folder, header=None):
    """A folder in the layout of OpenR1-Math-220k: three subsets of one split."""
    for name, path in OPENR1.items():
        (folder / path).parent.mkdir(parents=True)
        pl.DataFrame({"problem": [name], "answer": ["1"]}).write_parquet(folder / path)
    if header:
        text = yaml.safe_dump({"language": "en", "configs": header}, sort_keys=False)
        (folder / "README.md").write_text(f"---\n{text}---\n# OpenR1\n")
    return folder


HEADERS = {
    "none": None,
    "splits": [
        {"config_name": name, "data_files": [{"split": "train", "path": f"{path.split('/')[0]}/train-*"}]}
        for name, path in OPENR1.items()
    ],
    "pattern": [{"config_name": name, "data_files": path} for name, path in OPENR1.items()],
}


@pytest.mark.parametrize("header", HEADERS)
def test_the_subset_of_a_local_copy_is_read_and_no_other(tmp_path, header):
    folder = copy_of_openr1(tmp_path / "openr1", HEADERS[header])
    for subset in OPENR1:
        assert [row["problem"] for row in load(folder, subset=subset)[0]] == [subset]
    assert [row["problem"] for row in load(folder)[0]] == ["default"]
    for key in ("subset", "split"):
        with pytest.raises(AimoError, match=rf"data\.sft\.{key}: .* has no 'medium'; it has .*(all|train)"):
            load(folder, **{key: "medium"})


def test_a_preset_takes_its_own_subset_and_split_of_a_local_copy(tmp_path):
    folder = tmp_path / "reasoning" / "data"
    folder.mkdir(parents=True)
    for split in ("cot", "tir"):
        table = pl.DataFrame([NVIDIA | {"problem": split}])
        table.write_parquet(folder / f"{split}-00000-of-00001.parquet")
    rows, _ = load(folder.parent, preset="nvidia/OpenMathReasoning")
    assert [row["problem"] for row in rows] == ["cot"]
    assert load(folder.parent, preset="nvidia/OpenMathReasoning", split="tir")[0][0]["problem"] == "tir"


def test_a_folder_of_several_subsets_asks_which_one_and_a_file_has_none(tmp_path):
    for name in ("easy", "hard"):
        (tmp_path / name).mkdir()
        pl.DataFrame({"problem": [name], "answer": ["1"]}).write_csv(tmp_path / name / "rows.csv")
    with pytest.raises(AimoError, match=r"data\.sft\.subset: .* has easy, hard; name one"):
        load(tmp_path)
    for key in ("subset", "split", "revision"):
        with pytest.raises(AimoError, match=rf"data\.sft\.{key}: .*rows\.csv .*leave the key out"):
            load(tmp_path / "easy" / "rows.csv", **{key: "x"})
    for header in ("configs: [{data_files: [", "configs: [5]", "configs: [{data_files: {train: 5}}]"):
        (tmp_path / "README.md").write_text(f"---\n{header}\n---\n")
        with pytest.raises(AimoError, match=r"README\.md: the `configs` of its header"):
            load(tmp_path)


def test_a_dataset_that_the_hub_does_not_give_is_told_in_our_words(monkeypatch):
    import datasets

    def refuse(*arguments, **keys):
        assert (arguments, keys) == (("a/b", "x"), {"split": "s", "revision": "r"})
        raise RuntimeError("BuilderConfig 'x' not found at https://hub/a/b?token=secret")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    told = r"^data\.sft\.source: 'a/b' is no file here.*subset x, split s, revision r.*HF_TOKEN"
    with pytest.raises(AimoError, match=told) as e:
        load("a/b", subset="x", split="s", revision="r")
    assert "secret" not in str(e.value)


def test_a_folder_saved_by_datasets_is_a_source(tmp_path):
    import datasets

    whole = datasets.Dataset.from_dict({"problem": ["P"], "answer": [7], "more": [1]})
    whole.save_to_disk(str(tmp_path / "one"))
    shutil.copy(
        tmp_path / "one/data-00000-of-00001.arrow", tmp_path / "one/cache-0f.arrow"
    )  # as `map` leaves
    datasets.DatasetDict({"dev": whole}).save_to_disk(str(tmp_path / "many"))
    assert (
        load(tmp_path / "one", split="train")[0]
        == load(tmp_path / "one")[0]
        == [r | {"source": str(tmp_path / "one")} for r in load(tmp_path / "many", split="dev")[0]]
    )
    with pytest.raises(AimoError, match=r"data\.sft\.split: .*many has no 'test'; it has dev"):
        load(tmp_path / "many", split="test")


def test_a_corrupt_line_is_refused_or_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"problem": "P", "answer": 1}\n{"problem": \n\n[1]\n')
    with pytest.raises(AimoError, match="line 2 is not a JSON object"):
        load(path)
    rows, lost = load(path, corrupt_lines="skip")
    assert len(rows) == 1 and lost.dropped == {"corrupt line": 2}


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("none.jsonl", None, "does not exist"),
        ("other.jsonl", '{"a": 1}\n', "no column 'problem'; it has a"),
        ("nested.jsonl", '{"problem": [["deep"]], "answer": 1}\n', "not text"),
    ],
)
def test_a_bad_source_is_refused_by_name_in_one_line(tmp_path, name, content, told):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(AimoError) as e:
        load(tmp_path / name)
    assert told in str(e.value) and "data.sft" in str(e.value) and "\n" not in str(e.value)
    assert not re.search("polars|File out of spec|CSV|EOF", str(e.value))  # a library's own words


@pytest.mark.parametrize(
    "row, keys, told",
    [
        ({"talk": ["hi"]}, {"columns": Columns(messages="talk")}, "columns.messages: .* lists in 'talk'"),
        ({"tests": ["x"]}, {"columns": Columns(verification_info="tests")}, "verification_info: .* lists in"),
        ({"generation": "x", "complete": True}, {"preset": "aimo distil"}, "preset: .* no column 'key'"),
    ],
)
def test_a_column_that_does_not_fit_its_role_is_refused_by_the_key(tmp_path, row, keys, told):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"problem": "P", "answer": 1} | row) + "\n")
    with pytest.raises(AimoError, match=rf"^data\.sft\..*{told}"):
        load(tmp_path / "rows.jsonl", **keys)


def test_a_folder_without_data_and_an_unknown_preset_are_refused(tmp_path):
    with pytest.raises(AimoError, match="found none"):
        load(tmp_path)
    with pytest.raises(AimoError, match="openai/gsm8k"):
        load(tmp_path, preset="openai/gsm9k")


def files(tmp_path, **sizes):
    """Files of numbered problems, one for each name."""
    for name, size in sizes.items():
        table = pl.DataFrame(
            {"problem": [f"{name} {i}" for i in range(size)], "answer": ["1"] * size, "work": ["w"] * size}
        )
        table.write_csv(tmp_path / f"{name}.csv")
    return [tmp_path / f"{name}.csv" for name in sizes]


def test_a_mixture_takes_each_source_by_its_weight_and_shuffles_by_the_seed(tmp_path):
    a, b = files(tmp_path, a=100, b=40)
    mixture = Set(mixture=[Source(str(a), weight=0.25), Source(str(b), weight=0.5)])
    rows, _ = sources.load_mixture(mixture, 3, "data.sft")
    origins = [problem[0] for problem in rows["problem"]]
    assert (origins.count("a"), origins.count("b")) == (25, 20) and origins != sorted(origins)
    assert rows.equals(sources.load_mixture(mixture, 3, "data.sft")[0]) and not rows.equals(
        sources.load_mixture(mixture, 4, "data.sft")[0]
    )


def test_a_mixture_of_unequal_columns_is_refused_by_name(tmp_path):
    a, b = files(tmp_path, a=3, b=3)
    with pytest.raises(AimoError, match=r"a\.csv has the column solution and .*b\.csv has not"):
        sources.load_mixture(
            Set(mixture=[Source(str(a), columns=Columns(solution="work")), Source(str(b))]), 0, "data.sft"
        )


@pytest.mark.parametrize("answer", ["answer", "Final_Answer", None])
def test_a_solution_beside_a_problem_is_imitated_without_a_key(tmp_path, answer):
    path = tmp_path / "own.jsonl"
    for name in ("solution", "Solution", " response ", "output", "generation", "completion"):
        row = {"Problem": "6 x 7?", name: "It is \\boxed{42}"} | ({answer: "42"} if answer else {})
        path.write_text(json.dumps(row) + "\n")
        (found,), _ = load(path)
        assert (found["problem"], found["solution"]) == ("6 x 7?", row[name])
        assert found["answer"] == ("42" if answer else row[name])
        if answer:  # GRPO needs no solution
            (found,) = sources.load_source(Source(str(path)), 0, "data.grpo")[0].to_dicts()
            assert found["solution"] is None


# ---- conversations, as a problem and its solution

REPLY = "six sevens: \\boxed{42}"
CHAT = [{"role": "user", "content": ASK}, {"role": "assistant", "content": REPLY}]
SHAREGPT = [{"from": "human", "value": ASK}, {"from": "gpt", "value": REPLY}]
THOUGHT = f"<think>\nI multiply\n</think>\n\n{REPLY}"


def spoken(path, *rows, columns=None):
    if rows:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, notes = sources.load_source(Source(str(path), columns=columns), 0, "data.sft")
    return [(row["problem"], row["solution"]) for row in found.to_dicts()], notes


THINKING = {"type": "thinking", "thinking": "I multiply"}
PART, SAID = {"type": "text", "text": ASK}, {"type": "text", "text": REPLY}


def asking(content):
    return {"role": "user", "content": content}


def reply(**keys):
    return [CHAT[0], {"role": "assistant"} | keys]


CHATS = {
    "texts as parts": ({"messages": [asking([ASK]), *reply(content=[REPLY[:4], REPLY[4:]])[1:]]}, REPLY),
    "messages": ({"messages": CHAT}, REPLY),
    "ShareGPT": ({"conversations": SHAREGPT}, REPLY),
    "ShareGPT with a system turn": ({"conversations": [{"from": "system", "value": "s"}, *SHAREGPT]}, REPLY),
    "JSON": ({"messages": json.dumps(CHAT)}, REPLY),
    "Python, as pandas writes it": ({"messages": str(CHAT)}, REPLY),
    "an object that holds it": ({"conversation": {"messages": CHAT, "id": 1}}, REPLY),
    "columns": ({"messages": {"role": ["user", "assistant"], "content": [ASK, REPLY]}}, REPLY),
    "prompt and completion": ({"prompt": CHAT[:1], "completion": CHAT[1:]}, REPLY),
    "prompt and completion as texts": ({"prompt": ASK, "completion": REPLY}, REPLY),
    "reasoning_content": ({"messages": reply(reasoning_content="I multiply", content=REPLY)}, THOUGHT),
    "thinking": ({"messages": reply(thinking="I multiply", content=REPLY)}, THOUGHT),
    "reasoning": ({"messages": reply(reasoning="I multiply\n", content=REPLY)}, THOUGHT),
    "a thought as a part": ({"messages": [asking([PART]), *reply(content=[THINKING, SAID])[1:]]}, THOUGHT),
    "a thought in both places": ({"messages": reply(reasoning="I multiply", content=THOUGHT)}, THOUGHT),
    "parts": ({"messages": [asking([PART]), *reply(content=[SAID])[1:]]}, REPLY),
    "a prompt alone": ({"prompt": CHAT[:1], "answer": "42"}, None),
    "an empty thought": ({"messages": reply(thinking="", content=REPLY)}, REPLY),
}  # fmt: skip


@pytest.mark.parametrize("form", CHATS)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_conversation_is_known_by_its_columns_and_read(tmp_path, form, kind):
    row, solution = CHATS[form]
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pl.DataFrame([row]).write_parquet(path)
    rows, notes = spoken(path, *[row] * (kind == "jsonl"))
    assert rows == [(ASK, solution)] and not notes.dropped


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
LEFT_OUT = {
    "of several turns": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, *CHAT],
    "of several turns ": [*CHAT, CHAT[0]],
    "of several turns  ": [*CHAT, CHAT[1]],
    "with calls of tools": [CHAT[0], CALL, {"role": "tool", "content": "42"}, CHAT[1]],
    "with calls of tools ": [*SHAREGPT[:1], {"from": "function_call", "value": "{}"}, SHAREGPT[1]],
    "without a question": [{"role": "system", "content": "s"}, CHAT[1]],
    "with the role 'narrator'": [*CHAT, {"role": "narrator", "content": "x"}],
    "with a part of the type 'image_url'": [asking([PART, {"type": "image_url", "image_url": "x"}])],
    "that cannot be read": "[{'role': 'user', 'conte",
}


@pytest.mark.parametrize("fault", LEFT_OUT)
def test_a_conversation_that_is_no_single_question_is_left_out_and_its_reason_counted(tmp_path, fault):
    rows, notes = spoken(tmp_path / "rows.jsonl", {"messages": CHAT}, {"messages": LEFT_OUT[fault]})
    assert rows == [(ASK, REPLY)] and notes.dropped == {f"conversation {fault.strip()}": 1}


def test_a_thought_in_its_own_field_is_trained_and_the_card_counts_the_rest(tmp_path, tokenizer):  # noqa: F811
    talks = [reply(reasoning_content="I multiply", content=REPLY), LEFT_OUT["of several turns"]]
    talks.append([asking("a\fb"), CHAT[1]])
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
        spoken(path, {"dialog": CHAT})
    assert spoken(path, columns=Columns(messages="dialog"))[0] == [(ASK, REPLY)]


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
        spoken(tmp_path)
