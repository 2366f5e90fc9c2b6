"""Tables, plots and the report of a run, as HTML."""

from aimo import load_late

load_late(__name__, "pages", "plots")  # load nbconvert and matplotlib
