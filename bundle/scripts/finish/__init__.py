"""Finish a task whose networks are trained: rules, predictions, report (python -m scripts.finish)."""
