"""From a base model to an AI Mathematical Olympiad submission. `aimo.stages` has the table of the stages."""
