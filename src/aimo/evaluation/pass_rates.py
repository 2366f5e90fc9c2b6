"""Keep the problems that a model solves neither always nor never, because only those have a GRPO gradient."""

from pathlib import Path
from typing import Any

from aimo.errors import AimoError
from aimo.evaluation.metrics import evaluate
from aimo.inference.engine import Engine
from aimo.inference.storage import read_json, write_json
from aimo.run.runs import Run


def within_pass_rate(
    model: Path, rows: list[dict[str, Any]], run: Run
) -> tuple[list[dict[str, Any]], list[float]]:
    """The rows of which `model` solves a share within `grpo.pass_rate`, and (n,) the shares of all n rows.

    Without that key: every row, and no shares. Each row is sampled `grpo.pass_rate_samples` times. The
    shares are kept in the stage's folder, and read from there when the stage is started again. AimoError
    when no row is left.
    """
    grpo = run.profile.grpo
    if grpo is None or grpo.pass_rate is None:
        return rows, []
    low, high = grpo.pass_rate
    tried = run.folder / "pass_rates.json"
    if not tried.exists():
        settings, seed = run.profile.solver_settings(model), run.profile.seed
        with Engine(model, settings, seed=seed) as engine:
            found = evaluate(engine, rows, run.profile.prompt, grpo.pass_rate_samples, seed, run.progress)
        write_json(tried, found.pass_rates())
    rates = read_json(tried, "remove it, and the problems are sampled again", list)
    kept = [row for row, rate in zip(rows, rates, strict=True) if low <= rate <= high]
    if not kept:
        raise AimoError(f"grpo.pass_rate: no problem is solved in a share from {low} to {high}; widen it")
    return kept, rates
