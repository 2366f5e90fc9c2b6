"""Kaggle: kernels and the client."""
