"""Evaluations: benchmarks from files, completions that are kept, figures that follow from them alone."""

import asyncio
import itertools
import json
import os
import re
import shutil
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import yaml
from conftest import TINY, here
from model_server import serving
from safetensors.numpy import save_file
from scripted import Scripted

from aimo import config
from aimo.commands import measure
from aimo.data import sources
from aimo.evaluation import benchmarks, completions, evaluate, scores
from aimo.evaluation.benchmarks import Question
from aimo.evaluation.completions import CompletionFile, EvaluationHeader, Trace
from aimo.inference import model_folder, solver, storage
from aimo.inference.errors import AimoError, EngineError
from aimo.inference.model_folder import fingerprint, identity, is_same_model
from aimo.inference.server import Server
from aimo.inference.settings import Prompt, resolve_settings
from aimo.run import runs
from aimo.train import dpo

QUESTIONS = [
    Question("a", "What is 2 + 2?", "4", "sums", "1"),
    Question("b", "What is half of $7$?", r"\frac{7}{2}", "shares", "2"),
    Question("c", "What is 3 + 3?", "6", "sums", "2"),
]
DONE = Trace("a", 0, 0, "é\u2028", 1, True, 0.0, 1.0)


def header(questions=QUESTIONS, seed=0, **changes):
    settings = resolve_settings(TINY).asked | changes
    return EvaluationHeader("m", "w", "x", seed, settings, 1024, list(questions))


def scored(answers, questions=QUESTIONS, seed=0):
    """The scores of answers, a list for each question; None for a completion without one.

    The i-th completion of a question has 10 + i tokens.
    """
    traces = [
        replace(DONE, id=question.id, index=i, text=f"<SOLUTION>{a}</SOLUTION>" if a else "hm", tokens=10 + i)
        for question, group in zip(questions, answers, strict=True)
        for i, a in enumerate(group)
    ]
    return scores.score(header(questions, seed), traces)


@pytest.fixture
def aimo_evaluate(tmp_path):
    """`aimo evaluate` into a folder: its code, output, line of error, and evaluation.json if there is one."""
    folder = tmp_path / "run"

    def call(benchmark, *options):
        done = here("evaluate", TINY, "--benchmarks", benchmark, "--run-dir", folder, *options)
        lines = [line for line in done.stderr.splitlines() if line.startswith("aimo: ")]
        assert (done.returncode, len(lines)) in ((0, 0), (2, 1)), done.stderr
        record = folder / "evaluation.json"
        found = json.loads(record.read_text()) if record.exists() else {"benchmarks": {}}
        return SimpleNamespace(code=done.returncode, out=done.stdout, err="".join(lines), **found)

    return call


def write_rows(path, *rows):
    storage.write_lines(path, rows)
    return path


# Benchmarks


def test_benchmarks_of_the_table_can_be_read_from_files(shared):
    counts = {"aime24": 30, "aime25": 30, "aime26": 30, "math500": 500, "amc23": 40, "hmmt25": 30}
    counts |= {"olympiadbench": 675, "gsm8k": 1319, "aimo2": 10, "aimo3": 10}
    for name, count in counts.items():
        folder = shared if name in ("aimo2", "aimo3", "gsm8k") else shared / "benchmarks"
        found = benchmarks.read_benchmark(name, folder)
        assert len(found) == count and all(q.problem and q.answer and "####" not in q.answer for q in found)
        assert benchmarks.read_benchmark(name, folder, 3) == found[:3]


def test_a_file_whose_prompts_are_conversations_is_a_benchmark(tmp_path):
    talk = [{"role": "system", "content": "Think."}, {"role": "user", "content": "2 + 2?"}]
    write_rows(tmp_path / "dapo.jsonl", {"prompt": talk[1:], "reward_model": {"ground_truth": "4"}})
    pl.DataFrame([{"prompt": talk, "answer": "4"}]).write_parquet(tmp_path / "heldout.parquet")
    for path in (tmp_path / "dapo.jsonl", tmp_path / "heldout.parquet"):
        [question] = benchmarks.read_benchmark(str(path))
        assert (question.problem, question.answer) == ("2 + 2?", "4")


@pytest.mark.parametrize(
    "options, message",
    [
        (["aime42"], "did you mean aime26"),
        (["mine.jsonl"], "mine.jsonl does not exist"),
        (["aime24,gpqa"], "lighteval vllm"),
        (["gpqa", "--adapter", "a"], "--adapter: lighteval"),
        (["gsm8k", "--adapter", "a"], "adapter a: no adapter_config.json"),
        (["gsm8k", "--set", "inference.temprature=1"], "did you mean temperature"),
        ([{"problem": "2 + 2?"}], "no column 'answer'"),
        ([{"problem": "2?", "answer": "4"}, {"problem": "3?", "answer": None}], "row 2 has no answer"),
        ([{"problem": "", "answer": "4"}], "row 1 has no problem"),
        ([{"id": 1, "problem": problem, "answer": "4"} for problem in "ab"], "the same id"),
        ([{"problem": "2 + 2?", "answer": {"value": "4"}}], "holds objects in 'answer'"),
        ([{"problem": {"text": "2 + 2?"}, "answer": "4"}], "row 1 holds an object in 'problem'"),
    ],
)
def test_bad_input_and_files_that_are_no_benchmark_are_one_line(aimo_evaluate, tmp_path, options, message):
    for name in ("gsm8k", "aime24"):
        write_rows(tmp_path / f"{name}.jsonl", {"problem": "2 + 2?", "answer": "4"})
    if isinstance(options[0], dict):  # the rows of a file
        options = [write_rows(tmp_path / "rows.jsonl", *options)]
        message = f"{options[0]}: .*{message}"
    assert re.search(message, aimo_evaluate(*options, "--data", tmp_path).err)
    assert not (tmp_path / "run").exists()


def test_lighteval_gets_the_engines_settings_and_its_figures_are_kept(aimo_evaluate, monkeypatch, tmp_path):
    """A stand-in for lighteval: it keeps its arguments and leaves results where the real one does."""
    fake = tmp_path / "bin" / "lighteval"
    fake.parent.mkdir()
    results = '{"results": {"all": {"x": 1}, "gpqa:diamond|0": {"gpqa_pass@k": 0.25}}}'
    left = f"mkdir $5/results; echo '{results}' > $5/results/results_1.json"
    fake.write_text(f'#!/bin/sh\necho "$@" > $5/arguments; {left}\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    done = aimo_evaluate("gpqa", "--vllm", "tensor_parallel_size=2")
    called = (tmp_path / "run/gpqa/arguments").read_text()
    assert "tensor_parallel_size=2" in called
    assert "{max_new_tokens:32768,temperature:0.6,top_p:0.95}" in called
    assert done.benchmarks["gpqa"]["lighteval"] == {"gpqa_pass@k": 0.25}


def test_the_benchmarks_sampling_goes_over_the_models_and_the_command_lines_over_both(public_model):
    def settings(model, **layer):
        return evaluate.Wanted(model, "m", ["aime24"], [layer]).settings("aime24")

    assert (settings(TINY).temperature, settings(TINY).top_p, settings(TINY).max_tokens) == (0.6, 0.95, 32768)
    assert settings(TINY).samples == 64 and settings(TINY, samples=4, temperature=0.0).samples == 4
    assert settings(TINY, temperature=0.0).samples == 1  # greedy completions are all equal
    # A model that boxes its answers is asked to; one with tags of its own is asked as it was trained.
    assert "\\boxed" in settings(public_model).user and settings(TINY).user == "{problem}"
    assert settings(public_model, user="{problem}!").user == "{problem}!"


def test_a_whole_set_of_matharena_leaves_its_figure_in_the_hubs_format(tmp_path):
    found = scored([["4"]], QUESTIONS[:1])
    for rows, asked in (None, "cmimc25"), (1, "smt25"), (None, "a/smt25.csv"):
        wanted = evaluate.Wanted(TINY, "m", [asked], [], rows=rows)
        evaluate.write_results(wanted, {Path(asked).stem: found}, {}, tmp_path)
    (path,) = (tmp_path / ".eval_results").iterdir()
    (entry,) = yaml.safe_load(path.read_text())
    assert path.name == "cmimc25.yaml" and entry["value"] == 100.0 and "k = 1" in entry["notes"]
    assert entry["dataset"] == {"id": "MathArena/cmimc_2025", "task_id": "MathArena/cmimc_2025"}


# Completions


@pytest.mark.parametrize(
    "before, now, named",
    [
        ({}, {"settings": header(temperature=0.5).settings}, "temperature was 1.0 and is now 0.5"),
        ({}, {"settings": header(vllm={"quantization": "fp8"}).settings}, "vllm was {} and is now {'quant"),
        ({}, {"questions": QUESTIONS[:2]}, "was made with other questions"),
        ({}, {"weights": "other"}, "weights was 'w' and is now 'other'"),
        ({"served": "a"}, {"served": "b"}, "served was 'a' and is now 'b'"),
    ],
)
def test_a_file_made_otherwise_is_not_gone_on_with(tmp_path, before, now, named):
    CompletionFile(tmp_path / "x.jsonl", replace(header(), **before)).close()
    with pytest.raises(AimoError, match=f"{named}.*; take another --run-dir"):
        CompletionFile(tmp_path / "x.jsonl", replace(header(), **now))
    CompletionFile(tmp_path / "x.jsonl", header()).close()  # scored again, without servers


def test_a_folder_of_aimo_1_0_1_is_gone_on_with_unless_its_weights_may_be_an_adapters(tmp_path):
    now = replace(header(), weights=identity(TINY))
    for model in "tiny-base", "tiny-base+trained":
        old = asdict(replace(header(), model=model, weights=fingerprint(TINY)))
        del old["served"], old["settings"]["vllm"]
        path = write_rows(tmp_path / f"{model}.jsonl", {"evaluation": old})
        with pytest.raises(AimoError, match="weights was") if "+" in model else nullcontext():
            CompletionFile(path, now).close()


@pytest.fixture(scope="module")
def model_server():
    """A server whose answer follows from the sample's seed; a request is one completion."""
    requests = []

    def complete(request):
        requests.append(request)
        text = f"<end_working_out><SOLUTION>{request['seed'] % 3}</SOLUTION>"
        return [{"text": text, "token_ids": [5] * 7, "finish_reason": "stop"}]

    with serving(complete, 1024) as url:
        yield url, requests


@pytest.fixture
def small_benchmark(tmp_path):
    rows = [{"problem": f"What is {i} - {i}?", "answer": "0", "subject": "ab"[i % 2]} for i in range(6)]
    return write_rows(tmp_path / "zero.jsonl", *rows)


def test_an_evaluation_goes_on_where_it_stopped_and_scoring_again_asks_nobody(
    aimo_evaluate, tmp_path, model_server, small_benchmark
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    url, requests = model_server
    requests.clear()
    aimo_evaluate(small_benchmark, "--samples", 2, "--server", url)
    assert len(requests) == 12
    profile = tmp_path / "p.yaml"
    profile.write_text("training: {log_to: tensorboard}\n")
    done = aimo_evaluate(small_benchmark, "--samples", 4, "--server", url, "--profile", profile)
    figures = done.benchmarks["zero"]
    assert len(requests) == 24 and figures["samples"] == 4
    kept = completions.read_completions(tmp_path / "run/zero.jsonl")[1]
    assert len({(one.id, one.index) for one in kept}) == len({one.seed for one in kept}) == 24
    right = [one.seed % 3 == 0 for one in kept]
    assert figures["pass@1"][0] == pytest.approx(np.mean(right), abs=1e-4)
    assert set(figures["by_subject"]) == {"a", "b"} and figures["mean_tokens"][0] == 7
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    [event] = events.Scalars("zero/pass@1")
    assert event.value == pytest.approx(figures["pass@1"][0])
    # Complete: nothing is asked, and no engine starts either (tests without a marker may not start one).
    again = aimo_evaluate(small_benchmark, "--samples", 4, "--audit")
    assert len(requests) == 24 and again.benchmarks["zero"] == figures and "zero" in again.out
    assert all(row["ours"] != row["math-verify"] for row in again.audit["zero"])
    # Another benchmark joins. A question that does not fit counts as cut off.
    rows = [{"problem": problem, "answer": "0"} for problem in ("long " * 2000, "0?")]
    done = aimo_evaluate(write_rows(tmp_path / "x.jsonl", *rows), "--samples", 1, "--server", url)
    assert done.benchmarks["x"]["cut_off"] == done.benchmarks["x"]["no_answer"] == 0.5
    assert set(done.benchmarks) == set(done.leakage) == {"zero", "x"}


@pytest.mark.parametrize(
    "fails, error, told",
    [
        (AimoError("all are down"), AimoError, "all are down; 4 completions are kept in .*run the same"),
        (ValueError("CUDA"), EngineError, "the engine failed: .*CUDA; run the same command"),
        (None, EngineError, "engine failed: .*wrote nothing for 0 s; run the same command"),  # it hangs
    ],
)
def test_servers_and_engines_that_fail_cost_nothing_that_has_ended(monkeypatch, tmp_path, fails, error, told):
    def write(number, _):
        if number >= 4 and fails:
            raise fails
        return "\\boxed{4}\x03" if number < 4 else asyncio.sleep(1000)

    monkeypatch.setattr(solver, "HANG_S", 0.3)
    monkeypatch.setattr(solver, "HEALTH_CHECK_S", 0.1)
    monkeypatch.setattr(completions, "IN_FLIGHT", 1)
    with CompletionFile(tmp_path / "x.jsonl", header()) as file, pytest.raises(error, match=told):
        completions.sample_file(Scripted(write), file, 2, lambda: None)
    assert len(completions.read_completions(tmp_path / "x.jsonl")[1]) == 4


# Which model was evaluated


def change_weights(path):
    """Change the last byte of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter of the tiny base, as a stage leaves it in runs/a/sft/trained."""
    folder = tmp_path_factory.mktemp("runs") / "a/sft/trained"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"r": 8, "peft_type": "LORA"}')
    save_file({"layer.lora_A": np.ones((8, 16), np.float32)}, folder / "adapter_model.safetensors")
    return folder


def test_a_model_is_known_by_its_content_and_not_by_its_place(tmp_path, adapter, monkeypatch):
    copy = shutil.copytree(TINY, tmp_path / "copy")
    assert identity(copy) == identity(TINY) and is_same_model(fingerprint(TINY), identity(copy))
    same = shutil.copytree(adapter, tmp_path / "b/grpo/trained")
    assert identity(copy, same) == identity(TINY, adapter) != identity(TINY)
    assert not is_same_model(fingerprint(TINY), identity(TINY, adapter))
    change_weights(same / "adapter_model.safetensors")
    assert identity(TINY, same) != identity(TINY, adapter)
    found = {identity(copy)}
    for name in ("chat_template.jinja", "tokenizer.json", "model.safetensors"):
        change_weights(copy / name)
        found.add(identity(copy))
    assert len(found) == 4
    # A merged adapter of few modules changes few tensors of a large file, and perhaps none in its middle.
    monkeypatch.setattr(model_folder, "WHOLE", 0)
    for changed in range(9):
        tensors = {f"layer.{i}": np.full(100_000, i == changed, np.float32) for i in range(9)}
        save_file(tensors, tmp_path / "model.safetensors")
        found.add(identity(tmp_path))
    assert len(found) == 13


def test_another_adapter_is_sampled_and_never_shown_with_the_figures_of_the_first(
    aimo_evaluate, monkeypatch, tmp_path, small_benchmark, adapter, model_server
):
    """The engine is a stand-in that says which adapter it has."""
    second, moved = tmp_path / "runs/b/grpo/trained", tmp_path / "moved"
    for copy in (second, moved):
        shutil.copytree(adapter, copy)
    change_weights(second / "adapter_model.safetensors")
    started = []

    def start(model, layers, seed, server, adapter):
        started.append(adapter)
        return Server([model_server[0]], model, resolve_settings(model, *layers))

    monkeypatch.setattr(measure.options, "start", start)
    common = [small_benchmark, "--samples", 1]
    assert aimo_evaluate(*common, "--adapter", adapter).code == 0
    for options in (["--adapter", second], []):
        done = aimo_evaluate(*common, *options)
        assert "holds completions of other weights (tiny-base+a-sft)" in done.err
    assert aimo_evaluate(*common, "--adapter", moved).code == 0
    assert started == [str(adapter)], "a copy of the same adapter was sampled again"
    assert evaluate.model_name(second) == "b-grpo"


# Figures


def test_pass_at_k_is_the_mean_over_all_choices_of_k_completions():
    right = np.random.default_rng(0).random((5, 6)) < 0.4
    for k in (1, 4, 6):
        every = [[row[list(chosen)].any() for chosen in itertools.combinations(range(6), k)] for row in right]
        assert scores.pass_at(right, k) == pytest.approx(np.mean(every, axis=1))


def test_equal_answers_vote_together_whatever_they_look_like():
    found = scored([["4", "4.0", "5", None], ["3.5", "7/2", "4", "4"], ["5", "5", "6", "6"]])
    half = [True, True, False, False]
    assert found.right.tolist() == [half, half, half[::-1]]
    assert found.votes().tolist() == [1.0, 1.0, 0.0]  # a tie goes to the first, or the smaller number
    figures = scores.figures_of(found)
    assert figures["pass@1"][0] == 0.5 and figures["maj@4"][0] == pytest.approx(2 / 3, abs=1e-4)
    assert figures["no_answer"] == pytest.approx(1 / 12) and figures["pass@4"][0] == 1
    assert figures["by_subject"]["sums"]["questions"] == 2 and figures["by_level"]["1"]["pass@1"][0] == 0.5


def test_a_roads_figures_are_shares_of_completions_and_of_problems_and_follow_the_seed():
    one, two = Question("1", "", "1"), Question("2", "", "2")
    found = scored([[1, 1, 3, None], [2, 3, 3, None]], [one, two])
    assert found.metrics() == {"format": 0.0, "pass@1": 3 / 8, "maj@4": 1 / 2, "mean_tokens": 11.5}
    curve = scored([[1, 1, 1, 3, 3, None]], [one]).vote_curve()
    assert list(curve) == [1, 2, 4, 6] and curve[6] == 1.0 and 0 < curve[1] < 1
    many = [replace(one, id=str(i)) for i in range(5)]
    curves = [scored([[1, 3] * 8] * 5, many, seed).vote_curve() for seed in (0, 0, 1)]
    assert curves[0] == curves[1] != curves[2]


# A run's models and rows: two samples of each problem, with answers that are no integers. 1 of 2, 2 of 2 and
# 0 of 2 are right.
ROWS = [
    {"prompt": [{"role": "user", "content": f"{i}?"}], "answer": answer}
    for i, answer in enumerate([r"\frac{7}{2}", r"2\sqrt{2}", "x^2+1"])
]
SAMPLED = ["3.5", "4", r"\sqrt{8}", r"2\sqrt2", "x^2", "x+1"]


class Model(Scripted):
    """A public model that gives the answers in turn."""

    def __init__(self, folder):
        answers = itertools.cycle(SAMPLED)
        super().__init__(lambda *_: f"hm</think>It is \\boxed{{{next(answers)}}}.\x03")
        self.settings = resolve_settings(folder, {"samples": 2})

    def load_weights(self, folder):
        pass


def test_held_out_problems_may_have_any_answer_and_a_public_model_its_own_format(public_model, tmp_path):
    model = Model(public_model)
    (tmp_path / "p.yaml").write_text(json.dumps({"model": {"base": str(public_model)}}))
    run = runs.Run(config.load(tmp_path / "p.yaml"), tmp_path, "inference", 0.0)
    figures = evaluate.evaluate_models(model, run, ROWS)["base"].metrics()
    assert figures["format"] == 1.0 and figures["pass@1"] == pytest.approx(3 / 6)
    assert figures["maj@2"] == pytest.approx(0.5, abs=0.2)
    before = len(model.prompts)
    with pytest.raises(AimoError, match="1 of 4 problems have no answer"):
        evaluate.evaluate_models(model, run, [*ROWS, {**ROWS[0], "answer": None}])
    assert len(model.prompts) == before


def test_pass_rates_and_pairs_are_of_any_answer(public_model, tmp_path, monkeypatch):
    def a_run(stage, *overrides):
        boxed = [r"prompt.answer_start='\\boxed{'", "prompt.answer_end='}'"]
        (tmp_path / stage / "pass_rates.json").unlink(missing_ok=True)
        (tmp_path / stage / "pairs.json").unlink(missing_ok=True)
        return runs.Run(config.load("tiny", [*overrides, *boxed]), tmp_path, stage, 0.0)

    for module in (scores, dpo):
        monkeypatch.setattr(module, "Engine", lambda *_, **__: Model(public_model))
    run = a_run("grpo", "grpo.pass_rate=[0.2, 0.8]", "grpo.pass_rate_samples=2")
    kept, rates = scores.within_pass_rate(public_model, ROWS, run)
    assert rates == [0.5, 1.0, 0.0] and kept == ROWS[:1]
    assert scores.within_pass_rate(public_model, ROWS, run) == (kept, rates), "it is read from the folder"
    run = a_run("dpo", "dpo={learning_rate: 1e-6, samples: 2}")
    (pair,) = dpo.sample_pairs(public_model, ROWS, run)
    assert "3.5" in pair["chosen"][0]["content"] and "4" in pair["rejected"][0]["content"]
    # Of a competition, by its equality: 4 is within 20 % of 3.5, and no completion is wrong.
    near = {"slug": "near", "answer": {"kind": "number", "relative": 0.2}, "rules": "A number."}
    given = f"competition={json.dumps(near | {'artefact': {'kind': 'csv'}, 'scoring': 'tolerance'})}"
    run = a_run("grpo", "grpo.pass_rate=[0.2, 1]", "grpo.pass_rate_samples=2", given)
    assert scores.within_pass_rate(public_model, ROWS, run)[1] == [1.0, 1.0, 0.0]
    run = a_run("dpo", "dpo={learning_rate: 1e-6, samples: 2}", given)
    with pytest.raises(AimoError, match="none of 3 problems gave a right and a worse completion"):
        dpo.sample_pairs(public_model, ROWS, run)


def test_evaluate_agrees_with_the_roads_figures_to_the_sample(tmp_path, model_server):
    problems = [one.problem for one in sources.generate(9, "heldout", "evaluate")]
    asked = [Question(str(i), problem, str(i % 3)) for i, problem in enumerate(problems)]
    rows = [{"prompt": [{"role": "user", "content": q.problem}], "answer": q.answer} for q in asked]
    sampler = Server([model_server[0]], TINY, resolve_settings(TINY))
    theirs = scores.sample_rows(sampler, rows, Prompt(), 4, 7)
    with CompletionFile(tmp_path / "x.jsonl", header(asked, seed=7)) as file:
        completions.sample_file(sampler, file, 4, lambda: None)
    sampler.close()
    ours = scores.score(file.header, list(file.traces.values()))
    texts = [[[trace.text for trace in group] for group in one.traces] for one in (ours, theirs)]
    assert texts[0] == texts[1] and (ours.right == theirs.right).all() and 0 < ours.right.mean() < 1
    assert ours.votes().mean() == theirs.metrics()["maj@4"]


# Leakage and published figures


def test_leakage_is_the_share_of_a_questions_text_in_the_runs_data(tmp_path):
    known = "Tom has seven red apples and buys twelve green ones at the market on Monday."
    other = "A train leaves the station at noon and travels for three hours towards the sea."
    half = " ".join([*known.split()[:8], *other.split()[:8]])
    (tmp_path / "data").mkdir()
    talk = pl.DataFrame({"prompt": [[{"role": "user", "content": known}]]})
    talk.write_parquet(tmp_path / "data/sft.parquet")
    asked = {"x": [Question(str(i), text, "1") for i, text in enumerate([known, other, half])]}
    found = benchmarks.check_leakage(tmp_path / "grpo" / "model", asked, False)["x"]
    assert found["found"]["0"] == 1 and "1" not in found["found"] and 0 < found["found"]["2"] < 0.2
    assert "why" in benchmarks.check_leakage(TINY, asked, False)["x"]


def test_leakage_asks_nobody_for_sets_that_a_card_names_unless_told_to(tmp_path, monkeypatch):
    import datasets
    import huggingface_hub

    asked = []

    def resolve(host, *_):
        asked.append(host)
        raise OSError("no network in tests")

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    monkeypatch.setattr("time.sleep", lambda _: None)  # the hub's client would try for 23 s
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    text = "How many apples has Tom when he buys five and eats two?"
    rows = write_rows(tmp_path / "rows.jsonl", {"problem": text, "answer": "3"})

    def leakage(named, download=False):
        (tmp_path / "README.md").write_text(f"---\ndatasets:\n- {named}\n---\n\n# M\n")
        return benchmarks.check_leakage(tmp_path, {"x": [Question("q", text, "3")]}, download)["x"]

    assert leakage(rows)["share"] == 1
    asked.clear()
    why = leakage("someone/unknown")["why"]
    assert "someone/unknown" in why and "--card-data" in why and asked == []
    assert not datasets.config.HF_HUB_OFFLINE and not huggingface_hub.constants.HF_HUB_OFFLINE
    assert "someone/unknown" in leakage("someone/unknown", download=True)["why"] and asked


def test_what_is_measured_published_and_not_run_is_told_apart():
    rows, sources = benchmarks.beside_published("ours", {"aime24": 12.0})
    assert rows[0]["kind"] == "measured" and rows[0]["aime24"] == 12.0 and rows[0]["math500"] == "not run"
    assert any(row["math500"] == 90.0 and row["kind"] == "published" for row in rows[1:])
    assert {row["source"] for row in rows[1:]} == {source["number"] for source in sources}
