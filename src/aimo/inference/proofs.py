"""Prove a problem with one model in four roles, within a time budget.

    prove     writes several proofs, each after a thought
    verify    marks each proof several times, from 0 to 7, with objections
    refine    rewrites the best imperfect proofs to meet the objections; they are marked too
    select    votes for one of the best

Each step ends at its share of the budget, and time that it saves passes to the next. A call that is still
running then is cut: the thought of a proof is closed, and reserved time is left to write the proof down. A
proof that degenerates into repetition is dropped.

The solution's samples, each with its role, are the whole state: after an engine dies, another continues with
what is missing. `choose` returns a text at any time: the proof with the most votes, or else the best mark (an
unmarked one counts as UNMARKED), or else a proof that was cut, the end of a thought, or the fallback.
"""

import asyncio
import copy
import itertools
import math
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from aimo.inference import answers, harmony
from aimo.inference.answers import PAGE, Integer, Proof
from aimo.inference.prompts import Completion, Sampler
from aimo.inference.sample import AskedProblem, End, RunningSample, Sample
from aimo.inference.settings import Proofs
from aimo.inference.solver import FORCED_ANSWER_S, Solution, Solver
from aimo.inference.voting import Stop

# Shares of the budget by which the steps end; the rest is a margin.
PROVED, VERIFIED, REFINED, VERIFIED_AGAIN, SELECTED = 0.45, 0.62, 0.82, 0.92, 0.98
CLOSING = 0.2  # of a step's time, reserved for closing cut calls
FULL = 7  # the best mark
MARK = Integer(0, FULL)
UNMARKED = FULL / 2  # the mark assumed for a proof without marks
NEAR, FINALISTS = 1.0, 4  # how far below the best mark a finalist may be, and the most finalists
OBJECTION = 6000  # characters at the end of a verifier's text that a refiner reads
THOUGHT = 3000  # characters at the end of a thought that replace a missing proof


def prove_problem(
    sampler: Sampler,
    problem: str,
    kind: Proof,
    seed: int = 0,
    budget_s: float | None = None,
    solution: Solution | None = None,
    keep: Callable[[Sample], None] = lambda sample: None,
    rules: str = "",
) -> Solution:
    """Prove a problem within `budget_s` seconds, or the settings' limit if that is lower.

    The other arguments are those of `solver.solve_problem`. The solution always has a text.
    """
    solution = solution or Solution(kind.fallback)
    prover = Prover(AskedProblem(sampler, problem, seed, rules=rules), kind, solution, keep)
    return prover.solve(min(math.inf if budget_s is None else budget_s, prover.proofs.seconds or math.inf))


class ProofSample(RunningSample):
    """A running proof. If its thought is cut, the thought is closed and the proof is written down."""

    def __init__(self, problem: AskedProblem, index: int, begin_s: float, proofs: Proofs):
        super().__init__(problem, index, begin_s, with_tools=False)
        room = self.sampler.max_length - len(self.prompt)
        self.closing = min(proofs.closing_tokens, room // 4)
        tokens = min(proofs.proof_tokens, room - self.closing)
        self.settings = replace(self.settings, max_tokens=tokens)

    async def work(self) -> Completion:
        completion = await self.run()
        self.end = self.end or (End.FINISHED if completion.finished else End.TOKENS)
        return await self.close() if self.end is End.TOKENS else completion

    async def close(self) -> Completion:
        end, turn, text = self.end, self.turn, self.text
        ending = self.talk.forced_ending(text[self.message_begin :], self.thinking)
        ending = ending.removesuffix(harmony.ANSWER)
        ending = ending if ending.strip() else ""  # it was cut inside its proof
        added = self.sampler.tokenizer.encode(ending, add_special_tokens=False)
        self.talk.ids, self.talk.text = [*self.turn_prompt, *turn.token_ids, *added], text + ending
        self.earlier += replace(turn, text="")
        self.settings = replace(self.settings, max_tokens=self.earlier.tokens + self.closing)
        self.end = None
        completion = await self.run()
        self.end = self.end or end
        return completion


class Prover(Solver):
    """Proves one problem on the sampler's event loop."""

    def __init__(
        self, problem: AskedProblem, kind: Proof, solution: Solution, keep: Callable[[Sample], None]
    ):
        super().__init__(problem, solution, keep)
        settings = self.sampler.settings
        self.kind, self.proofs = kind, settings.proofs or Proofs()
        self.roles: dict[int, tuple[str, bool]] = {}  # the role, and whether the text begins in a thought
        self.numbers = itertools.count(1 + max((sample.index for sample in solution.samples), default=-1))
        self.bare = copy.copy(self.sampler)  # the same model, for the prompts of the roles
        tags = replace(settings.tags, answer_start="\\boxed{", answer_end="}")
        self.bare.settings = replace(settings, user="{problem}", variants=[], stop=[], tools=0.0, tags=tags)

    async def take_steps(self, budget_s: float) -> None:
        for _ in range(2):  # the second time replaces dropped proofs
            more = self.proofs.provers - sum(sample.role == "prove" for sample in self.ranked())
            await self.ask([("prove", self.prompt("prove"))] * more, self.begun + PROVED * budget_s)
        await self.verify(self.begun + VERIFIED * budget_s)
        asked = []
        for proof in self.ranked()[: self.proofs.refiners]:
            role, fault = f"refine {proof.index}", fault_of_form(str(proof.answer), self.kind.pages)
            verdicts = self.of_role(f"verify {proof.index}")
            told = [(self.final_text(verdict.text, False) or "")[-OBJECTION:] for verdict in verdicts]
            told += [f"Its form: {fault}."] * bool(fault)
            perfect = not fault and self.mark(proof) in (None, FULL)
            if not perfect and not self.of_role(role):
                objections = "\n\n".join(f"{i}. {text}" for i, text in enumerate(told, 1))
                asked.append((role, self.prompt("refine", proof=proof.answer, objections=objections)))
        await self.ask(asked, self.begun + REFINED * budget_s)
        await self.verify(self.begun + VERIFIED_AGAIN * budget_s)
        # Votes choose among the proofs near the best.
        ranked = self.ranked()
        best = self.rank(ranked[0])[0] if ranked else 0.0
        near = [proof for proof in ranked if self.rank(proof)[0] >= best - NEAR][:FINALISTS]
        asked = []
        for number in range(len(self.of_role("select")), self.proofs.selectors if len(near) > 1 else 0):
            first = number % len(near)  # each proof comes first in some prompts
            shown = near[first:] + near[:first]
            proofs = "\n\n".join(f"Proof {i}:\n\n{proof.answer}" for i, proof in enumerate(shown, 1))
            indices = ",".join(str(proof.index) for proof in shown)
            asked.append((f"select {indices}", self.prompt("select", proofs=proofs)))
        end = self.begun + SELECTED * budget_s
        await self.ask(asked, end, Integer(1, max(1, len(near))))
        self.solution.stop = Stop.DEADLINE if time.monotonic() > end else Stop.EXHAUSTED
        self.solution.note = f"{len(self.lost)} calls failed: {self.fault}" if self.lost else ""

    def conclude(self) -> None:
        for sample in list(self.running.values()):  # of an engine that died or hangs
            self.add(sample.cut(End.STOPPED, self.now()))
        self.solution.answer, self.solution.how = self.choose()

    async def verify(self, end: float) -> None:
        asked = []
        for proof in self.ranked():
            role = f"verify {proof.index}"
            more = self.proofs.verifiers - len(self.of_role(role))
            asked += [(role, self.prompt("verify", proof=proof.answer))] * more
        await self.ask(asked, end, MARK)

    async def ask(self, asked: list[tuple[str, str]], end: float, kind: Integer | None = None) -> None:
        """Sample the answers to (role, prompt) pairs until `end`.

        With a `kind`, a call that is cut is forced to answer. Without one, the model writes proofs.
        """
        if (left := end - time.monotonic()) <= 0:
            return
        cut = end - CLOSING * left if left < math.inf else end
        for role, text in asked:
            problem = AskedProblem(self.bare, text, self.problem.seed, kind, self.problem.rules)
            if problem.fault():  # it does not fit the context
                continue
            index, begin_s = next(self.numbers), self.now()
            sample: RunningSample = ProofSample(problem, index, begin_s, self.proofs)
            if kind:
                sample = RunningSample(problem, index, begin_s, with_tools=False)
                sample.settings = replace(sample.settings, max_tokens=self.proofs.verdict_tokens)
            self.roles[index] = role, sample.talk.thinks()
            self.running[asyncio.create_task(self.finish(sample, cut, end))] = sample
        while self.running and time.monotonic() < end + FORCED_ANSWER_S:  # a dead engine releases nothing
            await self.take_ended(math.inf)

    def prompt(self, role: str, **parts: Any) -> str:
        known = {"problem": self.problem.text, "rules": self.problem.rules} | parts
        return re.sub(r"\{(\w+)\}", lambda m: str(known.get(m[1], m[0])), getattr(self.proofs, role))

    def add(self, sample: Sample) -> None:
        """Record a sample with its role. A proof that did not degenerate becomes the sample's answer."""
        role, thinks = self.roles[sample.index]
        is_proof = role.startswith(("prove", "refine")) and sample.end is not End.REPETITION
        answer = self.final_text(sample.text, thinks) if is_proof else None
        super().add(replace(sample, role=role, answer=answer))

    def final_text(self, text: str, thinks: bool) -> str | None:
        """Return the text after the thought, or None if it ends inside its thought."""
        tags = self.sampler.settings.tags
        ends = [end for end in (tags.think_end, *answers.PUBLIC_THINK_ENDS) if end in text]
        if not ends and (thinks or text.lstrip().startswith(tags.think_start)):
            return None
        proof = text[max((text.rfind(end) + len(end) for end in ends), default=0) :]
        for tag in (tags.answer_start, tags.answer_end):
            proof = proof.replace(tag, "") if tag.startswith("<") else proof
        return self.kind.read(re.split(r"<\|\w+\|>", proof)[0])

    def of_role(self, role: str) -> list[Sample]:
        ended = sorted(self.solution.ended, key=lambda sample: sample.index)  # in whatever order they ended
        return [sample for sample in ended if f"{sample.role} ".startswith(f"{role} ")]

    def ranked(self) -> list[Sample]:
        """Return the distinct proofs, the best first."""
        ended = sorted(self.solution.ended, key=lambda sample: -sample.index)
        first = {sample.answer: sample for sample in ended if sample.answer}
        return sorted(first.values(), key=self.rank, reverse=True)

    def rank(self, proof: Sample) -> tuple[float, bool, int]:
        mark, fault = self.mark(proof), fault_of_form(str(proof.answer), self.kind.pages)
        return (UNMARKED if mark is None else mark) - 2 * bool(fault), proof.end is End.FINISHED, -proof.index

    def mark(self, proof: Sample) -> float | None:
        """Return the mean of a proof's marks, or None if it has none."""
        read = [MARK.read(MARK.find(verdict.text)) for verdict in self.of_role(f"verify {proof.index}")]
        marks = [mark for mark in read if mark is not None]
        return sum(marks) / len(marks) if marks else None

    def choose(self) -> tuple[str, str]:
        """Return the text to submit, and how it was found."""
        votes = Counter[int]()
        for sample in self.of_role("select"):
            shown, kind = sample.role.split()[1].split(","), Integer(1, 1 + sample.role.count(","))
            if number := kind.read(kind.find(sample.text)):
                votes[int(shown[number - 1])] += 1
        if ranked := self.ranked():
            best = max(ranked, key=lambda proof: (votes[proof.index], self.rank(proof)))
            mark = self.mark(best)
            how = [f"{votes[best.index]} of {votes.total()} votes"] if votes else []
            how += ["not marked" if mark is None else f"marked {mark:.1f} of {FULL}"]
            how += ["cut off"] if best.end in (End.TIME, End.TOKENS) else []
            return fit_pages(str(best.answer), self.kind.pages), ", ".join(how)
        tried = [sample for sample in self.solution.samples if sample.role.startswith(("prove", "refine"))]
        if partial := [str(sample.answer) for sample in tried if sample.answer]:
            return fit_pages(max(partial, key=len), self.kind.pages), "cut off"
        thoughts = [sample.text for sample in tried if sample.end is not End.REPETITION]
        said = re.sub(r"<[^<>\n]{1,40}>", "", max(thoughts, key=len, default=""))
        if said := self.kind.read(said[-THOUGHT:]) or "":
            return fit_pages(f"Not finished.\n\n{said}", self.kind.pages), "the end of a thought"
        return self.kind.fallback, ""


def fault_of_form(text: str, pages: int | None) -> str:
    """Return what is wrong with a proof's length or Markdown, or an empty string."""
    if pages and len(text) > pages * PAGE:
        return f"it has {len(text) / PAGE:.1f} pages, and {pages} are allowed"
    if found := re.search(r"</?think>|<\|\w+\|>", text):
        return f"{found[0]} stands in it"
    if len(re.findall(r"(?m)^ *```", text)) % 2:
        return "a fenced block is not closed"
    plain = re.sub(r"(?ms)^ *```.*?^ *```|`[^`\n]+`|\\[$\\]", "", text)
    if plain.count("$$") % 2 or plain.replace("$$", "").count("$") % 2:
        return "a formula between $ is not closed"
    opened: list[str] = []
    for which, name in re.findall(r"\\(begin|end)\{(\w+\*?)\}", plain):
        if which == "begin":
            opened.append(name)
        elif not opened or opened.pop() != name:
            return f"\\end{{{name}}} closes nothing"
    return f"\\begin{{{opened[-1]}}} is not closed" if opened else ""


def fit_pages(text: str, pages: int | None) -> str:
    """Cut a proof to its pages, if possible after a paragraph that leaves nothing in its Markdown open."""
    if not pages or len(text) <= pages * PAGE:
        return text
    paragraphs = text[: pages * PAGE].split("\n\n")
    ends = ("\n\n".join(paragraphs[:n]) for n in range(len(paragraphs) - 1, 0, -1))
    return next((one for one in ends if not fault_of_form(one, pages)), text[: pages * PAGE])
