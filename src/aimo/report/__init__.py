"""Tables, plots and the report of a run, as HTML."""
