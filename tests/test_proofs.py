"""Proofs: what each role is asked, what is cut, closed, dropped and chosen; deaths, hangs, no time at all."""

import asyncio
import itertools
import json
import re
import shlex
import time
from dataclasses import replace

import nbformat
import polars as pl
import pytest
from conftest import ROOT, TINY, here, refused
from scripted import Scripted, run_shipped, write_shipped

from aimo.evaluation import submission
from aimo.inference import gateway, solver
from aimo.inference.answers import PAGE, Proof
from aimo.inference.competitions import COMPETITIONS
from aimo.inference.errors import AimoError
from aimo.inference.harmony import ANSWER, Harmony
from aimo.inference.journal import Journal
from aimo.inference.local import answer_file, journal_beside
from aimo.inference.proofs import fault_of_form, fit_pages, prove_problem
from aimo.inference.sample import End
from aimo.inference.settings import HARMONY, Proofs, Tags
from aimo.inference.storage import write_whole
from aimo.inference.voting import Stop
from aimo.kaggle import kernels

KIND = Proof(pages=5)
BEGINS = {"Prove this": "prove", "Mark": "verify", "Examiners marked": "refine", "These are": "select"}
LONG = " ".join(str(n * n) for n in range(4000))


def role_of(prompt):
    return next(role for begin, role in BEGINS.items() if f"user: {begin}" in prompt)


def scripted(thinking=False, counts=None, **said):
    """A sampler whose roles say texts in turn, or what a function makes of their prompt."""
    turns = {role: itertools.cycle(texts) for role, texts in said.items() if isinstance(texts, list)}

    def write(_, prompt):
        if prompt.endswith("\\boxed{"):
            return "0}\x03"
        role = role_of(prompt)
        return next(turns[role]) if role in turns else said[role](prompt)

    few = {"provers": 2, "verifiers": 1, "refiners": 1, "selectors": 1} | (counts or {})
    return Scripted(write, proofs=Proofs(**few), thinking=thinking)


def marks(**by_part):
    """A verifier whose mark is that of the first text which the proof holds."""

    def verify(prompt):
        return f"Gap. \\boxed{{{next(mark for part, mark in by_part.items() if part in prompt)}}}\x03"

    return verify


def select_better(prompt):
    shown = re.findall(r"Proof (\d): *(\w+)", prompt.replace("\n", " "))
    return f"\\boxed{{{next(number for number, said in shown if said == 'Better')}}}\x03"


GOOD = {
    "prove": ["Bad proof.\x03", "Fair proof.\x03"],
    "verify": marks(Better=7, Fair=6, proof=1),
    "refine": ["Better proof.\x03"],
    "select": select_better,
}


def test_one_model_proves_verifies_refines_and_selects():
    sampler, kept = scripted(**GOOD), []
    solution = prove_problem(sampler, "Prove 1 = 1.", KIND, keep=kept.append, rules="On five pages.")
    assert solution.answer == "Better proof." and solution.stop is Stop.EXHAUSTED
    assert "Better proof. (1 of 1 votes, marked 7.0 of 7, exhausted" in solution.explain()
    roles = [role_of(prompt) for prompt in sampler.prompts]
    assert roles == ["prove"] * 2 + ["verify"] * 2 + ["refine", "verify", "select"]
    told = ["prove", "prove", "refine 1", "select 4,1", "verify 0", "verify 1", "verify 4"]
    assert sorted(sample.role for sample in kept) == told
    refining = sampler.prompts[roles.index("refine")]
    assert "Fair proof." in refining and "1. Gap. \\boxed{6}" in refining and "On five pages." in refining


def test_votes_go_before_marks_among_those_near_the_best():
    sampler = scripted(
        prove=["Fair.\x03", "Good.\x03", "Bad.\x03"],
        verify=marks(Good=7, Fair=6, Bad=1),
        select=lambda prompt: f"\\boxed{{{1 if prompt.find('Fair') < prompt.find('Good') else 2}}}\x03",
        counts={"provers": 3, "refiners": 0, "selectors": 3},
    )
    solution = prove_problem(sampler, "?", KIND)
    assert (solution.answer, solution.how) == ("Fair.", "3 of 3 votes, marked 6.0 of 7")
    shown = [prompt for prompt in sampler.prompts if role_of(prompt) == "select"]
    assert len({prompt.find("Fair") < prompt.find("Good") for prompt in shown}) == 2, "each is first in some"
    assert not any("Bad." in prompt for prompt in shown)


def test_a_thought_that_uses_up_its_tokens_is_closed_and_its_proof_saved():
    def write(prompt):
        return "Written down.\x03" if "</think>" in prompt else LONG

    sampler = scripted(True, {"provers": 1, "proof_tokens": 500, "verifiers": 0}, prove=write)
    solution = prove_problem(sampler, "?", KIND)
    assert (solution.answer, solution.how) == ("Written down.", "not marked, cut off")
    assert sampler.prompts[1].endswith("\n</think>\n\n") and LONG[:400] in sampler.prompts[1]


@pytest.mark.parametrize(
    "tags, said",
    [
        (Tags(), "t<end_working_out><SOLUTION>Proof.</SOLUTION>\x03"),
        (Tags(), "t</think>Proof.<|im_end|>\x03"),
        (HARMONY, f"{HARMONY.think_start}t<|end|><|start|>assistant{HARMONY.think_end}Proof.<|return|>\x03"),
    ],
)
def test_a_proof_is_what_follows_the_thought_in_each_format(tags, said):
    sampler = scripted(True, {"provers": 1, "verifiers": 0}, prove=[said])
    sampler.settings = replace(sampler.settings, tags=tags)
    assert prove_problem(sampler, "?", KIND).answer == "Proof."
    closing = Harmony.forced_ending(None, f"{HARMONY.think_start}t", True).removesuffix(ANSWER)
    assert closing == f"<|end|><|start|>assistant{HARMONY.think_end}", "what closes a thought of gpt-oss"


class Streaming(Scripted):
    """Writes a beginning at once, and goes on only when the thought is closed."""

    async def sample(self, prompt, seed, settings, until=None):
        text, begun = self.tokenizer.decode(prompt), self.write(0, "")
        if "</think>" not in text:
            until(begun, self.tokenizer.encode(begun))
            await asyncio.sleep(60)
        return await super().sample(prompt, seed, settings, until)


def test_a_call_is_cut_by_the_time_and_its_thought_closed():
    few = Proofs(provers=2, verifiers=0, refiners=0)
    sampler = Streaming(lambda _, prompt: "Saved.\x03" if prompt else "I think", proofs=few, thinking=True)
    begun = time.monotonic()
    solution = prove_problem(sampler, "?", KIND, budget_s=1.0)
    assert time.monotonic() - begun < 3 and solution.answer == "Saved."
    assert solution.samples[0].end is End.TIME and "I think" in sampler.prompts[-1]


def test_an_engine_that_hangs_is_left_with_the_proof_that_it_had_written(monkeypatch):
    monkeypatch.setattr(solver, "HANG_S", 0.2)
    monkeypatch.setattr(solver, "HEALTH_CHECK_S", 0.1)
    sampler = Streaming(lambda *_: "thought</think>Half a proof", proofs=Proofs(provers=1), thinking=True)
    solution = prove_problem(sampler, "?", KIND, budget_s=30.0)
    assert solution.stop is Stop.FAILED and "wrote nothing" in solution.note
    assert (solution.answer, solution.how) == ("Half a proof", "cut off")


def test_repetition_is_dropped_and_asked_again_once():
    loop = "We go round. " * 3000
    sampler = scripted(prove=[loop, "Sound.\x03", "Also sound.\x03"], counts={"verifiers": 0, "selectors": 0})
    solution = prove_problem(sampler, "?", KIND)
    first = min(solution.samples, key=lambda sample: sample.index)
    assert first.end is End.REPETITION and first.answer is None and first.tokens < 5000
    assert solution.answer == "Sound." and len(sampler.prompts) == 3


@pytest.mark.parametrize(
    "said, answer, how",
    [
        ("Only a thought", "Not finished.\n\nOnly a thought", "the end of a thought"),
        ("round and round " * 3000, "No proof was found.", ""),
    ],
)
def test_there_is_always_a_text(said, answer, how):
    counts = {"provers": 1, "closing_tokens": 1, "proof_tokens": 40000}
    solution = prove_problem(scripted(True, counts, prove=[said]), "?", KIND)
    assert (solution.answer, solution.how) == (answer, how) and KIND.accepts(solution.answer)


def test_no_time_at_all_gives_the_fallback_at_once_and_the_profile_s_seconds_bound_a_problem():
    sampler, begun = scripted(**GOOD), time.monotonic()
    solution = prove_problem(sampler, "?", KIND, budget_s=0.0)
    assert solution.answer == KIND.fallback and not sampler.prompts and solution.stop is Stop.DEADLINE
    sampler = scripted(counts={"seconds": 0.5}, **GOOD)
    sampler.write = lambda *_: asyncio.sleep(60)
    assert prove_problem(sampler, "?", KIND).answer == KIND.fallback and time.monotonic() - begun < 6


def test_another_engine_goes_on_with_what_a_dead_one_left_in_the_journal(tmp_path):
    dying, path = scripted(**GOOD), tmp_path / "j.jsonl"
    write, journal = dying.write, Journal(path, "m", kind=KIND)

    def die(number, prompt):
        if role_of(prompt) == "verify":
            dying.has_died = True
            raise RuntimeError("the device is gone")
        return write(number, prompt)

    dying.write = die
    solution = prove_problem(dying, "?", KIND, keep=lambda one: journal.add("a", "?", one))
    assert solution.stop is Stop.FAILED and solution.answer == "Bad proof." and "died" in solution.note
    for left in solution, Journal(path, "m", kind=KIND).recall("a", "?"):
        other = scripted(**GOOD)
        assert prove_problem(other, "?", KIND, solution=left).answer == "Better proof."
        assert not any(role_of(prompt) == "prove" for prompt in other.prompts)


# Form


@pytest.mark.parametrize(
    "text, fault",
    [
        ("Let $x$ be.\n\n$$x = 1$$\n\n\\begin{align}x\\end{align} It costs \\$5. `$` ```", ""),
        ("x" * (5 * PAGE + 1), "it has 5.0 pages, and 5 are allowed"),
        ("so <think> it", "<think> stands in it"),
        ("```\ncode", "a fenced block is not closed"),
        ("$$x$", "a formula between $ is not closed"),
        ("\\begin{a}\\begin{b}\\end{a}\\end{b}", "\\end{a} closes nothing"),
    ],
)
def test_length_and_markdown_are_checked(text, fault):
    assert fault_of_form(text, KIND.pages) == fault
    cut = fit_pages("\n\n".join(["Step $x$ holds."] * 2000), KIND.pages)
    assert cut.endswith("holds.") and KIND.accepts(cut), "what is too long ends with a paragraph"


def test_a_fault_of_form_is_an_objection_and_ranks_below():
    sampler = scripted(
        prove=["Let $x be.\x03", "Let x be.\x03"],
        verify=marks(**{"$x be": 7, "x": 6}),
        refine=["Let $x$ be.\x03"],
        counts={"refiners": 2, "selectors": 0},
    )
    assert prove_problem(sampler, "?", KIND).answer in ("Let x be.", "Let $x$ be.")
    assert any("Its form: a formula between $ is not closed." in prompt for prompt in sampler.prompts)


# A competition that takes proofs


def test_a_competition_of_proofs_is_answered_whole_after_every_problem(tmp_path, monkeypatch):
    test, out, seen = tmp_path / "test.csv", tmp_path / "submission.csv", []
    test.write_text("id,problem\na,Prove A.\nb,Prove B.\n")
    monkeypatch.setattr(gateway, "write_whole", lambda path, of: seen.append(path) or write_whole(path, of))
    sampler = scripted(**GOOD | {"prove": ['Bad "proof",\nof lines.\x03', "Fair proof.\x03"]})
    answer_file(sampler, test, out, 0, "proof-pilot")
    assert seen[1:] == [out, out]
    table = pl.read_csv(out)
    assert table.columns == ["id", "prediction"] and table["prediction"].to_list() == ["Better proof."] * 2
    lines = [json.loads(line) for line in journal_beside(out).read_text().splitlines()]
    assert lines[0]["journal"]["answer"] == {"pages": 5, "kind": "proof"}
    assert answer_file(scripted(), test, out, 0, "proof-pilot").keys() == {"a", "b"}, "asks nothing again"


def test_proofs_are_not_scored_here(tmp_path):
    rules = COMPETITIONS["proof-pilot"]
    with pytest.raises(AimoError, match="people mark its proofs"):
        submission.score_file(rules, tmp_path / "s.csv", tmp_path / "a.csv")
    Journal(tmp_path / "j.jsonl", "m", kind=KIND).add("a", "?", "A proof.")
    refused("replay", tmp_path / "j.jsonl", told=["line 1: it has proofs, on which no samples vote"])
    given, out = ["--competition", "proof-pilot"], ["--out", tmp_path]
    refused("evaluate", TINY, *given, "--benchmarks", "a.csv", told=["people mark its proofs"])
    refused("kernel", "build", "evaluate", *given, *out, told=["has no use for competition proof-pilot"])
    (tmp_path / "t.csv").write_text("id,problem\na,Prove.\n")
    run = ["run", "--profile", "tiny", *given, "--test", tmp_path / "t.csv", "--run-dir", tmp_path / "run"]
    for key in "data.heldout", "grpo.probe_steps", "grpo.rewards.accuracy":
        refused(*run, told=[f"{key}: nothing here marks the proofs of"])
        run += ["--set", f"{key}=null"]
    assert kernels.kernels_of("proof-pilot") == kernels.kernels_of(None, "proof-pilot") == ["submission"]


def test_the_page_s_kernel_proves_in_an_empty_folder_and_writes_its_file(tmp_path, monkeypatch):
    page = (ROOT / "docs/competitions.md").read_text().partition("\n## Proofs")[2]
    (command,) = re.findall(r"^aimo (kernel build .*)$", page, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kernels/submission").mkdir(parents=True)
    assert here(*shlex.split(command)).returncode == 0
    cells = [cell.source for cell in nbformat.read("kernels/submission/aimo-submission.ipynb", 4).cells]
    assert 'competition = "proof-pilot"' in cells[2] and "'proof_tokens': 98304" in "".join(cells)
    write_shipped(cells, tmp_path)
    (tmp_path / "test.csv").write_text("id,problem,answer\na,Prove A.,a reference\nb,Prove B.,\n")
    done = run_shipped(tmp_path, "proof-pilot", "test.csv", {"": ["Proved, \\boxed{7}"]})
    assert done.returncode == 0, done.stderr[-2000:]
    assert pl.read_csv("submission.csv")["prediction"].to_list() == ["Proved, \\boxed{7}"] * 2


def test_the_tiny_base_proves_under_vllm(engine, tmp_path, monkeypatch):
    """The mechanics with a real engine: thoughts are cut and closed, and a text comes whatever it says."""
    counts = {"provers": 2, "verifiers": 1, "refiners": 1, "selectors": 1}
    tokens = {"proof_tokens": 48, "verdict_tokens": 32, "closing_tokens": 16}
    prompts = {
        "prove": "{problem}",
        "verify": "{proof} ok?",
        "refine": "{objections}",
        "select": "{proofs} 1?",
    }
    few = Proofs(**counts, **tokens, **prompts)
    monkeypatch.setattr(engine, "settings", replace(engine.settings, proofs=few))
    test, out = tmp_path / "test.csv", tmp_path / "submission.csv"
    test.write_text("id,problem\na,What is 3 + 4?\nb,What is 17 + 25?\n")
    solutions = answer_file(engine, test, out, 0, "proof-pilot")
    assert all(map(KIND.accepts, pl.read_csv(out, infer_schema=False)["prediction"]))
    roles = {sample.role.split()[0] for one in solutions.values() for sample in one.samples}
    assert {"prove", "verify"} <= roles and all(one.stop is Stop.EXHAUSTED for one in solutions.values())
