"""Measure models on problems with known answers."""
