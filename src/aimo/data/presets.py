"""Datasets whose columns are known, by their id on the hub or the command that makes them.

A local copy takes the same by `preset: ID`.
"""

from dataclasses import dataclass

from aimo.config import Columns


@dataclass(frozen=True)
class Preset:
    """What a dataset's columns hold, and which subset and split are taken where a profile names none."""

    columns: Columns
    subset: str | None = None
    split: str | None = None
    order: tuple[str, ...] = ()
    """The columns by which rows are sorted, where their order in the file is that of chance."""


TRACES = Columns(answer="expected_answer", solution="generated_solution", pass_rate="pass_rate_72b_tir")
PRESETS = {
    "aimo distil": Preset(Columns(solution="generation", complete="complete"), order=("key", "sample")),
    "aimo reject": Preset(Columns(solution="generation", correct="correct", pass_rate="pass_rate")),
    "open-r1/OpenR1-Math-220k": Preset(
        Columns(
            solution="generations",
            correct="correctness_math_verify",
            complete="is_reasoning_complete",
            kind="question_type",
        ),
        "default",
    ),
    "open-r1/Mixture-of-Thoughts": Preset(Columns(answer=None, messages="messages"), "math"),
    "open-r1/DAPO-Math-17k-Processed": Preset(Columns(problem="prompt", answer="solution"), "all"),
    "unsloth/OpenMathReasoning-mini": Preset(TRACES, split="cot"),
    "nvidia/OpenMathReasoning": Preset(TRACES, split="cot"),
    "AI-MO/NuminaMath-1.5": Preset(
        Columns(
            solution="solution",
            correct="solution_is_valid",
            complete="problem_is_valid",
            kind="question_type",
        )
    ),
    "GAIR/LIMO": Preset(Columns(problem="question", solution="solution")),
    "simplescaling/s1K-1.1": Preset(
        Columns(problem="question", answer="solution", solution="deepseek_thinking_trajectory")
    ),
    "openai/gsm8k": Preset(Columns(problem="question", solution="answer"), "main"),
}
