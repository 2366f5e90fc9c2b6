import json

import polars as pl
import pytest
import yaml
from conftest import TINY

from aimo import config, data, models
from aimo.errors import AimoError

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
    return models.load_tokenizer(TINY, config.load("tiny"))


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_rows_of_a_file_are_mapped_cleaned_and_every_drop_is_counted(tmp_path, tokenizer, suffix):
    path = tmp_path / f"rows.{suffix}"
    table = pl.DataFrame(ROWS)
    {"jsonl": table.write_ndjson, "csv": table.write_csv, "parquet": table.write_parquet}[suffix](path)
    p = profile(tmp_path, path, problem="question", answer="reply", solution="reply")
    rows = data.load(p)
    kept, dropped = data.clean(rows, p, tokenizer)
    assert [(r["answer"], r["solution"]) for r in kept["sft"]] == [(2, "1 + 1 = 2"), (1000, "500 + 500 = 1000")]
    assert dropped["sft"] == {"duplicate": 1, "answer is not an integer": 1, "no problem text": 1, "longer than 1024 tokens": 1}
    for name in rows:
        assert len(kept[name]) + dropped[name].total() == len(rows[name])


def test_a_training_row_with_a_held_out_text_is_dropped(tmp_path, tokenizer):
    p = config.load("tiny")
    rows = data.load(p)
    exam = rows["heldout"][0]
    kept, dropped = data.clean(rows | {"sft": [exam, *rows["sft"][:5]]}, p, tokenizer)
    assert dropped["sft"]["same text as in heldout"] == 1
    texts = [{r["problem"] for r in kept[name]} for name in data.SETS]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


def test_the_share_of_empty_thoughts_is_the_profiles(tokenizer):
    p = config.load("tiny")
    kept, _ = data.clean(data.load(p), p, tokenizer)
    texts = [row["completion"][0]["content"] for row in data.format(kept, p)["sft"]]
    empty = sum(text.startswith(p.prompt.think_start + p.prompt.think_end) for text in texts) / len(texts)
    assert abs(empty - p.data.sft.empty_thoughts) < 0.05


def test_the_same_seed_gives_the_same_bytes(tmp_path, tokenizer):
    for folder in ("a", "b"):
        p = config.load("tiny")
        kept, _ = data.clean(data.load(p), p, tokenizer)
        data.save(data.format(kept, p), tmp_path / folder)
    for name in data.SETS:
        assert (tmp_path / "a" / f"{name}.parquet").read_bytes() == (tmp_path / "b" / f"{name}.parquet").read_bytes()


def test_gsm8k_by_profile_alone(tmp_path, tokenizer, shared):
    p = profile(tmp_path, shared / "gsm8k" / "train.jsonl", problem="question", answer="answer", solution="answer")
    rows = data.load(p)
    assert len(rows["sft"]) == 7473
    kept, dropped = data.clean(rows, p, tokenizer)
    golds = [
        json.loads(line)["answer"].split("####")[1].strip().replace(",", "")
        for line in (shared / "gsm8k" / "train.jsonl").read_text().splitlines()
    ]
    assert len(kept["sft"]) > 7000 and all(isinstance(r["answer"], int) for r in kept["sft"])
    assert len(kept["sft"]) + dropped["sft"].total() == 7473
    assert {r["answer"] for r in kept["sft"]} <= {int(g) for g in golds}
    assert not any("<<" in r["solution"] or "####" in r["solution"] for r in kept["sft"])


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("none.jsonl", None, "does not exist"),
        ("other.jsonl", '{"a": 1}\n', "no column 'question'; it has a"),
        ("bad.jsonl", "{oops\n", "cannot be read"),
        ("empty.csv", "", "cannot be read"),
        ("drop.jsonl", '{"question": "Q", "reply": "no number"}\n', "1 answer is not an integer"),
    ],
)
def test_a_bad_source_is_refused_by_name_in_one_line(tmp_path, tokenizer, name, content, told):
    if content is not None:
        (tmp_path / name).write_text(content)
    p = profile(tmp_path, tmp_path / name, problem="question", answer="reply", solution="reply")
    with pytest.raises(AimoError) as e:
        data.clean(data.load(p), p, tokenizer)
    assert told in str(e.value) and "data.sft" in str(e.value) and "\n" not in str(e.value)
