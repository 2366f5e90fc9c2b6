"""From a base model to an AI Mathematical Olympiad submission."""
