"""aimo: from a base model to an AI Mathematical Olympiad submission. Each module is one room; start with `pipeline`."""
