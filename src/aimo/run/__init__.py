"""A run: its folder, its progress, its machine, its uploads to the hub."""
