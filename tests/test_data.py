"""Preparing the sets: what each step drops and keeps, and what is saved."""

import json
import operator
import random
import re
import zlib

import polars as pl
import pytest
import yaml
from conftest import TINY

from aimo import config
from aimo.data import prepare, sources
from aimo.data.decontaminate import find_overlaps, grams
from aimo.inference import model_folder
from aimo.inference.errors import AimoError

ROWS = [
    {"question": "What is 1 + 1?", "reply": "1 + 1 = <<1+1=2>>2\n#### 2"},
    {"question": "What is 1 + 1?", "reply": "Again.\n#### 2"},
    {"question": "What is 1 / 2?", "reply": "Half.\n#### 0.5"},
    {"question": " ", "reply": "Nothing.\n#### 1"},
    {"question": "What is 500 + 500?", "reply": "500 + 500 = 1000\n#### 1,000"},
    {"question": "Count " + "on " * 2000, "reply": "…\n#### 3"},
]
WORKED = {"problem": "question", "answer": "reply", "solution": "reply"}


@pytest.fixture(scope="module")
def tokenizer():
    return model_folder.read_tokenizer(TINY)


def tiny(**sets):
    """The tiny profile with other keys of `data`; a set that is None is left out, with its stage."""
    values = yaml.safe_load((config.PROFILES / "tiny.yaml").read_text())
    for name, wanted in sets.items():
        values["data"][name] = wanted
        if wanted is None:
            del values["data"][name]
            values.pop(name, None)
    return config.parse(values, "profile")


def prepared(p, tokenizer):
    """The sets of a profile, cleaned and decontaminated."""
    sets = prepare.decontaminate_sets(prepare.clean_sets(prepare.load_sets(p), p, tokenizer), p)
    assert all(sets.read[name] == len(sets.rows[name]) + sets.dropped[name].total() for name in sets.rows)
    return sets


def saved(p, tokenizer, folder):
    """What is made of a profile's sets, and written; and the data's hash."""
    sets = prepared(p, tokenizer)
    ready = prepare.format_sets(sets, p)
    return ready, prepare.write_sets(ready, sets, p, folder)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_rows_of_a_file_are_mapped_cleaned_and_every_drop_is_counted(tmp_path, tokenizer, suffix):
    path, table = tmp_path / f"rows.{suffix}", pl.DataFrame(ROWS)
    {"jsonl": table.write_ndjson, "csv": table.write_csv, "parquet": table.write_parquet}[suffix](path)
    sets = prepared(tiny(sft={"source": str(path), "columns": WORKED}), tokenizer)
    assert sets.rows["sft"].select("answer", "solution").rows() == [
        ("2", "1 + 1 = 2"), ("1000", "500 + 500 = 1000")
    ]  # fmt: skip
    assert sets.dropped["sft"] == {
        "duplicate": 1, "answer is not an integer": 1, "no problem text": 1, "longer than 1024 tokens": 1
    }  # fmt: skip


def with_sft(tmp_path, tokenizer, rows, name="problem", **keys):
    """A column of the SFT set of these rows under some keys, and what was dropped."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"answer": 1, "solution": "work"} | row) + "\n" for row in rows))
    told = [key for key in ("kind", "pass_rate", "correct") if key in rows[0]]
    columns = {key: key for key in ("solution", *told)}
    sets = prepared(tiny(sft={"source": str(path), "columns": columns, **keys}), tokenizer)
    return sets.rows["sft"][name].to_list(), dict(sets.dropped["sft"])


PLAIN = {"problem": "Find the number of apples."}
LONG = {"problem": "Count on. " * 30}
CHOICE = {"problem": "What is 2 + 2? (A) 3 (B) 4 (C) 5 (D) 6"}
PROOF = {"problem": "Prove that every even number is the sum of two primes."}
FRENCH = {"problem": "Trouver tous les entiers positifs qui divisent la somme de deux cubes consécutifs."}
NEAR = {"problem": "Find the number  of apples!"}
ANY = {"integer_answers": False}


@pytest.mark.parametrize(
    "keys, row, reason",
    [
        ({}, {"problem": "P", "answer": "x + 1"}, "answer is not an integer"),
        (ANY, {"problem": "P", "answer": None}, "no answer"),
        (ANY, {"problem": "P", "answer": "NaN"}, "no answer"),
        (ANY, {"problem": "P", "answer": float("nan")}, "no answer"),
        ({"answer_range": [0, 999]}, {"problem": "P", "answer": 1000}, "answer is not within 0 to 999"),
        ({"max_tokens": 100}, LONG, "longer than 100 tokens"),
        ({"language": "en"}, FRENCH, "language is not en"),
        ({"drop": ["multiple_choice"]}, CHOICE, "multiple choice"),
        ({"drop": ["proof"]}, PROOF, "proof"),
        ({"near_duplicates": 0.7}, NEAR, "nearly the same text as another"),
        ({}, {"problem": "FIND the number of\napples."}, "duplicate"),
        ({}, {"problem": "P", "solution": ""}, "no worked solution"),
        ({}, {"problem": "P", "solution": r"So \boxed{2}."}, "solution ends in another answer"),
    ],
)
def test_each_step_drops_its_kind_and_counts_it(tmp_path, tokenizer, keys, row, reason):
    kept, dropped = with_sft(tmp_path, tokenizer, [PLAIN, row], **keys)
    assert kept == [PLAIN["problem"]] and dropped == {reason: 1}


@pytest.mark.parametrize(
    "keys, row",
    [
        ({}, LONG), ({}, CHOICE), ({}, PROOF), ({}, FRENCH), ({}, NEAR),  # without their keys
        ({"drop": ["proof"]}, {"problem": "Show that n is prime and find n."}),
        ({"near_duplicates": 0.7}, {"problem": "Find the number of 2 apples."}),
        ({"language": "en"}, {"problem": "Find $\\sum_{i=1}^{n} i^2$."}),
        ({"answer_range": [0, 999]}, {"problem": "P", "answer": "0"}),
        ({"max_tokens": 250}, LONG),  # of 300 bytes
        ({}, {"problem": "P", "solution": "By symmetry."}),  # no final answer to judge
        ({}, {"problem": "P", "solution": r"So \boxed{\frac{2}{2}}."}),
    ],
)  # fmt: skip
def test_a_step_keeps_rows_that_only_resemble_what_it_drops(tmp_path, tokenizer, keys, row):
    kept, dropped = with_sft(tmp_path, tokenizer, [PLAIN, row], **keys)
    assert kept == [PLAIN["problem"], row["problem"].strip()] and dropped == {}


def test_columns_tell_kind_and_pass_rate(tmp_path, tokenizer):
    told = [("MCQ", 0.5), ("proof", 0.5), ("x", 0.5), ("x", 0.9), ("x", None)]
    rows = [{"problem": f"P{i}", "kind": kind, "pass_rate": rate} for i, (kind, rate) in enumerate(told)]
    keys = {"drop": ["multiple_choice", "proof"], "pass_rate": [0.1, 0.6]}
    dropped = {"multiple choice": 1, "proof": 1, "pass rate is not within 0.1 to 0.6": 2}
    assert with_sft(tmp_path, tokenizer, rows, **keys) == (["P2"], dropped)


TRACES = ["\\boxed{2}", "a long way to it, \\boxed{1}", "short: \\boxed{1}"]  # the wrong one comes first


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("traces, kept", [("first", [1]), ("shortest", [2]), ("all", [1, 2])])
def test_one_right_trace_a_problem_or_all_with_and_without_a_verdict(tmp_path, tokenizer, traces, kept, told):
    rows = [
        {"problem": "P", "solution": text} | ({"correct": "{1}" in text} if told else {}) for text in TRACES
    ]
    found, _ = with_sft(tmp_path, tokenizer, rows, "solution", traces=traces)
    assert found == [TRACES[i] for i in kept]


def test_the_verdict_of_a_column_stands_whatever_the_final_answer(tmp_path, tokenizer):
    rows = [{"problem": p, "solution": r"So \boxed{2}.", "correct": p == "P"} for p in "PQ"]
    assert with_sft(tmp_path, tokenizer, rows) == (["P"], {"solution not right or not complete": 1})


def test_a_long_answer_that_is_the_gold_answers_text_is_right(tmp_path, tokenizer):
    answer = " + ".join(f"x_{{{i}}}" for i in range(150))
    row = {"problem": "P", "answer": answer, "solution": rf"\boxed{{{answer}}}"}
    assert with_sft(tmp_path, tokenizer, [row], overlong="truncate", **ANY)[0] == ["P"]


def test_overlong_rows_stay_for_the_trainer_to_cut_but_not_those_over_max_tokens(tmp_path, tokenizer):
    rows = [PLAIN, {"problem": "Count.", "solution": "on and on " * 2000}]
    assert with_sft(tmp_path, tokenizer, rows)[1] == {"longer than 1024 tokens": 1}
    assert with_sft(tmp_path, tokenizer, rows, overlong="truncate")[1] == {}
    limited = with_sft(tmp_path, tokenizer, rows, overlong="truncate", max_tokens=100)
    assert limited == ([PLAIN["problem"]], {"longer than 100 tokens": 1})


def test_a_quantile_of_tokens_keeps_its_share(tmp_path, tokenizer):
    rows = [{"problem": "word " * n} for n in range(1, 12)]
    for share, kept in ((0.5, 6), (0.9, 10), (1.0, 11)):
        assert len(with_sft(tmp_path, tokenizer, rows, token_quantile=share)[0]) == kept


def test_a_cell_of_ten_megabytes_is_dropped_and_counted(tmp_path, tokenizer):
    large = [{"problem": "1 + 1?" + " or" * 3_500_000}, {"problem": "P", "solution": "9" * 10**7}]
    kept, dropped = with_sft(tmp_path, tokenizer, [PLAIN, *large])
    assert kept == [PLAIN["problem"]] and dropped == {"longer than 1024 tokens": 2}


@pytest.mark.parametrize("names", [("sft",), ("grpo",), ("heldout", "sft"), ("heldout", "grpo")])
def test_a_profile_may_have_some_of_the_sets_only(tmp_path, tokenizer, names):
    ready, _ = saved(tiny(**dict.fromkeys({*prepare.SETS} - {*names})), tokenizer, tmp_path)
    assert tuple(name for name in ready if "_" not in name) == names
    assert len(prepare.read_set(tmp_path, names[-1])) > 900
    assert ("sft" in names) == bool(prepare.read_set(tmp_path, "sft"))


def test_programming_problems_keep_their_test_cases_and_need_no_answer(tmp_path, tokenizer):
    tests = {"language": "python", "test_cases": [{"input": "1", "output": "2", "type": "stdin_stdout"}]}
    path = tmp_path / "rows.parquet"
    rows = [{"task": f"Print {what} number.", "verification_info": tests} for what in ("the next", "another")]
    pl.DataFrame(rows).write_parquet(path)
    columns = {"problem": "task", "answer": None, "verification_info": "verification_info"}
    p = tiny(grpo={"source": str(path), "columns": columns, "test_split": 0.1})
    ready = prepare.format_sets(prepared(p, tokenizer), p)["grpo"]
    assert json.loads(ready["verification_info"][0]) == tests


def test_a_training_row_with_a_held_out_text_is_dropped(tokenizer):
    p = config.load("tiny")
    sets = prepare.load_sets(p)
    sets.rows["sft"] = pl.concat([sets.rows["heldout"].head(1), sets.rows["sft"].head(5)])
    prepare.clean_sets(sets, p, tokenizer)
    assert sets.dropped["sft"]["same text as in heldout"] == 1
    texts = [text for name in prepare.SETS for text in set(sets.rows[name]["problem"])]
    assert len(texts) == len(set(texts))


def test_rows_that_share_words_with_a_benchmark_are_dropped_and_shown(tmp_path, tokenizer):
    text = "Let n be the number of ways to seat nine people at a round table."
    exam, rows = tmp_path / "exam.csv", tmp_path / "rows.csv"
    exam.write_text(f"problem,answer\n{text},1\n")
    rows.write_text(f"problem,answer,solution\nHard. {text} Find n.,1,w\nWhat is 1 + 1?,2,w\n")
    source = {"source": str(rows), "columns": {"solution": "solution"}}
    sets = prepared(tiny(sft=source, decontaminate=[{"source": str(exam)}]), tokenizer)
    assert sets.rows["sft"]["problem"].to_list() == ["What is 1 + 1?"]
    assert sets.dropped["sft"] == {"shares words with an evaluation set": 1}
    shown = {"set": "sft", "problem": f"Hard. {text} Find n.", "benchmark": str(exam)}
    assert sets.contaminated == [shown | {"overlap": "let n be the number of ways to"}]
    exam.write_text(f"problem,answer\n{text.replace(' ', ' $ ')},1\n")
    for keys, dropped in (({}, 0), ({"near_ngrams": True}, 1), ({"near_ngrams": True, "ngram": 30}, 0)):
        sets = prepared(tiny(sft=source, decontaminate=[{"source": str(exam)}], **keys), tokenizer)
        assert sets.dropped["sft"].total() == dropped


def test_held_out_problems_of_a_file_decontaminate_too(tokenizer, shared):
    path = str(shared / "gsm8k/test.jsonl")
    p = tiny(heldout={"source": path, "rows": 50, "columns": {"problem": "question"}})
    p.grpo.max_prompt_length = 900
    sets = prepare.load_sets(p)
    again, work = "Again: " + pl.col("problem"), pl.lit("w")
    copy = sets.rows["heldout"].head(1).with_columns(problem=again, solution=work)
    sets.rows["sft"] = pl.concat([copy, sets.rows["sft"]])
    prepare.decontaminate_sets(prepare.clean_sets(sets, p, tokenizer), p)
    assert [row["benchmark"] for row in sets.contaminated if row["set"] == "sft"] == ["heldout"]


def test_the_share_of_empty_thoughts_is_the_profiles(tokenizer):
    p = config.load("tiny")
    texts = [row[0]["content"] for row in prepare.format_sets(prepared(p, tokenizer), p)["sft"]["completion"]]
    empty = sum(text.startswith(p.prompt.think_start + p.prompt.think_end) for text in texts) / len(texts)
    assert abs(empty - p.data.sft.empty_thoughts) < 0.05


def test_a_verbatim_solution_is_the_whole_completion(tmp_path, tokenizer):
    said = "<start_working_out>one<end_working_out>\n<SOLUTION>1</SOLUTION>"
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(PLAIN | {"answer": 1, "solution": said}) + "\n")
    p = tiny(sft={"source": str(path), "verbatim": True})
    assert prepare.format_sets(prepared(p, tokenizer), p)["sft"]["completion"][0][0]["content"] == said


def test_an_answer_in_a_box_keeps_its_braces(tokenizer):
    p = config.load("tiny", ['prompt.answer_start="\\\\boxed{"', 'prompt.answer_end="}"'])
    sets = prepared(p, tokenizer)
    rows = prepare.format_sets(sets, p)["sft"]
    for reply, gold in zip(rows["completion"].head(20), sets.rows["sft"]["answer"], strict=False):
        assert reply[0]["content"].endswith(f"{p.prompt.think_end}\\boxed{{{gold}}}")


def test_the_same_seed_gives_the_same_bytes(tmp_path, tokenizer):
    p = config.load("tiny", ["data.grpo.test_split=0.1"])
    saved(
        config.load("tiny", ["data.sft.test_split=0.1"]), tokenizer, tmp_path / "b"
    )  # of which nothing stays
    for folder in ("a", "b"):
        saved(p, tokenizer, tmp_path / folder)
    a, b = ({f.name: f.read_bytes() for f in (tmp_path / folder).iterdir()} for folder in "ab")
    assert a == b and a.keys() == {
        "README.md", "sft.parquet", "grpo.parquet", "grpo_test.parquet", "heldout.parquet"
    }  # fmt: skip


def test_datasets_loads_what_was_saved_and_the_card_adds_up(tmp_path, tokenizer):
    import datasets

    data, cache = tmp_path / "data", str(tmp_path / "cache")
    ready, digest = saved(config.load("tiny", ["data.sft.test_split=0.2"]), tokenizer, data)
    for name, rows in ready.items():
        loaded = datasets.load_dataset(str(data), name, split="train", cache_dir=cache)
        assert loaded.to_list() == prepare.read_set(data, name) == rows.to_dicts() != []
    card = (data / "README.md").read_text()
    assert digest in card and f"| | sft_test | {len(ready['sft_test'])} |" in card
    assert "| sft | read from builtin | 1,000 |" in card


def test_a_test_split_shares_no_problem_with_what_is_left(tokenizer):
    p = config.load("tiny", ["data.sft.test_split=0.2", "data.sft.traces=all"])
    sets = prepared(p, tokenizer)
    another = sets.rows["sft"].with_columns(solution=pl.lit("another"))
    sets.rows["sft"] = pl.concat([sets.rows["sft"], another])
    ready = prepare.format_sets(sets, p)
    left, aside = ({row[0]["content"] for row in ready[name]["prompt"]} for name in ("sft", "sft_test"))
    assert not left & aside and len(aside) == round(0.2 * len(left | aside))


def test_a_set_of_which_no_row_is_left_is_refused_in_one_line_with_the_reasons(tmp_path, tokenizer):
    (tmp_path / "rows.jsonl").write_text('{"question": "Q", "reply": "no number"}\n')
    with pytest.raises(AimoError, match=r"^data\.sft.*1 answer is not an integer.*") as e:
        prepared(tiny(sft={"source": str(tmp_path / "rows.jsonl"), "columns": WORKED}), tokenizer)
    assert "\n" not in str(e.value)


# ---- decontamination: shared word n-grams, against their definition

EXAM = "Let n be the number of ways to seat nine people at a round table so that no two of them quarrel."


def overlapping(problems, benchmarks, **options):
    return find_overlaps(pl.Series(problems, dtype=pl.String), benchmarks, **options)["row"].to_list()


def by_definition(problem, benchmark, n=8):
    """Whether a problem shares n words in a row with one of a benchmark, by the definition."""
    known = {gram for text in benchmark for gram in grams(text.lower().split(), n)}
    return any(gram in known for gram in grams(problem.lower().split(), n))


def test_eight_words_in_a_row_are_contamination_and_seven_are_not():
    words = EXAM.split()
    problems = [
        " ".join(["Ann", *words[3:11], "said"]),
        " ".join(["Ann", *words[3:10], "said"]),
        "LET N be\nthe  number of WAYS to seat",
    ]
    assert overlapping(problems, {"exam": [EXAM]}) == [0, 2]


@pytest.mark.parametrize("seed", range(5))
def test_verdicts_are_those_of_the_definition(seed):
    rng = random.Random(seed)
    vocabulary = ["a", "the", "Sum", "of", "x\u00a0y", "İ", "ß", "$x^2$", "=", "\u3000", "\x1c", "数"]
    texts = [" ".join(rng.choices(vocabulary, k=rng.randint(0, 30))) for _ in range(400)]
    benchmark = texts[:40]
    expected = [i for i, text in enumerate(texts[40:]) if by_definition(text, benchmark, 5)]
    assert overlapping(texts[40:], {"b": benchmark}, n=5) == expected and 0 < len(expected) < 360


def test_rows_beyond_the_first_chunk_are_found(monkeypatch):
    monkeypatch.setattr("aimo.data.decontaminate.CHUNK", 3)
    assert overlapping(["x"] * 7 + [EXAM, "y", EXAM], {"exam": [EXAM]}) == [7, 9]


def test_near_matches_ignore_markup_and_punctuation():
    exam = r"Find the sum of all $\frac{1}{n}$ for which, say, $n \leq 10$ holds."
    copy = r"find the sum of all \( \dfrac 1 n \) for which say n \leq 10 holds"
    assert overlapping([copy], {"exam": [exam]}) == [] and overlapping(
        [copy], {"exam": [exam]}, near=True
    ) == [0]


def test_short_problems_count_as_a_whole_when_near():
    assert overlapping(["What is 2 + 2?"], {"exam": ["What is 2 + 2?"]}) == []
    assert overlapping(["What is 2 + 2?", "What is 2 + 2 - 1?"], {"exam": ["what is 2 + 2"]}, near=True) == [
        0
    ]


def test_without_benchmarks_no_row_is_contaminated():
    assert (
        overlapping(["a b c d e f g h i"], {})
        == overlapping([], {"exam": [EXAM]})
        == overlapping([""], {"exam": [""]})
        == []
    )


# ---- the built-in problems: true steps, even families, disjoint splits, the same ones in every version

SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def test_every_step_is_true_and_the_last_one_gives_the_answer():
    for p in sources.generate(3000, "train", 1):
        steps = p.solution.split("\n")
        assert 2 <= len(steps) <= 6, p
        for step in steps:
            a, sign, b, figure = re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", step).groups()
            assert SIGNS[sign](int(a), int(b)) == int(figure), p
        assert int(figure) == p.answer, p


def test_at_least_eight_families_are_drawn_about_evenly_and_no_text_twice():
    drawn = sources.generate(2000, "train", 0)
    families = [p.family for p in drawn]
    assert len({p.problem for p in drawn}) == 2000 and len(set(families)) >= 8
    assert min(families.count(f) for f in set(families)) > 2000 / len(set(families)) / 2


def test_train_and_heldout_share_no_text_whatever_the_seeds():
    train = {p.problem for seed in range(3) for p in sources.generate(3000, "train", seed)}
    heldout = {p.problem for seed in range(3) for p in sources.generate(500, "heldout", seed)}
    assert not train & heldout


def test_a_seed_gives_the_same_problems_in_every_version_and_another_gives_others():
    drawn = [repr(sources.generate(1000, "train", seed)).encode() for seed in (7, 8)]
    assert zlib.crc32(drawn[0].replace(b"WordProblem", b"Problem")) == 2700548994 and drawn[0] != drawn[1]
