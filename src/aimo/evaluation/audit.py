"""A second scorer: math-verify on the whole completion, as lighteval and TRL use it, beside our verdicts.

Costs up to a tenth of a second a completion. Out of scope: who is right, which a person has to see.
"""

import logging
from typing import Any

from aimo.evaluation.scores import Scores
from aimo.run.progress import counting


def disagreements(scores: Scores) -> list[dict[str, Any]]:
    """The completions on which math-verify and we disagree, once for each question, answer and verdict."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it logs each completion that it gives up
    configs = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    found: dict[tuple[str, str | None, bool], dict[str, Any]] = {}
    rows = zip(scores.questions, scores.traces, scores.answers, scores.right, strict=True)
    with counting("audit", scores.right.size) as step:
        for question, traces, answers, right in rows:
            gold = parse(f"${question.answer}$")
            for trace, answer, ours in zip(traces, answers, right.tolist(), strict=True):
                theirs = bool(gold and verify(gold, parse(trace.text, extraction_config=configs)))
                step()
                if theirs != ours:
                    row = {"question": question.id, "gold": question.answer, "answer": answer or "none"}
                    verdicts = {"ours": ours, "math-verify": theirs, "end": trace.text[-120:]}
                    found.setdefault((question.id, answer, ours), row | verdicts)
    return list(found.values())
