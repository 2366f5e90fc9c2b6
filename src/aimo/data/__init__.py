"""Read, clean and format the problems of a run."""

from aimo import load_late

load_late(__name__, "distil")  # loads openai
