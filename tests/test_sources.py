"""Reading sources: columns, presets, folders, the hub, conversations, and what is refused."""

import json
import shutil

import polars as pl
import pytest
from conftest import lines
from test_data import saved, tokenizer  # noqa: F401 a fixture

from aimo import config
from aimo.config import Columns, Set, Source
from aimo.data import sources
from aimo.inference.errors import AimoError

ASK, TRACE = "What is 6 x 7?", "six sevens"
BOXED = r"<think>six sevens</think> \boxed{42}"
TALK = [{"role": "user", "content": ASK}, {"role": "assistant", "content": BOXED}]
NVIDIA = {
    "expected_answer": "42", "problem_type": "has_answer_extracted", "pass_rate_72b_tir": "0.71875",
    "generated_solution": BOXED, "inference_mode": "cot", "problem": ASK,
}  # fmt: skip
KEPT = {"problem": ASK, "answer": "42", "generation": TRACE}
HANDMADE = {  # a row of each set
    "aimo distil": KEPT | {"key": "0f", "sample": 0, "complete": True},
    "aimo reject": KEPT | {"correct": True, "pass_rate": 0.5},
    "open-r1/OpenR1-Math-220k": {
        "problem": ASK, "solution": "It is 42.", "answer": "42", "question_type": "math-word-problem",
        "is_reasoning_complete": [True, False], "correctness_math_verify": [True, False],
        "generations": [BOXED, "<think>six"], "correctness_llama": None, "messages": TALK,
    },
    "open-r1/Mixture-of-Thoughts": {"messages": TALK, "num_tokens": 20},
    "unsloth/OpenMathReasoning-mini": NVIDIA,
    "nvidia/OpenMathReasoning": NVIDIA | {"used_in_kaggle": True},
    "open-r1/DAPO-Math-17k-Processed": {"prompt": ASK, "solution": "42", "source_prompt": TALK[:1]},
    "AI-MO/NuminaMath-1.5": {
        "problem": ASK, "solution": TRACE, "answer": "42", "question_type": "math-word-problem",
        "problem_is_valid": "Yes", "solution_is_valid": "Incomplete",
    },
    "GAIR/LIMO": {"question": ASK, "solution": TRACE, "answer": "42"},
    "simplescaling/s1K-1.1": {"solution": "42", "question": ASK, "deepseek_thinking_trajectory": TRACE},
    "openai/gsm8k": {"question": ASK, "answer": "six sevens\n#### 42"},
}  # fmt: skip
VERDICTS = {  # answer and verdict; of others ("42", None)
    "aimo reject": [("42", True)],
    "open-r1/OpenR1-Math-220k": [("42", True), ("42", False)],
    "open-r1/Mixture-of-Thoughts": [(BOXED, None)],
    "AI-MO/NuminaMath-1.5": [("42", False)],
    "openai/gsm8k": [("six sevens\n#### 42", None)],
}


def load(source, where="data.sft", **keys):
    rows, notes = sources.load_source(Source(str(source), **keys), 0, where)
    return rows.to_dicts(), notes


def problems_in(source, **keys):
    return [row["problem"] for row in load(source, **keys)[0]]


@pytest.mark.parametrize("name", sources.PRESETS)
def test_a_preset_reads_its_sets_columns(tmp_path, name):
    rows, _ = load(lines(tmp_path / "rows.jsonl", HANDMADE[name]), preset=name)
    assert [(r["answer"], r["correct"]) for r in rows] == VERDICTS.get(name, [("42", None)])
    assert {r["problem"] for r in rows} == {ASK}
    assert name == "open-r1/DAPO-Math-17k-Processed" or "six" in rows[0]["solution"]
    assert name != "nvidia/OpenMathReasoning" or rows[0]["pass_rate"] == 0.71875


@pytest.mark.parametrize("flags", [([True], [True]), ("yes", "yes")])
def test_a_trace_without_a_flag_of_its_own_is_not_right(tmp_path, flags):
    given = zip("PQ", (["x", "y"], ["z"]), flags, strict=True)
    rows = [{"problem": p, "answer": 1, "s": traces, "ok": flag} for p, traces, flag in given]
    rows, _ = load(lines(tmp_path / "rows.jsonl", *rows), columns=Columns(solution="s", correct="ok"))
    assert [(r["solution"], r["correct"]) for r in rows] == [("x", False), ("y", False), ("z", True)]


def test_traces_in_a_csv_are_lists_and_an_answer_that_is_a_list_is_its_entries(tmp_path):
    row = {"problem": ASK, "answer": 42, "s": json.dumps([TRACE, "no"]), "ok": "[true, false]"}
    pl.DataFrame([row]).write_csv(tmp_path / "rows.csv")
    rows, _ = load(tmp_path / "rows.csv", columns=Columns(solution="s", correct="ok"))
    assert [(r["solution"], r["correct"]) for r in rows] == [(TRACE, True), ("no", False)]
    several = ({"question": "P", "final_answer": answer} for answer in (["3"], ["1", 2, None], []))
    rows, _ = load(lines(tmp_path / "rows.jsonl", *several), "data.grpo")
    assert [r["answer"] for r in rows] == ["3", "1, 2", None]


# ---- folders, subsets and splits

SUBSETS = {"all": "all/train-*", "default": "data/train-*", "extended": "extended/train-*"}
HEADERS = {
    "none": [],
    "splits": [(name, [{"split": "train", "path": path}]) for name, path in SUBSETS.items()],
    "pattern": SUBSETS.items(),
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_the_subset_of_a_local_copy_is_read_and_no_other(tmp_path, header):
    for name, path in SUBSETS.items():
        file = tmp_path / path.replace("*", "00000-of-00001.parquet")
        file.parent.mkdir()
        pl.DataFrame({"problem": [name], "answer": ["1"]}).write_parquet(file)
    configs = [{"config_name": name, "data_files": files} for name, files in header]
    if configs:
        (tmp_path / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n# OpenR1\n")
    for subset in SUBSETS:
        assert problems_in(tmp_path, subset=subset) == [subset]
    assert problems_in(tmp_path) == ["default"]
    for key in ("subset", "split"):
        with pytest.raises(AimoError, match=rf"data\.sft\.{key}: .* has no 'medium'; it has .*(all|train)"):
            load(tmp_path, **{key: "medium"})


def test_names_of_files_tell_the_split_and_a_preset_its_own(tmp_path):
    for name in ("train-0", "train-1", "test"):
        pl.DataFrame({"problem": [name], "answer": ["1"]}).write_csv(tmp_path / f"{name}.csv")
    (tmp_path / "notes.txt").write_text("no data")
    assert problems_in(tmp_path) == ["train-0", "train-1"] and problems_in(tmp_path, split="test") == ["test"]
    folder = tmp_path / "reasoning" / "data"
    folder.mkdir(parents=True)
    for split in ("cot", "tir"):
        table = pl.DataFrame([NVIDIA | {"problem": split}])
        table.write_parquet(folder / f"{split}-00000-of-00001.parquet")
    keys = {"preset": "nvidia/OpenMathReasoning"}
    assert problems_in(folder.parent, **keys) == ["cot"]
    assert problems_in(folder.parent, split="tir", **keys) == ["tir"]


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
    one, many = tmp_path / "one", tmp_path / "many"
    whole.save_to_disk(str(one))
    shutil.copy(one / "data-00000-of-00001.arrow", one / "cache-0f.arrow")  # as `map` leaves
    datasets.DatasetDict({"dev": whole}).save_to_disk(str(many))
    assert problems_in(one, split="train") == problems_in(one) == problems_in(many, split="dev") == ["P"]
    with pytest.raises(AimoError, match=r"data\.sft\.split: .*many has no 'test'; it has dev"):
        load(many, split="test")


# ---- what is refused, by the key


@pytest.mark.parametrize(
    "row, keys, told",
    [
        (None, {}, "source: .* does not exist"),
        (None, {"preset": "openai/gsm9k"}, "preset: .* use one of .*openai/gsm8k"),
        ({"a": 1}, {}, "columns.problem: .* no column 'problem'; it has a"),
        ({"problem": [["deep"]], "answer": 1}, {}, "columns.problem: .*not text"),
        ({"dialog": TALK}, {}, r"columns.problem: .* no column 'problem'; it has dialog: .*\.messages"),
        ({"talk": ["hi"]}, {"columns": Columns(messages="talk")}, "columns.messages: .* lists in 'talk'"),
        ({"tests": ["x"]}, {"columns": Columns(verification_info="tests")}, "verification_info: .* lists in"),
        ({"generation": "x", "complete": True}, {"preset": "aimo distil"}, "preset: .* no column 'key'"),
    ],
)
def test_a_source_or_column_that_does_not_fit_is_refused_by_the_key(tmp_path, row, keys, told):
    if row:
        lines(
            tmp_path / "rows.jsonl",
            ({} if "dialog" in row or "a" in row else {"problem": "P", "answer": 1}) | row,
        )
    with pytest.raises(AimoError, match=rf"^data\.sft\..*{told}"):
        load(tmp_path / "rows.jsonl", **keys)


def test_a_corrupt_line_is_refused_or_counted_and_shards_have_the_same_columns(tmp_path):
    with pytest.raises(AimoError, match="found none"):
        load(tmp_path)
    path = lines(tmp_path / "a.jsonl", {"problem": "P", "answer": 1})
    path.write_text(path.read_text() + '{"problem": \n\n[1]\n')
    with pytest.raises(AimoError, match=r"line 2 is not a JSON object.*corrupt_lines: skip"):
        load(path)
    rows, notes = load(path, corrupt_lines="skip")
    assert len(rows) == 1 and notes.dropped == {"corrupt line": 2}
    lines(tmp_path / "b.jsonl", {"problem": "P"})
    with pytest.raises(AimoError, match=r"b\.jsonl has no column 'answer', which .*a\.jsonl has"):
        load(tmp_path, corrupt_lines="skip")


def test_a_mixture_takes_each_source_by_its_weight_and_shuffles_by_the_seed(tmp_path):
    def numbered(name, size):
        rows = ({"problem": f"{name} {i}", "answer": "1", "work": "w"} for i in range(size))
        return str(lines(tmp_path / f"{name}.jsonl", *rows))

    a, b = numbered("a", 100), numbered("b", 40)
    mixture = Set(mixture=[Source(a, weight=0.25), Source(b, weight=0.5)])
    rows, again, others = (sources.load_mixture(mixture, seed, "data.sft")[0] for seed in (3, 3, 4))
    origins = [problem[0] for problem in rows["problem"]]
    assert (origins.count("a"), origins.count("b")) == (25, 20) and origins != sorted(origins)
    assert rows.equals(again) and not rows.equals(others) and len(load(a, rows=7)[0]) == 7
    mixture = Set(mixture=[Source(a, columns=Columns(solution="work")), Source(b)])
    with pytest.raises(AimoError, match=r"a\.jsonl has the column solution and .*b\.jsonl has not"):
        sources.load_mixture(mixture, 0, "data.sft")


@pytest.mark.parametrize("answer", ["answer", "Final_Answer", None])
@pytest.mark.parametrize("name", ["solution", " response ", "output", "generation", "completion"])
def test_a_solution_beside_a_problem_is_imitated_without_a_key(tmp_path, name, answer):
    row = {"Problem": "6 x 7?", name: "It is \\boxed{42}"} | ({answer: "42"} if answer else {})
    path = lines(tmp_path / "own.jsonl", row)
    (found,), _ = load(path)
    assert (found["problem"], found["solution"]) == ("6 x 7?", row[name])
    assert found["answer"] == ("42" if answer else row[name])
    if answer:  # GRPO needs no solution
        assert load(path, "data.grpo")[0][0]["solution"] is None


# ---- conversations, as a problem and its solution

REPLY = "six sevens: \\boxed{42}"
CHAT = [{"role": "user", "content": ASK}, {"role": "assistant", "content": REPLY}]
SHAREGPT = [{"from": "human", "value": ASK}, {"from": "gpt", "value": REPLY}]
THOUGHT = f"<think>\nI multiply\n</think>\n\n{REPLY}"


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
    pl.DataFrame([row]).write_parquet(path) if kind == "parquet" else lines(path, row)
    (found,), notes = load(path)
    assert (found["problem"], found["solution"]) == (ASK, solution) and not notes.dropped


def test_a_conversation_may_have_another_name(tmp_path):
    (found,), _ = load(lines(tmp_path / "rows.jsonl", {"dialog": CHAT}), columns=Columns(messages="dialog"))
    assert (found["problem"], found["solution"]) == (ASK, REPLY)


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
LEFT_OUT = {
    "of several turns": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, *CHAT],
    "of several turns ": [*CHAT, CHAT[0]],
    "of several turns  ": [*CHAT, CHAT[1]],
    "with calls of tools": [CHAT[0], CALL],
    "with calls of tools ": [*SHAREGPT[:1], {"from": "function_call", "value": "{}"}, SHAREGPT[1]],
    "without a question": [{"role": "system", "content": "s"}, CHAT[1]],
    "with the role 'narrator'": [*CHAT, {"role": "narrator", "content": "x"}],
    "with a part of the type 'image_url'": [asking([PART, {"type": "image_url", "image_url": "x"}])],
    "that cannot be read": "[{'role': 'user', 'conte",
}


@pytest.mark.parametrize("fault", LEFT_OUT)
def test_a_conversation_that_is_no_single_question_is_left_out_and_its_reason_counted(tmp_path, fault):
    (found,), notes = load(lines(tmp_path / "a.jsonl", {"messages": CHAT}, {"messages": LEFT_OUT[fault]}))
    assert found["solution"] == REPLY and notes.dropped == {f"conversation {fault.strip()}": 1}


def test_a_thought_in_its_own_field_is_trained_and_the_card_counts_the_rest(tmp_path, tokenizer):  # noqa: F811
    talks = [reply(reasoning_content="I multiply", content=REPLY), LEFT_OUT["of several turns"]]
    talks.append([asking("a\fb"), CHAT[1]])
    path = lines(tmp_path / "rows.jsonl", *({"messages": talk} for talk in talks))
    ready, _ = saved(config.load("tiny", [f"data.sft={{source: {path}}}"]), tokenizer, tmp_path / "data")
    text = ready["sft"]["completion"][0][0]["content"]
    assert "I multiply" in text and text.endswith("<SOLUTION>42</SOLUTION>")
    card = (tmp_path / "data/README.md").read_text()
    assert "dropped: conversation of several turns | 1 |" in card and "control characters, left" in card
    assert "| sft | read from" in card and "rows.jsonl | 3 |" in card
