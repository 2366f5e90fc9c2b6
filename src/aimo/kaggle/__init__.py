"""Kaggle: kernels and the client."""

from aimo import load_late

# Kaggle's package, which signs in when it is loaded, or jupytext.
load_late(__name__, "client", "competition", "kernels", "versions")
