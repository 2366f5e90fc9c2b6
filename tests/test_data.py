"""Preparing the sets: what each step drops and keeps, and what is saved."""

import json

import polars as pl
import pytest
import yaml
from conftest import TINY

from aimo import config
from aimo.data import prepare
from aimo.errors import AimoError
from aimo.inference import model_folder

ROWS = [
    {"question": "What is 1 + 1?", "reply": "1 + 1 = <<1+1=2>>2\n#### 2"},
    {"question": "What is 1 + 1?", "reply": "Again.\n#### 2"},
    {"question": "What is 1 / 2?", "reply": "Half.\n#### 0.5"},
    {"question": " ", "reply": "Nothing.\n#### 1"},
    {"question": "What is 500 + 500?", "reply": "500 + 500 = 1000\n#### 1,000"},
    {"question": "Count " + "on " * 2000, "reply": "…\n#### 3"},
]


def profile(tmp_path, source, **columns):
    """The tiny profile with its SFT rows from a file."""
    values = yaml.safe_load((config.PROFILES / "tiny.yaml").read_text())
    values["data"]["sft"] = {"source": str(source), "columns": columns}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    return config.load(path)


@pytest.fixture(scope="module")
def tokenizer():
    return model_folder.load_chat_tokenizer(TINY)


def prepared(p, tokenizer):
    """The sets of a profile, cleaned and decontaminated."""
    return prepare.decontaminate_sets(prepare.clean_sets(prepare.load_sets(p), p, tokenizer), p)


def every_row_is_accounted_for(sets):
    return all(sets.read[name] == len(sets.rows[name]) + sets.dropped[name].total() for name in prepare.SETS)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_rows_of_a_file_are_mapped_cleaned_and_every_drop_is_counted(tmp_path, tokenizer, suffix):
    path = tmp_path / f"rows.{suffix}"
    table = pl.DataFrame(ROWS)
    {"jsonl": table.write_ndjson, "csv": table.write_csv, "parquet": table.write_parquet}[suffix](path)
    sets = prepared(profile(tmp_path, path, problem="question", answer="reply", solution="reply"), tokenizer)
    assert sets.rows["sft"].select("answer", "solution").rows() == [
        ("2", "1 + 1 = 2"),
        ("1000", "500 + 500 = 1000"),
    ]
    assert sets.dropped["sft"] == {
        "duplicate": 1,
        "answer is not an integer": 1,
        "no problem text": 1,
        "longer than 1024 tokens": 1,
    }
    assert every_row_is_accounted_for(sets)


def with_sft(tmp_path, tokenizer, rows, **keys):
    """The SFT set of these rows under some keys, and what was dropped."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"answer": 1, "solution": "work"} | row) + "\n" for row in rows))
    columns = {"solution": "solution"} | {
        key: key for key in ("kind", "pass_rate", "correct") if key in rows[0]
    }
    values = yaml.safe_load((config.PROFILES / "tiny.yaml").read_text())
    values["data"]["sft"] = {"source": str(path), "columns": columns, **keys}
    sets = prepared(config.parse(values, "profile"), tokenizer)
    assert every_row_is_accounted_for(sets)
    return sets.rows["sft"]["problem"].to_list(), dict(sets.dropped["sft"])


PLAIN = {"problem": "Find the number of apples."}
LONG = {"problem": "Count on. " * 30}
CHOICE = {"problem": "What is 2 + 2? (A) 3 (B) 4 (C) 5 (D) 6"}
PROOF = {"problem": "Prove that every even number is the sum of two primes."}
FRENCH = {"problem": "Trouver tous les entiers positifs qui divisent la somme de deux cubes consécutifs."}


@pytest.mark.parametrize(
    "keys, row, reason",
    [
        ({}, {"problem": "P", "answer": "x + 1"}, "answer is not an integer"),
        ({"integer_answers": False}, {"problem": "P", "answer": None}, "no answer"),
        ({"integer_answers": False}, {"problem": "P", "answer": "NaN"}, "no answer"),
        ({"integer_answers": False}, {"problem": "P", "answer": float("nan")}, "no answer"),
        ({"answer_range": [0, 999]}, {"problem": "P", "answer": 1000}, "answer is not within 0 to 999"),
        ({"max_tokens": 100}, LONG, "longer than 100 tokens"),
        ({"token_quantile": 0.5}, LONG, "longer than 15 tokens"),
        ({"language": "en"}, FRENCH, "language is not en"),
        ({"drop": ["multiple_choice"]}, CHOICE, "multiple choice"),
        ({"drop": ["proof"]}, PROOF, "proof"),
        (
            {"near_duplicates": 0.7},
            {"problem": "Find the number  of apples!"},
            "nearly the same text as another",
        ),
        ({}, {"problem": "FIND the number of\napples."}, "duplicate"),
        ({}, {"problem": "P", "solution": ""}, "no worked solution"),
    ],
)
def test_each_step_drops_its_kind_and_counts_it(tmp_path, tokenizer, keys, row, reason):
    kept, dropped = with_sft(tmp_path, tokenizer, [PLAIN, row], **keys)
    assert kept == [PLAIN["problem"]] and dropped == {reason: 1}


@pytest.mark.parametrize("row", [LONG, CHOICE, PROOF, FRENCH])
def test_without_its_key_a_step_drops_nothing(tmp_path, tokenizer, row):
    assert with_sft(tmp_path, tokenizer, [PLAIN, row]) == ([PLAIN["problem"], row["problem"].strip()], {})


@pytest.mark.parametrize(
    "keys, row",
    [
        ({"drop": ["proof"]}, {"problem": "Show that n is prime and find n."}),
        ({"near_duplicates": 0.7}, {"problem": "Find the number of 2 apples."}),
        ({"language": "en"}, {"problem": "Find $\\sum_{i=1}^{n} i^2$."}),
        ({"answer_range": [0, 999]}, {"problem": "P", "answer": "0"}),
    ],
)
def test_a_step_keeps_rows_that_only_resemble_what_it_drops(tmp_path, tokenizer, keys, row):
    assert with_sft(tmp_path, tokenizer, [PLAIN, row], **keys)[1] == {}


def test_columns_tell_kind_and_pass_rate(tmp_path, tokenizer):
    rows = [
        {"problem": f"P{i}", "kind": kind, "pass_rate": rate}
        for i, (kind, rate) in enumerate([("MCQ", 0.5), ("proof", 0.5), ("x", 0.5), ("x", 0.9), ("x", None)])
    ]
    kept, dropped = with_sft(
        tmp_path, tokenizer, rows, drop=["multiple_choice", "proof"], pass_rate=[0.1, 0.6]
    )
    assert kept == ["P2"] and dropped == {
        "multiple choice": 1,
        "proof": 1,
        "pass rate is not within 0.1 to 0.6": 2,
    }


TRACES = [
    {"problem": "P", "solution": "\\boxed{2}", "correct": False},  # the wrong one comes first
    {"problem": "P", "solution": "a long way to it, \\boxed{1}", "correct": True},
    {"problem": "P", "solution": "short: \\boxed{1}", "correct": True},
]


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("traces, kept", [("first", [1]), ("shortest", [2]), ("all", [1, 2])])
def test_one_right_trace_a_problem_or_all_with_and_without_a_verdict(tmp_path, tokenizer, traces, kept, told):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row | {"answer": 1}) + "\n" for row in TRACES))
    values = yaml.safe_load((config.PROFILES / "tiny.yaml").read_text())
    columns = {"solution": "solution"} | ({"correct": "correct"} if told else {})
    values["data"]["sft"] = {"source": str(path), "columns": columns, "traces": traces}
    sets = prepared(config.parse(values, "profile"), tokenizer)
    assert sets.rows["sft"]["solution"].to_list() == [TRACES[i]["solution"] for i in kept]


def test_without_a_verdict_a_solution_is_judged_by_its_final_answer_if_it_has_one(tmp_path, tokenizer):
    rows = [
        {"problem": "P", "solution": "By symmetry."},
        {"problem": "Q", "solution": r"So \boxed{\frac{2}{2}}."},
        {"problem": "R", "solution": r"So \boxed{2}."},
    ]
    kept, dropped = with_sft(tmp_path, tokenizer, rows)
    assert kept == ["P", "Q"] and dropped == {"solution ends in another answer": 1}


def test_the_verdict_of_a_column_stands_whatever_the_final_answer(tmp_path, tokenizer):
    rows = [{"problem": p, "solution": r"So \boxed{2}.", "correct": p == "P"} for p in "PQ"]
    kept, dropped = with_sft(tmp_path, tokenizer, rows)
    assert kept == ["P"] and dropped == {"solution not right or not complete": 1}


def test_a_long_answer_that_is_the_gold_answers_text_is_right(tmp_path, tokenizer):
    answer = " + ".join(f"x_{{{i}}}" for i in range(150))
    row = {"problem": "P", "answer": answer, "solution": rf"\boxed{{{answer}}}"}
    kept, _ = with_sft(tmp_path, tokenizer, [row], integer_answers=False, overlong="truncate")
    assert kept == ["P"]


def test_overlong_rows_stay_for_the_trainer_to_cut_but_not_those_over_max_tokens(tmp_path, tokenizer):
    long = {"problem": "Count.", "solution": "on and on " * 2000}
    assert with_sft(tmp_path, tokenizer, [PLAIN, long])[1] == {"longer than 1024 tokens": 1}
    assert with_sft(tmp_path, tokenizer, [PLAIN, long], overlong="truncate")[1] == {}
    limited = with_sft(tmp_path, tokenizer, [PLAIN, long], overlong="truncate", max_tokens=100)
    assert limited == ([PLAIN["problem"]], {"longer than 100 tokens": 1})


@pytest.mark.parametrize("names", [("sft",), ("grpo",), ("heldout", "sft"), ("heldout", "grpo")])
def test_a_profile_may_have_some_of_the_sets_only(tmp_path, tokenizer, names):
    values = yaml.safe_load((config.PROFILES / "tiny.yaml").read_text())
    for name in {"heldout", "grpo", "sft"} - set(names):
        del values["data"][name]
        values.pop(name, None)
    p = config.parse(values, "profile")
    sets = prepared(p, tokenizer)
    assert tuple(sets.rows) == names
    prepare.write_sets(prepare.format_sets(sets, p), sets, p, tmp_path)
    assert len(prepare.read_set(tmp_path, names[-1])) > 900
    assert ("sft" in names) == bool(prepare.read_set(tmp_path, "sft"))


def test_saving_again_leaves_nothing_of_the_sets_before(tmp_path, tokenizer):
    for share in (0.1, 0.0):
        p = config.load("tiny", [f"data.sft.test_split={share}"])
        sets = prepared(p, tokenizer)
        prepare.write_sets(prepare.format_sets(sets, p), sets, p, tmp_path)
        assert bool(prepare.set_aside(tmp_path, "sft")) == bool(share)


@pytest.mark.parametrize(
    "override",
    [
        "data.grpo.traces=all",
        "data.grpo.verbatim=true",
        "data.heldout.overlong=truncate",
        "data.heldout.empty_thoughts=0.5",
        "data.heldout.test_split=0.1",
    ],
)
def test_a_key_that_would_have_no_effect_is_refused_by_name(override):
    with pytest.raises(AimoError) as e:
        config.load("tiny", [override])
    assert override.split("=")[0] in str(e.value)


def test_programming_problems_keep_their_test_cases_and_need_no_answer(tmp_path, tokenizer):
    tests = {"language": "python", "test_cases": [{"input": "1", "output": "2", "type": "stdin_stdout"}]}
    path = tmp_path / "rows.parquet"
    pl.DataFrame([{"task": "Print the next number.", "verification_info": tests}]).write_parquet(path)
    values = yaml.safe_load((config.PROFILES / "tiny.yaml").read_text())
    columns = {"problem": "task", "answer": None, "verification_info": "verification_info"}
    values["data"]["grpo"] = {"source": str(path), "columns": columns}
    values["grpo"]["probe_steps"] = None
    p = config.parse(values, "profile")
    assert json.loads(prepare.format_sets(prepared(p, tokenizer), p)["grpo"]["verification_info"][0]) == tests


def test_a_training_row_with_a_held_out_text_is_dropped(tokenizer):
    p = config.load("tiny")
    sets = prepare.load_sets(p)
    sets.rows["sft"] = pl.concat([sets.rows["heldout"].head(1), sets.rows["sft"].head(5)])
    prepare.clean_sets(sets, p, tokenizer)
    assert sets.dropped["sft"]["same text as in heldout"] == 1
    texts = [set(sets.rows[name]["problem"]) for name in prepare.SETS]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


def test_rows_that_share_words_with_a_benchmark_are_dropped_and_shown(tmp_path, tokenizer):
    exam = "Let n be the number of ways to seat nine people at a round table."
    (tmp_path / "exam.csv").write_text(f"problem,answer\n{exam},1\n")
    (tmp_path / "rows.csv").write_text(
        f"problem,answer,solution\nHard. {exam} Find n.,1,w\nWhat is 1 + 1?,2,w\n"
    )
    values = yaml.safe_load((config.PROFILES / "tiny.yaml").read_text())
    values["data"]["sft"] = {"source": str(tmp_path / "rows.csv"), "columns": {"solution": "solution"}}
    values["data"]["decontaminate"] = [{"source": str(tmp_path / "exam.csv")}]
    sets = prepared(config.parse(values, "profile"), tokenizer)
    assert sets.rows["sft"]["problem"].to_list() == ["What is 1 + 1?"]
    assert sets.dropped["sft"] == {"shares words with an evaluation set": 1}
    assert sets.contaminated == [
        {
            "set": "sft",
            "problem": f"Hard. {exam} Find n.",
            "benchmark": str(tmp_path / "exam.csv"),
            "overlap": "let n be the number of ways to",
        }
    ]


def test_held_out_problems_of_a_file_decontaminate_too(tmp_path, tokenizer, shared):
    values = yaml.safe_load((config.PROFILES / "tiny.yaml").read_text())
    values["data"]["heldout"] = {
        "source": str(shared / "gsm8k/test.jsonl"),
        "rows": 50,
        "columns": {"problem": "question"},
    }
    values["grpo"]["max_prompt_length"] = 900
    p = config.parse(values, "profile")
    sets = prepare.load_sets(p)
    copy = (
        sets.rows["heldout"].head(1).with_columns(problem="Again: " + pl.col("problem"), solution=pl.lit("w"))
    )
    sets.rows["sft"] = pl.concat([copy, sets.rows["sft"]])
    prepare.decontaminate_sets(prepare.clean_sets(sets, p, tokenizer), p)
    assert [row["benchmark"] for row in sets.contaminated if row["set"] == "sft"] == ["heldout"]


def test_the_share_of_empty_thoughts_is_the_profiles(tokenizer):
    p = config.load("tiny")
    texts = [row[0]["content"] for row in prepare.format_sets(prepared(p, tokenizer), p)["sft"]["completion"]]
    empty = sum(text.startswith(p.prompt.think_start + p.prompt.think_end) for text in texts) / len(texts)
    assert abs(empty - p.data.sft.empty_thoughts) < 0.05


def test_an_answer_in_a_box_keeps_its_braces(tokenizer):
    p = config.load("tiny", ['prompt.answer_start="\\\\boxed{"', 'prompt.answer_end="}"'])
    rows = prepare.format_sets(prepared(p, tokenizer), p)["sft"]
    golds = prepared(p, tokenizer).rows["sft"]["answer"]
    for reply, gold in zip(rows["completion"].head(20), golds, strict=False):
        assert reply[0]["content"].endswith(f"{p.prompt.think_end}\\boxed{{{gold}}}")


def test_the_same_seed_gives_the_same_bytes(tmp_path, tokenizer):
    for folder in ("a", "b"):
        p = config.load("tiny", ["data.grpo.test_split=0.1"])
        sets = prepared(p, tokenizer)
        prepare.write_sets(prepare.format_sets(sets, p), sets, p, tmp_path / folder)
    names = {"README.md", "sft.parquet", "grpo.parquet", "grpo_test.parquet", "heldout.parquet"}
    assert {file.name for file in (tmp_path / "a").iterdir()} == names
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_datasets_loads_what_was_saved_and_the_card_adds_up(tmp_path, tokenizer):
    import datasets

    p = config.load("tiny", ["data.sft.test_split=0.2"])
    sets = prepared(p, tokenizer)
    ready = prepare.format_sets(sets, p)
    digest = prepare.write_sets(ready, sets, p, tmp_path / "data")
    for name, rows in ready.items():
        loaded = datasets.load_dataset(
            str(tmp_path / "data"), name, split="train", cache_dir=str(tmp_path / "cache")
        )
        assert loaded.to_list() == prepare.read_set(tmp_path / "data", name) == rows.to_dicts() != []
    card = (tmp_path / "data" / "README.md").read_text()
    assert (
        digest in card
        and f"| | sft_test | {len(ready['sft_test'])} |" in card
        and "| sft | read from builtin | 1,000 |" in card
    )


def test_a_test_split_shares_no_problem_with_what_is_left(tmp_path, tokenizer):
    p = config.load("tiny", ["data.sft.test_split=0.2", "data.sft.traces=all"])
    sets = prepared(p, tokenizer)
    sets.rows["sft"] = pl.concat(
        [sets.rows["sft"], sets.rows["sft"].with_columns(solution=pl.lit("another"))]
    )
    ready = prepare.format_sets(sets, p)
    problems = [{row[0]["content"] for row in ready[name]["prompt"]} for name in ("sft", "sft_test")]
    assert not problems[0] & problems[1] and len(problems[1]) == round(0.2 * len(problems[0] | problems[1]))


def test_gsm8k_by_profile_alone(tmp_path, tokenizer, shared):
    p = profile(
        tmp_path, shared / "gsm8k" / "train.jsonl", problem="question", answer="answer", solution="answer"
    )
    sets = prepared(p, tokenizer)
    assert sets.read["sft"] == 7473 and every_row_is_accounted_for(sets)
    golds = [
        json.loads(line)["answer"].split("####")[1].strip().replace(",", "")
        for line in (shared / "gsm8k" / "train.jsonl").read_text().splitlines()
    ]
    assert len(sets.rows["sft"]) > 7000 and set(sets.rows["sft"]["answer"]) <= {str(int(g)) for g in golds}
    assert not sets.rows["sft"]["solution"].str.contains("<<|####").any()


def test_a_cell_of_ten_megabytes_is_dropped_and_counted(tmp_path, tokenizer):
    kept, dropped = with_sft(
        tmp_path,
        tokenizer,
        [PLAIN, {"problem": "What is 1 + 1?" + " or" * 3_500_000}, {"problem": "P", "solution": "9" * 10**7}],
    )
    assert kept == [PLAIN["problem"]] and dropped == {"longer than 1024 tokens": 2}


@pytest.mark.parametrize(
    "content, told",
    [
        ("{oops\n", "line 1 is not a JSON object"),
        ('{"question": "Q", "reply": "no number"}\n', "1 answer is not an integer"),
        ('{"question": "Q"}\n', "no column 'reply'"),
    ],
)
def test_a_bad_set_is_refused_by_name_in_one_line(tmp_path, tokenizer, content, told):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    p = profile(tmp_path, path, problem="question", answer="reply", solution="reply")
    with pytest.raises(AimoError) as e:
        prepared(p, tokenizer)
    assert told in str(e.value) and "data.sft" in str(e.value) and "\n" not in str(e.value)
