"""Kaggle: kernels and the client."""

from aimo import load_late

# Kaggle's package signs in when it is loaded.
load_late(__name__, "client", "competition", "scores", "transfers", "versions")
