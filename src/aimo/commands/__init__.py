"""The command line: arguments to one call each."""

from aimo import load_late

load_late("aimo", "pipeline")  # loads papermill
load_late("aimo.inference", "server")  # loads openai
