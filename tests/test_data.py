"""Preparing the sets: what each step drops and keeps, and what is saved."""

import json
import operator
import random
import re
import zlib

import polars as pl
import pytest
import yaml
from conftest import TINY, lines

from aimo import config
from aimo.data import prepare, sources
from aimo.data.decontaminate import find_overlaps, grams
from aimo.inference import model_folder
from aimo.inference.errors import AimoError


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


def with_sft(tmp_path, tokenizer, rows, name="problem", **keys):
    """A column of the SFT set of these rows under some keys, and what was dropped."""
    path = lines(tmp_path / "rows.jsonl", *({"answer": 1, "solution": "work"} | row for row in rows))
    told = [key for key in ("kind", "pass_rate", "correct") if key in rows[0]]
    columns = {key: key for key in ("solution", *told)}
    sets = prepared(tiny(sft={"source": str(path), "columns": columns, **keys}), tokenizer)
    return sets.rows["sft"][name].to_list(), dict(sets.dropped["sft"])


def test_rows_of_a_file_are_mapped_cleaned_and_every_drop_is_counted(tmp_path, tokenizer):
    rows = [
        ("What is 1 + 1?", "1 + 1 = <<1+1=2>>2\n#### 2"),
        ("What is 1 + 1?", "Again.\n#### 2"),
        ("What is 1 / 2?", "Half.\n#### 0.5"),
        (" ", "Nothing.\n#### 1"),
        ("What is 500 + 500?", "500 + 500 = 1000\n#### 1,000"),
    ]
    pl.DataFrame(rows, ["question", "reply"], orient="row").write_csv(tmp_path / "rows.csv")
    columns = {"problem": "question", "answer": "reply", "solution": "reply"}
    source = {"source": str(tmp_path / "rows.csv"), "columns": columns}
    sets = prepared(tiny(sft=source), tokenizer)
    kept = [("2", "1 + 1 = 2"), ("1000", "500 + 500 = 1000")]
    assert sets.rows["sft"].select("answer", "solution").rows() == kept
    assert sets.dropped["sft"] == {"duplicate": 1, "answer is not an integer": 1, "no problem text": 1}
    shared = prepared(tiny(sft=source, grpo=source | {"test_split": 0.5}), tokenizer)
    assert shared.rows["sft"].equals(sets.rows["sft"]), "GRPO takes the same rows"
    with pytest.raises(
        AimoError, match=r"^data\.sft: .*\(1 no problem text, 4 answer is not within 5 to 9\)"
    ):
        prepared(tiny(sft=source | {"answer_range": [5, 9], "integer_answers": False}), tokenizer)


PLAIN = {"problem": "Find the number of apples."}
LONG = {"problem": "Count on. " * 30}  # of 300 bytes
CHOICE = {"problem": "What is 2 + 2? (A) 3 (B) 4 (C) 5 (D) 6"}
PROOF = {"problem": "Prove that every even number is the sum of two primes."}
FRENCH = {"problem": "Trouver tous les entiers positifs qui divisent la somme de deux cubes consécutifs."}
NEAR = {"problem": "Find the number  of apples!"}
ANY = {"integer_answers": False}


@pytest.mark.parametrize(
    "keys, row, reason",
    [
        ({}, {"problem": "P", "answer": "x + 1"}, "answer is not an integer"),
        (ANY, {"problem": "P", "answer": float("nan")}, "no answer"),
        ({"answer_range": [0, 999]}, {"problem": "P", "answer": 1000}, "answer is not within 0 to 999"),
        ({"max_tokens": 100}, LONG, "longer than 100 tokens"),
        ({}, {"problem": "1 + 1?" + " or" * 3_500_000}, "longer than 1024 tokens"),
        ({"language": "en"}, FRENCH, "language is not en"),
        ({"drop": ["multiple_choice"]}, CHOICE, "multiple choice"),
        ({"drop": ["proof"]}, PROOF, "proof"),
        ({"near_duplicates": 0.7}, NEAR, "nearly the same text as another"),
        ({}, {"problem": "FIND the number of\napples."}, "duplicate"),
        ({}, {"problem": "P", "solution": ""}, "no worked solution"),
        ({}, {"problem": "P", "solution": r"So \boxed{2}."}, "solution ends in another answer"),
        # Rows that only resemble these, or are not meant to be dropped.
        ({}, LONG, None), ({}, CHOICE, None), ({}, PROOF, None), ({}, FRENCH, None), ({}, NEAR, None),
        ({"drop": ["proof"]}, {"problem": "Show that n is prime and find n."}, None),
        ({"near_duplicates": 0.7}, {"problem": "Find the number of 2 apples."}, None),
        ({"language": "en"}, {"problem": "Find $\\sum_{i=1}^{n} i^2$."}, None),
        ({"answer_range": [0, 999]}, {"problem": "P", "answer": "0"}, None),
        ({"max_tokens": 250}, LONG, None),
        ({}, {"problem": "P", "solution": "By symmetry."}, None),  # no final answer to judge
        ({}, {"problem": "P", "solution": r"So \boxed{\frac{2}{2}}."}, None),
    ],
)  # fmt: skip
def test_each_step_drops_its_kind_alone_and_counts_it(tmp_path, tokenizer, keys, row, reason):
    kept, dropped = with_sft(tmp_path, tokenizer, [PLAIN, row], **keys)
    assert kept == [PLAIN["problem"], *[row["problem"].strip()] * (not reason)]
    assert dropped == ({reason: 1} if reason else {})


def test_columns_tell_kind_pass_rate_and_verdict(tmp_path, tokenizer):
    told = [("MCQ", 0.5), ("proof", 0.5), ("x", 0.5), ("x", 0.9), ("x", None)]
    rows = [{"problem": f"P{i}", "kind": kind, "pass_rate": rate} for i, (kind, rate) in enumerate(told)]
    keys = {"drop": ["multiple_choice", "proof"], "pass_rate": [0.1, 0.6]}
    dropped = {"multiple choice": 1, "proof": 1, "pass rate is not within 0.1 to 0.6": 2}
    assert with_sft(tmp_path, tokenizer, rows, **keys) == (["P2"], dropped)
    rows = [{"problem": p, "solution": r"So \boxed{2}.", "correct": p == "P"} for p in "PQ"]
    assert with_sft(tmp_path, tokenizer, rows) == (["P"], {"solution not right or not complete": 1})


TRACES = ["\\boxed{2}", "a long way to it, \\boxed{1}", "short: \\boxed{1}"]  # the wrong one comes first


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("traces, kept", [("first", [1]), ("shortest", [2]), ("all", [1, 2])])
def test_one_right_trace_a_problem_or_all_with_and_without_a_verdict(tmp_path, tokenizer, traces, kept, told):
    rows = [
        {"problem": "P", "solution": text} | ({"correct": "{1}" in text} if told else {}) for text in TRACES
    ]
    found, _ = with_sft(tmp_path, tokenizer, rows, "solution", traces=traces)
    assert found == [TRACES[i] for i in kept]


def test_overlong_rows_stay_for_the_trainer_to_cut_but_not_those_over_max_tokens(tmp_path, tokenizer):
    rows = [PLAIN, {"problem": "Count.", "solution": "on and on " * 2000}]
    assert with_sft(tmp_path, tokenizer, rows)[1] == {"longer than 1024 tokens": 1}
    assert with_sft(tmp_path, tokenizer, rows, overlong="truncate")[1] == {}
    limited = with_sft(tmp_path, tokenizer, rows, overlong="truncate", max_tokens=100)
    assert limited == ([PLAIN["problem"]], {"longer than 100 tokens": 1})
    rows = [{"problem": "word " * n} for n in range(1, 12)]
    assert len(with_sft(tmp_path, tokenizer, rows, token_quantile=0.5)[0]) == 6


@pytest.mark.parametrize("names", [("sft",), ("grpo",), ("heldout", "sft"), ("heldout", "grpo")])
def test_a_profile_may_have_some_of_the_sets_only(tmp_path, tokenizer, names):
    ready, _ = saved(tiny(**dict.fromkeys({*prepare.SETS} - {*names})), tokenizer, tmp_path)
    assert tuple(name for name in ready if "_" not in name) == names
    assert ("sft" in names) == bool(prepare.read_set(tmp_path, "sft"))


def test_programming_problems_keep_their_test_cases_and_need_no_answer(tmp_path, tokenizer):
    tests = {"language": "python", "test_cases": [{"input": "1", "output": "2", "type": "stdin_stdout"}]}
    path = tmp_path / "rows.parquet"
    pl.DataFrame([{"task": "Print the next number.", "verification_info": tests}]).write_parquet(path)
    columns = {"problem": "task", "answer": None, "verification_info": "verification_info"}
    p = tiny(grpo={"source": str(path), "columns": columns, "test_split": 0.1})
    ready = prepare.format_sets(prepared(p, tokenizer), p)["grpo_test"]
    assert json.loads(ready["verification_info"][0]) == tests


def test_a_training_row_with_a_held_out_text_is_dropped(tokenizer):
    p = config.load("tiny")
    sets = prepare.load_sets(p)
    sets.rows["sft"] = pl.concat([sets.rows["heldout"].head(1), sets.rows["sft"].head(5)])
    prepare.clean_sets(sets, p, tokenizer)
    assert sets.dropped["sft"]["same text as in heldout"] == 1
    texts = [text for name in prepare.SETS for text in set(sets.rows[name]["problem"])]
    assert len(texts) == len(set(texts))


def test_rows_that_share_words_with_a_benchmark_or_held_out_problem_are_dropped_and_shown(
    tmp_path, tokenizer
):
    text = "Let n be the number of ways to seat nine people at a round table."
    exam, rows = tmp_path / "exam.csv", tmp_path / "rows.csv"
    exam.write_text(f"problem,answer\n{text},1\n")
    rows.write_text(f"problem,answer,solution\nHard. {text} Find n.,1,w\nWhat is 1 + 1?,2,w\n")
    source = {"source": str(rows), "columns": {"solution": "solution"}}
    shown = {"set": "sft", "problem": f"Hard. {text} Find n.", "overlap": "let n be the number of ways to"}
    for keys, name in ({"decontaminate": [{"source": str(exam)}]}, str(exam)), (
        {"heldout": {"source": str(exam)}}, "heldout"
    ):  # fmt: skip
        sets = prepared(tiny(sft=source, **keys), tokenizer)
        assert sets.rows["sft"]["problem"].to_list() == ["What is 1 + 1?"]
        assert sets.dropped["sft"] == {"shares words with an evaluation set": 1}
        assert sets.contaminated == [shown | {"benchmark": name}]
    exam.write_text(f"problem,answer\n{text.replace(' ', ' $ ')},1\n")
    for keys, dropped in (({}, 0), ({"near_ngrams": True}, 1), ({"near_ngrams": True, "ngram": 30}, 0)):
        sets = prepared(tiny(sft=source, decontaminate=[{"source": str(exam)}], **keys), tokenizer)
        assert sets.dropped["sft"].total() == dropped


def test_a_completion_is_thought_and_answer_in_their_tags_or_a_verbatim_solution(tmp_path, tokenizer):
    p = config.load("tiny", ['prompt.answer_start="\\\\boxed{"', 'prompt.answer_end="}"'])
    sets = prepared(p, tokenizer)
    texts = [row[0]["content"] for row in prepare.format_sets(sets, p)["sft"]["completion"]]
    for text, gold in zip(texts[:20], sets.rows["sft"]["answer"], strict=False):
        assert text.endswith(f"{p.prompt.think_end}\\boxed{{{gold}}}")
    empty = sum(text.startswith(p.prompt.think_start + p.prompt.think_end) for text in texts) / len(texts)
    assert abs(empty - p.data.sft.empty_thoughts) < 0.05
    said = "<start_working_out>one<end_working_out>\n<SOLUTION>1</SOLUTION>"
    path = lines(tmp_path / "rows.jsonl", PLAIN | {"answer": 1, "solution": said})
    p = tiny(sft={"source": str(path), "verbatim": True})
    assert prepare.format_sets(prepared(p, tokenizer), p)["sft"]["completion"][0][0]["content"] == said


def test_the_same_seed_gives_the_same_bytes_which_datasets_loads_and_the_card_adds_up(tmp_path, tokenizer):
    import datasets

    p = config.load("tiny", ["data.grpo.test_split=0.1"])
    split = config.load("tiny", ["data.sft.test_split=0.1"])
    ready, digest = saved(split, tokenizer, tmp_path / "b")
    for name, rows in ready.items():
        where = {"name": name, "split": "train", "cache_dir": str(tmp_path / "cache")}
        loaded = datasets.load_dataset(str(tmp_path / "b"), **where)
        assert loaded.to_list() == prepare.read_set(tmp_path / "b", name) == rows.to_dicts() != []
    card = (tmp_path / "b/README.md").read_text()
    assert digest in card and f"| | sft_test | {len(ready['sft_test'])} |" in card
    assert "| sft | read from builtin | 1,000 |" in card
    for folder in ("a", "b"):  # of what was in b, nothing stays
        saved(p, tokenizer, tmp_path / folder)
    a, b = ({f.name: f.read_bytes() for f in (tmp_path / folder).iterdir()} for folder in "ab")
    names = {f"{name}.parquet" for name in ("sft", "grpo", "grpo_test", "heldout")}
    assert a == b and a.keys() == {"README.md", *names}


def test_a_test_split_shares_no_problem_with_what_is_left(tokenizer):
    p = config.load("tiny", ["data.sft.test_split=0.2", "data.sft.traces=all"])
    sets = prepared(p, tokenizer)
    another = sets.rows["sft"].with_columns(solution=pl.lit("another"))
    sets.rows["sft"] = pl.concat([sets.rows["sft"], another])
    ready = prepare.format_sets(sets, p)
    left, aside = ({row[0]["content"] for row in ready[name]["prompt"]} for name in ("sft", "sft_test"))
    assert not left & aside and len(aside) == round(0.2 * len(left | aside))


# ---- decontamination: shared word n-grams, against their definition

EXAM = "Let n be the number of ways to seat nine people at a round table so that no two of them quarrel."
SUM = r"Find the sum of all $\frac{1}{n}$ for which, say, $n \leq 10$ holds."


@pytest.mark.parametrize(
    "problems, benchmark, near, found",
    [
        (["Ann be the number of ways to seat nine", "Ann be the number of ways to seat"], EXAM, False, [0]),
        (["LET N be\nthe  number of WAYS to seat"], EXAM, False, [0]),
        (["x"] * 7 + [EXAM, "y", EXAM], EXAM, False, [7, 9]),  # beyond the first chunk
        ([r"find the sum of all \( \dfrac 1 n \) for which say n \leq 10 holds"], SUM, False, []),
        ([r"find the sum of all \( \dfrac 1 n \) for which say n \leq 10 holds"], SUM, True, [0]),
        (["What is 2 + 2?"], "What is 2 + 2?", False, []),  # Open-R1's test lets short ones through
        (["What is 2 + 2?", "What is 2 + 2 - 1?"], "what is 2 + 2", True, [0]),
        ([""], "", False, []),
    ],
)
def test_eight_shared_words_are_contamination(monkeypatch, problems, benchmark, near, found):
    monkeypatch.setattr("aimo.data.decontaminate.CHUNK", 3)
    assert find_overlaps(pl.Series(problems), {"exam": [benchmark]}, near=near)["row"].to_list() == found


def test_verdicts_are_those_of_the_definition():
    rng = random.Random(0)
    vocabulary = ["a", "the", "Sum", "of", "x\u00a0y", "İ", "ß", "$x^2$", "=", "\u3000", "\x1c", "数"]
    texts = [" ".join(rng.choices(vocabulary, k=rng.randint(0, 30))) for _ in range(1000)]
    shared = [{*grams(text.lower().split(), 5)} for text in texts]
    known = set().union(*shared[:40])
    expected = [i for i, mine in enumerate(shared[40:]) if mine & known]
    found = find_overlaps(pl.Series(texts[40:]), {"b": texts[:40]}, n=5)["row"].to_list()
    assert found == expected and 0 < len(expected) < 960


# ---- the built-in problems: true steps, even families, disjoint splits, the same ones in every version


def test_every_step_is_true_the_last_one_gives_the_answer_and_families_are_even():
    signs = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
    drawn = sources.generate(3000, "train", 1)
    for p in drawn:
        for step in p.solution.split("\n"):
            a, sign, b, figure = re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", step).groups()
            assert signs[sign](int(a), int(b)) == int(figure), p
        assert int(figure) == p.answer, p
    families = [p.family for p in drawn]
    assert len(set(families)) >= 8 and min(map(families.count, set(families))) > 3000 / len(set(families)) / 2
    heldout = {p.problem for seed in range(3) for p in sources.generate(500, "heldout", seed)}
    assert not heldout & {p.problem for p in drawn}


def test_a_seed_gives_the_same_problems_in_every_version_and_another_gives_others():
    drawn = [repr(sources.generate(1000, "train", seed)).encode() for seed in (7, 8)]
    assert zlib.crc32(drawn[0].replace(b"WordProblem", b"Problem")) == 2700548994 and drawn[0] != drawn[1]
