"""Measure models on problems with known answers."""

from aimo import load_late

# They load matplotlib, numpy, datasets.
load_late(
    *(__name__, "benchmarks", "compare", "completions", "evaluate", "replay", "scores", "served"),
    "submission",
)
