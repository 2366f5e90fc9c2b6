"""Collects the wheels for a machine like this one that has no internet. Out of scope: installing them."""
