"""Checks and measures a data set, and plans its training (python -m scripts.planning)."""
