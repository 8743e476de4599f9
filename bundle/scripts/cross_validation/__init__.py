"""Trains all folds and scores them together (python -m scripts.cross_validation)."""
