"""The report of each kind of run, from folders as the stages leave them; the notebooks' tables."""

import json
import re

import polars as pl
import pytest

from aimo.report import pages, tables

FIGURES = {"format": 1.0, "pass@1": 0.5, "maj@4": 0.75, "mean_tokens": 20.0}
LOGS = {
    "sft": [{"step": step, "loss": 1 / step, "learning_rate": 1e-4} for step in (1, 2)],
    "grpo": [{"step": step, "reward": 0.1 * step, "reward_std": 0.2, "loss": 0.0} for step in (1, 2)],
    "dpo": [{"step": step, "loss": 0.7, "rewards/accuracies": 0.5} for step in (1, 2)],
}
SAMPLES = [
    {"index": 0, "tokens": 9, "end": "answered", "answer": 7, "weight": 1.0, "begin_s": 0.0, "end_s": 0.4},
    {"index": 1, "tokens": 4, "end": "finished", "answer": None, "weight": 1.0, "begin_s": 0.0, "end_s": 0.5},
    {"index": 2, "tokens": 5, "end": "stopped", "answer": None, "weight": 0.0, "begin_s": 0.1, "end_s": 0.5},
]
TALLY = [{"answer": 7, "votes": 1, "weight": 1.0, "share": 1.0}]
ANSWERED = {"id": "q<1>", "problem": "What is 3 + 4?", "answer": 7, "gold": 7}
ANSWERED |= {"votes": {"7": 1}, "tally": TALLY}
ANSWERED |= {"stop": "decided", "seconds": 0.5, "note": "", "texts": {"7": "It is 7."}, "samples": SAMPLES}
EMPTY = ANSWERED | {"id": "q2", "problem": "", "answer": 0, "gold": None, "votes": {}, "tally": []}
EMPTY |= {"stop": None, "note": "the problem is empty", "texts": {}, "samples": []}


def make_run(folder, trained=(), heldout=False, solutions=()):
    """A run's folder with what its stages leave; `trained` names the stages that trained a model."""
    stages = {name: {"seconds": 3.0, "steps": 2, "samples_per_second": 8.5} for name in ("data", *trained)}
    files = {f"{name}/log.jsonl": "\n".join(map(json.dumps, LOGS[name])) + "\n" for name in trained}
    models = ("base", *trained)
    if heldout:
        stages["inference"] = {"seconds": 1.0, "models": dict.fromkeys(models, FIGURES)}
        rows = [{"prompt": [{"role": "user", "content": "2 + 2?"}], "answer": 4}]
        files["inference/majority.json"] = {name: {"1": 0.5, "2": 0.6, "4": 0.75} for name in models}
        texts = {name: [f"said by {name}"] for name in models}
        files["inference/samples.json"] = {"rows": rows, "texts": texts}
    if solutions:
        known = sum(s["gold"] is not None for s in solutions)
        score = {"questions": len(solutions), "known": known, "correct": known, "fallbacks": 1}
        stages["inference"] = stages.get("inference", {"seconds": 1.0}) | score
        files["inference/solutions.json"] = [*solutions]
        files["submission.settings.json"] = {"temperature": 0.625}
    files["metrics.json"] = {"profile": "p", "seed": 5, "stages": stages}
    files["profile.yaml"] = "profile: p\nseed: 5\n"
    (folder / "inference").mkdir(parents=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


RECORD = ["Time and training", "Versions", "Settings"]
TEST = ["The test file", "Inference settings"]
LABELS = ["base, prompted in the format", "0.75", "said by base"]


@pytest.mark.parametrize(
    "parts, sections, shown",
    [
        ({"trained": ["sft"]}, ["Training: sft", *RECORD], ["8.5"]),
        (
            {"trained": ["grpo"], "heldout": True},
            ["Held-out problems", "Training: grpo", "Completions", *RECORD],
            [*LABELS, "after GRPO", "said by grpo"],
        ),
        ({"solutions": [ANSWERED | {"gold": None}, EMPTY]}, [*TEST, *RECORD], ["2 questions: 1 answered"]),
        (
            {"trained": ["sft", "dpo"], "heldout": True, "solutions": [ANSWERED, EMPTY]},
            ["Held-out problems", "Training: sft", "Training: dpo", *TEST, "Completions", *RECORD],
            [
                *LABELS, "after DPO", "the problem is empty", "q&lt;1&gt;", "0.625",
                "2 questions: 1 of 1 known answers right, 1 answered with the fallback.",
            ],
        ),
    ],
)  # fmt: skip
def test_the_report_shows_what_the_run_has_made_and_leaves_out_the_rest(tmp_path, parts, sections, shown):
    text = pages.write_run(make_run(tmp_path / "run", **parts)).read_text()
    assert re.findall(r"<h2>(.*?)</h2>", text) == sections
    assert [part for part in shown if part not in text] == []
    assert "None" not in text and "q<1>" not in text
    assert ("after DPO" in text) == ("dpo" in parts.get("trained", ()))
    linked = re.findall(r'href="./report.html#([^"]*)">(.*?)</a>', text)
    assert [title for _, title in linked] == sections
    assert all(f'<a id="{anchor}"></a>' in text for anchor, _ in linked)
    loaded = r"(src|href)=['\"](?!data:|\./report.html#)"
    assert not re.search(loaded, text) and "<script src" not in text


def test_a_table_has_a_column_for_every_key_and_a_cell_for_every_row():
    text = tables.table([{"a": 1234, "b": "x"}, {"a": 0.12345, "c": "<i>"}])
    assert re.findall(r"<th>(.*?)</th>", text) == ["a", "b", "c"]
    assert re.findall(r"<td.*?>(.*?)</td>", text) == ["1,234", "x", "", "0.123", "", "&lt;i&gt;"]


def test_the_closest_vote_comes_first():
    def solution(name, *votes):
        by_answer = {str(answer): count for answer, count in enumerate(votes)}
        return {"id": name, "votes": by_answer, "texts": dict.fromkeys(by_answer, "")}

    text = tables.closest_votes([solution("clear", 9), solution("close", 4, 3), solution("open", 6, 2)], 2)
    assert re.findall(r"<tr><td>(\w+)</td>", text) == ["close", "close", "open", "open"]


def test_the_training_text_shows_the_target_of_each_set_that_there_is():
    class Tokenizer:
        def apply_chat_template(self, messages, add_generation_prompt=False, **_):
            question, *reply = [message["content"] for message in messages]
            return f"<user>{question}<model>{''.join(reply)}" + ("" if add_generation_prompt else "<end>")

    question = {"prompt": [{"role": "user", "content": "2 + 2?"}]}
    sft = [question | {"completion": [{"role": "assistant", "content": "4" * n}]} for n in (2, 3, 1)]
    ready = {"sft": pl.DataFrame(sft), "grpo": pl.DataFrame([question | {"answer": 4}])}
    cells = re.findall(r"<td.*?>(.*?)</td>", tables.training_text(ready, Tokenizer()))
    prompt = "&lt;user&gt;2 + 2?&lt;model&gt;"
    short, long = (["sft", prompt, f"{answer}&lt;end&gt;"] for answer in ("4", "444"))
    assert cells == [*short, *long, "grpo", prompt, "any completion with the answer 4"]


def test_grpos_report_has_the_same_problems_at_each_probe(tmp_path):
    run = make_run(tmp_path / "run", ["grpo"])
    line = {"id": 0, "problem": "2 + 2?", "gold": "4", "answer": "5", "text": "It is 5."}
    lines = [line | {"step": step, "right": step > 0} for step in (0, 30)]
    (run / "grpo/probes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = pages.write_run(run).read_text()
    assert '<details class="wrong"><summary title="wrong: 5">0</summary>' in text
    assert '<details class="right"><summary title="right: 5">30</summary>' in text
